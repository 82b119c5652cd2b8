// The panel of a live run.

import { drawCells, mapPicks } from "./cells.js";
import { palette } from "./colours.js";
import { h, options, rows, shown, write } from "./dom.js";
import { clock, milliseconds, plural, rate, short, whole } from "./figures.js";
import { activeList, devicesForm, faultForm } from "./form.js";
import { drawLines } from "./lines.js";

const CHANGES = ["facts", "lines", "cells", "code"];
export const LIVE = ["connecting", "running", "paused"];

export function runView({ model, el }) {
  const menu = model.get("menu");
  const chosen = { ...(model.get("facts").chosen || {}) };
  let over = false;
  const ask = (message) => { if (!over) model.send(message); };
  const state = { facts: model.get("facts"), table: new Float32Array(), map: null, grid: null,
    mode: chosen.mode || "state", lower: chosen.lower || "rates" };

  const head = headOf(ask);
  const form = faultForm(menu, ask, chosen);
  const active = activeList(ask);
  const devices = devicesForm(menu, ask, form.where);
  const charts = chartsOf(ask, state, chosen, () => draw());
  const foot = footOf(ask);
  const said = saidLine();
  const root = h("div", { class: "iotsim is-run", role: "group", "aria-label": "iotsim run" },
    head.element,
    h("div", { class: "is-body" },
      h("div", { class: "is-left" }, form.element, active.element, devices.element),
      charts.element),
    said.element, foot.element);
  el.append(root);

  // However many changes a message brings, and however many messages come: once a frame.
  let frame = 0;
  function draw() {
    if (!frame) frame = requestAnimationFrame(update);
  }

  function update() {
    frame = 0;
    const facts = state.facts = { ...model.get("facts"), code: model.get("code") };
    if (!facts.name) return;
    const live = LIVE.includes(facts.state);
    head.update(facts, live);
    form.update(facts, live);
    active.update(facts.windows, live);
    devices.update(live);
    charts.update(facts);
    foot.update(facts);
    said.update(facts.said);
    state.table = floats(model.get("lines"));
    state.map = mapOf(facts.map, model.get("cells"), state.mode, facts.picked?.cell ?? -1);
    charts.draw(state, palette(root));
  }

  for (const name of CHANGES) model.on(`change:${name}`, draw);
  const watching = new ResizeObserver(draw);
  watching.observe(root);
  const seen = setInterval(() => { if (!document.hidden) ask({ do: "seen" }); }, 5000);
  ask({ do: "seen" });
  update();
  form.where.look();
  return () => {
    over = true;
    said.end();
    clearInterval(seen);
    watching.disconnect();
    cancelAnimationFrame(frame);
    for (const name of CHANGES) model.off(`change:${name}`, draw);
  };
}

const SAID_MS = 15_000;

// What was answered to the last click; what went wrong stays.
export function saidLine() {
  const element = h("div", { class: "is-said", role: "status", "aria-live": "polite" });
  let number = null, timer = 0, looked = false;
  shown(element, false);
  return {
    element,
    update(said) {
      const old = !looked && !said?.wrong;  // said before this page was loaded
      looked = true;
      if (!said?.text || said.number === number) return;
      number = said.number;
      if (old) return;
      write(element, said.text);
      element.classList.toggle("is-wrong", said.wrong);
      shown(element, true);
      clearTimeout(timer);
      if (!said.wrong) timer = setTimeout(() => shown(element, false), SAID_MS);
    },
    end() { clearTimeout(timer); },
  };
}

export function floats(view) {
  if (!view || !view.byteLength) return new Float32Array();
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  return new Float32Array(bytes.slice().buffer);
}

export function mapOf(found, view, mode, picked) {
  const count = found?.cells || 0;
  if (!count || !view || view.byteLength < 3 * count) return null;
  const part = (k) => new Uint8Array(view.buffer, view.byteOffset + k * count, count);
  return { state: part(0), value: part(1), overdue: part(2), mode, picked, ...{ about: found } };
}

// -- head: is it healthy? ------------------------------------------------------------------------

