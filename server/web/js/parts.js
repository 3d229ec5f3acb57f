/** Small pieces that all views use: icons, notices, badges, dialogs. */

import { createStore, html, useEffect, useRef, useStore } from "./lib.js";

const PATHS = {
  cameras: "M3 8a2 2 0 0 1 2-2h9a2 2 0 0 1 2 2v8a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2zM16 11l5-3v8l-5-3z",
  events: "M4 5h16M4 12h16M4 19h10",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM12 12l8-4.5M12 12v9M12 12L4 7.5",
  health: "M3 12h4l3-7 4 14 3-7h4",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v3M12 19v3M2 12h3M19 12h3M4.9 4.9L7 7M17 17l2.1 2.1M4.9 19.1L7 17M17 7l2.1-2.1",
  moon: "M20 14.5A8.5 8.5 0 1 1 9.5 4a7 7 0 0 0 10.5 10.5z",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  back: "M15 5l-7 7 7 7",
  full: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  photo: "M4 8h3l2-3h6l2 3h3v11H4zM12 10a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7z",
  leave: "M10 4H5v16h5M15 8l4 4-4 4M19 12H9",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16.5 16.5L21 21",
};

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}

/** A button that shows an icon alone; `label` says what it does. */
export function IconButton({ icon, label, ...rest }) {
  return html`<button type="button" class="icon-button" aria-label=${label} title=${label} ...${rest}><${Icon} name=${icon} /></button>`;
}

export function Loading({ what }) {
  return html`<div class="notice" role="status"><span class="spinner" aria-hidden="true"></span><p>Loading ${what}…</p></div>`;
}

/** Nothing to show, and what to do about it. */
export function Empty({ icon, title, children }) {
  return html`<div class="notice"><${Icon} name=${icon} /><h2>${title}</h2>${children}</div>`;
}

export function Failure({ problem, retry }) {
  return html`<div class="notice error" role="alert">
    <h2>That did not work</h2><p>${problem.message}</p>
    ${retry && html`<button type="button" onClick=${retry}>Try again</button>`}
  </div>`;
}

/** Data under way, failed, or there: `state` is {problem, value}. */
export function Awaited({ state, what, retry, children }) {
  if (state.value !== undefined) return children(state.value);
  return state.problem ? html`<${Failure} problem=${state.problem} retry=${retry} />` : html`<${Loading} what=${what} />`;
}

const toasts = createStore({ list: [] });
let lastToast = 0;

/** A short message at the edge of the page; read out by screen readers. */
export function toast(text, kind = "good") {
  const id = ++lastToast;
  toasts.set({ list: [...toasts.get().list, { id, text, kind }] });
  setTimeout(() => toasts.set({ list: toasts.get().list.filter((item) => item.id !== id) }), 5000);
}

export function Toasts() {
  const list = useStore(toasts, (state) => state.list);
  return html`<div class="toasts" role="status">${list.map(({ id, text, kind }) => html`<p key=${id} class=${kind}>${text}</p>`)}</div>`;
}

/** A modal dialog while it is drawn; Escape and the cross call `onClose`. */
export function Dialog({ title, onClose, wide = false, children }) {
  const element = useRef(null);
  useEffect(() => {
    element.current.showModal();
    element.current.querySelector("[autofocus], input, select, textarea")?.focus();
  }, []);
  return html`<dialog ref=${element} class=${wide ? "wide" : ""} aria-labelledby="dialog-title"
      onCancel=${(event) => { event.preventDefault(); onClose(); }}>
    <header><h2 id="dialog-title">${title}</h2><${IconButton} icon="close" label="Close" onClick=${onClose} /></header>
    ${children}
  </dialog>`;
}

/** Ask before something weighty; `safe` if it can be undone. */
export function Confirm({ title, action, safe = false, onConfirm, onClose, children }) {
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <div class="dialog-body">${children}</div>
    <footer>
      <button type="button" autofocus onClick=${onClose}>Cancel</button>
      <button type="button" class=${safe ? "primary" : "danger"} onClick=${onConfirm}>${action}</button>
    </footer>
  </${Dialog}>`;
}
