"""What of a lane's messages goes out again: it was handed over before, or waits aside for a while.

All of it leaves before the queue, oldest first. What was refused for now or given back untried is
held: it counts as queued. The rest is unknown: it was written, and has no verdict.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from iotsim.publishers.base import Item
from iotsim.publishers.ordering import device_of


class Waiting:
    """Messages by token; the oldest can be taken without anybody sorting."""

    __slots__ = ("_by_device", "_held", "_held_order", "_items", "_order")

    def __init__(self) -> None:
        self._items: dict[int, Item] = {}
        self._order: list[int] = []  # heaps; what is no longer here is passed over
        self._held: set[int] = set()
        self._held_order: list[int] = []
        self._by_device: dict[str, list[int]] = {}  # of those held

    def __len__(self) -> int:
        return len(self._items)

    @property
    def held(self) -> int:
        """How many are held."""
        return len(self._held)

    @property
    def ids(self) -> list[str]:
        """The ids of all of them."""
        return [item[2] for item in self._items.values()]

    def put(self, messages: Mapping[int, Item], *, held: bool) -> None:
        """Take messages in."""
        self._items.update(messages)
        _push(self._order, messages)
        if held:
            self._held.update(messages)
            _push(self._held_order, messages)
            for token, item in messages.items():
                heapq.heappush(self._by_device.setdefault(device_of(item[0], item[2]), []), token)

    def first(self) -> Item | None:
        """Return the oldest."""
        token = self._first(self._order, self._items)
        return None if token is None else self._items[token]

    def take(self, room: int) -> tuple[dict[int, Item], int]:
        """Remove up to `room` of the oldest; return them, and how many of them were held."""
        batch: dict[int, Item] = {}
        held = 0
        while len(batch) < room and (token := self._first(self._order, self._items)) is not None:
            heapq.heappop(self._order)
            held += self._remove(token, batch)
        return batch, held

    def take_of_others(self, device: str) -> tuple[dict[int, Item], int]:
        """Remove the oldest message of another device, if there is one; as `take`."""
        others = (token for token, item in self._items.items()
                  if device_of(item[0], item[2]) != device)
        token, batch = min(others, default=None), dict[int, Item]()
        return batch, 0 if token is None else self._remove(token, batch)

    def drop(self, count: int) -> dict[int, Item]:
        """Remove and return up to `count` of the oldest that are held."""
        batch: dict[int, Item] = {}
        while len(batch) < count:
            token = self._first(self._held_order, self._held)
            if token is None:
                break
            self._remove(token, batch)
        return batch

    def oldest_held(self, device: str) -> int | None:
        """Return the token of a device's oldest message that is held."""
        order = self._by_device.get(device)
        if order is None:
            return None
        token = self._first(order, self._held)
        if token is None:
            del self._by_device[device]
        return token

    def clear(self) -> None:
        """Forget everything."""
        for store in (self._items, self._order, self._held, self._held_order, self._by_device):
            store.clear()

    def _remove(self, token: int, batch: dict[int, Item]) -> bool:
        batch[token] = self._items.pop(token)
        held = token in self._held
        self._held.discard(token)
        if not self._held:
            self._held_order.clear()
            self._by_device.clear()
        return held

    @staticmethod
    def _first(order: list[int], here: Mapping[int, Item] | set[int]) -> int | None:
        while order and order[0] not in here:
            heapq.heappop(order)
        return order[0] if order else None


def _push(order: list[int], tokens: Iterable[int]) -> None:
    fresh = list(tokens)
    if len(fresh) < len(order) // 8:
        for token in fresh:
            heapq.heappush(order, token)
    else:
        order += fresh
        heapq.heapify(order)
