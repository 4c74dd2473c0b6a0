"use strict";
// Every text is set as text: nothing that a process sends becomes markup.
(() => {
const PERIOD = 2000, SAMPLES = 120, WIDTH = 120, HEIGHT = 24, MOST_EVENTS = 256, MOST_SHOWN = 100;
const FIGURES = ["sessions", "connects", "in", "out", "errors"];
const MORE_ROWS = 100, MOST_ROWS = 2000;
const $ = id => document.getElementById(id);
const rows = { listeners: new Map(), backends: new Map() };
// The number of the last sample; when all samples of all rows were last asked for, and whether some
// rows lack theirs.
let number = 0, wholeAt = -Infinity, isIncomplete = true;
let started = "", limit = MORE_ROWS, agesAt = -Infinity;
let cursor = "", events = new Map(), journalIsNew = true;
let skew = 0, failing = 0, paused = false;

const get = async path => {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(20000) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  const date = Date.parse(answer.headers.get("date"));
  if (date) skew = Date.now() - date;
  return answer.json();
};
const make = (tag, parent, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
};
const draw = (tag, parent, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  parent.append(node);
  return node;
};
const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };

// Figures as a person reads them.
const short = value => value >= 99.95 ? value.toFixed(0) : String(+value.toFixed(value >= 9.995 ? 1 : 2));
const size = bytes => {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (bytes < 1024) return `${unit === "B" ? Math.round(bytes) : bytes.toFixed(1)} ${unit}`;
    bytes /= 1024;
  }
  return `${bytes.toFixed(1)} TiB`;
};
const span = seconds => {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, length]) => seconds >= length);
  if (first < 0) return "0 s";
  const [unit, length] = units[first], rest = units[first + 1];
  const more = rest && Math.floor(seconds % length / rest[1]);
  return `${Math.floor(seconds / length)} ${unit}${more ? ` ${more} ${rest[0]}` : ""}`;
};
const several = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
const ago = time => `${span(Math.max(0, (Date.now() - skew - Date.parse(time)) / 1000))} ago`;

// Sparklines: a step of the width for each sample, the newest at the right.
const path = (values, most) => {
  let out = "";
  values.forEach((value, n) => {
    const x = (SAMPLES - values.length + n) * WIDTH / SAMPLES;
    out += `${n ? "L" : "M"}${x.toFixed(1)} ${(HEIGHT - 1 - value / most * (HEIGHT - 2)).toFixed(1)}`;
  });
  return out;
};
const spark = (cell, name) => {
  const value = make("span", cell);
  const svg = draw("svg", cell, { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: `spark ${name}`, role: "img",
    preserveAspectRatio: "none" });
  const paths = [draw("path", svg, {})];
  if (name === "bytes") paths.push(draw("path", svg, {}));
  return { value, svg, paths };
};
const set = (spark, label, lists) => {
  const most = Math.max(1e-9, ...lists.flat());
  const text = `${label} over 10 minutes, at most ${label === "bytes/s" ? size(most) : short(most)}`;
  if (spark.svg.getAttribute("aria-label") !== text) spark.svg.setAttribute("aria-label", text);
  lists.forEach((list, n) => {
    const d = path(list, Math.max(most, label === "bytes/s" ? 1 : 0.1));
    if (spark.paths[n].getAttribute("d") !== d) spark.paths[n].setAttribute("d", d);
  });
};
const observer = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    target.row.isSeen = isIntersecting;
    if (isIntersecting) drawSparks(target.row);
  }
}, { rootMargin: "300px" });

