// Elements, without a framework: h("button", {class: "x", onclick: f}, "text", child).

export function h(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Write only what has changed: a panel is written many times a second, and a reader may be
// selecting the text.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function shown(element, yes) {
  if (element.hidden === yes) element.hidden = !yes;
}

// Bring a list of rows to what `items` say, keeping the elements that are there.
export function rows(parent, items, make, update) {
  while (parent.children.length > items.length) parent.lastChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, i) => update(parent.children[i], item));
}

let ids = 0;

export function labelled(text, control, more = {}) {
  control.id = control.id || `iotsim-${Date.now().toString(36)}-${ids++}`;
  return h("div", { class: "is-field", ...more }, h("label", { for: control.id }, text), control);
}

export function options(select, values, chosen) {
  const wanted = JSON.stringify(values);
  if (select.dataset.values !== wanted) {
    select.dataset.values = wanted;
    select.replaceChildren(...values.map((value) => {
      const [key, text] = Array.isArray(value) ? value : [value, value];
      return h("option", { value: key }, text);
    }));
  }
  if (chosen !== undefined && select.value !== chosen && document.activeElement !== select) {
    select.value = chosen;
  }
}

// The last call within `wait_ms` counts.
export function settled(call, wait_ms) {
  let timer = null;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), wait_ms);
  };
}
