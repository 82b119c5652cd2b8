"""What a command, or a person, does to one gateway of a run: as actions like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from iotsim import verbs
from iotsim.errors import BadValue, IotsimError
from iotsim.faults.base import Window
from iotsim.readings import Ints

if TYPE_CHECKING:
    from iotsim.driver import Driver
    from iotsim.gateway.crew import Crew
    from iotsim.run import Run

SOON_S, LOOK_S = 0.01, 1.0  # a run that is late, or stands still
SILENT = ("paused", "offline")
LIVE = ("connecting", "running", "paused")


def of_gateway(name: str) -> str:
    """Return the selector of a gateway's sensors."""
    return f"gateway={name}"


class RunHands:
    """Does to a run what the platform asks of its gateways (a `Hands`).

    Parameters
    ----------
    crew : Crew
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._stirred = asyncio.Event()
        self._links: list[Window] = []  # faults of links that are not over
        self._windows_seen = self._deeds_seen = 0
        self._until_us: Ints = np.empty(0, dtype=np.int64)  # by slot: when the last is over

    @property
    def _run(self) -> Run:
        run = self._crew.run
        assert run is not None, "commands come over connections that a run has made"
        return run

    def _act(self, verb: str, parameters: Mapping[str, Any]) -> None:
        # What comes while a run ends is in the store, for the next one.
        if self._run.state in LIVE:
            self._run._act(verb, parameters)

    def asked(self, name: str, command_id: str, kind: str, fields: Mapping[str, Any]) -> None:
        """Note in the log who asks for what comes next."""
        url = next((outlet.url for outlet in self._run.fleet.outlets), None)
        try:
            self._act("command", verbs.command(kind, of_gateway(name), dict(fields), command_id,
                                               by=url))
        except IotsimError as error:
            self._crew.remark(f"commands of gateways are done, and no longer logged: {error}")

    def set_frequency(self, name: str, every_ms: int) -> None:
        """Let all sensors of a gateway send so often, from the next tick on."""
        self._known(name)
        if self._crew.has_sensors(name):
            self._act("set", verbs.set_(of_gateway(name), f"{every_ms}ms", {}))
        self._crew.note(name, send_frequency_ms=every_ms)

    def set_status(self, name: str, status: str) -> None:
        """Let a gateway be silent while it is paused or offline; its commands go on."""
        record = self._crew.records[self._known(name)]
        silent = record.status in SILENT
        if self._crew.has_sensors(name) and silent != (status in SILENT):
            where = of_gateway(name)
            if silent:
                self._act("clear", verbs.clear("suspend", where, by=verbs.PLATFORM))
            else:
                self._act("inject", verbs.inject("suspend", where, by=verbs.PLATFORM))
        self._crew.note(name, status=status)

    def set_firmware(self, name: str, version: str) -> None:
        """Let a gateway have another firmware: its readings do not change by it."""
        self._crew.note(self._known(name), firmware=version)

    # -- anomalies --------------------------------------------------------------------------------

    def anomalous(self, name: str) -> bool:
        """Return whether the link of a gateway is degraded or gone now."""
        self._known(name)
        driver = self._run.works.driver
        return driver is not None and self._troubled_until_us(driver, name) > driver.frontier_us

    async def calm(self, name: str) -> None:
        """Return when it is not any more: at the end of the last fault, or when that is cleared."""
        while self.anomalous(name):
            driver, stirred = self._run.works.driver, self._stirred
            assert driver is not None, "without one there are no anomalies"
            left_s = driver.clock.real_s_until(self._troubled_until_us(driver, name))
            try:
                async with asyncio.timeout(min(max(left_s, SOON_S), LOOK_S)):
                    await stirred.wait()
            except TimeoutError:
                pass

    def stir(self) -> None:
        """Let those who wait for the end of an anomaly look again."""
        stirred, self._stirred = self._stirred, asyncio.Event()
        stirred.set()

    def links_of(self, name: str) -> list[Window]:
        """Return the faults that the links of all sensors of a gateway have now."""
        driver = self._run.works.driver
        slots = self._crew.slots_of(name)
        if driver is None or not len(slots):
            return []
        self._take_note(driver)
        now_us = driver.frontier_us
        return [one for one in self._links if (place := one.members(slots)).min() >= 0
                and (one.ends_us[place] > now_us).all()]

    def _troubled_until_us(self, driver: Driver, name: str) -> int:
        self._take_note(driver)
        slots = self._crew.slots_of(name)
        slots = slots[slots < len(self._until_us)]
        return int(self._until_us[slots].max(initial=0))

    def _take_note(self, driver: Driver) -> None:
        # Looked at for each command: a thousand gateways may have a fault of their own each.
        deeds = driver.simulation.deeds
        fresh = deeds.done[self._deeds_seen:]
        self._deeds_seen = len(deeds.done)
        if not any(action.verb in ("inject", "clear") for action in fresh):
            return
        self._links += [one for one in deeds.windows[self._windows_seen:]
                        if one.fault.layer == "link"]
        self._windows_seen, now_us = len(deeds.windows), driver.frontier_us
        self._links = [one for one in self._links if min(one.end_us, one.over_us) > now_us]
        self._until_us = np.zeros(len(deeds.population), dtype=np.int64)
        for one in self._links:
            self._until_us[one.slots] = np.maximum(self._until_us[one.slots], one.ends_us)

    def _known(self, name: str) -> str:
        if name not in self._crew.records or name in self._crew.gone:
            raise BadValue("gateway", name, "is not in this run", "It was deleted.")
        return name
