"""A field as colours: devices from top to bottom, time from left to right, bounded in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from iotsim.plotting.canvas import (
    BINS_MAX,
    COLORS,
    WIDTH_IN,
    Floats,
    bins_of,
    days,
    dress_time,
    edges_of,
    one_axes,
    plain,
    times,
)
from iotsim.plotting.source import Field, Source
from iotsim.plotting.windows import draw_strips, headroom_pt, lanes_in, strips
from iotsim.readings import Ints
from iotsim.units import Duration, duration_text

if TYPE_CHECKING:
    from iotsim.plotting.windows import Lane
    from iotsim.result import Result

ROWS_MAX = 100
NAMED_MAX = 25  # rows with the name of their device
STATES_MAX = 8
CHARS_MAX = 24
BELOW_PT = 38.0  # under the name of the time axis
OUTSIDE = 0.01  # of the cells on either side, so that an outlier does not hide all others


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """What is drawn: a cell for each row of devices and each bin of time.

    Attributes
    ----------
    slots : int64 array
        The devices, in the order of the fleet.
    each : int
        How many devices share a row.
    edges_us : int64 array
    """

    source: Source
    field: Field
    slots: Ints
    each: int
    edges_us: Ints

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return -(-len(self.slots) // self.each), len(self.edges_us) - 1

    @property
    def shared(self) -> bool:
        """Whether a cell may hold more than one reading."""
        return self.each > 1 or self.field.rows > self.shape[1] * len(self.slots)


def plot_heatmap(
    result: Result,
    field: str | None = None,
    *,
    device_type: str | None = None,
    last: Duration | None = None,
    ax: Any = None,
    figsize: tuple[float, float] | None = None,
) -> Any:
    """Draw a field as colours, devices over time; see `Pictures.heatmap`.

    Returns
    -------
    Axes

    Raises
    ------
    IotsimError
        If there is nothing to draw, the field is unknown, or matplotlib is not installed.
    """
    source = Source(result, device_type, last)
    found = source.fields(field)
    grid = _grid(source, next((one for one in found if one.kind == "number"), found[0]))
    shown = strips(lanes_in(result.history), source.since_us, source.until_us,
                   _concerns(grid.field))
    tall_in = max(2.2, min(5.0, 1.4 + 0.2 * grid.shape[0])) + 0.2 * -(-len(shown) // 3)
    place = one_axes((WIDTH_IN, tall_in) if figsize is None else figsize) if ax is None else ax
    holes = _draw_states(grid, place) if grid.field.states[:1] not in ([], ["false"]) else (
        _draw_numbers(grid, place))
    _decorate(grid, place, headroom_pt(shown), holes=holes)
    _explain(place, draw_strips(place, shown, shade=False))
    return place


def _concerns(field: Field) -> Any:
    def count(lane: Lane) -> int:
        named = not lane.fields or field.name in lane.fields
        return int(field.devices[lane.slots].sum()) if named else 0

    return count


def _grid(source: Source, field: Field) -> Grid:
    slots = np.flatnonzero(field.devices)
    bins = source.bins(field, BINS_MAX)
    return Grid(source, field, slots, -(-len(slots) // ROWS_MAX),
                edges_of(source.since_us, source.until_us, bins))


def _cells(grid: Grid) -> Any:
    # Yields the cell of each reading, by number, and its value.
    row = np.zeros(len(grid.field.devices), dtype=np.int64)
    row[grid.slots] = np.arange(len(grid.slots)) // grid.each
    columns = grid.shape[1]
    for slots, time_us, values in grid.source.pieces(grid.field):
        yield row[slots] * columns + bins_of(time_us, grid.edges_us), values


# -- cells --------------------------------------------------------------------------------------


def _mean(grid: Grid) -> Floats:
    size = grid.shape[0] * grid.shape[1]
    sums, counts = np.zeros(size), np.zeros(size)
    for cells, values in _cells(grid):
        sums += np.bincount(cells, weights=values, minlength=size)
        counts += np.bincount(cells, minlength=size)
    with np.errstate(invalid="ignore"):
        return (sums / counts).reshape(grid.shape)


def _draw_numbers(grid: Grid, ax: Any) -> bool:
    values, flags = _mean(grid), grid.field.kind == "state"
    there = values[np.isfinite(values)]
    low, high = (0.0, 1.0) if flags else np.quantile(there, (OUTSIDE, 1 - OUTSIDE)).tolist()
    if high <= low:
        low, high = low - 0.5, high + 0.5
    over = ("min" if there.min() < low else "", "max" if there.max() > high else "")
    extend = {("min", "max"): "both", ("", ""): "neither"}.get(over, "".join(over))
    mesh = _mesh(grid, ax, values, cmap="viridis", vmin=low, vmax=high)
    bar = ax.figure.colorbar(mesh, ax=ax, extend=extend, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    each = "mean " if grid.shared else ""
    name = plain(grid.field.name)
    what = f"{name} is true" if flags else f"{each}{name}"
    bar.set_label(f"{what}, {plain(grid.field.unit)}" if grid.field.unit else what)
    if flags:
        from matplotlib.ticker import PercentFormatter

        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    return bool(np.isnan(values).any())


def _draw_states(grid: Grid, ax: Any) -> bool:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    names, most = _most_frequent(grid)
    colors = COLORS[:len(names)]
    _mesh(grid, ax, most, cmap=ListedColormap(list(colors)), vmin=-0.5, vmax=len(names) - 0.5)
    ax.legend([Patch(color=color) for color in colors], [plain(name) for name in names],
              loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize="small",
              title="most frequent state" if grid.shared else None, title_fontsize="small",
              alignment="left")
    return bool(np.isnan(most).any())


def _most_frequent(grid: Grid) -> tuple[list[str], Floats]:
    # The rarer ones of many states share a colour.
    totals = np.zeros(len(grid.field.states))
    for _, codes in _cells(grid):
        totals += np.bincount(codes, minlength=len(totals))
    kept = np.flatnonzero(totals)
    names = [grid.field.states[i] for i in kept.tolist()]
    place = np.zeros(len(totals), dtype=np.int64)
    if len(names) > STATES_MAX:
        kept = np.argsort(-totals, kind="stable")[:STATES_MAX - 1]
        names = [*(grid.field.states[i] for i in kept.tolist()),
                 f"{len(names) - len(kept)} others"]
        place[:] = STATES_MAX - 1
    place[kept] = np.arange(len(kept))
    size = grid.shape[0] * grid.shape[1]
    counts = np.zeros((len(names), size))
    for cells, codes in _cells(grid):
        counts += np.bincount(place[codes] * size + cells,
                              minlength=counts.size).reshape(counts.shape)
    most = np.where(counts.sum(axis=0) > 0, counts.argmax(axis=0), np.nan)
    return names, most.reshape(grid.shape)


def _mesh(grid: Grid, ax: Any, values: Floats, **options: Any) -> Any:
    ax.set_facecolor("#8884")
    tops = np.minimum(np.arange(grid.shape[0] + 1) * grid.each, len(grid.slots))
    return ax.pcolormesh(times(grid.edges_us), tops + 0.5, np.ma.masked_invalid(values),
                         shading="flat", rasterized=True, **options)


# -- what stands around them --------------------------------------------------------------------


def _explain(ax: Any, faults: Sequence[Any]) -> None:
    # Below: on the right there may be the states, and a second legend would replace them.
    if not faults:
        return
    from matplotlib.transforms import ScaledTranslation

    states = ax.get_legend()
    ax.legend(handles=faults, loc="upper left", bbox_to_anchor=(0, 0), ncols=3, frameon=False,
              fontsize="small", borderaxespad=0,
              bbox_transform=ax.transAxes + ScaledTranslation(
                  0, -BELOW_PT / 72, ax.figure.dpi_scale_trans))
    if states is not None:
        ax.add_artist(states)
        states.set_clip_on(False)  # else it has no room in the layout


def _decorate(grid: Grid, ax: Any, pad_pt: float, *, holes: bool) -> None:
    n_devices = len(grid.slots)
    title = f"{plain(grid.field.name)} · {plain(grid.source.who(grid.field.devices), 60)}"
    ax.set_title(title, loc="left", fontsize="medium", pad=pad_pt)
    dress_time(ax, grid.edges_us)
    ax.grid(visible=False)
    ax.set_ylim(n_devices + 0.5, 0.5)
    if n_devices <= NAMED_MAX:
        ax.set_yticks(range(1, n_devices + 1),
                      [plain(grid.source.ids[slot], CHARS_MAX) for slot in grid.slots.tolist()],
                      fontsize="small")
        ax.tick_params(axis="y", length=0)
    else:
        from matplotlib.ticker import MaxNLocator, StrMethodFormatter

        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=2))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        shares = f", {grid.each:,} in each row" if grid.each > 1 else ""
        ax.set_ylabel(f"{n_devices:,} devices{shares}")
    said = [days(grid.edges_us)]
    if grid.field.rows > grid.shape[1] * n_devices:
        width_us = int(grid.edges_us[-1] - grid.edges_us[0]) // grid.shape[1]
        said.append(f"{_about(width_us)} in each column")
    if holes:
        said.append("grey: no reading")
    ax.set_xlabel(" · ".join(said))


def _about(width_us: int) -> str:
    if width_us >= 10_000_000:
        return duration_text(round(width_us / 1e6) * 1_000_000)
    return f"{width_us / 1e6:.3g} s"
