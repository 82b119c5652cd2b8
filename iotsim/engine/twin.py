"""A simulation copied where it stands, so that two futures can be computed from one moment.

What never changes is shared: groups, members, profiles, ids, keys. What changes in place is the
twin's own: the states of signals, what windows remember and when they end, what is to happen later.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np

from iotsim.engine.block import Block, Split
from iotsim.engine.deeds import Deeds
from iotsim.engine.departures import Grids
from iotsim.engine.inbox import Mail
from iotsim.engine.population import Move, Population
from iotsim.engine.simulation import Simulation
from iotsim.faults.base import Window


def twin_of(simulation: Simulation) -> Simulation:
    """Return a simulation that goes on as this one would, by hand and unobserved.

    Parameters
    ----------
    simulation : Simulation
        Without scripted devices: a coroutine cannot be copied.
    """
    assert not simulation.casts, "scripted devices have no state that could be copied"
    made = Simulation((), simulation.seed, simulation.start_us)
    twins = _Twins()
    made.population = _population(simulation.population, twins)
    made.deeds = _deeds(simulation.deeds, made, twins)
    for block in simulation.blocks:
        if not block.retired:
            made.settle_block(_block(block, twins))
    return made


class _Twins:
    """The twin of each window and each move, made once."""

    def __init__(self) -> None:
        self._windows: dict[int, Window] = {}
        self._moves: dict[int, Move] = {}

    def window(self, window: Window) -> Window:
        """Return the twin of a window."""
        if id(window) not in self._windows:
            self._windows[id(window)] = replace(
                window, ends_us=window.ends_us.copy(), memory=deepcopy(window.memory),
                worn=None if window.worn is None else window.worn.copy())
        return self._windows[id(window)]

    def move(self, move: Move) -> Move:
        """Return the twin of a move."""
        if id(move) not in self._moves:
            self._moves[id(move)] = replace(move, window=self.window(move.window))
        return self._moves[id(move)]

    def split(self, split: Split) -> Split:
        """Return the twin of a split: a move decides late whom it is about."""
        owner = getattr(split.slots, "__self__", None)
        return replace(split, slots=self.move(owner).those_left) if isinstance(owner, Move) else (
            split)


def _population(people: Population, twins: _Twins) -> Population:
    made = Population(people.seed)
    for name in ("groups", "members", "ids", "slots", "profiles"):
        setattr(made, name, list(getattr(people, name)))
    for name in ("home", "variant", "began_us", "ended_us"):
        setattr(made, name, getattr(people, name).copy())
    made.moves = [twins.move(move) for move in people.moves]
    made._counts = {name: counts.copy() for name, counts in people._counts.items()}
    return made


def _deeds(deeds: Deeds, simulation: Simulation, twins: _Twins) -> Deeds:
    made = Deeds(simulation)
    made.windows = [twins.window(window) for window in deeds.windows]
    made.done = list(deeds.done)
    made.holding = [twins.window(window) for window in deeds.holding]
    made.grids = Grids(simulation.population, deeds.grids.changes)
    made.mail = Mail(made, deeds.mail.book.twin())
    return made


def _block(block: Block, twins: _Twins) -> Block:
    everyone = np.arange(len(block), dtype=np.int64)
    made = block._fork(everyone, block.profile, block.group, block._members)
    made.windows = [twins.window(window) for window in block.windows]
    made.splits = [twins.split(split) for split in block.splits]
    return made
