"""Whether a run was valid, or who was the bottleneck, from when to when, and why.

A reading is late if it is handed over more than `LATE_S` after its time. If its lane was full when
it was due, or has not been free long enough since to catch up, its publisher is to blame; otherwise
the simulator is. Being late is what counts; loop lag, processor time and full queues say why.

| rule | who | what makes a bottleneck |
|---|---|---|
| fast | both | over 5 % of the readings of 5 s are late: a pause of 0.35 s, not one of 0.3 s |
| slow | both | over 1 % of the readings of 60 s are late: their p99 is over `LATE_S` |
| blocked | simulator | the event loop stood still for 1 s: latencies are then the simulator's |
| full | publisher | its full queue dropped readings, made devices publish less, or holds some up |
|  |  | that are 0.35 s late by now |
| behind | publisher | what waits for its verdict was handed over more than 2 s ago; it is the |
|  |  | simulator's doing where that uses a whole core |

A garbage collection or a `frame()` in between spoils nothing, a loop that is slow for a minute
does. At speed "max", and while history is filled in, pace does not matter: such a run is valid.
Times are the run's own; rates and delays are in real seconds.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from iotsim.arrears import Arrears
from iotsim.clock import PacedClock, cpu_s, monotonic
from iotsim.episodes import LATE_S, SIMULATOR, WHOLE_CORE, Episode, Second
from iotsim.feeders import Feeder, Switchboard, Way
from iotsim.loop_lag import LoopLag
from iotsim.publishers.ledger import LedgerSnapshot
from iotsim.readings import Ints, Readings
from iotsim.verdict import BECAUSE, NAMELY, VALID

RULES = ((5.0, 0.05), (60.0, 0.01))  # seconds looked back at, share of readings that may be late
BLOCKED_S = 1.0
HELD_S = 0.35
APART_S = 5.0  # bad times that are closer are one
BEHIND_S = 2.0
EPISODES_MAX = 100  # of one culprit; what comes then lengthens the last
OLDEST_DROPPED = "queue full, oldest dropped"


class Judge:
    """Watches a live run; `quality` is what it has come to.

    Parameters
    ----------
    clock : PacedClock
    board : Switchboard
    start_us : int

    Attributes
    ----------
    lag : LoopLag
    cores : float
        How much processor time this process used in the last whole second, in cores.
    each_second : callable (), optional
        Whoever wants to look about once a second, too.
    wanted_hz : callable (way) -> float, optional
        How many readings a second of real time the devices of a way are to make.
    scripts : callable () -> (seconds, name), optional
        Which scripted device has kept the loop to itself for longest since the last call.
    """

    def __init__(self, clock: PacedClock, board: Switchboard, start_us: int) -> None:
        self.lag = LoopLag(self._beat)
        self.cores = 0.0
        self.each_second: Callable[[], None] | None = None
        self.wanted_hz: Callable[[Way], float] | None = None
        self.scripts: Callable[[], tuple[float, str]] | None = None
        self._clock, self._board, self._start_us = clock, board, start_us
        self._now = Second(monotonic(), 0)
        self._cpu_s = cpu_s()
        self._beat_s = self._now.begin_s
        self._seconds: deque[Second] = deque()
        self._episodes: dict[str, list[Episode]] = {}
        self._stuck: set[Feeder] = set()
        # From when to when a lane was full; None stands for scripts that wait for each other.
        self._holds: dict[Feeder | None, tuple[int, int]] = {}
        self._seen: dict[str, tuple[int, int, int]] = {}  # acknowledged, dropped, retries
        self._arrears: dict[str, Arrears] = {}
        self._history = False  # whether something was handed over while pace did not matter
        self._fair_s = 0.0  # real time without that in which the loop stood still
        self._judging = False
        self._end_us = 2**62

    def begin(self) -> None:
        """Watch from now on."""
        self._open(monotonic())
        self._judging, self._history = True, self._clock.virtual
        self.lag.begin()

    def end(self, end_us: int) -> None:
        """Come to the verdict on a run that ended there; what happens from now on does not count.

        Parameters
        ----------
        end_us : int
            Simulated time since the start; what is late is handed over after that.
        """
        self.ending(end_us)
        if self._judging:
            self._close(monotonic())
            self._judging = False
        self.lag.end()

    def ending(self, end_us: int) -> None:
        """Take note where the run ends; that its messages arrive is still watched."""
        self._end_us = end_us

    # -- what the driver tells ------------------------------------------------------------------

    def stuck(
        self, feeders: Iterable[Feeder], behind_us: int = 0, *, linked: bool = False
    ) -> None:
        """Take note that devices wait, and that some of these lanes may be why.

        Parameters
        ----------
        feeders : iterable of Feeder
        behind_us : int
            How late the devices are in simulated time; 0: as long as the lane has been full.
        linked : bool
            Whether all scripted devices wait, because they may depend on each other.
        """
        now_us = self._clock.now_us()
        for feeder in feeders:
            if feeder.stuck:
                self._stuck.add(feeder)
                self._hold(feeder, now_us)
                first_us, last_us = self._holds[feeder]
                late_us = behind_us or last_us - first_us
                if late_us > HELD_S * self._clock.speed * 1e6:
                    url = feeder.pump.url
                    self._now.waited_for.add(url)
                    self._now.span(url, first_us - self._start_us, last_us - self._start_us)
                if linked:
                    self._hold(None, now_us)

    def _hold(self, key: Feeder | None, now_us: int) -> None:
        first_us, last_us = self._holds.get(key, (now_us, now_us))
        if now_us - last_us > self._clock.speed * 1e6:
            first_us = now_us
        self._holds[key] = (first_us, now_us)

    def stepped(self, seconds: float) -> None:
        """Take note of how long the driver kept the loop to itself."""
        self._now.own_s = max(self._now.own_s, seconds)

    def handed(self, readings: Readings, due_us: Ints, late_s: npt.NDArray[np.float64],
               *, scripted: bool) -> int:
        """Take note of readings that are handed over; return how many are late.

        Parameters
        ----------
        readings : Readings
        due_us : int64 array
            When they were due, in simulated time.
        late_s : float array
            How late each is, in real seconds.
        """
        self._now.rows += len(readings)
        late = np.flatnonzero(late_s > LATE_S)
        if len(late):
            mine = late[self._blame(readings, late, due_us[late], scripted)]
            if len(mine):
                self._count(SIMULATOR, due_us[mine])
                self._now.late_scripted += len(mine) if scripted else 0
                self._now.behind_s[SIMULATOR] = max(
                    self._now.behind_s.get(SIMULATOR, 0.0), float(late_s[mine].max()))
        return len(late)

    def _blame(
        self, readings: Readings, rows: Ints, due_us: Ints, scripted: bool
    ) -> npt.NDArray[np.bool_]:
        # Counts what full lanes held up against their publishers; True for what is left.
        left = np.ones(len(rows), dtype=np.bool_)
        if not self._holds:
            return left
        if scripted and None in self._holds:
            left &= due_us > self._excused_until_us(None)
        for way in self._board.ways:
            lanes = way.groups.get(readings.group.index)
            if lanes is None:
                continue
            places = lanes[readings.device[rows]]
            for lane in np.unique(places[places >= 0]).tolist():
                feeder = way.feeders[lane]
                if feeder in self._holds:
                    held = left & (places == lane) & (due_us <= self._excused_until_us(feeder))
                    self._count(way.pump.url, due_us[held])
                    left &= ~held
        return left

    def _excused_until_us(self, key: Feeder | None) -> int:
        # Who was held up has as long again, and a second, to catch up.
        first_us, last_us = self._holds[key]
        return 2 * last_us - first_us + int(self._clock.speed * 1e6)

    def _count(self, culprit: str, due_us: Ints) -> None:
        if len(due_us):
            self._now.late[culprit] = self._now.late.get(culprit, 0) + len(due_us)
            self._now.span(culprit, int(due_us.min()) - self._start_us, self._elapsed_us())

    # -- every 50 ms, and every second ----------------------------------------------------------

    def _beat(self, now_s: float, lag_s: float) -> None:
        elapsed_s, self._beat_s = now_s - self._beat_s, now_s
        if not self._clock.paused:
            self._now.lag_s = max(self._now.lag_s, lag_s)
            if lag_s >= BLOCKED_S:
                now_us = self._elapsed_us()
                self._now.span(SIMULATOR, now_us - int(lag_s * self._clock.speed * 1e6), now_us)
            self._fair_s += max(0.0, elapsed_s - lag_s)
        self._stuck = {feeder for feeder in self._stuck if feeder.stuck}
        seen: set[str] = set()
        for feeder in self._stuck:
            url = feeder.pump.url
            if url not in seen:
                seen.add(url)
                causes = self._now.held_s.setdefault(url, {})
                cause = feeder.pump.stall(feeder.lane)
                causes[cause] = causes.get(cause, 0.0) + elapsed_s
        if now_s - self._now.begin_s >= 1.0:
            self._close(now_s)
            self._open(now_s)
            if self.each_second is not None:
                self.each_second()

    def _open(self, now_s: float) -> None:
        self._now = Second(now_s, self._elapsed_us())
        self._cpu_s = cpu_s()
        self._beat_s = now_s

    def _elapsed_us(self) -> int:
        return max(0, self._clock.now_us() - self._start_us)

    def _close(self, now_s: float) -> None:
        one = self._now
        one.end_s, one.end_us = now_s, self._elapsed_us()
        self.cores = one.cores = (cpu_s() - self._cpu_s) / max(now_s - one.begin_s, 1e-3)
        self._look_at_publishers(one)
        if self._clock.virtual:
            self._seconds.clear()
            self._arrears.clear()
            self._history = True
            return
        if self.scripts is not None:
            one.script_s, one.script = self.scripts()
        self._seconds.append(one)
        while self._seconds[0].end_s < now_s - RULES[-1][0]:
            self._seconds.popleft()
        self._judge(one)

    def _look_at_publishers(self, one: Second) -> None:
        for way in self._board.ways:
            now = way.pump.snapshot()
            taken, dropped, retries = self._seen.get(way.pump.run_id, (0, 0, 0))
            gone = now.drops.get(OLDEST_DROPPED, 0)
            self._seen[way.pump.run_id] = now.acknowledged, gone, now.retries
            url = way.pump.url
            for counts, more in ((one.acknowledged, now.acknowledged - taken),
                                 (one.dropped, gone - dropped),
                                 (one.retries, now.retries - retries)):
                if more > 0:
                    counts[url] = counts.get(url, 0) + more
            if way.slowed:
                one.slowed.add(url)
            if not self._clock.virtual and not self._clock.paused:
                self._look_at_arrears(one, way, now)

    def _look_at_arrears(self, one: Second, way: Way, now: LedgerSnapshot) -> None:
        # What is handed over in time may still wait for its broker.
        settled = now.acknowledged + now.refused + now.dropped
        handed = now.offered + sum(feeder.waiting for feeder in way.feeders)
        arrears = self._arrears.setdefault(
            way.pump.run_id, Arrears(handed if self._history else 0))
        age_s, since_us = arrears.look(self._fair_s, one.end_us, handed, settled)
        if age_s < BEHIND_S:
            return
        # A loop that is ours alone and full has no time for what brokers say.
        name = SIMULATOR if one.cores >= WHOLE_CORE else way.pump.url
        one.behind_s[name] = max(one.behind_s.get(name, 0.0), age_s)
        one.span(name, since_us, one.end_us)
        one.unsent.add(name)
        causes = Counter(way.pump.stall(lane) for lane in range(way.pump.lanes))
        causes.pop("", None)
        if causes:
            one.causes.setdefault(name, causes.most_common(1)[0][0])

    def _judge(self, newest: Second) -> None:
        culprits = {name for one in self._seconds for name in one.late}
        for name in sorted(culprits):
            for window_s, share in RULES:
                seconds = [one for one in self._seconds if one.end_s > newest.end_s - window_s]
                self._apply(name, seconds, window_s, share)
        if newest.lag_s >= BLOCKED_S:
            self._tell(SIMULATOR, newest)
        for name in sorted({*newest.dropped, *newest.slowed, *newest.waited_for, *newest.unsent}):
            self._tell(name, newest)

    def _apply(
        self, name: str, seconds: list[Second], window_s: float, share: float
    ) -> None:
        rows = sum(one.rows for one in seconds)
        lasted_s = sum(one.end_s - one.begin_s for one in seconds)
        # A run that is shorter is judged as if it had gone on as it was, and in time.
        rows_whole = rows * max(1.0, window_s / max(lasted_s, 1e-3))
        if sum(one.late.get(name, 0) for one in seconds) > share * rows_whole:
            for one in seconds:
                if name in one.late:
                    self._tell(name, one)

    def _tell(self, name: str, one: Second) -> None:
        if name in one.told:
            return
        one.told.add(name)
        if self.wanted_hz is not None and name != SIMULATOR:
            one.wanted_hz[name] = sum(self.wanted_hz(way) for way in self._board.ways
                                      if way.pump.url == name)
        known = self._episodes.setdefault(name, [])
        near = known and (abs(one.begin_s - known[-1].end_s) <= APART_S
                          or one.begin_s < known[-1].end_s)
        if not near and len(known) < EPISODES_MAX:
            known.append(Episode())
        known[-1].add(one, name)

    # -- the verdict ----------------------------------------------------------------------------

    @property
    def quality(self) -> str:
        """What it has come to so far: "valid", or who was the bottleneck, when and why."""
        said = [self._verdict(name, known) for name, known in sorted(self._episodes.items())]
        more = f"; and {len(said) - 3} more publishers" if len(said) > 3 else ""
        return "; ".join(said[:3]) + more if said else VALID

    def _verdict(self, name: str, known: list[Episode]) -> str:
        worst = max(known, key=lambda one: (one.late + one.dropped, one.seconds_s))
        ongoing = self._judging and monotonic() - worst.end_s < APART_S
        when = worst.when(self._end_us, ongoing=ongoing)
        times = len(known) - 1
        more = f" (and {times} more time{'s' if times > 1 else ''})" if times else ""
        if name == SIMULATOR:
            why = BECAUSE + worst.simulator_why()
            return f"the simulator was the bottleneck {when}{why}{more}"
        return f"{name} was the bottleneck {when}{NAMELY}{worst.publisher_why()}{more}"
