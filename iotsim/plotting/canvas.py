"""What stands around a picture: figures, a time axis, colours, legends.

Nothing global is touched: no rcParams, and pyplot only inside a notebook, whose cell then shows the
figure once and closes it.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from iotsim.errors import MissingExtra
from iotsim.readings import Ints
from iotsim.units import duration_text, instant_text

BINS_MAX = 180
WIDTH_IN, HEIGHT_IN, ROW_IN = 9.0, 3.4, 2.5
COLUMNS_FROM = 5  # so many fields stand in two columns
# Readable on white and on black, and to the colour-blind (after Okabe and Ito).
COLORS = ("#2a84c4", "#e08e0b", "#13a077", "#d7592a", "#b565a7", "#7d8b99", "#5cb3e6", "#a08a2c")
GREY = "#7d8b99"
TEXT_CHARS_MAX = 36
_NICE_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
           86400)

Floats = npt.NDArray[np.float64]


def cut(text: object, most: int) -> str:
    """Return a text with its middle left out if it is longer than that.

    Examples
    --------
    >>> cut("temperature_sensor-0001", 11)
    'tempe…-0001'
    """
    shown = str(text)
    if len(shown) <= most:
        return shown
    half = (most - 1) // 2
    return f"{shown[:most - 1 - half]}…{shown[len(shown) - half:]}"


def plain(text: object, most: int = TEXT_CHARS_MAX) -> str:
    """Return a text that matplotlib shows as it is: no formula, and not left out of legends."""
    shown = cut(text, most).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def headline(text: str, width: int = 88) -> str:
    """Return a title in at most two lines, shown as it is."""
    lines = textwrap.wrap(text, width, max_lines=2, placeholder=" …")
    return "\n".join(lines).replace("$", r"\$")


def times(time_us: Ints) -> npt.NDArray[np.datetime64]:
    """Return instants as matplotlib takes them."""
    return np.asarray(time_us, dtype=np.int64).view("datetime64[us]")


def edges_of(since_us: int, until_us: int, bins: int) -> Ints:
    """Return the edges of at most so many bins of equal width; each has an instant at least."""
    bins = max(1, min(bins, until_us - since_us))
    span_us = until_us - since_us
    return np.array([since_us + -(-i * span_us // bins) for i in range(bins + 1)], dtype=np.int64)


def bins_of(time_us: Ints, edges_us: Ints) -> npt.NDArray[np.intp]:
    """Return the bin of each instant; those outside are in the first or the last."""
    bins, since_us = len(edges_us) - 1, int(edges_us[0])
    span_us = int(edges_us[-1]) - since_us
    if span_us < 2**54:
        found = (time_us - since_us) * bins // span_us
    else:
        found = np.searchsorted(edges_us, time_us, side="right") - 1
    return np.clip(found, 0, bins - 1)


# -- axes ---------------------------------------------------------------------------------------


def dress_time(ax: Any, edges_us: Ints) -> None:
    """Give an Axes a time axis from the first edge to the last, in UTC, and a light grid."""
    dates = import_module("matplotlib.dates")
    locator = dates.AutoDateLocator(tz="UTC", minticks=4, maxticks=8)
    for unit in (dates.MINUTELY, dates.SECONDLY):
        locator.intervald[unit] = [1, 2, 5, 10, 15, 30]
    ax.xaxis.set_major_locator(locator)
    formatter = dates.ConciseDateFormatter(locator, tz="UTC", show_offset=False)
    formatter.formats[5], formatter.zero_formats[5] = "%H:%M:%S.%f", "%H:%M:%S"
    ax.xaxis.set_major_formatter(formatter)
    ax.set_xlim(*times(edges_us[[0, -1]]))
    ax.set_xlabel(days(edges_us))
    _lighten(ax)


def dress_clock(ax: Any, length_us: int, said: str) -> None:
    """Give an Axes an axis of simulated seconds since a start, from 0 to a length."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    length_s = length_us / 1e6
    most_s = -(-length_s // (8 * _NICE_S[-1])) * _NICE_S[-1]
    step_s = next((float(step) for step in _NICE_S if length_s / step <= 8), most_s)
    if length_s >= 2:
        ax.xaxis.set_major_locator(MultipleLocator(step_s))
    ax.xaxis.set_major_formatter(FuncFormatter(
        lambda value, _: duration_text(round(value * 1e6)) if value else "0"))
    ax.set_xlim(0, length_s)
    ax.set_xlabel(said)
    _lighten(ax)


def _lighten(ax: Any) -> None:
    ax.grid(visible=True, alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def days(edges_us: Ints) -> str:
    """Return the days of a time axis, with their zone."""
    first, last = (instant_text(int(us))[:10] for us in (edges_us[0], edges_us[-1] - 1))
    return f"{first}, UTC" if first == last else f"{first} to {last}, UTC"


def legend(ax: Any, **options: Any) -> None:
    """Put a legend to the right of an Axes, if it has anything to say."""
    handles, labels = ax.get_legend_handles_labels()
    if labels:
        ax.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False,
                  fontsize="small", **options)


def colors_of(color: Any) -> Sequence[Any]:
    """Return the colours that somebody asked for; ours if nobody did."""
    if color is None:
        return COLORS
    if isinstance(color, (list, np.ndarray)) or (
        isinstance(color, tuple) and color and not isinstance(color[0], (int, float))
    ):
        return list(color)
    return (color,)


# -- figures ------------------------------------------------------------------------------------


def one_axes(figsize: tuple[float, float] | None = None) -> Any:
    """Return an Axes on a figure of its own."""
    return many_axes(1, figsize)[0]


def many_axes(count: int, figsize: tuple[float, float] | None) -> list[Any]:
    """Return so many Axes on one figure."""
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