export function headOf(ask) {
  const title = h("b"), state = h("span", { class: "is-state" }), time = h("span");
  const count = h("span"), quality = h("span", { class: "is-quality" });
  const button = (name, message, more = {}) =>
    h("button", { type: "button", onclick: () => ask(message), ...more }, name);
  const start = button("Start", { do: "start" }, { class: "is-main" });
  const pause = button("Pause", { do: "pause" }), resume = button("Resume", { do: "resume" });
  const stop = button("Stop", { do: "stop" }, { class: "is-danger" });
  const speeds = h("div", { class: "is-speeds", role: "group", "aria-label": "speed" });
  const stats = h("div", { class: "is-stats" });
  const troubles = h("div", { class: "is-wrong is-troubles", role: "alert" });
  const element = h("header", {},
    h("div", { class: "is-title" }, title, count, state, time, quality,
      h("span", { class: "is-gap" }), start, pause, resume, stop),
    h("div", { class: "is-line" }, speeds, stats), troubles);
  return {
    element,
    update(facts, live) {
      write(title, facts.title);
      write(count, plural(facts.devices, "device"));
      write(state, facts.state);
      state.dataset.state = facts.state;
      write(time, clock(facts.time));
      write(quality, facts.valid ? "valid" : brief(facts.quality));
      quality.title = facts.quality;
      quality.classList.toggle("is-wrong", !facts.valid);
      shown(start, !live && facts.state !== "stopping");
      shown(pause, facts.state === "running" || facts.state === "connecting");
      shown(resume, facts.state === "paused");
      shown(stop, live || facts.state === "stopping");
      stop.disabled = facts.state === "stopping";
      rows(speeds, speedsOf(facts.speed), () => {
        const made = h("button", { type: "button", class: "is-small" });
        made.addEventListener("click", () => ask({ do: "speed", speed: made.dataset.speed }));
        return made;
      }, (made, speed) => {
        made.dataset.speed = speed;
        write(made, speed === "max" ? "max" : `${speed}×`);
        made.setAttribute("aria-pressed", String(facts.speed) === speed ? "true" : "false");
        made.disabled = !live;
      });
      rows(stats, statsOf(facts), () => h("div", {}, h("span"), h("b")), (item, [name, text, bad]) => {
        write(item.firstChild, name);
        write(item.lastChild, text);
        item.title = MEANS[name] || "";
        item.classList.toggle("is-wrong", Boolean(bad));
      });
      const texts = facts.errors.texts;
      write(troubles, texts.length ? `${texts[0]}${facts.errors.count > 1
        ? ` (and ${whole(facts.errors.count - 1)} more)` : ""}` : "");
      shown(troubles, texts.length > 0);
    },
  };
}

function speedsOf(now) {
  const usual = ["1", "10", "60", "600", "max"], text = String(now);
  if (usual.includes(text)) return usual;
  return [...usual.slice(0, -1), text].sort((a, b) => a - b).concat("max");
}

function brief(quality) {
  return quality.length > 70 ? `${quality.slice(0, 69)}…` : quality;
}

const MEANS = {
  waiting: "messages that are queued, in flight, or without a verdict",
  "late p99": "from a reading's time to its hand-over, in 99 of 100 since the start; red above 100 ms",
  "loop lag": "how late the event loop is, in 99 of 100 turns since the start; red above 50 ms",
  cores: "processor time of the whole process in the last second",
  withheld: "readings that a fault kept from leaving their device",
};

function statsOf(facts) {
  const { rates, health } = facts;
  const found = [["readings", `${rate(rates.readings)}/s`]];
  if (facts.publishers.length) {
    const dropped = facts.publishers.reduce((sum, one) => sum + one.dropped + one.refused, 0);
    const waiting = facts.publishers.reduce((sum, one) => sum + one.queued + one.in_flight
      + one.unknown, 0);
    found.push(["offered", `${rate(rates.offered)}/s`], ["acked", `${rate(rates.acked)}/s`],
      ["dropped", whole(dropped), dropped > 0], ["waiting", whole(waiting)]);
  }
  found.push(["late p99", milliseconds(health.late_p99 ?? NaN), health.late_p99 > 0.1],
    ["loop lag", milliseconds(health.lag_p99 ?? NaN), health.lag_p99 > 0.05],
    ["cores", health.cores.toFixed(2)]);
  if (health.withheld) found.push(["withheld", whole(health.withheld)]);
  return found;
}

