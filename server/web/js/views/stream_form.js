/**
 * Add or change a camera. The fields come from the server's own description of a stream (OpenAPI), so that what it can do
 * and what this form offers are one; what it finds wrong stands beside the field.
 */

import { call, streamPath } from "../api.js";
import { refresh, server } from "../connection.js";
import { html, useEffect, useRef, useState, useStore } from "../lib.js";
import { Dialog, toast } from "../parts.js";
import { reason, video } from "../format.js";

const FIRST = ["id", "url", "username", "password", "classes", "confidence", "max_fps"];
const DRAWN = new Set(["zones", "lines"]);
const LABELS = {
  id: "Name", url: "Address", username: "User name", password: "Password", max_fps: "Most detections a second",
  iou: "IoU of NMS", rtsp_client: "RTSP client", max_staleness_ms: "Oldest frame to detect (ms)",
  class_confidence: "Confidence of single classes",
};
const HOLDERS = { url: "rtsp://192.168.1.20/stream1", id: "made up if left empty", classes: "person, car", class_confidence: "person: 0.5, car: 0.3" };

export function StreamDialog({ stream = null, onClose }) {
  return html`<${Dialog} title=${stream === null ? "Add a camera" : `Settings of ${stream.id}`} onClose=${onClose}>
    <${StreamForm} stream=${stream} onDone=${onClose} />
  </${Dialog}>`;
}

/** `stream`: the one to change, null to add one. `onDone` is called after it is saved. */
export function StreamForm({ stream, onDone }) {
  const schemas = useStore(server, (state) => state.fields);
  const names = Object.keys(schemas).filter((name) => !DRAWN.has(name) && !(stream && name === "id"));
  const first = FIRST.filter((name) => names.includes(name));
  const more = names.filter((name) => !FIRST.includes(name));
  const [values, setValues] = useState(() => Object.fromEntries(names.map((name) => [name, toText(stream?.[name])])));
  const before = useRef(values);
  const [fields, setFields] = useState({});
  const [fault, setFault] = useState(null);
  const [busy, setBusy] = useState(null);
  const [report, setReport] = useState(null);
  const form = useRef(null);
  useEffect(() => {
    form.current.querySelector("[aria-invalid=true]")?.focus();
  }, [fields]);

  /** What differs from before; throws {fields} for text that is no value. */
  const body = () => {
    const wrong = {};
    const changed = {};
    for (const name of names) {
      if (stream !== null && values[name] === before.current[name]) continue;
      if (stream === null && values[name] === "") continue;
      try {
        changed[name] = toValue(values[name], schemas[name]);
      } catch (error) {
        wrong[name] = error.message;
      }
    }
    if (Object.keys(wrong).length) throw Object.assign(new Error("Some fields need another look."), { fields: wrong });
    return changed;
  };
  const run = async (kind, action) => {
    setBusy(kind);
    setFault(null);
    setFields({});
    setReport(null);
    try {
      await action(body());
    } catch (problem) {
      setFields(problem.fields ?? {});
      setFault(problem.message);
    }
    setBusy(null);
  };
  const test = () => run("test", async (changed) => {
    setReport(stream === null
      ? await call("POST", "/streams?dry_run=true", changed)
      : await call("PATCH", streamPath(stream.id, "?dry_run=true"), changed));
  });
  const save = (event) => {
    event.preventDefault();
    run("save", async (changed) => {
      const saved = stream === null ? await call("POST", "/streams", changed) : await call("PATCH", streamPath(stream.id), changed);
      await refresh();
      toast(stream === null ? `${saved.id} was added` : "Saved");
      onDone();
    });
  };
  const field = (name) => html`<${Field} key=${name} name=${name} schema=${schemas[name]} value=${values[name]} fault=${fields[name]}
    required=${name === "url"} onInput=${(value) => setValues((all) => ({ ...all, [name]: value }))} />`;
  return html`<form ref=${form} onSubmit=${save} novalidate class="stream-form">
    <div class="dialog-body">
      ${first.map(field)}
      ${more.length > 0 && html`<details open=${more.some((name) => fields[name])}>
        <summary>More settings</summary>${more.map(field)}</details>`}
      <${Report} report=${report} />
      ${fault !== null && html`<p class="fault" role="alert">${fault}</p>`}
    </div>
    <footer>
      <button type="button" disabled=${busy !== null} onClick=${test}>${busy === "test" ? "Testing…" : "Test"}</button>
      <button class="primary" disabled=${busy !== null}>${busy === "save" ? "Saving…" : stream === null ? "Add camera" : "Save"}</button>
    </footer>
  </form>`;
}

