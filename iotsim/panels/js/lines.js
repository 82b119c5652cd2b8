// Lines over simulated time, with bands and shaded fault windows.
//
// A table has `width` columns of float32, its first the time; NaN is a gap.

import { MARGIN, begin, drawAxes, extent, scale } from "./axes.js";
import { faded, faultColour } from "./colours.js";

// chart: {table, width, t0, to, bands: [[low, high, share]], lines: [[column, colour, wide]],
//         windows: [{name, from, to}], unnamed, unit, zero, empty, mark: a time}
export function drawLines(canvas, chart, colours) {
  const area = begin(canvas);
  if (area === null) return;
  const { context, wide, high } = area;
  const { table, width, t0 } = chart;
  const right = wide - MARGIN.right, bottom = high - MARGIN.bottom;
  const columns = [...chart.bands.flatMap(([a, b]) => [a, b]), ...chart.lines.map(([c]) => c)];
  const found = extent(table, width, columns);
  if (found === null) {
    context.fillStyle = colours.quiet;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(chart.empty || "nothing to draw yet", wide / 2, high / 2);
    return;
  }
  if (chart.zero) found.low = 0;
  const from = t0, to = Math.max(chart.to, t0 + 1);
  const range = { ...found, from, to };
  const x = scale(from, to, MARGIN.left, right), y = scale(range.low, range.high, bottom, MARGIN.top);
  shade(context, chart, x, range, bottom, colours);
  drawAxes(area, x, y, range, colours, chart.unit);
  context.save();
  context.beginPath();
  context.rect(MARGIN.left, MARGIN.top, right - MARGIN.left, bottom - MARGIN.top);
  context.clip();
  for (const [low, top, share] of chart.bands) {
    context.fillStyle = faded(colours.line, share);
    for (const [first, last] of stretches(table, width, low)) {
      context.beginPath();
      for (let i = first; i <= last; i += 1) {
        context.lineTo(x(t0 + table[i * width]), y(table[i * width + top]));
      }
      for (let i = last; i >= first; i -= 1) {
        context.lineTo(x(t0 + table[i * width]), y(table[i * width + low]));
      }
      context.fill();
    }
  }
  for (const [column, colour, thick] of chart.lines) {
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = thick;
    context.lineJoin = "round";
    for (const [first, last] of stretches(table, width, column)) {
      context.beginPath();
      for (let i = first; i <= last; i += 1) {
        context.lineTo(x(t0 + table[i * width]), y(table[i * width + column]));
      }
      context.stroke();
      if (first === last) {
        context.fillRect(x(t0 + table[first * width]) - 1, y(table[first * width + column]) - 1, 2, 2);
      }
    }
  }
  context.restore();
  if (chart.mark >= from && chart.mark <= to) {
    context.fillStyle = colours.text;
    context.fillRect(Math.round(x(chart.mark)) - 0.5, MARGIN.top, 1, bottom - MARGIN.top);
  }
}

function shade(context, { windows, unnamed }, x, range, bottom, colours) {
  context.textAlign = "left";
  context.textBaseline = "top";
  let row = 0;
  for (const one of windows) {
    const from = Math.max(one.from, range.from), to = Math.min(one.to ?? Infinity, range.to);
    if (to < range.from || from > range.to) continue;
    const colour = faultColour(one.name), left = x(from);
    context.fillStyle = faded(colour, colours.dark ? 0.2 : 0.14);
    context.fillRect(left, MARGIN.top, Math.max(1, x(to) - left), bottom - MARGIN.top);
    context.fillStyle = colour;
    context.fillRect(left, MARGIN.top, 1, bottom - MARGIN.top);
    context.fillStyle = colours.text;
    if (row < 5 && !unnamed) context.fillText(one.name, left + 4, MARGIN.top + 2 + 13 * row);
    row += 1;
  }
}

// [first, last] rows of each stretch without a gap in a column.
function stretches(table, width, column) {
  const found = [], rows = table.length / width;
  let first = -1;
  for (let i = 0; i <= rows; i += 1) {
    const there = i < rows && !Number.isNaN(table[i * width + column]);
    if (there && first < 0) first = i;
    if (!there && first >= 0) {
      found.push([first, i - 1]);
      first = -1;
    }
  }
  return found;
}
