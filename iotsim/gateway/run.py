"""A live run of gateways: a run like any other, and what can be done to one gateway of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from iotsim import verbs
from iotsim.actions import Action
from iotsim.clock import Speed, check_speed
from iotsim.errors import BadValue, IotsimError, told
from iotsim.faults.parameters import share
from iotsim.gateway.chronicle import Chronicle
from iotsim.gateway.connections import Connections
from iotsim.gateway.crew import Crew
from iotsim.gateway.hands import of_gateway
from iotsim.gateway.roster import Wanted, wanted_of
from iotsim.gateway.spec import check_every
from iotsim.gateway.upkeep import Upkeep
from iotsim.members import Members
from iotsim.registry import door
from iotsim.run import Run
from iotsim.run_state import Wish
from iotsim.selectors import Where
from iotsim.units import Duration

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.gateway.decommission import Decommissions
    from iotsim.gateway.platform import Platform
    from iotsim.gateway.provisioning import Enrolment
    from iotsim.gateway.publisher import GatewayPublisher
    from iotsim.gateway.spec import Gateway

T = TypeVar("T")

DEGRADATION = {"loss": ("packet_loss", "loss"), "latency_ms": ("latency_spike", "latency_ms"),
               "duplicate": ("duplicate", "probability"), "reorder": ("reorder", "probability")}


class GatewayRun(Run):
    """A live run of provisioned gateways; made by `Platform.start`.

    Attributes
    ----------
    enrolment : Enrolment
        Which gateways were provisioned for it, and why others were not.
    """

    begins = "platform.start()"

    def __init__(
        self, wish: Wish, over: Callable[[Run], None], *, platform: Platform, wanted: Wanted,
        crew: Crew, enrolment: Enrolment, publisher: GatewayPublisher,
    ) -> None:
        self._platform, self._crew, self.enrolment = platform, crew, enrolment
        self._wanted = wanted
        self._decommissions: Decommissions | None = None
        crew.run = self
        super().__init__(wish, over)
        self._connections = Connections(self._works, crew, publisher)
        self._upkeep = Upkeep(self, crew, self._connections)
        Chronicle(self)
        self._early += self._upkeep.rest()  # takes effect at the start, before any reading

    def is_of(self, platform: Platform, wanted: Wanted) -> bool:
        """Return whether it is what is asked for, on this platform."""
        return self._platform == platform and self._wanted == wanted

    @property
    def crew(self) -> Crew:
        """The gateways, for who counts what goes on among them."""
        return self._crew

    @property
    def errors(self) -> tuple[IotsimError, ...]:
        """What has gone wrong so far; gateways that were not provisioned first."""
        failed = (error if isinstance(error, IotsimError) else IotsimError(told(error))
                  for error in self.enrolment.errors.values())
        return (*failed, *super().errors)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing."""
        said = self._crew.notes.items()
        own = [text if count == 1 else f"{text} (×{count})" for text, count in said]
        return (*super().notes, *own)

    # -- what there is ----------------------------------------------------------------------------

    def gateways(self) -> pd.DataFrame:
        """Return a row for each gateway, as it is now.

        Columns: gateway (its name here), gateway_id, tenant_id, model, firmware,
        send_frequency_ms, status (what the platform asked for), state (running, stopped,
        decommissioned, deleted, or ended with the run), connected, sensors, queued (envelopes
        without a verdict on its connection), waiting (commands without an answer), trouble (why
        it is not connected, or takes no commands).
        """
        from iotsim.gateway.tables import gateways_table

        return self._ask(lambda: gateways_table(self._crew, self._connections))

    def connection_of(self, gateway: str) -> tuple[bool, int, str]:
        """Return whether a gateway is connected, what waits for a verdict, and what is wrong."""
        there = self._connections
        return there.is_connected(gateway), there.queued(gateway), there.trouble(gateway)

    def panel(self, rate_hz: float | None = None) -> Any:
        """Return the widget that shows this run and its gateways; see `Run.panel`."""
        show = door("panel_gateway")
        return show(self) if rate_hz is None else show(self, rate_hz)

    def commands(self) -> pd.DataFrame:
        """Return a row for each command that a gateway was given: its answer and its latency.

        Columns: command_id, gateway, gateway_id, type, status, message, issued_at, received_at,
        answered_at, latency (seconds), deliveries, repeated.
        """
        return self._ask(self._crew.log.frame)

    # -- anomalies --------------------------------------------------------------------------------

    def degrade(
        self, gateway: str, duration: Duration, *, loss: float | None = None,
        latency_ms: float | None = None, duplicate: float | None = None,
        reorder: float | None = None,
    ) -> list[Action]:
        """Make the link of a gateway bad: each part is a fault of its own, all for the same time.

        Parameters
        ----------
        gateway : str
        duration : duration
        loss : float
            The share of envelopes that are lost; 0.3 if nothing is given at all.
        latency_ms : float
            How much later envelopes leave.
        duplicate, reorder : float
            The share that is sent twice, or late.
        """
        # Latency last: it adds to what waits for its followers, and would else be longer than that.
        given = {"loss": loss, "duplicate": duplicate, "reorder": reorder,
                 "latency_ms": latency_ms}
        parts = {name: value for name, value in given.items() if value is not None}
        where = of_gateway(self._known(gateway))
        wishes = []  # all of them are looked at before one is done
        for name, value in (parts or {"loss": 0.3}).items():
            fault, parameter = DEGRADATION[name]
            checked = value if name == "latency_ms" else share(name, value)
            wishes.append(verbs.inject(fault, where, duration, parameters={parameter: checked}))
        return [self._act("inject", wish) for wish in wishes]

    def disconnect(self, gateway: str, duration: Duration, **parameters: Any) -> Action:
        """Close the connection of a gateway for a while; commands wait at the platform."""
        return self.inject("disconnect", of_gateway(self._known(gateway)), duration,
                           parameters=parameters)

    def outlier(self, gateway: str, sensor: str, value: float | None = None) -> Action:
        """Let the next reading of a sensor that leaves be far outside its range, or a value."""
        self._ask(lambda: self._upkeep.known_sensor(gateway, sensor))
        given: dict[str, Any] = {"times": 1, "waits": True}
        if value is not None:
            given["value"] = value
        return self.inject("outlier", f"id={gateway}:{sensor}", None, parameters=given)

    # -- one gateway, one sensor ------------------------------------------------------------------

    def again(self) -> Run:
        """Raise: gateways are provisioned before they start."""
        raise BadValue("run", self.name, "is one of gateways, which are provisioned first",
                       "Start it again: await platform.start(...).")

    async def attach(
        self, gateway: str, type: str, name: str | None = None, *,
        algorithm: str = "uniform_random", **parameters: Any,
    ) -> Action:
        """Give a gateway one more sensor; see `Gateway.sensor`. Names are never used twice."""
        return await self._here(self._upkeep.attach, gateway, type, name, algorithm, parameters)

    async def detach(self, gateway: str, sensor: str) -> Action:
        """Take a sensor away from a gateway: its readings end now."""
        return await self._here(self._upkeep.detach, gateway, sensor)

    async def stop_gateway(self, gateway: str) -> None:
        """Silence a gateway: what it has sent is waited for, then its connection ends.

        It can be started again, also by a later run that recovers.
        """
        await self._here(self._upkeep.stop, gateway)

    async def start_gateway(self, gateway: str) -> None:
        """Let a stopped gateway go on: with a fresh connection, and as paused as it was."""
        await self._here(self._upkeep.start, gateway)

    async def delete_gateway(self, gateway: str) -> None:
        """End a gateway for good, here: the platform is not told, and still knows it.

        What it has measured has five seconds to leave; what has not is dropped, and counted.
        """
        await self._here(self._upkeep.delete, gateway, "deleted")

    async def enrol(self, gateway: Gateway, count: int | None = None) -> Enrolment:
        """Provision more gateways, and let them begin in this run.

        Parameters
        ----------
        gateway : Gateway
            Of the run's seed; names and factory ids that nobody here has.
        count : int, optional
            The gateway's own if not given.
        """
        return await self._here(self._enrol, "", gateway, count)

    async def _enrol(self, _: str, gateway: Gateway, count: int | None) -> Enrolment:
        wanted = wanted_of(gateway, count, False)
        for one in wanted.gateways:
            if one.seed != self.fleet.seed:
                raise BadValue("seed", one.seed, f"is not the run's, {self.fleet.seed}",
                               f"Make it with seed={self.fleet.seed}.")
            for name in one.names():
                if name in self._crew.records:
                    raise BadValue("gateway", name, "is in this run already",
                                   "Give another name, such as 'more-{n}'.")
        enrolment, meant = await self._platform.enrolled(wanted, self._crew.store)
        self._upkeep.take_in(meant)
        before = self.enrolment
        self.enrolment = replace(
            before, records=(*before.records, *enrolment.records),
            errors={**before.errors, **enrolment.errors},
            seconds={**before.seconds, **enrolment.seconds})
        return enrolment

    # -- how it lives -----------------------------------------------------------------------------

    async def begun(self) -> GatewayRun:
        """Wait until it is connected, and listen for what the platform decommissions; return it.

        Raises
        ------
        ConnectError
            If no gateway can be connected.
        """
        await self.ready()
        if self._decommissions is not None or self.state not in ("running", "paused"):
            return self
        self._decommissions = self._platform.decommissions(
            self.name, self._crew, self._upkeep.decommissioned)
        if self._decommissions is not None:
            self._decommissions.begin()
        return self

    async def _finish(self) -> None:
        # While there still are connections: what was done is answered.
        try:
            if self._decommissions is not None:
                await self._decommissions.close()
            await self._crew.end()
        finally:
            await super()._finish()
            await self._crew.close()

    # -- inside -----------------------------------------------------------------------------------

    def set_speed(self, speed: Speed) -> None:
        """Keep it at 1: certificates and commands are in wall time.

        Raises
        ------
        BadValue
            If it is another.
        """
        if check_speed(speed) != 1:
            raise BadValue("speed", speed, "is no pace for gateways: certificates and commands "
                           "are in wall time", "Leave it at 1, or use gateway.generate().")

    def command(
        self, name: str, where: Where = "all", *, payload: Any = None, timeout: Duration = "10s",
        via: str | None = None, id: str | None = None,
    ) -> Coroutine[Any, Any, pd.DataFrame]:
        """Raise: gateways take their commands from their platform."""
        raise BadValue("command", name, "is not for a run of gateways to give: they take commands "
                       "from their platform alone", "Send it from there; with the lab: await "
                       "lab.console.config('gw-1', send_frequency_ms=…).")

    def set(
        self, where: Where = "all", every: Duration | None = None,
        fields: Mapping[str, Any] | None = None, **more: Any,
    ) -> Action:
        """Change the send frequency, or parameters of `value`; see `Run.set`.

        The platform is not told. A gateway all of whose sensors are meant has the frequency from
        now on; the store keeps what the platform asked for.
        """
        every_us = None if every is None else check_every(every)
        action = super().set(where, every, fields, **more)
        if every_us is not None:
            self._ask(lambda: self._crew.paced(where, every_us // 1000))
        return action

    def _act(
        self, verb: str, parameters: Mapping[str, Any], members: Members | None = None
    ) -> Action:
        action = super()._act(verb, parameters, members)
        if verb in ("clear", "stop"):
            self._enter(self._crew.hands.stir)
        return action

    async def _here(
        self, asked: Callable[..., Coroutine[Any, Any, T]], gateway: str, *more: Any
    ) -> T:
        # What changes gateways is done on the run's loop, after it has begun, one at a time.
        if self.loop.is_closed():
            raise self._ended_before()
        if asyncio.get_running_loop() is not self.loop:
            there = self._here(asked, gateway, *more)
            return await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(there, self.loop))
        await self.ready()
        async with self._crew.turn(gateway):
            if self.state not in ("running", "paused"):
                raise self._ended_before()
            return await asked(gateway, *more)

    def _ended_before(self) -> BadValue:
        return BadValue("run", self.name, f"has ended (it is {self.state})",
                        "Start it again: platform.start().")

    def _known(self, gateway: str) -> str:
        # Written as a selector, it is the same gateway.
        name = gateway.removeprefix("gateway=") if isinstance(gateway, str) else gateway
        return self._ask(lambda: self._crew.record(name)).name
