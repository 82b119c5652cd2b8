// The panel of a scenario: its timeline, what came of it, and how it is started.

import { h, rows, shown, write } from "./dom.js";
import { plural } from "./figures.js";
import { guestOf } from "./guest.js";
import { launchForm, launchView } from "./launch.js";
import { resultView } from "./result.js";
import { countsOf, stepsView, timelineView } from "./timeline.js";

export function scenarioView(context) {
  const { model } = context;
  const ask = (message) => model.send(message);
  const chosen = { ...(model.get("facts").chosen || {}) };
  const title = h("b"), what = h("span");
  const state = h("span", { class: "is-state" });
  const timeline = timelineView();
  const steps = stepsView((time) => timeline.at(time));
  const verdict = verdictOf(ask);
  const place = h("div", { class: "is-place" });
  const past = guestOf(model, place, resultView);
  let make = null;
  const form = launchForm(model.get("menu"), ask, chosen, {
    lasting: false,
    more: () => {
      make = h("button", { type: "button", title: "all readings, as fast as the machine computes",
        onclick: () => ask({ do: "generate" }) }, "Generate");
      return [make];
    },
  });
  const bar = h("progress", { max: "1", "aria-label": "generated" });
  const how = h("span", { class: "is-far", "aria-live": "off" });
  const cancel = h("button", { type: "button", class: "is-small",
    onclick: () => ask({ do: "cancel" }) }, "Cancel");
  const busy = h("div", { class: "is-line is-busy" }, bar, how, cancel);
  timeline.element.classList.add("is-kept");
  const root = h("div", { class: "iotsim is-scenario", role: "group",
    "aria-label": "iotsim scenario" },
  h("header", {}, h("div", { class: "is-title" }, title, what, state)),
  timeline.element, steps.element, form.element, busy, verdict.element, place);

  function update(facts) {
    const checks = facts.checks;
    write(title, facts.name);
    write(what, facts.what);
    const text = facts.busy ? "generating" : facts.verdict ? "generated" : "not started";
    write(state, text);
    timeline.update(facts, checks);
    steps.update(facts, checks);
    form.update(facts);
    make.disabled = Boolean(facts.busy);
    shown(busy, Boolean(facts.busy));
    if (facts.busy) {
      if (facts.busy.share === null) bar.removeAttribute("value");
      else bar.value = facts.busy.share;
      write(how, facts.busy.share === null ? facts.busy.at
        : `${Math.round(100 * facts.busy.share)} % · ${facts.busy.at}`);
      cancel.disabled = facts.busy.leaving;
    }
    verdict.update(facts);
    const mine = facts.run ? "" : facts.past;
    shown(place, Boolean(mine));
    past.show(mine);
  }

  const watching = new ResizeObserver(() => {
    if (model.get("facts").name) update(model.get("facts"));
  });
  watching.observe(root);
  const close = launchView(context, root, "Back to the scenario", update,
    (run) => timeline.at(run ? run.time : null));
  return () => {
    watching.disconnect();
    past.close();
    close();
  };
}

function verdictOf(ask) {
  const mark = h("span", { class: "is-state" }), said = h("span");
  const digest = h("code", { title: "equal digests, equal readings" });
  const notes = h("ul", { class: "is-quiet" }), wrong = h("ul", { class: "is-wrong" });
  const save = h("button", { type: "button", onclick: () => ask({ do: "save" }) }, "Save");
  const look = h("button", { type: "button", onclick: () => ask({ do: "look" }) }, "Look back");
  const element = h("section", { class: "is-verdict", "aria-label": "what came of it" },
    h("div", { class: "is-line" }, mark, said, digest, h("span", { class: "is-gap" }), look, save),
    wrong, notes);
  return {
    element,
    update({ verdict, past }) {
      shown(element, Boolean(verdict));
      if (!verdict) return;
      write(mark, verdict.passed ? "passed" : "failed");
      mark.dataset.state = verdict.passed ? "running" : "failed";
      write(said, `${plural(verdict.rows, "reading")} over ${verdict.duration} · ${
        countsOf(verdict.counts)}`);
      write(digest, verdict.digest);
      write(look, past ? "Close" : "Look back");
      rows(wrong, verdict.errors, () => h("li"), write);
      rows(notes, verdict.notes, () => h("li"), write);
    },
  };
}
