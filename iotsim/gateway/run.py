"""A live run of gateways: a run like any other, and what can be done to one gateway of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from iotsim import verbs
from iotsim.actions import Action
from iotsim.clock import Speed, check_speed
from iotsim.errors import BadValue, IotsimError, told
from iotsim.faults.base import NEVER_US, Window
from iotsim.faults.parameters import share
from iotsim.feeders import Way
from iotsim.fleet import Fleet
from iotsim.gateway.crew import Crew
from iotsim.gateway.crowd import members_of_gateways
from iotsim.gateway.hands import SILENT, of_gateway
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.sensors import sensor
from iotsim.members import Members
from iotsim.publishers.backoff import pause
from iotsim.publishers.pump import Pump
from iotsim.run import Run
from iotsim.run_state import Wish
from iotsim.units import Duration

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.gateway.decommission import Decommissions
    from iotsim.gateway.platform import Platform
    from iotsim.gateway.provisioning import Enrolment
    from iotsim.gateway.spec import Gateway

T = TypeVar("T")

DRAIN_S, LOOK_S = 5.0, 0.02
DEGRADATION = {"loss": ("packet_loss", "loss"), "latency_ms": ("latency_spike", "latency_ms"),
               "duplicate": ("duplicate", "probability"), "reorder": ("reorder", "probability")}


class GatewayRun(Run):
    """A live run of provisioned gateways; made by `Platform.start`.

    Attributes
    ----------
    enrolment : Enrolment
        Which gateways were provisioned for it, and why others were not.
    """

    def __init__(
        self, wish: Wish, over: Callable[[Run], None], *, platform: Platform, crew: Crew,
        enrolment: Enrolment,
    ) -> None:
        self._platform, self._crew, self.enrolment = platform, crew, enrolment
        self._decommissions: Decommissions | None = None
        crew.run = self
        super().__init__(wish, over)

    def is_of(self, platform: Platform, fleet: Fleet, start_us: int | None) -> bool:
        """Return whether it runs these gateways on this platform, as of that start."""
        return (self._platform == platform and self.fleet.spec() == fleet.spec()
                and self._wish.start_us == start_us)

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
        decommissioned, deleted), connected, sensors, queued, waiting (commands without an
        answer).
        """
        from iotsim.gateway.tables import gateways_table

        return self._ask(lambda: gateways_table(self._crew, self._lanes()))

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
        given = {"loss": loss, "latency_ms": latency_ms, "duplicate": duplicate,
                 "reorder": reorder}
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
        self._known_sensor(gateway, sensor)
        given: dict[str, Any] = {"times": 1, "waits": True}
        if value is not None:
            given["value"] = value
        return self.inject("outlier", f"id={gateway}:{sensor}", None, parameters=given)

    # -- one gateway, one sensor ------------------------------------------------------------------

    async def attach(
        self, gateway: str, type: str, name: str | None = None, *,
        algorithm: str = "uniform_random", **parameters: Any,
    ) -> Action:
        """Give a gateway one more sensor; see `Gateway.sensor`. Names are never used twice."""
        return await self._here(self._attach(gateway, type, name, algorithm, parameters))

    async def _attach(
        self, gateway: str, type: str, name: str | None, algorithm: str,
        parameters: Mapping[str, Any],
    ) -> Action:
        record = self._record(gateway)
        taken = (*(str(spec["name"]) for spec in record.sensors),
                 *(name for name in self._works_ids(gateway)))
        made = sensor(type, name, algorithm, taken=taken, **parameters)
        links = self._crew.hands.links_of(gateway)
        if gateway not in self._crew.dormant:
            changed = replace(record, sensors=(made.spec(),))
            (action,) = self._add_sensors([changed])
        else:
            action = self.log(f"gateway {gateway}: sensor {made.name} attached")
        await self._crew.keep(gateway, sensors=(*record.sensors, made.spec()))
        if gateway not in self._crew.dormant:
            self._share(record, links, f"id={gateway}:{made.name}", action)
        return action

    def _share(
        self, record: GatewayRecord, links: Sequence[Window], where: str, action: Action
    ) -> None:
        # What is so of the gateway is so of a sensor that comes.
        if record.status in SILENT:
            self._act("inject", verbs.inject("suspend", where, None))
        for link in links:
            left_us = link.end_us - self._works.start_us - action.at_us
            left = None if link.end_us >= NEVER_US else f"{left_us}us"
            if left_us > 0:
                self._act("inject", verbs.inject(link.name, where, left,
                                                 parameters=link.fault.parameters()))

    async def detach(self, gateway: str, sensor: str) -> Action:
        """Take a sensor away from a gateway: its readings end now."""
        return await self._here(self._detach(gateway, sensor))

    async def _detach(self, gateway: str, sensor: str) -> Action:
        record = self._known_sensor(gateway, sensor)
        left = tuple(spec for spec in record.sensors if spec["name"] != sensor)
        if gateway in self._crew.dormant:
            action = self.log(f"gateway {gateway}: sensor {sensor} detached")
        else:
            action = self._act("stop", verbs.stop(f"id={gateway}:{sensor}"))
        await self._crew.keep(gateway, sensors=left)
        return action

    async def stop_gateway(self, gateway: str) -> None:
        """Silence a gateway: what it has sent is waited for, then its connection ends.

        It can be started again, also by a later run that recovers.
        """
        await self._here(self._stop_gateway(gateway))

    async def _stop_gateway(self, gateway: str) -> None:
        record = self._record(gateway)
        if record.intent == "stopped":
            return
        await self._crew.keep(gateway, intent="stopped")
        await self._crew.dismiss([gateway])
        if self._crew.has_sensors(gateway) and record.status not in SILENT:
            self._act("inject", verbs.inject("suspend", of_gateway(gateway), None))
        await self._drained(gateway)
        self._park(gateway, parked=True)

    async def start_gateway(self, gateway: str) -> None:
        """Let a stopped gateway go on: with a fresh connection, and as paused as it was."""
        await self._here(self._start_gateway(gateway))

    async def _start_gateway(self, gateway: str) -> None:
        record = self._record(gateway)
        if record.intent == "running":
            return
        await self._crew.keep(gateway, intent="running")
        record = self._crew.records[gateway]
        if gateway in self._crew.dormant:
            self._crew.dormant.discard(gateway)
            self._join([record])
        else:
            self._crew.employ(gateway)
            if self._crew.has_sensors(gateway) and record.status not in SILENT:
                self._act("clear", verbs.clear("suspend", of_gateway(gateway)))
            self._park(gateway, parked=False)

    async def delete_gateway(self, gateway: str) -> None:
        """End a gateway for good, here: the platform is not told, and still knows it."""
        await self._here(self._delete_gateway(gateway, "deleted"))

    async def _delete_gateway(self, gateway: str, why: str) -> None:
        self._record(gateway)
        await self._crew.dismiss([gateway])
        await asyncio.to_thread(self._crew.store.delete, gateway)
        had_sensors = self._crew.has_sensors(gateway)
        self._crew.gone[gateway] = why
        for way, lane in self._lanes().get(gateway, ()):
            if had_sensors:
                way.closing.add(lane)
            else:
                way.pump.retire(lane)
        if had_sensors:
            self._act("stop", verbs.stop(of_gateway(gateway)))
        self.log(f"gateway {gateway}: {why}")

    async def enrol(self, gateway: Gateway, count: int | None = None) -> Enrolment:
        """Provision more gateways, and let them begin in this run.

        Parameters
        ----------
        gateway : Gateway
            Of the run's seed; names and factory ids that nobody here has.
        count : int, optional
            The gateway's own if not given.
        """
        return await self._here(self._enrol(gateway, count))

    async def _enrol(self, gateway: Gateway, count: int | None) -> Enrolment:
        if gateway.seed != self.fleet.seed:
            raise BadValue("seed", gateway.seed, f"is not the run's, {self.fleet.seed}",
                           f"Make it with seed={self.fleet.seed}.")
        wanted = (gateway if count is None else gateway.many(count)).records()
        for record in wanted:
            if record.name in self._crew.records:
                raise BadValue("gateway", record.name, "is in this run already",
                               "Give another name, such as 'more-{n}'.")
        enrolment = await self._platform.enrolled(wanted, self._crew.store)
        self._crew.records.update((record.name, record) for record in enrolment.records)
        self._join(enrolment.records)
        return enrolment

    # -- how it lives -----------------------------------------------------------------------------

    async def begin(self) -> None:
        """Wait until it is connected, and listen for what the platform decommissions.

        Raises
        ------
        ConnectError
            If no gateway can be connected.
        """
        if self.state == "connecting":  # it takes effect at the start, before any reading
            self._silence(self._crew.records.values())
        await self.ready()
        self._decommissions = self._platform.decommissions(
            self._crew, self._decommissioned)
        if self._decommissions is not None:
            self._decommissions.begin()

    async def _decommissioned(self, tenant_id: str, gateway_id: str) -> None:
        record = self._crew.by_gateway_id(gateway_id)
        if record is not None and record.tenant_id == tenant_id:
            await self._delete_gateway(record.name, "decommissioned")

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

    def _act(
        self, verb: str, parameters: Mapping[str, Any], members: Members | None = None
    ) -> Action:
        action = super()._act(verb, parameters, members)
        if verb in ("clear", "stop"):
            self._enter(self._crew.hands.stir)
        return action

    async def _here(self, asked: Coroutine[Any, Any, T]) -> T:
        # What changes gateways is done on the run's loop, after it has begun.
        if self.ended or self.state in ("stopping", "stopped", "failed"):
            asked.close()
            raise BadValue("run", self.name, f"has ended (it is {self.state})",
                           "Start it again: platform.start().")
        if asyncio.get_running_loop() is self._loop:
            await self.ready()
            return await asked
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self._loop))

    def _record(self, gateway: str) -> GatewayRecord:
        return self._crew.record(gateway)

    def _known(self, gateway: str) -> str:
        return self._ask(lambda: self._crew.record(gateway)).name

    def _known_sensor(self, gateway: str, sensor: str) -> GatewayRecord:
        record = self._ask(lambda: self._crew.record(gateway))
        names = [str(spec["name"]) for spec in record.sensors]
        if sensor not in names:
            raise BadValue("sensor", sensor, f"is none of gateway {gateway}",
                           f"It has: {', '.join(names) or 'none'}.")
        return record

    def _works_ids(self, gateway: str) -> list[str]:
        driver = self._works.driver
        if driver is None:
            return []
        return [name.rpartition(":")[2] for name in driver.simulation.population.ids
                if name.startswith(f"{gateway}:")]

    def _join(self, records: Sequence[GatewayRecord]) -> None:
        self._add_sensors(records)
        self._silence(records)

    def _silence(self, records: Iterable[GatewayRecord]) -> None:
        silent = [one.name for one in records
                  if one.status in SILENT and self._crew.has_sensors(one.name)]
        if silent:
            self._act("inject", verbs.inject("suspend", f"gateway={'|'.join(silent)}", None))

    def _add_sensors(self, records: Sequence[GatewayRecord]) -> list[Action]:
        # Names that do not go on from those there are stand for themselves: a replay that counts
        # gives the same ones.
        done = []
        for members in members_of_gateways(records):
            parts = [members]
            if members.first != self._first_index(members.series):
                parts = [replace(members, id_template=name, first=0, count=1)
                         for name in members.group(0).ids]
            done += [self._act("add", verbs.added(part), part) for part in parts]
        return done

    def _lanes(self) -> dict[str, list[tuple[Way, int]]]:
        found: dict[str, list[tuple[Way, int]]] = {}
        for way in self._works.ways:
            for name, lane in way.sessions.items():
                found.setdefault(name, []).append((way, lane))
        return found

    async def _drained(self, gateway: str) -> None:
        # What was measured before it was silenced has left its lane, or there is no more time.
        lanes = self._lanes().get(gateway, [])
        try:
            async with asyncio.timeout(DRAIN_S):
                while any(not _empty(way.pump, way, lane) for way, lane in lanes):
                    await pause(LOOK_S)
        except TimeoutError:
            self._crew.remark(f"gateway {gateway} was stopped before all it had sent was taken: "
                              "the rest leaves when it is started again")

    def _park(self, gateway: str, *, parked: bool) -> None:
        driver, links = self._works.driver, self._works.links
        if driver is not None and links is not None:
            links.park(self._crew.slots_of(gateway).tolist(), driver.frontier_us, parked=parked)


def _empty(pump: Pump, way: Way, lane: int) -> bool:
    return way.feeders[lane].empty and not pump.open_of(lane)
