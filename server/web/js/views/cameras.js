/** All cameras, live. */

import { may, session } from "../api.js";
import { DropBadge, LiveBadges, StateDot } from "../badges.js";
import { server } from "../connection.js";
import { html, useState, useStore } from "../lib.js";
import { Empty, Icon } from "../parts.js";
import { Stage } from "../stage.js";
import { StreamDialog } from "./stream_form.js";

const TILE_WIDTH = 640; // pixels of the pictures in the grid

export function CamerasView() {
  const streams = useStore(server, (state) => state.streams);
  const mayAdd = useStore(session, (state) => may(state, "operator"));
  const [adding, setAdding] = useState(false);
  const running = streams.filter((stream) => stream.status.state === "running").length;
  const add = mayAdd && html`<button type="button" class="primary" onClick=${() => setAdding(true)}><${Icon} name="plus" />Add camera</button>`;
  return html`
    <header class="view-head">
      <h1>Cameras</h1>
      ${streams.length > 0 && html`<p class="muted">${running} of ${streams.length} running</p>`}
      ${streams.length > 0 && add}
    </header>
    ${streams.length === 0 && html`<${Empty} icon="cameras" title="No cameras yet">
      <p>Add the first one: an RTSP address is all that is needed.</p>${add}</${Empty}>`}
    <ul class=${`grid ${streams.length === 1 ? "single" : streams.length <= 4 ? "few" : ""}`}>
      ${streams.map((stream) => html`<li key=${stream.id}><${Tile} stream=${stream} /></li>`)}
    </ul>
    ${adding && html`<${StreamDialog} onClose=${() => setAdding(false)} />`}`;
}

function Tile({ stream }) {
  const [live, setLive] = useState(null);
  return html`<article class="tile">
    <a href=${`#/camera/${encodeURIComponent(stream.id)}`} aria-label=${`Open ${stream.id}`}>
      <${Stage} stream=${stream} width=${TILE_WIDTH} onLive=${setLive} />
    </a>
    <footer>
      <${StateDot} status=${stream.status} />
      <h2>${stream.id}</h2>
      <div class="badges"><${LiveBadges} live=${live} /><${DropBadge} id=${stream.id} /></div>
    </footer>
  </article>`;
}
