"""The windows of faults, as lanes of a timeline: what was injected on whom, and when it was active.

A fleet under back-pressure has thousands of windows. Those of one fault on one selection share a
lane, and a lane is drawn in a bounded number of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from iotsim.faults.base import NEVER_US, Window
from iotsim.plotting.canvas import COLORS, GREY, plain, times
from iotsim.readings import Ints
from iotsim.selectors import parse

if TYPE_CHECKING:
    from iotsim.engine.simulation import Simulation

RUNS_MAX = 360  # of one lane
NAMES_MAX = 6  # of faults beside readings; the others share a colour
STRIP_PT, GAP_PT = 4.0, 1.5
_WARM = [color for color in COLORS[1:] if color != GREY]


@dataclass(slots=True, eq=False)
class Lane:
    """One fault on one selection of devices.

    Attributes
    ----------
    name, where : str
        Of the fault, and the selector as it was written.
    slots : int64 array
        The devices that it was on, by their numbers in the fleet.
    changes : list of (instants, +n or -n)
        How many devices it began or ended on.
    fields : set of str
        Those that it names; empty if it names none.
    open : bool
        Whether nobody said when it ends.
    """

    name: str
    where: str
    slots: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    changes: list[tuple[Ints, Ints]] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)
    count: int = 0
    open: bool = False

    def add(self, begin_us: int, ends_us: Ints, slots: Ints) -> None:
        """Take in a window."""
        ends, counts = np.unique(ends_us, return_counts=True)
        self.changes.append((np.array([begin_us, *ends.tolist()], dtype=np.int64),
                             np.array([len(ends_us), *(-counts).tolist()], dtype=np.int64)))
        if len(slots) != len(self.slots) or not np.array_equal(slots, self.slots):
            self.slots = np.union1d(self.slots, slots)
        self.open = self.open or (bool(len(ends)) and int(ends[-1]) == NEVER_US)
        self.count = max(self.count, len(self.slots), len(ends_us))

    def take(self, runs: Sequence[tuple[int, int, int]], slots: Ints) -> None:
        """Take in the runs of another lane."""
        table = np.array(runs, dtype=np.int64).reshape(-1, 3)
        self.changes.append((np.concatenate([table[:, 0], table[:, 1]]),
                             np.concatenate([table[:, 2], -table[:, 2]])))
        self.slots = np.union1d(self.slots, slots)
        self.count = len(self.slots)

    @property
    def begin_us(self) -> int:
        """When it began first."""
        return min(int(at_us[0]) for at_us, _ in self.changes)

    def runs(self, since_us: int, until_us: int) -> list[tuple[int, int, int]]:
        """Return (from, to, how many devices), in order, where there are any."""
        at_us = np.concatenate([part for part, _ in self.changes])
        steps = np.concatenate([part for _, part in self.changes])
        order = np.argsort(at_us, kind="stable")
        at_us, counts = at_us[order], np.cumsum(steps[order])
        last = np.append(at_us[1:] != at_us[:-1], True)  # after all that changes in one instant
        at_us, counts = at_us[last], np.minimum(counts[last], self.count)
        ends_us = np.append(at_us[1:], NEVER_US)
        at_us, ends_us = np.clip(at_us, since_us, until_us), np.clip(ends_us, since_us, until_us)
        kept = (counts > 0) & (ends_us > at_us)
        runs = list(zip(at_us[kept].tolist(), ends_us[kept].tolist(), counts[kept].tolist(),
                        strict=True))
        return runs if len(runs) <= RUNS_MAX else _coarser(runs, since_us, until_us)

    def said(self) -> str:
        """Return what it is called: the fault, and whom it was on."""
        return f"{self.name} · {self.where}"


def _coarser(
    runs: Sequence[tuple[int, int, int]], since_us: int, until_us: int
) -> list[tuple[int, int, int]]:
    # What begins within a narrow bin is one run, of the most devices there were.
    step_us = max(1, -(-(until_us - since_us) // RUNS_MAX))
    found: list[tuple[int, int, int]] = []
    for begin_us, end_us, count in runs:
        if found and (begin_us - since_us) // step_us == (found[-1][0] - since_us) // step_us:
            first_us, _, most = found[-1]
            found[-1] = first_us, end_us, max(most, count)
        else:
            found.append((begin_us, end_us, count))
    return found


def where_text(where: Any) -> str:
    """Return a selector as people wrote it.

    Examples
    --------
    >>> where_text({"ids": ["a", "b"]}), where_text("all"), where_text("site=north")
    ('ids(a, b)', 'all', 'site=north')
    """
    if isinstance(where, Mapping):
        names = [str(name) for name in where.get("ids", ())]
        return f"ids({', '.join(names[:2])}{', …' if len(names) > 2 else ''})"
    return str(parse(where))


def lanes_of(
    windows: Sequence[Window], injects: Sequence[Any], ended_us: Ints
) -> list[Lane]:
    """Return the lanes of windows, in order of their first.

    Parameters
    ----------
    windows : sequence of Window
    injects : sequence of Action
        Their actions.
    ended_us : int64 array
        By device: when it was stopped; who is gone has no faults.
    """
    lanes: dict[tuple[str, str], Lane] = {}
    for window, action in zip(windows, injects, strict=True):
        where = action.parameters.get("where", "all")
        key = window.name, repr(where)
        if key not in lanes:
            lanes[key] = Lane(window.name, where_text(where))
        lane = lanes[key]
        lane.add(window.begin_us, np.minimum(window.ends_us, ended_us[window.slots]), window.slots)
        lane.fields.update(window.fault.named)
    return list(lanes.values())


def lanes_in(history: Simulation | None) -> list[Lane]:
    """Return the lanes of a run: the faults it has had."""
    if history is None:
        return []
    deeds = history.deeds
    # An inject that reached nobody made no window.
    injects = [done for done in deeds.done if done.verb == "inject" and done.devices]
    return lanes_of(deeds.windows[:len(injects)], injects, deeds.population.ended_us)


def color_of(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each fault, in the order of their first windows; not that of data."""
    kinds = [*dict.fromkeys(names)]
    return {name: _WARM[i % len(_WARM)] for i, name in enumerate(kinds)}


