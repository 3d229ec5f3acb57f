/** One camera: its picture in large, what is known of it, its zones and lines, its settings. */

import { call, may, session, streamPath } from "../api.js";
import { DropBadge, LiveBadges, StateDot, useLedger } from "../badges.js";
import { forget, server, streamOf } from "../connection.js";
import { count, drops, milliseconds, rate, reason, seconds, video, words } from "../format.js";
import { html, useEffect, useRef, useState, useStore } from "../lib.js";
import { Confirm, Empty, Icon, IconButton, toast } from "../parts.js";
import { ShapeCanvas } from "../shape_canvas.js";
import { Stage } from "../stage.js";
import { EventStrip } from "./events.js";
import { ShapesPanel, useShapes } from "./shapes.js";
import { StreamForm } from "./stream_form.js";

const WIDTH = 1280; // pixels of the picture, where the camera has as many
const TABS = ["Overview", "Zones & lines", "Settings"];

export function CameraView({ id }) {
  const stream = useStore(server, streamOf(id));
  if (stream === null) {
    return html`<${Empty} icon="cameras" title=${`There is no camera “${id}”`}><p><a class="button" href="#/cameras">All cameras</a></p></${Empty}>`;
  }
  return html`<${Camera} stream=${stream} />`;
}

function Camera({ stream }) {
  const { id } = stream;
  const mayChange = useStore(session, (state) => may(state, "operator"));
  const hasEvents = useStore(server, (state) => state.calls.has("/events"));
  const [tab, setTab] = useState(TABS[0]);
  const [live, setLive] = useState(null);
  const [layers, setLayers] = useState({ boxes: true, zones: true });
  const [removing, setRemoving] = useState(false);
  const shapes = useShapes(stream);
  const picture = useRef(null);
  const tabs = mayChange ? TABS : TABS.slice(0, 1);
  const drawing = tab === TABS[1];
  const remove = async () => {
    try {
      await call("DELETE", streamPath(id));
      location.hash = "#/cameras";
      forget(id);
      toast(`${id} was removed`);
    } catch (problem) {
      setRemoving(false);
      toast(problem.message, "bad");
    }
  };
  return html`
    <header class="view-head">
      <a class="icon-button" href="#/cameras" aria-label="All cameras" title="All cameras"><${Icon} name="back" /></a>
      <${StateDot} status=${stream.status} /><h1>${id}</h1>
      <div class="badges"><${LiveBadges} live=${live} /><${DropBadge} id=${id} /></div>
    </header>
    <div class="camera">
      <section aria-label="Picture">
        <div class="screen" ref=${picture}>
          <${Stage} stream=${stream} width=${WIDTH} layers=${{ ...layers, zones: layers.zones && !drawing }} onLive=${setLive}>
            ${drawing && html`<${ShapeCanvas} shapes=${shapes} />`}
          </${Stage}>
        </div>
        <div class="toolbar">
          ${["boxes", "zones"].map((layer) => html`<label class="switch"><input type="checkbox" checked=${layers[layer]}
            onChange=${() => setLayers({ ...layers, [layer]: !layers[layer] })} />${layer === "boxes" ? "Boxes" : "Zones and lines"}</label>`)}
          <span class="spring"></span>
          <a class="icon-button" href=${streamPath(id, "/snapshot.jpg?annotate=true")} download=${`${id}.jpg`} aria-label="Save the picture" title="Save the picture"><${Icon} name="photo" /></a>
          <${IconButton} icon="full" label="Full screen" onClick=${() => picture.current.requestFullscreen?.()} />
        </div>
        <${Seen} live=${live} />
      </section>
      <section class="panel" aria-label="About this camera">
        <div role="tablist" aria-label="About this camera" onKeyDown=${(event) => step(event, tabs, tab, setTab)}>
          ${tabs.map((name) => html`<button key=${name} type="button" role="tab" id=${tabId(name)} aria-selected=${name === tab}
            aria-controls="tab-panel" tabindex=${name === tab ? 0 : -1} onClick=${() => setTab(name)}>${name}</button>`)}
        </div>
        <div role="tabpanel" id="tab-panel" aria-labelledby=${tabId(tab)}>
          ${tab === TABS[0] && html`<${Overview} stream=${stream} />`}
          ${drawing && html`<${ShapesPanel} stream=${stream} shapes=${shapes} />`}
          ${tab === TABS[2] && html`<${StreamForm} stream=${stream} onDone=${() => setTab(TABS[0])} />
            <div class="danger-zone"><button type="button" class="danger" onClick=${() => setRemoving(true)}>Remove this camera</button></div>`}
        </div>
      </section>
    </div>
    ${hasEvents && html`<${EventStrip} stream=${id} />`}
    ${removing && html`<${Confirm} title=${`Remove ${id}?`} action="Remove" onConfirm=${remove} onClose=${() => setRemoving(false)}>
      <p>Its settings, zones and lines are forgotten. Other cameras go on undisturbed.</p></${Confirm}>`}`;
}

