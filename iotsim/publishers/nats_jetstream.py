"""Publications that a stream of JetStream acknowledges, many of them in flight.

Each asks for an answer under our inbox and its own token, and has its id in Nats-Msg-Id: what is
sent again within the stream's duplicate window is stored once. A stream that is full now may
take the next message and not this one, so by default a device has one in flight at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

import orjson

from iotsim.clock import monotonic
from iotsim.publishers.base import Item, Loss, Verdicts
from iotsim.publishers.nats import NatsPublisher
from iotsim.publishers.nats_frames import joined_subjects
from iotsim.publishers.nats_line import MARK, Line
from iotsim.publishers.nats_session import DENIED, NatsLink
from iotsim.publishers.nats_wire import INBOX_SID, Wire
from iotsim.publishers.ordering import device_of
from iotsim.publishers.refusals import Refusals
from iotsim.publishers.timers import Oldest

NO_STREAM = "no stream takes this subject: make one that does, such as devices.> for devices/…"
DUPLICATE_WINDOW_S = 120.0  # of a stream that does not say otherwise
STREAMS_LATE_S = 5.0  # after a reconnection a stream may still be without its leader
# Of the server's own numbers those that may pass: no room, no resources, no leader.
_PASSING = frozenset({10002, 10008, 10023, 10028, 10047, 10077})
_NO_RESPONDERS = b"NATS/1.0 503"
_API = "api"
_ASKED = "asked"  # and a token: whether a stream takes its subject
_ASKED_MAX = 512


class JetStreamLink(NatsLink):
    """One NATS connection of a lane (a `Link`), with publications to streams.

    Attributes
    ----------
    line : Line
        For what is no telemetry: questions, answers, subjects to listen to.
    has_streams : bool
        Whether there is a stream for everything: that none answers will pass.
    """

    has_streams = False

    def __init__(self, publisher: NatsPublisher, name: str, verdicts: Verdicts) -> None:
        super().__init__(publisher, name, verdicts)
        self.line = Line(publisher.url)
        self.duplicates = 0  # stored once although sent twice
        self._flight: dict[int, tuple[str, str]] = {}  # token → device, topic; oldest first
        self._behind: dict[str, deque[tuple[int, Item]] | None] = {}  # of devices in flight
        self._window_s = DUPLICATE_WINDOW_S
        self._opened = 0
        self._opened_s = 0.0
        self._late: asyncio.TimerHandle | None = None
        self._oldest = Oldest()
        self._asked = -1
        self._refusals = Refusals()
        self.pipelines = not publisher.ordered

    # -- connection -------------------------------------------------------------------------------

    async def open(self) -> int:
        """Connect, and return how many messages may be in flight."""
        window = await super().open()
        assert self._wire is not None
        self.line.begin(self._wire, self._inbox, self._framer.payload_bytes_max)
        return window

    def drop(self) -> None:
        """End the connection at once; no verdict comes after it."""
        super().drop()
        self.line.end()

    async def close(self) -> None:
        """Let the server take what was written, then close, within a deadline."""
        try:
            await super().close()
        finally:
            self.line.end("the connection was closed")

    async def _agree(self, wire: Wire) -> None:
        await self._ask("pong", f"SUB {self._inbox}* {INBOX_SID}\r\nPING\r\n".encode())
        await self._consult()
        self._opened += 1
        self._opened_s = monotonic()

    async def _consult(self) -> None:
        """Ask what there is to publish to."""
        stream = self._publisher.stream
        asked = f"STREAM.INFO.{stream}" if stream else "INFO"
        request = f"PUB $JS.API.{asked} {self._inbox}{_API} 0\r\n\r\n".encode()
        answer = await self._ask("api", request)
        if answer is not None:  # None: we may not ask
            self._understand(*answer)

    async def objection(self, topic: str) -> tuple[str, bool]:
        """Return why publications on a topic will be refused, and whether that is certain."""
        subjects = joined_subjects([topic], ["x"])
        if subjects is None:
            return "", False
        wish = orjson.dumps({"subject": subjects[0]})
        head = f"PUB $JS.API.STREAM.NAMES {self._inbox}{_API} {len(wish)}\r\n".encode()
        try:
            answer = await self._ask("api", head + wish + b"\r\n")
        finally:
            self._end_step()
        facts: dict[str, Any] = {"error": 0} if answer is None else _parsed(answer[1])
        names, wanted = facts.get("streams") or [], self._publisher.stream
        if "error" in facts or wanted in names or (names and not wanted):
            return "", False
        which = f"stream {wanted!r} does not take" if wanted else "no stream takes"
        return f"{which} the subject {subjects[0]!r}. Create one that does, or change topic=", True

    def _understand(self, headers: bytes, payload: bytes) -> None:
        stream = self._publisher.stream
        if headers.startswith(_NO_RESPONDERS):
            raise self._refusal("JetStream is not enabled there", "Start the server with -js.")
        facts = _parsed(payload)
        error = facts.get("error")
        if isinstance(error, dict):
            code = error.get("err_code")
            if stream and code == 10059:
                why = f"there is no stream {stream!r}"
                raise self._refusal(why, "Create it, or correct stream=.")
            raise self._refusal(f"JetStream says: {_words(error)}")
        window_ns = facts.get("config", {}).get("duplicate_window")
        self._window_s = window_ns / 1e9 if isinstance(window_ns, int) else DUPLICATE_WINDOW_S

    def _forget(self) -> None:
        super()._forget()
        self._flight.clear()
        self._behind.clear()
        self._oldest.left(self._flight)
        self._asked = -1
        self._refusals.take()

    # -- sending ----------------------------------------------------------------------------------

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        """Hand messages to the transport in one write; False if it holds more than 256 kB."""
        wire = self._wire
        if wire is None or not wire.alive:  # soon these are unknown
            return False
        age_s = monotonic() - items[0][3]
        if age_s > self._window_s:
            self._verdicts.notice(f"sent again after {age_s:.0f} s, and the stream knows a message "
                                  f"for {self._window_s:g} s only: it may hold some twice")
        if self._publisher.ordered:
            tokens, items = self._first_ones(tokens, items)
        if tokens:
            self._write(tokens, items)
            self.read()
        return not (wire.paused or self._leaving)

    def _first_ones(
        self, tokens: Sequence[int], items: Sequence[Item]
    ) -> tuple[list[int], list[Item]]:
        behind = self._behind
        now: tuple[list[int], list[Item]] = ([], [])
        for token, item in zip(tokens, items, strict=True):
            device = device_of(item[0], item[2])
            if device not in behind:
                behind[device] = None
                now[0].append(token)
                now[1].append(item)
                continue
            queue = behind[device]
            if queue is None:
                queue = behind[device] = deque()
            queue.append((token, item))
        return now

    def _write(self, tokens: Sequence[int], items: Sequence[Item]) -> None:
        wire = self._wire
        if wire is None:
            return
        for token, (topic, _, ident, _) in zip(tokens, items, strict=True):
            self._flight[token] = (device_of(topic, ident), topic)
        batch = self._framer.frames(items, self._inbox, tokens)
        wire.write(batch.data)
        if self._late is None:
            self._watch()
        for i, why in batch.refused:
            self._refuse(tokens[i], why)

    @property
    def _unsettled(self) -> bool:
        return bool(self._flight)

    # -- verdicts ---------------------------------------------------------------------------------

    def settled(self, tokens: list[int], duplicates: int) -> None:
        """Take a run of publications that a stream has stored."""
        self._pulse.heard = True
        self.duplicates += duplicates
        if self.pipelines:
            self._tell_refusals()  # of what these may have overtaken
        found = [self._flight.pop(token, None) for token in tokens]
        self._verdicts.acknowledged(tokens)
        if self._publisher.ordered:
            self._go_on([entry[0] for entry in found if entry is not None])
        self._leave_if_idle()

    def answered(self, subject: str, headers: bytes, payload: bytes) -> None:
        """Take what else is said to one of our messages, or to what `open` asked."""
        self._pulse.heard = True
        name = subject.removeprefix(self._inbox)
        if name.startswith(MARK):
            self.line.answered(name.removeprefix(MARK), headers, payload)
            return
        if name == _API:
            self._answer("api", (headers, payload))
        if name.startswith(_ASKED):
            self._informed_of(int(name.removeprefix(_ASKED)), payload)
        if not name.isdecimal() or int(name) not in self._flight:
            return
        token = int(name)
        if headers.startswith(_NO_RESPONDERS):
            fresh = self._opened > 1 and monotonic() - self._opened_s < STREAMS_LATE_S
            self._refuse(token, NO_STREAM, retry=fresh or self.has_streams)
            return
        facts = _parsed(payload)
        error = facts.get("error")
        if isinstance(error, dict):
            passing = error.get("code") == 503 or error.get("err_code") in _PASSING
            self._refuse(token, _words(error), retry=passing)
        elif "stream" in facts:
            self.settled([token], int(bool(facts.get("duplicate"))))
        else:  # a listener that is no stream has answered
            self._refuse(token, "answered by something that is no stream")

    def delivered(
        self, sid: int, subject: str, reply: str, headers: bytes, payload: bytes
    ) -> None:
        """Take a message to a subject that the line listens to."""
        self._pulse.heard = True
        self.line.heard(sid, subject, reply, headers, payload)

    def _refuse(self, token: int, why: str, *, retry: bool = False) -> None:
        self._refusals.add(token, why, retry=retry)

    def read(self) -> None:
        """Pass on what was refused, all at once: a full stream refuses a whole window."""
        self._tell_refusals()
        self._leave_if_idle()

    def _tell_refusals(self) -> None:
        while self._refusals:
            for tokens, why, retry in self._refusals.take():
                found = [self._flight.pop(token, None) for token in tokens]
                self._oldest.left(self._flight)
                self._verdicts.refused(tokens, why, retry=retry)
                if self._publisher.ordered:
                    self._pass_over([entry[0] for entry in found if entry is not None], retry)

    def _pass_over(self, devices: Sequence[str], retry: bool) -> None:
        if not retry:
            self._go_on(devices)
            return
        behind = [self._behind.pop(device, None) or () for device in devices]
        self._verdicts.returned([token for queue in behind for token, _ in queue])

    def _go_on(self, devices: Sequence[str]) -> None:
        # The next message of each device, in one write.
        tokens: list[int] = []
        items: list[Item] = []
        for device in devices:
            queue = self._behind.get(device)
            if queue:
                token, item = queue.popleft()
                tokens.append(token)
                items.append(item)
            else:
                self._behind.pop(device, None)
        if tokens:
            self._write(tokens, items)

    def _bar(self, subject: str) -> bool:
        return self.line.barred(subject)

    def _deny(self, subject: str) -> None:
        if self.line.denied(subject):
            return
        if subject.startswith("$JS.API."):
            self._answer("api", None)
            return
        for token, (_, topic) in self._flight.items():
            if topic.replace("/", ".") == subject:
                self._refuse(token, DENIED)
                break
        else:
            self._verdicts.notice(f"{DENIED}: {subject!r:.120}")
        self.read()  # the next complaint about this subject is about another message

    # -- the oldest without an answer -------------------------------------------------------------

    def _watch(self) -> None:
        # It must change within ack_wait; it is looked at four times in it.
        if self._wire is None or not self._flight:
            self._late = None
            return
        wait_s, token = self._publisher.ack_wait_s, next(iter(self._flight))
        if self._oldest.age_s(self._flight) >= wait_s:
            if self._asked == token:
                self._late = None
                self._give_up()
                return
            self._inquire()
            self._asked = token
        self._late = asyncio.get_running_loop().call_later(wait_s / 4, self._watch)

    def _inquire(self) -> None:
        # Where somebody else listens to a subject that no stream takes, nobody ever answers.
        frames: list[bytes] = []
        for token, (_, topic) in islice(self._flight.items(), _ASKED_MAX):
            body = orjson.dumps({"subject": topic.replace("/", ".")})
            line = f"PUB $JS.API.STREAM.NAMES {self._inbox}{_ASKED}{token} {len(body)}\r\n"
            frames += (line.encode(), body, b"\r\n")
        if self._wire is not None:
            self._wire.write(b"".join(frames))

    def _informed_of(self, token: int, payload: bytes) -> None:
        if token not in self._flight:
            return
        facts = _parsed(payload)
        if "error" not in facts and not facts.get("streams"):
            self._refuse(token, NO_STREAM)
        elif token == self._asked:
            self._give_up()

    def _give_up(self) -> None:
        wait_s = self._publisher.ack_wait_s
        self.gone(Loss(f"no acknowledgement of the stream for {wait_s:g} s"))

    def _cancel_timers(self) -> None:
        super()._cancel_timers()
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _parsed(payload: bytes) -> dict[str, Any]:
    try:
        facts = orjson.loads(payload)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _words(error: dict[str, Any]) -> str:
    text = " ".join(str(error.get("description", "an error without a text")).split())
    return f"{text[:100]} ({error.get('err_code', error.get('code'))})"
