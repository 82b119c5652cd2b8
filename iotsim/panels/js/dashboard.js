// The dashboard of a live run: overview, devices, telemetry, faults, alerts.

import { palette } from "./colours.js";
import { h, labelled, options, rows, settled, shown, write } from "./dom.js";
import { clock, milliseconds, plural, rate, whole } from "./figures.js";
import { activeList, faultForm, whereField } from "./form.js";
import { LIVE, chartsOf, floats, footOf, headOf, mapOf, saidLine } from "./run.js";
import { tabsOf } from "./tabs.js";

const STATE_NAMES = ["not heard yet", "stopped", "fine", "fault", "silent"];
const STATE_ORDER = [2, 3, 4, 0, 1];  // how people read them
const QUIET_MS = 6000;  // a kernel that says nothing for so long is not there
const SEEN_MS = 5000;

export function dashboardView({ model, el }) {
  const menu = model.get("menu");
  const chosen = { ...(model.get("facts").chosen || {}) };
  const ask = (message) => model.send(message);
  const remember = (values) => {
    Object.assign(chosen, values);
    ask({ do: "choose", chosen: values });
  };
  const state = { facts: model.get("facts"), table: new Float32Array(), map: null, grid: null,
    mode: chosen.mode || "state", lower: chosen.lower || "rates" };

  const head = headOf(ask), chip = h("span", { class: "is-chip", role: "status" });
  head.element.firstChild.insertBefore(chip, head.element.firstChild.querySelector(".is-gap"));
  const charts = chartsOf(ask, state, chosen, () => draw());
  const parts = {
    overview: overviewPart(charts), devices: devicesPart(menu, ask, chosen, remember),
    telemetry: telemetryPart(model, ask, chosen, remember),
    faults: faultsPart(menu, ask, chosen), alerts: alertsPart(),
  };
  const tabs = tabsOf("iotsim dashboard", Object.entries(parts).map(([name, one]) =>
    [name, one.title, one.element]), chosen.tab, (name) => {
    remember({ tab: name });
    seen();
    draw();
  });
  const said = saidLine();
  const root = h("div", { class: "iotsim is-dashboard", role: "group",
    "aria-label": "iotsim dashboard" }, head.element, tabs.element, said.element, ...tabs.panels);
  el.append(root);

  let frame = 0, heard = Date.now();
  function draw() {
    if (!frame) frame = requestAnimationFrame(update);
  }
  function update() {
    frame = 0;
    const facts = state.facts = { ...model.get("facts"), code: model.get("code") };
    if (!facts.name) return;
    const live = LIVE.includes(facts.state), colours = palette(root);
    head.update(facts, live);
    said.update(facts.said);
    const active = facts.alerts.filter((one) => one.active).length;
    tabs.count("alerts", active);
    tabs.count("faults", facts.windows.filter((one) => one.active).length);
    parts[tabs.chosen].update(facts, live, colours);
    if (tabs.chosen === "overview") {
      state.table = floats(model.get("lines"));
      state.map = mapOf(facts.map, model.get("cells"), state.mode, facts.picked?.cell ?? -1);
      charts.draw(state, colours);
    }
  }
  function listen() {
    heard = Date.now();
    draw();
  }
  function seen() {
    if (!document.hidden) ask({ do: "seen", tab: tabs.chosen });
  }
  function look() {
    const quiet = Date.now() - heard, over = !LIVE.includes(state.facts?.state);
    const gone = quiet > QUIET_MS && !over;
    write(chip, gone ? `no answer for ${Math.round(quiet / 1000)} s` : over ? "ended" : "live");
    chip.dataset.state = gone ? "gone" : over ? "over" : "live";
  }

  const names = ["facts", "lines", "cells", "table", "code"];
  for (const name of names) model.on(`change:${name}`, listen);
  const watching = new ResizeObserver(draw);
  watching.observe(root);
  const timers = [setInterval(seen, SEEN_MS), setInterval(look, 1000)];
  document.addEventListener("visibilitychange", seen);
  seen();
  look();
  update();
  return () => {
    timers.forEach(clearInterval);
    watching.disconnect();
    cancelAnimationFrame(frame);
    document.removeEventListener("visibilitychange", seen);
    for (const name of names) model.off(`change:${name}`, listen);
  };
}

// -- overview ------------------------------------------------------------------------------------

