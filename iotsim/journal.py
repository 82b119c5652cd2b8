"""What a live run logs: its lifecycle, what is done to it, and its publishers' troubles.

Actions are logged as they are done. Publishers and failures are looked at once a second, so that
ten thousand sessions that are lost together are one line, and a broker that flaps is one a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from iotsim.actions import Action
from iotsim.errors import IotsimError
from iotsim.faults.base import NEVER_US
from iotsim.logs import LOG, say
from iotsim.publishers.ledger import LedgerSnapshot
from iotsim.publishers.payload import Encoder
from iotsim.readings import Readings
from iotsim.verbs import BACK_PRESSURE

if TYPE_CHECKING:
    from iotsim.publishers.pump import Pump
    from iotsim.works import Works

FAILURES_TOLD = 10  # a second; the others are counted
REASONS_TOLD = 3


class Journal:
    """Tells the logger what happens in a run.

    Parameters
    ----------
    works : Works

    Attributes
    ----------
    lookers : list of callable ()
        Called once a second, to say more.
    """

    def __init__(self, works: Works) -> None:
        self.lookers: list[Callable[[], None]] = []
        self._works = works
        self._facts = {"run": works.run_id, "fleet": works.wish.fleet.name}
        self._seen: dict[str, tuple[LedgerSnapshot, int, str]] = {}
        self._failures = self._windows = 0
        self._ending: list[tuple[int, str]] = []  # faults that will be over by themselves
        self._encoder: Encoder | None = None

    def _say(self, level: int, event: str, message: str, **facts: Any) -> None:
        say(level, event, message, {**self._facts, **facts})

    # -- the run --------------------------------------------------------------------------------

    def connecting(self) -> None:
        """Say where the run publishes to."""
        urls = [pump.url for pump in self._works.pumps]
        self._say(logging.INFO, "run_connecting", f"connecting {', '.join(urls) or 'nothing'}",
                  publishers=urls)

    def ready(self) -> None:
        """Say that the run begins, and who is there."""
        for pump in self._works.pumps:
            self._seen[pump.run_id] = pump.snapshot(), pump.connected, _last_error(pump)
            self._say(logging.INFO, "publisher_connected", f"{pump.url} connected",
                      publisher=pump.url, connections=pump.connected)
        for group in self._works.groups:
            count = len(group)
            self._say(logging.INFO, "devices_spawned", f"device spawned: {count:,} "
                      f"{group.device_type}", device_type=group.device_type, count=count)
        self._say(logging.INFO, "run_ready", f"runtime ready, run_id={self._works.run_id}",
                  seed=self._works.wish.fleet.seed)

    def stopping(self) -> None:
        """Say that the run comes to its end."""
        self._say(logging.INFO, "run_stopping", "stopping all devices")

    def over(self) -> None:
        """Say that the run is over, and what it has come to."""
        self.look()
        works = self._works
        judge = None if works.driver is None else works.driver.judge
        self._say(logging.INFO, "run_over", "shutdown complete", readings=works.intake.rows,
                  withheld=works.intake.withheld_rows, errors=works.failures.count,
                  quality=None if judge is None else judge.quality,
                  publishers={url: _states(one) for url, one in works.ledgers().items()})

    def failed(self, verb: str, error: IotsimError) -> None:
        """Say that something could not be done."""
        event = "spawn_failed" if verb == "add" else "action_failed"
        self._say(logging.ERROR, event, f"{event.replace('_', ' ')}: {error}", verb=verb,
                  error=str(error))

    def did(self, action: Action) -> None:
        """Say what was done to the run."""
        given = action.parameters
        facts: dict[str, Any] = {"at_s": action.at, **action.spec()}
        facts["devices"] = action.devices
        told = action.describe()
        if given.get("by") == BACK_PRESSURE:
            slower = action.verb == "inject"
            event = "backpressure_slowing_down" if slower else "backpressure_restored"
            told = "slowing down" if slower else "restored normal rate"
            self._say(logging.WARNING if slower else logging.INFO, event,
                      f"backpressure: {told}", **facts)
            return
        event, message = _EVENTS.get(action.verb, (action.verb, action.verb))
        self._say(logging.INFO, event, f"{message}: {told}", **facts)

    # -- once a second --------------------------------------------------------------------------

    def look(self) -> None:
        """Say what has become of publishers, devices and faults since the last look."""
        if not LOG.isEnabledFor(logging.ERROR):
            return
        for pump in self._works.pumps:
            now = pump.snapshot()
            if pump.run_id in self._seen:
                self._look_at(pump, now, *self._seen[pump.run_id])
            self._seen[pump.run_id] = now, pump.connected, _last_error(pump)
        self._look_at_failures()
        self._look_at_faults()
        for look in self.lookers:
            look()

    def _look_at(
        self, pump: Pump, now: LedgerSnapshot, before: LedgerSnapshot, connected: int, error: str
    ) -> None:
        facts = {"publisher": pump.url, "connected": pump.connected, "connections": pump.lanes}
        came, why = now.reconnects - before.reconnects, _last_error(pump)
        # Without a new error, devices have said goodbye, or a fault closed their sessions.
        if why != error and (came or pump.connected < connected):
            self._say(logging.WARNING, "publisher_lost", f"{pump.url} lost: {why}", why=why,
                      **facts)
        if came:
            self._say(logging.INFO, "publisher_reconnected", f"{pump.url} reconnected", **facts)
        for event, word, old, new in (
            ("publish_error", "refused", before.refusals, now.refusals),
            ("messages_dropped", "dropped", before.drops, now.drops),
        ):
            grown = {why: n - old.get(why, 0) for why, n in new.items() if n > old.get(why, 0)}
            if grown:
                count, reasons = sum(grown.values()), dict(list(grown.items())[:REASONS_TOLD])
                said = event.replace("_", " ")
                self._say(logging.WARNING, event,
                          f"{said}: {count:,} {word} at {pump.url}: {', '.join(reasons)}",
                          count=count, reasons=reasons, publisher=pump.url)

    def _look_at_failures(self) -> None:
        failures = self._works.failures
        fresh = failures.kept[self._failures :]
        for error in fresh[:FAILURES_TOLD]:
            device = getattr(error, "device_id", None)
            event = "run_error" if device is None else "device_failed"
            facts = {} if device is None else {"device_id": device}
            self._say(logging.ERROR, event, str(error), error=str(error), **facts)
        if len(fresh) > FAILURES_TOLD:
            more = len(fresh) - FAILURES_TOLD
            self._say(logging.ERROR, "device_failed", f"{more:,} more devices failed", count=more)
        self._failures = len(failures.kept)

    def _look_at_faults(self) -> None:
        driver = self._works.driver
        if driver is None:
            return
        windows = driver.simulation.deeds.windows
        self._ending += [(window.end_us, window.name) for window in windows[self._windows :]
                         if window.end_us < NEVER_US]
        self._windows = len(windows)
        over = [name for end_us, name in self._ending if end_us <= driver.frontier_us]
        for name in over:
            self._say(logging.INFO, "fault_cleared", f"fault cleared: {name} is over", fault=name)
        if over:
            self._ending = [one for one in self._ending if one[0] > driver.frontier_us]

    # -- readings -------------------------------------------------------------------------------

    def readings(self, readings: Readings) -> None:
        """Say every reading, as its message would be; for DEBUG."""
        if self._encoder is None:
            self._encoder = Encoder(self._works.run_id, lambda group, i: "")
        messages, marks = self._encoder.encode(readings), readings.marks
        causes = None if marks is None or marks.withheld is None else marks.withheld.tolist()
        names = () if marks is None else marks.names
        for i, (payload, ident) in enumerate(zip(messages.payloads, messages.ids, strict=True)):
            facts: dict[str, Any] = {"id": ident, "reading": orjson.loads(payload)}
            if causes is not None and causes[i]:
                facts["withheld"] = names[causes[i]]
            self._say(logging.DEBUG, "reading", ident, **facts)


_EVENTS = {  # of a verb: the event, and the words that the contract knows
    "inject": ("fault_injected", "fault injected"),
    "clear": ("fault_cleared", "fault cleared"),
    "set": ("devices_updated", "device behaviors updated"),
    "stop": ("devices_stopped", "device stopped"),
    "add": ("devices_spawned", "device spawned"),
}


def _last_error(pump: Pump) -> str:
    # What is refused has a line of its own, and ends no connection.
    said = (text for text in reversed(pump.errors) if not text.startswith("refused"))
    return next(said, "")


def _states(ledger: LedgerSnapshot) -> Mapping[str, int]:
    names = ("offered", "acknowledged", "refused", "dropped", "unknown")
    return {name: getattr(ledger, name) for name in names}
