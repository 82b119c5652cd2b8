"""Hears which gateways a platform has decommissioned, over a small connection of its own.

Over our own session rather than nats-py: the same certificates, pace and texts as the gateways,
no reconnection that hangs, and a durable that is not deleted when we end. So what happens while
nobody listens is heard afterwards. Each instance has its own durable, and hears everything.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias
from uuid import UUID

from iotsim.errors import told
from iotsim.gateway.consumer import Delivery, Durable, PushConsumer
from iotsim.gateway.link import PACE, ConsumingLink
from iotsim.publishers.base import Loss, Verdicts
from iotsim.publishers.connector import Connector
from iotsim.publishers.nats import NatsPublisher
from iotsim.seeding import fnv1a

STREAM, SUBJECTS = "DECOMMISSION", "gateway.decommissioned.>"
ACK_WAIT_S = 30.0
KEEP_S = 2 * 86_400.0  # the stream forgets after one day: nothing is missed, and nothing piles up
PENDING_MAX = 256  # events that a server hands us before we have dealt with the first
AT_ONCE_MAX = 16
HANDLE_S = 30.0  # for one gateway
TRIES_MAX = 3
AGAIN_S = 5.0
END_S = 2.0

Handler: TypeAlias = Callable[[str, str], Awaitable[None]]


class Decommissions(Verdicts):
    """Listens for decommissioned gateways and has them removed.

    An event of a gateway that is not ours, or whose subject is not
    `gateway.decommissioned.<tenant uuid>.<gateway uuid>`, is acknowledged and ignored; of one that
    is another tenant's here, there is a notice. Ours are acknowledged once they are removed: when
    we end before, they come again. One that cannot be removed is tried 3 times. Bodies are not
    read.

    Parameters
    ----------
    publisher : NatsPublisher
        The server, with a certificate that may listen to `gateway.decommissioned.>`: none of a
        gateway's own.
    instance : str
        Whose durable it is, such as the name of a store.
    tenant_of : callable (gateway id) -> tenant id or None
        Which gateways are ours.
    handler : coroutine function (tenant id, gateway id)
        Removes one; up to 16 at a time.
    notice : callable (text)

    Attributes
    ----------
    handled, ignored, failed : int
        Events.
    """

    def __init__(
        self,
        publisher: NatsPublisher,
        instance: str,
        tenant_of: Callable[[str], str | None],
        handler: Handler,
        notice: Callable[[str], None],
        *,
        ack_wait_s: float = ACK_WAIT_S,
        again_s: float = AGAIN_S,
    ) -> None:
        name = durable_name(instance)
        self.handled = self.ignored = self.failed = 0
        self._tenant_of, self._handler, self._say = tenant_of, handler, notice
        self._ack_wait_s, self._again_s = ack_wait_s, again_s
        self._link = ConsumingLink(publisher, name, self, "the listener to decommissions")
        durable = Durable(STREAM, name, SUBJECTS, f"_INBOX.{name}", ack_wait_s, -1, PENDING_MAX,
                          KEEP_S)
        self._consumer = PushConsumer(self._link.line, durable, self._delivered, self._changed)
        self._link.consumers[name] = self._consumer
        self._connector = Connector(name, publisher.url, self._link, asyncio.Semaphore(1),
                                    self._opened, notice, PACE)
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)
        self._open: dict[int, Delivery] = {}  # by sequence; the latest of each
        self._tasks: set[asyncio.Task[None]] = set()
        self._pulse: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = self.why_not or "listening"
        return f"<Decommissions of {self._link.line.url}: {state}, {self.handled:,} handled>"

    @property
    def why_not(self) -> str:
        """Why nothing is heard for now; empty if it is."""
        return self._consumer.why_not

    async def open(self) -> None:
        """Connect; raises ConnectError."""
        await self._connector.open()

    def begin(self) -> None:
        """Connect in the background, however often it takes."""
        self._connector.seek(at_once=True)

    async def close(self) -> None:
        """Hear no more; what is being handled has 2 s to end. The durable stays."""
        self._closed = True
        if (ending := self._consumer.remove()) is not None:
            await asyncio.wait([ending], timeout=END_S)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=END_S)
        for task in self._tasks:
            task.cancel()
        if self._pulse is not None:
            self._pulse.cancel()
        await self._connector.end()
        await self._link.close()

    # -- events -----------------------------------------------------------------------------------

    def _delivered(self, delivery: Delivery) -> None:
        who = subject_ids(delivery.subject)
        try:
            known = None if who is None else self._tenant_of(who[1])
        except Exception as error:
            self._say(f"a decommissioned gateway could not be looked up: {told(error)}")
            delivery.nak(self._again_s)
            return
        if who is None or known is None or known != who[0]:
            self.ignored += 1
            if who is not None and known is not None:
                self._say(f"a decommission of gateway {who[1]} is ignored: it names tenant "
                          f"{who[0]}, and the gateway belongs to {known}")
            delivery.ack()
            return
        before = delivery.sequence in self._open
        self._open[delivery.sequence] = delivery
        if before:  # it took long, and came again
            return
        task = asyncio.get_running_loop().create_task(
            self._handle(delivery.sequence, *who), name="iotsim decommission")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._pulse is None:
            self._beat()

    async def _handle(self, sequence: int, tenant_id: str, gateway_id: str) -> None:
        problem = ""
        try:
            async with self._at_once, asyncio.timeout(HANDLE_S):
                await self._handler(tenant_id, gateway_id)
        except Exception as error:
            problem = told(error)
        delivery = self._open.pop(sequence)
        if not problem:
            self.handled += 1
            delivery.ack()
            return
        again = delivery.deliveries < TRIES_MAX
        self.failed += not again
        todo = "It is tried again." if again else "Remove it by hand."
        self._say(f"gateway {gateway_id} is decommissioned and could not be removed: {problem}. "
                  f"{todo}")
        if again:
            delivery.nak(self._again_s)
        else:
            delivery.ack()

    def _beat(self) -> None:
        for delivery in self._open.values():
            delivery.in_progress()
        self._pulse = None
        if self._open:
            self._pulse = asyncio.get_running_loop().call_later(self._ack_wait_s / 3, self._beat)

    def _changed(self, why: str) -> None:
        self._say(f"no decommissions are heard for now: {why}" if why
                  else "decommissions are heard again")

    # -- the connection ---------------------------------------------------------------------------

    def _opened(self, window: int) -> None:
        self._connector.failures = 0

    def lost(self, loss: Loss) -> None:
        """Connect again."""
        self._say(f"link lost: {loss.why}")
        if not self._closed:
            self._connector.seek()

    def notice(self, text: str) -> None:
        """Pass a line of the link's on."""
        self._say(text)

    def acknowledged(self, tokens: Sequence[int]) -> None:
        """Nothing is published here."""

    def refused(self, tokens: Sequence[int], reason: str, *, retry: bool = False) -> None:
        """Nothing is published here."""

    def returned(self, tokens: Sequence[int], rest_s: float = 0.0) -> None:
        """Nothing is published here."""

    def uncertain(self, tokens: Sequence[int], reason: str = "") -> None:
        """Nothing is published here."""

    def ready(self) -> None:
        """Nothing is published here."""


def durable_name(instance: str) -> str:
    """Return the name of an instance's durable: different for different instances.

    Examples
    --------
    >>> durable_name("gateways")
    'iotsim-decommission-gateways'
    >>> durable_name("my gateways.db")
    'iotsim-decommission-my-gateways-db-67e08f76'
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "-", instance)[:100]
    mark = "" if safe == instance else f"-{fnv1a(instance) & 0xFFFFFFFF:08x}"
    return f"iotsim-decommission-{safe}{mark}"


def subject_ids(subject: str) -> tuple[str, str] | None:
    """Return tenant and gateway of an event's subject, or None if it is not of that form.

    Examples
    --------
    >>> subject_ids("gateway.decommissioned.acme.gw-1")
    """
    parts = subject.split(".")
    if len(parts) != 4 or parts[:2] != ["gateway", "decommissioned"]:
        return None
    try:
        return str(UUID(parts[2])), str(UUID(parts[3]))
    except ValueError:
        return None
