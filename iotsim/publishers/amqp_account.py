"""What is under way on one AMQP channel: delivery tags, returns, rejections, who goes one by one.

A confirming channel numbers what is published, from 1 on. What no queue took comes back before
it is acknowledged; what a full queue rejects is answered with a nack. Where a device's message
was rejected, its next ones go one by one, so that none overtakes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from pamqp import commands, header

from iotsim.publishers.amqp import AmqpPublisher
from iotsim.publishers.amqp_printer import Printer
from iotsim.publishers.amqp_wire import Confirm
from iotsim.publishers.base import Item, Verdicts
from iotsim.publishers.ordering import device_of
from iotsim.publishers.refusals import Refusals

NACKED = "the broker does not take it now (nack)"

Entry: TypeAlias = tuple[int, Item]  # token, message
Refused: TypeAlias = list[tuple[int, str]]  # token, why
Write: TypeAlias = Callable[[bytes], None]


class Account:
    """Gives every message of a channel its verdict.

    Parameters
    ----------
    publisher : AmqpPublisher
    verdicts : Verdicts
    """

    def __init__(self, publisher: AmqpPublisher, verdicts: Verdicts) -> None:
        self.printer = Printer(publisher)
        self._verdicts = verdicts
        self._confirms = publisher.confirms
        self._strict = publisher.strict_order
        self._pending: dict[int, Entry] = {}  # by delivery tag
        self._tag = 0  # the last one
        self._low = 1  # none below it is pending
        self._unroutable: dict[int, str] = {}  # delivery tag → why; its ack comes later
        self._came_back = 0  # the last tag of those
        self._rejected: set[str] = set()  # devices that go one by one since a nack
        self._behind: dict[str, deque[Entry]] = {}  # device with one under way → what waits

    def forget(self) -> None:
        """Begin anew, on a new connection."""
        self._begin_channel()
        self._behind.clear()
        self._rejected.clear()
        self.printer.forget_denied()

    def _begin_channel(self) -> None:
        self._pending.clear()
        self._unroutable.clear()
        self._tag, self._low, self._came_back = 0, 1, 0

    @property
    def unwritten(self) -> list[int]:
        """The tokens of what waits behind a message of its device."""
        return [token for waiting in self._behind.values() for token, _ in waiting]

    # -- out ----------------------------------------------------------------------------------

    def hand_over(self, tokens: Sequence[int], items: Sequence[Item], write: Write) -> None:
        """Write messages, and say of each what is known at once."""
        out: list[bytes] = []
        refusals: Refused = []
        singly = self._strict or bool(self._rejected)
        for token, item in zip(tokens, items, strict=True):
            if not singly or self._has_turn(token, item):
                self._print(token, item, out, refusals)
        write(b"".join(out))
        self._refuse(refusals)
        if not self._confirms:
            bad = {token for token, _ in refusals}
            self._verdicts.acknowledged([token for token in tokens if token not in bad])

    def _has_turn(self, token: int, item: Item) -> bool:
        # Whether a message of a device that goes one by one may go; else it waits behind.
        device = _device(item)
        if device in self._behind:
            self._behind[device].append((token, item))
            return False
        if self._strict or device in self._rejected:
            self._behind[device] = deque()
        return True

    def _print(self, token: int, item: Item, out: list[bytes], refusals: Refused) -> None:
        following: Entry | None = (token, item)
        while following is not None:
            token, item = following
            made = self.printer.printed(item)
            if isinstance(made, bytes):
                out.append(made)
                if self._confirms:
                    self._tag += 1
                    self._pending[self._tag] = (token, item)
                return
            refusals.append((token, made))
            following = self._next(item)

    def _next(self, item: Item) -> Entry | None:
        # What may go now that a message has its end, if its device goes one by one.
        device = _device(item) if self._behind else ""
        waiting = self._behind.get(device)
        if waiting:
            return waiting.popleft()
        self._behind.pop(device, None)
        return None

    def _refuse(self, refusals: Refused) -> None:
        gathered = Refusals()
        for token, why in refusals:
            gathered.add(token, why)
        gathered.tell(self._verdicts)

    # -- in -----------------------------------------------------------------------------------

    def confirmed(self, confirms: Sequence[Confirm], write: Write) -> None:
        """Take what the broker acknowledges or rejects, and write what may follow."""
        done: list[Entry] = []
        rejected: list[Entry] = []
        refusals: Refused = []
        for tag, multiple, taken in confirms:
            first = self._low if multiple else tag
            if first <= self._low <= tag:
                self._low = tag + 1
            for one in range(first, min(tag, self._tag) + 1):
                entry = self._pending.pop(one, None)
                if entry is None:
                    continue
                why = self._unroutable.pop(one, "") if self._unroutable else ""
                if why:
                    refusals.append((entry[0], why))
                (done if taken else rejected).append(entry)
        self._refuse(refusals)
        # The lane passes over what was refused just now: it is no longer in flight.
        self._verdicts.acknowledged([token for token, _ in done])
        if rejected:
            back = self._reject([item for _, item in rejected])
            self._verdicts.refused([token for token, _ in rejected], NACKED, retry=True)
            self._verdicts.returned(back)
        if self._behind:
            self._let_follow([item for _, item in done], write)

    def _reject(self, items: Sequence[Item]) -> list[int]:
        # From now on their devices go one by one; returns what waits behind.
        back: list[int] = []
        for device in map(_device, items):
            self._rejected.add(device)
            back += [token for token, _ in self._behind.pop(device, ())]
        return back

    def _let_follow(self, items: Sequence[Item], write: Write) -> None:
        out: list[bytes] = []
        refusals: Refused = []
        for item in items:
            following = self._next(item)
            if following is not None:
                self._print(*following, out, refusals)
        write(b"".join(out))
        self._refuse(refusals)

    def came_back(self, back: commands.Basic.Return, content: header.ContentHeader) -> None:
        """Take a message that no queue took; its acknowledgement is still to come."""
        # They come back in the order of sending: the search goes on where the last was found.
        ident, key = content.properties.message_id, back.routing_key
        for first in (self._came_back + 1, self._low):
            for tag in range(first, self._tag + 1):
                entry = self._pending.get(tag)
                if entry is None or entry[1][2] != ident or tag in self._unroutable:
                    continue
                if self.printer.key(entry[1]) == key:
                    words = (back.reply_text or "no route").replace("_", " ").lower()
                    self._unroutable[tag] = f"{words} ({back.reply_code})"
                    self._came_back = tag
                    return

    def reopened(self, close: commands.Channel.Close, write: Write) -> bool:
        """Begin a channel anew where the broker named the one message that it minds.

        That one is refused, and all else without a verdict is written again in its order.
        False, and nothing is done, if none was named.
        """
        culprit = self.printer.culprit(close)
        if culprit is None:
            return False
        why, is_it = culprit
        guilty = next((tag for tag, (_, item) in self._pending.items() if is_it(item)), 0)
        if not guilty and self._confirms:
            return False
        again = [entry for tag, entry in self._pending.items() if tag != guilty]
        out: list[bytes] = []
        refusals: Refused = []
        if guilty:
            token, item = self._pending[guilty]
            refusals.append((token, why))
            following = self._next(item)
            if following is not None:
                again.append(following)
        else:
            self._verdicts.notice(f"the broker did not take a message: {why}")
        self._begin_channel()
        for token, item in again:
            self._print(token, item, out, refusals)
        write(b"".join(out))
        self._refuse(refusals)
        return True


def _device(item: Item) -> str:
    return device_of(item[0], item[2])
