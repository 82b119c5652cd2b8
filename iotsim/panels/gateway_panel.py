"""`run.panel()` of a run of gateways: the run's panel, every gateway, and what is done to one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from iotsim.clock import monotonic
from iotsim.gateway.command_log import NEVER_US, Entry
from iotsim.gateway.hands import of_gateway
from iotsim.gateway.sensors import UNITS
from iotsim.gateway.tables import state_of
from iotsim.panels.gateway_table import Book, form, sensor_field, still_of
from iotsim.panels.run_panel import RATE_HZ, RunPanel, panel_of
from iotsim.readings import Ints, Readings, gateways_of
from iotsim.units import instant_text

if TYPE_CHECKING:
    from iotsim.gateway.run import GatewayRun
    from iotsim.run import Run

TABLE_S = 1.0  # between looks at all gateways
COLUMNS = ("gateway", "state", "status", "connected", "sensors", "every ms", "readings", "queued",
           "last command", "trouble")
COMMAND_COLUMNS = ("received", "gateway", "command", "status", "latency", "message")
COMMANDS_SHOWN = 100
COMMANDS_LOOKED = 5000  # through, for the last one of each gateway

FORMS = (
    form("disconnect", "Close its connection for a while; commands wait at the platform.",
         ("duration", "for", "30s")),
    form("degrade", "Make its link bad for a while.", ("duration", "for", "30s"),
         ("loss", "share lost", "0.3"), ("latency_ms", "latency ms", ""),
         ("duplicate", "share twice", ""), ("reorder", "share late", "")),
    form("outlier", "Let the next reading of a sensor be far outside its range, or a value.",
         sensor_field(), ("value", "value", "")),
    form("pause", "Let its sensors be silent; the platform is not told."),
    form("resume", "Let its sensors speak again; the platform is not told."),
    form("frequency", "Let its sensors send so often; the platform is not told.",
         ("every", "every", "1s")),
    form("attach", "Give it one more sensor.", ("type", "type", "humidity", tuple(UNITS)),
         ("name", "name", ""), ("algorithm", "algorithm", "uniform_random")),
    form("detach", "Take a sensor away from it.", sensor_field()),
    form("stop", "Silence it and end its connection; it can be started again."),
    form("start", "Let it go on with a fresh connection."),
    form("delete", "End it for good, here; the platform is not told.", sure=True),
)


def gateway_panel_of(run: GatewayRun, rate_hz: float = RATE_HZ) -> RunPanel:
    """Return the panel of a run of gateways; there is one, however often it is asked for."""
    return panel_of(run, rate_hz, GatewayPanel)


class GatewayPanel(RunPanel):
    """A run's panel, with a table of gateways and the hands for one of them.

    Parameters
    ----------
    run : GatewayRun
    rate_hz : float
    """

    shows = "gateway"
    gateways = traitlets.Dict().tag(sync=True)

    def __init__(self, run: GatewayRun, rate_hz: float = RATE_HZ) -> None:
        self.book = Book()
        super().__init__(run, rate_hz)
        self.menu = {**self.menu, "forms": list(FORMS)}

    def take(self, run: Run) -> None:
        """Show a run from now on."""
        super().take(run)
        self._counts: _Counts | None = None
        self._looked_s = -math.inf

    @property
    def _gateway_run(self) -> GatewayRun:
        from iotsim.gateway.run import GatewayRun

        run = self.run
        assert isinstance(run, GatewayRun), "it was made for one"
        return run

    # -- looking --------------------------------------------------------------------------------

    def show_state(self, facts: dict[str, Any], **arrays: bytes) -> None:
        """Send facts, arrays and, now and then, the gateways."""
        with self.hold_sync():
            if self._run() is not None and monotonic() - self._looked_s >= TABLE_S:
                self._looked_s = monotonic()
                self.gateways = self._look_around()
            super().show_state(facts, **arrays)

    def _look_around(self) -> dict[str, Any]:
        run = self._gateway_run
        counts = self._count(run)
        log = run.crew.log.last(COMMANDS_LOOKED)
        last: dict[str, Entry] = {}
        for entry in log:  # the newest first
            last.setdefault(entry.gateway, entry)
        rows = []
        for name, one in run.crew.records.items():
            said = last.get(name)
            state = state_of(run.crew, one)
            state = "ended" if state == "running" and run.ended else state
            connected, queued, trouble = run.connection_of(name)
            rows.append([name, state, one.status, "yes" if connected else "no",
                         str(len(one.sensors)), f"{one.send_frequency_ms:,}",
                         f"{counts.get(name, 0):,}", f"{queued:,}",
                         "" if said is None else f"{said.kind} {said.status}", trouble])

        def sensors_of(name: str) -> list[str]:
            return [str(one["name"]) for one in run.crew.records[name].sensors]

        return self.book.page(COLUMNS, rows, sensors_of, COMMAND_COLUMNS,
                              [_told(entry) for entry in log[:COMMANDS_SHOWN]])

    def _count(self, run: GatewayRun) -> dict[str, int]:
        if self._counts is None and run.works.driver is not None and not run.ended:
            self._counts = _Counts()
            for chunk in run.works.chunks():
                self._counts.took(chunk)
            run.works.viewers.append(self._counts.took)
        return {} if self._counts is None else self._counts.by_gateway()

    def _leave(self, run: Run) -> None:
        self._count_no_more(run)
        super()._leave(run)

    def _over(self) -> None:
        self._count_no_more(self.run)
        self._looked_s = -math.inf
        super()._over()

    def _count_no_more(self, run: Run) -> None:
        if self._counts is not None and self._counts.took in run.works.viewers:
            run.works.viewers.remove(self._counts.took)

    def still(self) -> str:
        """Return the run as HTML, for pages where no widget lives."""
        return super().still() + still_of("Gateways", self.gateways)

    # -- what people click ----------------------------------------------------------------------

    def do_gateways(self, message: Mapping[str, Any]) -> None:
        """Show those gateways that a text is about, and choose one of them."""
        self.book.ask(message)
        self._looked_s = -math.inf

    async def do_gateway(self, message: Mapping[str, Any]) -> None:
        """Do something to one gateway."""
        name, given = str(message.get("gateway") or ""), self.book.given(message, FORMS)
        what = str(message.get("form"))
        try:
            told = await self._done(self._gateway_run, what, name, given)
        finally:
            self._looked_s = -math.inf
        self.tell(told)

    async def _done(self, run: GatewayRun, what: str, name: str, given: dict[str, Any]) -> str:
        where = of_gateway(name)
        if what in ("stop", "start", "delete"):
            await getattr(run, f"{what}_gateway")(name)
            ended = {"stop": "is stopped", "start": "goes on", "delete": "is deleted"}[what]
            return f"gateway {name} {ended}"
        if what in ("attach", "detach"):
            return str(await getattr(run, what)(name, **given))
        if what == "degrade":
            return "; ".join(str(one) for one in run.degrade(name, **given))
        if what == "pause":
            return str(run.suspend(where))
        if what == "resume":
            return str(run.clear("suspend", where))
        if what == "frequency":
            return str(run.set(where, **given))
        return str(getattr(run, what)(name, **given))


class _Counts:
    """How many readings each gateway has sent."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._members: dict[int, Ints | None] = {}  # by group: the gateway of each device
        self._counts = np.zeros(0, dtype=np.int64)

    def took(self, readings: Readings) -> None:
        index = readings.group.index
        if index not in self._members:
            names = gateways_of(readings.group)
            self._members[index] = None if names is None else np.array(
                [self._numbers.setdefault(name, len(self._numbers)) for name in names],
                dtype=np.int64)
            more = len(self._numbers) - len(self._counts)
            self._counts = np.append(self._counts, np.zeros(more, dtype=np.int64))
        members = self._members[index]
        if members is not None:
            readings = readings.sent()
            self._counts += np.bincount(members[readings.device], minlength=len(self._counts))

    def by_gateway(self) -> dict[str, int]:
        return dict(zip(self._numbers, self._counts.tolist(), strict=True))


def _told(entry: Entry) -> list[str]:
    known = NEVER_US not in (entry.issued_us, entry.answered_us)
    latency = f"{(entry.answered_us - entry.issued_us) / 1000:,.0f} ms" if known else ""
    again = " (again)" if entry.repeated else ""
    return [instant_text(entry.received_us)[:23] + "Z", entry.gateway, entry.kind,
            entry.status + again, latency, entry.message]
