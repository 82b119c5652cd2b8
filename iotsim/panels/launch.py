"""What the panels before a run share: they start one, and are its panel from then on."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from weakref import ref

from iotsim.errors import IotsimError, NameInUse
from iotsim.live_runs import live_of
from iotsim.panels import menu
from iotsim.panels.aside import aside, loop_here
from iotsim.panels.base import Panel
from iotsim.panels.lookback import Lookback
from iotsim.panels.result_panel import ResultPanel, held
from iotsim.result import Result
from iotsim.run import Run


class Launch(Panel):
    """A panel that starts a run, and in whose place that run's panel is then shown.

    Parameters
    ----------
    kind : str

    Attributes
    ----------
    run : Run or None
        The one that is shown; None while there is a form to fill in. One that is long over is
        held by others, or nobody.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(loop_here(), kind=kind, menu={"speeds": list(menu.SPEEDS)})
        self._run: Callable[[], Run | None] = lambda: None
        self._taken = ""
        self._past: ResultPanel | None = None

    @property
    def run(self) -> Run | None:
        """The run that is shown."""
        return self._run()

    @run.setter
    def run(self, run: Run | None) -> None:
        if run is not None:
            run.panel()  # which holds it while it is live, and for a while when it is over
        self._run = (lambda: None) if run is None else ref(run)

    # -- what a subclass says -------------------------------------------------------------------

    @property
    def fleet_name(self) -> str:
        """The name that its run has."""
        raise AssertionError(f"{type(self).__name__} lacks fleet_name")

    def is_ours(self, run: Run) -> bool:
        """Return whether a live run is one of what this panel shows."""
        raise AssertionError(f"{type(self).__name__} lacks is_ours()")

    def begun(self, speed: Any, message: Mapping[str, Any]) -> Run:
        """Start a run."""
        raise AssertionError(f"{type(self).__name__} lacks begun()")

    def form(self) -> dict[str, Any]:
        """Return what the form shows, as plain JSON."""
        raise AssertionError(f"{type(self).__name__} lacks form()")

    # -- the run --------------------------------------------------------------------------------

    def look_again(self) -> None:
        """Show the run that is live; the form if there is none."""
        self.due_no_more()
        self.loop = loop_here() or self.loop
        self.do_back({})
        self.refresh()

    def look(self) -> dict[str, Any]:
        """Return the form, and whose panel is to be shown instead."""
        if self.run is None:
            live = live_of(self.fleet_name)
            over = live is None or live.leaving or live.state in ("stopped", "failed")
            if live is not None and not over and self.is_ours(live):
                self.run = live
        run = self._shown_run()
        shown = "" if run is None else run.panel().model_id
        past = "" if self._past is None else self._past.model_id
        return {**self.form(), "run": shown, "past": past, "taken": self._taken}

    def _shown_run(self) -> Run | None:
        # Its panel may have started another one like it.
        run = self.run
        if run is not None:
            self.run = run = run.panel().run
        return run

    def do_seen(self, message: Mapping[str, Any]) -> None:
        """Know that a page shows the panel: a run may have begun elsewhere."""

    def do_start(self, message: Mapping[str, Any]) -> Coroutine[Any, Any, None]:
        """Start, and show the run; what does not work out is said in the form."""
        self._taken = ""
        speed = menu.value_of(str(message.get("speed") or "1"))
        try:
            run = self.begun(speed, message)
        except NameInUse as error:
            self._taken = str(error)
            raise
        self.run, self._past = run, None
        self.tell(f"started {run.name}")
        return self._until_ready(run)

    async def _until_ready(self, run: Run) -> None:
        try:
            await run.ready()
        except IotsimError:
            if self.run is run:
                self.run = None
            raise

    def do_back(self, message: Mapping[str, Any]) -> None:
        """Show the form again, once the run is over."""
        run = self._shown_run()
        if run is not None and run.ended:
            self.run = self._past = None

    async def do_look(self, message: Mapping[str, Any]) -> None:
        """Look back through what came of it, here; or no more."""
        if self._past is not None:
            self._past = None
            return
        result = await self.outcome()
        self._past = held(ResultPanel(
            result, await aside(lambda: Lookback(result), "iotsim look back")))

    async def outcome(self) -> Result:
        """Return what the run that is shown has left."""
        run = self._shown_run()
        if run is None or not run.ended:
            raise IotsimError("there is nothing to look back through before a run is over")
        return await run.wait()
