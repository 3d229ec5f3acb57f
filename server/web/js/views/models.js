import { html } from "../lib.js";
export function ModelsView() { return html`<h1>Models</h1>`; }
