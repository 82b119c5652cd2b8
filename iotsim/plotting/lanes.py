"""Lanes of a timeline: a bar for each fault on each selection, words on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from iotsim.plotting.canvas import WIDTH_IN, one_axes, plain

LANES_MAX = 24
LEFT_CHARS_MAX, RIGHT_CHARS_MAX = 40, 44
LANE_IN, HEAD_IN = 0.28, 1.05
HALF = 0.34  # of a bar's height
LEAST = 0.18  # what one device of thousands is drawn as


@dataclass(slots=True)
class Row:
    """One lane as it is drawn, in units of the x axis.

    Attributes
    ----------
    left, right : str
        What it is called, and what is known of it.
    color : str
    bars : list of (from, to, height)
        The height from 0 to 1.
    marks : list of float
        Moments without a length.
    open : bool
        Whether it goes on after the end.
    """

    left: str
    right: str
    color: str
    bars: list[tuple[float, float, float]] = field(default_factory=list)
    marks: list[float] = field(default_factory=list)
    open: bool = False


def lanes_axes(count: int, figsize: tuple[float, float] | None) -> Any:
    """Return an Axes on a figure that is as high as so many lanes need."""
    return one_axes((WIDTH_IN, HEAD_IN + LANE_IN * max(2, count)) if figsize is None else figsize)


def draw_lanes(ax: Any, rows: Sequence[Row]) -> None:
    """Draw lanes from top to bottom."""
    from matplotlib.collections import PolyCollection

    for y, row in enumerate(rows):
        boxes = []
        for begin, end, height in row.bars:
            low, high = y + HALF, y + HALF - 2 * HALF * (LEAST + (1 - LEAST) * height)
            boxes.append([(begin, low), (begin, high), (end, high), (end, low)])
        ax.add_collection(PolyCollection(boxes, facecolors=[row.color], edgecolors=[row.color],
                                         linewidths=0.8), autolim=False)
        if row.marks:
            ax.plot(row.marks, [y] * len(row.marks), "D", color=row.color, ms=4.5, clip_on=False,
                    ls="none")
        if row.open and row.bars:
            ax.plot(row.bars[-1][1], y, ">", color=row.color, ms=6, clip_on=False)
        ax.annotate(plain(row.right, RIGHT_CHARS_MAX), (1.0, y), (10, 0),
                    xycoords=ax.get_yaxis_transform(), textcoords="offset points", va="center",
                    fontsize="small", annotation_clip=False)
    ax.set_ylim(max(1, len(rows)) - 0.45, -0.55)
    ax.set_yticks(range(len(rows)), [plain(row.left, LEFT_CHARS_MAX) for row in rows],
                  fontsize="small")
    ax.tick_params(axis="y", length=0)


def heights(counts: Sequence[int], most: int) -> list[float]:
    """Return bars' heights: the share of the devices that there are."""
    return [min(1.0, count / max(1, most)) for count in counts]
