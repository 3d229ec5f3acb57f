/** Zones and lines of a camera: drawn on its picture, listed and named beside it. */

import { call, streamPath } from "../api.js";
import { refresh, server } from "../connection.js";
import { html, useEffect, useRef, useState, useStore } from "../lib.js";
import { IconButton, toast } from "../parts.js";

/** Of the shapes' points: shares of width and height. */
export const round = (value) => Math.round(Math.min(Math.max(value, 0), 1) * 10000) / 10000;

const FEWEST = { zones: 3, lines: 2 };

/**
 * A draft of the camera's zones and lines. `selected`: {kind, index} or null; `drawing`: null, or {kind, points} of a shape
 * under way.
 */
export function useShapes(stream) {
  const saved = { zones: stream.zones ?? [], lines: stream.lines ?? [] };
  const stamp = JSON.stringify(saved);
  const [draft, setDraft] = useState(saved);
  const [base, setBase] = useState(stamp);
  const [selected, select] = useState(null);
  const [drawing, setDrawing] = useState(null);
  const current = useRef(null); // `drawing` at once: clicks may be faster than the page is drawn anew
  const draw = (next) => {
    current.current = next;
    setDrawing(next);
  };
  const changed = JSON.stringify(draft) !== base;
  useEffect(() => {
    if (stamp === base) return;
    if (!changed) setDraft(saved); // changed elsewhere, and not here
    setBase(stamp);
  }, [stamp]);
  /** `changes`: the fields that change, or what gives them for the shape as it is by then. */
  const update = (kind, index, changes) => setDraft((all) => ({
    ...all,
    [kind]: all[kind].map((shape, i) => (
      i === index ? { ...shape, ...(typeof changes === "function" ? changes(shape) : changes) } : shape
    )),
  }));
  const reset = () => {
    setDraft(saved);
    draw(null);
    select(null);
  };
  return {
    draft, selected, drawing, changed, select, update, reset,
    begin(kind) {
      select(null);
      draw({ kind, points: [] });
    },
    /** `closes(first)`: whether this point is meant to be the first one again. */
    addPoint(point, closes) {
      if (current.current === null) return;
      const { kind, points } = current.current;
      if (kind === "zones" && points.length >= FEWEST.zones && closes(points[0])) return finish(current.current);
      const next = { kind, points: [...points, point.map(round)] };
      if (kind === "lines" && next.points.length === FEWEST.lines) finish(next);
      else draw(next);
    },
    undoPoint: () => draw({ ...current.current, points: current.current.points.slice(0, -1) }),
    cancel: () => draw(null),
    finish: () => finish(current.current),
    canFinish: drawing !== null && drawing.points.length >= FEWEST[drawing.kind],
    remove(kind, index) {
      setDraft((all) => ({ ...all, [kind]: all[kind].filter((_, i) => i !== index) }));
      select(null);
    },
  };
  function finish({ kind, points }) {
    const name = freeName(kind === "zones" ? "zone" : "line", draft);
    setDraft((all) => ({ ...all, [kind]: [...all[kind], { name, points }] }));
    select({ kind, index: draft[kind].length });
    draw(null);
  }
}

function freeName(stem, { zones, lines }) {
  const taken = new Set([...zones, ...lines].map(({ name }) => name));
  let number = 1;
  while (taken.has(`${stem}-${number}`)) number += 1;
  return `${stem}-${number}`;
}