const newRow = (kind, labels) => {
  const tr = document.createElement("tr"), row = { tr, cells: {}, sparks: {}, isSeen: false, drawn: "" };
  for (const [name, label] of labels) {
    const cell = make("td", tr, name === "weight" ? "n" : name);
    cell.dataset.label = label;
    row.cells[name] = cell;
  }
  for (const name of ["sessions", "connects", "bytes", "errors"]) row.sparks[name] = spark(row.cells[name], name);
  row.name = make("span", row.cells.name);
  row.about = make("div", row.cells.name, "dim");
  row.state = make("span", row.cells.state);
  row.why = make("div", row.cells.state);
  row.operator = make("div", row.cells.state, "dim");
  if (kind === "backends") {
    row.check = make("span", row.cells.check);
    row.details = make("details", row.cells.check);
    make("summary", row.details, "dim", "transcript");
    row.transcript = make("pre", row.details);
  }
  tr.row = row;
  observer.observe(tr);
  return row;
};
const LISTENER = [["name", "listener"], ["state", "state"], ["sessions", "sessions"], ["connects", "connects/s"],
  ["bytes", "bytes/s"], ["errors", "errors/s"]];
const BACKEND = [["name", "backend"], ["state", "state"], ["check", "last check"], ["weight", "weight"],
  ["sessions", "sessions"], ["connects", "connects/s"], ["bytes", "bytes/s"], ["errors", "errors/s"]];

const drawSparks = row => {
  const of = row.series;
  if (!of || row.drawn === of.version) return;
  row.drawn = of.version;
  set(row.sparks.sessions, "sessions", [of.sessions]);
  set(row.sparks.connects, "connects/s", [of.connects]);
  set(row.sparks.bytes, "bytes/s", [of.in, of.out]);
  set(row.sparks.errors, "errors/s", [of.errors]);
};
const last = list => list && list.length ? list[list.length - 1] : 0;
// `after`: the number of the sample that came before these.
const addSamples = (row, samples, after) => {
  if (!samples) return;
  const before = after > 0 ? row.series : undefined;
  if (after > 0 && !before) isIncomplete = true;
  row.series = {};
  for (const figure of FIGURES) {
    row.series[figure] = (before ? before[figure].concat(samples[figure]) : samples[figure]).slice(-SAMPLES);
  }
  row.series.version = `${number} ${row.series.sessions.length}`;
};
const showFigures = (row, sessions) => {
  const of = row.series || {};
  put(row.sparks.sessions.value, sessions);
  put(row.sparks.connects.value, short(last(of.connects)));
  put(row.sparks.bytes.value, `${size(last(of.in))} · ${size(last(of.out))}`);
  put(row.sparks.errors.value, short(last(of.errors)));
  if (row.isSeen) drawSparks(row);
};

