"""A run's panel as a still picture: HTML and SVG for pages where no widget lives."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iotsim.panels.base import still_html
from iotsim.panels.scope import COLUMNS, Scope
from iotsim.units import clock_text

WIDE, HIGH, LEFT, BOTTOM = 640, 150, 46, 18
LOG_SHOWN = 6


def still_of(facts: dict[str, Any], scope: Scope | None) -> str:
    """Return the state that a panel shows as HTML, escaped, without JavaScript."""
    if not facts:
        return ""
    said = "".join(f"<li>{html.escape(line)}</li>" for line in _lines(facts))
    picture = "" if scope is None else picture_of(facts, scope)
    log = facts["log"][-LOG_SHOWN:]
    rows = "".join(f"<tr><td>{html.escape(at)}</td><td style='text-align:left'>"
                   f"{html.escape(text)}</td></tr>" for at, text, *_ in log)
    table = f"<table>{rows}</table>" if rows else ""
    return still_html(f"{facts['title']} · {headline(facts)}", f"{picture}<ul>{said}</ul>{table}")


def headline(facts: dict[str, Any]) -> str:
    """Return the state of a run in a line."""
    pace = facts["speed"] if facts["speed"] == "max" else f"{facts['speed']:g}"
    judged = "valid" if facts["valid"] else "not valid"
    return (f"{facts['devices']:,} devices · {facts['state']} ×{pace} · "
            f"{clock_text(int(facts['time'] * 1e6))} · {judged}")


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [f"{facts['readings']:,} readings"]
    lines += [f"{one['url']}: {one['acked']:,} of {one['offered']:,} acknowledged"
              for one in facts["publishers"]]
    for one in facts["windows"]:
        if one["active"]:
            left = "" if one["left"] is None else f", {clock_text(int(one['left'] * 1e6))} left"
            lines.append(f"{one['name']} on {one['devices']:,} ({one['where']}){left}")
    if not facts["valid"]:
        lines.append(facts["quality"])
    return [*lines, *facts["errors"]["texts"]]


def picture_of(facts: dict[str, Any], scope: Scope) -> str:
    """Return the lines that a panel shows as SVG; empty before there are two points."""
    return picture(scope.ring.table(), COLUMNS, facts["windows"], scope.field, scope.unit)


def picture(
    table: npt.NDArray[np.float64], columns: Sequence[str], windows: Sequence[dict[str, Any]],
    field: str, unit: str,
) -> str:
    """Return the band of a field with the windows of faults as SVG."""
    middle = table[:, [columns.index(name) for name in ("q05", "q50", "q95")]]
    drawn = ~np.isnan(middle[:, 1]) if len(table) else np.zeros(0, dtype=np.bool_)
    if drawn.sum() < 2:
        return ""
    times, middle = table[drawn, 0], middle[drawn]
    low, high = float(middle.min()), float(middle.max())
    span = (high - low) or 1.0
    first, last = float(times[0]), float(times[-1])
    across = LEFT + (times - first) / ((last - first) or 1.0) * (WIDE - LEFT - 4)
    down = 6 + (high - middle) / span * (HIGH - BOTTOM - 12)
    band = _points(across, down[:, 2]) + " " + _points(across[::-1], down[::-1, 0])
    shades = "".join(_shade(one, first, last, i % 5) for i, one in enumerate(windows))
    said = f" in {unit}" if unit else ""
    caption = f"{field}{said}: 5 to 95 % of the devices, and their median"
    return (
        f"<div>{html.escape(caption)}</div>"
        f"<svg viewBox='0 0 {WIDE} {HIGH}' width='{WIDE}' height='{HIGH}' role='img' "
        f"aria-label='{html.escape(caption, quote=True)}' font-size='11' fill='currentColor'>"
        f"{shades}<polygon points='{band}' fill='#1e88e5' fill-opacity='0.25'/>"
        f"<polyline points='{_points(across, down[:, 1])}' fill='none' stroke='#1e88e5' "
        f"stroke-width='1.6'/>"
        f"<text x='2' y='14'>{high:.4g}</text><text x='2' y='{HIGH - BOTTOM - 4}'>{low:.4g}</text>"
        f"<text x='{LEFT}' y='{HIGH - 4}'>{clock_text(int(first * 1e6))}</text>"
        f"<text x='{WIDE - 4}' y='{HIGH - 4}' text-anchor='end'>{clock_text(int(last * 1e6))}"
        "</text></svg>")


def _points(across: npt.NDArray[np.float64], down: npt.NDArray[np.float64]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across.tolist(), down.tolist(), strict=True))


def _shade(one: dict[str, Any], first: float, last: float, row: int) -> str:
    begin, end = max(one["from"], first), min(last if one["to"] is None else one["to"], last)
    if end <= begin or last <= first:
        return ""
    left = LEFT + (begin - first) / (last - first) * (WIDE - LEFT - 4)
    right = LEFT + (end - first) / (last - first) * (WIDE - LEFT - 4)
    return (f"<rect x='{left:.1f}' y='4' width='{right - left:.1f}' height='{HIGH - BOTTOM - 6}' "
            f"fill='#d55e00' fill-opacity='0.18'/><text x='{left + 3:.1f}' y='{16 + 13 * row}'>"
            f"{html.escape(one['name'])}</text>")