// -- charts --------------------------------------------------------------------------------------

const LOWER = {
  rates: { label: "rates", columns: [["offered", "quiet", 1.2], ["acked", "good", 1.6],
    ["lost", "bad", 1.6]], unit: "/s", scale: 1 },
  latency: { label: "latency", columns: [["late_p99", "quiet", 1.2], ["ack_p50", "good", 1.2],
    ["ack_p99", "line", 1.6]], unit: "ms", scale: 1000 },
};

export function chartsOf(ask, state, chosen, redraw) {
  const field = h("select", { "aria-label": "field" });
  field.addEventListener("change", () => ask({ do: "field", field: field.value }));
  const legend = h("span", { class: "is-quiet" });
  const upper = h("canvas", { class: "is-upper", role: "img" });
  const lower = h("canvas", { class: "is-lower", role: "img" });
  const map = h("canvas", { class: "is-map", role: "img", tabindex: "0" });
  const caption = h("span", { class: "is-quiet" });
  const picked = h("input", { type: "text", placeholder: "id", "aria-label": "picked device",
    title: "a device of the map, or an id" });
  picked.addEventListener("change", () => ask({ do: "pick", id: picked.value.trim() }));
  const reading = h("output");
  const offenders = h("div", { class: "is-caption is-offenders", "aria-label": "top offenders" });

  const choice = (name, label, key) => {
    const made = h("button", { type: "button", class: "is-small" }, label);
    made.addEventListener("click", () => {
      state[key] = name;
      ask({ do: "choose", chosen: { [key]: name } });
      if (state.map) state.map.mode = state.mode;
      press();
      redraw();
    });
    made.dataset.name = name;
    return made;
  };
  const modes = h("span", { class: "is-modes", role: "group", "aria-label": "map shows" },
    choice("state", "state", "mode"), choice("value", "value", "mode"),
    choice("overdue", "lateness", "mode"));
  const lowers = h("span", { class: "is-modes", role: "group", "aria-label": "chart shows" },
    ...Object.entries(LOWER).map(([name, one]) => choice(name, one.label, "lower")));
  const press = () => {
    for (const made of modes.children) made.setAttribute("aria-pressed", made.dataset.name === state.mode);
    for (const made of lowers.children) made.setAttribute("aria-pressed", made.dataset.name === state.lower);
  };
  press();

  mapPicks(map, state, ask);

  const element = h("div", { class: "is-right" },
    h("div", { class: "is-caption" }, field, legend), upper,
    h("div", { class: "is-caption" }, lowers), lower,
    h("div", { class: "is-caption" }, modes, caption), map,
    h("div", { class: "is-caption" }, h("span", {}, "device"), picked, reading), offenders);

  let described = 0;
  return {
    element,
    update(facts) {
      options(field, facts.fields, facts.field);
      field.disabled = facts.fields.length < 2;
      const every = facts.series?.every > 1 ? `, of one device in ${facts.series.every}` : "";
      write(legend, `${facts.unit ? `${facts.unit} · ` : ""}5–95 %, 25–75 %, median${every}`);
      write(caption, captionOf(facts.map, state.mode, facts.unit));
      const one = facts.picked || {};
      if (document.activeElement !== picked && one.id !== undefined) picked.value = one.id;
      write(reading, one.id === undefined ? "click a square"
        : `${one.type}${one.value === null ? "" : ` · ${short(one.value)} ${facts.unit || ""}`}`);
      rows(offenders, facts.offenders || [], () => {
        const made = h("button", { type: "button", class: "is-small" });
        made.addEventListener("click", () => ask({ do: "pick", id: made.dataset.id }));
        return made;
      }, (made, one) => {
        made.dataset.id = one.id;
        write(made, `${one.id} ${one.why}`);
      });
      const now = Date.now();
      if (now - described > 2000) {  // a screen reader need not hear every tick
        described = now;
        upper.setAttribute("aria-label", `${facts.field} of ${plural(facts.devices, "device")}`);
        lower.setAttribute("aria-label", `rates: ${statsOf(facts).map((s) => s.slice(0, 2).join(" ")).join(", ")}`);
        map.setAttribute("aria-label", `map of the devices: ${stateCounts(facts.map)}`);
      }
    },
    draw(now, colours) {
      const facts = now.facts, names = facts.series?.columns;
      if (!names) return;
      const at = (name) => names.indexOf(name), width = names.length, table = now.table;
      const common = { table, width, t0: facts.series.t0, to: facts.series.now,
        windows: facts.windows };
      drawLines(upper, { ...common, unit: facts.unit,
        bands: [[at("q05"), at("q95"), 0.18], [at("q25"), at("q75"), 0.28]],
        lines: [[at("q50"), colours.line, 1.6],
          ...(facts.picked?.id === undefined ? [] : [[at("picked"), colours.picked, 1.6]])],
        empty: facts.field ? "no device is heard" : "no numeric field" }, colours);
      const below = LOWER[now.lower];
      const nothing = now.lower === "rates" && !facts.publishers.length;
      drawLines(lower, { ...common, unit: below.unit, bands: [], zero: true, unnamed: true,
        table: nothing ? NOTHING_SENT : below.scale === 1 ? table : scaled(table, width, below, at),
        lines: below.columns.map(([name, colour, thick]) => [at(name), colours[colour], thick]),
        empty: facts.publishers.length ? "nothing yet" : "nothing is published" }, colours);
      if (now.map) now.grid = drawCells(map, now.map, colours);
    },
  };
}

