"""Every command that gateways were given, its answer and its latency, as a frame. Bounded."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from iotsim.gateway.commands import CONFIG, FIRMWARE

if TYPE_CHECKING:
    import pandas as pd

# What became of one delivery. Waiting and held have no answer yet; terminated was no command;
# returned went back to its stream, to be delivered again.
Fate: TypeAlias = Literal["waiting", "held", "ack", "nack", "expired", "terminated", "returned"]
FATES: tuple[Fate, ...] = (
    "waiting", "held", "ack", "nack", "expired", "terminated", "returned")
TROUBLES = ("delayed", "repeated", "retried", "unanswered", "overflowed", "failed", "unsaid")
TYPES = (CONFIG, FIRMWARE)  # those that a gateway knows
ROWS_MAX = 100_000
NEVER_US = -(2**63)  # what numpy calls "not a time"


@dataclass(slots=True, eq=False)
class Entry:
    """One delivery of a command.

    Attributes
    ----------
    gateway, gateway_id : str
        The local name, and the platform's id.
    received_us : int
    command_id, kind : str
        Empty if it was no command.
    issued_us, answered_us : int
        `NEVER_US`: not known, not yet. Answered is when a stream had stored the answer.
    status : str
    message : str
    deliveries : int
    repeated : bool
        Whether it had been answered before, and was not done again.
    """

    gateway: str
    gateway_id: str
    received_us: int
    command_id: str = ""
    kind: str = ""
    issued_us: int = NEVER_US
    answered_us: int = NEVER_US
    status: Fate = "waiting"
    message: str = ""
    deliveries: int = 1
    repeated: bool = False


class CommandLog:
    """What the gateways of a run were told, and what they said; the last 100,000.

    Attributes
    ----------
    forgotten : int
        Entries that had to make room for later ones.
    watch : callable (entry) or None
        Told what became of each; must be quick.
    """

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self.forgotten = 0
        self.watch: Callable[[Entry], None] | None = None
        self._entries: deque[Entry] = deque(maxlen=rows_max)
        self._counts: Counter[str] = Counter()
        self._types: Counter[tuple[str, str]] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        told = ", ".join(f"{count:,} {what}" for what, count in self.counts().items() if count)
        return f"<CommandLog: {told or 'no command yet'}>"

    def add(self, entry: Entry) -> Entry:
        """Take an entry in; it may still change."""
        self.forgotten += len(self._entries) == self._entries.maxlen
        self._entries.append(entry)
        return entry

    def settle(self, entry: Entry, status: Fate, message: str = "") -> None:
        """Note what became of a command, once it is certain."""
        entry.status, entry.message = status, message
        self._counts[status] += 1
        if not entry.repeated:
            self._types[entry.kind if entry.kind in TYPES else "other", status] += 1
        if self.watch is not None:
            self.watch(entry)

    def note(self, trouble: str) -> None:
        """Count something that should be rare: one of `TROUBLES`."""
        self._counts[trouble] += 1

    def counts(self) -> dict[str, int]:
        """Return how many became what, and how often there was what trouble, since the start.

        ack, nack, expired, terminated, returned; and delayed (held by an anomaly), repeated (not
        done again), retried (an answer was not stored at once), unanswered (given up until it is
        delivered again), overflowed (there was no room for it yet), failed (it could not be done,
        or not be remembered), unsaid (its stream could not be told).
        """
        return {name: self._counts[name] for name in (*FATES[2:], *TROUBLES)}

    def by_type(self) -> dict[tuple[str, ...], float]:
        """Return how many commands of each type, "other" too, became what; repeats count once."""
        return {key: float(count) for key, count in self._types.items()}

    def last(self, count: int) -> list[Entry]:
        """Return the last deliveries, the newest first."""
        return list(islice(reversed(self._entries), count))

    def frame(self) -> pd.DataFrame:
        """Return a row per delivery, in the order in which they came.

        Columns: command_id, gateway, gateway_id, type, status, message, issued_at, received_at,
        answered_at, latency (seconds from issued to when the answer was stored; by two clocks),
        deliveries, repeated.
        """
        import pandas as pd

        entries = list(self._entries)
        issued_us, received_us, answered_us = (
            np.array([getattr(entry, name) for entry in entries], dtype=np.int64)
            for name in ("issued_us", "received_us", "answered_us"))
        known = (issued_us != NEVER_US) & (answered_us != NEVER_US)
        waited_us = np.where(known, answered_us, 0) - np.where(known, issued_us, 0)
        return pd.DataFrame({
            "command_id": pd.Series([entry.command_id for entry in entries], dtype="str"),
            "gateway": _categories([entry.gateway for entry in entries]),
            "gateway_id": _categories([entry.gateway_id for entry in entries]),
            "type": _categories([entry.kind for entry in entries]),
            "status": pd.Categorical([entry.status for entry in entries],
                                     categories=pd.Index(FATES, dtype="str")),
            "message": pd.Series([entry.message for entry in entries], dtype="str"),
            "issued_at": _instants(issued_us),
            "received_at": _instants(received_us),
            "answered_at": _instants(answered_us),
            "latency": np.where(known, waited_us / 1e6, np.nan),
            "deliveries": np.array([entry.deliveries for entry in entries], dtype=np.int64),
            "repeated": np.array([entry.repeated for entry in entries], dtype=np.bool_),
        })


def _categories(values: list[str]) -> Any:
    import pandas as pd

    return pd.Categorical(values, categories=pd.Index(list(dict.fromkeys(values)), dtype="str"))


def _instants(times_us: Any) -> Any:
    import pandas as pd

    return pd.DatetimeIndex(times_us.astype("datetime64[us]")).tz_localize("UTC")
