// What happens when: a lane for each fault on each selection and for each verb, over simulated time.
//
// All of it is elements in percent of the width, so that nothing is drawn again when that changes.

import { timeTicks } from "./axes.js";
import { faultColour } from "./colours.js";
import { h, rows, shown, write } from "./dom.js";
import { clock, plural, whole } from "./figures.js";

const STATUS = { passed: "✓", failed: "✗", "not evaluated": "–" };

export function timelineView() {
  const lanes = h("div", { class: "is-lanes", role: "list", "aria-label": "timeline" });
  const rules = h("div", { class: "is-rules", "aria-hidden": "true" });
  const axis = h("div", { class: "is-axis", "aria-hidden": "true" });
  const cursor = h("i", { class: "is-cursor" });
  const none = h("p", { class: "is-quiet" });
  const element = h("section", { class: "is-timeline" }, lanes, axis, none);
  let drawn = "", end = 1, at = null;

  function place() {
    shown(cursor, at !== null && at <= end);
    if (at !== null) cursor.style.left = share(at);
  }
  const share = (time) => `${(100 * Math.min(1, Math.max(0, time / end))).toFixed(3)}%`;

  function draw(facts, checks) {
    end = facts.end || 1;
    const times = timeTicks(0, end, Math.max(2, (axis.clientWidth || 500) / 90));
    rules.replaceChildren(...times.map((time) =>
      h("i", { style: `left:${share(time)}` })), cursor);
    rules.style.gridRow = `1 / span ${Math.max(1, facts.lanes.length)}`;
    axis.replaceChildren(...times.map((time) =>
      h("span", { style: `left:${share(time)}` }, clock(time))));
    lanes.replaceChildren(rules, ...facts.lanes.map((lane, i) => laneOf(lane, i, checks)));
    place();
  }

  function laneOf(lane, i, checks) {
    const colour = lane.fault ? faultColour(lane.name) : "";
    const bars = lane.bars.map(([from, to, tall], k) => h("i", {
      class: lane.open && k === lane.bars.length - 1 ? "is-spell is-open" : "is-spell",
      style: `left:${share(from)};width:max(3px, ${(100 * (Math.min(to, end) - from) / end)
        .toFixed(3)}%);height:${Math.round(3 + 11 * tall)}px;background:${colour}` }));
    const known = lane.name === "expect" ? checks : [];
    const marks = lane.marks.map((time, k) => h("i", { class: "is-mark",
      "data-status": known[k]?.[2] || "", style: `left:${share(time)}` }));
    const spans = lane.bars.slice(0, 8).map(([from, to]) => `${clock(from)} to ${clock(to)}`);
    const said = [lane.name, lane.where, ...spans, ...lane.marks.slice(0, 8).map(clock), lane.right];
    const text = said.filter(Boolean).join(", ");
    const row = `grid-row:${i + 1}`;
    return h("div", { class: "is-lane", role: "listitem", "aria-label": text, title: text },
      h("span", { class: "is-who", style: row }, h("b", {}, lane.name),
        lane.where && lane.where !== "all" ? ` ${lane.where}` : null),
      h("span", { class: "is-track", style: row }, ...bars, ...marks),
      h("span", { class: "is-more", style: row }, lane.right));
  }

  return {
    element,
    update(facts, checks) {
      const now = JSON.stringify([facts.end, facts.lanes, checks, Math.round(axis.clientWidth / 60)]);
      if (now !== drawn) {
        drawn = now;
        draw(facts, checks);
      }
      shown(lanes, facts.lanes.length > 0);
      shown(axis, facts.lanes.length > 0);
      write(none, facts.script ? "a script: what it does shows when it has run"
        : "nothing happens: the fleet only runs");
      shown(none, facts.lanes.length === 0);
    },
    at(time) {
      at = time;
      place();
    },
  };
}

// The steps in words, with what became of expectations; the one that is pointed at is told.
export function stepsView(point) {
  const list = h("ol", { class: "is-log is-steps", tabindex: "0", "aria-label": "steps" });
  list.addEventListener("mouseleave", () => point(null));
  return {
    element: list,
    update(facts, checks) {
      const status = new Map();
      for (const one of checks) status.set(`${one[0]} expect ${one[3]}`, one);
      const hidden = facts.steps_hidden ? [[null, "…", `${whole(facts.steps_hidden)} more`]] : [];
      rows(list, [...facts.steps, ...hidden], () => {
        const item = h("li", {}, h("time"), h("em"), h("span"), h("i"));
        item.addEventListener("mouseenter", () =>
          point(item.dataset.at ? Number(item.dataset.at) : null));
        return item;
      }, (item, [at, time, text]) => {
        const found = status.get(`${at} ${text}`);
        item.dataset.at = at ?? "";
        write(item.children[0], time);
        write(item.children[1], found ? STATUS[found[2]] : "");
        item.children[1].dataset.status = found?.[2] || "";
        item.children[1].title = found?.[2] || "";
        write(item.children[2], text);
        write(item.children[3], found?.[4] || "");
      });
      shown(list, facts.steps.length > 0);
    },
  };
}

export function countsOf(counts) {
  const parts = Object.entries(counts).filter(([, count]) => count);
  return parts.length ? parts.map(([name, count]) => `${plural(count, "expectation")} ${name}`)
    .join(", ") : "nothing was expected";
}
