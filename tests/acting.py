"""A director led through a real simulation: what the engines do, in a few lines."""

from iotsim.engine.simulation import Simulation
from iotsim.stage import Stage, Totals
from iotsim.units import DEFAULT_START, instant_us

START_US = instant_us(DEFAULT_START)
DAY_US = 86_400_000_000


class Played:
    """What a scenario did, and what ended it."""

    def __init__(self, scenario, until_us=DAY_US, observed=None):
        self.simulation = Simulation(scenario.fleet.members, scenario.fleet.seed, START_US)
        self.actions, self.chunks = [], []
        self.director = scenario.director(START_US)
        self.stage = Stage(scenario.fleet, self.simulation, self.actions, lambda: self.chunks,
                           lambda: Totals(sum(map(len, self.chunks)), 0, 0),
                           None if observed is None else lambda: observed)
        self.at_us = 0
        try:
            self._go(until_us)
        finally:
            self.director.close()
            self.simulation.close()

    def _go(self, until_us):
        director = self.director
        while True:
            due_us = director.next_us
            stops = [stop for stop in (due_us, director.end_us, until_us) if stop is not None]
            if due_us is None and director.end_us is None:
                break
            if min(stops) > self.at_us:
                self.chunks += self.simulation.advance(START_US + min(stops))
                self.at_us = min(stops)
            if due_us == self.at_us:
                director.act(self.stage)
            elif self.at_us in (director.end_us, until_us):
                break

    @property
    def error(self):
        """What ended it, if anything did."""
        return self.director.errors[0] if self.director.errors else None

    @property
    def expectations(self):
        return self.director.expectations

    def said(self):
        """The log, one line per action."""
        return [str(action) for action in self.actions]

    def statuses(self):
        return [one.status for one in self.expectations]
