"""What a run was asked for, and what it says of itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from iotsim.arrow import target
from iotsim.capture import Bound
from iotsim.clock import check_speed, wall_us
from iotsim.errors import BadValue
from iotsim.facts import facts_html
from iotsim.faults.parameters import flag
from iotsim.offline import check_devices
from iotsim.publishers.ledger import LedgerSnapshot
from iotsim.units import Duration, Instant, clock_text, duration_us, end_us_of, instant_us
from iotsim.verdict import VALID, brief

if TYPE_CHECKING:
    from iotsim.fleet import Fleet
    from iotsim.scenario import Scenario

_FIRST_US = instant_us("0001-01-01T00:00:00Z")

State: TypeAlias = Literal["connecting", "running", "paused", "stopping", "stopped", "failed"]


@dataclass(frozen=True, slots=True, repr=False)
class RunSnapshot:
    """A run at one moment.

    Attributes
    ----------
    state : str
    elapsed_us : int
        Simulated time since the start.
    speed : float
        Infinite at "max", and while history is filled in.
    devices, readings, late : int
        `late` readings were handed over more than 100 ms after their time.
    lateness_p99_s : float
        Real seconds from a reading's time to its hand-over; NaN at speed "max".
    captured, evicted : int
        Rows that the capture holds, and that fell out of its bound.
    errors : int
    publishers : mapping of address to LedgerSnapshot
    faults : mapping of name to int
        On how many devices each is active now.
    withheld : int
        Readings that never left their device's link.
    waiting : int
        Readings that have not left it yet.
    loop_lag_p99_s, loop_lag_max_s : float
        How late the event loop is, in real seconds; NaN before the first look.
    cores : float
        Processor time of this process in the last second.
    quality : str
        "valid" so far, or who was the bottleneck, from when to when, and why.
    """

    state: State
    elapsed_us: int
    speed: float
    devices: int
    readings: int
    late: int
    lateness_p99_s: float
    captured: int
    evicted: int
    errors: int
    publishers: Mapping[str, LedgerSnapshot]
    faults: Mapping[str, int] = field(default_factory=dict)
    withheld: int = 0
    waiting: int = 0
    loop_lag_p99_s: float = math.nan
    loop_lag_max_s: float = math.nan
    cores: float = 0.0
    quality: str = VALID

    def __repr__(self) -> str:
        return f"<RunSnapshot: {', '.join(text for _, text in facts_of(self, None))}>"

    def _repr_html_(self) -> str:
        return facts_html("RunSnapshot", facts_of(self, None))


@dataclass(frozen=True, slots=True)
class Wish:
    """What `run` and `start` were asked for, checked."""

    fleet: Fleet
    duration_total_us: int | None
    speed: float
    start_us: int | None
    bound: Bound
    to: Path | None
    backfill_us: int = 0
    scenario: Scenario | None = None
    thread: bool = False

    def scenario_director(self) -> None:
        """Raise now if the scenario cannot be led, rather than when the brokers are connected."""
        if self.scenario is not None:
            self.scenario.director(self.start_us or 0).close()

    @property
    def length_s(self) -> float:
        """How much simulated time it takes; 0 if that is not known."""
        of_scenario = None if self.scenario is None else self.scenario.end_us()
        total_us = self.duration_total_us or of_scenario
        return 0 if total_us is None else (total_us + self.backfill_us) / 1e6

    def same_as(self, other: Wish) -> bool:
        """Return whether both ask for the same run, wherever; the speed is only its pace."""
        return (self._content() == other._content() and self.bound == other.bound
                and self.to == other.to)

    def _content(self) -> tuple[Any, ...]:
        return (self.fleet.spec(), self.fleet.outlets, self.fleet.ears, self.duration_total_us,
                self.start_us, self.backfill_us, self.scenario)


def wish_of(
    fleet: Fleet, duration: Duration | None, speed: Any, start: Instant | None, capture: Any,
    to: str | Path | None, backfill: Duration | None = None, scenario: Scenario | None = None,
    *, thread: bool = False,
) -> Wish:
    """Return what was asked for.

    Raises
    ------
    IotsimError
        If the fleet is empty, or an argument cannot be.
    """
    if scenario is None:  # a scenario may bring its devices along
        check_devices(fleet)
    backfill_us = 0 if backfill is None else duration_us(backfill, "backfill")
    total_us = None if duration is None else duration_us(duration)
    start_us = None if start is None else instant_us(start)
    if total_us is not None and start_us is not None:
        end_us_of(start_us, total_us)
    check_pace(fleet, check_speed(speed))
    if (wall_us() if start_us is None else start_us) - backfill_us < _FIRST_US:
        raise BadValue("backfill", backfill, "goes back beyond the year 1, where no calendar here "
                       "begins", "Give less, or a later start.")
    return Wish(
        fleet=fleet,
        duration_total_us=total_us,
        speed=check_speed(speed),
        start_us=start_us,
        bound=Bound.of(capture),
        to=None if to is None else target("to", to, "x.parquet"),
        backfill_us=backfill_us,
        scenario=scenario,
        thread=flag("thread", thread),
    )


def check_pace(fleet: Fleet, speed: float) -> None:
    """Raise if commands are to come from outside in a time that leaves no room for them."""
    if fleet.ears and math.isinf(speed):
        raise BadValue("speed", "max", "leaves no time for commands to arrive: listen_to needs a "
                       "paced run", "Give a number such as 60, or take listen_to away.")


def facts_of(now: RunSnapshot, failure: Exception | None) -> Iterator[tuple[str, str]]:
    """Yield what a run says of itself, with a name for each fact."""
    pace = "max" if math.isinf(now.speed) else f"{now.speed:g}"
    yield "state", f"{now.state} ×{pace}"
    yield "time", clock_text(now.elapsed_us)
    yield "devices", f"{now.devices:,} devices"
    yield "readings", f"{now.readings:,} readings"
    for url, ledger in now.publishers.items():
        yield "publisher", f"{url}: {ledger.acknowledged:,} of {ledger.offered:,} acknowledged"
    for name, count in now.faults.items():
        yield "fault", f"{name} on {count:,}"
    if now.late:
        yield "late", f"{now.late:,} late"
    if now.quality != VALID:
        yield "quality", brief(now.quality)
    if failure is not None:
        yield "error", str(failure)
    elif now.state == "connecting":
        yield "next", "await run.ready() tells when it is connected"
    elif now.errors:
        yield "errors", f"{now.errors} errors"
