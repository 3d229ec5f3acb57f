/** A camera's live picture with the boxes of that very frame, on two canvases: the frame below, what is drawn above. */

import { streamPath } from "./api.js";
import { heard, now, since } from "./clock.js";
import { openSocket } from "./connection.js";
import { drawOverlay } from "./overlay.js";
import { Pairing } from "./pairing.js";

const AGES = 30; // shown frames over which the age is told

export class LiveStream {
  #pairing = new Pairing();
  #closers = [];
  #decoding = false;
  #next = null; // the newest message while another is decoded
  #ages = [];
  #shown = null; // what stands on the canvases: {picture: {seq, bitmap}, result}
  #definition = null;

  /** `onShape(width, height)`: the picture's proportions, once they are known or change. */
  constructor(id, { picture, overlay, width, onShape }) {
    this.canvas = picture;
    this.overlay = overlay;
    this.onShape = onShape;
    this.layers = { boxes: true, zones: true };
    this.#closers = [
      openSocket(streamPath(id, "/detections"), { message: (event) => this.#hear(JSON.parse(event.data)), opened: () => this.#pairing.clear() }),
      openSocket(streamPath(id, `/live?width=${width}`), { message: (event) => this.#receive(event.data), opened: () => this.#pairing.clear() }),
    ];
    this.resized = new ResizeObserver(() => this.redraw());
    this.resized.observe(overlay);
  }

  close() {
    for (const close of this.#closers) close();
    this.resized.disconnect();
    this.#shown?.picture.bitmap.close();
    this.#shown = null;
  }

  /** Zones and lines to draw. */
  set definition(definition) {
    this.#definition = definition;
    this.redraw();
  }

  get result() {
    return this.#shown?.result ?? null;
  }

  /** Milliseconds from the last packet at the server to the screen, of the frames shown last; null if there are none. */
  get age() {
    if (this.#ages.length === 0 || now() - this.#ages.at(-1).at > 3000) return null;
    const sorted = this.#ages.map(({ age }) => age).sort((a, b) => a - b);
    return sorted[sorted.length >> 1];
  }

  /** Pictures shown a second, over the last ones. */
  get rate() {
    const seconds = this.#ages.length > 1 ? (this.#ages.at(-1).at - this.#ages[0].at) / 1000 : 0;
    return seconds > 0 && this.age !== null ? (this.#ages.length - 1) / seconds : null;
  }

  redraw() {
    drawOverlay(this.overlay, this.#shown?.result ?? null, this.#definition, this.layers);
  }

  #hear(message) {
    if (message.type !== "result") return;
    heard(Date.parse(message.time.sent_at));
    this.#pairing.addResult(message);
    this.#show();
  }

  /** u64 seq, f64 PTS, JPEG. One picture is decoded at a time; of those that come meanwhile the newest is next. */
  async #receive(buffer) {
    this.#next = buffer;
    if (this.#decoding) return;
    this.#decoding = true;
    while (this.#next !== null) {
      const current = this.#next;
      this.#next = null;
      const seq = Number(new DataView(current).getBigUint64(0));
      const jpeg = new Blob([new Uint8Array(current, 16)], { type: "image/jpeg" });
      const bitmap = await createImageBitmap(jpeg).catch(() => null); // one that cannot be decoded is passed over
      if (bitmap === null) continue;
      for (const old of this.#pairing.addPicture({ seq, bitmap })) old.bitmap.close();
      this.#show();
    }
    this.#decoding = false;
  }

  #show() {
    const pair = this.#pairing.take();
    if (pair === null) return;
    for (const { bitmap } of pair.skipped) bitmap.close();
    const { picture, result } = pair;
    const { width, height } = picture.bitmap;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.onShape(width, height);
    }
    this.canvas.getContext("2d").drawImage(picture.bitmap, 0, 0);
    this.#shown?.picture.bitmap.close();
    this.#shown = pair;
    this.canvas.dataset.seq = this.overlay.dataset.seq = result.seq;
    this.redraw();
    this.#ages.push({ age: result.latency_ms.total + since(Date.parse(result.time.sent_at)), at: now() });
    if (this.#ages.length > AGES) this.#ages.shift();
  }
}
