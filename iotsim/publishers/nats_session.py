"""A NATS connection of our own, made for exact account rather than convenience.

nats-py loses the account (acknowledgements that never resolve, a reconnection that hangs, a read
loop that ends unnoticed), and a call per message is too slow; here a block is one write.

Core NATS acknowledges nothing. With `fence` a PING follows each write: the server answers in
order, so the PONG says that it has taken all before it, and a denied subject was named by then.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from iotsim.errors import ConnectError
from iotsim.publishers.base import Blame, Item, Link, Loss, Verdicts
from iotsim.publishers.nats import NatsPublisher
from iotsim.publishers.nats_frames import Framer
from iotsim.publishers.nats_greeting import greeting
from iotsim.publishers.nats_wire import Wire
from iotsim.publishers.refusals import Refusals
from iotsim.publishers.timers import Pulse
from iotsim.transport.addresses import failure_text

CONNECT_S = 4.0  # for TCP
ANSWER_S = 4.0  # for INFO, TLS, PONG and the like, together
CLOSE_S = 0.4
LEAVE_S = 5.0  # to finish what is in flight when the server is about to leave
DENIED = "the server denies publishing to this subject"
_PING = b"PING\r\n"
_SUBJECT = re.compile(r'to "([^"]*)"')
# What one message of ours may have earned.
_MESSAGE_ERRORS = ("maximum payload", "maximum control line", "parser error", "unknown protocol",
                   "invalid publish subject")
_ADVICE = (
    ("authorization violation", "Check username= and password=, token= or creds=."),
    ("authentication expired", "Renew the file that creds= names."),
    ("tls required", "Use nats+tls://."),
    ("maximum connections", "Use fewer connections=."),
)

Fence: TypeAlias = tuple[list[int], list[Item]]
Word: TypeAlias = Literal["info", "pong", "api"]


class NatsLink(Link):
    """One NATS connection of a lane (a `Link`), with core publications.

    Parameters
    ----------
    publisher : NatsPublisher
    name : str
        The client's name, as the server shows it.
    verdicts : Verdicts
    """

    def __init__(self, publisher: NatsPublisher, name: str, verdicts: Verdicts) -> None:
        self._publisher, self._name, self._verdicts = publisher, name, verdicts
        headers = {"Nats-Expected-Stream": publisher.stream} if publisher.stream else {}
        self._framer = Framer(headers, ids=publisher.ids, stamp=publisher.tracing.stamp)
        self._prefix, self._inbox = "_INBOX.", ""
        self._wire: Wire | None = None
        self._step: asyncio.Future[Any] | None = None  # what `open` or `close` waits for
        self._awaited: Word = "info"
        self._failure: ConnectError | None = None  # of `open`, while it waits for nothing of ours
        self._fences: deque[Fence | None] = deque()  # one for each PING without its PONG
        self._denied: set[str] = set()
        self._pulse = Pulse(self._beat, self._silent)
        self._departure: asyncio.TimerHandle | None = None
        self._leaving = False

    # -- connection -------------------------------------------------------------------------------

    async def open(self) -> int:
        """Connect, and return how many messages may be in flight."""
        self._inbox = f"{self._prefix}{secrets.token_hex(11)}."
        self._forget()
        wire = Wire(self, self._inbox)
        try:
            await self._connect(wire)
            self._wire = wire
            async with asyncio.timeout(ANSWER_S):
                await self._greet(wire)
                await self._agree(wire)
            if self._wire is not wire:  # it ended in the turn of the last answer
                raise self._failure or self._refusal("the connection ended during the handshake")
        except BaseException as error:
            reached = self._wire is wire
            self.drop()
            wire.abort()
            if not isinstance(error, OSError) or isinstance(error, ConnectError):
                raise
            if self._failure is not None:
                raise self._failure from None
            if isinstance(error, TimeoutError):
                raise self._silence(reached) from None
            raise self._refusal(failure_text(error)) from None
        finally:
            self._end_step()
        self._pulse.begin(self._publisher.keepalive)
        return self._publisher.window

    async def _connect(self, wire: Wire) -> None:
        address, first = self._publisher.address, self._publisher.tls_first
        self._expect("info")
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().create_connection(
                lambda: wire, address.host, address.port,
                ssl=self._publisher.context if first else None,
            )

    async def _greet(self, wire: Wire) -> None:
        assert self._step is not None
        info: dict[str, Any] = await self._step
        context = self._publisher.context
        if context is not None and not self._publisher.tls_first:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise self._refusal("the server offers no TLS", "Use nats:// in the URL.")
            await wire.secure(context, self._publisher.address.host)
        elif context is None and info.get("tls_required"):
            raise self._refusal("the server wants TLS", "Use nats+tls:// in the URL.")
        if not info.get("headers") and (self._publisher.ids or self._publisher.tracing.stamp):
            raise self._refusal("the server takes no headers", "Use ids=False and no stamp=.")
        self._framer.payload_bytes_max = int(info.get("max_payload", 1024 * 1024))
        who = self._publisher.credentials
        await self._ask("pong", greeting(self._name, who, info, context is not None) + _PING)

    async def _agree(self, wire: Wire) -> None:
        """Do what else a connection begins with."""

    def _expect(self, word: Word) -> asyncio.Future[Any]:
        self._step, self._awaited = asyncio.get_running_loop().create_future(), word
        return self._step

    async def _ask(self, word: Word, data: bytes) -> Any:
        # Write what is answered; `open` and `close` wait for one answer at a time.
        if self._failure is not None:
            raise self._failure
        step = self._expect(word)
        if self._wire is None or not self._wire.alive:
            raise ConnectionResetError
        self._wire.write(data)
        del data  # it may hold a password, and this frame stands in a traceback
        return await step

    def _answer(self, word: Word, value: Any) -> bool:
        # Whether somebody waits for this answer; it is theirs then.
        if self._step is None or self._step.done() or self._awaited != word:
            return False
        self._step.set_result(value)
        return True

    def _fail(self, error: ConnectError) -> bool:
        # Whether it is `open` (or `close`) that fails.
        if self._step is None:
            return False
        if self._step.done():
            self._failure = self._failure or error
        else:
            self._step.set_exception(error)
        return True

    def _end_step(self) -> None:
        step, self._step = self._step, None
        if step is not None and step.done() and not step.cancelled():
            step.exception()  # else asyncio says that nobody looked at it

    def _silence(self, reached: bool) -> ConnectError:
        if not reached:
            return self._refusal("the address does not answer")
        todo = "Is it a NATS server, which would speak first?"
        if self._publisher.tls is not None:
            todo += " One that begins with TLS at once needs tls_first=True."
        return self._refusal("it accepts the connection but does not answer", todo)

    def _refusal(self, why: str, todo: str = "") -> ConnectError:
        return ConnectError(self._publisher.url, why, todo)

    def _forget(self) -> None:
        # What belonged to the connection before.
        self._fences.clear()
        self._denied.clear()
        self._leaving = False
        self._failure = None

    def drop(self) -> None:
        """End the connection at once; no verdict comes after it."""
        self._cancel_timers()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()

    async def close(self) -> None:
        """Let the server take what was written, then close, within a deadline."""
        self._cancel_timers()
        wire = self._wire
        if wire is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._ask("pong", _PING)
                await wire.close()
        except (TimeoutError, OSError):
            pass
        finally:
            self._end_step()
            self._wire = None
            wire.abort()

    async def round_trip(self, topic: str) -> None:
        """Return when the server has answered to a PING."""
        try:
            await self._ask("pong", _PING)
        finally:
            self._end_step()

    # -- sending ----------------------------------------------------------------------------------

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        """Hand messages to the transport in one write; False if it holds more than 256 kB."""
        wire = self._wire
        if wire is None or not wire.alive:  # soon these are unknown
            return False
        batch = self._framer.frames(items)
        bad = Refusals()
        taken = list(tokens)
        if batch.refused:
            for i, why in batch.refused:
                bad.add(tokens[i], why)
            refused = {i for i, _ in batch.refused}
            items = [item for i, item in enumerate(items) if i not in refused]
            taken = [token for i, token in enumerate(tokens) if i not in refused]
        if self._publisher.fence and taken:
            self._fences.append((taken, list(items)))
            wire.write(batch.data + _PING)
        else:
            wire.write(batch.data)
        bad.tell(self._verdicts)
        if not self._publisher.fence:
            self._verdicts.acknowledged(taken)
        return not (wire.paused or self._leaving)

    @property
    def _unsettled(self) -> bool:
        return any(self._fences)

    # -- receiving (called by the wire) -----------------------------------------------------------

    def informed(self, info: dict[str, Any]) -> None:
        """Take the greeting; later, a new size of payloads, or that the server will leave."""
        self._pulse.heard = True
        if self._answer("info", info):
            return
        size = info.get("max_payload")
        if isinstance(size, int):
            self._framer.payload_bytes_max = size
        if info.get("ldm") and not self._leaving:
            self._leaving = True
            self._departure = asyncio.get_running_loop().call_later(LEAVE_S, self._leave)
            self._leave_if_idle()

    def ponged(self) -> None:
        """Take that the server has read all that was written before a PING."""
        self._pulse.heard = True
        if not self._fences:
            self._answer("pong", None)
            return
        fence = self._fences.popleft()
        if fence is None:
            return
        tokens, items = fence
        if self._denied:
            subjects = [item[0].replace("/", ".") for item in items]
            pairs = list(zip(tokens, subjects, strict=True))
            self._verdicts.refused([t for t, name in pairs if name in self._denied], DENIED)
            tokens = [t for t, name in pairs if name not in self._denied]
            self._denied.clear()
        self._verdicts.acknowledged(tokens)
        self._leave_if_idle()

    def complained(self, text: str) -> None:
        """Take an error: a denied subject, or what ends the connection."""
        self._pulse.heard = True
        lower = text.lower()
        if lower.startswith("permissions violation for publish"):
            found = _SUBJECT.search(text)
            self._deny(found[1] if found else "")
            return
        if lower.startswith("permissions violation for subscription"):
            found = _SUBJECT.search(text)
            if found and self._bar(found[1]):
                return
        todo = next((advice for sign, advice in _ADVICE if sign in lower), "")
        if self._fail(self._refusal(f"the server refused us: {lower}", todo)):
            return
        blame: Blame = "message" if lower.startswith(_MESSAGE_ERRORS) else "other"
        self.gone(Loss(f"the server ended the connection: {lower}", blame))

    def _deny(self, subject: str) -> None:
        if self._publisher.fence and subject:
            self._denied.add(subject)
        else:
            self._verdicts.notice(f"{DENIED}: {subject!r:.80}")

    def _bar(self, subject: str) -> bool:
        # Whether we can do without listening to this.
        return False

    def settled(self, tokens: list[int], duplicates: int) -> None:
        """Take a run of publications that a stream has stored; core NATS has none."""

    def answered(self, subject: str, headers: bytes, payload: bytes) -> None:
        """Take another message to our inbox; core NATS has none."""

    def delivered(
        self, sid: int, subject: str, reply: str, headers: bytes, payload: bytes
    ) -> None:
        """Take a message to another subject; core NATS listens to none."""

    def read(self) -> None:
        """Take that all that has come is handed on."""

    def gone(self, loss: Loss) -> None:
        """Take the end of the wire."""
        why = f"the connection ended during the handshake ({loss.why})"
        if self._fail(self._refusal(why, "Is it a NATS server, and TLS as the URL says?")):
            self.drop()
            return
        had = self._wire is not None
        self.drop()
        if had:
            self._verdicts.lost(loss)

    def writable(self) -> None:
        """Take the news that the transport has room again."""
        if not self._leaving:
            self._verdicts.ready()

    # -- keepalive and departure ------------------------------------------------------------------

    def _leave_if_idle(self) -> None:
        if self._leaving and not self._unsettled:
            self._leave()

    def _leave(self) -> None:
        if self._wire is not None:
            self.gone(Loss("the server is about to shut down (lame duck mode)"))

    def _beat(self) -> None:
        if self._wire is not None:
            self._fences.append(None)
            self._wire.write(_PING)

    def _silent(self, half_s: float) -> None:
        self.gone(Loss(f"no answer to a PING in {half_s:g} s"))

    def _cancel_timers(self) -> None:
        self._pulse.end()
        if self._departure is not None:
            self._departure.cancel()
            self._departure = None