const tabId = (name) => `tab-${TABS.indexOf(name)}`;

/** Arrow keys go from tab to tab. */
function step(event, tabs, tab, setTab) {
  const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (way === undefined) return;
  const next = tabs[(tabs.indexOf(tab) + way + tabs.length) % tabs.length];
  setTab(next);
  event.currentTarget.querySelector(`#${tabId(next)}`).focus();
}

/** What is on the picture now, as text. */
function Seen({ live }) {
  const [text, setText] = useState("");
  useEffect(() => {
    const timer = setInterval(() => {
      const counts = new Map();
      for (const { class: name } of live?.result?.detections ?? []) counts.set(name, (counts.get(name) ?? 0) + 1);
      setText([...counts].map(([name, n]) => `${n} × ${name}`).join(", ") || (live?.result ? "nothing" : ""));
    }, 500);
    return () => clearInterval(timer);
  }, [live]);
  return html`<p class="muted seen">${text && `Seen now: ${text}`}</p>`;
}

function Overview({ stream: { id, url, status, classes, confidence } }) {
  const ledger = useLedger(id, 2);
  const state = status.reason && status.state !== "running" ? `${status.state} (${reason(status.reason)})` : status.state;
  const facts = [
    ["State", state],
    ["", status.detail],
    ["Address", url],
    ["Video", video(status)],
    ["Received", status.fps_received !== null && `${rate(status.fps_received)}${status.transport ? ` over ${status.transport.toUpperCase()}` : ""}`],
    ["Detected", rate(status.fps_detected)],
    ["Latency", status.latency_ms_p50 !== null && `${milliseconds(status.latency_ms_p50)} (p99 ${milliseconds(status.latency_ms_p99)})`],
    ["Last frame", status.last_frame_age_s !== null && `${seconds(status.last_frame_age_s)} ago`],
    ["Decoder", status.decoder],
    ["Reconnects", count(status.reconnects)],
    ["Classes", classes?.join(", ")],
    ["Not known to the model", status.missing_classes?.join(", ")],
    ["Confidence", confidence],
  ];
  return html`
    <dl class="facts">${facts.filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false)
      .map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    <h2>Every frame accounted for</h2>
    ${ledger && html`<table class="ledger">
      <tbody>
        <tr><th scope="row">received</th><td>${count(ledger.received)}</td></tr>
        <tr><th scope="row">detected</th><td>${count(ledger.completed)}</td></tr>
        <tr><th scope="row">in flight</th><td>${count(ledger.in_flight)}</td></tr>
        ${drops(ledger).map(({ stage, reason: why, frames }) => html`
          <tr key=${stage + why}><th scope="row">dropped: ${words(why)} <span class="muted">${stage}</span></th><td>${count(frames)}</td></tr>`)}
      </tbody></table>`}`;
}
