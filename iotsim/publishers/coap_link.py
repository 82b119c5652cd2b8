"""One CoAP endpoint of a lane: its socket, its message ids, its pace, and what it hears.

A client of our own, made for exact account: aiocoap keeps a backlog without a bound, and drops
all of it when one message is given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from iotsim.clock import monotonic
from iotsim.errors import ConnectError
from iotsim.publishers.base import Item, Link, Loss, Verdicts
from iotsim.publishers.coap import RATE_NON, CoapPublisher, base_path
from iotsim.publishers.coap_codec import (
    ACK,
    CON,
    EMPTY,
    METHODS,
    NON,
    PAYLOAD_FOLLOWS,
    RST,
    TOKEN_BYTES,
    Heard,
    NotCoapError,
    code_text,
    head,
    read,
    request_options,
    topic_path,
)
from iotsim.publishers.coap_exchanges import AHEAD, Exchanges
from iotsim.publishers.coap_numbers import Numbers
from iotsim.publishers.coap_wire import Wire
from iotsim.publishers.ordering import device_of
from iotsim.publishers.refusals import Refusals
from iotsim.seeding import fnv1a, squares64, unit
from iotsim.transport.addresses import failure_text

CONNECT_S = 4.0  # to look up the name, and to agree on keys
PING_S = 4.0
PING_EVERY_S = 0.5
CLOSE_S = 0.4
PAYLOAD_BYTES_MAX = 1024
BURST = 64  # messages that need no answer, in one go
ANSWERED_MAX = 256
TOPICS_MAX = 10_000  # whose options are kept
_PIGGYBACKED = 0x40 | ACK << 4 | TOKEN_BYTES
_RESPONSE, _CLIENT_ERROR = 0x40, 0x80  # from 2.00, from 4.00


class CoapLink(Link):
    """One endpoint (a `Link`).

    Parameters
    ----------
    publisher : CoapPublisher
    name : str
        Seeds message ids, tokens and the chance in time-outs.
    verdicts : Verdicts
    """

    def __init__(self, publisher: CoapPublisher, name: str, verdicts: Verdicts) -> None:
        self.heard_s = 0.0
        self._publisher = publisher
        self._verdicts = verdicts
        self._base = base_path(publisher.address.path)
        self._query = publisher.query
        self._options: dict[str, bytes] = {}  # by topic
        self._confirmable = publisher.confirmable
        self._rate = publisher.rate or (None if publisher.confirmable else RATE_NON)
        self._key, self._draws = fnv1a(name) | 1, 0
        self._wire: Wire | None = None
        self._numbers = Numbers(0, confirmable=publisher.confirmable)
        self._pings: set[int] = set()
        self._pong: asyncio.Future[None] | None = None
        self._exchanges = Exchanges(publisher, self, verdicts)
        self._answered: dict[int, None] = {}  # message ids of answers that we acknowledged
        self._complained = False
        self._free_s = 0.0
        self._pace: asyncio.TimerHandle | None = None

    # -- connection ---------------------------------------------------------------------------

    async def open(self) -> int:
        """Find out whether a CoAP server is there; return how many messages it is handed."""
        self._numbers = Numbers(self._drawn(), confirmable=self._confirmable)
        self._free_s = 0.0
        wire = self._wire = self._publisher.wire(self)
        pong = self._pong = asyncio.get_running_loop().create_future()
        try:
            await self._connect(wire)
            await self._ping(wire, pong)
        except BaseException:
            self.drop()
            raise
        finally:
            self._pong = None
        if not self._confirmable:
            return min(BURST, max(1, (self._rate or BURST) // 20))
        return self._publisher.window * AHEAD

    async def _connect(self, wire: Wire) -> None:
        address = self._publisher.address
        try:
            async with asyncio.timeout(CONNECT_S):
                await wire.connect(address.host, address.port)
        except TimeoutError:
            raise self._refusal(wire.waits_for) from None
        except OSError as error:
            raise self._refusal(failure_text(error)) from None

    async def _ping(self, wire: Wire, pong: asyncio.Future[None]) -> None:
        # An empty confirmable message: whoever speaks CoAP must reject it.
        self._pings.clear()
        every_s = PING_EVERY_S / 2
        try:
            async with asyncio.timeout(PING_S):
                while not pong.done():
                    number = self._numbers.next(monotonic())
                    self._pings.add(number)
                    wire.send(head(CON, EMPTY, number))
                    await asyncio.wait([pong], timeout=every_s)
                    every_s = PING_EVERY_S
        except TimeoutError:
            todo = "Is it a CoAP server, and no firewall between?"
            raise self._refusal(f"no answer to a CoAP ping in {PING_S:g} s", todo) from None
        pong.result()

    async def round_trip(self, topic: str) -> None:
        """Return when the server has answered to a ping."""
        if self._wire is None:
            raise ConnectionResetError
        pong = self._pong = asyncio.get_running_loop().create_future()
        try:
            await self._ping(self._wire, pong)
        finally:
            self._pong = None

    def _refusal(self, why: str, todo: str = "") -> ConnectError:
        return ConnectError(self._publisher.url, why, todo)

    def drop(self) -> None:
        """End the endpoint at once; what was never written comes back, and nothing after it."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
        self._forget()

    async def close(self) -> None:
        """Hand over what the socket still holds; CoAP has no goodbye."""
        wire, self._wire = self._wire, None
        self._forget()
        if wire is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await wire.close()
        except TimeoutError:
            pass
        finally:
            wire.abort()

    def _forget(self) -> None:
        if self._pace is not None:
            self._pace.cancel()
            self._pace = None
        self._answered.clear()
        unsent = self._exchanges.forget()
        if unsent:
            self._verdicts.returned(unsent)

    def end(self, why: str) -> None:
        """End, and say why."""
        if self._wire is not None:
            self.drop()
            self._verdicts.lost(Loss(why))

    # -- sending ------------------------------------------------------------------------------

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        """Take messages, and send those that may go now."""
        if self._wire is None:
            return False
        good: list[tuple[int, str, bytes]] = []
        bad = Refusals()
        for token, item in zip(tokens, items, strict=True):
            try:
                good.append((token, device_of(item[0], item[2]), self._body(item)))
            except ValueError as error:
                bad.add(token, str(error))
        bad.tell(self._verdicts)
        if not self._confirmable:
            return self._send_at_once([(token, body) for token, _, body in good])
        self._exchanges.take(good)
        return self._wire is not None

    def _body(self, item: Item) -> bytes:
        topic, payload = item[0], item[1]
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise ValueError("larger than 1,024 bytes: CoAP would need block-wise transfer")
        options = self._options.get(topic)
        if options is None:
            options = request_options((*self._base, *topic_path(topic)), self._query)
            if len(self._options) >= TOPICS_MAX:
                self._options.clear()
            self._options[topic] = options
        return options + PAYLOAD_FOLLOWS + payload if payload else options

    def _send_at_once(self, messages: Sequence[tuple[int, bytes]]) -> bool:
        # Accepted by the socket is all that is known of them.
        code, now_s = METHODS[self._publisher.method], monotonic()
        sent: list[int] = []
        used_up = False
        for token, body in messages:
            number = self.number(now_s)
            used_up = number is None
            if number is None:
                break
            self.write(head(NON, code, number, self.mark()) + body)
            sent.append(token)
        self._verdicts.acknowledged(sent)
        if used_up:
            self._verdicts.returned([token for token, _ in messages[len(sent):]])
            self.renew()
        self.left(len(sent), now_s)
        return self.writable

    # -- what the exchanges need ----------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether a message may leave now."""
        return self._wire is not None and not self._wire.paused and self._pace is None

    def write(self, data: bytes) -> None:
        """Send one datagram."""
        if self._wire is not None:
            self._wire.send(data)

    def number(self, now_s: float) -> int | None:
        """Return a message id, or None if they are used up."""
        number = self._numbers.take(now_s)
        if number is not None:
            self._pings.discard(number)
        return number

    def mark(self) -> bytes:
        """Return a token of four bytes."""
        return self._drawn().to_bytes(8, "big")[:TOKEN_BYTES]

    def chance(self) -> float:
        """Return a number in [0, 1)."""
        return unit(self._drawn())

    def left(self, count: int, now_s: float) -> None:
        """Take note that messages have left, and rest if it goes too fast."""
        if self._rate is None or self._wire is None:
            return
        self._free_s = max(now_s, self._free_s) + count / self._rate
        if self._pace is None:
            loop = asyncio.get_running_loop()
            self._pace = loop.call_later(self._free_s - now_s, self._go_on)

    def renew(self) -> None:
        """End, because message ids are used up: another port of ours has all of them again."""
        self.end(f"its message ids are used up for {self._numbers.lifetime_s:g} s, it goes on from "
                 "another port; more endpoints= have more of them")

    def _go_on(self) -> None:
        self._pace = None
        self.roomy()

    def _drawn(self) -> int:
        self._draws += 1
        return squares64(self._draws, self._key)

    # -- hearing (called by the wire) -----------------------------------------------------------

    def roomy(self) -> None:
        """Take the news that the socket has room again."""
        if self.writable:
            if self._confirmable:
                self._exchanges.launch()
            else:
                self._verdicts.ready()

    def failed(self, error: Exception) -> None:
        """Take an error of the socket."""
        if self._pong is None:
            self.end(failure_text(error))
        else:
            self._unlike(failure_text(error))

    def heard(self, data: bytes) -> None:
        """Take a datagram of the peer's."""
        self.heard_s = monotonic()
        if len(data) >= 8 and data[0] == _PIGGYBACKED and data[1] >> 5 == 2:
            self._exchanges.accepted(data[4:8], data[2] << 8 | data[3])
            return
        try:
            message = read(data)
        except NotCoapError as error:
            self._unlike(f"what answers there does not speak CoAP ({error})")
            return
        if message.kind in (ACK, RST) and message.number in self._pings:
            if self._pong is not None and not self._pong.done():
                self._pong.set_result(None)
        elif message.kind == RST:
            self._rejected(message)
        elif message.kind == ACK:
            self._exchanges.acknowledged(message)
        elif message.code >= _RESPONSE:
            self._responded(message)
        elif message.kind == CON and message.number in self._pings and message.code == EMPTY:
            self._unlike("what answers there sends our own words back")
        elif message.kind == CON:  # we serve nobody
            self.write(head(RST, EMPTY, message.number))

    def _unlike(self, why: str) -> None:
        if self._pong is not None and not self._pong.done():
            self._pong.set_exception(self._refusal(why, "Is it a CoAP server?"))

    def _rejected(self, message: Heard) -> None:
        if self._confirmable:
            self._exchanges.rejected(message.number)
        else:
            self.end("the server resets messages that are not confirmable")

    def _responded(self, message: Heard) -> None:
        # An answer that comes on its own; if what we say to it is lost, it comes again.
        known = self._exchanges.answered(message)
        if message.kind == CON:
            if known:
                self._answered[message.number] = None
                if len(self._answered) > ANSWERED_MAX:
                    del self._answered[next(iter(self._answered))]
            ours = not self._confirmable or message.number in self._answered
            self.write(head(ACK if ours else RST, EMPTY, message.number))
        if not self._confirmable and message.code >= _CLIENT_ERROR and not self._complained:
            self._complained = True  # they are accounted for already: once, and not for each
            self.end(f"the server answers {code_text(message.code)}; only with confirmable=True "
                     "is it told which messages it refuses")
