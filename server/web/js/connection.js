/** Is the server there, and which streams has it: asked every two seconds, with growing pauses while it is gone. */

import { get, session, whoAmI } from "./api.js";
import { createStore } from "./lib.js";

const POLL_MS = 2000;
const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 15000;
const NORMAL_CLOSURE = 1000;

/**
 * `streams`: null until they are known; `online`: null until the first answer; `retryAt`: when the next attempt is due
 * (performance.now), while the server is gone; `calls`: paths that this server knows; `fields` of a stream, as JSON
 * schemas.
 */
export const server = createStore({
  online: null, streams: null, problem: null, retryAt: null, calls: new Set(), fields: {}, schemas: {},
});

let timer = null;
let pause = FIRST_PAUSE_MS;
let round = 0;

/** Ask now, and go on asking. */
export async function refresh() {
  clearTimeout(timer);
  const mine = ++round;
  try {
    if (session.get().role === null) await whoAmI();
    if (session.get().login !== null) {
      server.set({ online: true, retryAt: null, problem: null, streams: null });
      return; // again after the login
    }
    if (server.get().calls.size === 0) learn(await get("/openapi.json"));
    const streams = await get("/streams");
    if (mine !== round) return; // a later one is under way
    server.set({ online: true, retryAt: null, problem: null, streams });
    pause = FIRST_PAUSE_MS;
    timer = setTimeout(poll, POLL_MS);
  } catch (problem) {
    if (mine !== round || session.get().login !== null) return;
    const gone = problem.status === 0 || problem.status >= 502;
    server.set({ online: !gone, problem, retryAt: performance.now() + pause });
    timer = setTimeout(refresh, pause);
    pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
  }
}

/** Nobody looks: nothing is asked until somebody does. */
function poll() {
  if (!document.hidden) refresh();
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && session.get().login === null) refresh();
});
let asked = false;
session.follow(({ login }) => {
  if (asked && login === null) refresh();
  asked = login !== null;
});

function learn({ paths, components }) {
  const fields = { ...components.schemas.StreamDefinition?.properties };
  server.set({ calls: new Set(Object.keys(paths)), fields, schemas: components.schemas });
}

/** A stream was removed: nothing asks for it any more, before the next round. */
export function forget(id) {
  server.set({ streams: server.get().streams.filter((stream) => stream.id !== id) });
}

export const streamOf = (id) => (state) => state.streams?.find((stream) => stream.id === id) ?? null;

/**
 * A WebSocket that comes back by itself while the server is there. `options`: message(event), opened?(), ended?(code).
 * Returns the function that closes it.
 */
export function openSocket(path, { message, opened = () => {}, ended = () => {} }) {
  let socket = null;
  let wait = 500;
  let waiting = null;
  let closed = false;
  const connect = () => {
    waiting = null;
    if (closed || socket !== null || server.get().online === false) return; // `follow` below tries again
    socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      wait = 500;
      opened();
    };
    socket.onmessage = message;
    socket.onclose = ({ code }) => {
      socket = null;
      closed ||= code === NORMAL_CLOSURE; // the stream was removed
      if (closed) return;
      ended(code);
      waiting = setTimeout(connect, wait * (0.75 + Math.random() / 2));
      wait = Math.min(wait * 2, 10000);
    };
  };
  connect();
  const unfollow = server.follow(({ online }) => {
    if (online && waiting === null) connect();
  });
  return () => {
    closed = true;
    unfollow();
    clearTimeout(waiting);
    if (socket?.readyState === WebSocket.CONNECTING) socket.onopen = () => socket?.close(); // else the browser complains
    else socket?.close();
  };
}
