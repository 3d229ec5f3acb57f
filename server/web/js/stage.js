/** A camera's picture on the page: live while it is on screen, with what stands in its place when there is none. */

import { streamPath } from "./api.js";
import { server } from "./connection.js";
import { reason } from "./format.js";
import { html, useEffect, useRef, useState, useStore } from "./lib.js";
import { LiveStream } from "./live.js";

/** Whether an element can be seen: what is scrolled away or in a hidden tab costs nothing. */
function useVisible(element) {
  const [visible, setVisible] = useState(false);
  useEffect(() => {
    let onScreen = false;
    const update = () => setVisible(onScreen && !document.hidden);
    const observer = new IntersectionObserver((entries) => {
      onScreen = entries.at(-1).isIntersecting;
      update();
    }, { rootMargin: "100px" });
    observer.observe(element.current);
    document.addEventListener("visibilitychange", update);
    return () => {
      observer.disconnect();
      document.removeEventListener("visibilitychange", update);
    };
  }, []);
  return visible;
}

/** `onLive(LiveStream or null)`: for badges. `layers`: {boxes, zones}. `children` lie above the picture. */
export function Stage({ stream, width, layers, onLive = () => {}, children }) {
  const frame = useRef(null);
  const picture = useRef(null);
  const overlay = useRef(null);
  const live = useRef(null);
  const [shown, setShown] = useState(false);
  const visible = useVisible(frame);
  const { id, zones, lines, status } = stream;
  const shape = (w, h) => frame.current?.style.setProperty("--ratio", (w / h).toFixed(4));

  useEffect(() => {
    if (!visible) return undefined;
    const started = new LiveStream(id, {
      picture: picture.current,
      overlay: overlay.current,
      width,
      onShape: (w, h) => {
        shape(w, h);
        setShown(true);
      },
    });
    live.current = started;
    onLive(started);
    return () => {
      started.close();
      live.current = null;
      onLive(null);
    };
  }, [id, width, visible]);
  useEffect(() => {
    if (live.current === null) return;
    live.current.layers = layers ?? live.current.layers;
    live.current.definition = { zones, lines };
  }, [JSON.stringify([zones, lines, layers]), visible, id, width]);
  useEffect(() => {
    if (!shown && status.width) shape(status.width, status.height);
  }, [shown, status.width, status.height]);

  return html`<div class=${`stage ${status.state}`} ref=${frame}>
    <div class="picture">
      ${!shown && visible && html`<${Poster} stream=${stream} width=${width} />`}
      <canvas class="frame" ref=${picture} width="16" height="9" role="img" aria-label=${`Live picture of ${id}`}></canvas>
      <canvas class="overlay" ref=${overlay} aria-hidden="true"></canvas>
      ${children}
    </div>
    <${Hindrance} stream=${stream} shown=${shown} />
  </div>`;
}

/** The newest picture until the first detected one: a camera can be seen while the engine still warms up. */
function Poster({ stream, width }) {
  const running = stream.status.state === "running" && stream.status.last_frame_age_s !== null;
  if (!running) return null;
  return html`<img class="poster" alt="" src=${streamPath(stream.id, `/snapshot.jpg?width=${width}`)}
    onError=${(event) => { event.target.hidden = true; }} />`;
}

/** Why there is no live picture now. */
function Hindrance({ stream: { status }, shown }) {
  const polledAt = useRef(0);
  const [, tick] = useState(0);
  const online = useStore(server, (state) => state.online);
  const counting = status.retry_in_s !== null && status.retry_in_s !== undefined;
  useEffect(() => {
    polledAt.current = performance.now();
  }, [status]);
  useEffect(() => {
    if (!counting) return undefined;
    const timer = setInterval(() => tick((n) => n + 1), 1000);
    return () => clearInterval(timer);
  }, [counting]);
  if (online === false) return html`<div class="hindrance"><p>No connection to the server</p></div>`;
  if (status.state === "running") {
    return shown ? null : html`<div class="hindrance"><span class="spinner" aria-hidden="true"></span><p>Waiting for the first detected frame…</p></div>`;
  }
  const left = counting ? Math.max(Math.ceil(status.retry_in_s - (performance.now() - polledAt.current) / 1000), 0) : null;
  const titles = { connecting: "Connecting…", backoff: "No connection", failed: "Failed", stopped: "Stopped" };
  return html`<div class="hindrance">
    ${status.state === "connecting" && html`<span class="spinner" aria-hidden="true"></span>`}
    <p class="title">${titles[status.state] ?? status.state}</p>
    ${status.reason && html`<p>${reason(status.reason)}</p>`}
    ${left !== null && html`<p class="countdown">${left > 0 ? `Next attempt in ${left} s` : "Trying now…"}</p>`}
  </div>`;
}
