"""What a pre-flight measures: brokers, by connecting and going away again; and this machine.

It happens in a thread with a loop of its own, so that a plain call works where a loop runs.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from iotsim.acks import Acks
from iotsim.capture import Bound, Capture
from iotsim.clock import monotonic, thread_cpu_s
from iotsim.digest import Digest
from iotsim.engine.simulation import Simulation
from iotsim.errors import IotsimError
from iotsim.intake import Intake
from iotsim.members import Members
from iotsim.progress import LOOK_S, bar
from iotsim.publishers.base import (
    UNTRACED,
    Identity,
    Item,
    Limits,
    Link,
    Loss,
    Publisher,
    Tracing,
    Verdicts,
)
from iotsim.publishers.payload import Encoder
from iotsim.publishers.pump import Pump
from iotsim.seeding import check_seed
from iotsim.transport.addresses import failure_text
from iotsim.units import DEFAULT_START, US_PER_SECOND, instant_us

PROBE_S = 10.0
TRIPS_S = 0.3  # for which answers are measured
TRIPS_MAX = 2_000
TRIP_LIMIT_S = 2.0
CLOSE_S = 1.0
AT_ONCE = 8
BURST_MESSAGES = 20_000
BURST_DEVICES = 2_000
BURST_S = 0.5
NULL_WINDOW = 1_000_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Contact:
    """What connecting to a publisher told.

    Attributes
    ----------
    window : int
        How many may be in flight.
    round_trip_s : float
        The median of many questions that publish nothing; NaN if that could not be measured.
    at_once_hz : float
        How many answers a second came to as many questions at once as there are requests (HTTP).
    error : str
        Why there was no connection.
    objection : str
        Why messages will be refused, or may be.
    certain : bool
        Whether they will.
    """

    window: int = 0
    round_trip_s: float = math.nan
    error: str = ""
    objection: str = ""
    certain: bool = False
    at_once_hz: float = math.nan


@dataclass(frozen=True, slots=True)
class Wish:
    """Whom to contact: as which device, if each has a session, and with which topics."""

    publisher: Publisher
    device: Identity | None
    topics: Sequence[str]


@dataclass(frozen=True, slots=True)
class Burst:
    """What this machine makes of a fleet's messages without a broker.

    Attributes
    ----------
    rate_hz : float
        Messages a second that one core makes, encodes, queues and accounts for; NaN if nothing
        could be tried.
    payload_bytes : mapping of member index to the largest payload seen
    """

    rate_hz: float
    payload_bytes: dict[int, int]


def contacts(asked: Sequence[Wish]) -> list[Contact]:
    """Connect to publishers, one link each, and disconnect; all within ten seconds."""
    silent = [Contact(error=f"no answer in {PROBE_S:g} s") for _ in asked]
    return _elsewhere(lambda: _contact_all(asked), PROBE_S + 2 * CLOSE_S) or silent


def burst(members: Sequence[Members], seed: int) -> Burst:
    """Return how fast this machine makes the messages of a fleet, from a few thousand of them."""
    nothing = Burst(math.nan, {})
    return _elsewhere(lambda: _burst(members, seed), PROBE_S) or nothing


def _elsewhere(work: Callable[[], Coroutine[Any, Any, T]], limit_s: float) -> T | None:
    answers: list[T] = []

    def there() -> None:
        with suppress(Exception):  # what cannot be measured is not known, and no error
            answers.append(asyncio.run(work()))

    thread = threading.Thread(target=there, name="iotsim preflight", daemon=True)
    thread.start()
    until_s = monotonic() + limit_s
    with bar("preflight", limit_s) as shown:
        while thread.is_alive() and (left_s := until_s - monotonic()) > 0:
            thread.join(min(LOOK_S, left_s))
            shown.update(LOOK_S)
    return answers[0] if answers else None


async def _contact_all(asked: Sequence[Wish]) -> list[Contact]:
    turns, limit_s = asyncio.Semaphore(AT_ONCE), monotonic() + PROBE_S

    async def one(wish: Wish) -> Contact:
        async with turns:
            return await _contact(wish, limit_s)

    return list(await asyncio.gather(*(one(wish) for wish in asked)))


async def _contact(wish: Wish, limit_s: float) -> Contact:
    link: Link | None = None
    try:
        name = f"preflight-{secrets.token_hex(4)}"
        link = wish.publisher.link(0, name, _Deaf(), wish.device)
        async with asyncio.timeout(max(0.1, limit_s - monotonic())):
            window = await link.open()
        try:
            return await _measured(link, wish, window, limit_s)
        finally:
            async with asyncio.timeout(CLOSE_S):
                await link.close()
    except TimeoutError:
        return Contact(error=f"no answer in {PROBE_S:g} s")
    except Exception as error:
        why = str(error) if isinstance(error, IotsimError) else failure_text(error)
        return Contact(error=why)
    finally:
        if link is not None:
            link.drop()


async def _measured(link: Any, wish: Wish, window: int, limit_s: float) -> Contact:
    # Only questions are asked; a link that has none to ask is not measured.
    publisher, topic = wish.publisher, wish.topics[0] if wish.topics else ""
    ask = getattr(link, "round_trip", None)
    if ask is None or not getattr(publisher, "probe", True):
        return Contact(window)
    until_s = min(monotonic() + TRIPS_S, limit_s)
    with suppress(TimeoutError):
        trip_s = await _trip_s(ask, topic, until_s)
        rate_hz = math.nan
        requests = getattr(publisher, "connections", 0) if _answers_at_once(publisher) else 0
        if requests:
            rate_hz = await _answers_hz(ask, topic, requests)
        objection, certain = "", False
        for one in wish.topics:
            if not objection and hasattr(link, "objection"):
                async with asyncio.timeout(TRIP_LIMIT_S):
                    objection, certain = await link.objection(one)
        return Contact(window, trip_s, "", objection, certain, rate_hz)
    return Contact(window)


def _answers_at_once(publisher: Publisher) -> bool:
    return publisher.url.startswith(("http:", "https:"))


async def _trip_s(ask: Callable[[str], Coroutine[Any, Any, None]], topic: str, until_s: float,
                  ) -> float:
    taken: list[float] = []
    while not taken or (monotonic() < until_s and len(taken) < TRIPS_MAX):
        began_s = monotonic()
        async with asyncio.timeout(TRIP_LIMIT_S):
            await ask(topic)
        taken.append(monotonic() - began_s)
    return sorted(taken)[len(taken) // 2]


async def _answers_hz(ask: Callable[[str], Coroutine[Any, Any, None]], topic: str, requests: int,
                      ) -> float:
    began_s, count = monotonic(), 0

    async def one() -> None:
        nonlocal count
        while monotonic() < began_s + TRIPS_S:
            await ask(topic)
            count += 1

    async with asyncio.timeout(TRIPS_S + TRIP_LIMIT_S):
        await asyncio.gather(*(one() for _ in range(requests)))
    return count / (monotonic() - began_s)


class _Deaf:
    # Verdicts of links that never send anything.

    def acknowledged(self, tokens: Sequence[int]) -> None:
        pass

    def refused(self, tokens: Sequence[int], reason: str, **_: Any) -> None:
        pass

    def returned(self, tokens: Sequence[int], rest_s: float = 0.0) -> None:
        pass

    def uncertain(self, tokens: Sequence[int], reason: str = "") -> None:
        pass

    def notice(self, text: str) -> None:
        pass

    def lost(self, loss: Loss) -> None:
        pass

    def ready(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Nowhere:
    # A publisher whose peer takes everything at once.

    url: str = "nowhere:"
    limits: Limits = field(default_factory=Limits)
    tracing: Tracing = UNTRACED
    per_device: ClassVar[bool] = False

    def lanes(self, devices: int) -> int:
        return 1

    def link(
        self, lane: int, run_id: str, verdicts: Verdicts, device: Identity | None = None
    ) -> Link:
        return _NowhereLink(verdicts)


class _NowhereLink(Link):
    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts

    async def open(self) -> int:
        return NULL_WINDOW

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        self._verdicts.acknowledged(tokens)
        return True

    def drop(self) -> None:
        pass

    async def close(self) -> None:
        pass


async def _burst(members: Sequence[Members], seed: int) -> Burst:
    known = [i for i, member in enumerate(members) if member.profile is not None]
    if not known:
        return Burst(math.nan, {})
    share = max(1, BURST_DEVICES // len(known))
    few = [replace(members[i], count=min(members[i].count, share)) for i in known]
    start_us = instant_us(DEFAULT_START)
    simulation = Simulation(few, check_seed(seed), start_us)
    intake = Intake(Digest(start_us), Capture(Bound(rows=BURST_MESSAGES)), None)
    encoder = Encoder("preflight", lambda group, i: f"devices/{group.ids[i]}/telemetry")
    sizes: dict[int, int] = {}
    made, step_us = 0, max(10_000, int(BURST_DEVICES * US_PER_SECOND / simulation.rate_hz))
    async with Pump(_Nowhere(), settled=Acks().add) as pump:
        began_s, spent_s, until_us = thread_cpu_s(), 0.0, start_us
        while made < BURST_MESSAGES and spent_s < BURST_S:
            until_us += step_us
            for readings in simulation.advance(until_us):
                intake.add(readings)
                messages = encoder.encode(readings)
                await pump.offer(0, messages)
                await asyncio.sleep(0)
                made += len(readings)
                index = known[readings.group.index]
                largest = max(map(len, messages.payloads), default=0)
                sizes[index] = max(sizes.get(index, 0), largest)
            spent_s = thread_cpu_s() - began_s
    return Burst(made / spent_s if made else math.nan, sizes)
