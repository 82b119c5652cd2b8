// The panel of a result: a slider through its time, and the devices as they were then.

import { MARGIN } from "./axes.js";
import { drawCells, mapPicks } from "./cells.js";
import { faultColour, palette } from "./colours.js";
import { h, options, rows, shown, write } from "./dom.js";
import { clock, left, plural, short, whole } from "./figures.js";
import { drawLines } from "./lines.js";
import { floats, mapOf, saidLine } from "./run.js";

const PLAY_MS = 200, PLAY_STEPS = 150, ANSWER_MS = 3000;

export function resultView({ model, el }) {
  let over = false;
  const ask = (message) => { if (!over) model.send(message); };
  const state = { table: new Float32Array(), map: null, grid: null,
    mode: (model.get("facts").chosen || {}).mode || "state", at: null };
  const moments = momentsOf(ask, state, () => draw());
  const head = pastHead(ask);
  const charts = pastCharts(ask, state, moments, () => draw());
  const side = pastSide(ask, moments);
  const said = saidLine();
  const root = h("div", { class: "iotsim is-result", role: "group", "aria-label": "iotsim result" },
    head.element, moments.element,
    h("div", { class: "is-body" }, side.element, charts.element), said.element);
  el.append(root);

  let frame = 0;
  function draw() {
    if (!frame && !over) frame = requestAnimationFrame(update);
  }

  function update() {
    frame = 0;
    const facts = model.get("facts");
    if (!facts.name) return;
    moments.update(facts);
    head.update(facts);
    const colours = palette(root);
    side.update(facts, colours);
    state.table = floats(model.get("lines"));
    state.map = mapOf(facts.map, model.get("cells"), state.mode, facts.picked?.cell ?? -1);
    charts.update(facts, colours);
    said.update(facts.said);
  }

  const names = ["facts", "lines", "cells"];
  for (const name of names) model.on(`change:${name}`, draw);
  const watching = new ResizeObserver(draw);
  watching.observe(root);
  const theme = new MutationObserver(() => {
    draw();
    setTimeout(draw, 300);  // its colours come a little later
  });
  theme.observe(document.body, { attributes: true });
  update();
  return () => {
    over = true;
    said.end();
    moments.close();
    theme.disconnect();
    watching.disconnect();
    cancelAnimationFrame(frame);
    for (const name of names) model.off(`change:${name}`, draw);
  };
}

// -- the moment ----------------------------------------------------------------------------------

// One question is on its way at most; the latest wish follows when it is answered.
function momentsOf(ask, state, redraw) {
  const slider = h("input", { type: "range", class: "is-slider", "aria-label": "moment",
    title: "arrows, Page Up and Page Down, Home and End" });
  const time = h("b", { class: "is-moment" }), instant = h("span", { class: "is-quiet" });
  const button = (name, label, act) => h("button", { type: "button", class: "is-small",
    "aria-label": label, title: label, onclick: act }, name);
  let facts = {}, asked = null, wanted = null, since = 0, player = 0;

  function go(at) {
    if (at === null || at === undefined) return;
    state.at = wanted = Math.min(facts.to, Math.max(facts.from, at));
    slider.value = String(state.at);
    tell();
    send();
    redraw();
  }
  function send() {
    if (wanted === null || (asked !== null && Date.now() - since < ANSWER_MS)) return;
    asked = wanted;
    wanted = null;
    since = Date.now();
    ask({ do: "moment", at: asked });
  }
  function tell() {
    write(time, clock(state.at));
    slider.setAttribute("aria-valuetext", clock(state.at));
  }
  function play() {
    if (player) {
      clearInterval(player);
      player = 0;
    } else {
      if (state.at >= facts.to - 1e-3) go(facts.from);
      player = setInterval(() => {
        if (!player || asked !== null || document.hidden) return;
        go(state.at + (facts.to - facts.from) / PLAY_STEPS);
        if (state.at >= facts.to - 1e-3) play();
      }, PLAY_MS);
    }
    write(turn, player ? "Pause" : "Play");
  }
  slider.addEventListener("input", () => go(Number(slider.value)));
  const before = button("◂", "previous action", () => go(facts.before));
  const after = button("▸", "next action", () => go(facts.after));
  const turn = h("button", { type: "button", class: "is-small", onclick: play }, "Play");
  return {
    element: h("div", { class: "is-line is-moments" }, time, slider, turn, before, after, instant),
    go,
    update(now) {
      facts = now;
      if (asked !== null && Math.abs(now.moment - asked) < 1e-3) asked = null;
      slider.min = String(now.from);
      slider.max = String(now.to);
      slider.step = String(Math.max(1e-6, (now.to - now.from) / 1000));
      if (state.at === null || (asked === null && wanted === null)) {
        state.at = now.moment;
        if (document.activeElement !== slider) slider.value = String(now.moment);
      }
      tell();
      write(instant, `${now.instant} UTC`);
      before.disabled = now.before === null;
      after.disabled = now.after === null;
      send();
    },
    close() { clearInterval(player); },
  };
}

