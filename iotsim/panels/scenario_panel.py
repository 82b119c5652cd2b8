"""`scenario.panel()`: what will happen, what came of it offline, and how it is started live."""

from __future__ import annotations

import asyncio
import html
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from iotsim.clock import monotonic
from iotsim.errors import BadValue, IotsimError
from iotsim.panels.aside import aside
from iotsim.panels.base import still_html
from iotsim.panels.fleet_panel import readings_hz
from iotsim.panels.launch import Launch
from iotsim.panels.naming import file_name
from iotsim.panels.timeline import done, judged, planned
from iotsim.panels.timeline_still import lanes_svg
from iotsim.result import Result
from iotsim.run import Run
from iotsim.scenario import Scenario
from iotsim.units import clock_text

KEPT = 16  # panels that a cell that is run again gets back
TICK_S = 0.25  # between looks at how far it is
ROWS_MAX = 20_000_000  # readings that are held at once, about a gigabyte
TOLD_MAX = 5

HELD = 3  # results that are held besides the latest

_PANELS: OrderedDict[str, ScenarioPanel] = OrderedDict()  # by name, the latest last
_HOLDING: list[ScenarioPanel] = []


def panel_of(scenario: Scenario) -> ScenarioPanel:
    """Return the panel of a scenario: that of an equal one, if a cell is run again."""
    found = _PANELS.pop(scenario.name, None)
    if found is None or found.scenario != scenario:
        found = ScenarioPanel(scenario)
    _PANELS[scenario.name] = found
    while len(_PANELS) > KEPT:
        _PANELS.popitem(last=False)
    found.look_again()
    return found


class _Cancelled(Exception):
    pass


