/** Is it well: readiness, engine, and where every frame of every camera went. */

import { get, may, session, streamPath } from "../api.js";
import { StateDot } from "../badges.js";
import { server } from "../connection.js";
import { count, dropped, drops, milliseconds, rate, seconds, words } from "../format.js";
import { html, useEvery, useState, useStore } from "../lib.js";
import { parseMetrics } from "../metrics.js";

const EVERY_S = 3;

export function HealthView() {
  const streams = useStore(server, (state) => state.streams);
  const role = useStore(session);
  const [ready, setReady] = useState(null);
  const [ledgers, setLedgers] = useState({});
  const [metrics, setMetrics] = useState(null);
  useEvery(EVERY_S, async (ended) => {
    const answer = await readiness();
    const ids = server.get().streams.map(({ id }) => id);
    const read = await Promise.all(ids.map((id) => get(streamPath(id, "/ledger")).catch(() => null)));
    const text = may(role, "viewer") || may(role, "operator") ? await metricsText() : null;
    if (ended()) return;
    setReady(answer);
    setLedgers(Object.fromEntries(ids.map((id, i) => [id, read[i]]).filter(([, ledger]) => ledger)));
    setMetrics(text === null ? null : parseMetrics(text));
  }, [role.role]);
  return html`
    <header class="view-head"><h1>Health</h1><span class="spring"></span><a class="button" href="/docs">API</a><a class="button" href="/metrics">Metrics</a></header>
    <div class="cards">
      <${Readiness} ready=${ready} />
      ${metrics && html`<${Engine} metrics=${metrics} />`}
      <${Totals} ledgers=${Object.values(ledgers)} />
    </div>
    <${Frames} streams=${streams} ledgers=${ledgers} />`;
}

async function readiness() {
  const answer = await fetch("/readyz").catch(() => null);
  if (answer === null) return { ok: false, why: "The server does not answer." };
  const body = await answer.json().catch(() => ({}));
  return { ok: answer.ok, why: body.reason ?? body.detail ?? "" };
}

async function metricsText() {
  const answer = await fetch("/metrics").catch(() => null);
  return answer?.ok ? answer.text() : null;
}

function Readiness({ ready }) {
  if (ready === null) return null;
  return html`<section class=${`card ${ready.ok ? "good" : "bad"}`}>
    <h2>Readiness</h2><p class="big">${ready.ok ? "Ready" : "Not ready"}</p><p>${ready.why}</p></section>`;
}

function Engine({ metrics }) {
  const info = metrics.find("yolov9_model_info")[0]?.labels ?? {};
  const inference = metrics.quantile("yolov9_frame_latency_seconds", { stage: "inference" }, 0.5);
  const facts = [
    ["Model", info.name], ["Engine", [info.engine, info.precision].filter(Boolean).join(", ")],
    ["Inference (median)", inference === null ? null : milliseconds(inference * 1000)],
    ["Frames waiting", metrics.value("yolov9_queue_depth")],
    ["Failed inferences", metrics.sum("yolov9_inference_errors_total")],
    ["Memory of the server", bytes(metrics.value("process_resident_memory_bytes"))],
    ["Up for", uptime(metrics.value("process_start_time_seconds"))],
  ];
  return html`<section class="card"><h2>Engine</h2>
    <dl class="facts">${facts.filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl></section>`;
}

const bytes = (value) => (value === null ? null : `${Math.round(value / 2 ** 20)} MiB`);
const uptime = (start) => (start === null ? null : seconds(Date.now() / 1000 - start));

function Totals({ ledgers }) {
  const sum = (pick) => ledgers.reduce((total, ledger) => total + pick(ledger), 0);
  const [received, completed, lost, flying] = [sum((l) => l.received), sum((l) => l.completed), sum(dropped), sum((l) => l.in_flight)];
  const balanced = received === completed + lost + flying;
  return html`<section class="card"><h2>Ledger</h2>
    <p class="big">${count(received)} <small>frames received</small></p>
    <p>${count(completed)} detected + ${count(lost)} dropped + ${count(flying)} in flight</p>
    <p class=${balanced ? "verdict good" : "verdict bad"}>${balanced ? "Every frame is accounted for." : "The ledger does not balance."}</p></section>`;
}

function Frames({ streams, ledgers }) {
  if (streams.length === 0) return null;
  return html`<section class="card"><h2>Cameras</h2>
    <div class="scroll" tabindex="0" role="region" aria-label="Cameras, table"><table>
      <thead><tr><th scope="col">Camera</th><th scope="col">Rate</th><th scope="col">Latency p50 / p99</th><th scope="col">Received</th>
        <th scope="col">Detected</th><th scope="col">Dropped</th><th scope="col">Most for</th><th scope="col">Reconnects</th></tr></thead>
      <tbody>${streams.map((stream) => html`<${Row} key=${stream.id} stream=${stream} ledger=${ledgers[stream.id]} />`)}</tbody>
    </table></div></section>`;
}

function Row({ stream: { id, status }, ledger }) {
  const lost = ledger ? dropped(ledger) : null;
  const main = ledger ? drops(ledger)[0] : undefined;
  const share = ledger?.received ? `${((lost / ledger.received) * 100).toFixed(1)} %` : "";
  return html`<tr>
    <th scope="row"><${StateDot} status=${status} /> <a href=${`#/camera/${encodeURIComponent(id)}`}>${id}</a></th>
    <td>${rate(status.fps_detected)}</td><td>${milliseconds(status.latency_ms_p50)} / ${milliseconds(status.latency_ms_p99)}</td>
    <td>${ledger ? count(ledger.received) : "–"}</td><td>${ledger ? count(ledger.completed) : "–"}</td>
    <td>${lost === null ? "–" : `${count(lost)} (${share})`}</td><td>${main ? words(main.reason) : "–"}</td><td>${count(status.reconnects)}</td>
  </tr>`;
}
