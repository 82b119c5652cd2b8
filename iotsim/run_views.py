"""What can be seen of a live run while it goes on: what its result would say by now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from iotsim.result import Result
from iotsim.units import Duration

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.scenario import Scenario


class RunViews:
    """The views of a run."""

    __slots__ = ()

    def events(
        self, event: Iterable[str] | str | None = None,
        device_id: Iterable[str] | str | None = None,
    ) -> pd.DataFrame:
        """Return what has happened so far; see `Result.events`."""
        return self._so_far().events(event, device_id)

    def commands(self) -> pd.DataFrame:
        """Return every command so far and what devices answered; see `Result.commands`."""
        return self._so_far().commands()

    def to_scenario(self) -> Scenario:
        """Return what was done so far as a scenario; see `Result.to_scenario`."""
        return self._so_far().to_scenario()

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

    def _so_far(self) -> Result:
        raise AssertionError("a run has its own")
