"""An AMQP 0-9-1 session over the `pamqp` codec, made for exact account rather than convenience.

A message costs what its bytes cost: a block goes out in one write, and the broker's confirms,
which often speak for hundreds, are read without an object each. The client libraries keep a
task and a future per message, and give up all of them when the broker closes the channel.

The broker closes it for one message that it does not want (a topic that may not be written to,
too many bytes) and tells which only in a text. Where that names the message, it alone is
refused; the channel opens again on the same connection, and all that waited for a verdict goes
out again in its order, without a turn of waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from pamqp import commands, header, heartbeat
from pamqp.base import Frame
from pamqp.common import FieldTable

from iotsim.errors import ConnectError
from iotsim.publishers.amqp import AmqpPublisher
from iotsim.publishers.amqp_account import Account
from iotsim.publishers.amqp_wire import (
    CHANNEL,
    FRAME_MAX,
    GREETING,
    Confirm,
    Received,
    Wire,
)
from iotsim.publishers.base import Item, Link, Loss, Verdicts
from iotsim.transport.addresses import failure_text

CONNECT_S = 5.0  # for TCP and TLS
HANDSHAKE_S = 4.0
CLOSE_S = 0.4
_MESSAGE_CODES = frozenset({311, 406, 501, 502, 503, 505, 541})  # that a message may have earned
_SAID_CHARS = 300

_Answer = TypeVar("_Answer", bound=Frame)
_Close = commands.Connection.Close | commands.Channel.Close


class AmqpLink(Link):
    """One AMQP connection of a lane, with one channel (a `Link`).

    Parameters
    ----------
    publisher : AmqpPublisher
    name : str
        What the broker shows of the connection.
    verdicts : Verdicts
    """

    def __init__(self, publisher: AmqpPublisher, name: str, verdicts: Verdicts) -> None:
        self._publisher = publisher
        self._name = name
        self._verdicts = verdicts
        self._account = Account(publisher, verdicts)
        self._wire: Wire | None = None
        self._answer: asyncio.Future[Frame] | None = None
        self._closing = False
        self._returning: commands.Basic.Return | None = None
        self._blocked = False
        self._beat: asyncio.TimerHandle | None = None

    # -- connection ---------------------------------------------------------------------------

    async def open(self) -> int:
        """Connect, and return how many messages may be in flight."""
        address = self._publisher.address
        self._forget()
        wire = Wire(self)
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().create_connection(
                    lambda: wire, address.host, address.port, ssl=self._publisher.context
                )
            self._wire = wire
            async with asyncio.timeout(HANDSHAKE_S):
                await self._shake_hands(wire)
            if self._wire is not wire:
                raise self._refusal("the broker closed the connection at once")
        except BaseException as error:
            accepted = self._wire is wire
            self.drop()
            wire.abort()
            if isinstance(error, TimeoutError):
                why = "the address does not answer"
                if accepted:
                    why = "the broker accepts the connection but does not answer"
                raise self._refusal(why) from None
            if isinstance(error, OSError) and not isinstance(error, ConnectError):
                raise self._refusal(failure_text(error)) from None
            raise
        self._arm_beat(wire)
        return self._publisher.window

    async def _shake_hands(self, wire: Wire) -> None:
        publisher = self._publisher
        wire.write(GREETING)
        start = await self._answered(commands.Connection.Start)
        mechanism, response = self._identity((start.mechanisms or "").split())
        wire.say(commands.Connection.StartOk(self._properties(), mechanism, response))
        del response  # it holds a password, and this frame stands in a traceback
        tune = await self._answered(commands.Connection.Tune)
        frame_max = min(tune.frame_max or FRAME_MAX, FRAME_MAX)
        self._account.printer.frame_max = frame_max
        wire.say(commands.Connection.TuneOk(CHANNEL, frame_max, publisher.heartbeat))
        wire.say(commands.Connection.Open(publisher.vhost))
        await self._answered(commands.Connection.OpenOk)
        wire.say(commands.Channel.Open(), CHANNEL)
        await self._answered(commands.Channel.OpenOk)
        if publisher.exchange:
            passive = not publisher.declare or publisher.exchange.startswith("amq.")
            wire.say(commands.Exchange.Declare(
                exchange=publisher.exchange, exchange_type=publisher.exchange_type,
                passive=passive, durable=True), CHANNEL)  # fmt: skip
            await self._answered(commands.Exchange.DeclareOk)
        if publisher.confirms:
            wire.say(commands.Confirm.Select(), CHANNEL)
            await self._answered(commands.Confirm.SelectOk)

    async def round_trip(self, topic: str) -> None:
        """Return when the broker has answered whether an exchange is there."""
        if self._wire is not None:
            name = self._publisher.exchange or "amq.direct"
            self._wire.say(commands.Exchange.Declare(exchange=name, passive=True), CHANNEL)
        await self._answered(commands.Exchange.DeclareOk)

    async def _answered(self, kind: type[_Answer]) -> _Answer:
        if self._wire is None or self._wire.closed.is_set():
            raise self._refusal("the broker closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        try:
            answer = await self._answer
        finally:
            self._answer = None
        if not isinstance(answer, kind):
            raise self._refusal(f"the broker answers {answer.name} where {kind.name} is due")
        return answer

    def _identity(self, offered: Sequence[str]) -> tuple[str, str]:
        who, tls = self._publisher.credentials, self._publisher.tls
        if not who and tls is not None and tls.cert is not None and "EXTERNAL" in offered:
            return "EXTERNAL", ""
        if "PLAIN" not in offered:
            raise self._refusal(f"the broker takes none of our mechanisms, only {offered}",
                                "It must offer PLAIN, or EXTERNAL to a certificate of ours.")
        name, password = (who.username, who.password) if who else ("guest", "guest")
        return "PLAIN", f"\0{name}\0{password}"

    def _properties(self) -> FieldTable:
        able = ("publisher_confirms", "basic.nack", "connection.blocked",
                "authentication_failure_close")
        capabilities: FieldTable = dict.fromkeys(able, True)
        return {"product": "iotsim", "connection_name": self._name, "capabilities": capabilities}

    def _refusal(self, why: str, todo: str = "") -> ConnectError:
        return ConnectError(self._publisher.url, why, todo)

    def drop(self) -> None:
        """End the connection at once; no verdict comes after it."""
        self._cancel_beat()
        unwritten = self._account.unwritten
        self._forget()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
        if unwritten:
            self._verdicts.returned(unwritten)

    def _forget(self) -> None:
        self._account.forget()
        self._blocked = self._closing = False
        self._returning = None

    async def close(self) -> None:
        """Close channel and connection, and wait for both within a deadline."""
        self._cancel_beat()
        wire, self._closing = self._wire, True
        if wire is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                wire.say(commands.Channel.Close(200, "bye", 0, 0), CHANNEL)
                await self._answered(commands.Channel.CloseOk)  # what was written is taken in
                wire.say(commands.Connection.Close(200, "bye", 0, 0))
                await self._answered(commands.Connection.CloseOk)
                wire.end()
                await wire.closed.wait()
        except (TimeoutError, ConnectError):
            pass
        finally:
            self.drop()

    # -- sending ------------------------------------------------------------------------------

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        """Hand messages to the transport in one write; False if it or the broker has enough."""
        wire = self._wire
        if wire is None:
            return False
        self._account.hand_over(tokens, items, wire.write)
        return not (wire.paused or self._blocked)

    # -- receiving (called by the wire) ---------------------------------------------------------

    def confirmed(self, confirms: Sequence[Confirm]) -> None:
        """Take what the broker acknowledges or rejects."""
        if self._wire is not None:
            self._account.confirmed(confirms, self._wire.write)

    def received(self, found: Received) -> None:
        """Take a frame of the broker's that is no acknowledgement."""
        if isinstance(found, header.ContentHeader):
            returning, self._returning = self._returning, None
            if returning is not None:
                self._account.came_back(returning, found)
        elif isinstance(found, commands.Basic.Return):
            self._returning = found
        elif isinstance(found, commands.Connection.Blocked):
            self._block(f"the broker blocks us: {_plain(found.reason)}")
        elif isinstance(found, commands.Connection.Unblocked):
            self._unblock()
        elif isinstance(found, commands.Channel.Flow):
            self._flow(bool(found.active))
        elif isinstance(found, _Close):
            self._closed(found)
        elif isinstance(found, Frame) and self._answer is not None and not self._answer.done():
            self._answer.set_result(found)

    def _block(self, why: str) -> None:
        self._blocked = True
        self._verdicts.notice(why)

    def _unblock(self) -> None:
        self._blocked = False
        self._verdicts.notice("the broker takes messages again")
        self.writable()

    def _flow(self, active: bool) -> None:
        if self._wire is not None:
            self._wire.say(commands.Channel.FlowOk(active), CHANNEL)
        if active:
            self._unblock()
        else:
            self._block("the broker asks for a pause")

    def _closed(self, close: _Close) -> None:
        wire, said = self._wire, _said(close)
        if wire is None:
            return
        if self._answer is not None and not self._answer.done():
            why = f"the broker refused us: {said}"
            self._answer.set_exception(self._refusal(why, _advice(close, self._publisher)))
            return
        if self._closing:
            return
        if isinstance(close, commands.Channel.Close):
            self._returning = None
            if self._account.reopened(close, partial(self._reopen, wire)):
                return
            what = "channel"
        else:
            what = "connection"
            wire.say(commands.Connection.CloseOk())
        own = close.reply_code in _MESSAGE_CODES or "access to topic '" in said
        self.gone(Loss(f"the broker closed the {what}: {said}", "message" if own else "other"))

    def _reopen(self, wire: Wire, out: bytes) -> None:
        # The broker reads all of it in this order, so that nothing has to be waited for.
        wire.say(commands.Channel.CloseOk(), CHANNEL)
        wire.say(commands.Channel.Open(), CHANNEL)
        if self._publisher.confirms:
            wire.say(commands.Confirm.Select(), CHANNEL)
        wire.write(out)

    def gone(self, loss: Loss) -> None:
        """Take the end of the wire."""
        if self._answer is not None and not self._answer.done():
            why = f"no handshake came about: {loss.why}"
            self._answer.set_exception(
                self._refusal(why, "Is it an AMQP 0-9-1 broker, and TLS as the URL says?"))
            return
        self.drop()
        self._verdicts.lost(loss)

    def writable(self) -> None:
        """Take the news that the transport has room again."""
        if self._wire is not None and not self._wire.paused and not self._blocked:
            self._verdicts.ready()

    # -- heartbeat ----------------------------------------------------------------------------

    def _arm_beat(self, wire: Wire) -> None:
        # Both sides speak at least twice in the time that was agreed upon.
        heartbeat_s = float(self._publisher.heartbeat)
        loop = asyncio.get_running_loop()
        silent = 0

        def beat() -> None:
            nonlocal silent
            silent = 0 if wire.heard else silent + 1
            wire.heard = False
            if silent >= 2:
                self.gone(Loss(f"not a sign of life in {heartbeat_s:g} s"))
            else:
                wire.write(heartbeat.Heartbeat.marshal())
                self._beat = loop.call_later(heartbeat_s / 2, beat)

        self._cancel_beat()
        self._beat = loop.call_later(heartbeat_s / 2, beat)

    def _cancel_beat(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None


def _plain(text: str | None) -> str:
    return "".join(c if c.isprintable() else "?" for c in (text or "")[:_SAID_CHARS])


def _said(close: _Close) -> str:
    return f"{_plain(close.reply_text)} ({close.reply_code})"


def _advice(close: _Close, publisher: AmqpPublisher) -> str:
    code, said = close.reply_code, close.reply_text or ""
    if code == 403 and isinstance(close, commands.Connection.Close):
        return "Check username= and password=."
    if code == 403 and publisher.declare:
        return "Use declare=False where the exchange is there already."
    if code == 404:
        return "Use declare=True to make it."
    if code == 406 and "inequivalent" in said:
        return "Use declare=False to take it as it is."
    if code == 530:
        return "The vhost is the path of the URL."
    return ""
