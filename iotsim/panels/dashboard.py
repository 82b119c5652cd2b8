"""`run.dashboard()`: a live run for people who watch it: overview, devices, telemetry, alerts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import traitlets

from iotsim.clock import monotonic
from iotsim.panels.dashboard_alerts import Alerts, signs_of
from iotsim.panels.dashboard_facts import fleet_facts, runtime_facts
from iotsim.panels.dashboard_still import still_of
from iotsim.panels.dashboard_table import Telemetry
from iotsim.panels.run_panel import RunPanel
from iotsim.run import Run

RATE_HZ = 2.0
TABS = ("overview", "devices", "telemetry", "faults", "alerts")
WATCHED_S = 12.0  # a page that shows a tab says so more often than that

_DASHBOARDS: WeakKeyDictionary[Run, RunPanel] = WeakKeyDictionary()


def dashboard_of(run: Run) -> RunPanel:
    """Return the dashboard of a run; there is one, however often it is asked for."""
    found = _DASHBOARDS.get(run)
    if found is None or found.comm is None:  # it was closed
        found = Dashboard(run)
        run.here(found.begin)
    return found


class Dashboard(RunPanel):
    """What `RunPanel` shows and does, and more of the fleet as a whole.

    Parameters
    ----------
    run : Run
    """

    shows = "dashboard"
    table = traitlets.Dict().tag(sync=True)

    def __init__(self, run: Run) -> None:
        self._watched_s: dict[str, float] = {}
        super().__init__(run, RATE_HZ)

    def take(self, run: Run) -> None:
        """Show a run from now on."""
        super().take(run)
        self.alerts = Alerts()
        self._feed: Callable[[], Telemetry | None] = lambda: None

    @property
    def telemetry(self) -> Telemetry | None:
        """The table; None before the run is connected, and long after it is over."""
        return self._feed()

    def known(self) -> WeakKeyDictionary[Run, RunPanel]:
        """Return where dashboards are found again."""
        return _DASHBOARDS

    # -- looking --------------------------------------------------------------------------------

    def look(self) -> dict[str, Any]:
        """Return the run as it is now, as plain JSON."""
        facts = super().look()
        run, telemetry = self.run, self._telemetry()
        states = None if self.scope is None else self.scope.states(self.scope.now_us())
        signs = signs_of(run, facts["quality"], states)
        told = self.alerts.look(signs, facts["time"], monotonic())
        return {**facts, "fleet": fleet_facts(run, states), "runtime": runtime_facts(run),
                "alerts": told, "alerts_hidden": self.alerts.hidden,
                "telemetry": {} if telemetry is None else telemetry.about()}

    def _telemetry(self) -> Telemetry | None:
        driver, works = self.run.works.driver, self.run.works
        if self.telemetry is None and driver is not None and not self.run.ended:
            made = Telemetry(driver.simulation)
            for chunk in works.chunks():
                made.took(chunk)
            works.viewers.append(made.took)
            self._feed = lambda: made
        return self.telemetry

    def show_state(self, facts: dict[str, Any], **arrays: bytes) -> None:
        """Send facts, arrays and the table in one message; the table only while it is looked at."""
        telemetry = self.telemetry
        with self.hold_sync():
            if telemetry is not None:
                if monotonic() - self._watched_s.get("telemetry", -WATCHED_S) < WATCHED_S:
                    self.table = telemetry.table()
                else:
                    telemetry.rest()
            super().show_state(facts, **arrays)

    def _leave(self, run: Run) -> None:
        telemetry, viewers = self.telemetry, run.works.viewers
        if telemetry is not None and telemetry.took in viewers:
            viewers.remove(telemetry.took)
        self._feed = lambda: None
        super()._leave(run)

    def _over(self) -> None:
        viewers, telemetry, scope = self.run.works.viewers, self.telemetry, self.scope
        if telemetry is not None:
            if telemetry.took in viewers:
                viewers.remove(telemetry.took)
            if scope is not None:
                scope.company = telemetry  # kept as long as it is
            self._feed = ref(telemetry)
        super()._over()

    def still(self) -> str:
        """Return the run as HTML, for pages where no widget lives."""
        table = self.table if self.telemetry is None else self.telemetry.table()
        return still_of(self.facts, table, self.scope)

    # -- what people click ----------------------------------------------------------------------

    def do_seen(self, message: Mapping[str, Any]) -> None:
        """Know that a page shows the dashboard, and which part of it."""
        super().do_seen(message)
        tab = message.get("tab")
        if tab in TABS:
            self._watched_s[tab] = monotonic()

    def do_table(self, message: Mapping[str, Any]) -> None:
        """Show the readings of a type, of ids, with a text."""
        if self.telemetry is not None:
            self.telemetry.filter(*(str(message.get(name) or "")
                                    for name in ("type", "ids", "text")))

    def do_table_pause(self, message: Mapping[str, Any]) -> None:
        """Let the table stand still, or go on."""
        if self.telemetry is not None:
            self.telemetry.paused = bool(message.get("paused"))

    def do_table_clear(self, message: Mapping[str, Any]) -> None:
        """Empty the table."""
        if self.telemetry is not None:
            self.telemetry.clear()
