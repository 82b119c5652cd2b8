"""Acks as the management API reads them, by its own pull durable."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from iotsim.clock import stamp_us
from iotsim.errors import BadValue, NoAnswer
from iotsim.lab.management import Register, Registered
from iotsim.lab.moments import instant_of
from iotsim.lab.rights import ACKS

if TYPE_CHECKING:
    import pandas as pd

DURABLE = "management-api_command_ack__"
ROWS_MAX = 1_000_000
COMMANDS_MAX = 1_000_000
BATCH = 256
EXPIRES_S = 5.0
SPARE_S = 1.0
AGAIN_S = 0.1
STATUSES = ("ack", "nack", "queued", "expired", "timeout")
_SETTINGS = {"send_frequency_ms": "send_frequency_ms", "status": "status",
             "firmware_version": "firmware", "sendFrequencyMs": "send_frequency_ms",
             "firmwareVersion": "firmware"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One ack of a command.

    Attributes
    ----------
    command_id, gateway_id, status, message : str
    issued_us : int or None
        When the console sent the command; None: it did not.
    answered_us : int
        When the console read the ack.
    timestamp : str
        What the gateway says.
    """

    command_id: str
    gateway_id: str
    status: str
    message: str
    issued_us: int | None
    answered_us: int
    timestamp: str

    @property
    def latency_s(self) -> float:
        """Seconds from the command to its ack; NaN if nobody here has sent it."""
        if self.issued_us is None:
            return float("nan")
        return (self.answered_us - self.issued_us) / 1_000_000


@dataclass(slots=True)
class _Issued:
    gateway: Registered
    payload: Mapping[str, Any]
    time_us: int


class AnswerDesk:
    """Reads acks and holds them against the commands.

    Attributes
    ----------
    skipped : Counter
        Acks that were neither taken nor acknowledged, by reason, each counted once.
    count : int
    """

    def __init__(self, register: Register, connection: Client) -> None:
        self.skipped: Counter[str] = Counter()
        self._register, self._connection = register, connection
        self._issued: dict[str, _Issued] = {}
        self._rows: deque[Answer] = deque(maxlen=ROWS_MAX)
        self._first: dict[str, Answer] = {}
        self._waiting: dict[str, list[asyncio.Future[Answer]]] = {}
        self._pump: asyncio.Task[None] | None = None
        self._again = asyncio.Event()
        self._left = 0
        self.count = 0

    async def start(self) -> None:
        """Make the durable and ask for acks from now on."""
        streams = self._connection.jetstream(timeout=10)
        config = ConsumerConfig(
            durable_name=DURABLE, name=DURABLE, filter_subject="command.ack.>",
            ack_policy=AckPolicy.EXPLICIT, max_deliver=3,
        )  # fmt: skip
        await streams.add_consumer(ACKS, config)
        inbox = self._connection.new_inbox()
        await self._connection.subscribe(inbox, cb=self._arrived)
        self._pump = asyncio.create_task(self._ask(inbox), name="lab: acks")

    async def stop(self) -> None:
        """Ask no more."""
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.cancel()
            await asyncio.wait({pump}, timeout=1)

    def ask_again(self) -> None:
        """Ask at once: what was asked before is forgotten, with the connection."""
        self._again.set()

    def issued(self, command_id: str, gateway: Registered, payload: Mapping[str, Any]) -> None:
        """Take note of a command that goes out now."""
        while len(self._issued) >= COMMANDS_MAX:
            self._issued.pop(next(iter(self._issued)))
        self._issued[command_id] = _Issued(gateway, payload, stamp_us())

    async def answer(self, command_id: str, within_s: float) -> Answer:
        """Wait for the first ack of a command."""
        if not isinstance(command_id, str):
            raise BadValue("command_id", command_id, "is no text", "Give what config() returned.")
        if command_id in self._first:
            return self._first[command_id]
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        waiting = self._waiting.setdefault(command_id, [])
        waiting.append(future)
        try:
            async with asyncio.timeout(within_s):
                return await future
        except TimeoutError:
            raise NoAnswer(f"command {command_id!r}", within_s) from None
        finally:
            waiting.remove(future)
            if not waiting:
                self._waiting.pop(command_id, None)

    def last(self, count: int) -> list[Answer]:
        """Return the last acks, the newest first."""
        return list(islice(reversed(self._rows), count))

    def frame(self) -> pd.DataFrame:
        """Return all acks."""
        return acks_of(list(self._rows))

    async def _ask(self, inbox: str) -> None:
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{ACKS}.{DURABLE}"
        request = json.dumps({"batch": BATCH, "expires": int(EXPIRES_S * 1e9)}).encode()
        while True:
            self._again.clear()
            self._left = BATCH
            try:
                async with asyncio.timeout(EXPIRES_S + SPARE_S):
                    await self._connection.publish(subject, request, reply=inbox)
                    await self._again.wait()
            except TimeoutError:
                continue
            except (OSError, nats.errors.Error):
                await asyncio.sleep(AGAIN_S)

    async def _arrived(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status")
        if status is not None:
            if status != "100":  # the request has expired, or nobody heard it
                self._again.set()
            return
        self._left -= 1
        if self._left <= 0:
            self._again.set()
        reason = self._taken(message)
        if not reason:
            await message.ack()
        elif message.metadata.num_delivered == 1:
            self.skipped[reason] += 1

    def _taken(self, message: Msg) -> str:
        # What the management API skips, it does not acknowledge either.
        try:
            body = json.loads(message.data)
        except ValueError:
            return "no JSON"
        if not isinstance(body, dict):
            return "no object"
        command_id = body.get("command_id") or body.get("commandId")
        if not isinstance(command_id, str) or not command_id:
            return "no command id"
        status = body.get("status")
        status = status.lower() if isinstance(status, str) else ""
        if status not in STATUSES:
            return "unknown status"
        if instant_of(body.get("timestamp")) is None:
            return "no timestamp"
        issued = self._issued.get(command_id)
        gateway_id = message.subject.rpartition(".")[2]
        said = body.get("message")
        answer = Answer(command_id, gateway_id, status, said if isinstance(said, str) else "",
                        issued.time_us if issued is not None else None, stamp_us(),
                        body["timestamp"])
        self._keep(answer)
        if status == "ack" and issued is not None and issued.gateway.gateway_id == gateway_id:
            for name, value in issued.payload.items():
                if (attribute := _SETTINGS.get(name)) is not None:
                    setattr(issued.gateway, attribute, value)
        return ""

    def _keep(self, answer: Answer) -> None:
        self.count += 1
        self._rows.append(answer)
        while len(self._first) >= ROWS_MAX:
            self._first.pop(next(iter(self._first)))
        self._first.setdefault(answer.command_id, answer)
        for future in self._waiting.get(answer.command_id, ()):
            if not future.done():
                future.set_result(answer)


def acks_of(rows: Sequence[Answer]) -> pd.DataFrame:
    """Return acks as a frame, one row each."""
    import pandas as pd

    from iotsim.lab.columns import text_column, time_column

    texts = ("command_id", "gateway_id", "status", "message")
    return pd.DataFrame({
        **{name: text_column(getattr(row, name) for row in rows) for name in texts},
        "issued_at": time_column(row.issued_us for row in rows),
        "answered_at": time_column(row.answered_us for row in rows),
        "latency": pd.Series([row.latency_s for row in rows], dtype="float64"),
    })  # fmt: skip
