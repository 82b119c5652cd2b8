"""`memory:name`: messages kept in this process, for tests and documents."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from iotsim.publishers.base import Item, Limits, Link, Verdicts, check_options, whole
from iotsim.publishers.sinks import SinkLink

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

    @classmethod
    def build(cls, url: str, **options: Any) -> Self:
        """Return the publisher for a URL and options; see `publishers.base.build`."""
        check_options("memory", options, ("capacity",))
        limits = Limits.take(options)
        capacity = whole("capacity", options.get("capacity", CAPACITY), 1, 100_000_000)
        return cls(url.partition(":")[2].strip("/"), limits, capacity)

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

    def link(self, lane: int, run_id: str, verdicts: Verdicts) -> Link:
        """Return the link; opening it empties the list."""
        store: deque[Message] = deque(maxlen=self.capacity)

        def begin() -> None:
            _STORES.pop(self.name, None)
            while len(_STORES) >= NAMES_MAX:
                del _STORES[next(iter(_STORES))]
            _STORES[self.name] = store

        def keep(items: Sequence[Item]) -> None:
            store.extend(item[:3] for item in items)

        return SinkLink(self.url, verdicts, begin, keep)
