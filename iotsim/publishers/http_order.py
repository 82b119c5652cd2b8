"""In which order the requests of a link leave: those of one device after one another.

Messages stand in lines. A line is a device or, for batches, a share of the devices or a topic;
it has one request at a time. A batch that was written stays the same batch until its verdict,
so that it goes out again under the same key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

from iotsim.publishers.base import Item
from iotsim.publishers.ordering import device_of
from iotsim.seeding import fnv1a

Entry: TypeAlias = tuple[int, Item]


@dataclass(slots=True, eq=False)
class Line:
    """Messages that leave one after another, oldest first.

    Attributes
    ----------
    pending : deque of (token, item)
    head : tuple of int
        The tokens that must leave next, and are away until the lane hands them over again.
    busy : bool
        Whether it has a request, or rests after one.
    """

    key: object
    pending: deque[Entry] = field(default_factory=deque)
    head: tuple[int, ...] = ()
    busy: bool = False
    listed: bool = False


class Order:
    """What waits in a link, and what of it may leave.

    Parameters
    ----------
    batch : int
        How many messages a request may hold.
    shares : int
        Into how many lines batches are sorted.
    by_topic : bool
        Whether a batch must have one topic.
    patient : bool
        Whether a batch that is not full waits for `hurry`.
    """

    def __init__(self, batch: int, shares: int, by_topic: bool, patient: bool = False) -> None:
        self._batch = batch
        self._patient = patient
        self._lines: dict[object, Line] = {}
        self._ready: deque[Line] = deque()
        self._groups: dict[int, tuple[int, ...]] = {}  # token → the batch it was written in
        self._key: Callable[[Item], object] = _device
        if batch > 1:
            self._key = _topic_of if by_topic else _share(shares)

    def add(self, token: int, item: Item) -> None:
        """Take a message in; one that was here before goes to its place."""
        key = self._key(item)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key)
        pending = line.pending
        if pending and token < pending[-1][0]:
            line.pending = deque(sorted((*pending, (token, item))))
        else:
            pending.append((token, item))
        self._list(line)

    def take(self) -> tuple[Line, list[Entry]] | None:
        """Return the next request's line and messages, or None; the line is then busy."""
        while self._ready:
            line = self._ready.popleft()
            line.listed = False
            if not self._can_leave(line):
                continue
            pending = line.pending
            head = line.head or self._groups.get(pending[0][0], ())
            count = len(head) or min(self._batch, len(pending))
            if not head and self._groups:  # it ends where one begins that was written before
                fresh = (token not in self._groups for token, _ in islice(pending, count))
                count = next((i for i, new in enumerate(fresh) if not new), count)
            chunk = [pending.popleft() for _ in range(count)]
            line.busy, line.head = True, ()
            if self._batch > 1:
                self._group([token for token, _ in chunk])
            return line, chunk
        return None

    def free(self, line: Line) -> None:
        """Let a line have its next request."""
        line.busy = False
        if line.pending or line.head:
            self._list(line)
        elif self._lines.get(line.key) is line:
            del self._lines[line.key]

    @property
    def waits(self) -> bool:
        """Whether a batch that is not full waits."""
        return self._patient and any(
            line.pending and not line.busy and not line.listed for line in self._lines.values()
        )

    def hurry(self) -> None:
        """Let batches leave that are not full."""
        for line in self._lines.values():
            self._list(line, hurry=True)

    def split(self, line: Line, chunk: Sequence[Entry]) -> None:
        """Put a batch back as two."""
        middle = len(chunk) // 2
        for half in (chunk[:middle], chunk[middle:]):
            self._group([token for token, _ in half])
        line.pending.extendleft(reversed(chunk))

    def forget(self, tokens: Sequence[int]) -> None:
        """Forget batches that have their verdict."""
        for token in tokens:
            self._groups.pop(token, None)

    def pass_over(self, gone: set[int]) -> None:
        """Forget messages that will not come again; those written with them go without."""
        for token in gone & self._groups.keys():
            group = self._groups.pop(token, ())
            rest = tuple(one for one in group if one not in gone)
            self._groups.update(dict.fromkeys(rest, rest))
        for line in self._lines.values():
            if line.head:
                line.head = tuple(token for token in line.head if token not in gone)
            self._list(line)

    def withdraw(self) -> list[int]:
        """Take out all that has not left; what comes again is taken as it comes."""
        tokens = [token for line in self._lines.values() for token, _ in line.pending]
        self._ready.clear()
        for line in list(self._lines.values()):
            line.pending.clear()
            line.head, line.listed = (), False
            if not line.busy:
                del self._lines[line.key]
        return sorted(tokens)

    def clear(self) -> None:
        """Begin afresh; only which messages were written together is remembered."""
        self._lines.clear()
        self._ready.clear()

    def _group(self, tokens: list[int]) -> None:
        self._groups.update(dict.fromkeys(tokens, tuple(tokens)))

    def _list(self, line: Line, hurry: bool = False) -> None:
        if self._patient and not hurry and len(line.pending) < self._batch and not (
            line.pending and line.pending[0][0] in self._groups  # was written before
        ):
            return
        if not line.listed and self._can_leave(line):
            line.listed = True
            self._ready.append(line)

    def _can_leave(self, line: Line) -> bool:
        if line.busy or not line.pending:
            return False
        head = line.head or self._groups.get(line.pending[0][0], ())
        return not head or tuple(token for token, _ in islice(line.pending, len(head))) == head


def _device(item: Item) -> str:
    return device_of(item[0], item[2])


def _topic_of(item: Item) -> str:
    return item[0]


def _share(shares: int) -> Callable[[Item], object]:
    return lambda item: fnv1a(device_of(item[0], item[2])) % shares
