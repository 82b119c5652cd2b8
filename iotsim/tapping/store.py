"""What a tap holds: whole messages, up to a bound, and what is wrong with it.

A record is, without padding: when it was received and when it says it was sent (µs since 1970,
wall clock; 0 if it does not say), flags (QoS, retain, dup), the sizes of topic, id and payload,
then the three themselves.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from iotsim.clock import monotonic, stamp_us

RECORD = struct.Struct("<qqBHHI")
QOS, RETAIN, DUP = 3, 4, 8
AWAY_MAX = 1000

# receipt µs, topic, id, payload, flags, sent µs
Record = tuple[int, str, str, bytes, int, int]


class Source(Protocol):
    """Where messages come from; made from the settings and the store."""

    def run(self) -> None:
        """Connect, subscribe and take messages in until `close`; tells the store how it goes.

        Called on a thread of its own. An exception becomes the tap's problem.
        """

    def close(self) -> None:
        """Let `run` return, from another thread, with a goodbye to the peer."""


class Store:
    """Keeps what arrives, in order, and the state that the parent hears of.

    Parameters
    ----------
    capacity : int
        Messages; those beyond are counted and make the tap ill.
    """

    def __init__(self, capacity: int) -> None:
        self.changed = threading.Event()
        self._capacity = capacity
        self._records: list[bytes] = []
        self._anchor_us = stamp_us() - round(monotonic() * 1e6)
        self._heard_us = 0  # when the link was last known to be there
        self._away: list[list[int]] = []
        self._state: dict[str, Any] = {
            "dropped": 0, "connected": False, "subscribed": False, "losses": 0, "faults": 0,
            "problem": "", "away": self._away,
        }  # fmt: skip

    def take(
        self, topic: bytes, ident: bytes, payload: bytes | bytearray, flags: int = 0,
        sent: bytes = b"",
    ) -> None:
        """Keep one message; never raises.

        Parameters
        ----------
        topic, ident, payload : bytes
        flags : int
            QoS, plus 4 if retained, plus 8 if the peer says that it may be a duplicate.
        sent : bytes
            Decimal µs since 1970, as the sender stamped it; empty if it did not.
        """
        try:
            if len(self._records) >= self._capacity:
                self._state["dropped"] += 1
            else:
                self._heard_us = now_us = self._now_us()
                sent_us = int(sent) if sent.isdigit() and len(sent) < 19 else 0
                head = RECORD.pack(
                    now_us, sent_us, flags, len(topic), len(ident), len(payload)
                )
                self._records.append(b"".join((head, topic, ident, payload)))
        except Exception as error:  # it would end the source
            self._state["faults"] += 1
            self._state["problem"] = f"a message could not be stored: {error}"
        self.changed.set()

    # -- how it is --------------------------------------------------------------------------------

    def connected(self) -> None:
        """Say that there is a connection."""
        self.tell(connected=True)

    def subscribed(self, **facts: Any) -> None:
        """Say that from now on nothing is missed; `url=` where the address is only known now."""
        self._heard_us = self._now_us()
        if self._away and not self._away[-1][1]:
            self._away[-1][1] = self._heard_us
        self.tell(subscribed=True, **facts)

    def lost(self) -> None:
        """Say that the connection was lost: messages may be missing since the last that came."""
        if not self._state["connected"]:
            return
        since_us = self._heard_us or self._now_us()
        if len(self._away) >= AWAY_MAX:  # one long absence is the cautious word for many
            self._away[-1][1] = 0
        elif not self._away or self._away[-1][1]:
            self._away.append([since_us, 0])
        self.tell(connected=False, losses=self._state["losses"] + 1)

    def paused(self) -> None:
        """Say that the connection was lost, but that what comes meanwhile is kept for us."""
        self.tell(connected=False)

    def forgotten(self) -> None:
        """Say that it was not kept."""
        self._state["connected"] = True
        self.lost()

    def _now_us(self) -> int:
        return self._anchor_us + round(monotonic() * 1e6)

    def fail(self, problem: str) -> None:
        """Say what is wrong, in a line, for good."""
        self.tell(problem=problem, connected=False)

    def tell(self, **facts: Any) -> None:
        """Change the state."""
        self._state.update(facts)
        self.changed.set()

    @property
    def state(self) -> dict[str, Any]:
        """The state, with how many messages there are."""
        return {**self._state, "count": len(self._records)}

    def packed(self, first: int, last: int) -> bytes:
        """Return some of the records as bytes."""
        return b"".join(self._records[first:last])


def unpacked(body: bytes) -> Iterator[Record]:
    """Yield the records that `Store.packed` made bytes of."""
    topics: dict[bytes, str] = {}
    position = 0
    while position < len(body):
        time_us, sent_us, flags, *sizes = RECORD.unpack_from(body, position)
        a = position + RECORD.size
        b = a + sizes[0]
        c = b + sizes[1]
        position = c + sizes[2]
        raw = body[a:b]
        topic = topics.get(raw)
        if topic is None:
            topic = topics[raw] = raw.decode("utf-8", "replace")
        ident = body[b:c].decode("utf-8", "replace")
        yield time_us, topic, ident, body[c:position], flags, sent_us