const NOTHING_SENT = new Float32Array();

function scaled(table, width, below, at) {
  const found = table.slice();
  for (const [name] of below.columns) {
    for (let i = at(name); i < found.length; i += width) found[i] *= below.scale;
  }
  return found;
}

function stateCounts(map) {
  return Object.entries(map?.states || {}).filter(([, count]) => count)
    .map(([name, count]) => `${whole(count)} ${name}`).join(" · ");
}

function captionOf(map, mode, unit) {
  if (!map?.cells) return "";
  const each = map.each > 1 ? ` · a square is ${map.each} devices` : "";
  if (mode === "state") return `${stateCounts(map)}${each}`;
  if (mode === "overdue") return `dark: on time, light: five intervals overdue${each}`;
  return `dark ${short(map.low)} to light ${short(map.high)} ${unit || ""}${each}`;
}

// -- foot: what was done -------------------------------------------------------------------------

export function footOf(ask) {
  const log = h("ol", { class: "is-log", "aria-label": "action log", tabindex: "0" });
  const save = h("button", { type: "button", onclick: () => ask({ do: "save" }) }, "Save session");
  const copy = h("button", { type: "button", onclick: () => ask({ do: "copy" }) }, "Copy as scenario");
  const code = h("textarea", { readonly: true, rows: "16", spellcheck: "false",
    "aria-label": "the session as a scenario" });
  shown(code, false);
  let copied = null, logged = "";
  return {
    element: h("footer", {}, h("div", { class: "is-line" }, log,
      h("div", { class: "is-buttons is-upright" }, save, copy)), code),
    update(facts) {
      const text = JSON.stringify(facts.log.slice(-1)) + facts.log.length + facts.log_hidden;
      if (text !== logged) {
        logged = text;
        const hidden = facts.log_hidden ? [["…", `${whole(facts.log_hidden)} before`, null, ""]] : [];
        rows(log, [...hidden, ...facts.log], () => h("li", {}, h("time"), h("span"), h("i")),
          (item, [at, what, devices, note]) => {
            write(item.children[0], at);
            write(item.children[1], what);
            const more = [devices === null ? "" : plural(devices, "device"), note];
            write(item.children[2], more.filter(Boolean).join(" · "));
            item.children[2].title = note;
          });
        log.scrollTop = log.scrollHeight;
      }
      // A page that is loaded again does not copy once more what was copied before.
      const number = facts.code?.number || 0;
      if (copied !== null && number > copied) {
        code.value = facts.code.text;
        shown(code, true);
        navigator.clipboard?.writeText(facts.code.text).catch(() => code.select());
      }
      copied = number;
    },
  };
}
