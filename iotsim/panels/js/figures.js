// Numbers as people read them.

const GROUPED = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export function whole(number) {
  return Number.isFinite(number) ? GROUPED.format(number) : "–";
}

export function short(number) {
  if (!Number.isFinite(number)) return "–";
  const size = Math.abs(number);
  if (size !== 0 && (size < 0.001 || size >= 1e7)) return number.toExponential(1);
  if (size >= 1000) return GROUPED.format(number);
  return String(Number(number.toPrecision(4)));
}

export function rate(per_s) {
  if (!Number.isFinite(per_s)) return "–";
  return per_s >= 100 ? GROUPED.format(per_s) : String(Number(per_s.toPrecision(2)));
}

export function milliseconds(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const ms = seconds * 1000;
  if (ms >= 10_000) return `${Number(seconds.toPrecision(3))} s`;
  return ms < 10 ? `${Number(ms.toPrecision(2))} ms` : `${Math.round(ms)} ms`;
}

export function plural(count, noun) {
  return `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;
}

// 00:12:41, or 3d 00:12:41: simulated time since the start.
export function clock(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const all = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(all / 3600) % 24, Math.floor(all / 60) % 60, all % 60];
  const time = parts.map((part) => String(part).padStart(2, "0")).join(":");
  const days = Math.floor(all / 86400);
  return days ? `${days}d ${time}` : time;
}

// What is left of something: 00:43, or 1:02:03.
export function left(seconds) {
  const all = Math.max(0, Math.ceil(seconds));
  const two = (part) => String(part).padStart(2, "0");
  const hours = Math.floor(all / 3600);
  const rest = `${two(Math.floor(all / 60) % 60)}:${two(all % 60)}`;
  return hours ? `${hours}:${rest}` : rest;
}