const showListener = (l, after) => {
  const row = rows.listeners.get(l.name) || newRow("listeners", LISTENER);
  put(row.name, l.name);
  put(row.about, `${l.protocol} ${l.addresses.join(", ")} → ${l.upstream}`);
  row.state.className = l.state;
  put(row.state, { removed: "removed", up: "serving", down: "no backend" }[l.state]);
  const dropped = Object.entries(l.dropped_by_reason || {}).filter(([, count]) => count);
  put(row.why, dropped.length ? `dropped: ${dropped.map(([word, count]) => `${word} ${count}`).join(", ")}` : "");
  put(row.operator, `total ${l.accepted}, in ${size(l.received_bytes)}, out ${size(l.sent_bytes)}`
    + (l.older_plan ? `; ${l.older_plan} of the sessions with earlier settings` : ""));
  const { samples } = l;
  addSamples(row, samples && { ...samples, in: samples.received, out: samples.sent }, after);
  showFigures(row, `${l.connections}`);
  return [l.name, row];
};
const showBackend = (b, after) => {
  const key = `${b.upstream}/${b.address}`;
  const row = rows.backends.get(key) || newRow("backends", BACKEND);
  put(row.name, key + (b.backup ? " (backup)" : ""));
  const known = b.resolved.length === 1 && b.resolved[0] === b.address ? [] : b.resolved;
  put(row.about, [b.name, known.join(", "), b.discovered ? "discovered" : ""].filter(Boolean).join("; "));
  row.state.className = b.state;
  put(row.state, b.state + (b.role.length ? `, ${b.role.join(", ")}` : "") + (b.full ? ", full" : "")
    + (b.since ? `, ${ago(b.since)}` : ""));
  put(row.why, b.why);
  const set = [];
  if (b.admin_state_since) set.push(`${b.admin_state} by operator, ${ago(b.admin_state_since)}`);
  if (b.weight_since) set.push(`weight ${b.weight} by operator, ${b.weight_in_file} in the file, ${ago(b.weight_since)}`);
  put(row.operator, set.join("; "));
  const c = b.last_check;
  put(row.check, c ? `${c.result}, ${ago(c.time)}, ${(c.duration_seconds * 1000).toFixed(1)} ms` : "not checked");
  row.details.hidden = !c;
  const lag = c ? [c.lag_seconds === null ? "" : `lag ${c.lag_seconds} s`, c.lag_bytes === null ? "" : `lag ${size(c.lag_bytes)}`] : [];
  put(row.transcript, c ? [c.transcript, ...lag].filter(Boolean).join("\n") : "");
  put(row.cells.weight, String(b.weight));
  // What is sent to a backend came from clients.
  const { samples } = b;
  addSamples(row, samples && { ...samples, in: samples.sent, out: samples.received }, after);
  showFigures(row, String(b.connections));
  return [key, row];
};
// Rows in this order, and no others.
const keep = (kind, list) => {
  const next = new Map(list), body = $(kind);
  for (const [key, row] of rows[kind]) if (!next.has(key)) observer.unobserve(row.tr);
  rows[kind] = next;
  const order = [...next.values()].map(row => row.tr);
  if (order.length !== body.rows.length || order.some((tr, n) => body.rows[n] !== tr)) body.replaceChildren(...order);
};
const words = () => $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
const question = after => {
  const fields = { after, limit, sort: $("sort").value, unwell: $("unwell").checked };
  if (words().length) fields.filter = words().join(" ");
  return `api/v1/overview?${Object.entries(fields).map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&")}`;
};

const showJournal = () => {
  const all = words(), filter = all.join(" ");
  if (!journalIsNew && filter === $("journal").dataset.filter) return;
  journalIsNew = false;
  $("journal").dataset.filter = filter;
  const newest = [...events.values()].sort((a, b) => b.number - a.number);
  const meant = newest.filter(e => all.every(word =>
    `${e.upstream}/${e.backend} ${e.address} ${e.from} ${e.to} ${e.reason}`.toLowerCase().includes(word)));
  $("journal").replaceChildren(...meant.slice(0, MOST_SHOWN).map(item));
  if (!meant.length) make("li", $("journal"), "dim", "no events");
};
const item = e => {
  const good = e.kind === "state" && ["up", "standby"].includes(e.to);
  // Others are bad if a reload or an upgrade failed, or a source does not answer.
  const bad = e.kind === "state" ? !good : e.reason === "failed" || e.to === "silent";
  const li = make("li", null, good ? "good" : bad ? "bad" : "");
  const line = make("div", li);
  const time = make("time", line, "dim", new Date(e.time).toLocaleString());
  time.dateTime = e.time;
  // A reload or an upgrade concerns the process.
  line.append(!e.upstream ? " " : ` ${e.upstream}/${e.backend}${e.address && e.address !== e.backend ? ` (${e.address})` : ""} `);
  if (e.kind !== "state") line.append(`${e.kind} `);
  make("span", line, e.from, e.from);
  line.append(" → ");
  make("span", line, e.to, e.to);
  line.append(`: ${e.reason}`);
  if (e.transcript) make("div", li, "dim", e.transcript);
  const parts = [];
  if (e.doubt_seconds > 0) parts.push(`in doubt for ${e.doubt_seconds} s`);
  if (e.sessions) parts.push(e.sessions === 1 ? "1 session was on it" : `${e.sessions} sessions were on it`);
  if (e.sessions && e.last_session_closed_seconds !== null) parts.push(`the last ended after ${e.last_session_closed_seconds} s`);
  // Clients come when they come: only where one was without a backend is that time lost.
  const lacked = e.next_session_waited_seconds > 0 || e.unserved_clients > 0;
  if (e.next_session_seconds !== null) parts.push(`the next session went to ${e.next_session_on} after ${e.next_session_seconds} s`
    + (!lacked ? ", no client came before"
      : e.next_session_waited_seconds > 0 ? `, and had waited for ${e.next_session_waited_seconds} s`
      : ""));
  if (e.unserved_clients > 0) {
    const clients = e.unserved_clients === 1 ? "1 client" : `${e.unserved_clients} clients`;
    parts.push(`${clients} got none before`);
  }
  if (parts.length) make("div", li, "", parts.join("; "));
  const leave = e.sessions ? e.last_session_closed_seconds || 0 : 0;
  const next = lacked ? e.next_session_seconds || 0 : 0;
  const whole = e.doubt_seconds + Math.max(leave, next);
  if (whole > 0 && !good) {
    const at = seconds => (seconds / whole * 100).toFixed(2);
    const svg = draw("svg", li, { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", role: "img",
      "aria-label": parts.join("; ") });
    draw("rect", svg, { class: "doubt", x: 0, y: 0, width: at(e.doubt_seconds), height: 8 });
    draw("rect", svg, { class: "leave", x: at(e.doubt_seconds), y: 0, width: at(leave), height: 4 });
    draw("rect", svg, { class: "next", x: at(e.doubt_seconds), y: 4, width: at(next), height: 4 });
  }
  return li;
};

