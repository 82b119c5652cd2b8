"""Runs by name: starting them, finding them again, one at a time for each fleet.

`start_run` begins one in the background of the running loop, or on a loop of its own; `run` awaits
one to its end. A run is known by its fleet's name: starting an equal fleet again gives the same
run.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from iotsim.clock import Speed
from iotsim.errors import NameInUse, NoLoop
from iotsim.own_loop import OwnLoop
from iotsim.progress import following
from iotsim.result import Result
from iotsim.run import Run
from iotsim.run_list import Runs, end_interrupted, interrupted
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
_ALIVE: list[Run] = []  # in the order in which they began; one that is replaced may still end
_STARTING = threading.RLock()  # two threads may want the same name


def start_run(
    fleet: Fleet, duration: Duration | None, *, speed: Speed, start: Instant | None, capture: Any,
    to: str | Path | None, replace: bool = False, backfill: Duration | None = None,
    thread: bool = False,
) -> Run:
    """Start a run in the background; see `Fleet.start`."""
    wish = wish_of(fleet, duration, speed, start, capture, to, backfill, thread=thread)
    return start_wish(wish, replace)


def start_scenario(
    scenario: Scenario, *, speed: Speed, start: Instant | None, capture: Any,
    to: str | Path | None, replace: bool = False, thread: bool = False,
) -> Run:
    """Start a scenario in the background; see `Scenario.start`."""
    wish = wish_of(scenario.fleet, None, speed, start, capture, to, scenario=scenario,
                   thread=thread)
    wish.scenario_director()
    return start_wish(wish, replace)


def start_wish(wish: Wish, replace: bool = False) -> Run:
    """Start what was asked for in the background, or return the run that is that already.

    Raises
    ------
    NoLoop
        If no event loop runs here, and none of its own is asked for.
    NameInUse
        If something else is live under the name.
    """
    name = wish.fleet.name
    if not wish.thread:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise NoLoop("start()", f"asyncio.run({name}.run(...))` or `{name}.start(thread=True)"
                         ) from None
    with _STARTING:
        live = live_of(name)
        if live is not None and not live.leaving:  # what is about to end is nobody's wish
            if _is_here(live, wish) and live.is_wished(wish):
                return live
            if not replace:
                raise _in_use(live, wish)
            live.end_soon()
        return _begun_apart(wish) if wish.thread else _begun(wish, Run)


def _is_here(live: Run, wish: Wish) -> bool:
    # On the loop that is asked for: one of its own, or the caller's.
    if wish.thread or live.has_own_loop:
        return wish.thread and live.has_own_loop
    return live.is_on(asyncio.get_running_loop())


Make = Callable[[Wish, Callable[[Run], None]], R]


def begin(wish: Wish, replace: bool, make: Make[R]) -> R:
    """Start a run of another kind in the background, unless another is live under its name."""
    with _STARTING:
        live = live_of(wish.fleet.name)
        if live is not None:
            if not replace:
                raise _in_use(live, wish)
            live.end_soon()
        return _begun(wish, make)


def live_of(name: str) -> Run | None:
    """Return the run that is alive under a name, the latest of them."""
    return next((run for run in reversed(runs()) if run.name == name), None)


def _begun(wish: Wish, make: Make[R]) -> R:
    run = make(wish, _forget)
    _ALIVE[:] = [one for one in tuple(_ALIVE) if not one.ended]  # also those whose loop was closed
    _ALIVE.append(run)
    for watch in tuple(WATCHES):
        watch.begun(run)
    return run


def _begun_apart(wish: Wish) -> Run:
    # Made on its own loop, before anything can happen there.
    home = OwnLoop(f"iotsim run {wish.fleet.name}")

    def make() -> Run:
        run = _begun(wish, partial(Run, home=home))
        run.at_end(home.leave)
        return run

    answer = home.ask(make)
    assert answer is not None, "nobody has left it yet"
    try:
        run = answer.result()
    except BaseException:
        home.leave()
        raise
    home.at_exit = run.end_soon
    return run


def _forget(run: Run) -> None:
    with suppress(ValueError):  # its loop was taken for closed
        _ALIVE.remove(run)
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
    with _STARTING:
        live = live_of(wish.fleet.name)
        if live is not None:
            raise _in_use(live, wish)
        mine = _begun(wish, Run)
    try:
        await mine.ready()
        async with following(mine.name, wish.length_s, lambda: mine.snapshot().elapsed_us / 1e6):
            return await mine.wait()
    except asyncio.CancelledError as error:
        await end_interrupted(mine, error)
        raise


def _in_use(live: Run, wish: Wish) -> NameInUse:
    # What is in the way: another fleet of that name, or something else on the same fleet.
    name = live.name
    if live.fleet.spec() != wish.fleet.spec():
        return NameInUse(name)
    if live.scenario is not None and live.scenario != wish.scenario:
        return NameInUse(name, f"scenario {live.scenario.name!r} is already live, with a fleet")
    if wish.scenario is not None and live.scenario is None:
        return NameInUse(name, "the fleet is already live without a scenario,")
    if live.has_own_loop != wish.thread:
        given = "with" if live.has_own_loop else "without"
        return NameInUse(name, f"a run is already live, {given} thread=True,")
    return NameInUse(name, "a run is already live")


def runs(*, ended: bool = False) -> Runs:
    """Return the runs that are alive; `await iotsim.runs().stop()` ends them all.

    Parameters
    ----------
    ended : bool
        Instead, the run that an interrupt ended last, with what it had: one is kept, no more.
    """
    if ended:
        return interrupted()
    return Runs(run for run in tuple(_ALIVE) if not run.ended)
