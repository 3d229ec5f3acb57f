/** Zones and lines over the picture, to be drawn and moved: by mouse, finger or keyboard. */

import { html, useEffect, useLayoutEffect, useRef, useState } from "./lib.js";
import { forward } from "./overlay.js";
import { round } from "./views/shapes.js";

const STEP = 0.005;
const BIG_STEP = 0.05;
const CLOSE_PX = 14; // a click so near to the first corner closes the zone
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function moved([x, y], event) {
  const [dx, dy] = KEYS[event.key];
  const step = event.shiftKey ? BIG_STEP : STEP;
  return [round(x + dx * step), round(y + dy * step)];
}

export function ShapeCanvas({ shapes }) {
  const { draft, drawing, selected } = shapes;
  const svg = useRef(null);
  const [cursor, showCursor] = useState([0.5, 0.5]);
  const at = useRef(cursor); // `cursor` at once: keys may be faster than the page is drawn anew
  const setCursor = (point) => {
    at.current = point;
    showCursor(point);
  };
  const [size, setSize] = useState([1600, 900]);
  const dragged = useRef(null); // {kind, index, corner}
  useEffect(() => {
    const observer = new ResizeObserver(([{ contentRect }]) => setSize([contentRect.width || 1600, contentRect.height || 900]));
    observer.observe(svg.current);
    return () => observer.disconnect();
  }, []);
  useLayoutEffect(() => { // the next key is for the picture already
    if (drawing === null) return;
    setCursor([0.5, 0.5]);
    svg.current.focus();
  }, [drawing === null]);

  const where = (event) => {
    const { left, top, width, height } = svg.current.getBoundingClientRect();
    return [round((event.clientX - left) / width), round((event.clientY - top) / height)];
  };
  const place = (point) => shapes.addPoint(point, (first) => near(point, first, size));
  /** `move(point)`: where the corner goes from where it is by then. */
  const moveCorner = ({ kind, index, corner }, move) => shapes.update(kind, index, ({ points }) => ({
    points: points.map((point, i) => (i === corner ? move(point) : point)),
  }));
  const onKeyDown = (event) => {
    if (drawing === null) return;
    if (event.key in KEYS) setCursor(moved(at.current, event));
    else if (event.key === "Enter") place(at.current);
    else if (event.key === "Escape") shapes.cancel();
    else if (event.key === "Backspace") shapes.undoPoint();
    else return;
    event.preventDefault();
  };
  const onPointerMove = (event) => {
    const point = where(event);
    if (dragged.current !== null) moveCorner(dragged.current, () => point);
    else if (drawing !== null) setCursor(point);
  };
  const pixels = ([x, y]) => [x * size[0], y * size[1]];
  return html`<svg class=${`shape-canvas ${drawing ? "drawing" : ""}`} ref=${svg} viewBox=${`0 0 ${size[0]} ${size[1]}`}
      tabindex=${drawing ? 0 : -1} role="application" aria-label="Zones and lines on the picture" onKeyDown=${onKeyDown}
      onPointerMove=${onPointerMove} onPointerUp=${() => { dragged.current = null; }}
      onClick=${(event) => place(where(event))}>
    ${["zones", "lines"].map((kind) => draft[kind].map((shape, index) => html`
      <${Shape} key=${`${kind}${index}`} kind=${kind} shape=${shape} pixels=${pixels}
        chosen=${selected?.kind === kind && selected.index === index}
        onSelect=${() => drawing === null && shapes.select({ kind, index })}
        onGrab=${(corner) => { dragged.current = { kind, index, corner }; }}
        onMove=${(corner, move) => moveCorner({ kind, index, corner }, move)} />`))}
    ${drawing !== null && html`<g class="draft">
      <polyline points=${[...drawing.points, cursor].map(pixels).join(" ")} />
      ${drawing.points.map((point) => html`<circle r="6" cx=${pixels(point)[0]} cy=${pixels(point)[1]} />`)}
      <circle class="cursor" r="9" cx=${pixels(cursor)[0]} cy=${pixels(cursor)[1]} />
    </g>`}
  </svg>`;
}

function near(a, b, [width, height]) {
  return Math.hypot((a[0] - b[0]) * width, (a[1] - b[1]) * height) < CLOSE_PX;
}

function Shape({ kind, shape: { name, points }, pixels, chosen, onSelect, onGrab, onMove }) {
  const at = points.map(pixels);
  const [labelX, labelY] = at[0];
  return html`<g class=${chosen ? "chosen" : ""} onPointerDown=${onSelect}>
    ${kind === "zones" ? html`<polygon points=${at.join(" ")} />` : html`<polyline points=${at.join(" ")} /><${Arrow} at=${at} />`}
    <text x=${labelX + 8} y=${labelY - 8}>${name}</text>
    ${chosen && at.map(([x, y], corner) => html`<circle key=${corner} class="handle" r="8" cx=${x} cy=${y} tabindex="0" role="button"
      aria-label=${`Point ${corner + 1} of ${name}: arrow keys move it`}
      onPointerDown=${(event) => { event.stopPropagation(); onGrab(corner); }}
      onKeyDown=${(event) => {
        if (!(event.key in KEYS)) return;
        event.preventDefault();
        onMove(corner, (point) => moved(point, event));
      }} />`)}
  </g>`;
}

function Arrow({ at }) {
  const [[ax, ay], [bx, by]] = at.slice(-2);
  const length = Math.hypot(bx - ax, by - ay) || 1;
  const [nx, ny] = forward((bx - ax) / length, (by - ay) / length);
  const [mx, my] = [(ax + bx) / 2, (ay + by) / 2];
  const tip = [mx + nx * 30, my + ny * 30];
  const barb = (side) => [tip[0] - nx * 9 + side * ny * 7, tip[1] - ny * 9 - side * nx * 7];
  return html`<polyline points=${[[mx, my], tip, barb(1), tip, barb(-1)].join(" ")} />`;
}
