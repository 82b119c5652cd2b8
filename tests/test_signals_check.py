"""The check for signals of your own: what it says of one whose state cannot go on elsewhere."""

import numpy as np
import pytest

from iotsim.signals.base import Signal
from iotsim.testing import check_signal


class Counter:
    """A source with a state: how often it was stepped."""

    def __init__(self, wide):
        self.count = np.zeros(wide)

    def step(self, steps):
        self.count[steps.devices] += np.ones(steps.shape[1]) * steps.ticks
        return self.count[steps.devices] - np.arange(steps.ticks)[::-1, None]


class Keeping(Counter):
    def keep(self, rows):
        return self.count[rows]

    def resume(self, state):
        self.count[:] = state


class Sharing(Keeping):
    def keep(self, rows):
        return self.count

    def resume(self, state):
        self.count = state[: len(self.count)]


class Counted(Signal):
    source, walking = Keeping, True

    @property
    def walks(self):
        return self.walking

    def block(self, place):
        return self.source(len(place.parents))

    def single(self, place):
        return lambda tick: float(tick.n + 1)


def test_check_signal_accepts_a_state_that_can_be_kept():
    check_signal(Counted())


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"source": Counter}, "does not go on where it was kept, the first time"),
        ({"source": Sharing}, "does not go on where it was kept"),
        ({"walking": False}, "has a state, so its walks must be true"),
        ({"span": (1.0, -1.0)}, "has the span"),
    ],
)
def test_check_signal_names_what_a_state_lacks(parts, problem):
    broken = type("Broken", (Counted,), parts)
    with pytest.raises(AssertionError, match=problem):
        check_signal(broken())


def test_check_signal_names_a_signal_that_cannot_take_a_number_for_each_device():
    class Source:
        def step(self, steps):
            return (np.arange(steps.ticks)[:, None] + steps.counters[0, :1]
                    if steps.numbers is None else steps.counters * 2).astype(float)

    class Broken(Signal):
        def block(self, place):
            return Source()

        def single(self, place):
            return lambda tick: float(tick.n)

    with pytest.raises(AssertionError, match="differs where steps have numbers"):
        check_signal(Broken())
