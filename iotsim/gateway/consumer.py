"""A durable push consumer of a stream, over a `Line`: made if it is missing, never deleted.

It is looked at on each connection. Its stream may be missing, or its API denied or late: then it
asks again, ever more rarely, and what else the connection is there for goes on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from iotsim.clock import stamp_us
from iotsim.errors import ConnectError, IotsimError
from iotsim.publishers.backoff import Backoff, Pace, pause
from iotsim.publishers.nats_line import DENIED, Line

ASKING = "asked for now"
API_S = 5.0
# How old what comes again must be, as nobody else would have it; how soon a server looks.
RECOVER_S, LOOK_S = 0.517, 0.25
# Of one that was there another look is taken now and then: its stream may have been made anew.
LOOKS = Pace(first_s=2.0, ceiling_s=60.0, slow_s=600.0)
_NO_CONSUMER, _NO_STREAM = 10014, 10059
_ACK, _NAK, _TERM, _WORKING = b"+ACK", b"-NAK", b"+TERM", b"+WPI"
_STATUS = b"NATS/1.0 "


@dataclass(slots=True, eq=False)
class Delivery:
    """A message of a stream, delivered to us; each verdict goes where it came from.

    A verdict is written while the connection it came by is there; otherwise the message is
    delivered again.

    Attributes
    ----------
    subject : str
    payload : bytes
    headers : mapping of str
    sequence : int
        In the stream: what is delivered again has the same.
    deliveries : int
        How often, this one included.
    received_us : int
        Wall clock, µs since 1970.
    """

    subject: str
    payload: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    sequence: int
    deliveries: int
    received_us: int
    _line: Line = field(repr=False)
    _session: int = field(repr=False)
    _reply: str = field(repr=False)

    def ack(self) -> None:
        """Say that it is done."""
        self._say(_ACK)

    def nak(self, delay_s: float | None = None) -> None:
        """Have it delivered again: at once, or after a while."""
        wish = b"" if delay_s is None else b' {"delay":%d}' % max(0, round(delay_s * 1e9))
        self._say(_NAK + wish)

    def term(self) -> None:
        """Have it never delivered again."""
        self._say(_TERM)

    def in_progress(self) -> None:
        """Say that it is being worked on: the time to acknowledge begins anew."""
        self._say(_WORKING)

    def _say(self, verdict: bytes) -> None:
        self._line.reply(self._session, self._reply, verdict)


@dataclass(frozen=True, slots=True)
class Durable:
    """What a consumer should be: its stream and name, what it filters, where it delivers.

    Attributes
    ----------
    stream, name : str
    subject : str
        The filter.
    inbox : str
        The deliver subject.
    ack_wait_s : float
    max_deliver : int
        -1 is as often as it takes.
    max_pending : int or None
        How many it delivers without an acknowledgement; the server's default if None.
    keep_s : float or None
        For how long the server keeps it while nobody listens; for ever if None.
    """

    stream: str
    name: str
    subject: str
    inbox: str
    ack_wait_s: float = 30.0
    max_deliver: int = 3
    max_pending: int | None = None
    keep_s: float | None = None

    def config(self) -> dict[str, Any]:
        """Return its configuration, as the server takes it."""
        made: dict[str, Any] = {
            "durable_name": self.name, "name": self.name, "deliver_subject": self.inbox,
            "deliver_policy": "all", "ack_policy": "explicit",
            "ack_wait": round(self.ack_wait_s * 1e9), "max_deliver": self.max_deliver,
            "filter_subject": self.subject, "replay_policy": "instant",
        }  # fmt: skip
        if self.max_pending is not None:
            made["max_ack_pending"] = self.max_pending
        if self.keep_s is not None:
            made["inactive_threshold"] = round(self.keep_s * 1e9)
        return made


class PushConsumer:
    """Sees to it that a durable is there while there is a connection, and takes what it delivers.

    Parameters
    ----------
    line : Line
    durable : Durable
    delivered : callable (Delivery)
        Quick, and raises nothing.
    changed : callable (why not)
        Told why nothing is delivered for now, whenever that changes; empty: it is again.
    turns : Semaphore, optional
        Shared by those that ask over one line.

    Attributes
    ----------
    why_not : str
        Why nothing is delivered; empty if it is.
    """

    def __init__(
        self,
        line: Line,
        durable: Durable,
        delivered: Callable[[Delivery], None],
        changed: Callable[[str], None],
        turns: asyncio.Semaphore | None = None,
    ) -> None:
        self.durable = durable
        self.why_not = "not connected"
        self._line, self._delivered, self._changed = line, delivered, changed
        self._turns = asyncio.Semaphore() if turns is None else turns
        self._told = ""
        self._barred = False
        self._cut_off, self._came = False, 0  # how the last ended; what came by this one
        self._sid = line.listen(durable.inbox, self._heard, self._bar)
        self._theirs, self._theirs_sid = "", 0  # the deliver subject that another had given it
        self._backoff = Backoff(durable.name, LOOKS)
        self._task: asyncio.Task[None] | None = None

    def begin(self, *, cut_off: bool = False) -> None:
        """Take that there is a connection: see to it in the background.

        After one that we cut off, what was on its way to us is asked for again.
        """
        self.end()
        self.why_not, self._barred = ASKING, False
        self._cut_off, self._came = cut_off, 0
        name = f"iotsim consumer {self.durable.name}"
        self._task = asyncio.get_running_loop().create_task(self._tend(), name=name)

    def end(self) -> asyncio.Task[None] | None:
        """Take that there is no connection any more; return what ends in a moment."""
        self.why_not = "not connected"
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._adopt("")
        return task

    def remove(self) -> asyncio.Task[None] | None:
        """Listen no more, and return what ends in a moment; the durable keeps what comes."""
        task = self.end()
        self._line.forget(self._sid)
        return task

    # -- the consumer at the server ---------------------------------------------------------------

    async def _tend(self) -> None:
        failures = 0
        while True:
            try:
                async with self._turns:
                    why = await self._ensured()
            except ConnectError as error:
                why = error.why
                if why == DENIED:
                    where = f"{self.durable.stream}.{self.durable.name}"
                    why = f"the server denies $JS.API.CONSUMER.*.{where}. Grant it."
            except IotsimError as error:
                why = str(error)
            if not self._line.connected:
                return
            self._tell(why)
            failures = failures + 1 if why else 0
            await pause(self._backoff.delay_s(failures, slow=not why))

    def _tell(self, why: str) -> None:
        self.why_not = why
        if why != self._told:
            self._told = why
            self._changed(why)

    async def _ensured(self) -> str:
        # Why nothing is delivered, or nothing.
        durable = self.durable
        if self._barred:
            self._barred = False
            self._line.listen_again(self._sid)
        info = await self._api(f"CONSUMER.INFO.{durable.stream}.{durable.name}")
        if _code(info) == _NO_CONSUMER:
            info = await self._create(durable.config())
        if _code(info) == _NO_STREAM:
            return f"there is no stream {durable.stream}. Create it."
        if why := _words(info):
            return why
        why = await self._fitted(info)
        if not why:
            await self._recover(info)
        if self._barred and not self._theirs:
            return f"the server denies listening to {durable.inbox}. Grant it."
        return why

    async def _fitted(self, info: dict[str, Any]) -> str:
        # Use one that was there, as another client made it.
        durable, config = self.durable, dict(info.get("config") or {})
        theirs = config.get("deliver_subject")
        if (not theirs or config.get("filter_subject") != durable.subject
                or config.get("ack_policy") != "explicit"):
            return (f"the consumer {durable.name} of {durable.stream} is of another kind. Delete "
                    "it, and it is made as it should be.")
        if theirs == durable.inbox and not config.get("deliver_group"):
            self._adopt("")
            return ""
        if info.get("push_bound"):
            if theirs == self._theirs:
                return ""
            return (f"another client takes what {durable.name} of {durable.stream} delivers. "
                    "Stop it.")
        group = config.pop("deliver_group", None)
        changed = await self._create({**config, "deliver_subject": durable.inbox})
        if not _words(changed) or group:
            self._adopt("")
            return _words(changed)
        self._adopt(theirs)
        return ""

    async def _recover(self, info: dict[str, Any]) -> None:
        # What went to a connection that is gone comes again when the time to acknowledge is over:
        # a server looks at once where that time changes, and ours is over soon.
        durable, config = self.durable, dict(info.get("config") or {})
        config.pop("deliver_group", None)
        soon = {**config, "deliver_subject": durable.inbox, "ack_wait": round(RECOVER_S * 1e9)}
        usual = {**soon, "ack_wait": config.get("ack_wait")}
        wanted = self._cut_off and int(info.get("num_ack_pending") or 0) > self._came
        self._cut_off = False
        try:
            if wanted:
                await self._create(soon)
                await pause(RECOVER_S + LOOK_S)
        finally:
            if usual == soon:  # somebody was interrupted here
                usual["ack_wait"] = round(durable.ack_wait_s * 1e9)
                wanted = True
            if wanted:
                await self._create(usual)

    def _adopt(self, subject: str) -> None:
        # Listen where the consumer delivers, if that is not where we would have it.
        if self._theirs:
            self._line.forget(self._theirs_sid)
        self._theirs = subject
        if subject:
            self._theirs_sid = self._line.listen(subject, self._heard, self._bar_theirs)

    async def _create(self, config: dict[str, Any]) -> dict[str, Any]:
        # The first subject names the filter, so that a server can hold a gateway to its own.
        durable, subject = self.durable, config["filter_subject"]
        body = orjson.dumps({"stream_name": durable.stream, "config": config})
        if not set(subject) & set("*>"):  # nobody may publish to those
            try:
                place = f"{durable.stream}.{durable.name}.{subject}"
                return await self._api(f"CONSUMER.CREATE.{place}", body)
            except ConnectError as error:
                if error.why != DENIED:
                    raise
        return await self._api(f"CONSUMER.DURABLE.CREATE.{durable.stream}.{durable.name}", body)

    async def _api(self, subject: str, body: bytes = b"") -> dict[str, Any]:
        try:
            answer = await self._line.request(f"$JS.API.{subject}", body, timeout_s=API_S)
        except ConnectError as error:
            if error.why == DENIED:
                raise ConnectError(error.url, DENIED) from None
            why = f"{' '.join(subject.split('.')[:2])}: {error.why}"
            raise ConnectError(error.url, why) from None
        try:
            said = orjson.loads(answer)
        except ValueError:
            said = None
        return said if isinstance(said, dict) else {"error": {"description": "no JSON"}}

    # -- what it delivers -------------------------------------------------------------------------

    def _bar(self) -> None:
        self._barred = True

    def _bar_theirs(self) -> None:
        self._tell(f"the server denies listening to {self._theirs}, where {self.durable.name} "
                   "delivers. Delete it, and it is made as it should be.")

    def _heard(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        if headers.startswith(_STATUS) and headers[9:12].isdigit():
            if reply:  # flow control, of a consumer that another client made
                self._line.reply(self._line.session, reply, b"")
            return
        place = _place(reply, self.durable)
        if place is None:
            return  # it comes from somebody else
        delivery = Delivery(subject, payload, _headers(headers), *place, stamp_us(), self._line,
                            self._line.session, reply)
        self._came += 1
        self._delivered(delivery)


def _place(reply: str, durable: Durable) -> tuple[int, int] | None:
    # Sequence and deliveries: $JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.…, and with a
    # domain and a hash of the account before the stream.
    parts = reply.split(".")
    parts = parts[4:] if len(parts) >= 11 else parts[2:]
    if not reply.startswith("$JS.ACK.") or parts[:2] != [durable.stream, durable.name]:
        return None
    if len(parts) < 7 or not (parts[2].isdecimal() and parts[3].isdecimal()):
        return None
    return int(parts[3]), int(parts[2])


def _headers(block: bytes) -> dict[str, str]:
    if not block:
        return {}
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name: value.strip() for name, _, value in pairs}


def _code(info: dict[str, Any]) -> int:
    error = info.get("error")
    return int(error.get("err_code") or 0) if isinstance(error, dict) else 0


def _words(info: dict[str, Any]) -> str:
    error = info.get("error")
    if not isinstance(error, dict):
        return ""
    text = " ".join(str(error.get("description", "an error without a text")).split())
    return f"the server says: {text[:100]} ({error.get('err_code', error.get('code'))})"
