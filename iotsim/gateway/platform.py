"""A NoTIP platform: where gateways are provisioned, where they send, where they are remembered."""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

from iotsim import live_runs
from iotsim.errors import BadValue, NameInUse, NoLoop, StoreError, UnknownName
from iotsim.facts import facts_html
from iotsim.gateway.crew import Crew
from iotsim.gateway.crowd import fleet_of_gateways
from iotsim.gateway.decommission import Decommissions
from iotsim.gateway.link import platform_tls
from iotsim.gateway.platform_options import (
    checked_environment,
    checked_file,
    checked_path,
    checked_url,
)
from iotsim.gateway.provisioning import Enrolment, onboard_all
from iotsim.gateway.publisher import GatewayPublisher, PlatformOutlet, check_connections
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.roster import Roster, StoreKeeper, Wanted, as_meant, roster_of, wanted_of
from iotsim.gateway.run import GatewayRun
from iotsim.gateway.spec import Gateway
from iotsim.gateway.store import Store
from iotsim.publishers.base import QUEUE_MESSAGES_MAX, Limits, choice, flag, whole
from iotsim.publishers.nats import NatsPublisher
from iotsim.run import Run
from iotsim.run_state import wish_of
from iotsim.selectors import Selector
from iotsim.transport.discretion import Hidden, discreet
from iotsim.units import Duration, Instant, instant_us

if TYPE_CHECKING:
    import pandas as pd