function overviewPart(charts) {
  const cards = h("div", { class: "is-cards" });
  const bar = h("div", { class: "is-bar", role: "img" }), states = h("ul", { class: "is-states" });
  const types = typeTable(), runtime = h("ul", { class: "is-figures" });
  const left = h("div", { class: "is-left" },
    h("section", {}, h("h4", {}, "fleet by state"), bar, states),
    h("section", {}, h("h4", {}, "fleet by type"), types.element),
    h("section", {}, h("h4", {}, "runtime"), runtime));
  return {
    title: "Overview",
    element: h("div", {}, cards, h("div", { class: "is-body" }, left, charts.element)),
    update(facts, live, colours) {
      rows(cards, cardsOf(facts), () => h("div", { class: "is-card" }, h("span"), h("b"), h("i")),
        (item, [name, figure, note, bad]) => {
          write(item.children[0], name);
          write(item.children[1], figure);
          write(item.children[2], note);
          item.classList.toggle("is-alarm", Boolean(bad));
        });
      stateBar(bar, states, facts.fleet.states, colours);
      types.update(facts.fleet, colours);
      rows(runtime, figuresOf(facts), () => h("li", {}, h("span"), h("b")), (item, [name, text]) => {
        write(item.children[0], name);
        write(item.children[1], text);
      });
      charts.update(facts);
    },
  };
}

function cardsOf(facts) {
  const { fleet, rates, health } = facts, active = facts.alerts.filter((one) => one.active);
  const ill = (fleet.states.fault || 0) + (fleet.states.silent || 0);
  const sum = (name) => facts.publishers.reduce((total, one) => total + one[name], 0);
  const lost = sum("dropped") + sum("refused");
  return [
    ["devices", whole(facts.devices), ill ? `${whole(ill)} in trouble` : "all is well", false],
    ["readings", whole(facts.readings), health.withheld ? `${whole(health.withheld)} never sent`
      : "since the start", false],
    ["rate", `${rate(rates.readings)}/s`, facts.publishers.length
      ? `${rate(rates.acked)}/s acknowledged` : "nothing is published", false],
    ["dropped", whole(lost), facts.publishers.length ? `of ${whole(sum("offered"))} messages`
      : "nothing is published", lost > 0],
    ["alerts", whole(active.length), active.length ? active[0].text : "none is active",
      active.length > 0],
  ];
}

function figuresOf(facts) {
  const { runtime, health } = facts;
  const megabytes = runtime.memory === null ? "–" : `${whole(runtime.memory / 1e6)} MB`;
  return [["memory", megabytes], ["up", clock(runtime.up)], ["cores", health.cores.toFixed(2)],
    ["loop lag p99", milliseconds(health.lag_p99 ?? NaN)],
    ["loop lag most", milliseconds(health.lag_max ?? NaN)],
    ["late p99", milliseconds(health.late_p99 ?? NaN)],
    ["readings held", whole(health.captured)], ["seed", String(runtime.seed)],
    ["iotsim", runtime.version], ["Python", runtime.python]];
}

function stateBar(bar, list, states, colours) {
  const counts = STATE_ORDER.map((code) => [STATE_NAMES[code], states[STATE_NAMES[code]] || 0,
    colours.states[code]]);
  paint(bar, counts);
  rows(list, counts, () => h("li", {}, h("i"), h("span"), h("b")), (item, [name, count, colour]) => {
    item.children[0].style.background = colour;
    write(item.children[1], name);
    write(item.children[2], whole(count));
  });
}

function paint(bar, counts) {
  const total = counts.reduce((sum, [, count]) => sum + count, 0) || 1;
  rows(bar, counts, () => h("i"), (part, [, count, colour]) => {
    part.style.width = `${(100 * count) / total}%`;
    part.style.background = colour;
  });
  bar.setAttribute("aria-label", counts.filter(([, count]) => count)
    .map(([name, count]) => `${whole(count)} ${name}`).join(", ") || "no devices");
}

function typeTable(more = () => []) {
  const body = h("ul", { class: "is-types" }), hidden = h("p", { class: "is-quiet" });
  const make = () => h("li", {}, h("span"), h("b"), h("div", { class: "is-bar", role: "img" }),
    ...more());
  return {
    element: h("div", {}, body, hidden),
    update(fleet, colours, each = () => {}) {
      rows(body, fleet.types, make, (item, one) => {
        const alive = one.states.reduce((sum, count) => sum + count, 0) - one.states[1];
        write(item.children[0], one.type);
        write(item.children[1], whole(alive));
        paint(item.children[2], STATE_ORDER.map((code) => [STATE_NAMES[code], one.states[code],
          colours.states[code]]));
        item.children[2].title = item.children[2].getAttribute("aria-label");
        each(item, one, alive);
      });
      write(hidden, fleet.types_hidden ? `and ${plural(fleet.types_hidden, "more type")}` : "");
    },
  };
}

