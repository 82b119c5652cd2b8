"""`result.panel()`: look back through what a run left, moment by moment."""

from __future__ import annotations

import html
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from iotsim.errors import IotsimError, UnknownName
from iotsim.panels.aside import aside, loop_here
from iotsim.panels.base import Panel, still_html
from iotsim.panels.lookback import COLUMNS, Lookback
from iotsim.panels.naming import file_name
from iotsim.panels.run_still import picture
from iotsim.plotting.canvas import cut
from iotsim.result import Result
from iotsim.result_facts import expected
from iotsim.units import clock_text, instant_text
from iotsim.verdict import VALID

LOG_BEFORE, LOG_AFTER = 40, 20  # actions around the moment
EVENTS_BEFORE, EVENTS_AFTER = 8, 4  # of the picked device
EVENTS_MAX = 20_000
ERRORS_SHOWN, STILL_ACTIONS, LABELS_SHOWN = 3, 8, 6
TEXT_CHARS = 200
FAR_S = 1e12  # nothing happens beyond


HELD = 4  # panels that still have their readings: a page shows them for ever

_PANELS: list[ResultPanel] = []  # the latest last


def panel_of(result: Result) -> ResultPanel:
    """Return a panel that looks back through a result: that of the same one, if there is one."""
    found = next((one for one in _PANELS if one.shows(result)), None)
    return held(ResultPanel(result, Lookback(result)) if found is None else found)


def held(panel: ResultPanel) -> ResultPanel:
    """Let a panel have its readings, and that of long ago no more; returns it."""
    if panel in _PANELS:
        _PANELS.remove(panel)
    _PANELS.append(panel)
    while len(_PANELS) > HELD:
        _PANELS.pop(0).let_go()
    panel.due_no_more()
    panel.loop = loop_here() or panel.loop
    return panel


