"""An audit as a picture: latency over time, windows of faults shaded, what did not come marked."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from iotsim.audit_match import (
    CORRUPTED,
    EXPECTED,
    LOST,
    REFUSED,
    SIMULATORS,
    UNKNOWN,
)
from iotsim.plotting.canvas import (
    BINS_MAX,
    COLORS,
    bins_of,
    cut,
    dress_time,
    edges_of,
    headline,
    legend,
    one_axes,
    times,
)
from iotsim.plotting.windows import Lane, Strip, draw_strips, headroom_pt, lanes_in, strips
from iotsim.readings import Ints

if TYPE_CHECKING:
    from iotsim.audit_tables import Table
    from iotsim.audit_verdict import Audit

MARKS = (
    ("withheld by a fault", "#7d8b99"), ("lost by the simulator", "#c81e1e"),
    ("lost by others", "#d7592a"), ("refused", "#b565a7"), ("unknown", "#a08a2c"),
    ("corrupted", "#2a84c4"), ("out of order", "#13a077"),
)


def plot_audit(
    audit: Audit, *, ax: Any = None, figsize: tuple[float, float] | None = None
) -> Any:
    """Draw an audit; see `Audit.plot`.

    Returns
    -------
    Axes

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    """
    table = audit.table
    place = one_axes(figsize) if ax is None else ax
    edges_us = _edges(table)
    known = _draw_latency(place, table, edges_us)
    _draw_marks(place, table)
    shown = _windows(table, edges_us)
    place.set_xlim(*times(edges_us[[0, -1]]))
    draw_strips(place, shown)
    _decorate(place, audit, edges_us, known=known)
    place.set_title(headline(f"{cut(audit.name, 40)} · {audit.verdict}", 96), loc="left",
                    fontsize="medium", pad=headroom_pt(shown))
    return place


def _edges(table: Table) -> Ints:
    if not len(table):
        return np.array([0, 1], dtype=np.int64)
    first_us, last_us = int(table.at_us.min()), int(table.at_us.max()) + 1
    per_device = len(table) // max(1, len(np.unique(table.slot)))
    bins = min(BINS_MAX, max(1, per_device), last_us - first_us)
    return edges_of(first_us, last_us, bins)


def _draw_latency(ax: Any, table: Table, edges_us: Ints) -> bool:
    rows = np.flatnonzero(~np.isnan(table.latency_s))
    if not len(rows):
        return False
    bins = bins_of(table.at_us[rows], edges_us)
    order = np.argsort(bins, kind="stable")
    latency_ms = np.maximum(table.latency_s[rows[order]] * 1e3, 1e-3)
    cuts = np.searchsorted(bins[order], np.arange(len(edges_us)))
    levels = np.full((3, len(edges_us) - 1), np.nan)
    for i, (low, high) in enumerate(pairwise(cuts.tolist())):
        if high > low:
            levels[:, i] = np.quantile(latency_ms[low:high], (0.5, 0.99, 1.0))
    middle = times((edges_us[:-1] + edges_us[1:]) // 2)
    alone: dict[str, Any] = {"marker": "o", "ms": 3} if len(middle) < 4 else {}
    ax.fill_between(middle, levels[0], levels[1], color=COLORS[0], alpha=0.25, lw=0,
                    label="median to p99")
    ax.plot(middle, levels[2], color=COLORS[5], lw=0.8, label="maximum", **alone)
    ax.plot(middle, levels[0], color=COLORS[0], lw=1.6, label="median", **alone)
    ax.set_yscale("log")
    return True


def _windows(table: Table, edges_us: Ints) -> list[Strip]:
    there = np.zeros(len(table.history.population), dtype=np.bool_)
    there[table.slot] = True

    def concerns(lane: Lane) -> int:
        return int(there[lane.slots].sum())

    return strips(lanes_in(table.history), int(edges_us[0]), int(edges_us[-1]), concerns)


def _draw_marks(ax: Any, table: Table) -> None:
    # Above the latencies, one line for each kind, so that none hides another.
    lost = table.code == LOST
    masks = (
        table.code == EXPECTED, lost & (table.whose == SIMULATORS),
        lost & (table.whose != SIMULATORS), table.code == REFUSED, table.code == UNKNOWN,
        table.code == CORRUPTED, table.overtaken,
    )
    level = 0.97
    for (name, color), mask in zip(MARKS, masks, strict=True):
        count = int(mask.sum())
        if count:
            at_us = np.unique(_thinned(table.at_us[mask]))
            ax.plot(times(at_us), np.full(len(at_us), level), "|", color=color, ms=7, mew=1.4,
                    transform=ax.get_xaxis_transform(), label=f"{count:,} {name}", clip_on=False)
            level -= 0.045


def _thinned(at_us: Ints, most: int = 2000) -> Ints:
    if len(at_us) <= most:
        return at_us
    first_us, last_us = int(at_us.min()), int(at_us.max()) + 1
    step_us = max(1, (last_us - first_us) // most)
    return first_us + (at_us - first_us) // step_us * step_us


def _decorate(ax: Any, audit: Audit, edges_us: Ints, *, known: bool) -> None:
    dress_time(ax, edges_us)
    since = {"stamp": "since the hand-over", "timestamp": "since it left its device"}
    ax.set_ylabel(f"latency, ms ({since.get(audit.clock, audit.clock)})" if known
                  else "latency is not known")
    if not known:
        ax.set_yticks([])
    else:
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.35)  # room for the marks
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    legend(ax)