// -- devices -------------------------------------------------------------------------------------

const SURE_MS = 4000;

// What cannot be taken back is asked for twice.
export function sureButton(text, again, act) {
  const button = h("button", { type: "button", class: "is-danger" }, text);
  let timer = 0;
  const calm = () => {
    clearTimeout(timer);
    timer = 0;
    write(button, text);
  };
  button.addEventListener("click", () => {
    if (timer) {
      calm();
      act(button);
    } else {
      write(button, again(button));
      timer = setTimeout(calm, SURE_MS);
    }
  });
  button.addEventListener("blur", calm);
  return button;
}

function devicesPart(menu, ask, chosen, remember) {
  const profile = h("select"), count = h("input", { type: "number", value: "5", min: "1", step: "1" });
  options(profile, menu.profiles, chosen.profile);
  profile.addEventListener("change", () => remember({ profile: profile.value }));
  const labels = h("input", { type: "text", placeholder: "site=north, room=3" });
  const add = h("button", { type: "submit", class: "is-main" }, "Spawn");
  const spawn = h("form", { class: "is-form", "aria-label": "spawn devices" },
    h("h4", {}, "spawn devices"), labelled("profile", profile), labelled("count", count),
    labelled("labels", labels), h("div", { class: "is-buttons" }, add));
  spawn.addEventListener("submit", (event) => {
    event.preventDefault();
    ask({ do: "add", profile: profile.value, count: count.value, labels: labels.value });
  });
  let match = {}, total = 0;
  const where = whereField(ask, chosen, remember);
  const some = sureButton("Stop selected", () => `Stop ${plural(match.count ?? 0, "device")}?`,
    () => ask({ do: "stop_devices", where: where.value }));
  const all = sureButton("Stop all", () => `Stop all ${plural(total, "device")}?`,
    () => ask({ do: "stop_devices", where: "all" }));
  const stop = h("section", { class: "is-form", "aria-label": "stop devices" },
    h("h4", {}, "stop devices"), where.element, h("div", { class: "is-buttons" }, some, all));
  const summary = h("p", { class: "is-summary" });
  const types = typeTable(() => [sureButton("Stop",
    (button) => `Stop ${button.dataset.alive}?`,
    (button) => ask({ do: "stop_devices", where: `device_type=${button.dataset.type}` }))]);
  let looked = false;
  return {
    title: "Devices",
    element: h("div", { class: "is-body" }, h("div", { class: "is-left" }, spawn, stop),
      h("div", { class: "is-right" }, h("h4", {}, "fleet"), summary, types.element)),
    update(facts, live, colours) {
      if (!looked) where.look();
      looked = true;
      match = facts.match || {};
      total = facts.devices;
      where.update(match);
      write(summary, `${plural(facts.devices, "device")} alive · ${STATE_ORDER
        .map((code) => [STATE_NAMES[code], facts.fleet.states[STATE_NAMES[code]] || 0])
        .filter(([, n]) => n).map(([name, n]) => `${whole(n)} ${name}`).join(" · ")}`);
      types.update(facts.fleet, colours, (item, one, alive) => {
        const button = item.children[3];
        button.classList.add("is-small");
        button.setAttribute("aria-label", `Stop ${one.type}`);
        button.disabled = !live || alive === 0;
        button.dataset.type = one.type;
        button.dataset.alive = whole(alive);
      });
      for (const button of [add, some, all]) button.disabled = !live;
    },
  };
}

// -- telemetry -----------------------------------------------------------------------------------

const COLUMNS = ["time (UTC)", "id", "type", "values", "faults"];

