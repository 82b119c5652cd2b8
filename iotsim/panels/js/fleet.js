// The panel of a fleet before it runs.

import { h, rows, shown, write } from "./dom.js";
import { plural, rate, whole } from "./figures.js";
import { launchForm, launchView } from "./launch.js";

export function fleetView(context) {
  const { model } = context;
  const ask = (message) => model.send(message);
  const chosen = { ...(model.get("facts").chosen || {}) };
  const title = h("b"), count = h("span"), seed = h("span", { class: "is-quiet" });
  const groups = h("div", { class: "is-groups", role: "table", "aria-label": "devices" });
  const rest = h("p", { class: "is-quiet" });
  const places = h("ul", { class: "is-places", "aria-label": "where readings go" });
  const pace = h("p", { class: "is-quiet is-pace", "aria-live": "polite" });
  const found = h("ul", { class: "is-findings", "aria-label": "pre-flight" });
  let look = null;
  const form = launchForm(model.get("menu"), ask, chosen, {
    lasting: true,
    more: (given) => {
      look = h("button", { type: "button", title: "look whether it fits: machine and brokers",
        onclick: () => ask({ do: "preflight", ...given() }) }, "Pre-flight");
      return [look];
    },
  });
  form.speed.addEventListener("change", () => say(model.get("facts")));
  const root = h("div", { class: "iotsim is-fleet", role: "group", "aria-label": "iotsim fleet" },
    h("header", {}, h("div", { class: "is-title" }, title, count,
      h("span", { class: "is-state" }, "not started"), seed)),
    h("div", { class: "is-sheet" }, groups, rest, places),
    form.element, pace, found);

  function say(facts) {
    const speed = form.speed.value;
    const own = `${rate(facts.rate)} readings/s`;
    const text = speed === "1" ? own : speed === "max" ? `${own} at 1×, as fast as it goes at max`
      : `${own} at 1×, ${rate(facts.rate * Number(speed))}/s at ${speed}×`;
    const scripted = facts.scripted ? `, and ${plural(facts.scripted, "scripted device")}` : "";
    write(pace, facts.rate ? `${text}${scripted}` : scripted.slice(6) || "no readings");
  }

  function update(facts) {
    write(title, facts.name);
    write(count, plural(facts.devices, "device"));
    write(seed, `seed ${facts.seed}`);
    tableOf(groups, ["type", "count", "every", "labels"], facts.groups);
    write(rest, facts.groups_hidden ? `and ${whole(facts.groups_hidden)} more groups` : "");
    shown(rest, facts.groups_hidden > 0);
    const where = [...facts.places, ...(facts.places_hidden ? [`and ${facts.places_hidden} more`] : [])];
    rows(places, where.length ? where : ["nothing is published: readings are kept"],
      () => h("li"), write);
    form.update(facts);
    say(facts);
    const { busy, lines } = facts.preflight;
    look.disabled = busy;
    write(look, busy ? "looking…" : "Pre-flight");
    rows(found, lines, () => h("li", {}, h("i"), h("b"), h("span")), (item, [ok, name, text]) => {
      item.classList.toggle("is-wrong", !ok);
      write(item.children[0], ok ? "✓" : "✗");
      item.children[0].setAttribute("aria-label", ok ? "fits" : "does not fit");
      write(item.children[1], name);
      write(item.children[2], text);
    });
  }

  return launchView(context, root, "Back to the fleet", update);
}

// A table of texts that keeps its elements.
function tableOf(parent, names, lines) {
  rows(parent, [names, ...lines], () => h("div", { role: "row" },
    ...names.map(() => h("span", { role: "cell" }))), (row, cells) => {
    cells.forEach((text, i) => {
      write(row.children[i], text);
      row.children[i].setAttribute("role", cells === names ? "columnheader" : "cell");
    });
  });
}