def _apart(names: Sequence[str], usual: Mapping[str, str]) -> dict[str, str]:
    # The colour that it has everywhere else, unless another one beside it has that.
    found: dict[str, str] = {}
    for name in names:
        free = [color for color in _WARM if color not in found.values()]
        own = usual.get(name, GREY)
        found[name] = own if own in free or own == GREY else free[0]
    return found


# -- beside readings ----------------------------------------------------------------------------


@dataclass(slots=True)
class Strip:
    """The windows of one fault (or of the rest), beside readings."""

    name: str
    color: str
    devices: int
    runs: list[tuple[int, int, int]]


def strips(
    lanes: Sequence[Lane], since_us: int, until_us: int, concerns: Callable[[Lane], int]
) -> list[Strip]:
    """Return a strip for each fault within a window of time.

    Parameters
    ----------
    lanes : sequence of Lane
    since_us, until_us : int
    concerns : callable
        How many of the devices that are drawn a lane is on; 0 leaves it out.
    """
    meant = [lane for lane in lanes if concerns(lane)]
    seen = [(lane, runs) for lane in meant if (runs := lane.runs(since_us, until_us))]
    names = [*dict.fromkeys(lane.name for lane, _ in seen)]
    if len(names) > NAMES_MAX:
        rest = names[NAMES_MAX - 1:]
        groups = {**{name: {name} for name in names[:NAMES_MAX - 1]},
                  f"{len(rest)} other faults": set(rest)}
    else:
        groups = {name: {name} for name in names}
    colors = _apart([*groups], color_of([lane.name for lane in lanes]))
    found = []
    for title, those in groups.items():
        mine = [(lane, runs) for lane, runs in seen if lane.name in those]
        whole = Lane(title, "")
        for lane, runs in mine:
            whole.take(runs, lane.slots)
        found.append(Strip(title, colors[title], max(concerns(whole), 1),
                           _merged(whole.runs(since_us, until_us))))
    return found


def _merged(runs: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    for begin_us, end_us, count in runs:
        if found and begin_us <= found[-1][1]:
            found[-1] = found[-1][0], end_us, max(count, found[-1][2])
        else:
            found.append((begin_us, end_us, count))
    return found


def draw_strips(ax: Any, shown: Sequence[Strip], *, shade: bool = True) -> list[Any]:
    """Shade windows behind readings, and draw each fault as a line above the Axes."""
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.transforms import ScaledTranslation

    across, drawn = ax.get_xaxis_transform(), []
    for strip, level in zip(shown, levels(shown), strict=True):
        spans = [ax.convert_xunits(times(np.array(run[:2]))) for run in strip.runs]
        if shade:
            ax.add_collection(PolyCollection(
                [[(begin, 0), (begin, 1), (end, 1), (end, 0)] for begin, end in spans],
                facecolors=[strip.color], alpha=0.12, linewidths=0, transform=across, zorder=0,
            ), autolim=False)
        up_pt = GAP_PT + STRIP_PT / 2 + level * (STRIP_PT + GAP_PT)
        raised = across + ScaledTranslation(0, up_pt / 72, ax.figure.dpi_scale_trans)
        who = f"{strip.devices:,} device{'' if strip.devices == 1 else 's'}"
        lines = LineCollection(
            [[(begin, 1.0), (end, 1.0)] for begin, end in spans], colors=[strip.color],
            linewidths=STRIP_PT, capstyle="butt", transform=raised, clip_on=False,
            label=plain(f"{strip.name} ({who})", 60))
        ax.add_collection(lines, autolim=False)
        drawn.append(lines)
    return drawn


def levels(shown: Sequence[Strip]) -> list[int]:
    """Return how far above the Axes each strip is: those that never meet share a level."""
    until_us: list[int] = []
    found = []
    for strip in shown:
        begin_us, end_us = strip.runs[0][0], strip.runs[-1][1]
        level = next((i for i, end in enumerate(until_us) if end <= begin_us), len(until_us))
        until_us[level:level + 1] = [end_us]
        found.append(level)
    return found


def headroom_pt(shown: Sequence[Strip]) -> float:
    """Return how much room the strips take above an Axes, for its title."""
    return 6.0 + max(levels(shown), default=-1) * (STRIP_PT + GAP_PT) + (
        STRIP_PT + GAP_PT if shown else 0)
