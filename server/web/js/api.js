/** Calls to the server. Whatever goes wrong comes as a `Problem`: RFC 9457 with a stable `code`. */

import { createStore } from "./lib.js";

const ASK = "This server asks for a token.";

/** `login`: null, or why a token is asked for. `role`: metrics | viewer | operator | admin, null while unknown. */
export const session = createStore({ login: null, role: null, name: null, tokenNeeded: false });

export class Problem extends Error {
  constructor(status, { code = "unreachable", detail = "The server does not answer.", errors = [] } = {}) {
    super(detail);
    this.status = status;
    this.code = code;
    /** field -> message */
    this.fields = Object.fromEntries((errors ?? []).map(({ field, message }) => [field.split(".")[0], message]));
  }
}

/** The answer's JSON, null if it has none. Throws Problem; its status is 0 if the server cannot be reached. */
export async function call(method, path, body) {
  const request = { method, headers: {} };
  if (body !== undefined) {
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, request);
  } catch {
    throw new Problem(0);
  }
  const text = await answer.text();
  let content = null;
  try {
    content = text ? JSON.parse(text) : null;
  } catch {
    // not from this server: a proxy's own error page
  }
  if (answer.ok) return content;
  const problem = new Problem(answer.status, content ?? { code: "http_error", detail: answer.statusText });
  if (answer.status === 401 && path !== "/session") session.set({ login: ASK });
  throw problem;
}

export const get = (path) => call("GET", path);

/** Path of a stream, or of something below it. */
export const streamPath = (id, rest = "") => `/streams/${encodeURIComponent(id)}${rest}`;

/** Throws Problem: 401 if the token is wrong, 429 after too many wrong ones. */
export async function logIn(token) {
  know(await call("POST", "/session", { token }));
}

export async function logOut() {
  await call("DELETE", "/session");
  session.set({ login: "You are logged out.", role: null, name: null });
}

/** Finds out who the server takes this browser for. Throws Problem, but not where a token is needed. */
export async function whoAmI() {
  try {
    know(await get("/session"));
  } catch (problem) {
    if (problem.status !== 401) throw problem;
    session.set({ login: ASK });
  }
}

function know({ name, role, token_needed: tokenNeeded }) {
  session.set({ name, role, tokenNeeded, login: null });
}

/** Whether this user may change cameras (`operator`) or models (`admin`). The server decides; this only hides. */
export function may({ role }, needed) {
  return role === "admin" || role === needed;
}
