/** The models of this server: what they know and reach, and which one answers. Another one takes over without a lost frame. */

import { call, get, may, session } from "../api.js";
import { html, useEvery, useState, useStore } from "../lib.js";
import { Awaited, Confirm, Empty, toast } from "../parts.js";

const SHOWN_CLASSES = 12;
const METRICS = [["map", "AP"], ["map50", "AP50"], ["map75", "AP75"]];

export function ModelsView() {
  const [state, setState] = useState({});
  const mayActivate = useStore(session, (who) => may(who, "admin"));
  const load = async (ended = () => false) => {
    try {
      const value = await get("/models");
      if (!ended()) setState({ value });
    } catch (problem) {
      if (!ended()) setState((before) => ({ ...before, problem }));
    }
  };
  useEvery(2, load);
  return html`
    <header class="view-head"><h1>Models</h1></header>
    <${Awaited} state=${state} what="models" retry=${() => load()}>${(models) => (models.length === 0
      ? html`<${Empty} icon="models" title="No models"><p>Register one with <code>POST /models</code>.</p></${Empty}>`
      : html`<ul class="cards models">${models.map((model) => html`<li key=${model.name}>
          <${Model} model=${model} mayActivate=${mayActivate} busy=${models.some((one) => one.state === "loading")} changed=${load} /></li>`)}</ul>`)}
    </${Awaited}>`;
}

function Model({ model, mayActivate, busy, changed }) {
  const [asking, setAsking] = useState(null); // null, or why it must be forced; "" if it need not be
  const activate = async (force) => {
    setAsking(null);
    try {
      await call("POST", `/models/${encodeURIComponent(model.name)}/activate${force ? "?force=true" : ""}`);
      toast(`${model.name} is being loaded and tried`);
    } catch (problem) {
      if (problem.code === "classes_missing") setAsking(problem.message);
      else toast(problem.message, "bad");
    }
    await changed();
  };
  const { name, state, active, classes, metrics } = model;
  const shown = classes.slice(0, SHOWN_CLASSES).join(", ") + (classes.length > SHOWN_CLASSES ? ` and ${classes.length - SHOWN_CLASSES} more` : "");
  const facts = [
    ["Classes", `${classes.length}: ${shown}`],
    ["Input", model.input_size && `${model.input_size} px`],
    ["Precisions", model.precisions.join(", ")],
    ["Size", model.bytes && `${(model.bytes / 1e6).toFixed(1)} MB`],
    ["From", { packaged: "came with the server", registered: "registered here", given: "named at the start" }[model.source] ?? model.source],
    ["Hash", model.hash],
  ];
  return html`<article class=${`card model ${active ? "active" : ""}`}>
    <header class="row"><h2>${name}</h2><span class="spring"></span>
      <span class=${`badge ${{ active: "good", refused: "bad", loading: "warn" }[state] ?? ""}`}>${state}</span></header>
    <dl class="metrics">${METRICS.filter(([key]) => typeof metrics[key] === "number")
      .map(([key, label]) => html`<div key=${key}><dt>${label}</dt><dd>${metrics[key].toFixed(3)}</dd></div>`)}</dl>
    <dl class="facts">${facts.filter(([, value]) => value).map(([label, value]) => html`<div key=${label}><dt>${label}</dt><dd>${value}</dd></div>`)}</dl>
    ${model.reason && html`<p class="fault">${model.reason}</p>`}
    ${model.note && html`<p class="muted">${model.note}</p>`}
    ${mayActivate && !active && html`<div class="row end"><button type="button" class="primary" disabled=${busy} onClick=${() => setAsking("")}>
      ${state === "loading" ? "Loading…" : "Activate"}</button></div>`}
    ${asking !== null && html`<${Confirm} title=${`Let ${name} answer?`} action=${asking ? "Activate all the same" : "Activate"} safe=${!asking}
        onConfirm=${() => activate(asking !== "")} onClose=${() => setAsking(null)}>
      <p>${asking || "It is loaded and tried beside the active one; then new frames go to it. No frame is lost, and if it does not work, everything stays as it is."}</p>
    </${Confirm}>`}
  </article>`;
}
