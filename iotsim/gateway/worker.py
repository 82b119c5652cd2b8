"""What becomes of a gateway's commands: done in order, remembered, answered, then acknowledged.

A command that came is open until its answer is stored and its stream has been told. Two loops go
through the open ones, each in their order: one decides and does (unless an anomaly holds them),
the other sends answers. So a command is not late because the answer to the one before it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from iotsim.clock import monotonic, wall_us
from iotsim.errors import BadValue, IotsimError, told
from iotsim.gateway.answer_book import AnswerBook
from iotsim.gateway.command_log import CommandLog, Entry
from iotsim.gateway.commands import Answer, Change, Command, answer, answer_id, plan, read
from iotsim.gateway.post import Delivery, Hands, Line
from iotsim.gateway.record import GatewayRecord
from iotsim.publishers.backoff import Backoff, Pace

# A durable like the reference's delivers three times, so a command is not given back lightly.
OPEN_MAX = 1000  # commands of one gateway; thrice as many with those that come again
DELIVERIES = 3
FULL_S = 20.0  # when a command for which there is no room may come again
CLOSING_S = 1.0  # when one that was not begun may come to who follows
CLOSED_S = 10.0  # when one may that came while all was being given back
PULSE_S = 10.0  # a stream delivers again what it hears nothing of for 30 s
TRY_S = 5.0
ANSWER_S = 300.0  # so long a stream keeps answers
LOOK_S = 0.1  # at an anomaly that was said to be over and is not
KIND_CHARS_MAX = 64

_Key: TypeAlias = tuple[int, bytes]


@dataclass(slots=True, eq=False)
class _Case:
    """A command that is open; its delivery is the latest of it."""

    key: _Key
    delivery: Delivery
    command: Command
    entry: Entry
    late: bool  # expired when it came


class Worker:
    """Receives the commands of one gateway, carries them out and answers them (a `Post`).

    Parameters
    ----------
    record : GatewayRecord
        A provisioned one; of its secrets nothing is kept.
    hands : Hands
    book : AnswerBook
    log : CommandLog
    now_us : callable
        The wall clock: what is fresh is judged by it.
    """

    def __init__(
        self, record: GatewayRecord, hands: Hands, book: AnswerBook, log: CommandLog, *,
        now_us: Callable[[], int] = wall_us, answer_s: float = ANSWER_S, pulse_s: float = PULSE_S,
        open_max: int = OPEN_MAX,
    ) -> None:
        self.name, self.gateway_id = record.name, record.gateway_id
        self._subject = f"command.ack.{record.tenant_id}.{record.gateway_id}"
        self._values: dict[str, Any] = {
            "send_frequency_ms": record.send_frequency_ms, "status": record.status,
            "firmware": record.firmware,
        }
        self._hands, self._book, self._log, self._now_us = hands, book, log, now_us
        self._answer_s, self._open_max = answer_s, open_max
        self._pulses = Backoff(record.gateway_id, Pace(pulse_s, pulse_s, pulse_s))
        self._open: dict[_Key, _Case] = {}
        self._to_do: deque[_Case] = deque()
        self._to_say: deque[tuple[_Case, Answer]] = deque()
        self._line: Line | None = None
        self._backoff = Backoff(record.gateway_id)
        self._news = asyncio.Event()  # the line has come or gone, or it is to end
        self._doing: asyncio.Task[None] | None = None
        self._saying: asyncio.Task[None] | None = None
        self._busy = False  # with the first of those to do: it may be half done
        self._holding = False
        self._pulse: asyncio.TimerHandle | None = None
        self._closing = self._closed = False

    def __repr__(self) -> str:
        state = ", closed" if self._closed else "" if self._line else ", not connected"
        return f"<Worker of {self.name!r}: {len(self._open):,} commands open{state}>"

    @property
    def waiting(self) -> int:
        """How many commands are not answered yet, or their answer is not stored."""
        return len(self._open)

    # -- what the link tells ----------------------------------------------------------------------

    def connected(self, line: Line) -> None:
        """Take the line on which answers go from now on."""
        self._line = line
        self._news.set()

    def disconnected(self) -> None:
        """Send nothing until there is another line; what is open stays open."""
        self._line = None
        self._news.set()

    def delivered(self, delivery: Delivery) -> None:
        """Take a command; what a stream delivers again while it is open is the same one."""
        if self._closed:
            return  # not acknowledged: it comes again to who follows
        if self._closing:
            self._tell(delivery.nak, CLOSED_S)
            return
        key = (delivery.sequence, delivery.payload)
        known = self._open.get(key)
        if known is not None:
            known.delivery, known.entry.deliveries = delivery, delivery.deliveries
            return
        entry = Entry(self.name, self.gateway_id, delivery.received_us,
                      deliveries=delivery.deliveries)
        try:
            command = read(delivery.payload)
        except BadValue as error:
            self._log.settle(self._log.add(entry), "terminated", str(error))
            self._tell(delivery.term)
            return
        if len(self._open) >= self._open_max * min(max(1, delivery.deliveries), DELIVERIES):
            self._log.note("overflowed")
            self._tell(delivery.nak, FULL_S)
            return
        entry.command_id, entry.kind = command.id, command.kind[:KIND_CHARS_MAX]
        entry.issued_us = command.issued_us
        case = _Case(key, delivery, command, self._log.add(entry),
                     command.expired(self._now_us()))
        self._open[key] = case
        self._to_do.append(case)
        if self._holding:
            self._delay(case)
        self._wake()

    def _wake(self) -> None:
        if self._doing is None or self._doing.done():
            self._doing = asyncio.create_task(self._do_all(), name=f"commands of {self.name}")
        if self._pulse is None:
            self._wait_to_beat()

    def _wait_to_beat(self) -> None:
        # Half of it is left to chance: a thousand that are held together do not beat together.
        wait_s = self._pulses.delay_s(1)
        self._pulse = asyncio.get_running_loop().call_later(wait_s, self._beat)

    def _beat(self) -> None:
        self._pulse = None
        if not self._open or self._closed:
            return
        if self._line is not None:
            for case in self._open.values():
                self._tell(case.delivery.in_progress)
        self._wait_to_beat()

    def _tell(self, say: Callable[..., None], *args: float) -> None:
        try:
            say(*args)
        except (IotsimError, OSError):  # then it is delivered again
            self._log.note("unsaid")

    # -- deciding and doing -----------------------------------------------------------------------

    async def _do_all(self) -> None:
        while self._to_do and not self._closing:
            if self._anomalous():
                await self._hold()
                continue
            case, self._busy = self._to_do[0], True
            try:
                reply = await self._answer_to(case)
            finally:
                self._busy = False
            self._to_do.popleft()
            self._to_say.append((case, reply))
            if self._saying is None or self._saying.done():
                self._saying = asyncio.create_task(self._say_all(),
                                                   name=f"answers of {self.name}")

    def _anomalous(self) -> bool:
        try:
            return self._hands.anomalous(self.name)
        except IotsimError:  # it is no part of the run any more: its commands will be refused
            return False
        except Exception:  # a fault of ours must hold nobody's commands back, and is counted
            self._log.note("failed")
            return False

    async def _hold(self) -> None:
        for case in self._to_do:
            self._delay(case)
        self._holding = True
        try:
            await self._hands.calm(self.name)
        except IotsimError:
            pass  # it is no part of the run any more
        except Exception:
            self._log.note("failed")
        finally:
            self._holding = False
        if self._anomalous():
            await asyncio.sleep(LOOK_S)

    def _delay(self, case: _Case) -> None:
        if case.entry.status == "waiting":
            case.entry.status = "held"
            self._log.note("delayed")

    async def _answer_to(self, case: _Case) -> Answer:
        command, now_us = case.command, self._now_us()
        wish: Change | str = Change()
        if case.late or command.expired(now_us):
            reply = answer(command, "expired", now_us)
        else:
            wish = plan(command)
            refused = isinstance(wish, str)
            reply = answer(command, "nack" if refused else "ack", now_us,
                           wish if isinstance(wish, str) else "")
        fields = wish.fields if isinstance(wish, Change) else {}
        try:
            # Before it is done: what is killed in between finds the change in its record.
            earlier = await self._book.remember(self.name, fields, reply)
        except Exception as error:
            self._log.note("failed")
            if reply.status != "ack":
                return reply
            why = f"the change could not be stored ({type(error).__name__})"
            return answer(command, "nack", now_us, why)
        if earlier is not None:
            case.entry.repeated = True
            self._log.note("repeated")
            return earlier
        try:
            if fields:
                self._hands.asked(self.name, command.id, command.kind, fields)
            self._carry_out(fields)
        except Exception as error:
            return await self._take_back(command, fields, error)
        return reply

    def _carry_out(self, fields: Mapping[str, Any]) -> None:
        done: list[str] = []
        try:
            for field, value in fields.items():
                self._do(field, value)
                done.append(field)
        except Exception:
            for field in reversed(done):
                try:
                    self._do(field, self._values[field])
                except IotsimError:
                    self._log.note("failed")
            raise
        self._values.update(fields)

    def _do(self, field: str, value: Any) -> None:
        if field == "send_frequency_ms":
            self._hands.set_frequency(self.name, value)
        elif field == "status":
            self._hands.set_status(self.name, value)
        else:
            self._hands.set_firmware(self.name, value)

    async def _take_back(
        self, command: Command, fields: Mapping[str, Any], error: Exception
    ) -> Answer:
        # Texts of our own errors hold no secret; what others say is not passed on.
        self._log.note("failed")
        why = str(error) if isinstance(error, IotsimError) else type(error).__name__
        reply = answer(command, "nack", self._now_us(), f"could not be done: {why}")
        before = {field: self._values[field] for field in fields}
        try:
            await self._book.remember(self.name, before, reply, again=True)
        except Exception:
            self._log.note("failed")
        return reply

    # -- answering --------------------------------------------------------------------------------

    async def _say_all(self) -> None:
        while self._to_say:
            case, reply = self._to_say[0]
            why = await self._send(reply)
            if why and self._closing:
                return  # not acknowledged: it comes again and has the same answer
            if why:
                self._log.note("unanswered")
                self._log.settle(case.entry, "returned", f"the answer is not stored: {why}")
                self._tell(case.delivery.nak, FULL_S)
            else:
                case.entry.answered_us = self._now_us()
                self._log.settle(case.entry, reply.status, reply.message)
                self._tell(case.delivery.ack)
            self._to_say.popleft()
            del self._open[case.key]

    async def _send(self, reply: Answer) -> str:
        """Send an answer until a stream has stored it; return why none has, or nothing."""
        headers = {"Nats-Msg-Id": answer_id(self.gateway_id, reply.command_id)}
        until_s, failures = monotonic() + self._answer_s, 0
        why = "there is no connection"
        while True:
            line = self._line
            self._news.clear()
            if line is not None:
                try:
                    said = await line.request(self._subject, reply.wire, headers=headers,
                                              timeout_s=TRY_S)
                    why = _trouble(said)
                except Exception as error:
                    why = told(error)
                if not why:
                    return ""
                self._log.note("retried")
                failures += 1
            elif self._closing:
                return why
            left_s = until_s - monotonic()
            if left_s <= 0:
                return why
            wait_s = left_s if line is None else min(left_s, self._backoff.delay_s(failures))
            try:
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            except TimeoutError:
                pass

    # -- the end ----------------------------------------------------------------------------------

    async def close(self, deadline_s: float = 5.0) -> None:
        """Give back what was not begun, and finish what was, as far as there is time.

        What is not finished then stays unacknowledged: it is delivered again to who follows, and
        has the same answer. Nothing is said any more afterwards.
        """
        if self._closed:
            return
        self._closing = True
        while len(self._to_do) > self._busy:  # the first may be half done
            case = self._to_do.pop()
            self._log.settle(case.entry, "returned", "the gateway was stopped")
            self._tell(case.delivery.nak, CLOSING_S)
            del self._open[case.key]
        self._news.set()
        if self._doing is not None and not self._busy:
            self._doing.cancel()
        try:
            async with asyncio.timeout(deadline_s):
                if self._doing is not None:
                    await asyncio.wait([self._doing])
                if self._saying is not None:  # perhaps only since now
                    await asyncio.wait([self._saying])
        except TimeoutError:
            pass
        finally:
            self._end()

    def _end(self) -> None:
        self._closed, self._line = True, None
        for task in (self._doing, self._saying):
            if task is not None:
                task.cancel()
        if self._pulse is not None:
            self._pulse.cancel()
        for case in self._open.values():
            self._log.settle(case.entry, "returned", "the gateway was stopped before it answered")
        self._open.clear()


def _trouble(said: bytes) -> str:
    """Why what was said is not that a stream has stored it; empty: it has."""
    try:
        facts = orjson.loads(said)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        return "answered by something that is no stream"
    error = facts.get("error")
    if isinstance(error, dict):
        return " ".join(str(error.get("description", "an error without a text")).split())[:100]
    return "" if "stream" in facts else "answered by something that is no stream"