function telemetryPart(model, ask, chosen, remember) {
  const type = h("select"), ids = h("input", { type: "text", placeholder: "pump-0001, pump-00*",
    spellcheck: "false" });
  const text = h("input", { type: "search", placeholder: "north, open, drift", spellcheck: "false" });
  const filter = () => ask({ do: "table", type: type.value, ids: ids.value, text: text.value });
  const soon = settled(filter, 250);
  type.addEventListener("change", filter);
  ids.addEventListener("input", soon);
  text.addEventListener("input", soon);
  let paused = false;
  const pause = h("button", { type: "button", onclick: () =>
    ask({ do: "table_pause", paused: !paused }) }, "Pause table");
  const clear = h("button", { type: "button", onclick: () => ask({ do: "table_clear" }) }, "Clear table");
  const follow = h("input", { type: "checkbox", checked: chosen.follow !== false });
  follow.addEventListener("change", () => {
    remember({ follow: follow.checked });
    bottom();
  });
  const count = h("span", { class: "is-quiet" });
  const body = h("tbody"), none = h("p", { class: "is-quiet is-none" });
  const scroll = h("div", { class: "is-scroll", tabindex: "0", role: "region",
    "aria-label": "readings" },
  h("table", { class: "is-readings" }, h("thead", {}, h("tr", {}, ...COLUMNS.map((name) =>
    h("th", { scope: "col" }, name)))), body), none);
  const bottom = () => {
    if (follow.checked) scroll.scrollTop = scroll.scrollHeight;
  };
  scroll.addEventListener("wheel", (event) => {
    if (event.deltaY < 0 && follow.checked) follow.checked = false;
  }, { passive: true });
  let begun = false, last = { version: -1, first: 0, rows: [] };
  return {
    title: "Telemetry",
    element: h("div", { class: "is-telemetry" },
      h("div", { class: "is-line is-filters" }, labelled("type", type), labelled("ids", ids),
        labelled("text", text), pause, clear, h("label", { class: "is-follow" }, follow, "follow"),
        h("span", { class: "is-gap" }), count), scroll),
    update(facts) {
      const about = facts.telemetry;
      if (about.seen === undefined) return;
      options(type, [["", "all types"], ...facts.fleet.types.map((one) => one.type)], about.type);
      if (!begun) {
        begun = true;
        ids.value = about.ids;
        text.value = about.text;
      }
      paused = about.paused;
      write(pause, paused ? "Go on" : "Pause table");
      pause.setAttribute("aria-pressed", paused ? "true" : "false");
      const table = model.get("table");
      if (table.version !== undefined && table !== last) {
        bring(body, last, table);
        last = table;
        bottom();
      }
      const missed = about.missed ? ` · ${whole(about.missed)} went by unseen` : "";
      const held = paused ? " · the table stands still" : "";
      write(count, `newest ${whole(last.rows.length)} of at most ${about.most}${missed}${held}`);
      shown(none, last.rows.length === 0);
      write(none, about.type || about.ids || about.text ? "no reading is like that yet"
        : "no reading yet");
    },
  };
}

// Rows that stay are left alone; the oldest go, the newest come.
function bring(body, before, now) {
  const gone = now.first - before.first, kept = before.rows.length - gone;
  const same = now.version === before.version && gone >= 0 && kept >= 0
    && kept <= now.rows.length;
  if (!same) body.replaceChildren();
  else for (let i = 0; i < gone; i += 1) body.firstChild.remove();
  body.append(...now.rows.slice(same ? kept : 0).map((row) => h("tr", {},
    h("td", { title: row[0] }, row[0].slice(11, 23)),
    ...row.slice(1).map((cell, i) => h("td", i === 3 && cell ? { class: "is-fault" } : {}, cell)))));
}

// -- faults --------------------------------------------------------------------------------------

function faultsPart(menu, ask, chosen) {
  const form = faultForm(menu, ask, chosen), active = activeList(ask), foot = footOf(ask);
  let looked = false;
  return {
    title: "Faults",
    element: h("div", {}, h("div", { class: "is-body is-faults" }, h("div", { class: "is-left" },
      form.element), h("div", { class: "is-right" }, active.element)), foot.element),
    update(facts, live) {
      if (!looked) form.where.look();
      looked = true;
      form.update(facts, live);
      active.update(facts.windows, live);
      foot.update(facts);
    },
  };
}

// -- alerts --------------------------------------------------------------------------------------

function alertsPart() {
  const list = h("ol", { class: "is-alerts", "aria-label": "alerts" });
  const none = h("p", { class: "is-quiet is-none" }, "nothing needs attention");
  const hidden = h("p", { class: "is-quiet" });
  const make = () => h("li", {}, h("i"), h("span"), h("b"), h("em"), h("time"));
  return {
    title: "Alerts",
    element: h("div", {}, none, list, hidden),
    update(facts) {
      shown(none, facts.alerts.length === 0);
      rows(list, facts.alerts, make, (item, one) => {
        const [mark, what, times, now, when] = item.children;
        item.dataset.level = one.level;
        item.dataset.active = String(one.active);
        mark.title = one.level;
        write(what, one.text);
        write(times, `×${whole(one.count)}`);
        write(now, one.active ? "active" : "over");
        write(when, one.first === one.last ? clock(one.first)
          : `${clock(one.first)} – ${clock(one.last)}`);
      });
      write(hidden, facts.alerts_hidden ? `and ${plural(facts.alerts_hidden, "more alert")}` : "");
    },
  };
}
