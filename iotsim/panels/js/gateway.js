// Gateways: a table of all of them, and what is done to the one that is chosen.

import { sureButton } from "./dashboard.js";
import { h, labelled, options, rows, settled, shown, write } from "./dom.js";
import { plural, whole } from "./figures.js";
import { LIVE, runView, saidLine } from "./run.js";

export function gatewayView({ model, el }) {
  const end = runView({ model, el });
  const part = gatewaysPart(model, (message) => model.send(message));
  el.append(h("div", { class: "iotsim is-gateways", role: "group", "aria-label": "gateways" },
    part.element));
  const update = () => part.update(LIVE.includes(model.get("facts").state));
  for (const name of ["gateways", "facts"]) model.on(`change:${name}`, update);
  update();
  return () => {
    end();
    for (const name of ["gateways", "facts"]) model.off(`change:${name}`, update);
  };
}

// The platform's side: no run, only gateways and what people there can do.
export function labView({ model, el }) {
  const ask = (message) => model.send(message);
  const part = gatewaysPart(model, ask), said = saidLine();
  const title = h("b"), state = h("span", { class: "is-state" }), where = h("span", { class: "is-quiet" });
  el.append(h("div", { class: "iotsim is-gateways", role: "group", "aria-label": "platform" },
    h("div", { class: "is-title" }, title, state, where), said.element, part.element));
  const update = () => {
    const facts = model.get("facts");
    if (!facts.name) return;
    write(title, facts.name);
    write(state, facts.running ? "running" : "stopped");
    state.dataset.state = facts.running ? "running" : "stopped";
    write(where, facts.where);
    said.update(facts.said);
    part.update(facts.running);
  };
  for (const name of ["gateways", "facts"]) model.on(`change:${name}`, update);
  const seen = setInterval(() => { if (!document.hidden) ask({ do: "seen" }); }, 5000);
  ask({ do: "seen" });
  update();
  return () => {
    clearInterval(seen);
    for (const name of ["gateways", "facts"]) model.off(`change:${name}`, update);
  };
}

function gatewaysPart(model, ask) {
  const menu = model.get("menu");
  const text = h("input", { type: "search", placeholder: "gw-1, stopped, nack", spellcheck: "false" });
  text.addEventListener("input", settled(() => ask({ do: "gateways", text: text.value }), 250));
  const count = h("span", { class: "is-quiet" });
  const table = cellTable("gateways", (name) => ask({ do: "gateways", chosen: name }));
  const said = cellTable("commands");
  const form = commandForm(menu.forms || [], ask);
  const none = h("p", { class: "is-quiet" }, "no command yet");
  let begun = false, last = null;
  return {
    element: h("div", {},
      h("div", { class: "is-line is-filters" }, h("h4", {}, "gateways"), labelled("show", text),
        h("span", { class: "is-gap" }), count),
      h("div", { class: "is-pair" }, table.element, form.element),
      h("h4", { class: "is-apart" }, "commands of the platform"), none, said.element),
    update(live) {
      const page = model.get("gateways");
      if (!page || !page.columns) return;
      if (!begun) text.value = page.text;
      begun = true;
      write(count, `${whole(page.matching)} of ${plural(page.count, "gateway")}`
        + (page.rows.length < page.matching ? `, the first ${page.rows.length} shown` : ""));
      if (page !== last) {  // the run's facts come more often
        table.update(page.columns, page.rows, page.chosen);
        said.update(page.said_columns, page.said);
        last = page;
      }
      shown(none, page.said.length === 0);
      shown(said.element, page.said.length > 0);
      form.update(page, live);
    },
  };
}

// A table of texts; with `choose`, the first cell of a row is a button.
function cellTable(label, choose) {
  const head = h("tr"), body = h("tbody");
  const first = () => {
    const button = h("button", { type: "button", class: "is-small is-link" });
    button.addEventListener("click", () => choose(button.textContent));
    return h("td", {}, button);
  };
  return {
    element: h("div", { class: "is-scroll is-low", tabindex: "0", role: "region", "aria-label": label },
      h("table", {}, h("thead", {}, head), body)),
    update(columns, lines, chosen) {
      rows(head, columns, () => h("th", { scope: "col" }), write);
      rows(body, lines, () => h("tr", {}, ...columns.map((_, i) => (choose && i === 0 ? first()
        : h("td")))), (row, cells) => {
        cells.forEach((cell, i) => write(choose && i === 0 ? row.children[0].firstChild
          : row.children[i], cell));
        if (choose) row.setAttribute("aria-selected", cells[0] === chosen ? "true" : "false");
      });
    },
  };
}

function commandForm(forms, ask) {
  const name = h("b"), pick = h("select");
  options(pick, forms.map((one) => one.name));
  const does = h("p", { class: "is-does" }), fields = h("div", { class: "is-parameters" });
  const inputs = new Map();
  let gateway = "";
  const wanted = () => forms.find((one) => one.name === pick.value);
  const send = () => {
    const given = {};
    for (const [key, input] of inputs) if (input.value.trim()) given[key] = input.value;
    ask({ do: "gateway", gateway, form: pick.value, given });
  };
  const plain = h("button", { type: "button", class: "is-main", onclick: send }, "Do it");
  const sure = sureButton("Do it", () => `${pick.value} ${gateway}?`, send);
  const offer = () => {
    const one = wanted();
    write(does, one.does);
    inputs.clear();
    fields.replaceChildren(...one.fields.map((field) => {
      const input = field.options ? h("select") : h("input", { type: "text", value: field.value });
      if (field.options) options(input, field.options, field.value);
      inputs.set(field.name, input);
      return labelled(field.label, input);
    }));
    shown(plain, !one.sure);
    shown(sure, one.sure);
  };
  pick.addEventListener("change", offer);
  if (forms.length) offer();
  return {
    element: h("section", { class: "is-form", "aria-label": "what to do" },
      h("div", { class: "is-field" }, h("label", {}, "gateway"), name), labelled("do", pick), does,
      fields, h("div", { class: "is-buttons" }, plain, sure)),
    update(page, live) {
      gateway = page.chosen;
      write(name, gateway || "none");
      const sensor = inputs.get("sensor");
      if (sensor) options(sensor, page.sensors);
      plain.disabled = sure.disabled = !live || !gateway;
    },
  };
}