// -- what it was ---------------------------------------------------------------------------------

function pastHead(ask) {
  const title = h("b"), count = h("span"), what = h("span", { class: "is-quiet" });
  const digest = h("code", { title: "digest: equal digests, equal readings" });
  const expected = h("div");
  const quality = h("div", { class: "is-wrong" }), troubles = h("ul", { class: "is-wrong" });
  const save = h("button", { type: "button", onclick: () => ask({ do: "save" }) }, "Save");
  return {
    element: h("header", {}, h("div", { class: "is-title" }, title, count, what, digest,
      h("span", { class: "is-gap" }), save), expected, quality, troubles),
    update(facts) {
      write(title, facts.name);
      write(count, plural(facts.devices, "device"));
      const kept = facts.kept && facts.kept < facts.rows ? ` (${whole(facts.kept)} kept)` : "";
      write(what, `${plural(facts.rows, "reading")}${kept} over ${facts.duration}, from ${
        facts.start} UTC`);
      write(digest, `${facts.digest.slice(0, 12)}…`);
      digest.title = facts.digest;
      write(expected, `expectations: ${facts.expected}`);
      expected.classList.toggle("is-wrong", Boolean(facts.failed));
      shown(expected, Boolean(facts.expected));
      write(quality, facts.quality);
      shown(quality, facts.quality !== "");
      rows(troubles, facts.errors, () => h("li"), write);
    },
  };
}

const PAST_STATES = ["not heard yet", "stopped", "fine", "fault", "silent"];

function pastSide(ask, moments) {
  const states = h("ul", { class: "is-then", "aria-label": "states" });
  const active = h("ul", { class: "is-active", "aria-label": "active faults" });
  const none = h("p", { class: "is-quiet" }, "no fault is active");
  const log = h("ol", { class: "is-log is-jumps", "aria-label": "actions around the moment" });
  const quiet = h("p", { class: "is-quiet" }, "nothing was done");
  const picked = h("input", { type: "text", placeholder: "id", "aria-label": "picked device",
    title: "a device of the map, or an id" });
  picked.addEventListener("change", () => ask({ do: "pick", id: picked.value.trim() }));
  const one = h("p", { class: "is-does" });
  const events = h("ol", { class: "is-log is-events", tabindex: "0",
    "aria-label": "events of the device" });
  const part = (name, ...inside) => h("section", {}, h("h4", {}, name), ...inside);
  let scrolled = "";
  return {
    element: h("div", { class: "is-left" }, part("devices", states), part("faults", none, active),
      part("actions", quiet, log), part("device", picked, one, events)),
    update(facts, colours) {
      const counts = PAST_STATES.map((name) => [name, facts.map.states?.[name] || 0])
        .filter(([, count]) => count);
      rows(states, counts, () => h("li", {}, h("i"), h("b"), h("span")), (item, [name, count]) => {
        item.children[0].style.background = colours.states[PAST_STATES.indexOf(name)];
        write(item.children[1], whole(count));
        write(item.children[2], name);
      });
      rows(active, facts.active, () => h("li", {}, h("i"), h("b"), h("span"), h("time")),
        (item, fault) => {
          item.children[0].style.background = faultColour(fault.name);
          write(item.children[1], fault.name);
          write(item.children[2], plural(fault.devices, "device"));
          write(item.children[3], fault.left === null ? "until cleared" : `${left(fault.left)} left`);
        });
      shown(none, facts.active.length === 0);
      shown(quiet, facts.log.length === 0);
      shown(log, facts.log.length > 0);
      rows(log, facts.log, () => {
        const item = h("li", {}, h("button", { type: "button" }, h("time"), h("span"), h("i")));
        item.firstChild.addEventListener("click", () => moments.go(Number(item.dataset.at)));
        return item;
      }, (item, [at, time, text, devices, note]) => {
        const [when, what, more] = item.firstChild.children;
        item.dataset.at = at;
        write(when, time);
        write(what, text);
        write(more, devices === null ? "" : plural(devices, "device"));
        item.title = note;
      });
      [...log.children].forEach((item, i) => {
        item.classList.toggle("is-ahead", i >= facts.log_past);
        if (i === facts.log_past - 1) item.setAttribute("aria-current", "time");
        else item.removeAttribute("aria-current");
      });
      const now = `${facts.log_before} ${facts.log_past}`;
      const current = log.children[Math.max(0, facts.log_past - 1)];
      if (now !== scrolled && current) {
        scrolled = now;
        log.scrollTop = current.offsetTop - log.offsetTop - log.clientHeight / 2;
      }
      const found = facts.picked;
      if (document.activeElement !== picked) picked.value = found.id || "";
      const labels = Object.entries(found.labels || {}).map(([name, text]) => `${name}=${text}`);
      write(one, found.id === undefined ? "click a square of the map" : [found.type, found.state,
        found.value === null ? "" : `${short(found.value)} ${facts.unit}`.trim(), ...labels]
        .filter(Boolean).join(" · "));
      rows(events, found.events || [], () => h("li", {}, h("time"), h("span")),
        (item, [time, name, text]) => {
          write(item.children[0], time);
          write(item.children[1], text);
          item.title = name;
        });
      [...events.children].forEach((item, i) =>
        item.classList.toggle("is-ahead", i >= found.events_past));
      shown(events, (found.events || []).length > 0);
    },
  };
}

