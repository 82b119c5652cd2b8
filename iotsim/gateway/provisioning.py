"""Provisioning: a factory id and its key, which work once, become a gateway of the platform.

What the contract (A10, A11) makes safe. The service asks the platform twice: *validate* looks at
the credentials and changes nothing; *complete* stores the AES key and uses the factory key up.
The answer to us comes after both, and nobody can ask for it a second time. Hence:

* The private key is in the store before the service is asked, the answer is in the store before
  anything is done with it, and who is cancelled meanwhile does not take the answer along.
* Asked again at once, a few times: what never reached the service (no connection), and a 503
  that came so soon that the service cannot have waited in vain for the platform. After a later
  503 a *complete* may still be on its way; a second request would then let two AES keys race.
* Never asked again by itself: 400, 401, 404 and 409, which stay as they are; 500, a lost
  connection and our own deadline, after which *complete* may have been carried out. A person may
  ask again: either it works, or a 409 says that the key is used up. It never makes things worse.
* Our deadline is longer than the service's own: two calls of 18 s each.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from iotsim.clock import monotonic
from iotsim.errors import BadValue, IotsimError, MissingExtra, shown
from iotsim.facts import facts_html, table_html
from iotsim.gateway.keys import KeyMaker, needs_cryptography
from iotsim.gateway.outcomes import ERROR, SUCCESS, count
from iotsim.gateway.provisioning_desk import ATTEMPTS, Desk, Keeper
from iotsim.gateway.provisioning_exchange import TIMEOUT_S, Service
from iotsim.gateway.record import GatewayRecord
from iotsim.logs import say
from iotsim.progress import bar

if TYPE_CHECKING:
    import aiohttp
    import pandas as pd

CONCURRENCY = 10
CONCURRENCY_MAX = 200
Progress: TypeAlias = Callable[[int, int], None] | bool | None


async def onboard(
    record: GatewayRecord,
    *,
    url: str,
    ca: str | Path | None = None,
    keeper: Keeper | None = None,
    keys: KeyMaker | None = None,
    timeout_s: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
    session: aiohttp.ClientSession | None = None,
) -> GatewayRecord:
    """Have the platform provision one gateway, and return all that is known of it then.

    A record that is provisioned already comes back untouched. Cancelled while the service is
    asked, this returns in a few seconds at the latest; the exchange goes on to its own deadline,
    and what it brings is saved. Called again meanwhile, it waits for that very exchange.

    Parameters
    ----------
    record : GatewayRecord
        Without a private key one is made.
    url : str
        One with a path is used as it is; to another, `/api/provision/onboard` is appended.
    ca : str or path, optional
        The authorities to trust instead of the system's; for https alone.
    keeper : Keeper, optional
        The store. Without it, what is cancelled or killed is lost.
    keys : KeyMaker, optional
        One that is open; without it, one is opened for this key.
    timeout_s : float
        For one request. The service itself may take 36 s.
    attempts : int
        How often it is asked at most, where that is safe.
    session : aiohttp.ClientSession, optional
        To be used instead of one for this call. It must outlive the exchange.

    Raises
    ------
    ProvisioningError
        Why it is not provisioned, what to do, and whether the factory key is used up.
    BadValue, MissingExtra, KeysUnavailable
        If the service was not even asked.
    """
    _needs_libraries()
    try:
        service = Service.at(url, ca, timeout_s)
        async with Desk(service, keeper, attempts, session) as desk:
            made = await desk.onboard(record, keys)
    except IotsimError as error:
        count(ERROR)
        raise _alone(error) from None
    if not record.provisioned:
        count(SUCCESS)
    return made


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Enrolment:
    """What became of many gateways.

    Attributes
    ----------
    records : tuple of GatewayRecord
        Those that are provisioned, in the order they were given.
    errors : dict of name to Exception
        Why the others are not.
    seconds : dict of name to float
        How long each took, from its key to its answer; none for those provisioned before.
    """

    records: tuple[GatewayRecord, ...]
    errors: dict[str, Exception] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        failed = f", {len(self.errors):,} failed" if self.errors else ""
        return f"<Enrolment: {len(self.records):,} gateways provisioned{failed}>"

    def _repr_html_(self) -> str:
        facts = [("gateways", f"{len(self.records):,} gateways provisioned")]
        if self.errors:
            facts.append(("errors", f"{len(self.errors):,} failed"))
        rows = ((name, str(error)) for name, error in self.errors.items())
        table = table_html(("gateway", "why not"), rows, len(self.errors), "gateways")
        return facts_html("Enrolment", facts, table)

    def table(self) -> pd.DataFrame:
        """Return a row for each gateway: name, ids, status, error, seconds.

        `status` is "provisioned", "provisioned before" or "failed".
        """
        import pandas as pd

        rows: list[tuple[Any, ...]] = [
            (record.name, record.gateway_id, record.tenant_id,
             "provisioned" if record.name in self.seconds else "provisioned before",
             "", self.seconds.get(record.name, math.nan))
            for record in self.records
        ]
        rows += [(name, "", "", "failed", str(error), self.seconds.get(name, math.nan))
                 for name, error in self.errors.items()]
        return pd.DataFrame(
            rows, columns=["name", "gateway_id", "tenant_id", "status", "error", "seconds"]
        )


async def onboard_all(
    records: Iterable[GatewayRecord],
    *,
    url: str,
    ca: str | Path | None = None,
    keeper: Keeper | None = None,
    keys: KeyMaker | None = None,
    concurrency: int = CONCURRENCY,
    timeout_s: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
    session: aiohttp.ClientSession | None = None,
    progress: Progress = None,
) -> Enrolment:
    """Have the platform provision many gateways, some at a time; one that fails stops nobody.

    Parameters
    ----------
    records : iterable of GatewayRecord
        Those that are provisioned already pass through untouched.
    url, ca, keeper, keys, timeout_s, attempts, session
        As for `onboard`.
    concurrency : int
        How many at a time, from 1 to 200.
    progress : callable (done, total) or bool, optional
        True shows a bar, False none; if not given, a bar when it takes longer than a second.

    Raises
    ------
    BadValue
        If two records share a factory id or a name; nobody is asked then.
    """
    _needs_libraries()
    todo = list(records)
    _check_distinct(todo)
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not (
        1 <= concurrency <= CONCURRENCY_MAX
    ):
        raise BadValue("concurrency", concurrency, "cannot be used",
                       f"Give a whole number from 1 to {CONCURRENCY_MAX}.")
    service = Service.at(url, ca, timeout_s)
    async with AsyncExitStack() as open_now:
        if keys is None:
            keys = await open_now.enter_async_context(KeyMaker())
        desk = await open_now.enter_async_context(Desk(service, keeper, attempts, session))
        tell = open_now.enter_context(_Told(progress, len(todo)))
        return await _Bulk(desk, keys, todo, tell).run(concurrency)


class _Bulk:
    def __init__(
        self, desk: Desk, keys: KeyMaker, todo: list[GatewayRecord], told: _Told
    ) -> None:
        self._desk, self._keys, self._todo, self._told = desk, keys, todo, told
        self._next = iter(todo)
        self._found: dict[str, GatewayRecord] = {}
        self._errors: dict[str, Exception] = {}
        self._seconds: dict[str, float] = {}

    async def run(self, concurrency: int) -> Enrolment:
        workers = [asyncio.create_task(self._work())
                   for _ in range(min(concurrency, len(self._todo)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            if workers:
                await asyncio.wait(workers)
        names = [record.name for record in self._todo]
        return Enrolment(
            tuple(self._found[name] for name in names if name in self._found),
            {name: self._errors[name] for name in names if name in self._errors},
            self._seconds,
        )

    async def _work(self) -> None:
        for record in self._next:
            if record.provisioned:
                self._found[record.name] = record
            else:
                await self._one(record)
            self._told.one_more()

    async def _one(self, record: GatewayRecord) -> None:
        begun_s = monotonic()
        try:
            self._found[record.name] = await self._desk.onboard(record, self._keys)
            count(SUCCESS)
            made = self._found[record.name]
            say(logging.INFO, "gateway_provisioned", f"gateway {made.name} provisioned",
                {"gateway": made.name, "gateway_id": made.gateway_id,
                 "tenant_id": made.tenant_id})
        except Exception as error:  # a mistake of ours, too, is that gateway's alone
            self._errors[record.name] = _alone(error)
            count(ERROR)
            # Texts of our own errors hold no secret; of others only the kind is told.
            why = str(error) if isinstance(error, IotsimError) else type(error).__name__
            say(logging.WARNING, "gateway_not_provisioned",
                f"gateway {record.name} not provisioned: {why}",
                {"gateway": record.name, "error": why})
        self._seconds[record.name] = monotonic() - begun_s


class _Told:
    """Says how far it is: to a function, or in a bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._done, self._total = 0, total
        self._call = progress if callable(progress) else None
        self._bar = None if callable(progress) or progress is False else bar(
            "gateways", total, progress)

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def one_more(self) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.update(1)
        if self._call is not None:
            self._call(self._done, self._total)


def _alone(error: Exception) -> Exception:
    # Without the frames that it came through, and what it came from: they hold the request.
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def _check_distinct(records: list[GatewayRecord]) -> None:
    for record in records:
        if not isinstance(record, GatewayRecord):
            raise BadValue("records", type(record), "is no GatewayRecord", "Give GatewayRecords.")
    for what, values in (("name", [record.name for record in records]),
                         ("factory id", [record.factory_id for record in records])):
        twice = sorted(value for value, count in Counter(values).items() if count > 1)
        if twice:
            first = ", ".join(shown(value) for value in twice[:5])
            more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
            raise BadValue("records", f"{len(records):,} gateways", f"use one {what} more than "
                           f"once: {first}{more}", "Give each gateway its own; none was asked for.")


def _needs_libraries() -> None:
    needs_cryptography()
    try:
        import aiohttp  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtra("provisioning gateways", "aiohttp", "notip") from None
