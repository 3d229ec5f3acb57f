/** How a camera does, in a line: state, age of what is shown, rate, dropped frames. */

import { get, streamPath } from "./api.js";
import { count, dropped, drops, milliseconds, rate, reason, words } from "./format.js";
import { html, useEffect, useEvery, useState } from "./lib.js";

const UPDATE_MS = 500;
const SLOW_MS = 300;
const LATE_MS = 1000;

export function StateDot({ status }) {
  const text = status.reason ? `${status.state}: ${reason(status.reason)}` : status.state;
  return html`<span class=${`dot ${status.state}`} role="img" aria-label=${text} title=${text}></span>`;
}

/** Age and rate of the live picture `live` (null: none). */
export function LiveBadges({ live }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), UPDATE_MS);
    return () => clearInterval(timer);
  }, []);
  const age = live?.age ?? null;
  if (age === null) return null;
  const kind = age < SLOW_MS ? "good" : age < LATE_MS ? "warn" : "bad";
  return html`
    <span class=${`badge ${kind}`} data-badge="latency" title="From the last packet of the frame at the server to this screen">${milliseconds(age)}</span>
    <span class="badge" title="Detected frames shown a second">${rate(live.rate)}</span>`;
}

/**
 * Frames that were not detected, and why: from the ledger, read every few seconds. Those above the rate that the owner asked
 * for (max_fps) are in the ledger, but no loss.
 */
export function DropBadge({ id, seconds = 3 }) {
  const ledger = useLedger(id, seconds);
  if (ledger === null) return null;
  const limited = ledger.dropped.ingest?.rate_limit ?? 0;
  const lost = dropped(ledger) - limited;
  if (lost === 0) return html`<span class="badge" title="No frame was dropped">0 dropped</span>`;
  const share = lost / (ledger.received - limited);
  const why = drops(ledger).filter(({ reason: name }) => name !== "rate_limit").slice(0, 4).map(({ stage, reason: name, frames }) => `${words(name)} (${stage}): ${count(frames)}`);
  return html`<span class=${`badge ${share > 0.1 ? "warn" : ""}`} data-badge="drops" title=${why.join("\n")}>${count(lost)} dropped</span>`;
}

export function useLedger(id, seconds) {
  const [ledger, setLedger] = useState(null);
  useEvery(seconds, async (ended) => {
    const read = await get(streamPath(id, "/ledger")).catch(() => null);
    if (!ended() && read !== null) setLedger(read);
  }, [id]);
  return ledger;
}