BUFFER = 1000
KEEPALIVE_S = 40  # half of it from PING to PING: 20 s, as gateways do
_GUESTS = ("aiohttp", "cryptography.x509", "pandas", "iotsim.gateway.envelope")
Connection = ("own", "shared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Where NoTIP gateways are provisioned and connected, and the store that remembers them.

    Parameters
    ----------
    provisioning_url : str
        With a path it is used as it is; without one, `/api/provision/onboard` is appended.
    nats_url : str
        `tls://host:4222`, or `nats://` without TLS.
    nats_ca : path, optional
        The authority of the server's certificate; the system's if not given.
    nats_cert, nats_key : path, optional
        The simulator's certificate: for all gateways, and for what no gateway may listen to.
    own_certificates : bool, optional
        Whether each gateway connects with its own certificate; if not given, where there is no
        `nats_cert`.
    provisioning_ca : path, optional
        The authority of an https:// provisioning service.
    store : path, optional
        A file of gateways, with their secrets encrypted; made if it is missing. A temporary one,
        gone with the process, if not given.
    store_key : str, optional
        Else `IOTSIM_STORE_KEY`, else the file `<store>.key`.
    connection : {"own", "shared"}
        A connection for each gateway, or one for all: that needs `nats_cert`.
    buffer : int
        How many envelopes a connection queues; beyond, the oldest is dropped and counted.
    recover : bool
        Whether `start()` without a gateway runs those of the store.
    replayable : bool
        For tests alone: nonces come from key and plaintext, so that a run's bytes replay.

    Examples
    --------
    >>> Platform(provisioning_url="http://localhost:3004", nats_url="tls://localhost:4222")
    <Platform http://localhost:3004: tls://localhost:4222, each gateway's own certificate>
    """

    provisioning_url: str
    nats_url: str
    nats_ca: str | Path | None = None
    nats_cert: str | Path | None = None
    nats_key: str | Path | None = field(default=None, repr=False)
    own_certificates: bool | None = None
    provisioning_ca: str | Path | None = None
    store: str | Path | None = None
    store_key: str | None = field(default=None, repr=False)
    connection: str = "own"
    buffer: int = BUFFER
    recover: bool = False
    replayable: bool = False
    concurrency: int = 10

    def __post_init__(self) -> None:
        checked_url("provisioning_url", self.provisioning_url, ("http", "https"))
        checked_url("nats_url", self.nats_url, ("tls", "nats"))
        for name in ("nats_ca", "nats_cert", "nats_key", "provisioning_ca"):
            checked_file(name, getattr(self, name))
        checked_path("store", self.store)
        choice("connection", self.connection, Connection)
        whole("buffer", self.buffer, 1, QUEUE_MESSAGES_MAX)
        whole("concurrency", self.concurrency, 1, 200)
        flag("recover", self.recover)
        flag("replayable", self.replayable)
        if (self.nats_cert is None) != (self.nats_key is None):
            raise BadValue("nats_cert", self.nats_cert, "and nats_key belong together",
                           "Give both, or neither: each gateway then has its own.")
        if self.own_certificates is not None:
            flag("own_certificates", self.own_certificates)
        if self.own_certificates is False and self.secure and self.nats_cert is None:
            raise BadValue("own_certificates", False, "leaves gateways without a certificate",
                           "Give nats_cert= and nats_key=.")
        if self.connection == "shared" and self.secure and self._own_certificates:
            raise BadValue("connection", "shared", "needs one certificate for all gateways",
                           "Give nats_cert= and nats_key=.")
        self._nats()

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None, **options: Any) -> Platform:
        """Return the platform that environment variables describe.

        PROVISIONING_URL, NATS_URL and NATS_CA_CERT_PATH are needed; NATS_TLS_CERT with
        NATS_TLS_KEY, SQLITE_PATH, GATEWAY_BUFFER_SIZE and RECOVERY_MODE may be there. What is
        wrong is said in one error.

        Parameters
        ----------
        environment : mapping, optional
            `os.environ` if not given.
        **options
            Win over the environment.
        """
        found = checked_environment(os.environ if environment is None else environment)
        return cls(**{**found, **options})

    def _facts(self) -> list[tuple[str, str]]:
        own = self._own_certificates
        how = "each gateway's own certificate" if own else "one certificate for all"
        told = [("note", "replayable (for tests alone)")] if self.replayable else []
        return [("nats", self.nats_url), ("trust", how if self.secure else "no TLS"), *told]

    def __repr__(self) -> str:
        facts = ", ".join(text for _, text in self._facts())
        return f"<Platform {self.provisioning_url}: {facts}>"

    def _repr_html_(self) -> str:
        store = [] if self.store is None else [("store", str(self.store))]
        return facts_html(f"Platform {self.provisioning_url}", [*self._facts(), *store])

    @property
    def secure(self) -> bool:
        """Whether connections to NATS are by TLS."""
        return self.nats_url.startswith("tls:")

    @property
    def _own_certificates(self) -> bool:
        return self.nats_cert is None if self.own_certificates is None else self.own_certificates

    def _nats(self) -> NatsPublisher:
        scheme, _, rest = self.nats_url.partition("://")
        options: dict[str, Any] = {"client_name": "iotsim", "keepalive": KEEPALIVE_S}
        if self.secure:
            options["tls"] = platform_tls(*map(_text, (self.nats_ca, self.nats_cert,
                                                       self.nats_key)))
        family = "nats+jetstream+tls" if scheme == "tls" else "nats+jetstream"
        return NatsPublisher.build(f"{family}://{rest}", **options)

    # -- running ----------------------------------------------------------------------------------

    async def start(
        self,
        gateway: Gateway | Sequence[Gateway] | None = None,
        *,
        count: int | None = None,
        duration: Duration | None = None,
        speed: Any = 1,
        start: Instant | None = None,
        capture: Any = "10m",
        to: str | Path | None = None,
        recover: bool | None = None,
        replace: bool = False,
        progress: bool | None = None,
    ) -> GatewayRun:
        """Provision gateways, connect them, and let them send; returns when they do.

        Those that the store has are not provisioned again. Starting equal gateways again returns
        the same run.

        Parameters
        ----------
        gateway : Gateway, or several of one seed
            May be left out to recover.
        count : int, optional
            How many; the gateway's own if not given.
        duration : duration, optional
            Until stopped if not given.
        speed : 1
            Certificates and commands are in wall time: no other is allowed.
        start : instant, optional
            For tests, of a replayable platform: what the readings' clocks show at the beginning;
            now if not given.
        capture, to, replace
            As for `Fleet.start`.
        recover : bool, optional
            Whether all gateways of the store run too, each as it was: with its frequency, its
            sensors, paused if it was paused, stopped if it was stopped. The platform's own
            setting if not given.
        progress : bool, optional
            Whether to show how provisioning goes.

        Raises
        ------
        IotsimError
            If nothing can be provisioned, or nothing connected.
        """
        if speed != 1:
            raise BadValue("speed", speed, "is no pace for gateways: certificates and commands "
                           "are in wall time", "Leave it out, or use gateway.generate().")
        if start is not None and not self.replayable:
            raise BadValue("start", start, "is not now: the platform would have readings of the "
                           "same time again", "Leave it out, or use Platform(replayable=True).")
        start_us = None if start is None else instant_us(start)
        _running_loop()
        wanted = wanted_of(gateway, count, self._recovers(recover), start_us)
        if self.connection == "own":
            check_connections(sum(one.count for one in wanted.gateways))
        live = await _live_of(wanted.label)
        if live is not None and not replace:
            if isinstance(live, GatewayRun) and live.is_of(self, wanted):
                return await live.begun()
            raise NameInUse(live.name)
        store = await asyncio.to_thread(self._open_store)
        try:
            await asyncio.to_thread(_load_guests)
            roster = await asyncio.to_thread(roster_of, store, wanted)
            if (began := self._begun_meanwhile(wanted, live)) is not None:
                store.close()
                return await began.begun()
            self._check_apart(roster, live)
            enrolment, meant = await self._enrolled(roster, store, progress)
            if not meant:
                raise next(iter(enrolment.errors.values()))
            crew = Crew(store, meant)
            crew.notes.update(dict.fromkeys(roster.notes, 1))
            if live is not None:
                await live.stop()
            if (began := self._begun_meanwhile(wanted, live)) is not None:
                store.close()
                return await began.begun()
            run = self._run(wanted, roster.seed, crew, enrolment, duration, start, capture, to,
                            replace)
        except BaseException:
            store.close()
            raise
        try:
            return await run.begun()
        except BaseException:
            await asyncio.shield(run.stop())
            raise

    def _begun_meanwhile(self, wanted: Wanted, before: Run | None) -> GatewayRun | None:
        # By another call, such as that of a cell that was run twice.
        began = live_runs.live_of(wanted.label)
        if isinstance(began, GatewayRun) and began is not before and began.is_of(self, wanted):
            return began
        return None

    async def enrolled(self, wanted: Wanted, store: Store) -> tuple[Enrolment, list[GatewayRecord]]:
        """Provision gateways that join a run; return what became of them, and who joins."""
        roster = await asyncio.to_thread(roster_of, store, wanted)
        self._check_apart(roster, None)
        return await self._enrolled(roster, store, None)

    async def _enrolled(
        self, roster: Roster, store: Store, progress: bool | None
    ) -> tuple[Enrolment, list[GatewayRecord]]:
        enrolment = await onboard_all(
            roster.records, url=self.provisioning_url, ca=self.provisioning_ca,
            keeper=StoreKeeper(self._open_store), concurrency=self.concurrency,
            progress=progress)
        meant = as_meant(enrolment.records, roster.records)
        await asyncio.to_thread(store.save, *meant)
        return enrolment, meant

    def _recovers(self, recover: bool | None) -> bool:
        return self.recover if recover is None else flag("recover", recover)

    def _check_apart(self, roster: Roster, replaced: Run | None) -> None:
        # One gateway cannot be in two runs: they would send as one, and take each other's commands.
        runs = self._live_names(replaced)
        for record in roster.records:
            if record.name in runs:
                raise BadValue("gateway", record.name, f"is in the live run "
                               f"{runs[record.name]!r}", "Stop that run first, or delete it there.")

    def _live_names(self, but: Run | None = None) -> dict[str, str]:
        path = os.path.realpath(self._store_path())
        return {name: run.name for run in live_runs.runs()
                if isinstance(run, GatewayRun) and run is not but and run.crew.store.path == path
                for name in run.crew.records if name not in run.crew.gone}

    def _run(
        self, wanted: Wanted, seed: int, crew: Crew, enrolment: Enrolment,
        duration: Duration | None, start: Instant | None, capture: Any, to: str | Path | None,
        replaced: bool,
    ) -> GatewayRun:
        fleet = fleet_of_gateways(wanted.label, seed, list(crew.records.values()))
        made = GatewayPublisher(
            self._nats(), crew.records, crew.post_of, Limits(self.buffer, "drop_oldest"),
            own_certificates=self._own_certificates, shared=self.connection == "shared",
            replayable=self.replayable, rests=crew.rests)
        outlet = PlatformOutlet(self.nats_url, None, Selector(), Hidden({}), self, made)
        wish = wish_of(fleet._with(outlets=(outlet,)), duration, 1, start, capture, to)
        return live_runs.begin(
            wish, replaced, lambda asked, over: GatewayRun(
                asked, over, platform=self, wanted=wanted, crew=crew, enrolment=enrolment,
                publisher=made))

    # -- the store --------------------------------------------------------------------------------

    def gateways(self) -> pd.DataFrame:
        """Return a row for each gateway of the store, whether it runs or not; no secrets.

        Columns: gateway, gateway_id, tenant_id, factory_id, model, firmware, send_frequency_ms,
        status (what the platform asked for), intent (running or stopped), sensors, provisioned,
        created_at, run (its live run here), trouble (why it cannot be read).
        """
        from iotsim.gateway.tables import store_table

        path = self._store_path()
        if not os.path.exists(path):
            return store_table([], {}, {})
        damaged: list[StoreError] = []
        with self._open_store() as store:
            records = store.records(unreadable=damaged)
            there = {record.name for record in records}
            lost = [name for name in store.names() if name not in there]
        why = dict(zip(lost, map(str, damaged), strict=False))
        return store_table(records, why, self._live_names())

    def forget(self, gateway: str) -> None:
        """Remove a gateway that does not run from the store, with its keys; for good.

        The platform is not told. Its factory key has worked: provisioned again it can be only
        after the platform has registered it anew.

        Raises
        ------
        BadValue, UnknownName
            If it is in a live run: `run.delete_gateway()` ends it there; if there is none.
        """
        run = self._live_names().get(gateway)
        if run is not None:
            raise BadValue("gateway", gateway, f"is in the live run {run!r}",
                           "Write run.delete_gateway().")
        with self._open_store() as store:
            if not store.delete(gateway):
                raise UnknownName("gateway", gateway, store.names(), store.path)

    def decommissions(
        self, label: str, crew: Crew, handle: Callable[[str, str], Awaitable[None]]
    ) -> Decommissions | None:
        """Return who listens for gateways that the platform decommissions; None if nobody may."""
        if self.secure and self.nats_cert is None:
            crew.remark("what the platform decommissions is not heard: no gateway may listen to "
                        "it; nats_cert= and nats_key= of the simulator may")
            return None

        def tenant_of(gateway_id: str) -> str | None:
            record = crew.by_gateway_id(gateway_id) or crew.store.by_gateway_id(gateway_id)
            return None if record is None else record.tenant_id

        # Each run has its own: two of one store both have to hear of everything.
        whose = hashlib.sha256(f"{gethostname()} {crew.store.path} {label}".encode()).hexdigest()
        return Decommissions(self._nats(), whose[:16], tenant_of, handle, crew.remark)

    def _open_store(self) -> Store:  # no argument is the key: asyncio's frames show theirs
        return Store.open(self._store_path(), key=self.store_key)

    def _store_path(self) -> str:
        if self.store is not None:
            return str(self.store)
        where = f"{self.provisioning_url} {self.nats_url}".encode()
        return str(_passing() / f"{hashlib.sha256(where).hexdigest()[:16]}.db")


# The frame of the one that dataclass wrote has the store's key.
Platform.__init__ = discreet(Platform.__init__)  # type: ignore[method-assign]

_PASSING: list[str] = []


def _passing() -> Path:
    # Stores that nobody asked to keep: they go with the process.
    if not _PASSING:
        _PASSING.append(tempfile.mkdtemp(prefix="iotsim-gateways-"))
        atexit.register(_pass_away, _PASSING[0], os.getpid())
    return Path(_PASSING[0])


def _pass_away(folder: str, process: int) -> None:
    if os.getpid() == process:  # it is not a forked child's
        shutil.rmtree(folder, ignore_errors=True)


async def _live_of(name: str) -> Run | None:
    live = live_runs.live_of(name)
    if live is None or live.state != "stopping" or not live.is_on(asyncio.get_running_loop()):
        return live
    await live.wait()  # who starts again what is about to end wants one that goes on
    return live_runs.live_of(name)


def _running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise NoLoop("start()", "asyncio.run(main())") from None


def _load_guests() -> None:
    # Loaded on a thread: on the loop the first of each would keep everybody else for a second.
    for name in _GUESTS:
        with suppress(ModuleNotFoundError):  # who needs it says what is missing
            import_module(name)


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
