// The map of the devices: one square a device, or a few devices, by state, value or lateness.

import { begin } from "./axes.js";
import { SCALE, rgb } from "./colours.js";

const NOTHING = 255;

// How many squares lie beside each other so that they fill the area best.
export function layout(count, wide, high) {
  if (!count) return { across: 1, side: 1 };
  let across = Math.max(1, Math.round(Math.sqrt((count * wide) / high)));
  while (Math.ceil(count / across) * (wide / across) > high && across < count) across += 1;
  return { across, side: wide / across };
}

// map: {state, value, overdue: Uint8Array, mode, picked}
export function drawCells(canvas, map, colours) {
  const area = begin(canvas);
  if (area === null || !map.state.length) return null;
  const { context, wide, high } = area;
  const count = map.state.length, grid = layout(count, wide, high);
  const rows = Math.ceil(count / grid.across);
  const shades = shadesOf(map, colours);
  const image = new ImageData(grid.across, rows);
  const pixels = new Uint32Array(image.data.buffer), codes = map[map.mode];
  for (let i = 0; i < count; i += 1) pixels[i] = shades[codes[i]];
  const small = document.createElement("canvas");
  small.width = grid.across;
  small.height = rows;
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, grid.across * grid.side, rows * grid.side);
  if (grid.side >= 7) lattice(context, grid, rows, colours);
  if (map.picked >= 0 && map.picked < count) {
    const left = (map.picked % grid.across) * grid.side;
    const top = Math.floor(map.picked / grid.across) * grid.side;
    const side = Math.max(grid.side, 5);
    for (const [colour, wide] of [[colours.back, 5], [colours.picked, 2]]) {  // seen on any colour
      context.lineWidth = wide;
      context.strokeStyle = colour;
      context.strokeRect(left - 1, top - 1, side + 2, side + 2);
    }
  }
  return grid;
}

function shadesOf(map, colours) {
  const word = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  const found = new Uint32Array(256);
  if (map.mode === "state") {
    colours.states.forEach((colour, code) => { found[code] = word(rgb(colour)); });
    return found;
  }
  // Lateness: from on time to five intervals overdue.
  const steps = map.mode === "overdue" ? 50 : 254;
  for (let code = 0; code < NOTHING; code += 1) {
    const share = Math.min(1, code / steps);
    found[code] = word(SCALE[Math.round(share * 254)]);
  }
  found[NOTHING] = word(rgb(colours.grid));
  return found;
}

function lattice(context, grid, rows, colours) {
  context.fillStyle = colours.back;
  for (let i = 1; i < grid.across; i += 1) context.fillRect(i * grid.side - 0.5, 0, 1, rows * grid.side);
  for (let i = 1; i < rows; i += 1) context.fillRect(0, i * grid.side - 0.5, grid.across * grid.side, 1);
}

export function cellAt(event, canvas, grid, count) {
  const box = canvas.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / grid.side);
  const cell = Math.floor((event.clientY - box.top) / grid.side) * grid.across + column;
  return column < grid.across && cell >= 0 && cell < count ? cell : -1;
}

// A click picks a device, and arrows walk over the map.
export function mapPicks(map, state, ask) {
  const picks = (cell) => { if (cell >= 0) ask({ do: "pick", cell }); };
  map.addEventListener("click", (event) => {
    if (state.grid && state.map) picks(cellAt(event, map, state.grid, state.map.state.length));
  });
  map.addEventListener("keydown", (event) => {
    if (!state.grid || !state.map) return;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -state.grid.across,
      ArrowDown: state.grid.across }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const last = state.map.state.length - 1;
    picks(Math.min(last, Math.max(0, Math.max(0, state.map.picked) + step)));
  });
}