class ScenarioPanel(Launch):
    """A panel of a scenario.

    Parameters
    ----------
    scenario : Scenario

    Attributes
    ----------
    result : Result or None
        What came of it when it was generated last.
    """

    def __init__(self, scenario: Scenario) -> None:
        super().__init__("scenario")
        self.scenario = scenario
        self.result: Result | None = None
        self._timeline = planned(scenario)
        self._reached_s: float | None = None  # where generating is; None: nobody generates
        self._leave = False
        self._verdict: dict[str, Any] | None = None
        self._checks: list[list[Any]] = []

    @property
    def fleet_name(self) -> str:
        """The name that its run has."""
        return self.scenario.fleet.name

    def is_ours(self, run: Run) -> bool:
        """Return whether a live run is one of this scenario."""
        return run.scenario is not None and run.scenario == self.scenario

    def begun(self, speed: Any, message: Mapping[str, Any]) -> Run:
        """Start the scenario."""
        return self.scenario.start(speed=speed, thread=bool(message.get("thread")),
                                   replace=bool(message.get("replace")))

    # -- offline --------------------------------------------------------------------------------

    async def do_generate(self, message: Mapping[str, Any]) -> None:
        """Generate it in a thread; what came of it is shown."""
        if self._reached_s is not None:
            raise BadValue("scenario", self.scenario.name, "is being generated already",
                           "Wait, or cancel it.")
        self._check_rows((self.scenario.end_us() or 0) / 1e6)
        self._reached_s, self._leave, began_s = 0.0, False, monotonic()
        self._past = self.result = self._verdict = None
        self._checks = []
        self.refresh()
        try:
            work = asyncio.ensure_future(aside(self._generate, "iotsim generate"))
            while not work.done():
                await asyncio.wait([work], timeout=TICK_S)
                self.refresh()
            self.result = await work
        except _Cancelled:
            self.tell("cancelled: nothing is kept")
            return
        finally:
            self._reached_s = None
        took_s = monotonic() - began_s
        self._verdict, self._checks = _verdict(self.result), judged(self.result.expectations)
        if self.scenario.script is not None:
            self._timeline = done(self.result)
        _HOLDING.append(self)
        for other in [one for one in _HOLDING if one is not self][:-HELD]:
            _HOLDING.remove(other)
            other.result = None
        self.tell(f"generated {self.result.rows:,} readings in {took_s:.1f} s: "
                  "panel.result holds them")

    def _generate(self) -> Result:
        def moved(seconds: float) -> None:
            if self._leave:
                raise _Cancelled
            self._reached_s = (self._reached_s or 0.0) + seconds
            if self.scenario.script is not None:
                self._check_rows(self._reached_s)

        return self.scenario.generate(progress=moved)

    def _check_rows(self, span_s: float) -> None:
        rows = readings_hz(self.scenario.fleet) * span_s
        if rows > ROWS_MAX:
            raise BadValue("scenario", self.scenario.name, f"makes about {rows:,.0f} readings, too "
                           f"many to hold (at most {ROWS_MAX:,})",
                           "Stream them: scenario.generate(to='readings.parquet').")

    def do_cancel(self, message: Mapping[str, Any]) -> None:
        """Generate no further."""
        self._leave = self._reached_s is not None

    async def do_save(self, message: Mapping[str, Any]) -> None:
        """Save what came of it beside the notebook."""
        result = self._generated()
        saved = await aside(lambda: result.save(file_name(self.scenario.name)), "iotsim save")
        self.tell(f"saved {saved}: iotsim.verify({str(saved)!r}) runs it again")

    async def outcome(self) -> Result:
        """Return what was generated, or what the run that is shown has left."""
        return await super().outcome() if self.run is not None else self._generated()

    def _generated(self) -> Result:
        if self.result is None:
            raise IotsimError("nothing that was generated is held: click Generate")
        return self.result

    # -- what is shown --------------------------------------------------------------------------

    def form(self) -> dict[str, Any]:
        """Return the scenario, as plain JSON."""
        scenario, end_s = self.scenario, self._timeline["end"]
        reached_s, run = self._reached_s, self.run
        return {
            "name": scenario.name,
            "what": " ".join(text for _, text in scenario._facts()),
            "script": scenario.script is not None,
            **self._timeline,
            "busy": None if reached_s is None else {
                "share": min(1.0, reached_s / end_s) if end_s else None,
                "at": clock_text(int(reached_s * 1e6)), "leaving": self._leave},
            "verdict": self._verdict,
            "checks": self._checks if run is None else judged(run.expectations),
        }

    def still(self) -> str:
        """Return the scenario as HTML, for pages where no widget lives."""
        if (run := self.run) is not None:
            return str(run.panel().still())
        facts = self.facts
        rows = "".join(f"<tr><td>{at}</td><td style='text-align:left'>{html.escape(text)}</td></tr>"
                       for _, at, text in facts["steps"][:STILL_STEPS])
        table = f"<table>{rows}</table>" if rows else ""
        said = "".join(f"<li>{html.escape(text)}</li>" for text in _told(facts["verdict"]))
        return still_html(f"{facts['name']} · {facts['what']}",
                          f"{lanes_svg(facts)}{table}{f'<ul>{said}</ul>' if said else ''}")

    def __repr__(self) -> str:
        return f"<ScenarioPanel of {self.scenario!r}>"


STILL_STEPS = 12


def _verdict(result: Result) -> dict[str, Any]:
    counts = {status: sum(one.status == status for one in result.expectations)
              for status in ("passed", "failed", "not evaluated")}
    return {"passed": result.passed, "rows": result.rows,
            "duration": clock_text(result.end_us - result.start_us), "digest": result.digest,
            "counts": counts,
            "errors": [str(error)[:300] for error in result.errors[:TOLD_MAX]],
            "notes": [note[:300] for note in result.notes[:TOLD_MAX]]}


def _told(verdict: dict[str, Any] | None) -> list[str]:
    if verdict is None:
        return []
    counts = [f"{count} {status}" for status, count in verdict["counts"].items() if count]
    return [f"generated: {verdict['rows']:,} readings over {verdict['duration']}, "
            f"{'passed' if verdict['passed'] else 'failed'}, digest {verdict['digest']}",
            *([f"expectations: {', '.join(counts)}"] if counts else []), *verdict["errors"]]
