"""The connections of a run's gateways: one each, or one that all of them share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iotsim.feeders import Way
from iotsim.gateway.link import GOODBYE_S
from iotsim.publishers.backoff import pause

if TYPE_CHECKING:
    from iotsim.gateway.crew import Crew
    from iotsim.gateway.publisher import GatewayPublisher
    from iotsim.works import Works

DRAIN_S, LOOK_S = 5.0, 0.02


class Connections:
    """Looks at the connections of gateways, closes and opens them.

    Parameters
    ----------
    works : Works
    crew : Crew
    publisher : GatewayPublisher
    """

    def __init__(self, works: Works, crew: Crew, publisher: GatewayPublisher) -> None:
        self._works, self._crew, self._publisher = works, crew, publisher

    def _lanes(self, name: str) -> list[tuple[Way, int]]:
        if self._publisher.shared:
            return [(way, lane) for way in self._works.ways for lane in range(way.pump.lanes)]
        return [(way, way.sessions[name]) for way in self._works.ways if name in way.sessions]

    def is_connected(self, name: str) -> bool:
        """Return whether a gateway takes part in a connection now."""
        if self._publisher.shared and self._crew.rests(name):
            return False
        return any(way.pump.is_connected(lane) for way, lane in self._lanes(name))

    def queued(self, name: str) -> int:
        """Return how many envelopes have no verdict: its own, or those of the shared one."""
        return sum(way.pump.open_of(lane) + way.feeders[lane].rows
                   for way, lane in self._lanes(name))

    def trouble(self, name: str) -> str:
        """Return why a gateway that should be connected is not, or takes no commands."""
        if self._crew.rests(name):
            return ""
        for way, lane in self._lanes(name):
            if not way.pump.is_connected(lane):
                return way.pump.trouble_of(lane)
        return self._publisher.why_not(name)

    async def drained(self, name: str, since_us: int) -> bool:
        """Wait for the envelopes of a gateway that is silent; return False if some are left.

        Parameters
        ----------
        name : str
        since_us : int
            Since when it is: so far after the start.
        """
        if self._publisher.shared:
            return True  # they leave by the connection of the others
        for _ in range(round(DRAIN_S / LOOK_S)):
            if self._reached(since_us) and not self.queued(name):
                return True
            await pause(LOOK_S)
        return not self.queued(name)

    def _reached(self, since_us: int) -> bool:
        driver = self._works.driver
        return driver is not None and driver.frontier_us >= self._works.start_us + since_us

    def part(self, name: str) -> None:
        """End a stopped gateway's connection, or its part in the shared one."""
        self._publisher.part(name)
        self._park(name, parked=True)

    def meet(self, name: str) -> None:
        """Open a connection of a gateway that was stopped, or let it take part again."""
        self._publisher.meet(name)
        self._park(name, parked=False)

    def _park(self, name: str, *, parked: bool) -> None:
        driver, links = self._works.driver, self._works.links
        if driver is None or links is None or self._publisher.shared:
            return
        slots = self._crew.slots_of(name).tolist()
        links.park(slots, driver.frontier_us, parked=parked)
        if not slots:  # one without sensors has a connection, too
            for way, lane in self._lanes(name):
                (way.pump.hang_up if parked else way.pump.call_back)(lane)

    def end(self, name: str) -> None:
        """Let a gateway that is deleted go: what it has measured leaves first, if there is time.

        Its sensors are stopped after this.
        """
        self._publisher.part(name)
        if self._publisher.shared:
            return
        has_sensors = self._crew.has_sensors(name)
        for way, lane in self._lanes(name):
            if self._crew.records[name].intent == "stopped" and way.pump.open_of(lane):
                way.pump.call_back(lane)
            if has_sensors:  # with the last reading that they still give
                way.closing.add(lane)
            else:
                way.pump.retire(lane, GOODBYE_S)