class ResultPanel(Panel):
    """A panel of a result.

    Parameters
    ----------
    result : Result
    past : Lookback
        Of that result.
    """

    def __init__(self, result: Result, past: Lookback) -> None:
        super().__init__(loop_here(), kind="result")
        self._held: tuple[Result, Lookback] | None = (result, past)
        self._called, self._drawn = repr(result), ""
        self._log = sorted(result.actions, key=lambda one: one.at_us)
        self._events: list[tuple[int, str, str]] = []
        self._jobs: dict[str, Callable[[], None]] = {}  # what is asked for: the latest of a kind
        self._working = False
        self._at_us = past.until_us - 1
        self._seen = self._see()
        self.refresh()

    def shows(self, result: Result) -> bool:
        """Return whether it is of a result, or of one with the same readings, log and verdict."""
        if self._held is None:
            return False
        mine = self._held[0]
        return mine is result or (
            (mine.name, mine.run_id, mine.start_us, mine.end_us, mine.digest, mine.actions,
             mine.expectations)
            == (result.name, result.run_id, result.start_us, result.end_us, result.digest,
                result.actions, result.expectations))

    def let_go(self) -> None:
        """Hold the readings no longer; what is shown stays."""
        self._drawn = self._picture()
        self._held = None

    @property
    def _past(self) -> Lookback:
        return self._both()[1]

    @property
    def result(self) -> Result:
        """What is looked at."""
        return self._both()[0]

    def _both(self) -> tuple[Result, Lookback]:
        if self._held is None:
            raise IotsimError(f"this panel holds its readings no longer ({HELD} newer ones do): "
                              "run its cell again")
        return self._held

    # -- what people ask for --------------------------------------------------------------------

    async def do_moment(self, message: Mapping[str, Any]) -> None:
        """Go to a moment, in simulated seconds since the start of the run."""
        at = message.get("at")
        if isinstance(at, bool) or not isinstance(at, (int, float)) or not abs(at) < FAR_S:
            return
        past = self._past
        at_us = self.result.start_us + round(at * 1e6)
        await self._do("moment", lambda: self._go(
            max(past.since_us, min(past.until_us - 1, at_us))))

    def _go(self, at_us: int) -> None:
        self._at_us = at_us

    async def do_field(self, message: Mapping[str, Any]) -> None:
        """Look at another field."""
        field, known = str(message.get("field", "")), self._past.fields
        if field not in known:
            raise UnknownName("field", field, known)
        await self._do("field", lambda: self._past.look_at(field))

    async def do_pick(self, message: Mapping[str, Any]) -> None:
        """Look at one device: that of a cell, or the one with an id; at none without either."""
        device = str(message.get("id") or "")
        slot = self._past.slot_of(message.get("cell"), device)
        if device and slot is None:
            raise UnknownName("device", device, list(self._past.ids[:5]))
        await self._do("pick", lambda: self._pick(slot))

    def _pick(self, slot: int | None) -> None:
        self._past.pick(slot)
        picked = self._past.picked
        self._events = []
        if picked is not None:
            frame = self.result.events(device_id=self._past.ids[picked]).head(EVENTS_MAX)
            times = frame["time"].astype("int64").tolist()  # microseconds
            self._events = list(zip(times, frame["event"].tolist(), frame["message"].tolist(),
                                    strict=True))

    async def do_save(self, message: Mapping[str, Any]) -> None:
        """Save the result beside the notebook."""
        saved = await aside(lambda: self.result.save(file_name(self.result.name)), "iotsim save")
        self.tell(f"saved {saved}: iotsim.verify({str(saved)!r}) runs it again")

    async def _do(self, kind: str, job: Callable[[], None]) -> None:
        # One after the other, in a thread; each is answered with one message.
        self._jobs[kind] = job
        if self._working:
            return
        self._working = True
        try:
            while self._jobs:
                job = self._jobs.pop(next(iter(self._jobs)))
                self._seen = await aside(partial(self._after, job), "iotsim look back")
                self.refresh()
        finally:
            self._working = False

    def _after(self, job: Callable[[], None]) -> tuple[dict[str, Any], bytes, bytes]:
        job()
        return self._see()

    # -- what is shown --------------------------------------------------------------------------

    def refresh(self) -> None:
        """Send the result as it was at the moment that is looked at."""
        facts, lines, cells = self._seen
        self.show_state(facts, lines=lines, cells=cells)

    def look(self) -> dict[str, Any]:
        """Return the facts of that moment."""
        return self._seen[0]

    def _see(self) -> tuple[dict[str, Any], bytes, bytes]:
        past, result = self._past, self.result
        moment, cells = past.moment(self._at_us)
        facts = {
            "name": result.name,
            "devices": len(past.ids),
            "rows": result.rows,
            "kept": result.capture.rows,
            "start": instant_text(result.start_us)[:19].replace("T", " "),
            "duration": clock_text(result.end_us - result.start_us),
            "digest": result.digest,
            "expected": cut(expected(result), TEXT_CHARS),
            "failed": any(one.status == "failed" for one in result.expectations),
            "quality": "" if result.quality == VALID else result.quality,
            "errors": [cut(error, TEXT_CHARS) for error in result.errors[:ERRORS_SHOWN]],
            "fields": past.fields, "field": past.field, "unit": past.unit,
            "from": past.seconds(past.since_us), "to": past.seconds(past.until_us - 1),
            "series": {"t0": past.seconds(past.since_us), "columns": list(COLUMNS),
                       "to": past.seconds(past.until_us), "every": past.stride},
            "windows": past.windows, "windows_hidden": past.windows_hidden,
            "moment": past.seconds(self._at_us),
            "clock": clock_text(self._at_us - result.start_us),
            "instant": instant_text(self._at_us)[:19].replace("T", " "),
            "map": moment["map"], "active": moment["active"],
            "picked": self._picked(moment), **self._around(),
        }
        return facts, past.packed(), cells

    def _picked(self, moment: dict[str, Any]) -> dict[str, Any]:
        past, history = self._past, self.result.history
        if past.picked is None or history is None:
            return {}
        people = history.population
        group = people.groups[int(people.home[past.picked])]
        known = [at_us for at_us, _, _ in self._events]
        i = bisect_right(known, self._at_us)
        first = max(0, i - EVENTS_BEFORE)
        events = [[clock_text(max(0, at_us - self.result.start_us)), event, cut(text, TEXT_CHARS)]
                  for at_us, event, text in self._events[first : i + EVENTS_AFTER]]
        return {"id": past.ids[past.picked], "type": group.device_type,
                "labels": dict(list(group.labels.items())[:LABELS_SHOWN]),
                "cell": past.picked // past.each, "value": moment["value"],
                "state": moment["state"], "events": events, "events_past": i - first}

    def _around(self) -> dict[str, Any]:
        # The actions before and after the moment, and where the next ones are.
        at_us = self._at_us - self.result.start_us
        known = [one.at_us for one in self._log]
        i, after = bisect_left(known, at_us), bisect_right(known, at_us)
        first, last = max(0, after - LOG_BEFORE), after + LOG_AFTER
        log = [[one.at, clock_text(one.at_us), cut(one.describe(), TEXT_CHARS), one.devices,
                cut(one.note, TEXT_CHARS)] for one in self._log[first:last]]
        return {"log": log, "log_past": after - first, "log_before": first,
                "log_after": max(0, len(self._log) - last),
                "before": self._log[i - 1].at if i else None,
                "after": self._log[after].at if after < len(self._log) else None}

    def still(self) -> str:
        """Return the result as HTML, for pages where no widget lives."""
        facts = self.facts
        drawn = self._drawn if self._held is None else self._picture()
        states = [f"{count:,} {name}" for name, count in facts["map"].get("states", {}).items()
                  if count]
        said = [f"from {facts['start']} UTC, digest {facts['digest']}",
                f"at {facts['clock']}: {', '.join(states) or 'no device'}",
                *([f"expectations: {facts['expected']}"] if facts["expected"] else []),
                *facts["errors"]]
        rows = "".join(f"<tr><td>{at}</td><td style='text-align:left'>{html.escape(text)}</td></tr>"
                       for _, at, text, *_ in facts["log"][-STILL_ACTIONS:])
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in said)
        title = (f"{facts['name']} · {facts['devices']:,} devices · {facts['rows']:,} readings "
                 f"over {facts['duration']}")
        return still_html(title, f"{drawn}<ul>{lines}</ul>"
                          f"{f'<table>{rows}</table>' if rows else ''}")

    def _picture(self) -> str:
        past = self._past
        return picture(past.table, COLUMNS, self.facts["windows"], past.field, past.unit)

    def __repr__(self) -> str:
        return f"<ResultPanel of {self._called}>"
