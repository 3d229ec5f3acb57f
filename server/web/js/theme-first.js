// Before the first paint: the theme that was chosen, so that the page does not flash in the other one.
{
  const chosen = localStorage.getItem("theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
}
