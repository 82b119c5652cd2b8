"""A small NoTIP platform on loopback: authority, NATS, management, provisioning, console."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

from nats.aio.client import Client

from iotsim.errors import BadValue, ConnectError, IotsimError
from iotsim.facts import facts_html
from iotsim.gateway.platform import Platform
from iotsim.gateway.run import GatewayRun
from iotsim.gateway.spec import Gateway
from iotsim.guard import Guard
from iotsim.lab.authority import Authority
from iotsim.lab.connections import closed, connected, context_of
from iotsim.lab.console import Console
from iotsim.lab.management import Management, Register, Registered, check_tenant
from iotsim.lab.nats_server import NatsServer, find_nats_server
from iotsim.lab.provisioning import ProvisioningService
from iotsim.lab.rights import configuration, gateway_user, streams
from iotsim.registry import door
from iotsim.transport.discretion import discreet
from iotsim.units import duration_us

STREAM_S = 10.0
_STARTED: dict[str, NotipLab] = {}  # by name: whoever starts one again ends the one before


class NotipLab:
    """A small NoTIP platform; everything but nats-server runs on this event loop.

    Parameters
    ----------
    name, gateway_certificates, cert_ttl, request_timeout, retry_backoff, tenant_id
        As of `iotsim.lab.notip`.

    Attributes
    ----------
    management : Management
        How it answers the other services; can be made to fail.

    Examples
    --------
    >>> async def main():
    ...     async with notip() as lab:
    ...         gateway = await lab.register("factory-1", "a key")
    ...         return lab.provisioning_url, lab.nats_url, gateway.gateway_id
    """

    def __init__(
        self,
        *,
        name: str = "notip",
        gateway_certificates: bool = True,
        cert_ttl: Any = "90d",
        request_timeout: Any = "5s",
        retry_backoff: Any = "1s",
        tenant_id: str | None = None,
    ) -> None:
        find_nats_server()
        if not isinstance(name, str) or not name:
            raise BadValue("name", name, "is no text", "Give a str.")
        self.name, self.gateway_certificates = name, bool(gateway_certificates)
        self._times_s = tuple(
            duration_us(value, option) / 1_000_000
            for option, value in (("cert_ttl", cert_ttl), ("request_timeout", request_timeout),
                                  ("retry_backoff", retry_backoff))
        )
        self.register_of_gateways = (
            Register(check_tenant(tenant_id)) if tenant_id is not None else Register())
        self.management = Management(self.register_of_gateways)
        self._dir: Path | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._guard: Guard | None = None
        self._nats: NatsServer | None = None
        self._authority: Authority | None = None
        self._connections: list[Client] = []
        self._console: Console | None = None
        self._provisioning: ProvisioningService | None = None
        self._process = os.getpid()

        self._runs: set[GatewayRun] = set()

    def __repr__(self) -> str:
        return f"<NotipLab {self.name!r}: {', '.join(text for _, text in self._facts())}>"

    def _facts(self) -> list[tuple[str, str]]:
        if self._dir is None:
            return [("state", "not running")]
        return [("nats", self.nats_url),
                ("gateways", f"{len(self.register_of_gateways):,} gateways")]

    def _repr_html_(self) -> str:
        return facts_html(f"NotipLab {self.name}", self._facts())

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    # -- where it is --------------------------------------------------------------------------

    @property
    def dir(self) -> Path:
        """Its folder, which nobody else may look into; it goes with the lab."""
        return self._running()[0]

    @property
    def nats_url(self) -> str:
        """Where NATS is."""
        return f"tls://127.0.0.1:{self._running()[1].port}"

    @property
    def provisioning_url(self) -> str:
        """Where the provisioning service is, without a path."""
        self._running()
        return self.provisioning.url

    @property
    def console(self) -> Console:
        """The platform's people: commands, acks, telemetry. Acks can be read after the end."""
        if self._console is None:
            raise self._at_rest()
        return self._console

    @property
    def provisioning(self) -> ProvisioningService:
        """What gives gateways their certificates; its waiting times can be changed."""
        if self._provisioning is None:
            raise self._at_rest()
        return self._provisioning

    @property
    def tenant_id(self) -> str:
        """Whose gateways are that name nobody."""
        return self.register_of_gateways.tenant_id

    @property
    def ca_path(self) -> Path:
        """The authority's certificate."""
        return self._running()[2].ca_path

    @property
    def simulator_cert(self) -> Path:
        """The certificate that all simulated gateways share on the shipped platform."""
        return self.service("simulator")[0]

    @property
    def simulator_key(self) -> Path:
        """The key of `simulator_cert`."""
        return self.service("simulator")[1]

    @property
    def running(self) -> bool:
        """Whether its nats-server lives."""
        return self._nats is not None and self._nats.running

    @property
    def nats_pid(self) -> int:
        """The process id of nats-server, or 0."""
        return self._nats.pid if self._nats is not None else 0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it lives on."""
        self._running()
        assert self._loop is not None, "it was started on one"
        return self._loop

    def panel(self) -> Any:
        """Return the widget of the platform's people: gateways, commands, acks; always the same."""
        return door("panel_lab")(self)

    def service(self, name: str) -> tuple[Path, Path]:
        """Return the certificate and key of a service, such as "data-api"."""
        pair = self._running()[2].services[name]
        return pair.cert, pair.key

    def nats_log(self) -> str:
        """Return what nats-server has written to its log."""
        return (self.dir / "nats" / "log").read_text("utf-8", "replace")

    # -- begin and end ------------------------------------------------------------------------

    @overload
    async def start(self, gateway: None = None) -> Self: ...

    @overload
    async def start(
        self, gateway: Gateway | Sequence[Gateway] | None = None, **options: Any
    ) -> GatewayRun: ...

    async def start(
        self, gateway: Gateway | Sequence[Gateway] | None = None, **options: Any
    ) -> Self | GatewayRun:
        """Start gateways here, or, without one, the lab itself.

        Gateways are registered with the factory ids and keys that they have, then provisioned,
        connected and run; see `Platform.start`. The lab returns itself; what was started under
        its name before ends first.

        Parameters
        ----------
        gateway : Gateway, or several
        **options
            Of `Platform.start`, such as `count=50`, or `recover=True` without a gateway.

        Raises
        ------
        ConnectError
            If nats-server does not start, or no gateway can be connected.
        """
        if gateway is not None or options:
            return await self._start_gateways(gateway, options)
        before = _STARTED.get(self.name)
        if before is self and self.running:
            return self
        if before is not None:
            await before.stop()
        _STARTED[self.name] = self
        await self._begin()
        return self

    @discreet
    async def _start_gateways(
        self, gateway: Gateway | Sequence[Gateway] | None, options: Mapping[str, Any]
    ) -> GatewayRun:
        self._check_loop()
        given = [gateway] if isinstance(gateway, Gateway) else () if gateway is None else gateway
        if not isinstance(given, (list, tuple)) or not all(isinstance(g, Gateway) for g in given):
            raise BadValue("gateway", gateway, "is not a Gateway",
                           "Give a Gateway, or a list of them.")
        for one in given:
            one.fleet()  # says if it has no sensor, before anything is registered
        count = options.get("count")
        keys = {record.factory_id: record.factory_key for one in given
                for record in (one if count is None else one.many(count)).records()}
        names = {record.name: record.factory_id for one in given
                 for record in (one if count is None else one.many(count)).records()}
        self.register_of_gateways.names.update(names)
        known = self.register_of_gateways.find
        await self.register_many({name: key for name, key in keys.items() if known(name) is None})
        run = await self.platform.start(gateway, **options)
        self._runs.add(run)
        return run

    @property
    def platform(self) -> Platform:
        """Where gateways are started: the lab's addresses, and a store in its folder."""
        return Platform(
            provisioning_url=self.provisioning_url, nats_url=self.nats_url, nats_ca=self.ca_path,
            nats_cert=self.simulator_cert, nats_key=self.simulator_key,
            own_certificates=self.gateway_certificates, store=self.dir / "gateways.db",
        )

    async def stop(self) -> None:
        """End it: the runs on it, connections, services, nats-server, all in its folder."""
        for run in self._runs:
            if not run.ended:
                with suppress(IotsimError, OSError, RuntimeError):
                    await run.stop()
        self._runs.clear()
        if _STARTED.get(self.name) is self:
            del _STARTED[self.name]
        try:
            async with asyncio.timeout(10):
                await self._services_end()
        except (RuntimeError, ValueError, OSError):  # the loop they lived on may have ended
            pass
        finally:
            self._end()

    async def kill_nats(self) -> None:
        """End nats-server without a chance to say goodbye; `restart_nats` revives it."""
        self._running()[1].kill()

    async def restart_nats(self) -> None:
        """End nats-server and start it again, on the same port and with what it has stored."""
        server = self._running()[1]
        await asyncio.to_thread(server.stop)
        await server.start()

    async def _begin(self) -> None:
        if self._dir is not None:
            return
        self._dir = Path(tempfile.mkdtemp(prefix="iotsim-notip-"))
        self._loop = asyncio.get_running_loop()
        try:
            atexit.register(self._end)
            self._guard = Guard(self._dir)
            for folder in ("certs", "nats"):
                (self._dir / folder).mkdir(mode=0o700)
            self._authority = await asyncio.to_thread(Authority, self._dir / "certs")
            self._nats = NatsServer(self._dir / "nats", self._guard, self._configuration)
            await self._nats.start()
            await self._services_begin(self._nats.port)
        except BaseException:
            await asyncio.shield(self.stop())
            raise

    async def _services_begin(self, port: int) -> None:
        management = await self._connect(port, "management-api")
        provisioning = await self._connect(port, "provisioning")
        consumer = await self._connect(port, "data-consumer")
        context = management.jetstream(timeout=STREAM_S)
        for name, body in streams().items():
            await context._api_request(f"$JS.API.STREAM.CREATE.{name}", _json(body), STREAM_S)
        await self.management.listen(management)
        ttl_s, timeout_s, backoff_s = self._times_s
        assert self._authority is not None
        self._provisioning = ProvisioningService(
            self._authority, provisioning, ttl_s=ttl_s, timeout_s=timeout_s, backoff_s=backoff_s
        )
        await self._provisioning.start()
        self._console = Console(self.register_of_gateways, management, consumer, self._reload)
        await self._console.start()

    async def _connect(self, port: int, name: str) -> Client:
        assert self._authority is not None
        context = context_of(self._authority.ca_path, self._authority.services[name])
        connection = await connected(port, name, context, self._back)
        self._connections.append(connection)
        return connection

    def _back(self) -> None:
        if self._console is not None:
            self._console.back()

    async def _services_end(self) -> None:
        for service in (self._console, self._provisioning):
            if service is not None:
                await service.stop()
        connections, self._connections = self._connections, []
        await asyncio.gather(*(closed(connection) for connection in connections))

    def _end(self) -> None:
        # The part that needs no loop, for an interpreter that ends; not for one that was forked.
        if os.getpid() != self._process:
            return
        atexit.unregister(self._end)
        server, self._nats = self._nats, None
        if server is not None:
            server.kill()  # its folder goes: nothing has to be saved
        folder, self._dir = self._dir, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.dismiss()

    def _running(self) -> tuple[Path, NatsServer, Authority]:
        if self._dir is None or self._nats is None or self._authority is None:
            raise self._at_rest()
        return self._dir, self._nats, self._authority

    def _check_loop(self) -> None:
        self._running()
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise BadValue("lab", self.name, "lives on another event loop, which may have ended",
                           "Do all of it in one `asyncio.run(main())`, or in a notebook.")

    def _at_rest(self) -> ConnectError:
        return ConnectError(f"the lab {self.name!r}", "it is not running",
                            "Write `async with iotsim.lab.notip() as lab:`, or "
                            "`lab = await iotsim.lab.notip().start()`.", verb="use")

    # -- gateways -----------------------------------------------------------------------------

    @discreet
    async def register(
        self, factory_id: str, factory_key: str, *, tenant_id: str | None = None, model: str = ""
    ) -> Registered:
        """Register a gateway, as the admin API does: afterwards it can be provisioned, once.

        Parameters
        ----------
        factory_id, factory_key : str
        tenant_id : str, optional
            Whose it is; the lab's `tenant_id` if left out.
        model : str

        Raises
        ------
        BadValue
            If the factory id is registered already.
        """
        pairs = [(factory_id, factory_key)]
        return (await self.register_many(pairs, tenant_id=tenant_id, model=model))[0]

    @discreet
    async def register_many(
        self,
        gateways: Iterable[tuple[str, str]] | Mapping[str, str],
        *,
        tenant_id: str | None = None,
        model: str = "",
    ) -> list[Registered]:
        """Register gateways by (factory id, factory key), all of them or none.

        When it returns, NATS knows them: they may connect as soon as they have a certificate.
        """
        self._check_loop()
        pairs = gateways.items() if isinstance(gateways, Mapping) else gateways
        made = self.register_of_gateways.add(pairs, tenant_id=tenant_id, model=model)
        if made and self.gateway_certificates:
            await self._reload()
        return made

    async def _reload(self) -> None:
        await self._running()[1].reload()

    def _configuration(self, port: int) -> str:
        folder, _, authority = self._running()
        lines = [
            gateway_user(one.gateway_id, one.tenant_id)
            for one in self.register_of_gateways.all() if not one.revoked
        ] if self.gateway_certificates else []
        return configuration(port, folder / "nats", authority.ca_path, authority.server, lines)


def _json(body: Mapping[str, Any]) -> bytes:
    import orjson

    return orjson.dumps(body)
