"""One gateway after the other at the provisioning service; no answer is lost once it was asked."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

from iotsim.errors import BadValue, IotsimError, shown, told
from iotsim.gateway.keys import KeyMaker
from iotsim.gateway.provisioning_errors import NotKept, ProvisioningError, ServiceUnavailable
from iotsim.gateway.provisioning_exchange import Granted, Request, Service, ask, check_record
from iotsim.gateway.record import GatewayRecord
from iotsim.publishers.backoff import Backoff, pause

if TYPE_CHECKING:
    import aiohttp

ATTEMPTS, ATTEMPTS_MAX = 6, 20  # of what is safe to ask again: over three seconds
SETTLE_S = 3.0  # how long a cancelled caller waits for an answer that is nearly there
CLOSE_S = 1.0


class Keeper(Protocol):
    """A store of gateways; called on threads, each call on the disk when it returns."""

    def save(self, record: GatewayRecord, /) -> None:
        """Keep a record, instead of an earlier one of its name."""
        ...

    def get(self, name: str, /) -> GatewayRecord | None:
        """Return the record of this name, or None."""
        ...


@dataclass(slots=True, eq=False)
class Job:
    """The onboarding of one gateway; `sent` while the service is asked."""

    name: str
    task: asyncio.Task[GatewayRecord]
    sent: bool = False


# By what is asked and for which factory id: who calls again waits for the same answer.
_under_way: dict[tuple[str, str], Job] = {}
_closing: set[asyncio.Task[None]] = set()


class Desk:
    """Where gateways are onboarded: a service, a store, and a session that outlives exchanges.

    Parameters
    ----------
    service : Service
    keeper : Keeper, optional
    attempts : int
    session : aiohttp.ClientSession, optional
        Somebody else's; not closed.
    """

    def __init__(
        self, service: Service, keeper: Keeper | None, attempts: int,
        session: aiohttp.ClientSession | None,
    ) -> None:  # fmt: skip
        if isinstance(attempts, bool) or not isinstance(attempts, int) or not (
            1 <= attempts <= ATTEMPTS_MAX
        ):
            raise BadValue("attempts", attempts, "cannot be used",
                           f"Give a whole number from 1 to {ATTEMPTS_MAX}.")
        if session is not None and session.closed:
            raise BadValue("session", "…", "is closed", "Give one that is open, or none.")
        self._service, self._keeper, self._attempts = service, keeper, attempts
        self._given = session
        self._session: aiohttp.ClientSession | None = session
        self._jobs: set[asyncio.Task[GatewayRecord]] = set()

    async def __aenter__(self) -> Self:
        if self._session is None:
            import aiohttp

            # A connection of its own for each: one that waited may be lost at the first byte, and
            # then nobody knows whether the request arrived.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._given is not None or self._session is None:
            return
        closing = asyncio.create_task(self._close(self._session))
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)
        if not self._jobs:
            await asyncio.shield(closing)

    async def _close(self, session: aiohttp.ClientSession) -> None:
        # Exchanges that a cancelled caller left behind have their own deadlines.
        try:
            if self._jobs:
                await asyncio.wait(self._jobs)
        finally:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await session.close()
            except TimeoutError:
                pass

    async def onboard(self, record: GatewayRecord, keys: KeyMaker | None) -> GatewayRecord:
        """Return the record as the platform made it; one that is provisioned, untouched."""
        if record.provisioned:
            return record
        check_record(record)
        place = (self._service.target, record.factory_id)
        while True:
            job = _under_way.get(place)
            ours = job is None or job.task.get_loop() is not asyncio.get_running_loop()
            if job is None or ours:
                job = self._begun(place, record, keys)
            elif job.name != record.name:
                raise BadValue("factory_id", record.factory_id, "is being provisioned as gateway "
                               f"{shown(job.name)}", "Give each gateway its own.")
            try:
                return await asyncio.shield(job.task)
            except asyncio.CancelledError:
                here = asyncio.current_task()
                if not ours and job.task.cancelled() and here is not None and not here.cancelling():
                    continue  # who began it gave up
                if ours and not job.sent:
                    job.task.cancel()
                await asyncio.wait((job.task,), timeout=SETTLE_S)
                raise

    def _begun(
        self, place: tuple[str, str], record: GatewayRecord, keys: KeyMaker | None
    ) -> Job:
        def over(task: asyncio.Task[GatewayRecord]) -> None:
            self._jobs.discard(task)
            if _under_way.get(place) is job:
                del _under_way[place]
            if not task.cancelled():
                task.exception()  # seen, also when nobody waits any more

        begin = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(begin, record, keys))
        job = _under_way[place] = Job(record.name, task)
        self._jobs.add(task)
        task.add_done_callback(over)
        begin.set_result(job)
        return job

    async def _run(
        self, begin: asyncio.Future[Job], record: GatewayRecord, keys: KeyMaker | None
    ) -> GatewayRecord:
        job = await begin
        known = await self._known(record)
        if known is not None and known.provisioned:
            return known
        if known is not None and not record.private_key_pem:
            record = replace(record, private_key_pem=known.private_key_pem)
        asked = bool(record.private_key_pem)
        if not asked:
            record = replace(record, private_key_pem=await _key(keys))
        await self._save(record)
        request = await asyncio.to_thread(Request.of, record)
        found = await self._exchange(job, request, asked)
        try:
            latest = await self._known(record) or record  # what people changed meanwhile stays
            made = _provisioned(latest, record.private_key_pem, found)
            await self._save(made)
        except Exception as error:  # whatever a store may raise: the answer must not go with it
            why = str(error) if isinstance(error, IotsimError) else told(error)
            made = _provisioned(record, record.private_key_pem, found)
            raise NotKept(made, self._service.url, why) from None
        return made

    async def _exchange(self, job: Job, request: Request, asked: bool) -> Granted:
        assert self._session is not None
        backoff = Backoff(request.factory_id)
        for failures in range(1, self._attempts + 1):
            job.sent = True
            try:
                return await ask(self._service, self._session, request, asked=asked)
            except ProvisioningError as error:
                if not error.again or failures == self._attempts:
                    raise
                asked = asked or isinstance(error, ServiceUnavailable)
            job.sent = False  # nothing is on its way
            await pause(backoff.delay_s(failures))
        raise AssertionError("the last attempt returns or raises")

    async def _known(self, record: GatewayRecord) -> GatewayRecord | None:
        """Return what the store has of this gateway; raises if the name is another one's."""
        if self._keeper is None:
            return None
        known = await asyncio.to_thread(self._keeper.get, record.name)
        if known is None or known.factory_id == record.factory_id:
            return known
        if known.provisioned:
            raise BadValue("name", record.name, "is in the store, provisioned, with factory id "
                           f"{shown(known.factory_id)}", "Give another name: that gateway's keys "
                           "would be lost.")
        return None

    async def _save(self, record: GatewayRecord) -> None:
        if self._keeper is not None:
            await asyncio.to_thread(self._keeper.save, record)


def _provisioned(record: GatewayRecord, private_key_pem: str, found: Granted) -> GatewayRecord:
    return replace(
        record, private_key_pem=private_key_pem, gateway_id=found.gateway_id,
        tenant_id=found.tenant_id, cert_pem=found.cert_pem, aes_key=found.aes_key, status="online",
    )


async def _key(keys: KeyMaker | None) -> str:
    async with AsyncExitStack() as open_now:
        if keys is None:
            keys = await open_now.enter_async_context(KeyMaker(1))
        return await keys.make()


def waiting() -> tuple[asyncio.Task[Any], ...]:
    """Return the exchanges and closings that go on, with or without somebody who waits."""
    return (*(job.task for job in _under_way.values()), *_closing)
