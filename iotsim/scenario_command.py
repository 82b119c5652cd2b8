"""`iotsim scenario`: a scenario from the command line, as a test that passes or fails."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from iotsim.clock import Speed, check_speed
from iotsim.errors import BadValue
from iotsim.junit import target_of, write, write_error
from iotsim.scenario_files import load, shipped

if TYPE_CHECKING:
    from iotsim.result import Result


def listed(say: Callable[[str], None]) -> int:
    """Say which scenarios come with iotsim; returns the exit status."""
    found = shipped()
    width = max((len(one.name) for one in found), default=0)
    for one in found:
        say(f"{one.name:<{width}}  {one.summary}")
    return 0


def played(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Run a scenario and say what happened; returns the exit status."""
    name = Path(arguments.source).stem or "scenario"
    if arguments.junit is None:
        return _played(arguments, say)
    target_of(arguments.junit, name)  # where no report can be, nothing is run for it
    try:
        return _played(arguments, say)
    except Exception as error:
        say(f"report {write_error(arguments.junit, name, error)}")
        raise


def _played(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    speed = speed_of(arguments.speed)
    if arguments.offline and arguments.publish is not None:
        raise BadValue("publish", arguments.publish, "needs a live run",
                       "Leave --offline out; --speed max does not wait either.")
    scenario = load(arguments.source)
    if arguments.seed is not None:
        scenario = scenario.with_seed(arguments.seed)
    if arguments.publish is not None:
        scenario = scenario.publish_to(arguments.publish)
    say(f"{scenario!r}, seed {scenario.fleet.seed}")
    if arguments.offline:
        result = scenario.generate(to=arguments.to)
    else:
        result = asyncio.run(scenario.run(speed=speed, to=arguments.to))
    _report(result, say)
    if arguments.save is not None:
        say(f"saved {result.save(arguments.save)}")
    if arguments.junit is not None:
        say(f"report {write(arguments.junit, scenario.name, result)}")
    return 0 if result.passed else 1


def _report(result: Result, say: Callable[[str], None]) -> None:
    told = [(action.at_us, 0, str(action)) for action in result.actions]
    told += [(one.at_us, 1, str(one)) for one in result.expectations]
    for _, _, line in sorted(told, key=lambda entry: entry[:2]):
        say(line)
    for error in result.errors:
        say(f"error: {error}")
    statuses = [one.status for one in result.expectations]
    say(f"{statuses.count('passed')} of {len(statuses)} passed, {statuses.count('failed')} failed, "
        f"{statuses.count('not evaluated')} not evaluated")
    say(f"{result.rows:,} readings, digest {result.digest}")


def speed_of(text: str) -> Speed:
    """Return the pace that a command line asks for."""
    if text == "max":
        return "max"
    try:
        speed = float(text)
    except ValueError:
        raise BadValue("speed", text, "is not a speed",
                       "Give a factor of real time, such as 60, or max.") from None
    check_speed(speed)
    return speed
