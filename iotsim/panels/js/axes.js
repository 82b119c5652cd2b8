// A canvas that is as sharp as the screen, and axes on it.

import { clock, short } from "./figures.js";

const FONT = "11px system-ui, sans-serif";
export const MARGIN = { left: 52, right: 10, top: 6, bottom: 20 };

// The context of a canvas in CSS pixels, cleared; null while it is not to be seen.
export function begin(canvas) {
  const wide = canvas.clientWidth, high = canvas.clientHeight;
  if (!wide || !high) return null;
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(high * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, wide, high);
  context.font = FONT;
  return { context, wide, high };
}

export function scale(from, to, first, last) {
  const span = to - from || 1;
  return (value) => first + ((value - from) / span) * (last - first);
}

// Round numbers within a range, about `count` of them.
export function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
    found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  }
  return found;
}

const TIMES_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600,
  43200, 86400, 172800, 604800];

export function timeTicks(from, to, count) {
  const step = TIMES_S.find((s) => (to - from) / s <= count) || TIMES_S[TIMES_S.length - 1];
  const found = [];
  for (let t = Math.ceil(from / step) * step; t <= to; t += step) found.push(t);
  return found;
}

export function drawAxes({ context, wide, high }, x, y, range, colours, unit) {
  const bottom = high - MARGIN.bottom;
  context.strokeStyle = colours.grid;
  context.fillStyle = colours.quiet;
  context.lineWidth = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const value of ticks(range.low, range.high, Math.max(2, (bottom - MARGIN.top) / 34))) {
    const at = Math.round(y(value)) + 0.5;
    context.beginPath();
    context.moveTo(MARGIN.left, at);
    context.lineTo(wide - MARGIN.right, at);
    context.stroke();
    context.fillText(short(value), MARGIN.left - 6, at);
  }
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const t of timeTicks(range.from, range.to, (wide - MARGIN.left) / 84)) {
    const at = x(t);
    if (at > MARGIN.left + 20 && at < wide - 26) context.fillText(clock(t), at, bottom + 5);
  }
  if (unit) {
    context.textAlign = "left";
    context.fillText(unit, 2, bottom + 5);
  }
}

// Lowest and highest of some columns of a table, with a little room.
export function extent(values, width, columns, start = 0) {
  let low = Infinity, high = -Infinity;
  for (let i = start; i < values.length; i += width) {
    for (const column of columns) {
      const value = values[i + column];
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (!(high >= low)) return null;
  const room = (high - low) * 0.06 || Math.abs(high) * 0.02 || 1;
  return { low: low - room, high: high + room };
}