const tableRow = (body, cells) => {
  const tr = make("tr", body);
  for (const [label, text] of cells) make("td", tr, "", text).dataset.label = label;
};
const showAges = ages => {
  const classes = ages.limits_seconds.map(limit => `below ${span(limit)}`);
  classes.push(`${span(last(ages.limits_seconds))} and older`);
  $("ages-head").replaceChildren();
  const head = make("tr", $("ages-head"));
  for (const label of ["listener", "backend", ...classes]) make("th", head, "", label);
  $("ages-body").replaceChildren();
  for (const b of ages.backends) {
    const where = `${b.upstream}/${b.backend === null ? "none yet" : b.backend}`;
    tableRow($("ages-body"), [["listener", b.listener], ["backend", where],
      ...b.counts.map((count, n) => [classes[n], String(count)])]);
  }
  $("oldest").replaceChildren();
  for (const s of ages.oldest) {
    tableRow($("oldest"), [["session", String(s.id)], ["listener", s.listener],
      ["backend", `${s.upstream}/${s.backend === null ? "none yet" : s.backend}`], ["age", span(s.age_seconds)],
      ["idle", span(s.idle_seconds)], ["in", size(s.received_bytes)], ["out", size(s.sent_bytes)]]);
  }
};

const show = (overview, after) => {
  const p = overview.process, before = p.previous;
  put($("title"), `tembuku ${p.version}`);
  document.title = `tembuku: ${p.state}`;
  put($("summary"), `${p.state}${p.admin_state === "ready" ? "" : `, ${p.admin_state} by operator`}, up ${span(p.uptime_seconds)}, `
    + `${p.workers} workers, ${p.connections} of ${p.max_connections} connections, ${p.flows} of ${p.max_flows} flows, `
    + `configuration ${p.config_hash}`);
  put($("previous"), before ? `The process before it, pid ${before.pid}, drains ${several(before.connections, "connection")} `
    + `and ${several(before.flows, "flow")}, since ${new Date(before.since).toLocaleTimeString()}.` : "");
  $("upstreams").replaceChildren(...overview.upstreams.rows.map(u => {
    const health = u.available === 0 ? "failed" : u.available < u.backends ? "unwell" : "";
    const li = make("li", null, health, `${u.name} (${u.balance}): ${u.available} of `
      + `${u.backends} available${u.full ? `, ${u.full} full` : ""}`
      + `${u.unproven ? `, ${u.unproven} unproven (tried)` : ""}`
      + `${u.queued ? `, ${u.queued} queued` : ""}`
      + `${u.held ? `, ${u.held} held` : ""}`);
    if (u.source) make("div", li, "", u.source);
    return li;
  }));
  keep("listeners", overview.listeners.rows.map(l => showListener(l, after)));
  keep("backends", overview.backends.rows.map(b => showBackend(b, after)));
  const lists = ["listeners", "backends"].map(kind => [kind, overview[kind]]);
  put($("shown"), lists.map(([kind, list]) => `${list.matching} of ${list.count} ${kind}`
    + (list.unwell ? ` (${list.unwell} not well)` : "")).join(", "));
  const left = lists.filter(([, list]) => list.matching > list.rows.length);
  $("rest").hidden = !left.length || limit >= MOST_ROWS;
  put($("left"), left.map(([kind, list]) => `${list.rows.length} of ${list.matching} ${kind} are shown.`).join(" "));
};
const addEvents = page => {
  cursor = page.cursor;
  for (const e of page.events) events.set(`${e.number} ${e.time}`, e);
  journalIsNew ||= page.events.length > 0;
  while (events.size > MOST_EVENTS) events.delete(events.keys().next().value);
};

