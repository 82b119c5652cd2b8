"""A NoTIP platform: where gateways are provisioned, where they send, where they are remembered."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from socket import gethostname
from typing import Any

from iotsim import live_runs
from iotsim.clock import stamp_us
from iotsim.errors import BadValue, NoLoop, StoreError
from iotsim.gateway.crew import Crew
from iotsim.gateway.crowd import fleet_of_gateways
from iotsim.gateway.decommission import Decommissions
from iotsim.gateway.link import platform_tls
from iotsim.gateway.platform_options import checked_environment, checked_url
from iotsim.gateway.provisioning import Enrolment, onboard_all
from iotsim.gateway.publisher import GatewayPublisher, PlatformOutlet
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.run import GatewayRun
from iotsim.gateway.spec import Gateway
from iotsim.gateway.store import Store
from iotsim.publishers.base import QUEUE_MESSAGES_MAX, Limits, choice, flag, whole
from iotsim.publishers.nats import NatsPublisher
from iotsim.run_state import wish_of
from iotsim.selectors import Selector
from iotsim.transport.discretion import Hidden, discreet
from iotsim.units import Duration, Instant, instant_text, instant_us

BUFFER = 1000
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

    def __repr__(self) -> str:
        own = self._own_certificates
        how = "each gateway's own certificate" if own else "one certificate for all"
        if not self.secure:
            how = "no TLS"
        told = ", replayable (for tests alone)" if self.replayable else ""
        return f"<Platform {self.provisioning_url}: {self.nats_url}, {how}{told}>"

    @property
    def secure(self) -> bool:
        """Whether connections to NATS are by TLS."""
        return self.nats_url.startswith("tls:")

    @property
    def _own_certificates(self) -> bool:
        return self.nats_cert is None if self.own_certificates is None else self.own_certificates

    def _nats(self) -> NatsPublisher:
        scheme, _, rest = self.nats_url.partition("://")
        options: dict[str, Any] = {"client_name": "iotsim"}
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
        wanted = _wanted(gateway, count)
        again = self.recover if recover is None else flag("recover", recover)
        if not wanted and not again:
            raise BadValue("gateway", gateway, "is nothing to start",
                           "Give a Gateway, or recover=True.")
        store = await asyncio.to_thread(self._open_store)
        try:
            damaged: list[StoreError] = []
            records, seed = await asyncio.to_thread(_merged, store, wanted, again, damaged)
            label = _label(gateway)
            live = live_runs.live_of(label)
            if isinstance(live, GatewayRun) and not replace and live.is_of(
                    self, fleet_of_gateways(label, seed, _awake(records)), start_us):
                await asyncio.to_thread(store.close)
                return live
            enrolment = await self.enrolled(records, store, progress=progress)
            if not enrolment.records and enrolment.errors:
                raise next(iter(enrolment.errors.values()))
            meant = _as_meant(enrolment.records, records)
            await asyncio.to_thread(store.save, *meant)
            crew = Crew(store, meant)
            for error in damaged:
                crew.remark(str(error))
        except BaseException:
            store.close()
            raise
        return await self._begun(label, seed, crew, enrolment, duration, start, capture, to,
                                 replace)

    async def enrolled(
        self, records: Iterable[GatewayRecord], store: Store, *, progress: bool | None = None
    ) -> Enrolment:
        """Provision those of some gateways that are not yet; what comes of it is in the store."""
        return await onboard_all(
            records, url=self.provisioning_url, ca=self.provisioning_ca, keeper=store,
            concurrency=self.concurrency, progress=progress)

    async def _begun(
        self, label: str, seed: int, crew: Crew, enrolment: Enrolment, duration: Duration | None,
        start: Instant | None, capture: Any, to: str | Path | None, replaced: bool,
    ) -> GatewayRun:
        try:
            awake = _awake(crew.records.values())
            crew.dormant = set(crew.records) - {one.name for one in awake}
            fleet = fleet_of_gateways(label, seed, awake)
            made = GatewayPublisher(
                self._nats(), crew.records, crew.post_of, Limits(self.buffer, "drop_oldest"),
                own_certificates=self._own_certificates, shared=self.connection == "shared",
                replayable=self.replayable)
            outlet = PlatformOutlet(self.nats_url, None, Selector(), Hidden({}), self, made)
            wish = wish_of(fleet._with(outlets=(outlet,)), duration, 1, start, capture, to)
            run = live_runs.begin(
                wish, replaced, lambda asked, over: GatewayRun(
                    asked, over, platform=self, crew=crew, enrolment=enrolment))
        except BaseException:
            crew.store.close()
            raise
        await run.begin()
        return run

    def decommissions(
        self, crew: Crew, handle: Callable[[str, str], Awaitable[None]]
    ) -> Decommissions | None:
        """Return who listens for gateways that the platform decommissions; None if nobody may."""
        if self.secure and self.nats_cert is None:
            crew.remark("what the platform decommissions is not heard: no gateway may listen to "
                        "it; nats_cert= and nats_key= of the simulator may")
            return None

        def tenant_of(gateway_id: str) -> str | None:
            record = crew.by_gateway_id(gateway_id)
            return None if record is None else record.tenant_id

        return Decommissions(self._nats(), f"{gethostname()} {crew.store.path}", tenant_of,
                             handle, crew.remark)

    def _open_store(self) -> Store:  # no argument is the key: asyncio's frames show theirs
        return Store.open(self._store_path(), key=self.store_key)

    def _store_path(self) -> str:
        if self.store is not None:
            return str(self.store)
        where = f"{self.provisioning_url} {self.nats_url}".encode()
        return str(_passing() / f"{hashlib.sha256(where).hexdigest()[:16]}.db")


# The frame of the one that dataclass wrote has the store's key.
Platform.__init__ = discreet(Platform.__init__)  # type: ignore[method-assign]

_PASSING: list[tempfile.TemporaryDirectory[str]] = []


def _passing() -> Path:
    # Stores that nobody asked to keep: they go with the process.
    if not _PASSING:
        _PASSING.append(tempfile.TemporaryDirectory(prefix="iotsim-gateways-"))
    return Path(_PASSING[0].name)


def _running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise NoLoop("start()", "asyncio.run(main())") from None


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


def _wanted(gateway: Any, count: int | None) -> list[Gateway]:
    given = [] if gateway is None else [gateway] if isinstance(gateway, Gateway) else gateway
    if not isinstance(given, (list, tuple)) or not all(isinstance(g, Gateway) for g in given):
        raise BadValue("gateway", gateway, "is not a Gateway", "Give a Gateway, or a list of them.")
    for one in given:
        if not one.sensors:
            one.fleet()  # says what is missing
    return [one if count is None else one.many(count) for one in given]


def _label(gateway: Any) -> str:
    first = gateway[0] if isinstance(gateway, (list, tuple)) and gateway else gateway
    return first.label if isinstance(first, Gateway) else "gateways"


def _merged(
    store: Store, wanted: Sequence[Gateway], recover: bool, damaged: list[StoreError]
) -> tuple[list[GatewayRecord], int]:
    # What people ask for now, over what the store knows; recovered ones are as they were.
    known = {record.name: record for record in store.records(unreadable=damaged)}
    asked = [record for one in wanted for record in one.records()]
    records = []
    for record in asked:
        there = known.pop(record.name, None)
        records.append(record if there is None else _over(there, record, recover))
    if recover:
        records += [record for record in known.values() if record.provisioned]
    if len({record.name for record in records}) < len(records):
        raise BadValue("gateway", [one.name for one in wanted], "give two gateways one name",
                       "Give each a name of its own.")
    seeds = {record.seed for record in records}
    if len(seeds) > 1:
        few = ", ".join(map(str, sorted(seeds)[:3]))
        raise BadValue("seed", few, "are several: the readings of one run come from one",
                       "Start them apart, or make them with the same seed=.")
    if not records:
        raise BadValue("store", store.path, "has no gateway to recover", "Give a Gateway.")
    now = instant_text(stamp_us())
    return [one if one.created_at else replace(one, created_at=now) for one in records], seeds.pop()


def _awake(records: Iterable[GatewayRecord]) -> list[GatewayRecord]:
    return [record for record in records if record.intent == "running"]


def _over(there: GatewayRecord, asked: GatewayRecord, recover: bool) -> GatewayRecord:
    if not there.provisioned:
        return replace(asked, private_key_pem=there.private_key_pem, created_at=there.created_at)
    if recover:
        return there
    return replace(there, sensors=asked.sensors, seed=asked.seed, model=asked.model,
                   firmware=asked.firmware, send_frequency_ms=asked.send_frequency_ms,
                   status="online", intent="running")


def _as_meant(
    enrolled: Iterable[GatewayRecord], asked: Iterable[GatewayRecord]
) -> list[GatewayRecord]:
    order = {record.name: i for i, record in enumerate(asked)}
    return sorted((replace(one, status="online") if one.status == "provisioning" else one
                   for one in enrolled), key=lambda one: order[one.name])
