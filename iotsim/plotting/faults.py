"""The faults of a result as a timeline: which, on whom, when, and how much they changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from iotsim.plotting.canvas import GREY, cut, dress_time, headline, times
from iotsim.plotting.lanes import LANES_MAX, Row, draw_lanes, heights, lanes_axes
from iotsim.plotting.windows import Lane, color_of, lanes_in
from iotsim.readings import Ints, Readings
from iotsim.units import clock_text

if TYPE_CHECKING:
    from iotsim.result import Result


@dataclass(slots=True)
class _Share:
    # Readings of a lane's devices while it was active, and those of them that it changed.
    active: int = 0
    hit: int = 0

    def said(self) -> str:
        if not self.active:
            return ""
        percent = 100 * self.hit / self.active
        digits = 0 if percent >= 10 or percent == 0 else 1 if percent >= 1 else 2
        return f"{percent:.{digits}f} %"


def plot_faults(
    result: Result, *, ax: Any = None, figsize: tuple[float, float] | None = None
) -> Any:
    """Draw the faults of a result over time; see `Pictures.faults`.

    Returns
    -------
    Axes

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    """
    since_us, until_us = result.start_us, max(result.end_us, result.start_us + 1)
    lanes = _chief(lanes_in(result.history), since_us, until_us)
    shares, together = _shares(result, lanes)
    colors = color_of([lane.name for lane in lanes if lane.where])
    place = lanes_axes(len(lanes), figsize) if ax is None else ax
    place.set_xlim(*times(np.array([since_us, until_us])))
    rows = [_row(lane, share, colors.get(lane.name, GREY), place, (since_us, until_us))
            for lane, share in zip(lanes, shares, strict=True)]
    draw_lanes(place, rows)
    place.set_title(headline(_headline(result, lanes, together)), loc="left",
                    fontsize="medium")
    dress_time(place, np.array([since_us, until_us], dtype=np.int64))
    place.grid(visible=False, axis="y")
    place.spines["left"].set_visible(False)
    return place


def _chief(lanes: list[Lane], since_us: int, until_us: int) -> list[Lane]:
    # Those that lasted longest on most devices; the rest as one.
    if len(lanes) <= LANES_MAX:
        return lanes
    weight = [sum((end_us - begin_us) * count
                  for begin_us, end_us, count in lane.runs(since_us, until_us)) for lane in lanes]
    order = np.argsort(-np.array(weight, dtype=np.float64), kind="stable")
    first = {int(i) for i in order[:LANES_MAX - 1]}
    rest = Lane(f"{len(lanes) - len(first)} more faults", "")
    for i, lane in enumerate(lanes):
        if i not in first and (runs := lane.runs(since_us, until_us)):
            rest.take(runs, lane.slots)
    return [*(lane for i, lane in enumerate(lanes) if i in first),
            *([rest] if rest.changes else [])]


def _row(lane: Lane, share: _Share, color: str, ax: Any, window_us: tuple[int, int]) -> Row:
    runs = lane.runs(*window_us)
    ends = ax.convert_xunits(times(np.array([run[:2] for run in runs], dtype=np.int64)))
    tall = heights([count for _, _, count in runs], lane.count)
    bars = [(float(begin), float(end), height)
            for (begin, end), height in zip(ends.reshape(-1, 2), tall, strict=True)]
    who = f"{lane.count:,} device{'' if lane.count == 1 else 's'}"
    hit = share.said()
    often = len(lane.changes) if lane.where else 0
    words = [who, f"{often:,} times" if often > 1 else "", f"hit {hit}" if hit else "",
             "not ended" if lane.open else ""]
    return Row(lane.said() if lane.where else lane.name, ", ".join(filter(None, words)), color,
               bars, open=lane.open)


# -- what they changed --------------------------------------------------------------------------


def _shares(result: Result, lanes: list[Lane]) -> tuple[list[_Share], _Share]:
    shares, together = [_Share() for _ in lanes], _Share()
    if result._in_file or result.history is None or not lanes:
        return shares, together  # a file has no readings that were withheld
    numbers, masks = result.history.population.slots, _masks(result, lanes)
    for chunk in result._left(None, None)[1]:
        together.active += len(chunk)
        if chunk.marks is not None:
            together.hit += int((chunk.marks.hit > 0).sum())
            _count(chunk, numbers[chunk.group.index][chunk.device], lanes, masks, shares)
    return shares, together


def _masks(result: Result, lanes: list[Lane]) -> list[Any]:
    size = 0 if result.history is None else len(result.history.population)
    found = []
    for lane in lanes:
        mask = np.zeros(size, dtype=np.bool_)
        mask[lane.slots] = True
        found.append(mask)
    return found


def _count(
    chunk: Readings, slots: Ints, lanes: list[Lane], masks: list[Any], shares: list[_Share]
) -> None:
    marks = chunk.marks
    assert marks is not None
    told = [set(name.split("+")) for name in marks.names]
    at_us = chunk.time_us if marks.shift_us is None else chunk.time_us - marks.shift_us
    for lane, mask, share in zip(lanes, masks, shares, strict=True):
        codes = np.array([lane.name in names for names in told])
        if not codes.any():
            continue
        mine = np.flatnonzero(codes[marks.faults] | codes[marks.hit])
        mine = mine[mask[slots[mine]]]
        mine = mine[_within(lane, at_us[mine])]
        share.active += len(mine)
        share.hit += int(codes[marks.hit[mine]].sum())


def _within(lane: Lane, at_us: Ints) -> Any:
    runs = np.array(lane.runs(0, 2**62), dtype=np.int64).reshape(-1, 3)
    if not len(runs) or not len(at_us):
        return np.zeros(len(at_us), dtype=np.bool_)
    place = np.searchsorted(runs[:, 0], at_us, side="right") - 1
    return (place >= 0) & (at_us < runs[np.maximum(place, 0), 1])


def _headline(result: Result, lanes: list[Lane], together: _Share) -> str:
    length = clock_text(result.end_us - result.start_us)
    if not lanes:
        return f"{cut(result.name, 40)} · no fault in {length}"
    touched = np.unique(np.concatenate([lane.slots for lane in lanes]))
    kinds = len({lane.name for lane in lanes if lane.where})
    what = f"{kinds} kind{'' if kinds == 1 else 's'} of fault"
    said = together.said()
    who = f"{len(touched):,} of {result._count():,} devices"
    return (f"{cut(result.name, 40)} · {what} on {who} in {length}"
            f"{f', {said} of readings hit' if said else ''}")
