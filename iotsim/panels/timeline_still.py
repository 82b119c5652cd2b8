"""A timeline as SVG, for pages where no widget lives."""

from __future__ import annotations

import html
from typing import Any

from iotsim.plotting.windows import color_of
from iotsim.units import duration_text

WIDE, LEFT, RIGHT = 760, 190, 130
LANE, HALF = 20, 5
GREY = "#7d8b99"
CHARS = 26


def lanes_svg(facts: dict[str, Any]) -> str:
    """Return the lanes of a timeline as SVG, escaped; empty if there are none."""
    lanes, end_s = facts["lanes"], facts["end"]
    if not lanes or not end_s:
        return ""
    high = LANE * len(lanes) + 22
    colors = color_of([lane["name"] for lane in lanes if lane["fault"]])
    parts = [_lane(lane, i, end_s, colors.get(lane["name"], GREY)) for i, lane in enumerate(lanes)]
    ends = (f"<text x='{LEFT}' y='{high - 6}'>0</text><text x='{WIDE - RIGHT}' y='{high - 6}' "
            f"text-anchor='end'>{duration_text(int(end_s * 1e6))}</text>")
    return (f"<svg viewBox='0 0 {WIDE} {high}' width='{WIDE}' height='{high}' role='img' "
            f"aria-label='timeline' font-size='11' fill='currentColor'>{''.join(parts)}{ends}"
            "</svg>")


def _lane(lane: dict[str, Any], i: int, end_s: float, color: str) -> str:
    def across(at_s: float) -> float:
        return LEFT + min(1.0, at_s / end_s) * (WIDE - LEFT - RIGHT)

    middle = LANE * i + LANE / 2
    title = f"{lane['name']} · {lane['where']}" if lane["where"] else lane["name"]
    bars = "".join(
        f"<rect x='{across(begin):.1f}' y='{middle - HALF}' height='{2 * HALF}' rx='2' "
        f"width='{max(2.0, across(end) - across(begin)):.1f}' fill='{color}'/>"
        for begin, end, _ in lane["bars"])
    marks = "".join(f"<circle cx='{across(at):.1f}' cy='{middle}' r='3.5' fill='{GREY}'/>"
                    for at in lane["marks"])
    return (f"<text x='4' y='{middle + 4}'>{_cut(title)}</text>"
            f"<line x1='{LEFT}' x2='{WIDE - RIGHT}' y1='{middle}' y2='{middle}' "
            f"stroke='#8884'/>{bars}{marks}"
            f"<text x='{WIDE - RIGHT + 8}' y='{middle + 4}'>{_cut(lane['right'], 18)}</text>")


def _cut(text: str, most: int = CHARS) -> str:
    return html.escape(text if len(text) <= most else f"{text[: most - 1]}…")
