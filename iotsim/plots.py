"""Readings as pictures: quantile bands for a fleet, lines for a few devices, shares for states.

A fleet is never drawn as one line per device. Above and behind the readings stand the windows of
the faults that their devices had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue
from iotsim.plotting.canvas import (
    BINS_MAX,
    COLUMNS_FROM,
    Floats,
    bins_of,
    colors_of,
    cut,
    dress_time,
    edges_of,
    headline,
    legend,
    many_axes,
    plain,
    times,
)
from iotsim.plotting.source import Field, Source
from iotsim.plotting.windows import Strip, draw_strips, headroom_pt, lanes_in, strips
from iotsim.readings import Ints
from iotsim.units import Duration

if TYPE_CHECKING:
    from iotsim.plotting.windows import Lane
    from iotsim.result import Result

LINES_MAX = 8
LINE_POINTS_MAX = 4000  # more are drawn as the lowest and the highest of each stretch
STATES_MAX = 12
ENTRY_IN = 0.22
QUANTILES = (0.05, 0.25, 0.50, 0.75, 0.95)


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """What is drawn of one field, over a window cut into bins of equal width."""

    field: Field
    source: Source
    edges_us: Ints
    faults: list[Strip]

    @property
    def is_state(self) -> bool:
        """Whether it is drawn as shares."""
        return self.field.kind == "state"


def plot_result(
    result: Result,
    fields: Iterable[str] | str | None = None,
    *,
    device_type: str | None = None,
    last: Duration | None = None,
    ax: Any = None,
    figsize: tuple[float, float] | None = None,
    color: Any = None,
) -> Any:
    """Draw readings over time: up to eight devices as lines, more as quantile bands.

    Text and boolean fields are shown as the share of readings in each state. Windows of faults on
    these devices are shaded.

    Parameters
    ----------
    result : Result
    fields : str or iterable of str, optional
        What to draw; every field if not given.
    device_type : str, optional
        Only devices of this type.
    last : duration, optional
        Only the last stretch of simulated time.
    ax : Axes, optional
        Where to draw one field.
    figsize : (float, float), optional
        Width and height in inches.
    color : color, or sequence of them, optional
        Of the band; a sequence gives lines and states their own.

    Returns
    -------
    Axes, or array of Axes
        One Axes for one field.

    Raises
    ------
    IotsimError
        If there is nothing to draw, a field is unknown, or matplotlib is not installed.
    """
    source = Source(result, device_type, last)
    found, lanes = source.fields(fields), lanes_in(result.history)
    if ax is not None and len(found) > 1:
        raise BadValue("ax", type(ax).__name__, f"is one Axes for {len(found)} fields",
                       f"Name one field, such as plot({found[0].name!r}, ax=ax).")
    axes = [ax] if ax is not None else many_axes(len(found), figsize)
    colors = colors_of(color)
    for field, place in zip(found, axes, strict=True):
        sheet = _sheet(source, field, lanes)
        _draw(sheet, place, colors)
        _decorate(sheet, place)
    if ax is None:
        who = f"{source.rows:,} readings of {cut(source.who(source.devices), 60)}"
        axes[0].figure.suptitle(headline(f"{cut(result.fleet.name, 40)}: {who}", 110),
                                fontsize="medium")
        _tidy(axes)
        if figsize is None:
            _heighten(axes)
    return axes[0] if len(axes) == 1 else np.array(axes, dtype=object)


def _sheet(source: Source, field: Field, lanes: Sequence[Lane]) -> Sheet:
    edges_us = edges_of(source.since_us, source.until_us, source.bins(field, BINS_MAX))

    def concerns(lane: Lane) -> int:
        if lane.fields and field.name not in lane.fields:
            return 0
        return int(field.devices[lane.slots].sum())

    shown = strips(lanes, source.since_us, source.until_us, concerns)
    return Sheet(field, source, edges_us, shown)


# -- how it is drawn ----------------------------------------------------------------------------


def _draw(sheet: Sheet, ax: Any, colors: Sequence[Any]) -> None:
    ax.set_xlim(*times(sheet.edges_us[[0, -1]]))
    if sheet.is_state:
        _draw_shares(sheet, ax, colors)
    elif sheet.field.n_devices <= LINES_MAX:
        _draw_lines(sheet, ax, colors)
    else:
        _draw_bands(sheet, ax, colors[0])


def _draw_lines(sheet: Sheet, ax: Any, colors: Sequence[Any]) -> None:
    slots, time_us, values = sheet.source.whole(sheet.field)
    for i, slot in enumerate(np.flatnonzero(sheet.field.devices).tolist()):
        mine = slots == slot
        at_us, drawn = _thinned(*_broken(time_us[mine], values[mine]))
        alone: dict[str, Any] = {"marker": "o", "ms": 3} if len(at_us) < 3 else {}
        ax.plot(times(at_us), drawn, lw=1.1, color=colors[i % len(colors)],
                label=plain(sheet.source.ids[slot]), **alone)
    if sheet.field.n_devices > 1 or sheet.faults:
        draw_strips(ax, sheet.faults)
        legend(ax)


def _broken(time_us: Ints, values: Floats) -> tuple[Ints, Floats]:
    # A line is not drawn through a stretch without readings.
    if len(time_us) < 4:
        return time_us, values
    apart_us = np.diff(time_us)
    gaps = np.flatnonzero(apart_us > 4 * np.quantile(apart_us, 0.9)) + 1
    return np.insert(time_us, gaps, time_us[gaps] - 1), np.insert(values, gaps, np.nan)


def _thinned(time_us: Ints, values: Floats) -> tuple[Ints, Floats]:
    if len(time_us) <= LINE_POINTS_MAX:
        return time_us, values
    cuts = np.linspace(0, len(values), LINE_POINTS_MAX // 2 + 1).astype(np.int64)
    low, high = np.nan_to_num(values, nan=np.inf), np.nan_to_num(values, nan=-np.inf)
    kept = [place for begin, end in pairwise(cuts.tolist())
            for place in {begin + int(low[begin:end].argmin()),
                          begin + int(high[begin:end].argmax())}]
    rows = np.union1d(np.array(kept, dtype=np.int64), np.flatnonzero(np.isnan(values)))
    return time_us[rows], values[rows]


def _draw_bands(sheet: Sheet, ax: Any, color: Any) -> None:
    levels = _quantiles(sheet)
    middle_us = (sheet.edges_us[:-1] + sheet.edges_us[1:]) // 2
    at = times(np.array([sheet.edges_us[0], *middle_us, sheet.edges_us[-1]]))
    for low, high, alpha, label in ((0, 4, 0.20, "5–95 %"), (1, 3, 0.35, "25–75 %")):
        ax.fill_between(at, levels[low], levels[high], color=color, alpha=alpha, lw=0, label=label)
    ax.plot(at, levels[2], color=color, lw=1.6, label="median")
    draw_strips(ax, sheet.faults)
    legend(ax)


def _quantiles(sheet: Sheet) -> Floats:
    # One row per quantile; the outer bins reach to the edges. A bin without readings is a gap.
    n_bins = len(sheet.edges_us) - 1
    parts: list[list[npt.NDArray[Any]]] = [[] for _ in range(n_bins)]
    for _, time_us, values in sheet.source.pieces(sheet.field):
        bins = bins_of(time_us, sheet.edges_us).astype(np.uint8)
        order = np.argsort(bins, kind="stable")
        cuts = np.searchsorted(bins[order], np.arange(n_bins + 1))
        ordered = values[order]
        for i, (low, high) in enumerate(pairwise(cuts.tolist())):
            if high > low:
                parts[i].append(ordered[low:high])
    found = np.full((len(QUANTILES), n_bins), np.nan)
    for i, part in enumerate(parts):
        if part:
            found[:, i] = np.quantile(np.concatenate(part), QUANTILES)
    return np.concatenate([found[:, :1], found, found[:, -1:]], axis=1)


def _draw_shares(sheet: Sheet, ax: Any, colors: Sequence[Any]) -> None:
    from matplotlib.ticker import PercentFormatter

    states, shares = _shares(sheet)
    floor = np.zeros(shares.shape[1])
    edges = times(sheet.edges_us)
    for i, state in enumerate(states):
        top = floor + shares[i]
        ax.fill_between(edges, [*floor, floor[-1]], [*top, top[-1]], step="post", lw=0,
                        color=colors[i % len(colors)], alpha=0.85, label=plain(state),
                        hatch="" if i < len(colors) else "//")
        floor = top
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    draw_strips(ax, sheet.faults, shade=False)
    legend(ax)


def _shares(sheet: Sheet) -> tuple[list[str], Floats]:
    names, n_bins = sheet.field.states, len(sheet.edges_us) - 1
    counts = np.zeros((len(names), n_bins))
    for _, time_us, codes in sheet.source.pieces(sheet.field):
        cells = codes.astype(np.int64) * n_bins + bins_of(time_us, sheet.edges_us)
        counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
    kept = np.flatnonzero(counts.sum(axis=1))
    names, counts = [names[i] for i in kept], counts[kept]
    if len(names) > STATES_MAX:
        order = np.argsort(-counts.sum(axis=1), kind="stable")
        rest = order[STATES_MAX - 1 :]
        names = [*(names[i] for i in order[: STATES_MAX - 1]), f"{len(rest)} others"]
        counts = np.vstack([counts[order[: STATES_MAX - 1]], counts[rest].sum(axis=0)])
    with np.errstate(invalid="ignore"):
        return names, counts / counts.sum(axis=0)


# -- what stands around it ----------------------------------------------------------------------


def _decorate(sheet: Sheet, ax: Any) -> None:
    field = sheet.field
    title = f"{plain(field.name)} · {plain(sheet.source.who(field.devices), 80)}"
    ax.set_title(title, loc="left", fontsize="medium", pad=headroom_pt(sheet.faults))
    ax.set_ylabel("share of devices" if sheet.is_state else plain(field.unit or field.name))
    dress_time(ax, sheet.edges_us)
    ax.margins(y=0.05)
    ax.set_axisbelow(not sheet.is_state)


def _heighten(axes: Sequence[Any]) -> None:
    # No legend is higher than its Axes: it would hide what stands below.
    most = max((len(ax.get_legend().get_texts()) for ax in axes if ax.get_legend()), default=0)
    rows = axes[0].get_gridspec().nrows
    width_in, height_in = axes[0].figure.get_size_inches()
    axes[0].figure.set_size_inches(width_in, max(height_in, (1.2 + ENTRY_IN * most) * rows))


def _tidy(axes: Sequence[Any]) -> None:
    # What stands twice on a page is said once: the days below, the same legend above.
    seen = set()
    for i, ax in enumerate(axes):
        told = ax.get_legend()
        if told is not None:
            labels = tuple(text.get_text() for text in told.get_texts())
            if labels in seen:
                told.remove()
            seen.add(labels)
        columns = 2 if len(axes) >= COLUMNS_FROM else 1
        if i + columns < len(axes):
            ax.set_xlabel("")


