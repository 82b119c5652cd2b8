"""What can be seen of a live run while it goes on: what its result would say by now."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from iotsim.errors import BadValue
from iotsim.registry import door
from iotsim.result import Result
from iotsim.selectors import Where
from iotsim.units import Duration

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.run import Run
    from iotsim.run_state import State
    from iotsim.scenario import Scenario
    from iotsim.works import Works

T = TypeVar("T")


class RunViews:
    """The views of a run."""

    __slots__ = ()

    if TYPE_CHECKING:
        state: State

        @property
        def name(self) -> str:
            """What a run is called."""
            return ""

        @property
        def ended(self) -> bool:
            """Whether it is over."""
            return True

        @property
        def works(self) -> Works:
            """Its machinery."""
            raise AssertionError("a run has its own")

    def events(
        self, event: Iterable[str] | str | None = None,
        device_id: Iterable[str] | str | None = None,
    ) -> pd.DataFrame:
        """Return what has happened so far; see `Result.events`."""
        import_module("pandas")  # it takes its time: not on the run's loop
        return self._look(lambda: self._so_far().events(event, device_id))

    def commands(self) -> pd.DataFrame:
        """Return every command so far and what devices answered; see `Result.commands`."""
        import_module("pandas")
        return self._look(lambda: self._so_far().commands())

    def to_scenario(self) -> Scenario:
        """Return what was done so far as a scenario; see `Result.to_scenario`."""
        return self._look(lambda: self._to_frontier().to_scenario())

    def frame(
        self,
        *,
        device_type: str | None = None,
        fields: Iterable[str] | str | None = None,
        last: Duration | None = None,
        tidy: bool = False,
        truth: bool = False,
        wire: bool = False,
    ) -> pd.DataFrame:
        """Return the readings captured so far; see `Result.frame`."""
        return self._so_far().frame(device_type=device_type, fields=fields, last=last, tidy=tidy,
                                    truth=truth, wire=wire)

    def matching(self, where: Where = "all") -> int:
        """Return how many living devices a selector means now.

        Raises
        ------
        IotsimError
            If it is none, or names what no device has.
        """
        return self.here(lambda: self._matching(where))

    def _matching(self, where: Where) -> int:
        from iotsim.run_verbs import simulation_of

        people = simulation_of(cast("Run", self)).population
        driver = self.works.driver
        slots, _ = people.select(where, 0 if driver is None else driver.begun_us)
        return len(slots)

    def save(self, path: str | Path, *, readings: bool = False) -> Path:
        """Save the session so far; see `Result.save`. It goes on."""
        return self.here(lambda: self._at_boundary().save(path, readings=readings))

    def _to_frontier(self) -> Result:
        # Up to where readings are made, which is a little behind the clock.
        driver, intake = self.works.driver, self.works.intake
        if driver is None or self.state not in ("running", "paused"):
            return self._so_far()
        with intake.lock:
            intake.flush()
            return self._make_result(driver.frontier_us)

    def _at_boundary(self) -> Result:
        # Every device is at one instant, and everything before it is in.
        driver, intake = self.works.driver, self.works.intake
        if driver is None or self.ended:
            return self._so_far()
        driver.come_to_now()
        rows = any(one.rows for one in driver.simulation.casts)
        if rows or not driver.reached_by_all(driver.frontier_us):
            raise BadValue("run", self.name, "cannot be saved at this moment: full lanes or busy "
                           "scripts hold some of its devices up", "Try again, or stop it.")
        with intake.lock:
            intake.flush()
            return self._make_result(driver.frontier_us)

    def panel(self, rate_hz: float | None = None) -> Any:
        """Return the widget that shows this run and steers it; always the same one.

        Parameters
        ----------
        rate_hz : float, optional
            How often it looks, 4 to 10 times a second; 5 if not given.
        """
        show = door("panel_run")
        return show(self) if rate_hz is None else show(self, rate_hz)

    def dashboard(self) -> Any:
        """Return the widget that shows this run to many eyes; always the same one.

        Overview, devices, telemetry, faults and alerts; `iotsim dashboard` serves it as a page.
        """
        return door("dashboard")(self)

    def here(self, question: Callable[[], T]) -> T:
        """Return what a function says on the run's loop, whoever asks."""
        return self._ask(question)

    @property
    def elapsed_us(self) -> int:
        """Simulated time since the start."""
        return self._elapsed_us()

    def _ask(self, question: Callable[[], T]) -> T:
        raise AssertionError("a run has its own")

    def _look(self, question: Callable[[], T], patience_s: float = 0.1) -> T:
        raise AssertionError("a run has its own")

    def _elapsed_us(self) -> int:
        raise AssertionError("a run has its own")

    def _make_result(self, end_us: int) -> Result:
        raise AssertionError("a run has its own")

    def _so_far(self) -> Result:
        raise AssertionError("a run has its own")
