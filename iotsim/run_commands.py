"""Commands of a live run: given straight to its devices, or through a broker as a platform would.

`run.command` gives what each device answered as a table; what comes later stands in
`run.commands()`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import orjson

from iotsim import verbs
from iotsim.clock import monotonic
from iotsim.commands import PENDING, STATUSES, Letter, named, table
from iotsim.errors import BadValue, ConnectError, IotsimError, RunBroken
from iotsim.listening.base import Ear, Routes, Talk
from iotsim.selectors import Where, parse
from iotsim.units import Duration, duration_us

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.engine.deeds import Deeds
    from iotsim.run import Run

TIMEOUT = "timeout"  # what a table says of those who had not answered when it was made
_LOADED: set[str] = set()
TURN_S = 0.5  # a run that ends meanwhile is noticed within it
_TURNS: WeakKeyDictionary[Any, tuple[asyncio.Lock, asyncio.Lock]] = WeakKeyDictionary()


class RunCommands:
    """The verb that gives devices a command, and waits for their answers."""

    __slots__ = ()

    def command(
        self, name: str, where: Where = "all", *, payload: Any = None, timeout: Duration = "10s",
        via: str | None = None, id: str | None = None,
    ) -> Coroutine[Any, Any, pd.DataFrame]:
        """Give devices a command; `await` it for a table of who answered what.

        Columns: device_id, command_id, command, status, answer, sent, answered, latency, by. A
        status is one of acknowledged (by a device that does not listen), ack, fail, busy, offline,
        stopped, timeout. Straight, latency is simulated seconds (0 of a device that
        answers at once); through a broker real ones.

        Parameters
        ----------
        name : str
            Such as "reboot".
        where : selector
        payload : JSON value, optional
        timeout : duration
            Real time to wait for answers; a later one stands in `run.commands()`.
        via : str, optional
            The address of a `listen_to`: the command is published there as a platform would do.
        id : str, optional
            A device does nothing twice under one id; made if not given.

        Raises
        ------
        ConnectError
            If the broker of `via` could not be reached, or was away when the time was over.
        """
        parameters = verbs.command(named(name), where, payload, id)
        return _answers(self, parameters, duration_us(timeout, "timeout") / 1e6, via)


async def _answers(
    run: Any, parameters: Mapping[str, Any], limit_s: float, via: str | None
) -> pd.DataFrame:
    if not run.is_on(asyncio.get_running_loop()):
        there = await run._visit(_answers(run, parameters, limit_s, via))
        if there is None:
            raise BadValue("run", run.name, "has ended", f"Start it again: {run.begins}.")
        return cast("pd.DataFrame", there)
    await run.ready()
    await _load_pandas()
    if via is None:
        return await _straight(run, parameters, limit_s)
    return await _through(run, parameters, limit_s, _ear(run, via))


async def _load_pandas() -> None:
    # The first time it takes a second: the run goes on meanwhile.
    if not _LOADED:
        await asyncio.to_thread(import_module, "pandas")
        _LOADED.add("pandas")


def _deeds(run: Run) -> Deeds:
    driver = run._works.driver
    assert driver is not None, "a run that is ready has one"
    return driver.simulation.deeds


@asynccontextmanager
async def _turn(run: Run, tables: bool) -> AsyncIterator[None]:
    # Of a thousand commands at once each takes milliseconds: the run goes on between them.
    lock = _TURNS.setdefault(run, (asyncio.Lock(), asyncio.Lock()))[tables]
    async with lock:
        await asyncio.sleep(0)
        yield


async def _straight(run: Run, parameters: Mapping[str, Any], limit_s: float) -> pd.DataFrame:
    async with _turn(run, tables=False):
        action = run._act("command", parameters)
        letter = _deeds(run).mail.book.letters[-1]
    deeds = _deeds(run)
    book = deeds.mail.book
    over = asyncio.Event()

    def answered(_: Letter, place: int) -> None:
        if not letter.open:
            over.set()

    letter.watch(answered)
    if letter.open:
        await _until(run, over, limit_s)
    async with _turn(run, tables=True):
        found = table(book.under(letter.id), deeds.population)
    found.attrs["note"] = action.note
    return _timed_out(found)


async def _until(run: Run, over: asyncio.Event, limit_s: float) -> None:
    until_s = monotonic() + limit_s
    while not over.is_set() and not run.ended and monotonic() < until_s:
        try:
            async with asyncio.timeout(min(TURN_S, max(0.0, until_s - monotonic()))):
                await over.wait()
        except TimeoutError:
            pass


def _timed_out(found: pd.DataFrame) -> pd.DataFrame:
    names = [TIMEOUT if name == STATUSES[PENDING] else name for name in STATUSES]
    found["status"] = found["status"].cat.rename_categories(names)
    return found


# -- through a broker -----------------------------------------------------------------------------


def _ear(run: Run, via: str) -> Ear:
    for ear in run.fleet.ears:
        if via in (ear.url, str(ear), ear.settings["url"]):
            return ear
    there = ", ".join(map(str, run.fleet.ears)) or "nowhere: add fleet.listen_to(url)"
    from iotsim.transport.addresses import redacted

    given = redacted(via) if isinstance(via, str) else via
    raise BadValue("via", given, "is not where this fleet listens", f"It listens to {there}.")


class _Asked:
    """What was sent to whom, and what came back."""

    def __init__(self, deeds: Deeds, slots: list[int], ident: str, over: asyncio.Event) -> None:
        self.people, self.slots, self.ident, self.over = deeds.population, slots, ident, over
        self.places = {self.people.ids[slot]: i for i, slot in enumerate(slots)}
        self.sent_s = [float("nan")] * len(slots)
        self.latency_s = [float("nan")] * len(slots)
        self.said: dict[int, Mapping[str, Any]] = {}

    def sent(self, place: int) -> None:
        """Take note of when a command was handed over."""
        if self.sent_s[place] != self.sent_s[place]:  # not a number yet: the first time
            self.sent_s[place] = monotonic()

    def unanswered(self) -> list[int]:
        """Return who has not answered yet."""
        return [place for place in range(len(self.slots)) if place not in self.said]

    def heard(self, body: bytes) -> None:
        """Take what came on an answer topic: the first answer of each device counts."""
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            return
        if not isinstance(said, dict) or said.get("command_id") != self.ident:
            return
        place = self.places.get(str(said.get("device_id")))
        if place is None or place in self.said:
            return
        self.latency_s[place] = monotonic() - self.sent_s[place]
        self.said[place] = said
        if len(self.said) == len(self.slots):
            self.over.set()

    def table(self, deeds: Deeds, name: str, by: str) -> pd.DataFrame:
        """Return a row for each device that was asked."""
        import pandas as pd

        found = table([], self.people)
        mine = table(deeds.mail.book.under(self.ident), self.people)
        mine = mine.set_index(mine["device_id"].astype("str"))
        rows = []
        for place, slot in enumerate(self.slots):
            device_id, said = self.people.ids[slot], self.said.get(place)
            known = mine.loc[device_id] if device_id in mine.index else None
            status = TIMEOUT if said is None else str(said.get("status"))
            answer = None if said is None else said.get("result", said.get("error"))
            times = (pd.NaT, pd.NaT) if known is None else (known["sent"], known["answered"])
            rows.append((device_id, self.ident, name, status, answer, *times,
                         self.latency_s[place], by))
        made = pd.DataFrame(rows, columns=found.columns)
        for column in ("sent", "answered"):
            made[column] = pd.to_datetime(made[column], utc=True).astype("datetime64[us, UTC]")
        return made.astype({"status": "category", "device_id": "category"})


async def _through(
    run: Run, parameters: Mapping[str, Any], limit_s: float, ear: Ear
) -> pd.DataFrame:
    deeds, driver = _deeds(run), run._works.driver
    assert driver is not None
    people, routes = deeds.population, Routes(ear, deeds.population)
    wanted, note = people.select(parse(parameters["where"]), driver.frontier_us)
    topics = {slot: topic for topic, slots in routes.slots.items() for slot in slots}
    slots = [slot for slot in np.asarray(wanted).tolist() if slot in topics]
    ident = parameters.get("id") or f"platform-{secrets.token_hex(4)}"
    over = asyncio.Event()
    asked = _Asked(deeds, slots, ident, over)
    said = {"command": parameters["name"], "id": ident, "payload": parameters.get("payload", {})}
    requests = [(topics[slot], orjson.dumps({**said, "device_id": people.ids[slot]}))
                for slot in slots]
    answers = [routes.answer_topic(slot) for slot in slots]
    pattern = ear.pattern(ear.answer, ear.module.ANY)
    talk = Talk(requests, answers, pattern, asked.sent, asked.heard, over, asked.unanswered)
    if slots:
        try:
            async with asyncio.timeout(limit_s):
                await ear.module.converse(ear, talk)
        except TimeoutError:
            if talk.trouble:
                todo = f"{len(asked.said):,} of {len(slots):,} answered; run.commands() tells more."
                raise ConnectError(ear.settings["url"], talk.trouble, todo,
                                   "send commands to") from None
        except IotsimError:
            raise
        except Exception as error:
            raise RunBroken(error) from error
    async with _turn(run, tables=True):
        found = asked.table(deeds, parameters["name"], str(ear))
    found.attrs["note"] = note if slots else note or f"nobody of them listens to {ear}"
    return found
