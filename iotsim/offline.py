"""Running a fleet offline: as fast as the machine computes, without a loop or a thread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from iotsim.arrow import Writer
from iotsim.capture import Bound, Capture, common_kind
from iotsim.digest import Digest
from iotsim.engine.simulation import Simulation
from iotsim.errors import BadValue
from iotsim.progress import bar
from iotsim.result import Result
from iotsim.units import (
    DEFAULT_START,
    Duration,
    Instant,
    clock_text,
    duration_us,
    end_us_of,
    instant_us,
)

if TYPE_CHECKING:
    from iotsim.fleet import Fleet

WINDOW_ROWS = 1_000_000
WINDOW_US_MIN = 1_000_000
SCRIPT_ROWS = 200_000
SCRIPT_WINDOW_US = 1_000_000


def generate(
    fleet: Fleet,
    duration: Duration,
    *,
    start: Instant | None,
    to: str | Path | None,
    progress: bool | None,
) -> Result:
    """Return the result of running a fleet offline; see `Fleet.generate`."""
    duration_total_us = duration_us(duration)
    start_us = instant_us(DEFAULT_START if start is None else start)
    check_devices(fleet)
    end_us = end_us_of(start_us, duration_total_us)
    simulation = Simulation(fleet.members, fleet.seed, start_us)
    digests, capture = Digest(start_us), Capture(Bound())
    writer = None if to is None else Writer(to, simulation.groups, kinds_of(fleet))
    window = _Window(simulation, duration_total_us)
    title = f"{fleet.name} {clock_text(duration_total_us)}"
    try:
        with bar(title, duration_total_us / 1e6, progress) as shown:
            now_us = start_us
            while now_us < end_us:
                until_us = min(end_us, now_us + window.next_us())
                for readings in simulation.advance(until_us):
                    digests.add(readings)
                    if writer is None:
                        capture.add(readings)
                    else:
                        writer.add(readings)
                shown.update((until_us - now_us) / 1e6)
                now_us = until_us
        if writer is not None:
            writer.close()
    except BaseException:
        if writer is not None:
            writer.abandon()
        raise
    finally:
        simulation.close()
    return Result(
        fleet=fleet,
        start_us=start_us,
        end_us=end_us,
        groups=tuple(simulation.groups),
        capture=capture,
        digests=digests,
        errors=tuple(simulation.failures.kept),
        path=None if writer is None else writer.path,
    )


def check_devices(fleet: Fleet) -> None:
    """Raise if there is nobody to simulate."""
    if not fleet.members:
        raise BadValue("fleet", fleet.name, "has no devices", "Give it some: fleet.add('pump').")


def kinds_of(fleet: Fleet, device_type: str | None = None) -> dict[str, str]:
    """Return the kinds of the fields that the profiles of a fleet, or of one type, declare."""
    kinds: dict[str, str] = {}
    for member in fleet.members:
        if member.profile is not None and device_type in (None, member.type):
            for field in member.profile.fields:
                kinds[field.name] = common_kind(kinds.get(field.name, field.kind), field.kind)
    return kinds


class _Window:
    """How far to go at a time, so that rows come in handy numbers.

    Profiles say how many rows they give; for scripted devices the window grows and shrinks with
    what the last one gave.
    """

    def __init__(self, simulation: Simulation, duration_total_us: int) -> None:
        self._simulation = simulation
        self._script_us = min(duration_total_us, SCRIPT_WINDOW_US)
        rate_hz = simulation.rate_hz
        window_us = int(WINDOW_ROWS / rate_hz * 1e6) if rate_hz else duration_total_us
        # Whole intervals give the blocks whole rectangles.
        longest_us = max((block.profile.interval_us for block in simulation.blocks), default=1)
        whole_us = window_us // longest_us * longest_us or window_us
        self._block_us = max(WINDOW_US_MIN, whole_us)

    def next_us(self) -> int:
        """Return the length of the next window."""
        if not self._simulation.casts:
            return self._block_us
        rows = self._simulation.script_rows
        if rows > SCRIPT_ROWS:
            self._script_us = max(WINDOW_US_MIN, self._script_us // 2)
        elif rows < SCRIPT_ROWS // 4:
            self._script_us *= 2
        return min(self._script_us, self._block_us)
