"""`run.panel()`: everything to see of a live run, and to do to it, in one widget."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import traitlets

from iotsim.clock import monotonic, thread_cpu_s
from iotsim.errors import BadValue
from iotsim.panels import menu
from iotsim.panels.base import SAID_CHARS_MAX, Panel
from iotsim.panels.rates import Speedometer
from iotsim.panels.run_facts import facts_of
from iotsim.panels.run_still import still_of
from iotsim.panels.scope import Scope, scope_of
from iotsim.run import Run
from iotsim.selectors import Where

RATE_HZ = 5.0
RATES_HZ = 4.0, 10.0  # that a panel may be asked for
SHARE = 0.04  # of its loop's time that a panel takes at most
UNSEEN_S = 1.0  # between looks while no page shows it
SEEN_S = 20.0  # a page that shows it says so more often than that
SAVE_S = 1.0  # how long a moment is waited for at which every device is at one instant
WHERE_CHARS_ECHOED = 1000  # form.js compares as many
ENDED_KEPT = 4  # runs that are over and whose panels can still save them

_PANELS: WeakKeyDictionary[Run, RunPanel] = WeakKeyDictionary()
_ENDED: deque[tuple[Run, Scope | None]] = deque(maxlen=ENDED_KEPT)


def panel_of(
    run: Run, rate_hz: float = RATE_HZ, make: Callable[[Any, float], RunPanel] | None = None
) -> RunPanel:
    """Return the panel of a run; there is one, however often it is asked for."""
    low, high = RATES_HZ
    if isinstance(rate_hz, bool) or not isinstance(rate_hz, (int, float)) \
            or not low <= rate_hz <= high:
        raise BadValue("rate_hz", rate_hz, f"is not between {low:g} and {high:g}",
                       f"Leave it out for {RATE_HZ:g}.")
    found = _PANELS.get(run)
    if found is None or found.comm is None:  # it was closed
        found = (make or RunPanel)(run, rate_hz)
        run.here(found.begin)
    found.rate_hz = rate_hz
    return found


class RunPanel(Panel):
    """A panel of a run: it looks at it several times a second, and does what people click.

    Parameters
    ----------
    run : Run
    rate_hz : float
        Looks a second while a page shows it; fewer where a look would take too long.

    Attributes
    ----------
    run : Run
        After Start, the new one. One that is long over is held by others, or nobody.
    cost_s : float
        Processor time of this thread that its looks have taken.
    """

    shows = "run"  # the kind of view
    code = traitlets.Dict({"number": 0, "text": ""}).tag(sync=True)

    def __init__(self, run: Run, rate_hz: float = RATE_HZ) -> None:
        super().__init__(run.loop, kind=self.shows, menu=_menu())
        self.rate_hz = rate_hz
        self.cost_s, self.looks = 0.0, 0
        self._seen_s = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._match: dict[str, Any] = {}
        self._saved, self._copies = "", 0
        self.take(run)

    def take(self, run: Run) -> None:
        """Show a run from now on; `begin` lets the looking begin, on its loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._run: Callable[[], Run | None] = lambda: run
        self._held: Callable[[], Scope | None] = lambda: None
        self._called, self._looking, self.loop = run.name, False, run.loop
        self.speedometer, self._match_of = Speedometer(), -1
        self.known()[run] = self

    @property
    def run(self) -> Run:
        """The run that is shown.

        Raises
        ------
        BadValue
            If it is over, and nobody holds it any more.
        """
        found = self._run()
        if found is None:
            raise BadValue("run", self._called, "is over, and its readings are let go",
                           "Start it again where it was started.")
        return found

    @property
    def scope(self) -> Scope | None:
        """The instruments; None before the run is connected, and long after it is over."""
        return self._held()

    def known(self) -> WeakKeyDictionary[Run, RunPanel]:
        """Return where the panels of this kind are found again."""
        return _PANELS

    def begin(self) -> None:
        """Look at the run now, and again and again until it is over; on its loop."""
        if self._looking:
            return
        self._looking = True
        run = self.run
        if not run.ended:
            run.at_end(lambda: self._ended(run))
        self._turn()

    # -- looking --------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._timer = None
        began_s, cpu_s = monotonic(), thread_cpu_s()  # others may have the processor meanwhile
        self.renew()
        took_s = thread_cpu_s() - cpu_s
        run = self.run
        if run.ended:
            self._over()
        elif self.comm is not None:  # it is not closed
            shown = began_s - self._seen_s < SEEN_S
            wait_s = max(1 / self.rate_hz if shown else UNSEEN_S, took_s / SHARE)
            self._timer = run.loop.call_later(wait_s - took_s, self._turn)
        else:
            self._leave(run)

    def _leave(self, run: Run) -> None:
        # It was closed: nothing is looked at any more, and the run is held by others, or nobody.
        self._held, self._run = (lambda: None), ref(run)

    def _ended(self, run: Run) -> None:
        # On its loop, which may be gone with it.
        if self._run() is run and self._timer is not None:
            self._timer.cancel()
            self._turn()

    def _over(self) -> None:
        # The last runs are held, so that they can be saved; their panels alone hold none.
        run, scope = self.run, self.scope
        if scope is not None:
            scope.close()
            self._held = ref(scope)
        if all(one is not run for one, _ in _ENDED):
            _ENDED.append((run, scope))
        self._run = ref(run)

    def refresh(self) -> None:
        """Look at the run, and send what it is like now."""
        began_s = thread_cpu_s()
        if self._run() is None:
            self.show_state(dict(self.facts))
            return
        scope = self._scope()
        facts = self.look()
        arrays = {} if scope is None else scope.arrays(facts)
        self.show_state(facts, **arrays)
        self.looks += 1
        self.cost_s += thread_cpu_s() - began_s

    def _scope(self) -> Scope | None:
        if self.scope is None and self.run.works.driver is not None:
            found = scope_of(self.run)
            self._held = lambda: found
        return self.scope

    def look(self) -> dict[str, Any]:
        """Return the run as it is now, as plain JSON."""
        facts = facts_of(self.run, self.scope, self.speedometer)
        if facts["devices"] != self._match_of and facts["state"] in ("running", "paused"):
            self._match_of = facts["devices"]
            if self._match:  # some have come or gone, perhaps of those whom it means
                self.do_match(self._match)
        return {**facts, "match": self._match, "saved": self._saved}

    def still(self) -> str:
        """Return the run as HTML, for pages where no widget lives."""
        return still_of(self.facts, self.scope)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._run() or self._called!r}>"

    # -- what people click ----------------------------------------------------------------------

    def do_seen(self, message: Mapping[str, Any]) -> None:
        """Know that a page shows the panel."""
        self._seen_s = monotonic()
        self.send_whole()

    def do_start(self, message: Mapping[str, Any]) -> None:
        """Begin another run like the one that is over."""
        self.take(self.run.again())
        self.enter(self.begin)

    def do_pause(self, message: Mapping[str, Any]) -> None:
        """Let simulated time stand still."""
        self.run.pause()

    def do_resume(self, message: Mapping[str, Any]) -> None:
        """Let simulated time go on."""
        self.run.resume()

    async def do_stop(self, message: Mapping[str, Any]) -> None:
        """End the run."""
        result = await self.run.stop()
        wrong = bool(result.errors)
        self.tell(str(result.errors[0]) if wrong else f"ended with {result.rows:,} readings",
                  wrong=wrong)

    def do_speed(self, message: Mapping[str, Any]) -> None:
        """Change the pace."""
        text = str(message.get("speed", ""))
        speed = menu.value_of(text.lower().removesuffix("×").removeprefix("×"))
        self.run.set_speed(speed)

    def do_inject(self, message: Mapping[str, Any]) -> None:
        """Break something on purpose."""
        given = message.get("parameters") or {}
        parameters = {str(name): menu.value_of(str(text)) for name, text in given.items()
                      if str(text).strip()}
        duration = str(message.get("duration") or "").strip()
        action = self.run.inject(str(message.get("fault", "")), _where(message),
                                 _duration(duration), parameters=parameters,
                                 reason=str(message.get("reason") or "") or None)
        self.tell(str(action), wrong=not action.devices)

    def do_clear(self, message: Mapping[str, Any]) -> None:
        """End faults before their time."""
        fault = message.get("fault") or None
        where: Where = _where(message)
        if "window" in message and self.scope is not None:
            where = self.scope.shades.where_of(message["window"])
        action = self.run.clear(None if fault is None else str(fault), where)
        self.tell(str(action))

    def do_add(self, message: Mapping[str, Any]) -> None:
        """Let more devices begin."""
        count = menu.value_of(str(message.get("count", "1")))
        labels = menu.labels_of(str(message.get("labels") or ""))
        action = self.run.add(str(message.get("profile", "")), count=count, labels=labels or None)
        self.tell(str(action))

    def do_stop_devices(self, message: Mapping[str, Any]) -> None:
        """End devices; the run goes on."""
        action = self.run.stop(_where(message))
        self.tell(str(action), wrong=not action.devices)

    def do_match(self, message: Mapping[str, Any]) -> None:
        """Count whom a selection matches."""
        text = str(message.get("where", ""))[:WHERE_CHARS_ECHOED]
        try:
            self._match = {"where": text, "count": self.run.matching(_where(message))}
        except Exception as error:  # half a selection is no selection yet
            self._match = {"where": text, "wrong": str(error)[:SAID_CHARS_MAX]}

    def do_field(self, message: Mapping[str, Any]) -> None:
        """Look at another field."""
        if self.scope is not None:
            self.scope.look_at(str(message.get("field", "")))

    def do_pick(self, message: Mapping[str, Any]) -> None:
        """Look at one device: that of a cell, or the one with an id."""
        if self.scope is not None:
            self.scope.pick(message.get("cell"), message.get("id"))

    async def do_save(self, message: Mapping[str, Any]) -> None:
        """Save the session so far beside the notebook."""
        path = str(message.get("path") or "").strip()
        path = path or f"{self.run.name}-{self.run.id}.iotsim".replace("/", "-")
        if Path(path).name != path:
            raise BadValue("path", path, "is not in the folder of the notebook", "Give a name.")
        saved = await self._saved_soon(path)
        self._saved = str(saved)
        self.tell(f"saved {saved}: iotsim.verify({str(saved)!r}) runs it again")

    async def _saved_soon(self, path: str) -> Path:
        # Scripts are in the middle of something now and then.
        until_s = monotonic() + SAVE_S
        while True:
            try:
                return self.run.save(path)
            except BadValue as error:
                if error.name != "run" or monotonic() > until_s:
                    raise
            await asyncio.sleep(SAVE_S / 50)

    def do_copy(self, message: Mapping[str, Any]) -> None:
        """Write the session so far as the source of a scenario."""
        text = self.run.to_scenario().code()
        self._copies += 1
        self.code = {"number": self._copies, "text": text}
        self.tell("the session as a scenario is on the clipboard, and below")


def _menu() -> dict[str, Any]:
    return {"faults": menu.faults(), "profiles": menu.profiles(), "speeds": list(menu.SPEEDS)}


def _where(message: Mapping[str, Any]) -> str:
    return str(message.get("where") or "").strip() or "all"


def _duration(text: str) -> str | float | None:
    value = menu.value_of(text)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return text or None
