"""What all lanes of a pump share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from iotsim.publishers.backoff import Pace
from iotsim.publishers.base import Limits
from iotsim.publishers.ledger import Ledger

ACK_DEADLINE_S = 30.0
DROPPED = "dropped"  # an outcome: the oldest of a full queue, never handed over

Settled: TypeAlias = Callable[[Sequence[str], str, Sequence[float]], None]  # ids, outcome, seconds


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """What all lanes of a pump share."""

    url: str
    run_id: str
    limits: Limits
    ledger: Ledger
    notice: Callable[[str], None]
    changed: Callable[[], None]
    turns: asyncio.Semaphore  # to connect
    settled: Settled | None = None
    ack_deadline_s: float = ACK_DEADLINE_S
    pace: Pace | None = None  # of reconnections

    def tell(self, ids: Sequence[str], outcome: str, seconds: Sequence[float]) -> None:
        """Tell the observer what became of messages."""
        if self.settled is not None and ids:
            try:
                self.settled(ids, outcome, seconds)
            except Exception as error:  # whoever listens must not stop the lane
                self.notice(f"an observer failed: {type(error).__name__}: {error}")
