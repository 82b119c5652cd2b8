"""How fast messages go through a run just now, and how long their acknowledgements take."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iotsim.publishers.ledger import Latency, LedgerSnapshot

SPAN_S = 1.0  # of real time that a rate is taken over
LOOKS_MAX = 64


@dataclass(frozen=True, slots=True)
class Rates:
    """Per real second, over about the last one; latencies of what was acknowledged in it."""

    readings_hz: float = 0.0
    offered_hz: float = 0.0
    acknowledged_hz: float = 0.0
    lost_hz: float = 0.0
    latency_p50_s: float = math.nan
    latency_p99_s: float = math.nan


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    at_s: float
    readings: int
    offered: int
    acknowledged: int
    lost: int
    bins: npt.NDArray[np.int64]


class Speedometer:
    """Makes rates of counts that only grow."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque(maxlen=LOOKS_MAX)

    def rates(
        self, now_s: float, readings: int, ledgers: Mapping[str, LedgerSnapshot],
        latencies: Sequence[Latency],
    ) -> Rates:
        """Look at the counts now; return the rates since about a second ago."""
        bins = sum((one.counts() for one in latencies), Latency().counts())
        now = _Look(
            now_s, readings, sum(one.offered for one in ledgers.values()),
            sum(one.acknowledged for one in ledgers.values()),
            sum(one.refused + one.dropped for one in ledgers.values()), bins)
        while len(self._looks) > 1 and self._looks[1].at_s <= now_s - SPAN_S:
            self._looks.popleft()
        self._looks.append(now)
        before = self._looks[0]
        span_s = now.at_s - before.at_s
        if span_s <= 0:
            return Rates()
        fresh = Latency.of(now.bins - before.bins)
        return Rates(
            (now.readings - before.readings) / span_s, (now.offered - before.offered) / span_s,
            (now.acknowledged - before.acknowledged) / span_s, (now.lost - before.lost) / span_s,
            fresh.quantile(0.5), fresh.quantile(0.99))
