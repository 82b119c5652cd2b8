"""The pace of a live run: it changes when things happen, never what happens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from iotsim.clock import Speed, check_speed
from iotsim.run_state import State, check_pace

if TYPE_CHECKING:
    from iotsim.fleet import Fleet
    from iotsim.works import Works


class RunPace:
    """The verbs that change the pace of a run; they may be called from any thread."""

    fleet: Fleet
    state: State
    _works: Works
    _early: list[Callable[[], None]]

    def pause(self) -> None:
        """Let simulated time stand still."""
        self._enter(self._pause)

    def resume(self) -> None:
        """Let simulated time go on."""
        self._enter(self._resume)

    def set_speed(self, speed: Speed) -> None:
        """Change the pace; never the content.

        Parameters
        ----------
        speed : float or "max"
            Simulated seconds per real second.
        """
        factor = check_speed(speed)
        check_pace(self.fleet, factor)
        self._enter(lambda: self._set_speed(factor))

    def _pause(self) -> None:
        if self.state == "connecting":
            self._early.append(self._pause)
        if self._works.driver is not None and self.state == "running":
            self._works.driver.clock.pause()
            self.state = "paused"
            self._log("pause", self._begun_us())
            self._works.driver.poke()

    def _resume(self) -> None:
        if self.state == "connecting":
            self._early.append(self._resume)
        if self._works.driver is not None and self.state == "paused":
            self._works.driver.clock.resume()
            self.state = "running"
            self._log("resume", self._begun_us())
            self._works.driver.poke()

    def _set_speed(self, factor: float) -> None:
        if self.state == "connecting":
            self._early.append(lambda: self._set_speed(factor))
        if self._works.driver is not None and self.state in ("running", "paused"):
            self._works.driver.clock.set_speed(factor)
            shown = "max" if math.isinf(factor) else factor
            self._log("speed", self._begun_us(), factor=shown)
            self._works.driver.poke()

    def _enter(self, action: Callable[[], None]) -> None:
        raise AssertionError("a run has its own")

    def _log(self, verb: str, at_us: int, **parameters: Any) -> None:
        raise AssertionError("a run has its own")

    def _begun_us(self) -> int:
        raise AssertionError("a run has its own")