export function ShapesPanel({ stream, shapes }) {
  const { draft, drawing, changed } = shapes;
  const [fault, setFault] = useState(null);
  const [busy, setBusy] = useState(false);
  const known = useStore(server, (state) => "zones" in state.fields);
  const save = async (event) => {
    event.preventDefault();
    setBusy(true);
    setFault(null);
    try {
      await call("PATCH", streamPath(stream.id), { zones: draft.zones, lines: draft.lines });
      await refresh();
      toast("Zones and lines are saved");
    } catch (problem) {
      setFault(problem.message);
    }
    setBusy(false);
  };
  if (!known) return html`<p class="muted">This server knows no zones.</p>`;
  if (drawing !== null) return html`<${Drawing} shapes=${shapes} />`;
  const empty = draft.zones.length + draft.lines.length === 0;
  return html`<form onSubmit=${save} class="shapes">
    <div class="row">
      <button type="button" onClick=${() => shapes.begin("zones")}>Draw a zone</button>
      <button type="button" onClick=${() => shapes.begin("lines")}>Draw a line</button>
    </div>
    ${empty && html`<p class="muted">A zone tells who enters, stays and leaves. A line counts who crosses it, in (the way of its arrow) or out.</p>`}
    ${["zones", "lines"].map((kind) => draft[kind].map((shape, index) => html`
      <${ShapeRow} key=${`${kind}-${index}`} kind=${kind} index=${index} shape=${shape} shapes=${shapes} />`))}
    ${fault !== null && html`<p class="fault" role="alert">${fault}</p>`}
    <div class="row end">
      ${changed && html`<button type="button" onClick=${() => { shapes.reset(); setFault(null); }}>Discard</button>`}
      <button class="primary" disabled=${!changed || busy}>${busy ? "Saving…" : "Save"}</button>
    </div>
  </form>`;
}

function Drawing({ shapes }) {
  const { drawing, canFinish } = shapes;
  const zone = drawing.kind === "zones";
  return html`<div class="shapes">
    <p role="status">${zone
      ? `Click the corners on the picture${canFinish ? "; a click on the first one closes the zone" : ""}. ${drawing.points.length} so far.`
      : `Click where the line begins, then where it ends. ${drawing.points.length} of 2.`}</p>
    <p class="muted">With the keyboard: arrow keys move the cross, Enter sets a point.</p>
    <div class="row">
      <button type="button" disabled=${drawing.points.length === 0} onClick=${shapes.undoPoint}>Undo</button>
      <button type="button" onClick=${shapes.cancel}>Cancel</button>
      ${zone && html`<button type="button" class="primary" disabled=${!canFinish} onClick=${shapes.finish}>Close the zone</button>`}
    </div>
  </div>`;
}

function ShapeRow({ kind, index, shape, shapes }) {
  const { selected, select, update, remove } = shapes;
  const id = `shape-${kind}-${index}`;
  const chosen = selected?.kind === kind && selected.index === index;
  const change = (changes) => update(kind, index, changes);
  const classes = (text) => {
    const names = text.split(",").map((name) => name.trim()).filter(Boolean);
    change({ classes: names.length ? names : undefined });
  };
  return html`<fieldset class=${chosen ? "shape chosen" : "shape"} onfocusin=${() => !chosen && select({ kind, index })}>
    <legend>${kind === "zones" ? "Zone" : "Line"}</legend>
    <div class="row">
      <div class="field"><label for=${`${id}-name`}>Name</label>
        <input id=${`${id}-name`} required value=${shape.name} onInput=${(event) => change({ name: event.target.value })} /></div>
      <div class="field"><label for=${`${id}-classes`}>Classes</label>
        <input id=${`${id}-classes`} placeholder="all" value=${(shape.classes ?? []).join(", ")} onChange=${(event) => classes(event.target.value)} /></div>
    </div>
    <div class="row">
      ${kind === "zones" && html`<div class="field narrow"><label for=${`${id}-dwell`}>Dwell, seconds</label>
        <input id=${`${id}-dwell`} type="number" min="0.1" step="any" placeholder="not told" value=${shape.dwell_s ?? ""}
          onChange=${(event) => change({ dwell_s: event.target.value === "" ? undefined : Number(event.target.value) })} /></div>`}
      ${kind === "lines" && html`<button type="button" onClick=${() => change({ points: [...shape.points].reverse() })}>Turn around</button>`}
      <span class="spring"></span>
      <${IconButton} icon="close" label=${`Remove ${shape.name}`} onClick=${() => remove(kind, index)} />
    </div>
  </fieldset>`;
}
