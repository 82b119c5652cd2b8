"""Running a saved run again, within what its file says that it was.

A file may be forged, or damaged so that it still reads: an interval of a microsecond, a window of
centuries, a million faults. What it had (devices, readings of each, actions) bounds what is done
for it: more is refused before it is computed, and what takes far too long is given up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from iotsim.actions import Action
from iotsim.clock import monotonic
from iotsim.engine.simulation import Simulation
from iotsim.errors import IotsimError, MissingExtra, SavedRunError
from iotsim.faults.base import NEVER_US, Window
from iotsim.offline import Offline
from iotsim.readings import Ints, Readings
from iotsim.saved import DAMAGE, SavedRun
from iotsim.stage import Replay, Stage
from iotsim.units import US_PER_SECOND

if TYPE_CHECKING:
    from iotsim.fleet import Fleet
    from iotsim.result import Result

ACTIONS_MAX = 100_000
ACTIONS_SPARE = 10_000  # more than these, and than the readings that they could change
DEVICES_SPARE = 1_000_000  # that never had a reading: a file does not name them
ROWS_SPARE = 1_000_000
BETWEEN_SPARE = 3_000_000  # readings between ticks are made up to a tick ahead, and may fall away
BETWEEN_RATIO = 20
REACHED_MAX = 200_000_000  # devices of all faults together: some bytes of memory each
# Many times what a machine needs that has nothing else to do.
PATIENCE_S, PER_ROW_S, PER_ACTION_S, PER_BETWEEN_S = 120.0, 100e-6, 5e-3, 100e-6
PER_ROW_ACTION_S, PER_DEVICE_ACTION_S = 5e-6, 5e-6
SCRIPT_WAKES = 200_000
SCRIPT_LOOK_US = 3600 * US_PER_SECOND
LOOK_US = 10_000 * SCRIPT_LOOK_US
_FAR_MORE = "this saved run is damaged: doing it again gives"


class Bounds:
    """What a saved run says that it had, and what more than that is.

    Parameters
    ----------
    saved : SavedRun
    """

    def __init__(self, saved: SavedRun) -> None:
        mark = saved.fingerprint
        self.path = saved.path
        self.rows = mark.rows
        self.listed = sum(len(ids) for ids, _, _ in mark.groups)
        self._rows_of: Counter[str] = Counter()
        for ids, _, rows in mark.groups:
            self._rows_of.update(dict(zip(ids, rows.tolist(), strict=True)))
        count = len(saved.actions)
        allowed = min(ACTIONS_MAX, ACTIONS_SPARE + mark.rows)
        if count > allowed:
            raise SavedRunError(self.path, f"it holds {count:,} actions, and {allowed:,} are as "
                                f"many as can be done again in a run of {mark.rows:,} readings")
        self._patience_s = (PATIENCE_S + PER_ROW_S * mark.rows + PER_ACTION_S * count
                            + PER_ROW_ACTION_S * count * mark.rows
                            + PER_DEVICE_ACTION_S * count * self.listed)
        self._until_s = monotonic() + self._patience_s
        self._between = 0.0

    def rows_of(self, names: list[str]) -> Ints:
        """Return how many readings the file says that devices had."""
        return np.array([self._rows_of[name] for name in names], dtype=np.int64)

    def check_time(self) -> None:
        """Raise if it has taken far longer than a run of that size does."""
        if monotonic() > self._until_s:
            raise SavedRunError(self.path, "doing it again has taken over "
                                f"{self._patience_s:,.0f} s, far too long for a run of "
                                f"{self.rows:,} readings, so it was given up",
                                "If the file is what was saved, try when the machine is idle.")

    def check_devices(self, counts: Iterable[int]) -> None:
        """Raise if there are far more devices than the file names."""
        total = sum(counts)
        if total > self.listed + DEVICES_SPARE:
            raise SavedRunError(self.path, f"{_FAR_MORE} {total:,} devices, and it had "
                                f"{self.listed:,}")

    def check_rows(self, rows: int) -> None:
        """Raise if there are far more readings than the file had."""
        if rows > 2 * self.rows + ROWS_SPARE:
            raise SavedRunError(self.path, f"{_FAR_MORE} over {rows:,} readings, and it had "
                                f"{self.rows:,}")

    def check_excess(self, made: Ints, had: Ints) -> None:
        """Raise if devices are about to have far more readings, together, than they had."""
        excess = np.maximum(made - had, 0)
        if float(excess.sum(dtype=np.float64)) > ROWS_SPARE:
            raise SavedRunError(self.path, f"{_FAR_MORE} at least "
                                f"{float(made.sum(dtype=np.float64)):,.0f} readings, and it had "
                                f"{self.rows:,}")

    def check_between(self, rows: float) -> None:
        """Raise if so many more between ticks are, in all, far more than the file had."""
        self._between += rows
        if self._between > BETWEEN_RATIO * self.rows + BETWEEN_SPARE:
            raise SavedRunError(self.path, f"{_FAR_MORE} about {self._between:,.0f} readings "
                                f"between ticks, and it had {self.rows:,}")
        self._patience_s += rows * PER_BETWEEN_S  # they take long, and few may be left of them
        self._until_s += rows * PER_BETWEEN_S

    def check_reached(self, devices: int) -> None:
        """Raise if faults reach more devices than memory is made for."""
        if devices > REACHED_MAX:
            raise SavedRunError(self.path, f"its faults reach devices {devices:,} times, and "
                                f"{REACHED_MAX:,} are as many as can be done again")


class Bounded(Replay):
    """A director that does again what a log says, and looks ahead before time goes on.

    Parameters
    ----------
    actions : list of Action
    end_us : int
    bounds : Bounds
    """

    def __init__(self, actions: list[Action], end_us: int, bounds: Bounds) -> None:
        super().__init__(actions, end_us)
        self._span_us, self._bounds = end_us, bounds
        self._look_us = 0
        self._had = self._made = np.empty(0, dtype=np.int64)
        self._intervals_us: list[int] = []  # by variant
        self._shortest_us = NEVER_US
        self._windows = self._reached = 0
        self._rates: list[Window] = []
        self._wakes_us: int | None = None

    @property
    def next_us(self) -> int | None:
        """When the next action is due, or a look at how far it has come."""
        return min(self._look_us, self._due_us)

    @property
    def _due_us(self) -> int:
        return self._left[-1].at_us if self._left else NEVER_US

    def act(self, stage: Stage) -> None:
        """Do all that is due, and raise if what comes is not what the file says that it had."""
        at_us = min(self._look_us, self._due_us)
        self._bounds.check_time()
        while self._left and self._left[-1].at_us == at_us:
            action = self._left.pop()
            self._note_script(action.parameters.get("every_us"))
            stage.do(action.verb, action.at_us, action.parameters, action.members)
            self._note_windows(stage.simulation)
            self._bounds.check_time()
        self._look_us = at_us + self._step_us(stage.simulation)
        until_us = max(at_us, min(self._look_us, self._due_us, self._span_us))
        self._foresee(stage.simulation, stage.start_us + at_us, stage.start_us + until_us)

    def _note_script(self, every_us: int | None) -> None:
        if every_us is not None and (self._wakes_us is None or every_us < self._wakes_us):
            self._wakes_us = every_us

    def _note_windows(self, simulation: Simulation) -> None:
        windows = simulation.deeds.windows
        for window in windows[self._windows:]:
            self._reached += len(window.slots)
            if window.name == "rate":
                self._rates.append(window)
        self._windows = len(windows)
        self._bounds.check_reached(self._reached)

    def _step_us(self, simulation: Simulation) -> int:
        # Scripted devices run to the end of a stretch before anybody can count what they gave.
        if not simulation.casts:
            return LOOK_US
        devices = sum(len(cast.slots) for cast in simulation.casts)
        for cast in simulation.casts:
            self._note_script(cast.interval_us)
        if self._wakes_us is None:
            return SCRIPT_LOOK_US
        return max(1, min(SCRIPT_LOOK_US, SCRIPT_WAKES * self._wakes_us // max(1, devices)))

    def _foresee(self, simulation: Simulation, at_us: int, until_us: int) -> None:
        people = simulation.population
        if len(people) > len(self._had):
            names = people.ids[len(self._had):]
            self._had = np.append(self._had, self._bounds.rows_of(names))
            self._made = np.append(self._made, np.zeros(len(names), dtype=np.int64))
        for profile in people.profiles[len(self._intervals_us):]:
            interval_us = NEVER_US if profile is None else profile.interval_us
            self._intervals_us.append(interval_us)
            self._shortest_us = min(self._shortest_us, interval_us)
        self._rates = [window for window in self._rates if window.end_us > at_us]
        if not self._rates and until_us - at_us < self._shortest_us:
            return
        intervals_us = np.array(self._intervals_us)[people.variant]
        intervals_us[people.ended_us <= at_us] = NEVER_US
        self._made += (until_us - at_us) // intervals_us
        self._bounds.check_excess(self._made, self._had)
        for window in self._rates:
            open_us = np.minimum(window.ends_us, until_us) - max(at_us, window.begin_us)
            ticks = np.maximum(open_us, 0) / intervals_us[window.slots]
            if any(one is not None and one.phase_us is not None for one in people.profiles):
                ticks = np.where(open_us > 0, np.ceil(ticks), 0.0)  # all of them at one instant
            self._bounds.check_between(float(ticks.sum()) * int(getattr(window.fault, "factor", 1)))


class _Again(Offline):
    def __init__(self, fleet: Fleet, director: Bounded, start_us: int, bounds: Bounds) -> None:
        super().__init__(fleet, director, start_us, None)
        self._bounds, self._rows = bounds, 0

    def _take(self, readings: Readings) -> None:
        self._rows += len(readings)
        self._bounds.check_rows(self._rows)
        self._bounds.check_time()
        super()._take(readings)


def run_again(
    saved: SavedRun, fleet: Fleet, actions: list[Action], bounds: Bounds
) -> Result:
    """Return what a saved run gives when it is done again.

    Raises
    ------
    SavedRunError
        If it cannot be, or gives far more than the file says that it had.
    """
    mark = saved.fingerprint
    added = (action.members for action in actions if action.members is not None)
    bounds.check_devices(member.count for member in (*fleet.members, *added))
    director = Bounded(actions, mark.end_us - mark.start_us, bounds)
    try:
        return _Again(fleet, director, mark.start_us, bounds).run(None)
    except (SavedRunError, MissingExtra):
        raise
    except IotsimError as error:
        why = str(error).rstrip(".")
        raise SavedRunError(saved.path, f"it cannot be run again: {why}") from None
    except DAMAGE as error:
        raise SavedRunError(saved.path, "this saved run is damaged: it cannot be run again "
                            f"({type(error).__name__})") from error
