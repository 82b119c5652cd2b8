// Colours of the page that we are in, light or dark: JupyterLab's own variables, or plain ones.

// Okabe and Ito: told apart by nearly everybody.
const FAULT_COLOURS = ["#d55e00", "#cc79a7", "#e69f00", "#56b4e9", "#009e73", "#999933"];

export function faultColour(name) {
  let sum = 0;
  for (const letter of name) sum = (sum * 31 + letter.codePointAt(0)) % 997;
  return FAULT_COLOURS[sum % FAULT_COLOURS.length];
}

function variable(style, name, otherwise) {
  return style.getPropertyValue(name).trim() || otherwise;
}

// [r, g, b] of any colour that the browser can read.
const READ = new Map();
function channels(colour) {
  if (!READ.has(colour)) {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    READ.set(colour, [...context.getImageData(0, 0, 1, 1).data].slice(0, 3));
  }
  return READ.get(colour);
}

export function palette(element) {
  const style = getComputedStyle(element);
  const back = variable(style, "--is-back", "#ffffff");
  const [r, g, b] = channels(back);
  const dark = 0.299 * r + 0.587 * g + 0.114 * b < 128;
  return {
    dark,
    back,
    text: variable(style, "--is-text", dark ? "#e0e0e0" : "#212121"),
    quiet: variable(style, "--is-quiet", dark ? "#9e9e9e" : "#616161"),
    grid: variable(style, "--is-line", dark ? "#424242" : "#e0e0e0"),
    line: dark ? "#64b5f6" : "#1565c0",
    picked: dark ? "#ffb74d" : "#bf5600",
    good: dark ? "#66bb6a" : "#2e7d32",
    bad: dark ? "#ff8a65" : "#c62828",
    // In order of the kernel's states: not heard yet, stopped, fine, fault, silent.
    states: dark
      ? ["#37474f", "#5f5f5f", "#2f8f6b", "#e69f00", "#e0503c"]
      : ["#cfd8dc", "#9e9e9e", "#57b894", "#e69f00", "#cc3311"],
  };
}

export function faded(colour, share) {
  const [r, g, b] = channels(colour);
  return `rgba(${r}, ${g}, ${b}, ${share})`;
}

// 256 colours from dark blue to yellow, even in lightness; the last one is for no value.
const STOPS = [
  [68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37],
];
export const SCALE = Array.from({ length: 255 }, (_, i) => {
  const place = (i / 254) * (STOPS.length - 1);
  const k = Math.min(STOPS.length - 2, Math.floor(place));
  return STOPS[k].map((from, c) => Math.round(from + (STOPS[k + 1][c] - from) * (place - k)));
});

export function rgb(colour) {
  return channels(colour);
}
