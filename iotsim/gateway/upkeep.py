"""What is done to one gateway of a live run: sensors, stopping and starting, its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from iotsim import verbs
from iotsim.actions import Action
from iotsim.errors import BadValue
from iotsim.faults.base import NEVER_US, Window
from iotsim.gateway.connections import Connections
from iotsim.gateway.crew import Crew
from iotsim.gateway.crowd import members_of_gateways
from iotsim.gateway.hands import SILENT, of_gateway
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.sensors import sensor

if TYPE_CHECKING:
    from iotsim.run import Run


class Upkeep:
    """Changes gateways of a run, on its loop, one thing at a time for each gateway.

    What a change is goes into the store first; then it is done, as actions of the run.

    Parameters
    ----------
    run : Run
    crew : Crew
    connections : Connections
    """

    def __init__(self, run: Run, crew: Crew, connections: Connections) -> None:
        self._run, self._crew, self._connections = run, crew, connections

    # -- sensors ----------------------------------------------------------------------------------

    async def attach(
        self, gateway: str, type: str, name: str | None, algorithm: str,
        parameters: Mapping[str, Any],
    ) -> Action:
        """Give a gateway one more sensor: what is so of the gateway is so of it."""
        record = self._crew.record(gateway)
        taken = (*(str(spec["name"]) for spec in record.sensors), *self._used_names(gateway))
        made = sensor(type, name, algorithm, taken=taken, **parameters)
        await self._crew.keep(gateway, sensors=(*record.sensors, made.spec()))
        record = self._crew.record(gateway)  # as it is now
        links = self._crew.hands.links_of(gateway)
        (action,) = self._add_sensors([replace(record, sensors=(made.spec(),))])
        self._share(record, links, f"id={gateway}:{made.name}", action)
        return action

    def _share(
        self, record: GatewayRecord, links: Sequence[Window], where: str, action: Action
    ) -> None:
        if record.status in SILENT:
            self._silence(where, verbs.PLATFORM)
        if record.intent == "stopped":
            self._silence(where, verbs.STOPPED)
            self._connections.part(record.name)
        for link in links:
            left_us = link.end_us - self._run.works.start_us - action.at_us
            left = None if link.end_us >= NEVER_US else f"{left_us}us"
            if left_us > 0:
                self._run._act("inject", verbs.inject(link.name, where, left,
                                                      parameters=link.fault.parameters()))

    async def detach(self, gateway: str, sensor: str) -> Action:
        """Take a sensor away from a gateway."""
        record = self.known_sensor(gateway, sensor)
        left = tuple(spec for spec in record.sensors if spec["name"] != sensor)
        await self._crew.keep(gateway, sensors=left)
        return self._run._act("stop", verbs.stop(f"id={gateway}:{sensor}"))

    def known_sensor(self, gateway: str, sensor: str) -> GatewayRecord:
        """Return the gateway of a sensor, or raise."""
        record = self._crew.record(gateway)
        names = [str(spec["name"]) for spec in record.sensors]
        if sensor not in names:
            raise BadValue("sensor", sensor, f"is none of gateway {gateway}",
                           f"It has: {', '.join(names) or 'none'}.")
        return record

    def _used_names(self, gateway: str) -> list[str]:
        driver = self._run.works.driver
        assert driver is not None, "the run is ready"
        return [name.rpartition(":")[2] for name in driver.simulation.population.ids
                if name.startswith(f"{gateway}:")]

    # -- stop, start, end -------------------------------------------------------------------------

    async def stop(self, gateway: str) -> None:
        """Silence a gateway, wait for what it has sent, and end its connection."""
        if self._crew.record(gateway).intent == "stopped":
            return
        await self._crew.keep(gateway, intent="stopped")
        await self._crew.dismiss([gateway])
        since_us = 0
        if self._crew.has_sensors(gateway):
            since_us = self._silence(of_gateway(gateway), verbs.STOPPED).at_us
        if not await self._connections.drained(gateway, since_us):
            self._crew.remark(f"gateway {gateway} was stopped before all that it had measured was "
                              "taken: the rest leaves when it is started again")
        self._connections.part(gateway)

    async def start(self, gateway: str) -> None:
        """Let a stopped gateway go on, with a fresh connection, and as paused as it was."""
        if self._crew.record(gateway).intent == "running":
            return
        await self._crew.keep(gateway, intent="running")
        self._crew.employ(gateway)
        if self._crew.has_sensors(gateway):
            self._run._act("clear", verbs.clear("suspend", of_gateway(gateway),
                                                by=verbs.STOPPED))
        self._connections.meet(gateway)

    async def delete(self, gateway: str, why: str) -> None:
        """End a gateway for good: its row goes, then its connection, when all has left."""
        self._crew.record(gateway)
        await self._crew.dismiss([gateway])
        await asyncio.to_thread(self._crew.store.delete, gateway)
        had_sensors = self._crew.has_sensors(gateway)
        self._connections.end(gateway)
        self._crew.gone[gateway] = why
        if had_sensors:
            self._run._act("stop", verbs.stop(of_gateway(gateway)))
        self._run.log(f"gateway {gateway}: {why}")

    async def decommissioned(self, tenant_id: str, gateway_id: str) -> None:
        """Remove a gateway that the platform has no more; one that does not run, too."""
        record = self._crew.by_gateway_id(gateway_id)
        if record is None:
            store = self._crew.store
            known = await asyncio.to_thread(store.by_gateway_id, gateway_id)
            if known is not None and known.tenant_id == tenant_id:
                await asyncio.to_thread(store.delete, known.name)
        elif record.tenant_id == tenant_id:
            async with self._crew.turn(record.name):
                if record.name not in self._crew.gone:
                    await self.delete(record.name, "decommissioned")

    # -- who joins --------------------------------------------------------------------------------

    def take_in(self, records: Sequence[GatewayRecord]) -> None:
        """Let provisioned gateways begin in the run."""
        self._crew.records.update((record.name, record) for record in records)
        self._add_sensors(records)
        for record in records:
            self._connections.meet(record.name)

    def rest(self) -> list[partial[None]]:
        """Silence who is not to measure; return what is to be done as soon as the run is open."""
        records = self._crew.records.values()
        silent = [one.name for one in records if one.status in SILENT and one.sensors]
        stopped = [one.name for one in records if one.intent == "stopped" and one.sensors]
        for names, by in ((silent, verbs.PLATFORM), (stopped, verbs.STOPPED)):
            if names:
                self._silence(of_gateway("|".join(names)), by)
        return [partial(self._connections.part, one.name) for one in records
                if one.intent == "stopped"]

    def _silence(self, where: str, by: str) -> Action:
        reason = "the gateway is stopped" if by == verbs.STOPPED else None
        return self._run._act("inject", verbs.inject("suspend", where, None, reason, by=by))

    def _add_sensors(self, records: Iterable[GatewayRecord]) -> list[Action]:
        # Names that do not go on from those there are stand for themselves: a replay that counts
        # gives the same ones.
        done = []
        for members in members_of_gateways(list(records)):
            parts = [members]
            if members.first != self._run._first_index(members.series):
                parts = [replace(members, id_template=name, first=0, count=1)
                         for name in members.group(0).ids]
            done += [self._run._act("add", verbs.added(part), part) for part in parts]
        return done
