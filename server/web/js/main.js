/** The frame of the page: which view is shown, the way between them, what is said when the server is gone. */

import { logOut, session } from "./api.js";
import * as clock from "./clock.js";
import { refresh, server } from "./connection.js";
import { html, render, useEffect, useState, useStore } from "./lib.js";
import { Failure, Icon, IconButton, Loading, Toasts, toast } from "./parts.js";
import { nextTheme, toggleTheme } from "./theme.js";
import { CameraView } from "./views/camera.js";
import { CamerasView } from "./views/cameras.js";
import { EventsView } from "./views/events.js";
import { HealthView } from "./views/health.js";
import { Login } from "./views/login.js";
import { ModelsView } from "./views/models.js";

const VIEWS = [
  { name: "cameras", title: "Cameras", view: CamerasView },
  { name: "events", title: "Events", view: EventsView, needs: "/events" },
  { name: "models", title: "Models", view: ModelsView, needs: "/models" },
  { name: "health", title: "Health", view: HealthView },
];

function useRoute() {
  const read = () => location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const changed = () => setRoute(read());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

function App() {
  const [name, id] = useRoute();
  const { online, streams, problem, calls } = useStore(server);
  const login = useStore(session, (state) => state.login);
  const views = VIEWS.filter(({ needs }) => needs === undefined || calls.has(needs));
  const current = views.find((view) => view.name === name) ?? VIEWS[0];
  useEffect(() => {
    document.title = `${name === "camera" ? id : current.title} · yolov9-server`;
    document.querySelector("main")?.focus({ preventScroll: true });
  }, [name, id, current]);
  if (login !== null) return html`<${Login} why=${login} /><${Toasts} />`;
  let content;
  if (streams === null && problem !== null && online) content = html`<${Failure} problem=${problem} retry=${refresh} />`;
  else if (streams === null) content = html`<${Loading} what="cameras" />`;
  else if (name === "camera") content = html`<${CameraView} key=${id} id=${id} />`;
  else content = html`<${current.view} />`;
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.querySelector("main").focus(); }}>Skip to content</a>
    <${Header} views=${views} current=${name === "camera" ? "cameras" : current.name} />
    <${Offline} />
    <main id="main" tabindex="-1">${content}</main>
    <${Toasts} />`;
}

function Header({ views, current }) {
  const { name, role, tokenNeeded } = useStore(session);
  const [theme, setTheme] = useState(nextTheme);
  return html`<header class="top">
    <a class="brand" href="#/cameras"><img src="/web/icon.svg" alt="" width="28" height="28" /><span>yolov9-server</span></a>
    <nav aria-label="Views">
      ${views.map(({ name: view, title }) => html`
        <a key=${view} href=${`#/${view}`} aria-current=${view === current ? "page" : null}><${Icon} name=${view} /><span>${title}</span></a>`)}
    </nav>
    <div class="tools">
      ${tokenNeeded && html`<span class="who">${name} (${role})</span>`}
      <${IconButton} icon=${theme === "dark" ? "moon" : "sun"} label=${`Switch to the ${theme} theme`}
        onClick=${() => { toggleTheme(); setTheme(nextTheme()); }} />
      ${tokenNeeded && html`<${IconButton} icon="leave" label="Log out" onClick=${() => logOut().catch((problem) => toast(problem.message, "bad"))} />`}
    </div>
  </header>`;
}

/** A banner while the server is gone, with the time to the next attempt. */
function Offline() {
  const { online, retryAt } = useStore(server);
  const [, tick] = useState(0);
  useEffect(() => {
    if (online !== false) return undefined;
    const timer = setInterval(() => tick((n) => n + 1), 500);
    return () => clearInterval(timer);
  }, [online]);
  if (online !== false) return null;
  const left = Math.max(Math.ceil((retryAt - performance.now()) / 1000), 0);
  return html`<div class="offline">
    <p role="alert">The server does not answer. What you see is from before.</p>
    <p>${left > 0 ? `Trying again in ${left} s.` : "Trying now…"}</p>
    <button type="button" onClick=${refresh}>Try now</button>
  </div>`;
}

clock.measure();
refresh();
const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
