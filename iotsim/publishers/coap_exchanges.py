"""Confirmable messages between hand-over and verdict: RFC 7252 §4.2 as a small machine.

Messages of one device go one after the other; those of different devices are unanswered at the
same time, up to the window. Retransmissions double their time-outs; an answer may come with the
acknowledgement, after it, before it, twice, or never.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from iotsim.clock import monotonic
from iotsim.publishers.base import Verdicts
from iotsim.publishers.coap import CoapPublisher
from iotsim.publishers.coap_codec import (
    CON,
    EMPTY,
    METHODS,
    TOKEN_BYTES,
    Heard,
    code_text,
    head,
)

EXCHANGE_S = 25.0  # of one message, before the lane's own 30 s
HOLD_S = 28.0
AHEAD = 8  # times the window: what a lane hands over, so that one slow device blocks no other
TOO_MANY_REQUESTS, NOT_IMPLEMENTED, UNAVAILABLE, NO_PROXY = 0x9D, 0xA1, 0xA3, 0xA5


class Endpoint(Protocol):
    """What the machine needs of the endpoint that it works for."""

    heard_s: float

    @property
    def writable(self) -> bool:
        """Whether a message may leave now."""

    def write(self, data: bytes) -> None:
        """Send one datagram."""

    def number(self, now_s: float) -> int | None:
        """Return a message id, or None if they are used up."""

    def mark(self) -> bytes:
        """Return a token of four bytes."""

    def chance(self) -> float:
        """Return a number in [0, 1)."""

    def left(self, count: int, now_s: float) -> None:
        """Take note that messages have left: the pace counts them."""

    def renew(self) -> None:
        """End, because message ids are used up."""

    def end(self, why: str) -> None:
        """End, because the peer is gone."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One message between its first transmission and its end."""

    token: int
    device: str
    data: bytes
    number: int
    begun_s: float
    timeout_s: float
    transmissions: int = 1
    acked: bool = False
    timer: asyncio.TimerHandle | None = None

    @property
    def mark(self) -> bytes:
        """Its token on the wire."""
        return self.data[4 : 4 + TOKEN_BYTES]

    def left_s(self, most_s: float) -> float:
        """Return what is left of so many seconds since it began."""
        return max(0.0, most_s - (monotonic() - self.begun_s))


@dataclass(slots=True)
class Line:
    """What of one device is yet to be sent: (token, message without head)."""

    waiting: deque[tuple[int, bytes]] = field(default_factory=deque)


