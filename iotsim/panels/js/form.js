// What is done to devices: who, which fault, for how long, with what; Inject and Clear.

import { h, labelled, options, rows, settled, shown, write } from "./dom.js";
import { faultColour } from "./colours.js";
import { left, plural } from "./figures.js";

// Who is meant, with a live count of what that matches.
export function whereField(ask, chosen, remember) {
  const input = h("input", {
    type: "text", value: chosen.where || "all", spellcheck: "false", autocomplete: "off",
    title: "all, site=north, device_type=pump, id=a|b, fraction=10%, count=5",
  });
  const count = h("output", { class: "is-count", "aria-live": "polite" });
  const look = () => ask({ do: "match", where: input.value });
  const soon = settled(look, 150);
  input.addEventListener("input", () => { soon(); remember({ where: input.value }); });
  const element = labelled("where", input);
  element.append(count);
  return {
    element, look,
    get value() { return input.value; },
    set value(text) {
      input.value = text;
      remember({ where: text });
      look();
    },
    update(match) {
      if (match.where !== input.value.slice(0, 1000)) return;
      write(count, match.wrong || plural(match.count, "device"));
      count.classList.toggle("is-wrong", Boolean(match.wrong) || match.count === 0);
      input.setAttribute("aria-invalid", match.wrong ? "true" : "false");
    },
  };
}

export function faultForm(menu, ask, chosen) {
  const remember = (values) => {
    Object.assign(chosen, values);
    ask({ do: "choose", chosen: values });
  };
  const where = whereField(ask, chosen, remember);
  const fault = h("select");
  options(fault, menu.faults.map((one) => one.name), chosen.fault || menu.faults[0].name);
  const does = h("p", { class: "is-does" });
  const lasting = h("input", { type: "text", value: chosen.duration ?? "60s",
    title: "in simulated time, such as 60s or 5m; empty: until it is cleared" });
  lasting.addEventListener("change", () => remember({ duration: lasting.value }));
  const parameters = h("div", { class: "is-parameters" });
  const inputs = new Map();

  const offer = () => {
    const found = menu.faults.find((one) => one.name === fault.value);
    write(does, found.does);
    inputs.clear();
    parameters.replaceChildren(...found.parameters.map((one) => {
      const input = h("input", { type: "text", value: chosen[`${found.name}.${one.name}`] || "",
        placeholder: one.required ? "needed" : one.default || "default" });
      input.addEventListener("change", () =>
        remember({ [`${found.name}.${one.name}`]: input.value }));
      inputs.set(one.name, input);
      return labelled(one.name, input);
    }));
  };
  fault.addEventListener("change", () => { offer(); remember({ fault: fault.value }); });
  offer();

  const inject = h("button", { type: "button", class: "is-main", onclick: () => {
    const given = {};
    for (const [name, input] of inputs) if (input.value.trim()) given[name] = input.value;
    ask({ do: "inject", where: where.value, fault: fault.value, duration: lasting.value,
      parameters: given });
  } }, "Inject");
  const clear = h("button", { type: "button",
    title: "end this fault on the devices of the selection",
    onclick: () => ask({ do: "clear", where: where.value, fault: fault.value }) }, "Clear");
  const clearAll = h("button", { type: "button", title: "end every fault on every device",
    onclick: () => ask({ do: "clear", where: "all" }) }, "Clear all");

  const element = h("section", { class: "is-form", "aria-label": "faults" },
    where.element, labelled("fault", fault), does, labelled("for", lasting), parameters,
    h("div", { class: "is-buttons" }, inject, clear, clearAll));
  return {
    element, where,
    update(facts, live) {
      where.update(facts.match || {});
      for (const button of [inject, clear, clearAll]) button.disabled = !live;
    },
  };
}

// The faults that are active, counting down.
export function activeList(ask) {
  const list = h("ul", { class: "is-active", "aria-label": "active faults" });
  const none = h("p", { class: "is-quiet" }, "no fault is active");
  const make = () => {
    const item = h("li", {}, h("i"), h("b"), h("span"), h("time"),
      h("button", { type: "button", class: "is-small" }, "×"));
    item.lastChild.addEventListener("click", () =>
      ask({ do: "clear", fault: item.dataset.name, window: Number(item.dataset.number) }));
    return item;
  };
  return {
    element: h("section", { class: "is-now" }, h("h4", {}, "active"), none, list),
    update(windows, live) {
      const active = windows.filter((one) => one.active);
      shown(none, active.length === 0);
      rows(list, active, make, (item, one) => {
        const [mark, name, who, time, end] = item.children;
        mark.style.background = faultColour(one.name);
        write(name, one.name);
        write(who, `${plural(one.devices, "device")}${one.where === "all" ? "" : ` · ${one.where}`}`);
        who.title = one.where;
        write(time, one.left === null ? "until cleared" : `${left(one.left)} left`);
        item.dataset.name = one.name;
        item.dataset.number = one.number;
        end.setAttribute("aria-label", `Clear ${one.name}`);
        end.disabled = !live;
      });
    },
  };
}

// More devices, or fewer.
export function devicesForm(menu, ask, where) {
  const profile = h("select");
  options(profile, menu.profiles);
  const count = h("input", { type: "number", value: "10", min: "1", step: "1" });
  const labels = h("input", { type: "text", placeholder: "site=north" });
  const add = h("button", { type: "button", onclick: () => ask({ do: "add",
    profile: profile.value, count: count.value, labels: labels.value }) }, "Add devices");
  const stop = h("button", { type: "button", class: "is-danger",
    title: "end the devices of the selection above; the run goes on",
    onclick: () => ask({ do: "stop_devices", where: where.value }) }, "Stop devices");
  const element = h("details", { class: "is-devices" }, h("summary", {}, "devices"),
    labelled("profile", profile), labelled("count", count), labelled("labels", labels),
    h("div", { class: "is-buttons" }, add, stop));
  return {
    element,
    update(live) { add.disabled = stop.disabled = !live; },
  };
}
