"""Runs by name: starting them, finding them again, one at a time for each fleet.

`start_run` begins one in the background of the running loop, `run` awaits one to its end. A run is
known by its fleet's name: starting an equal fleet again gives the same run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from iotsim.clock import Speed
from iotsim.errors import NameInUse, NoLoop
from iotsim.result import Result
from iotsim.run import Run
from iotsim.run_state import Wish, wish_of
from iotsim.units import Duration, Instant

if TYPE_CHECKING:
    from iotsim.fleet import Fleet
    from iotsim.scenario import Scenario



class Watch(Protocol):
    """Somebody who must know which runs there are: metrics, while they are served."""

    def begun(self, run: Run) -> None:
        """Take note of a run that begins."""

    def over(self, run: Run) -> None:
        """Take note of a run that is over, on its own loop."""


R = TypeVar("R", bound=Run)

WATCHES: list[Watch] = []
_LIVE: dict[str, Run] = {}


def start_run(
    fleet: Fleet, duration: Duration | None, *, speed: Speed, start: Instant | None, capture: Any,
    to: str | Path | None, replace: bool = False, backfill: Duration | None = None,
) -> Run:
    """Start a run in the background; see `Fleet.start`."""
    wish = wish_of(fleet, duration, speed, start, capture, to, backfill)
    return _start(wish, replace)


def start_scenario(
    scenario: Scenario, *, speed: Speed, start: Instant | None, capture: Any,
    to: str | Path | None, replace: bool = False,
) -> Run:
    """Start a scenario in the background; see `Scenario.start`."""
    wish = wish_of(scenario.fleet, None, speed, start, capture, to, scenario=scenario)
    wish.scenario_director()
    return _start(wish, replace)


def _start(wish: Wish, replace: bool) -> Run:
    fleet = wish.fleet
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise NoLoop("start()", f"asyncio.run({fleet.name}.run(...))") from None
    live = _LIVE.get(fleet.name)
    if live is not None and not live.ended:
        if live.is_on(loop) and live.is_wished(wish):
            return live
        if not replace:
            raise _in_use(live, wish)
        live.end_soon()
    return _begun(wish, Run)


Make = Callable[[Wish, Callable[[Run], None]], R]


def begin(wish: Wish, replace: bool, make: Make[R]) -> R:
    """Start a run of another kind in the background, unless another is live under its name."""
    live = live_of(wish.fleet.name)
    if live is not None:
        if not replace:
            raise _in_use(live, wish)
        live.end_soon()
    return _begun(wish, make)


def live_of(name: str) -> Run | None:
    """Return the run that is alive under a name."""
    live = _LIVE.get(name)
    return None if live is None or live.ended else live


def _begun(wish: Wish, make: Make[R]) -> R:
    run = make(wish, _forget)
    _LIVE[wish.fleet.name] = run
    for watch in WATCHES:
        watch.begun(run)
    return run


def _forget(run: Run) -> None:
    if _LIVE.get(run.name) is run:
        del _LIVE[run.name]
    for watch in tuple(WATCHES):
        watch.over(run)


async def run(
    fleet: Fleet, duration: Duration, *, speed: Speed, start: Instant | None, capture: Any,
    to: str | Path | None, backfill: Duration | None = None,
) -> Result:
    """Run to the end; see `Fleet.run`."""
    return await _run(wish_of(fleet, duration, speed, start, capture, to, backfill))


async def run_scenario(
    scenario: Scenario, *, speed: Speed, start: Instant | None, capture: Any,
    to: str | Path | None,
) -> Result:
    """Run a scenario to its end; see `Scenario.run`."""
    wish = wish_of(scenario.fleet, None, speed, start, capture, to, scenario=scenario)
    wish.scenario_director()
    return await _run(wish)


async def _run(wish: Wish) -> Result:
    fleet = wish.fleet
    live = _LIVE.get(fleet.name)
    if live is not None and not live.ended:
        raise _in_use(live, wish)
    mine = _begun(wish, Run)
    try:
        await mine.ready()
        return await mine.wait()
    except asyncio.CancelledError:
        await mine.stop()
        raise


def _in_use(live: Run, wish: Wish) -> NameInUse:
    # What is in the way: another fleet of that name, or something else on the same fleet.
    name = live.name
    if live.fleet.spec() != wish.fleet.spec():
        return NameInUse(name)
    if live.scenario is not None:
        return NameInUse(name, f"scenario {live.scenario.name!r} is already live, with a fleet")
    if wish.scenario is not None:
        return NameInUse(name, "the fleet is already live without a scenario,")
    return NameInUse(name, "a run is already live")


def runs() -> list[Run]:
    """Return the runs that are alive."""
    return [run for run in _LIVE.values() if not run.ended]
