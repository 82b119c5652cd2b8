// How a run is started: speed, how long, on whose loop; and its panel in the place of the form.

import { h, labelled, options, shown, write } from "./dom.js";
import { guestOf } from "./guest.js";
import { resultView } from "./result.js";
import { LIVE, runView, saidLine } from "./run.js";

export function launchForm(menu, ask, chosen, { lasting, more }) {
  const remember = (values) => {
    Object.assign(chosen, values);
    ask({ do: "choose", chosen: values });
  };
  const speed = h("select");
  options(speed, menu.speeds.map((one) => [one, one === "max" ? "max" : `${one}×`]),
    chosen.speed || "1");
  speed.addEventListener("change", () => remember({ speed: speed.value }));
  const duration = lasting ? h("input", { type: "text", value: chosen.duration || "",
    placeholder: "until stopped", title: "in simulated time, such as 10m or 1h30m" }) : null;
  duration?.addEventListener("change", () => remember({ duration: duration.value }));
  const thread = h("input", { type: "checkbox" });
  thread.checked = Boolean(chosen.thread);
  thread.addEventListener("change", () => remember({ thread: thread.checked }));
  const given = () => ({ speed: speed.value, duration: duration?.value || "",
    thread: thread.checked });
  const start = h("button", { type: "button", class: "is-main",
    onclick: () => ask({ do: "start", ...given() }) }, "Start");
  const replace = h("button", { type: "button", class: "is-danger",
    title: "stop what is live under this name, and start this",
    onclick: () => ask({ do: "start", ...given(), replace: true }) }, "Replace");
  const own = labelled("own thread", thread, { title: "on a loop of its own: a cell that blocks "
    + "does not hold it up" });
  own.classList.add("is-check");
  return {
    element: h("div", { class: "is-launch" }, labelled("speed", speed),
      duration && labelled("for", duration), own,
      h("div", { class: "is-buttons" }, ...more(given), start, replace)),
    given, speed,
    update(facts) {
      options(speed, menu.speeds.map((one) => [one, one === "max" ? "max" : `${one}×`]),
        chosen.speed || "1");
      shown(replace, Boolean(facts.taken));
    },
  };
}

// A panel that is a form, or the panel of the run that it started; `back` names the way back.
export function launchView({ model, el }, root, back, update, watch = () => {}) {
  const ask = (message) => model.send(message);
  const said = saidLine();
  const away = h("button", { type: "button", onclick: () => ask({ do: "back" }) }, back);
  const look = h("button", { type: "button", onclick: () => ask({ do: "look" }) }, "Look back");
  const strip = h("div", { class: "iotsim is-strip" }, h("div", { class: "is-buttons" }, away, look));
  const place = h("div", { class: "is-place" }), after = h("div", { class: "is-place" });
  shown(strip, false);
  root.append(said.element);
  el.append(root, strip, after, place);
  const past = guestOf(model, after, resultView);
  const guest = guestOf(model, place, runView, (facts) => {
    shown(strip, Boolean(facts) && !LIVE.includes(facts.state) && facts.state !== "stopping");
    watch(facts);
  });
  const change = () => {
    const facts = model.get("facts");
    if (!facts.name) return;
    update(facts);
    said.update(facts.said);
    root.classList.toggle("is-behind", Boolean(facts.run));
    shown(place, Boolean(facts.run) && !facts.past);
    write(look, facts.past ? "Back to the run" : "Look back");
    guest.show(facts.run);
    past.show(facts.run ? facts.past : "");
  };
  model.on("change:facts", change);
  const seen = setInterval(() => {
    if (!document.hidden) ask({ do: "seen" });
  }, 5000);
  change();
  return () => {
    clearInterval(seen);
    said.end();
    model.off("change:facts", change);
    guest.close();
    past.close();
  };
}
