/** Asks for the token, once: the server answers with a cookie that scripts cannot read. */

import { logIn } from "../api.js";
import { html, useState } from "../lib.js";

export function Login({ why }) {
  const [token, setToken] = useState("");
  const [fault, setFault] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await logIn(token);
    } catch (problem) {
      setFault(problem.message);
      setBusy(false);
    }
  };
  return html`<main class="login" id="main" tabindex="-1">
    <form onSubmit=${submit}>
      <img src="/web/icon.svg" alt="" width="48" height="48" />
      <h1>yolov9-server</h1>
      <p>${why}</p>
      <label for="token">Token</label>
      <input id="token" type="password" autocomplete="current-password" required autofocus value=${token}
        aria-invalid=${fault !== null} aria-describedby="token-fault" onInput=${(event) => setToken(event.target.value)} />
      <p class="fault" id="token-fault" role="alert">${fault}</p>
      <button class="primary" disabled=${busy}>${busy ? "Logging in…" : "Log in"}</button>
    </form>
  </main>`;
}
