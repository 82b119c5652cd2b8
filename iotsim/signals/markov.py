"""A state that changes by a table of probabilities."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue, UnknownName
from iotsim.readings import Ints, Kind
from iotsim.seeding import Words, draws, squares64, unit, unit_many
from iotsim.signals.base import Floats, Signal, Single, Site, Source, Steps, Tick, number, register
from iotsim.units import duration_text, duration_us

Codes = npt.NDArray[np.int32]
STATES_MAX = 256
TRANSITIONS_PER_TICK_MAX = 10_000


@register("markov")
@dataclass(frozen=True, slots=True)
class Markov(Signal):
    """A chain of states; each transition takes the row of the state that was.

    With r uniform in [0, 1), the next state is the first whose cumulative probability exceeds r.

    Parameters
    ----------
    states : list of str
        All different.
    transition_matrix : list of lists of float
        One row and one column per state; each row sums to 1.
    initial_state : str, optional
        The state before the first transition; the first of the list if not given.
    per : "tick" or duration
        Once in every reading, or at whole multiples of a time since the device's start. The first
        reading stands one interval after it.
    """

    states: Any
    transition_matrix: Any
    initial_state: Any = None
    per: Any = "tick"

    def __post_init__(self) -> None:
        states = _check_states(self.states)
        _check_matrix(self.transition_matrix, states)
        if self.initial_state is not None and self.initial_state not in states:
            raise UnknownName("state", self.initial_state, states, "initial_state")
        rows = tuple(tuple(float(part) for part in row) for row in self.transition_matrix)
        object.__setattr__(self, "states", tuple(states))
        object.__setattr__(self, "transition_matrix", rows)
        if self.per != "tick":
            object.__setattr__(self, "per", duration_text(duration_us(self.per, "per")))

    @property
    def kind(self) -> Kind:
        """Text."""
        return "text"

    @property
    def categories(self) -> tuple[str, ...]:
        """The states."""
        return tuple(self.states)

    @property
    def walks(self) -> bool:
        """Yes: its state moves on the grid only."""
        return True

    @property
    def _first(self) -> int:
        return 0 if self.initial_state is None else self.categories.index(self.initial_state)

    @property
    def _table(self) -> list[list[float]]:
        return [list(accumulate(row)) for row in self.transition_matrix]

    def _per_us(self, interval_us: int) -> int:
        per_us = interval_us if self.per == "tick" else duration_us(self.per, "per")
        if interval_us // per_us > TRANSITIONS_PER_TICK_MAX:
            raise BadValue("per", self.per, "is too short for the interval",
                           "Give at least a ten-thousandth of telemetry_interval.")
        return per_us

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        devices, per_us = len(site.parents), self._per_us(site.interval_us)
        return _Markov(
            states=self.categories,
            first=self._first,
            table=np.array(self._table),
            keys=site.keys(self.version),
            per_us=None if self.per == "tick" else per_us,
            state=np.full(devices, self._first, dtype=np.int32),
            reached_us=np.zeros(devices, dtype=np.int64),
            lead_us=np.full(devices, site.interval_us, dtype=np.int64),
        )

    def single(self, site: Site) -> Single:
        """Return the function for one device: tick -> the state itself."""
        key, table, states = site.key(self.version), self._table, self.categories
        interval_us, per_us = site.interval_us, self._per_us(site.interval_us)
        state = self._first

        def value(tick: Tick) -> str:
            nonlocal state
            first = tick.n * interval_us // per_us
            for i in range(first, (tick.n + 1) * interval_us // per_us):
                column = bisect_right(table[state], unit(squares64(i, key)))
                state = column if column < len(states) else state
            return states[state]

        return value


def _check_states(states: Any) -> list[str]:
    allowed = f"Give a list of 1 to {STATES_MAX} different texts."
    if not isinstance(states, Sequence) or isinstance(states, (str, bytes)):
        raise BadValue("states", states, "is not a list", allowed)
    if not 1 <= len(states) <= STATES_MAX:
        raise BadValue("states", states, "is empty or too long", allowed)
    for state in states:
        if not isinstance(state, str):
            raise BadValue("states", state, "is not text", "Put quotes around it.")
    if len(set(states)) < len(states):
        raise BadValue("states", states, "names a state twice", allowed)
    return list(states)


def _check_matrix(matrix: Any, states: list[str]) -> None:
    name, size = "transition_matrix", len(states)
    allowed = f"Give {size} rows of {size} probabilities, one for each state."
    rows = matrix.tolist() if isinstance(matrix, np.ndarray) else matrix
    if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)) or len(rows) != size:
        raise BadValue(name, matrix, f"does not have {size} rows", allowed)
    for i, row in enumerate(rows):
        place = f"{name}[{i}]"
        if not isinstance(row, Sequence) or isinstance(row, (str, bytes)) or len(row) != size:
            raise BadValue(place, row, f"does not have {size} columns", allowed)
        total = sum(number(f"{place}[{j}]", part, least=0, most=1) for j, part in enumerate(row))
        if abs(total - 1.0) > 1e-9:
            raise BadValue(place, row, f"sums to {total:.12g}, not to 1",
                           f"Mend the row of {states[i]!r}.")


@dataclass(slots=True)
class _Markov:
    # Time counts from the grid's origin, `lead_us` before the first reading. Both arrays outlive a
    # change of the interval, so that no multiple of `per_us` is skipped or taken twice.
    states: tuple[str, ...]
    first: int
    table: Floats
    keys: Words
    per_us: int | None  # None: once in every tick
    state: Codes
    reached_us: Ints
    lead_us: Ints

    def step(self, steps: Steps) -> Codes:
        out = np.empty(steps.shape, dtype=np.int32)
        state, keys = self.state[steps.devices], self.keys[steps.devices]
        reached_us, lead_us = self.reached_us[steps.devices], self.lead_us[steps.devices]
        elapsed_us = steps.elapsed_us
        if self.per_us is None:
            for t, words in enumerate(draws(keys, steps.counters)):
                self._move(state, words)
                out[t] = state
        elif elapsed_us.shape[1] == 1 and _all_same(reached_us) and _all_same(lead_us):
            due = (elapsed_us[:, 0] + lead_us[0]) // self.per_us
            self._together(state, keys, int(reached_us[0]) // self.per_us, due, out)
        else:
            due = (elapsed_us + lead_us) // self.per_us
            self._apart(state, keys, reached_us // self.per_us, due, out)
        reached_us[:] = elapsed_us[-1] + lead_us
        return out

    def keep(self, rows: Ints) -> tuple[tuple[str, ...], Codes, Ints, Ints]:
        return self.states, self.state[rows], self.reached_us[rows], self.lead_us[rows]

    def resume(self, kept: tuple[tuple[str, ...], Codes, Ints, Ints]) -> None:
        states, codes, self.reached_us[:], self.lead_us[:] = kept
        known = {name: code for code, name in enumerate(self.states)}
        self.state[:] = np.array([known.get(name, self.first) for name in states])[codes]

    def _together(self, state: Codes, keys: Words, done: int, due: Ints, out: Codes) -> None:
        for t, last in enumerate(due.tolist()):
            for i in range(done, last):
                self._move(state, draws(keys, np.array([i], dtype=np.uint64)))
            done = last
            out[t] = state

    def _apart(self, state: Codes, keys: Words, done: Ints, due: Ints, out: Codes) -> None:
        for t, last in enumerate(due):
            while (late := np.flatnonzero(done < last)).size:
                moved = state[late]
                self._move(moved, draws(keys[late], done[late]))
                state[late] = moved
                done[late] += 1
            out[t] = state

    def _move(self, state: Codes, words: Words) -> None:
        rows = self.table[state]
        column = (rows <= unit_many(words)[:, None]).sum(axis=1, dtype=np.int32)
        np.copyto(state, column, where=column < len(self.table))


def _all_same(numbers: Ints) -> bool:
    return bool((numbers == numbers[0]).all())