const forget = () => {
  for (const kind of ["listeners", "backends"]) for (const row of rows[kind].values()) row.series = undefined;
  number = 0;
  isIncomplete = true;
  events = new Map();
  cursor = "";
};
let interval = 5000, asked = 0;
const refresh = async () => {
  const now = performance.now(), isWhole = number === 0 || isIncomplete && now - wholeAt >= interval;
  const mine = ++asked, after = isWhole ? 0 : number;
  const overview = await get(question(after));
  // Another filter has been typed since.
  if (mine !== asked) return;
  if (overview.process.started !== started) {
    if (started) forget();
    started = overview.process.started;
  }
  if (isWhole) {
    wholeAt = now;
    isIncomplete = false;
  }
  const { number: newest, interval_seconds, omitted } = overview.history;
  number = newest;
  interval = interval_seconds * 1000;
  $("fresh").dataset.note = omitted ? `; ${omitted} without history` : "";
  show(overview, newest < after ? 0 : after);
  addEvents(await get(cursor ? `api/v1/events?after=${encodeURIComponent(cursor)}` : "api/v1/events"));
  showJournal();
  if ($("ages").open && now - agesAt >= interval) {
    agesAt = now;
    showAges(await get("api/v1/sessions/ages"));
  }
};
let timer = 0;
const run = async isAsked => {
  const began = performance.now();
  clearTimeout(timer);
  if (isAsked || !paused && !document.hidden) {
    try {
      await refresh();
      failing = 0;
      put($("alarm"), "");
      put($("fresh"), `refreshed ${new Date().toLocaleTimeString()}, in ${Math.round(performance.now() - began)} ms`
        + ($("fresh").dataset.note || ""));
      $("plain").hidden = true;
      $("live").hidden = false;
    } catch (error) {
      failing ||= Date.now();
      put($("alarm"), `no answer since ${new Date(failing).toLocaleTimeString()} (${error.message})`);
      $("live").hidden = false;
    }
  }
  clearTimeout(timer);
  timer = setTimeout(run, Math.max(PERIOD, 10 * (performance.now() - began)));
};
// All samples of rows that were not shown come at once.
const ask = () => {
  wholeAt = -Infinity;
  run(true);
};
for (const id of ["filter", "sort", "unwell"]) $(id).addEventListener("input", () => {
  limit = MORE_ROWS;
  ask();
});
$("more").addEventListener("click", () => {
  limit = Math.min(MOST_ROWS, limit + MORE_ROWS);
  ask();
});
// A failure is shown by the next refresh.
$("ages").addEventListener("toggle", () => {
  if ($("ages").open) get("api/v1/sessions/ages").then(showAges, () => {});
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  put($("pause"), paused ? "go on" : "pause");
});
run();
})();
