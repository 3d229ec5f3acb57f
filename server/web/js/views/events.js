/** What happened: the lives of followed objects, with their pictures, the newest first, and as they go on. */

import { get } from "../api.js";
import { openSocket, server } from "../connection.js";
import { clockTime, seconds, time } from "../format.js";
import { html, useEffect, useRef, useState, useStore } from "../lib.js";
import { Awaited, Dialog, Empty, Icon } from "../parts.js";

const PAGE = 48;
const STRIP = 8;
const KINDS = ["zone_enter", "zone_leave", "dwell", "line_cross"];
const NO_FILTER = { stream: "", class: "", zone: "", line: "", kind: "" };

/**
 * Events that fit the filter: those of the server, and what happens meanwhile. `more`: loads older ones, null if there are
 * none. What happens is taken to fit if the server's list would have it.
 */
function useEvents(filter, limit) {
  const [state, setState] = useState({});
  const query = new URLSearchParams(Object.entries(filter).filter(([, value]) => value !== ""));
  const asked = query.toString();
  const round = useRef(0);
  const load = async (cursor = null) => {
    const mine = ++round.current;
    try {
      const page = await get(`/events?${asked}&limit=${limit}${cursor === null ? "" : `&cursor=${cursor}`}`);
      if (mine !== round.current) return;
      setState(({ value }) => ({ value: cursor === null ? page.events : merge(value, page.events), next: page.next }));
    } catch (problem) {
      if (mine === round.current) setState((before) => ({ ...before, problem }));
    }
  };
  useEffect(() => {
    setState({});
    load();
    const streams = filter.stream === "" ? "" : `?${new URLSearchParams({ stream: filter.stream })}`;
    return openSocket(`/events${streams}`, {
      opened: () => load(), // what happened while there was no connection
      message({ data }) {
        const message = JSON.parse(data);
        if (message.type !== "event" || !fits(message, filter)) return;
        setState((before) => (before.value === undefined ? before : { ...before, value: merge([message.event], before.value) }));
      },
    });
  }, [asked, limit]);
  return { ...state, reload: () => load(), more: state.next ? () => load(state.next) : null };
}

/** Each event once, as it stands in the first list that has it; the newest first: ids rise with time. */
function merge(first, second) {
  const known = new Set(first.map(({ id }) => id));
  return [...first, ...second.filter(({ id }) => !known.has(id))].sort((a, b) => (a.id < b.id ? 1 : -1));
}

function fits({ kind, event }, filter) {
  return (filter.class === "" || event.class === filter.class)
    && (filter.zone === "" || event.zones.includes(filter.zone))
    && (filter.line === "" || event.lines.includes(filter.line))
    && (filter.kind === "" || kind === filter.kind);
}

export function EventsView() {
  const [filter, setFilter] = useState(NO_FILTER);
  const events = useEvents(filter, PAGE);
  const filtered = Object.values(filter).some((value) => value !== "");
  return html`
    <header class="view-head"><h1>Events</h1></header>
    <${Filters} filter=${filter} setFilter=${setFilter} />
    <${Awaited} state=${events} what="events" retry=${events.reload}>${(list) => (list.length === 0
      ? html`<${Empty} icon="events" title=${filtered ? "Nothing fits" : "Nothing has happened yet"}>
          <p>${filtered ? "No event fits these filters." : "Events begin once an object was followed for a moment."}</p></${Empty}>`
      : html`<${EventList} list=${list} />
          ${events.more && html`<div class="row center"><button type="button" onClick=${events.more}>Older events</button></div>`}`)}
    </${Awaited}>`;
}

/** The newest events of one camera. */
export function EventStrip({ stream }) {
  const events = useEvents({ ...NO_FILTER, stream }, STRIP);
  if (!events.value?.length) return null;
  return html`<section class="strip" aria-label="Events of this camera">
    <header class="row"><h2>Events</h2><span class="spring"></span><a href="#/events">All events</a></header>
    <${EventList} list=${events.value.slice(0, STRIP)} />
  </section>`;
}

