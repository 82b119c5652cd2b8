"""What of a lane's messages was not handed over yet: slices of blocks, oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import repeat

from iotsim.publishers.base import Item
from iotsim.publishers.payload import Messages


class Backlog:
    """A queue of messages that never copies one; each gets its token as it leaves."""

    def __init__(self) -> None:
        self._slices: deque[_Slice] = deque()
        self._count = 0
        self._next_token = 0

    def __len__(self) -> int:
        return self._count

    def append(self, messages: Messages, start: int, stop: int) -> None:
        """Put part of a block at the end."""
        self._slices.append(_Slice(messages, start, stop))
        self._count += stop - start

    def take(self, room: int, now_s: float) -> dict[int, Item]:
        """Remove up to `room` messages from the front and return them by token, in order."""
        batch: dict[int, Item] = {}
        while room and self._slices:
            head = self._slices[0]
            part = min(room, head.stop - head.start)
            token = self._next_token
            batch.update(zip(range(token, token + part), head.items(part, now_s), strict=True))
            self._next_token += part
            room -= part
            self._cut(head, part)
        return batch

    @property
    def first(self) -> tuple[str, str]:
        """Topic and id of the message at the front."""
        head = self._slices[0]
        return head.messages.topics[head.start], head.messages.ids[head.start]

    def oldest(self, count: int) -> list[str]:
        """Return the ids of up to `count` messages at the front."""
        found: list[str] = []
        for part in self._slices:
            if len(found) >= count:
                break
            found += part.messages.ids[part.start : min(part.stop, part.start + count - len(found))]
        return found

    def drop(self, count: int) -> int:
        """Remove up to `count` messages from the front; return how many there were."""
        dropped = 0
        while dropped < count and self._slices:
            head = self._slices[0]
            part = min(count - dropped, head.stop - head.start)
            dropped += part
            self._cut(head, part)
        return dropped

    def _cut(self, head: _Slice, part: int) -> None:
        head.start += part
        self._count -= part
        if head.start == head.stop:
            self._slices.popleft()


class _Slice:
    __slots__ = ("messages", "start", "stop")

    def __init__(self, messages: Messages, start: int, stop: int) -> None:
        self.messages, self.start, self.stop = messages, start, stop

    def items(self, count: int, now_s: float) -> Iterable[Item]:
        first, last = self.start, self.start + count
        block = self.messages
        return zip(
            block.topics[first:last],
            block.payloads[first:last],
            block.ids[first:last],
            repeat(now_s, count),
            strict=True,
        )