function pastCharts(ask, state, moments, redraw) {
  const field = h("select", { "aria-label": "field" });
  field.addEventListener("change", () => ask({ do: "field", field: field.value }));
  const legend = h("span", { class: "is-quiet" }), caption = h("span", { class: "is-quiet" });
  const upper = h("canvas", { class: "is-upper is-timed", role: "img" });
  const lower = h("canvas", { class: "is-lower is-timed", role: "img" });
  const map = h("canvas", { class: "is-map", role: "img", tabindex: "0" });
  const modes = h("span", { class: "is-modes", role: "group", "aria-label": "map shows" },
    ...[["state", "state"], ["value", "value"], ["overdue", "lateness"]].map(([name, label]) => {
      const made = h("button", { type: "button", class: "is-small" }, label);
      made.dataset.name = name;
      made.addEventListener("click", () => {
        state.mode = name;
        ask({ do: "choose", chosen: { mode: name } });
        redraw();
      });
      return made;
    }));
  for (const canvas of [upper, lower]) timed(canvas, state, moments);
  mapPicks(map, state, ask);
  const element = h("div", { class: "is-right" },
    h("div", { class: "is-caption" }, field, legend), upper,
    h("div", { class: "is-caption" }, h("span", { class: "is-quiet" },
      "readings/s: left the device, withheld, changed by a fault")), lower,
    h("div", { class: "is-caption" }, modes, caption), map);
  return {
    element,
    update(facts, colours) {
      options(field, facts.fields, facts.field);
      field.disabled = facts.fields.length < 2;
      const every = facts.series.every > 1 ? `, of one device in ${whole(facts.series.every)}` : "";
      write(legend, `${facts.unit ? `${facts.unit} · ` : ""}5–95 %, 25–75 %, median${every}${
        facts.windows_hidden ? ` · ${whole(facts.windows_hidden)} fault windows not shown` : ""}`);
      for (const made of modes.children) {
        made.setAttribute("aria-pressed", made.dataset.name === state.mode);
      }
      write(caption, pastCaption(facts, state.mode));
      map.setAttribute("aria-label", `map of the devices at ${facts.clock}`);
      upper.setAttribute("aria-label", `${facts.field} of ${plural(facts.devices, "device")}`);
      lower.setAttribute("aria-label", "readings a second");
      const names = facts.series.columns, at = (name) => names.indexOf(name);
      state.span = [facts.series.t0, facts.series.to];
      const common = { table: state.table, width: names.length, t0: facts.series.t0,
        to: facts.series.to, windows: facts.windows, mark: state.at };
      drawLines(upper, { ...common, unit: facts.unit,
        bands: [[at("q05"), at("q95"), 0.18], [at("q25"), at("q75"), 0.28]],
        lines: [[at("q50"), colours.line, 1.6],
          ...(facts.picked.id === undefined ? [] : [[at("picked"), colours.picked, 1.6]])],
        empty: facts.field ? "no reading has it" : "no numeric field" }, colours);
      drawLines(lower, { ...common, unit: "/s", bands: [], zero: true, unnamed: true,
        lines: [[at("left"), colours.good, 1.6], [at("withheld"), colours.bad, 1.6],
          [at("hit"), colours.picked, 1.2]], empty: "no readings" }, colours);
      if (state.map) state.grid = drawCells(map, state.map, colours);
    },
  };
}

// A click on a chart, or a drag over it, goes to that time.
function timed(canvas, state, moments) {
  const go = (event) => {
    const box = canvas.getBoundingClientRect();
    const wide = box.width - MARGIN.left - MARGIN.right;
    const share = (event.clientX - box.left - MARGIN.left) / wide;
    if (state.span) moments.go(state.span[0] + share * (state.span[1] - state.span[0]));
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    go(event);
  });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons & 1) go(event); });
}

function pastCaption(facts, mode) {
  const each = facts.map.each > 1 ? `a square is ${facts.map.each} devices` : "";
  const said = mode === "state" ? `at ${facts.clock}`
    : mode === "overdue" ? "dark: on time, light: five intervals overdue"
      : `dark ${short(facts.map.low)} to light ${short(facts.map.high)} ${facts.unit}`;
  return [said, each].filter(Boolean).join(" · ");
}
