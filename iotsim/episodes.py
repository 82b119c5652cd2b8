"""What a judge sees in a second, and stretches of time in which somebody was the bottleneck."""

from __future__ import annotations

from dataclasses import dataclass, field

from iotsim.verdict import short_clock

LATE_S = 0.100
WHOLE_CORE = 0.9
SIMULATOR = ""
TOUCH_US = 50_000  # so little of a second is not shown as a whole one


@dataclass(slots=True, eq=False)
class Second:
    """What was seen in about a second of real time."""

    begin_s: float
    begin_us: int  # simulated, since the start
    end_s: float = 0.0
    end_us: int = 0
    rows: int = 0
    late: dict[str, int] = field(default_factory=dict)  # by culprit
    late_scripted: int = 0
    behind_s: dict[str, float] = field(default_factory=dict)  # the most, by culprit
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)  # from when to when, by culprit
    lag_s: float = 0.0
    own_s: float = 0.0  # the longest that the driver kept the loop to itself
    script_s: float = 0.0  # the longest that a scripted device did
    script: str = ""
    cores: float = 0.0
    held_s: dict[str, dict[str, float]] = field(default_factory=dict)  # by publisher and cause
    dropped: dict[str, int] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    slowed: set[str] = field(default_factory=set)
    waited_for: set[str] = field(default_factory=set)  # for over `HELD_S`
    unsent: set[str] = field(default_factory=set)  # whose messages wait for over `BEHIND_S`
    causes: dict[str, str] = field(default_factory=dict)  # of that
    acknowledged: dict[str, int] = field(default_factory=dict)
    wanted_hz: dict[str, float] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)  # culprits that it counts against

    def span(self, culprit: str, begin_us: int, end_us: int) -> None:
        """Take note of when something was late because of somebody."""
        first_us, last_us = self.spans.get(culprit, (begin_us, end_us))
        self.spans[culprit] = min(first_us, begin_us), max(last_us, end_us)


class Episode:
    """A stretch of time with one bottleneck, and what may have been the cause."""

    def __init__(self) -> None:
        self.begin_us, self.end_us = 2**62, 0
        self.end_s = 0.0
        self.late = self.late_scripted = self.dropped = self.acknowledged = self.retries = 0
        self.behind_s = self.lag_s = self.own_s = self.cores = self.seconds_s = 0.0
        self.script_s, self.script = 0.0, ""
        self.wanted_hz = 0.0
        self.slowed = False
        self.cause = ""
        self.held_s: dict[str, float] = {}

    def add(self, one: Second, culprit: str) -> None:
        """Take in another second."""
        begin_us, end_us = one.spans.get(culprit, (one.begin_us, one.end_us))
        self.begin_us, self.end_us = min(self.begin_us, begin_us), max(self.end_us, end_us)
        self.end_s = max(self.end_s, one.end_s)
        self.late += one.late.get(culprit, 0)
        self.late_scripted += one.late_scripted
        self.behind_s = max(self.behind_s, one.behind_s.get(culprit, 0.0))
        self.lag_s = max(self.lag_s, one.lag_s)
        self.own_s, self.cores = max(self.own_s, one.own_s), max(self.cores, one.cores)
        if one.script_s > self.script_s:
            self.script_s, self.script = one.script_s, one.script
        self.seconds_s += one.end_s - one.begin_s
        self.dropped += one.dropped.get(culprit, 0)
        self.acknowledged += one.acknowledged.get(culprit, 0)
        self.retries += one.retries.get(culprit, 0)
        self.wanted_hz = max(self.wanted_hz, one.wanted_hz.get(culprit, 0.0))
        self.slowed = self.slowed or culprit in one.slowed
        self.cause = self.cause or one.causes.get(culprit, "")
        for cause, seconds in one.held_s.get(culprit, {}).items():
            self.held_s[cause] = self.held_s.get(cause, 0.0) + seconds

    def when(self, end_us: int, *, ongoing: bool) -> str:
        """Return from when to when, in the run's own time, which ends at `end_us`."""
        begin = f"from {short_clock(min(self.begin_us, end_us))}"
        if ongoing:
            return begin
        last_us = -(-max(0, min(self.end_us, end_us) - TOUCH_US) // 1_000_000) * 1_000_000
        return f"{begin} to {short_clock(max(last_us, min(self.begin_us, end_us)))}"

    def simulator_why(self) -> str:
        """Return why the simulator could not keep up."""
        if self.script_s >= max(LATE_S, 0.5 * self.lag_s, self.own_s):
            return (f"a scripted device blocked the event loop for up to {_seconds(self.script_s)} "
                    f"(device {self.script!r}; does it call time.sleep(), or compute?)")
        others = self.lag_s > 2 * self.own_s and self.lag_s >= max(LATE_S, 0.5 * self.behind_s)
        if others:
            who = ("another cell computing?" if self.cores >= 0.5 else
                   "a blocking call in another cell, or a machine busy with something else?")
            return f"the event loop was blocked for up to {_seconds(self.lag_s)} ({who})"
        behind = f"{_seconds(self.behind_s)} behind"
        if self.cores >= WHOLE_CORE:
            return f"it used a whole core ({self.cores:.0%}) and was {behind}"
        if self.late_scripted > self.late / 2:
            return f"its scripted devices were up to {behind} (do they wait for something real?)"
        return (f"it was up to {behind} at {self.cores:.0%} of a core (is the machine busy with "
                "something else?)")

    def publisher_why(self) -> str:
        """Return what a publisher's queue was like."""
        said: list[str] = []
        full_s = sum(self.held_s.values())
        if full_s:
            causes = sorted(self.held_s, key=lambda cause: -self.held_s[cause])
            known = [cause for cause in causes if cause][:2]
            why = f" ({' and '.join(known)})" if known else ""
            said.append(f"its queue was full for {_seconds(full_s)}{why}")
        if self.dropped:
            said.append(f"{self.dropped:,} readings were dropped from its full queue")
        if self.slowed:
            said.append("its devices were slowed down")
        if self.acknowledged and self.seconds_s:
            said.append(self._rate())
        if self.behind_s:
            why = f" ({self.cause})" if self.cause and not full_s else ""
            said.append(f"it was up to {_seconds(self.behind_s)} behind{why}")
        if self.retries:
            said.append(f"{self.retries:,} messages were sent again")
        return ", ".join(said) or f"{self.late:,} readings were late after its queue had been full"

    def _rate(self) -> str:
        # Of real seconds: a broker knows no others.
        taken_hz = self.acknowledged / self.seconds_s
        told = f"it took about {taken_hz:,.0f}/s"
        short = taken_hz < self.wanted_hz
        return f"{told} of the {self.wanted_hz:,.0f}/s that its devices make" if short else told


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{max(seconds, 0.1):.1f} s"
