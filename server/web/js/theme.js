/** Dark or light: as the system has it, until somebody chooses. */

const root = document.documentElement;

function current() {
  return root.dataset.theme ?? (matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark");
}

/** What a switch leads to. */
export const nextTheme = () => (current() === "dark" ? "light" : "dark");

export function toggleTheme() {
  root.dataset.theme = nextTheme();
  localStorage.setItem("theme", root.dataset.theme);
}
