"""Readings as pictures: quantile bands for a fleet, lines for a few devices, shares for states.

A fleet is never drawn as one line per device. Nothing global is touched: no rcParams, and pyplot
only inside a notebook, whose cell then shows the figure once and closes it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue, MissingExtra
from iotsim.readings import RESERVED
from iotsim.units import Duration, instant_text

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.result import Result

LINES_MAX = 8
BINS_MAX = 180
STATES_MAX = 12
WIDTH_IN, HEIGHT_IN, ROW_IN = 9.0, 3.4, 2.5
COLUMNS_FROM = 5  # so many fields stand in two columns
# Readable on white and on black, and to the colour-blind (after Okabe and Ito).
COLORS = ("#2a84c4", "#e08e0b", "#13a077", "#d7592a", "#b565a7", "#7d8b99", "#5cb3e6", "#a08a2c")
QUANTILES = (0.05, 0.25, 0.50, 0.75, 0.95)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """What is drawn of one field: its readings, over a window cut into bins of equal width."""

    name: str
    unit: str
    kind: str
    table: pd.DataFrame
    edges_us: npt.NDArray[np.int64]

    @property
    def n_devices(self) -> int:
        """How many devices report the field."""
        return int(self.table["device_id"].nunique())

    @property
    def bins(self) -> npt.NDArray[np.intp]:
        """The bin of each reading."""
        found = np.searchsorted(self.edges_us, _us(self.table), side="right") - 1
        return np.clip(found, 0, len(self.edges_us) - 2)


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

    Text and boolean fields are shown as the share of readings in each state.

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
    table = result.frame(device_type=device_type, fields=_listed(fields), last=last)
    sheets = _sheets(result, table, fields)
    if ax is not None and len(sheets) > 1:
        raise BadValue("ax", type(ax).__name__, f"is one Axes for {len(sheets)} fields",
                       f"Name one field, such as plot({sheets[0].name!r}, ax=ax).")
    axes = [ax] if ax is not None else _axes(len(sheets), figsize)
    colors = _colors(color)
    for sheet, place in zip(sheets, axes, strict=True):
        _draw(sheet, place, colors)
        _decorate(sheet, place)
    if ax is None:
        axes[0].figure.suptitle(_headline(result, table), fontsize="medium")
        _tidy(axes)
    return axes[0] if len(axes) == 1 else np.array(axes, dtype=object)


def _listed(fields: Iterable[str] | str | None) -> list[str] | None:
    if fields is None:
        return None
    names = [fields] if isinstance(fields, str) else list(dict.fromkeys(fields))
    if not names:
        raise BadValue("fields", fields, "names none", "Leave it out to draw all.")
    return names


# -- what is drawn ------------------------------------------------------------------------------


def _sheets(result: Result, table: pd.DataFrame, fields: Any) -> list[Sheet]:
    since_us, until_us = _window(result, table)
    other = {*RESERVED, *(name for group in result.groups for name in group.labels)}
    names = [name for name in table.columns if name not in other]
    units = _units(result)
    found = []
    for name in names:
        kind = _kind(table[name])
        rows = table.loc[table[name].notna(), ["time", "device_id", "device_type", name]]
        if kind == "json":
            if fields is None:
                continue
            raise BadValue("fields", name, "holds lists or mixed values",
                           "Draw a field of numbers, text or true/false.")
        if len(rows):
            edges_us = _edges(rows, since_us, until_us)
            found.append(Sheet(name, units.get(name, ""), kind, rows, edges_us))
        elif fields is not None:
            raise BadValue("fields", name, "holds no readings here", "Choose another one.")
    if not found:
        raise BadValue("result", result.fleet.name, "holds no readings that can be drawn",
                       "Run it for longer, or with capture='all'.")
    return found


def _kind(values: pd.Series[Any]) -> str:
    text = str(values.dtype)
    if text in ("category", "bool", "boolean"):
        return "state"
    return "json" if text == "object" else "number"


def _units(result: Result) -> dict[str, str]:
    found: dict[str, dict[str, None]] = {}
    for member in result.fleet.members:
        for field in member.profile.fields if member.profile is not None else ():
            if field.unit is not None:
                found.setdefault(field.name, {})[field.unit] = None
    return {name: " or ".join(units) for name, units in found.items()}


def _us(table: pd.DataFrame) -> npt.NDArray[np.int64]:
    return np.asarray(table["time"].dt.tz_localize(None).to_numpy("datetime64[us]")
                      .view(np.int64))


def _window(result: Result, table: pd.DataFrame) -> tuple[int, int]:
    # From the start, or from the first reading where those before it are not held.
    if not len(table):
        return result.start_us, result.end_us
    first_us, last_us = _us(table)[[0, -1]].tolist()
    until_us = max(result.end_us, last_us + 1)
    near = first_us - result.start_us < 0.05 * (until_us - first_us)
    return (min(first_us, result.start_us) if near else first_us), until_us


def _edges(rows: pd.DataFrame, since_us: int, until_us: int) -> npt.NDArray[np.int64]:
    # A bin is never narrower than the time between two readings of a device.
    per_device = len(rows) // max(1, rows["device_id"].nunique())
    bins = min(BINS_MAX, max(1, per_device), until_us - since_us)
    return np.linspace(since_us, until_us, bins + 1).astype(np.int64)


# -- how it is drawn ----------------------------------------------------------------------------


def _draw(sheet: Sheet, ax: Any, colors: Sequence[Any]) -> None:
    if sheet.kind == "state":
        _draw_shares(sheet, ax, colors)
    elif sheet.n_devices <= LINES_MAX:
        _draw_lines(sheet, ax, colors)
    else:
        _draw_bands(sheet, ax, colors[0])


def _draw_lines(sheet: Sheet, ax: Any, colors: Sequence[Any]) -> None:
    groups = sheet.table.groupby("device_id", observed=True)
    for i, (device, rows) in enumerate(groups):
        ax.plot(_times(_us(rows)), rows[sheet.name].to_numpy(np.float64), lw=1.1,
                color=colors[i % len(colors)], label=str(device))
    if sheet.n_devices > 1:
        _legend(ax)


def _draw_bands(sheet: Sheet, ax: Any, color: Any) -> None:
    levels = _quantiles(sheet)
    middle_us = (sheet.edges_us[:-1] + sheet.edges_us[1:]) // 2
    times = _times(np.array([sheet.edges_us[0], *middle_us, sheet.edges_us[-1]]))
    for low, high, alpha, label in ((0, 4, 0.20, "5–95 %"), (1, 3, 0.35, "25–75 %")):
        ax.fill_between(times, levels[low], levels[high], color=color, alpha=alpha, lw=0,
                        label=label)
    ax.plot(times, levels[2], color=color, lw=1.6, label="median")
    _legend(ax)


def _quantiles(sheet: Sheet) -> Floats:
    # One row per quantile; the outer bins reach to the edges. A bin without readings is a gap.
    values = sheet.table[sheet.name].to_numpy(np.float64)
    bins = sheet.bins
    cuts = np.searchsorted(bins, np.arange(len(sheet.edges_us)))  # rows are ordered by time
    found = np.full((len(QUANTILES), len(cuts) - 1), np.nan)
    for i, (low, high) in enumerate(pairwise(cuts.tolist())):
        if high > low:
            found[:, i] = np.quantile(values[low:high], QUANTILES)
    return np.concatenate([found[:, :1], found, found[:, -1:]], axis=1)


def _draw_shares(sheet: Sheet, ax: Any, colors: Sequence[Any]) -> None:
    states, shares = _shares(sheet)
    floor = np.zeros(shares.shape[1])
    edges = _times(sheet.edges_us)
    for i, state in enumerate(states):
        top = floor + shares[i]
        ax.fill_between(edges, [*floor, floor[-1]], [*top, top[-1]], step="post", lw=0,
                        color=colors[i % len(colors)], alpha=0.85, label=state)
        floor = top
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(_ticker().PercentFormatter(1.0, symbol=" %"))
    _legend(ax)


def _shares(sheet: Sheet) -> tuple[list[str], Floats]:
    values, bins = sheet.table[sheet.name], sheet.bins
    if str(values.dtype) == "category":
        names = [str(name) for name in values.cat.categories]
        codes = values.cat.codes.to_numpy(np.int64)
    else:
        names, codes = ["false", "true"], values.to_numpy(np.int64)
    counts = np.zeros((len(names), len(sheet.edges_us) - 1))
    np.add.at(counts, (codes, bins), 1.0)
    kept = np.flatnonzero(counts.sum(axis=1))
    names, counts = [names[i] for i in kept], counts[kept]
    if len(names) > STATES_MAX:
        order = np.argsort(-counts.sum(axis=1), kind="stable")
        rest = order[STATES_MAX - 1 :]
        names = [*(names[i] for i in order[: STATES_MAX - 1]), f"{len(rest)} others"]
        counts = np.vstack([counts[order[: STATES_MAX - 1]], counts[rest].sum(axis=0)])
    with np.errstate(invalid="ignore"):
        return names, counts / counts.sum(axis=0)


def _times(time_us: npt.NDArray[np.int64]) -> npt.NDArray[np.datetime64]:
    return np.asarray(time_us, dtype=np.int64).view("datetime64[us]")


# -- what stands around it ----------------------------------------------------------------------


def _decorate(sheet: Sheet, ax: Any) -> None:
    ax.set_title(f"{sheet.name} · {_who(sheet.table)}", loc="left", fontsize="medium")
    ax.set_ylabel("share of devices" if sheet.kind == "state" else sheet.unit or sheet.name)
    dress_time(ax, sheet.edges_us)
    ax.margins(y=0.05)
    ax.set_axisbelow(sheet.kind != "state")


def dress_time(ax: Any, edges_us: npt.NDArray[np.int64]) -> None:
    """Give an Axes a time axis from the first edge to the last, and a light grid."""
    dates = _dates()
    locator = dates.AutoDateLocator(minticks=4, maxticks=8)
    for unit in (dates.MINUTELY, dates.SECONDLY):
        locator.intervald[unit] = [1, 2, 5, 10, 15, 30]
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(
        dates.ConciseDateFormatter(locator, tz="UTC", show_offset=False)
    )
    ax.set_xlim(*_times(edges_us[[0, -1]]))
    ax.set_xlabel(_days(edges_us))
    ax.grid(visible=True, alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _days(edges_us: npt.NDArray[np.int64]) -> str:
    first, last = (instant_text(int(us))[:10] for us in (edges_us[0], edges_us[-1] - 1))
    return f"{first}, UTC" if first == last else f"{first} to {last}, UTC"


def _who(table: pd.DataFrame) -> str:
    count = int(table["device_id"].nunique())
    used = table["device_type"].cat.remove_unused_categories()
    kinds = [str(kind) for kind in used.cat.categories]  # in the order of the fleet
    if len(kinds) == 1:
        return f"{count:,} × {kinds[0]}"
    more = f" and {len(kinds) - 3} more" if len(kinds) > 3 else ""
    return f"{count:,} devices ({', '.join(kinds[:3])}{more})"


def _headline(result: Result, table: pd.DataFrame) -> str:
    name = result.fleet.name
    return f"{name}: {len(table):,} readings of {_who(table)}".replace("$", r"\$")


def _tidy(axes: Sequence[Any]) -> None:
    # What stands twice on a page is said once: the days below, the same legend above.
    seen = set()
    for i, ax in enumerate(axes):
        legend = ax.get_legend()
        if legend is not None:
            labels = tuple(text.get_text() for text in legend.get_texts())
            if labels in seen:
                legend.remove()
            seen.add(labels)
        columns = 2 if len(axes) >= COLUMNS_FROM else 1
        if i + columns < len(axes):
            ax.set_xlabel("")


def _legend(ax: Any) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")


def _colors(color: Any) -> Sequence[Any]:
    if color is None:
        return COLORS
    if isinstance(color, (list, np.ndarray)) or (
        isinstance(color, tuple) and color and not isinstance(color[0], (int, float))
    ):
        return list(color)
    return (color,)


# -- matplotlib ---------------------------------------------------------------------------------


def _dates() -> Any:
    import matplotlib.dates

    return matplotlib.dates


def _ticker() -> Any:
    import matplotlib.ticker

    return matplotlib.ticker


def one_axes(figsize: tuple[float, float] | None = None) -> Any:
    """Return an Axes on a figure of its own."""
    return _axes(1, figsize)[0]


def _axes(count: int, figsize: tuple[float, float] | None) -> list[Any]:
    columns = 2 if count >= COLUMNS_FROM else 1
    rows = -(-count // columns)
    if figsize is None:
        figsize = (WIDTH_IN * (1.5 if columns == 2 else 1.0),
                   HEIGHT_IN if count == 1 else 0.6 + ROW_IN * rows)
    figure = _figure(figsize)
    return [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _figure(figsize: tuple[float, float]) -> Any:
    try:
        if _in_notebook():
            # The inline back end shows what pyplot knows when the cell ends, and closes it.
            from matplotlib import pyplot

            return pyplot.figure(figsize=figsize, layout="constrained")
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtra("plot()", "matplotlib", "lab") from None
    return Figure(figsize=figsize, layout="constrained")


def _in_notebook() -> bool:
    # Only a kernel's shell has one; a plain IPython prompt and a script have not.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None