function Report({ report }) {
  const element = useRef(null);
  useEffect(() => element.current?.scrollIntoView({ block: "nearest" }), [report]);
  if (report === null) return null;
  if (!report.ok) {
    return html`<div ref=${element} class="report bad" role="status"><strong>It cannot be opened: ${reason(report.reason)}.</strong>${report.detail && html`<p>${report.detail}</p>`}</div>`;
  }
  return html`<div ref=${element} class=${`report ${report.capacity ? "good" : "warn"}`} role="status">
    <strong>It works: ${video(report)}.</strong>
    <p>${report.capacity ? "The engine has room for it." : "The engine is busy: not every frame can be detected."}</p>
  </div>`;
}

function Field({ name, schema, value, fault, required, onInput }) {
  const label = LABELS[name] ?? (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");
  const id = `field-${name}`;
  const { kind, options, minimum, maximum } = shape(schema);
  const common = {
    id, name, value, required, "aria-invalid": fault !== undefined, "aria-describedby": `${id}-hint ${id}-fault`,
    onInput: (event) => onInput(event.target.value),
  };
  let input;
  if (options) {
    input = html`<select ...${common}><option value="">default</option>${options.map((option) => html`<option value=${option}>${option}</option>`)}</select>`;
  } else if (kind === "boolean") {
    input = html`<select ...${common}><option value="">default</option><option value="true">yes</option><option value="false">no</option></select>`;
  } else if (kind === "number" || kind === "integer") {
    input = html`<input ...${common} type="number" step="any" inputmode="decimal" min=${minimum} max=${maximum} />`;
  } else {
    input = html`<input ...${common} type=${name === "password" ? "password" : "text"} autocomplete="off" autocapitalize="off"
      spellcheck=${false} placeholder=${HOLDERS[name]} />`;
  }
  return html`<div class=${`field ${fault ? "wrong" : ""}`}>
    <label for=${id}>${label}</label>
    ${input}
    <p class="hint" id=${`${id}-hint`}>${schema.description}</p>
    <p class="fault" id=${`${id}-fault`}>${fault}</p>
  </div>`;
}

/** The part of a JSON schema that a form needs; `null` among its types means that a field may be left out. */
function shape(schema) {
  const real = schema.anyOf?.find((choice) => choice.type !== "null") ?? schema;
  return { kind: real.type, options: real.enum, minimum: real.minimum, maximum: real.maximum };
}

function toText(value) {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "object") return Object.entries(value).map(([key, item]) => `${key}: ${item}`).join(", ");
  return String(value);
}

/** Empty text is the default: null. Throws Error with what is wrong. */
function toValue(text, schema) {
  const trimmed = text.trim();
  if (trimmed === "") return null;
  const { kind } = shape(schema);
  if (kind === "boolean") return trimmed === "true";
  if (kind === "number" || kind === "integer") return number(trimmed);
  if (kind === "array") return trimmed.split(",").map((item) => item.trim()).filter(Boolean);
  if (kind === "object") {
    return Object.fromEntries(trimmed.split(",").map((pair) => {
      const at = pair.lastIndexOf(":");
      if (at < 0) throw new Error("is written as: person: 0.5, car: 0.3");
      return [pair.slice(0, at).trim(), number(pair.slice(at + 1).trim())];
    }));
  }
  return text;
}

function number(text) {
  const value = Number(text);
  if (text === "" || !Number.isFinite(value)) throw new Error("must be a number");
  return value;
}
