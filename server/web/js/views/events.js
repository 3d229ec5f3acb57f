import { html } from "../lib.js";
export function EventsView() { return html`<h1>Events</h1>`; }
export function EventStrip() { return null; }
