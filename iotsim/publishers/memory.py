"""`memory:name`: messages kept in this process, for tests and documents."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

from iotsim.publishers.base import (
    UNTRACED,
    Identity,
    Item,
    Limits,
    Link,
    Tracing,
    Verdicts,
    check_options,
    whole,
)
from iotsim.publishers.sinks import Sharing, Sink, SinkLink

CAPACITY = 1_000_000
NAMES_MAX = 64

Message = tuple[str, bytes, str]  # topic, payload, id

_STORES: dict[str, deque[Message]] = {}


def messages(name: str = "") -> list[Message]:
    """Return what the last run that published to `memory:name` left: (topic, payload, id).

    The oldest are forgotten beyond the publisher's capacity.
    """
    return list(_STORES.get(name, ()))


@dataclass(frozen=True, slots=True)
class MemoryPublisher:
    """Keeps messages in a bounded list; see `messages`."""

    name: str
    limits: Limits
    capacity: int = CAPACITY
    tracing: Tracing = UNTRACED
    per_device: ClassVar[bool] = False

    @classmethod
    def build(cls, url: str, **options: Any) -> Self:
        """Return the publisher for a URL and options; see `publishers.base.build`."""
        check_options("memory", options, ("capacity",))
        limits, tracing = Limits.take(options), Tracing.take(options, can_stamp=False)
        capacity = whole("capacity", options.get("capacity", CAPACITY), 1, 100_000_000)
        return cls(url.partition(":")[2].strip("/"), limits, capacity, tracing)

    @property
    def url(self) -> str:
        """The address."""
        return f"memory:{self.name}"

    def lanes(self, devices: int) -> int:
        """Return 1."""
        return 1

    def messages(self) -> list[Message]:
        """Return what was published, oldest first: (topic, payload, id)."""
        return messages(self.name)

    def link(
        self, lane: int, run_id: str, verdicts: Verdicts, device: Identity | None = None
    ) -> Link:
        """Return the link; the first opening in a run empties the list."""
        kept = _KEPT.sink(self.name, run_id, partial(_Kept, self.name))
        kept.hold(self.capacity)
        return SinkLink(self.url, verdicts, kept)


class _Kept(Sink):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._messages: deque[Message] = deque(maxlen=0)
        self._begun = False

    def hold(self, capacity: int) -> None:
        # Of publishers that share it, the one that asks for most decides.
        if capacity > (self._messages.maxlen or 0):
            wider = deque(self._messages, capacity)
            if _STORES.get(self._name) is self._messages:
                _STORES[self._name] = wider
            self._messages = wider

    def begin(self) -> None:
        if not self._begun:
            _STORES.pop(self._name, None)
            while len(_STORES) >= NAMES_MAX:
                del _STORES[next(iter(_STORES))]
            _STORES[self._name] = self._messages
            self._begun = True

    def write(self, items: Sequence[Item]) -> None:
        self._messages.extend(item[:3] for item in items)


_KEPT: Sharing[_Kept] = Sharing()