function Filters({ filter, setFilter }) {
  const streams = useStore(server, (state) => state.streams);
  const [classes, setClasses] = useState([]);
  useEffect(() => {
    get("/models").then((models) => setClasses(models.find(({ active }) => active)?.classes ?? []), () => null);
  }, []);
  const names = (kind) => [...new Set(streams.flatMap((stream) => (stream[kind] ?? []).map(({ name }) => name)))];
  const fields = [
    ["stream", "Camera", streams.map(({ id }) => id)], ["class", "Class", classes],
    ["zone", "Zone", names("zones")], ["line", "Line", names("lines")], ["kind", "What happened", KINDS],
  ];
  return html`<form class="filters" aria-label="Filters" onSubmit=${(event) => event.preventDefault()}>
    ${fields.map(([name, label, options]) => html`<div class="field" key=${name}><label for=${`filter-${name}`}>${label}</label>
      <select id=${`filter-${name}`} value=${filter[name]} onChange=${(event) => setFilter({ ...filter, [name]: event.target.value })}>
        <option value="">all</option>
        ${options.map((option) => html`<option key=${option} value=${option}>${option.replaceAll("_", " ")}</option>`)}
      </select></div>`)}
  </form>`;
}

function EventList({ list }) {
  const [open, setOpen] = useState(null);
  return html`<ul class="events">
      ${list.map((event) => html`<li key=${event.id}><${EventCard} event=${event} onOpen=${() => setOpen(event.id)} /></li>`)}
    </ul>
    ${open !== null && html`<${EventDialog} id=${open} onClose=${() => setOpen(null)} />`}`;
}

function EventCard({ event, onOpen }) {
  const places = [...event.zones, ...event.lines];
  return html`<button type="button" class="event" onClick=${onOpen}>
    <${Picture} event=${event} />
    <span class="event-text">
      <strong>${event.class}</strong> <span class="muted">${Math.round(event.confidence * 100)} %</span>
      <span class="line">${event.stream}, ${clockTime(event.first_seen)}</span>
      <span class="line muted">${event.state === "active" ? "going on" : seconds(lasted(event))}${places.length > 0 && ` · ${places.join(", ")}`}</span>
    </span>
  </button>`;
}

/** Of the best frame so far: `seq` makes the browser ask anew for a better one. */
function Picture({ event, large = false }) {
  const { id, seq, snapshot } = event;
  return html`<span class=${large ? "event-picture large" : "event-picture"}>
    ${snapshot && html`<img loading="lazy" alt=${`${event.class} on ${event.stream}`} src=${`/events/${id}/snapshot.jpg?seq=${seq}`} />`}
    ${!snapshot && html`<${Icon} name="photo" />`}
  </span>`;
}

const lasted = (event) => Math.max(Date.parse(event.last_seen) - Date.parse(event.first_seen), 0) / 1000;

const HAPPENED = {
  new: () => "was seen first",
  update: () => "was seen better",
  end: () => "was seen last",
  zone_enter: ({ name }) => `entered ${name}`,
  zone_leave: ({ name, seconds: stay }) => `left ${name} after ${seconds(stay)}`,
  dwell: ({ name, seconds: stay }) => `has stayed in ${name} for ${seconds(stay)}`,
  line_cross: ({ name, direction }) => `crossed ${name} (${direction})`,
};

function EventDialog({ id, onClose }) {
  const [state, setState] = useState({});
  const load = () => get(`/events/${id}`).then((value) => setState({ value }), (problem) => setState({ problem }));
  useEffect(() => {
    load();
  }, [id]);
  return html`<${Dialog} title="Event" onClose=${onClose}>
    <div class="dialog-body"><${Awaited} state=${state} what="event" retry=${load}>${({ event, changes }) => html`
      <${Picture} event=${event} large />
      <p class="event-title"><strong>${event.class}</strong> on <a href=${`#/camera/${encodeURIComponent(event.stream)}`} onClick=${onClose}>${event.stream}</a>, ${time(event.first_seen)}</p>
      <ol class="history">${changes.map((change) => html`<li key=${change.id}><time>${clockTime(change.at)}</time> ${(HAPPENED[change.kind] ?? (() => change.kind))(change)}</li>`)}</ol>
    `}</${Awaited}></div>
  </${Dialog}>`;
}
