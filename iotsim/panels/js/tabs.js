// Tabs that a keyboard reaches: arrows, Home and End move, and what is chosen is shown.

import { h, shown, write } from "./dom.js";

let tabGroups = 0;

// parts: [[name, title, element]]
export function tabsOf(label, parts, first, chosen) {
  const group = `iotsim-tabs-${Date.now().toString(36)}-${tabGroups++}`;
  const names = parts.map(([name]) => name);
  const buttons = new Map(), panels = new Map();
  for (const [name, title, element] of parts) {
    buttons.set(name, h("button", { type: "button", role: "tab", id: `${group}-${name}`,
      "aria-controls": `${group}-${name}-panel` }, title,
    h("span", { class: "is-badge", "aria-hidden": "true" })));
    panels.set(name, h("div", { role: "tabpanel", id: `${group}-${name}-panel`,
      "aria-labelledby": `${group}-${name}`, class: "is-tab-panel" }, element));
  }
  const made = {
    chosen: names.includes(first) ? first : names[0],
    element: h("div", { class: "is-tabs", role: "tablist", "aria-label": label },
      ...buttons.values()),
    panels: [...panels.values()],
    count(name, number) {
      const badge = buttons.get(name).lastChild;
      write(badge, number ? String(number) : "");
      shown(badge, number > 0);
    },
  };
  const show = (name) => {
    made.chosen = name;
    for (const [other, button] of buttons) {
      button.setAttribute("aria-selected", other === name ? "true" : "false");
      button.tabIndex = other === name ? 0 : -1;
      shown(panels.get(other), other === name);
    }
  };
  const take = (name) => {
    show(name);
    chosen(name);
  };
  for (const [name, button] of buttons) {
    shown(button.lastChild, false);
    button.addEventListener("click", () => take(name));
  }
  made.element.addEventListener("keydown", (event) => {
    const at = names.indexOf(made.chosen), last = names.length - 1;
    const next = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at ? at - 1 : last, Home: 0,
      End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    take(names[next]);
    buttons.get(names[next]).focus();
  });
  show(made.chosen);
  return made;
}