class Exchanges:
    """The confirmable messages of one endpoint."""

    def __init__(self, publisher: CoapPublisher, endpoint: Endpoint, verdicts: Verdicts) -> None:
        self._publisher, self._endpoint, self._verdicts = publisher, endpoint, verdicts
        self._code = METHODS[publisher.method]
        self._open: dict[bytes, Exchange] = {}  # by token on the wire
        self._by_number: dict[int, Exchange] = {}
        self._lines: dict[str, Line] = {}  # of every device with a message open, held or waiting
        self._heads: deque[str] = deque()  # devices whose next may be sent
        self._held: dict[int, asyncio.TimerHandle] = {}  # by token

    def take(self, messages: Iterable[tuple[int, str, bytes]]) -> None:
        """Take (token, device, message without head), in order, and send what may go now."""
        for token, device, body in messages:
            line = self._lines.get(device)
            if line is None:
                line = self._lines[device] = Line()
                self._heads.append(device)
            line.waiting.append((token, body))
        self.launch()

    def forget(self) -> list[int]:
        """End everything without a verdict; return the tokens of what was never written."""
        unsent = [token for line in self._lines.values() for token, _ in line.waiting]
        for exchange in self._open.values():
            _cancel(exchange.timer)
        for timer in self._held.values():
            timer.cancel()
        for store in (self._open, self._by_number, self._lines, self._held):
            store.clear()
        self._heads.clear()
        return unsent

    # -- sending ------------------------------------------------------------------------------

    def launch(self) -> None:
        """Send what may go: of another device each, within the window, the pace and the ids."""
        endpoint = self._endpoint
        while self._heads and endpoint.writable and len(self._open) < self._publisher.window:
            now_s = monotonic()
            number = endpoint.number(now_s)
            if number is None:
                if not self._open:
                    endpoint.renew()
                return
            self._begin(self._heads.popleft(), number, now_s)

    def _begin(self, device: str, number: int, now_s: float) -> None:
        mark = self._endpoint.mark()
        while mark in self._open:
            mark = self._endpoint.mark()
        token, body = self._lines[device].waiting.popleft()
        timeout_s = self._publisher.ack_timeout_s * (1.0 + 0.5 * self._endpoint.chance())
        data = head(CON, self._code, number, mark) + body
        exchange = Exchange(token, device, data, number, now_s, timeout_s)
        self._open[mark] = self._by_number[number] = exchange
        self._endpoint.left(1, now_s)
        self._transmit(exchange)

    def _transmit(self, exchange: Exchange) -> None:
        self._wait(exchange, min(exchange.timeout_s, exchange.left_s(EXCHANGE_S)))
        self._endpoint.write(exchange.data)

    def _wait(self, exchange: Exchange, seconds: float) -> None:
        _cancel(exchange.timer)
        loop = asyncio.get_running_loop()
        exchange.timer = loop.call_later(seconds, self._overdue, exchange)

    def _overdue(self, exchange: Exchange) -> None:
        over = exchange.left_s(EXCHANGE_S) == 0.0
        if exchange.acked or over or exchange.transmissions > self._publisher.max_retransmit:
            self._give_up(exchange)
            return
        exchange.transmissions += 1
        exchange.timeout_s *= 2
        self._transmit(exchange)

    def _give_up(self, exchange: Exchange) -> None:
        # A peer that says nothing at all is gone; one that talks has missed this message alone.
        if self._endpoint.heard_s <= exchange.begun_s:
            lasted_s = monotonic() - exchange.begun_s
            after = " after the acknowledgement" if exchange.acked else ""
            self._endpoint.end(
                f"no answer{after} in {lasted_s:.1f} s to {exchange.transmissions} transmissions"
            )
            return
        self._close(exchange)
        line = self._lines.pop(exchange.device)
        self._verdicts.returned([token for token, _ in line.waiting])
        self._verdicts.uncertain([exchange.token], "no answer")
        self.launch()

    # -- hearing ------------------------------------------------------------------------------

    def accepted(self, mark: bytes, number: int) -> None:
        """Take 2.xx that came with the acknowledgement."""
        exchange = self._open.get(mark)
        if exchange is not None and exchange.number == number:
            self._settle(exchange)
            self._verdicts.acknowledged([exchange.token])
            self.launch()

    def acknowledged(self, message: Heard) -> None:
        """Take an acknowledgement, with an answer in it or without."""
        exchange = self._by_number.get(message.number)
        if exchange is None:
            return  # a duplicate, or of another life
        if message.code == EMPTY:
            exchange.acked = True
            self._wait(exchange, exchange.left_s(EXCHANGE_S))
        elif exchange.mark == message.token:
            self._judge(message, exchange)

    def rejected(self, number: int) -> None:
        """Take a reset."""
        exchange = self._by_number.get(number)
        if exchange is not None:
            self._settle(exchange)
            self._verdicts.refused([exchange.token], "reset: the server cannot process it")
            self.launch()

    def answered(self, message: Heard) -> bool:
        """Take an answer that comes on its own; return whether it belongs to a message here."""
        exchange = self._open.get(message.token)
        if exchange is None:
            return False
        self._judge(message, exchange)
        return True

    def _judge(self, message: Heard, exchange: Exchange) -> None:
        code = message.code
        later = code >> 5 == 5 and code not in (NOT_IMPLEMENTED, NO_PROXY)
        if code >> 5 == 2:
            self._settle(exchange)
            self._verdicts.acknowledged([exchange.token])
        elif later or code == TOO_MANY_REQUESTS:
            self._hold(message, exchange)
        else:
            self._settle(exchange)
            self._verdicts.refused([exchange.token], code_text(code))
        self.launch()

    def _hold(self, message: Heard, exchange: Exchange) -> None:
        # "Not now": where it says for how long, the verdict waits, and the device with it.
        self._close(exchange)
        reason, wait_s = code_text(message.code), 0.0
        if message.code in (TOO_MANY_REQUESTS, UNAVAILABLE):
            wait_s = min(float(message.max_age_s or 0), exchange.left_s(HOLD_S))
        if wait_s <= 0:
            self._not_now(exchange, reason)
            return
        loop = asyncio.get_running_loop()
        self._held[exchange.token] = loop.call_later(wait_s, self._not_now, exchange, reason)

    def _not_now(self, exchange: Exchange, reason: str) -> None:
        self._held.pop(exchange.token, None)
        line = self._lines.pop(exchange.device)
        self._verdicts.returned([token for token, _ in line.waiting])
        self._verdicts.refused([exchange.token], reason, retry=True)
        self.launch()

    def _settle(self, exchange: Exchange) -> None:
        # It is over: the next of its device may go.
        self._close(exchange)
        if self._lines[exchange.device].waiting:
            self._heads.append(exchange.device)
        else:
            del self._lines[exchange.device]

    def _close(self, exchange: Exchange) -> None:
        _cancel(exchange.timer)
        del self._open[exchange.mark], self._by_number[exchange.number]


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
