"""What a command, or a person, does to one gateway of a run: as actions like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iotsim import verbs
from iotsim.errors import BadValue
from iotsim.publishers.backoff import pause
from iotsim.readings import Ints

if TYPE_CHECKING:
    from iotsim.engine.deeds import Deeds
    from iotsim.gateway.crew import Crew
    from iotsim.run import Run

CALM_LOOK_S = 0.05
SILENT = ("paused", "offline")


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

    @property
    def _run(self) -> Run:
        run = self._crew.run
        assert run is not None, "commands come over connections that a run has made"
        return run

    def set_frequency(self, name: str, every_ms: int) -> None:
        """Let all sensors of a gateway send so often, from the next tick on."""
        self._known(name)
        if self._crew.has_sensors(name):
            self._run._act("set", verbs.set_(of_gateway(name), f"{every_ms}ms", {}))
        self._crew.note(name, send_frequency_ms=every_ms)

    def set_status(self, name: str, status: str) -> None:
        """Let a gateway be silent while it is paused or offline; its commands go on."""
        record = self._crew.records[self._known(name)]
        silent = record.status in SILENT
        if self._crew.has_sensors(name) and silent != (status in SILENT):
            if not silent:
                self._run._act("inject", verbs.inject("suspend", of_gateway(name), None))
            elif record.intent == "running":
                self._run._act("clear", verbs.clear("suspend", of_gateway(name)))
        self._crew.note(name, status=status)

    def set_firmware(self, name: str, version: str) -> None:
        """Let a gateway have another firmware: a line in the log, and in its record."""
        self._known(name)
        self._run._act("log", verbs.log(f"gateway {name}: firmware {version}"))
        self._crew.note(name, firmware=version)

    def anomalous(self, name: str) -> bool:
        """Return whether the link of a gateway is degraded or gone now."""
        self._known(name)
        driver = self._run.works.driver
        if driver is None:
            return False
        slots = self._crew.slots_of(name)
        return bool(len(slots)) and _troubled(driver.simulation.deeds, slots, driver.begun_us)

    async def calm(self, name: str) -> None:
        """Return when it is not any more."""
        while self.anomalous(name):
            await pause(CALM_LOOK_S)  # somebody may clear it at any time

    def _known(self, name: str) -> str:
        if name not in self._crew.records or name in self._crew.gone:
            raise BadValue("gateway", name, "is not in this run", "It was deleted.")
        return name


def _troubled(deeds: Deeds, slots: Ints, now_us: int) -> bool:
    for window in reversed(deeds.windows):
        if window.fault.layer != "link" or not window.begin_us <= now_us < window.end_us:
            continue
        places = window.members(slots)
        if (window.ends_us[places[places >= 0]] > now_us).any():
            return True
    return False
