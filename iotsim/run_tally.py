"""What metrics say of one run, by device type; counted only while somebody serves metrics.

Verdicts come with message ids. They are gathered, and only once in thousands looked up: whose
device it was decides the type, so the counts are exact, whatever shares a publisher.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from iotsim.acks import ACKNOWLEDGED, UNKNOWN
from iotsim.errors import DeviceFailed
from iotsim.publishers.lane_settings import DROPPED
from iotsim.publishers.ledger import STATES
from iotsim.verbs import BACK_PRESSURE

if TYPE_CHECKING:
    from iotsim.driver import Driver
    from iotsim.feeders import Way
    from iotsim.gateway.run import GatewayRun
    from iotsim.gateway.tally import GatewayTally
    from iotsim.run import Run
    from iotsim.works import Works

Counts: TypeAlias = dict[tuple[str, ...], float]

TYPES_MAX = 100  # what comes after them is one type, "other"
OTHER = "other"
GATHERED = 4096
LATENCY_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


@dataclass(frozen=True, slots=True)
class Buckets:
    """How many values are within each bound and not the one before, and the sum of all."""

    counts: Sequence[int]
    sum: float


@dataclass(slots=True)
class Totals:
    """What a run has come to: counts by labels, under the names that metrics have."""

    counts: dict[str, Counts] = field(default_factory=dict)
    latencies: dict[tuple[str, ...], Buckets] = field(default_factory=dict)
    batches: Buckets = field(default_factory=lambda: Buckets((), 0.0))


class RunTally:
    """Counts what happens in a run from now on.

    Parameters
    ----------
    run : Run
    """

    def __init__(self, run: Run) -> None:
        self.name = run.name
        self._run: Run | None = run
        self._lock = threading.Lock()  # a scrape reads in another thread if the loop is blocked
        self._last = Totals()
        self._sent: Counter[tuple[str, ...]] = Counter()
        self._dropped: Counter[tuple[str, ...]] = Counter()
        self._slowed: Counter[tuple[str, ...]] = Counter()
        self._injected: Counter[tuple[str, ...]] = Counter()
        self._errors: Counter[tuple[str, ...]] = Counter()
        self._bins: dict[tuple[str, ...], npt.NDArray[np.int64]] = {}
        self._sums: Counts = {}
        self._gathered: dict[int, tuple[list[str], list[float]]] = {}
        self._types: list[str] = []
        self._codes: dict[str, int] = {}
        self._kinds: dict[str, int] = {}  # by run/device
        self._devices = self._windows = self._failures = self._failed = 0
        self._gateways = _of_gateways(run)
        run.works.acks.watchers.append(self._verdict)

    def close(self) -> None:
        """Count no more."""
        if self._run is not None:
            watchers = self._run.works.acks.watchers
            if self._verdict in watchers:
                watchers.remove(self._verdict)
        if self._gateways is not None:
            self._gateways.close()

    def finish(self) -> None:
        """Keep what it has come to, and let go of the run, which is over."""
        with suppress(Exception):  # a run must end, whatever counting it comes to
            self.read()
        self.close()
        for name in ("devices_active", "faults_active", "queue_depth"):
            self._last.counts[name] = dict.fromkeys(self._last.counts.get(name, ()), 0)
        self._last.counts["tasks_active"] = {(): 0}
        if self._gateways is not None:
            self._last.counts |= self._gateways.finish()
        self._run = None

    def read(self) -> Totals:
        """Return what it has come to; on the run's loop, or while that is blocked."""
        run = self._run
        if run is None:
            return self._last
        with self._lock:
            for publisher in list(self._gathered):
                self._fold(publisher)
            works = run.works
            if works.driver is not None:
                self._look_at_windows(works.driver)
            self._look_at_failures(works)
            self._last = Totals(self._counts(run, works), self._latencies(), _batches(works))
        return self._last

    # -- verdicts -------------------------------------------------------------------------------

    def _verdict(
        self, ids: Sequence[str], outcome: str, seconds: Sequence[float], publisher: int
    ) -> None:
        if outcome == UNKNOWN:  # so far; the last word follows
            return
        with self._lock:
            if outcome == ACKNOWLEDGED:
                names, taken = self._gathered.setdefault(publisher, ([], []))
                names.extend(ids)
                taken.extend(seconds)
                if len(names) >= GATHERED:
                    self._fold(publisher)
            else:
                self._count_unsent(ids, outcome, publisher)

    def _count_unsent(self, ids: Sequence[str], outcome: str, publisher: int) -> None:
        protocol = self._ways[publisher].route.outlet.protocol
        counts = np.bincount(self._kinds_of(publisher, ids)).tolist()
        for name, count in zip(self._types, counts, strict=False):
            if count and outcome == DROPPED:
                self._dropped[(name,)] += count
            elif count:
                self._sent[name, protocol, "error"] += count
                self._errors[name, "publish_error"] += count

    def _fold(self, publisher: int) -> None:
        ids, seconds = self._gathered.pop(publisher)
        protocol = self._ways[publisher].route.outlet.protocol
        kinds, width = self._kinds_of(publisher, ids), len(LATENCY_BOUNDS_S) + 1
        taken = np.array(seconds)
        places = kinds * width + np.searchsorted(LATENCY_BOUNDS_S, taken)
        bins = np.bincount(places, minlength=len(self._types) * width).reshape(-1, width)
        sums = np.bincount(kinds, weights=taken, minlength=len(self._types)).tolist()
        for code, name in enumerate(self._types):
            count = int(bins[code].sum())
            if count:
                key = name, protocol
                self._sent[*key, "ok"] += count
                self._bins[key] = bins[code] + self._bins.get(key, np.zeros(width, np.int64))
                self._sums[key] = self._sums.get(key, 0.0) + sums[code]

    @property
    def _ways(self) -> list[Way]:
        assert self._run is not None
        return self._run.works.ways

    def _kinds_of(self, publisher: int, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        # Which type each message is of; nobody is looked up where all are of one.
        assert self._run is not None
        driver = self._run.works.driver
        if driver is None:
            return np.zeros(len(ids), dtype=np.int64)
        groups = driver.simulation.groups
        types = {groups[index].device_type for index in self._ways[publisher].groups}
        if len(types) == 1:
            return np.full(len(ids), self._code(types.pop()), dtype=np.int64)
        owners = [ident.rsplit("/", 2)[0] for ident in ids]
        if not self._kinds.keys() >= set(owners):
            self._learn(driver)
        return np.array([self._kinds[owner] for owner in owners], dtype=np.int64)

    def _learn(self, driver: Driver) -> None:
        assert self._run is not None
        people, run_id = driver.simulation.population, self._run.works.run_id
        homes = people.home.tolist()
        for slot in range(self._devices, len(people)):
            code = self._code(people.groups[homes[slot]].device_type)
            self._kinds[f"{run_id}/{people.ids[slot]}"] = code
        self._devices = len(people)

    def _code(self, device_type: str) -> int:
        if device_type not in self._codes:
            full = len(self._types) >= TYPES_MAX
            if not full or OTHER not in self._types:
                self._types.append(OTHER if full else device_type)
            self._codes[device_type] = (self._types.index(OTHER) if full
                                        else len(self._types) - 1)
        return self._codes[device_type]

    def _type(self, device_type: str) -> str:
        return self._types[self._code(device_type)]

    # -- what is done, and what fails -----------------------------------------------------------

    def _look_at_windows(self, driver: Driver) -> None:
        windows, people = driver.simulation.deeds.windows, driver.simulation.population
        for window in windows[self._windows :]:
            if window.by != BACK_PRESSURE:
                self._injected[(window.name,)] += 1
                continue
            homes = np.bincount(people.home[window.slots]).tolist()
            for group, count in zip(people.groups, homes, strict=False):
                if count:
                    self._slowed[(self._type(group.device_type),)] += count
        self._windows = len(windows)

    def _look_at_failures(self, works: Works) -> None:
        failures = works.failures
        kept, count = failures.kept[self._failures :], failures.count
        for error in kept:
            if isinstance(error, DeviceFailed):
                self._errors[self._type_of_device(works, error.device_id), "device_failed"] += 1
            else:
                self._errors[OTHER, "run_error"] += 1
        missed = count - self._failed - len(kept)
        if missed > 0:  # too many to be kept
            self._errors[OTHER, "device_failed"] += missed
        self._failures, self._failed = len(failures.kept), count

    def _type_of_device(self, works: Works, device_id: str) -> str:
        if works.driver is None:
            return OTHER
        self._learn(works.driver)
        code = self._kinds.get(f"{works.run_id}/{device_id}")
        return OTHER if code is None else self._types[code]

    # -- what it is now -------------------------------------------------------------------------

    def _counts(self, run: Run, works: Works) -> dict[str, Counts]:
        now = run.snapshot()
        ledgers = self._ledger_totals()
        queued: Counter[tuple[str, ...]] = Counter()
        for (protocol, state), count in ledgers.items():
            queued[(protocol,)] += count if state == "queued" else 0
        for way in self._ways:
            waiting = sum(feeder.rows for feeder in way.feeders)
            queued[(way.route.outlet.protocol,)] += waiting
        try:
            tasks = len(asyncio.all_tasks(run.loop))
        except RuntimeError:  # they change meanwhile, in another thread
            tasks = int(self._last.counts.get("tasks_active", {}).get((), 0))
        return {
            "devices_active": self._alive(run, works),
            "messages_sent": dict(self._sent),
            "device_errors": dict(self._errors),
            "backpressure_drops": dict(self._dropped),
            "backpressure_slowdowns": dict(self._slowed),
            "faults_injected": dict(self._injected),
            "faults_active": self._active(now.faults),
            "queue_depth": dict(queued),
            "tasks_active": {(): tasks},
            "publisher_messages": dict(ledgers),
            "readings": {(): now.readings},
            "readings_late": {(): now.late},
            "loop_lag": {(): now.loop_lag_max_s},
            "quality": {(): float(now.quality == "valid")},
            **({} if self._gateways is None else self._gateways.read()),
        }

    def _ledger_totals(self) -> dict[tuple[str, ...], int]:
        found: Counter[tuple[str, ...]] = Counter()
        for way in self._ways:
            ledger = way.pump.snapshot()
            for state in STATES:
                found[way.route.outlet.protocol, state] += getattr(ledger, state)
        return dict(found)

    def _active(self, faults: Mapping[str, int]) -> Counts:
        # A fault that was active and is not any more is 0, not absent.
        known = dict.fromkeys(self._last.counts.get("faults_active", {}), 0.0)
        known |= dict.fromkeys(self._injected, 0.0)
        return {**known, **{(name,): float(count) for name, count in faults.items()}}

    def _alive(self, run: Run, works: Works) -> Counts:
        found: Counter[tuple[str, ...]] = Counter()
        driver = works.driver
        if driver is None:
            return {}
        people = driver.simulation.population
        alive = people.alive(driver.frontier_us)
        there = np.zeros(len(people), dtype=np.bool_)
        for way in self._ways:
            mask = way.lane[: len(people)] >= 0
            there[: len(mask)] |= mask
            self._by_type(found, driver, mask & alive[: len(mask)], way.route.outlet.protocol)
        self._by_type(found, driver, ~there & alive, "none")
        known = dict.fromkeys(self._last.counts.get("devices_active", {}), 0.0)
        return {**known, **found}

    def _by_type(
        self, found: Counter[tuple[str, ...]], driver: Driver, mask: npt.NDArray[np.bool_],
        protocol: str,
    ) -> None:
        people = driver.simulation.population
        homes = people.home[: len(mask)][mask]
        for group, count in zip(people.groups, np.bincount(homes).tolist(), strict=False):
            if count:
                found[self._type(group.device_type), protocol] += count

    def _latencies(self) -> dict[tuple[str, ...], Buckets]:
        return {key: Buckets(bins.tolist(), self._sums[key]) for key, bins in self._bins.items()}


def _of_gateways(run: Run) -> GatewayTally | None:
    if getattr(run, "crew", None) is None:
        return None
    from iotsim.gateway.tally import GatewayTally

    return GatewayTally(cast("GatewayRun", run))


def _batches(works: Works) -> Buckets:
    return Buckets(tuple(works.intake.batches), works.intake.rows)
