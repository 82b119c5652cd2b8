"""What only a live run knows, in one place: what became of the messages, and how late they were."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iotsim.publishers.ledger import LedgerSnapshot

if TYPE_CHECKING:
    from iotsim.run_state import RunSnapshot


@dataclass(frozen=True, slots=True)
class Observed:
    """A live run at one moment, over all its publishers.

    Attributes
    ----------
    offered, queued, in_flight, acknowledged, refused, dropped, unknown : int
        Messages; the first is the sum of the other six.
    lost : int
        Those refused or dropped.
    latency_p50, latency_p99 : float
        Seconds until the acknowledgement, of the slowest publisher; NaN before the first.
    late : int
        Readings that were handed over late.
    lateness_p99 : float
        Seconds; NaN at speed "max".
    publishers : mapping of address to LedgerSnapshot
    """

    offered: int
    queued: int
    in_flight: int
    acknowledged: int
    refused: int
    dropped: int
    unknown: int
    lost: int
    latency_p50: float
    latency_p99: float
    late: int
    lateness_p99: float
    publishers: Mapping[str, LedgerSnapshot]


def observed_of(snapshot: RunSnapshot) -> Observed:
    """Return what is observed of a run, from its snapshot."""
    ledgers = list(snapshot.publishers.values())
    refused = sum(one.refused for one in ledgers)
    dropped = sum(one.dropped for one in ledgers)
    return Observed(
        offered=sum(one.offered for one in ledgers),
        queued=sum(one.queued for one in ledgers),
        in_flight=sum(one.in_flight for one in ledgers),
        acknowledged=sum(one.acknowledged for one in ledgers),
        refused=refused,
        dropped=dropped,
        unknown=sum(one.unknown for one in ledgers),
        lost=refused + dropped,
        latency_p50=_worst(one.latency_p50_s for one in ledgers),
        latency_p99=_worst(one.latency_p99_s for one in ledgers),
        late=snapshot.late,
        lateness_p99=snapshot.lateness_p99_s,
        publishers=snapshot.publishers,
    )


def _worst(values: Iterable[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)
