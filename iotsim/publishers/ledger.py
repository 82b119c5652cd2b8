"""The account of every message: nothing is counted twice, nothing disappears.

`offered = queued + in_flight + acknowledged + refused + dropped + unknown` holds at every
moment, because a message only ever moves from one of the six states to another, both counters
in one synchronous call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

State: TypeAlias = Literal["queued", "in_flight", "acknowledged", "refused", "dropped", "unknown"]

STATES: tuple[State, ...] = (
    "queued",
    "in_flight",
    "acknowledged",
    "refused",
    "dropped",
    "unknown",
)
REASONS_MAX = 32
_BINS_PER_OCTAVE = 8
_BINS = 32 * _BINS_PER_OCTAVE  # from 1 µs, 32 octaves reach 71 minutes
_FOLD_AT = 4096


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """The account at one moment.

    Attributes
    ----------
    offered, queued, in_flight, acknowledged, refused, dropped, unknown : int
        The first is the sum of the other six. `unknown`: written, link lost, no verdict yet.
    retries, reconnects : int
        Messages sent again; links opened again.
    refusals, drops : mapping of reason to count
        Each has at most 32 reasons; what is beyond them is counted as "other".
    latency_p50_s, latency_p99_s, latency_max_s : float
        Seconds from the hand-over to the client until the acknowledgement; NaN before the first.
    overtaken : int
        Messages that a peer took before an older one of the same device, which it had refused
        for now.
    """

    offered: int
    queued: int
    in_flight: int
    acknowledged: int
    refused: int
    dropped: int
    unknown: int
    retries: int
    reconnects: int
    refusals: Mapping[str, int]
    drops: Mapping[str, int]
    latency_p50_s: float
    latency_p99_s: float
    latency_max_s: float
    overtaken: int = 0

    @property
    def balanced(self) -> bool:
        """Whether the law holds; it always does."""
        settled = self.acknowledged + self.refused + self.dropped
        return self.offered == self.queued + self.in_flight + self.unknown + settled


class Latency:
    """Durations in 256 geometric bins: quantiles to 9 %, in constant memory."""

    __slots__ = ("_bins", "_fresh", "max_s")

    def __init__(self) -> None:
        self._bins = np.zeros(_BINS, dtype=np.int64)
        self._fresh: list[float] = []
        self.max_s = math.nan

    @classmethod
    def of(cls, counts: npt.NDArray[np.int64]) -> Latency:
        """Return the durations behind `counts()`, or a difference of two of them."""
        made = cls()
        made._bins = counts
        made.max_s = math.inf
        return made

    def counts(self) -> npt.NDArray[np.int64]:
        """Return how many durations are in each bin, shape (256,)."""
        self._fold()
        return self._bins.copy()

    def add(self, seconds: Iterable[float]) -> None:
        """Take durations in."""
        self._fresh.extend(seconds)
        if len(self._fresh) >= _FOLD_AT:
            self._fold()

    def quantile(self, share: float) -> float:
        """Return the duration that `share` of all stay below, or NaN if there are none."""
        self._fold()
        total = int(self._bins.sum())
        if total == 0:
            return math.nan
        i = int(np.searchsorted(np.cumsum(self._bins), share * total))
        middle_s = 1e-6 * 2.0 ** ((min(i, _BINS - 1) + 0.5) / _BINS_PER_OCTAVE)
        return min(float(middle_s), self.max_s)

    def _fold(self) -> None:
        if not self._fresh:
            return
        seconds = np.maximum(np.array(self._fresh), 1e-6)
        self._fresh.clear()
        octaves = np.log2(seconds * 1e6) * _BINS_PER_OCTAVE
        bins = np.clip(octaves.astype(np.int64), 0, _BINS - 1)
        self._bins += np.bincount(bins, minlength=_BINS)
        self.max_s = float(np.fmax(self.max_s, seconds.max()))


class Ledger:
    """Counts the messages of one publisher by what became of them."""

    def __init__(self) -> None:
        self.offered = 0
        self.counts: dict[State, int] = dict.fromkeys(STATES, 0)
        self.retries = 0
        self.reconnects = 0
        self.overtaken = 0
        self.given_up = 0  # those unknown that nobody will ask for again
        self.latency = Latency()
        self._refusals: dict[str, int] = {}
        self._drops: dict[str, int] = {}

    def offer(self, count: int, state: State = "queued", reason: str = "") -> None:
        """Take new messages in; they begin in `state`."""
        self.offered += count
        self.counts[state] += count
        self._note(state, count, reason)

    def move(self, source: State, target: State, count: int, reason: str = "") -> None:
        """Move messages from one state to another."""
        self.counts[source] -= count
        self.counts[target] += count
        self._note(target, count, reason)

    @property
    def open(self) -> int:
        """How many messages still wait for their end."""
        counts = self.counts
        return counts["queued"] + counts["in_flight"] + counts["unknown"] - self.given_up

    def snapshot(self) -> LedgerSnapshot:
        """Return the account as it is now."""
        return LedgerSnapshot(
            offered=self.offered,
            **self.counts,
            retries=self.retries,
            reconnects=self.reconnects,
            refusals=MappingProxyType(dict(self._refusals)),
            drops=MappingProxyType(dict(self._drops)),
            latency_p50_s=self.latency.quantile(0.5),
            latency_p99_s=self.latency.quantile(0.99),
            latency_max_s=self.latency.max_s,
            overtaken=self.overtaken,
        )

    def _note(self, state: State, count: int, reason: str) -> None:
        if state not in ("refused", "dropped") or not count:
            return
        reasons = self._refusals if state == "refused" else self._drops
        known = reason in reasons or len(reasons) < REASONS_MAX
        key = reason if known else "other"
        reasons[key] = reasons.get(key, 0) + count
