"""A run says whether it was valid; if not, who was the bottleneck, when, and why."""

import asyncio
import re
import threading
import time

import numpy as np
import pytest

from iotsim import Fleet, quality
from iotsim.clock import PacedClock, cpu_s, monotonic
from iotsim.episodes import SIMULATOR, Episode, Second
from iotsim.publishers.ledger import Ledger
from iotsim.quality import Judge
from iotsim.verdict import brief
from tests.live import generated, run, sensors, until
from tests.servers.http import Endpoint, Reply

BLOCKED = "the simulator was the bottleneck from "


def block(seconds):
    # A blocking call in another cell, while the run is under way.
    time.sleep(seconds)


def innocent(live, result):
    # A machine that is busy with something else may stop our loop, and then it is told.
    stopped = live.snapshot().loop_lag_max_s > 0.25
    return stopped or "the simulator" not in result.quality


async def blocked(fleet, seconds, before=0.3, **options):
    live = fleet.start("2500ms", **options)
    await live.ready()
    await asyncio.sleep(before)
    block(seconds)
    return live, await live.wait()


def test_a_run_that_keeps_its_pace_is_valid():
    async def main():
        live = sensors("calm", 20).start("1500ms")
        await live.ready()
        await until(lambda: live.snapshot().loop_lag_max_s >= 0)
        during = live.snapshot()
        return during, await live.wait(), live

    during, result, live = asyncio.run(main())
    assert innocent(live, result), result.quality
    assert result.quality == live.snapshot().quality
    assert 0 <= during.loop_lag_p99_s <= during.loop_lag_max_s < 10
    if result.quality == "valid":
        assert "bottleneck" not in repr(result) + repr(live) + result._repr_html_()


def test_a_blocking_call_in_another_cell_is_named_with_its_time():
    fleet = sensors("blocked", 100, every="200ms")
    live, result = asyncio.run(blocked(fleet, 1.3))
    assert result.quality.startswith(BLOCKED + "00:00 to 00:0"), result.quality
    assert float(re.search(r"because the event loop was blocked for up to ([\d.]+) s",
                           result.quality)[1]) >= 1.2
    assert live.snapshot().loop_lag_max_s > 1.2
    assert result.digest == generated(fleet, result)


def test_the_repr_says_who_and_when_and_the_html_says_why():
    live, result = asyncio.run(blocked(sensors("seen", 100, every="200ms"), 1.3))
    for shown in (repr(live), repr(result)):
        assert brief(result.quality) in shown
        assert "because" not in shown
    assert "because the event loop was blocked" in result._repr_html_()


def test_while_it_goes_on_the_verdict_has_no_end():
    async def main():
        live = sensors("ongoing", 100, every="200ms").start()
        await live.ready()
        await asyncio.sleep(0.3)
        block(1.3)
        await until(lambda: live.snapshot().quality != "valid")
        said = live.snapshot().quality
        return said, (await live.stop()).quality

    said, after = asyncio.run(main())
    assert said.startswith(BLOCKED + "00:00, because "), said
    assert after.startswith(BLOCKED + "00:00 to "), after


def test_at_full_speed_pace_does_not_matter():
    async def main():
        live = sensors("hasty", 10).start("2000d", speed="max", capture=1000)
        await live.ready()
        block(1.2)
        return await live.stop()

    assert asyncio.run(main()).quality == "valid"


def test_a_paused_run_misses_nothing():
    async def main():
        live = sensors("paused", 100, every="200ms").start("1s")
        await live.ready()
        live.pause()
        await asyncio.sleep(0.1)
        block(1.3)
        await asyncio.sleep(0.1)
        live.resume()
        return await live.wait()

    assert asyncio.run(main()).quality == "valid"


def test_what_is_generated_is_valid():
    assert sensors("offline", 5).generate("1m").quality == "valid"


# -- publishers ---------------------------------------------------------------------------------


async def outage(broker, fleet, down_s):
    live = fleet.start("5s")
    await live.ready()
    await until(lambda: sum(one.acknowledged for one in live.snapshot().publishers.values()) > 100)
    await asyncio.to_thread(broker.stop)
    await asyncio.sleep(down_s)
    await asyncio.to_thread(broker.start)
    return live, await live.wait()


@pytest.fixture
def busy(mosquitto):
    """A broker, and a fleet of 2,000 readings a second that goes there."""
    broker = mosquitto()

    def make(**options):
        return broker, sensors("busy", 200, every="100ms").publish_to(
            broker.url, qos=1, queue_messages=100, **options)

    return make


def test_a_broker_that_is_away_is_the_bottleneck_and_not_the_simulator(busy):
    broker, fleet = busy()
    live, result = run(outage(broker, fleet, 2.5))
    assert f"{broker.url} was the bottleneck from 00:0" in result.quality, result.quality
    assert "its queue was full for " in result.quality
    assert "(not connected" in result.quality
    assert innocent(live, result), result.quality
    ledger = next(iter(result.publishers.values()))
    assert ledger.acknowledged == ledger.offered == result.rows
    assert result.digest == generated(fleet, result)


def test_dropping_the_oldest_makes_nobody_late_and_is_told_all_the_same(busy):
    broker, fleet = busy(backpressure="drop_oldest")
    live, result = run(outage(broker, fleet, 1.5))
    dropped = sum(one.drops["queue full, oldest dropped"] for one in result.publishers.values())
    assert dropped
    assert f"{dropped:,} readings were dropped from its full queue" in result.quality
    assert innocent(live, result), result.quality


def test_slowing_down_is_the_publishers_doing(busy):
    broker, fleet = busy(backpressure="slow_down")
    live, result = run(outage(broker, fleet, 1.5))
    assert f"{broker.url} was the bottleneck" in result.quality
    assert "its devices were slowed down" in result.quality
    assert innocent(live, result), result.quality


def test_an_endpoint_that_is_too_slow_is_the_bottleneck_though_its_queue_holds_it_all(monkeypatch):
    monkeypatch.setattr(quality, "BEHIND_S", 0.9)

    async def main():
        with Endpoint(lambda got: Reply(delay_s=0.05)) as endpoint:
            fleet = sensors("slow", 100, every="1s").publish_to(endpoint.url, connections=2)
            live = fleet.start(speed=2)
            await live.ready()
            await until(lambda: live.snapshot().quality != "valid")
            endpoint.script = lambda got: Reply()
            return endpoint.url, live, await live.stop()

    url, live, result = run(main())
    assert f"{url} was the bottleneck from 00:0" in result.quality, result.quality
    assert "/s of the 200/s that its devices make, it was up to " in result.quality
    assert innocent(live, result), result.quality


def test_a_scripted_device_that_blocks_the_loop_is_named():
    async def sleeper(dev):
        while True:
            await dev.sleep()
            threading.Event().wait(0.4)  # what is to be noticed, not waited for
            dev.emit(power=1.0)

    async def main():
        fleet = Fleet("asleep", seed=1).add(sleeper, count=1, every="500ms")
        return await fleet.add("pump", count=50, every="200ms").run("1500ms")

    said = run(main()).quality
    assert "because a scripted device blocked the event loop for up to " in said
    assert "(device 'sleeper-" in said


# -- the rules ----------------------------------------------------------------------------------


class Board:
    ways = ()


class Pump:
    """One whose messages a test hands over and settles."""

    url, run_id, lanes = "mqtt://there", "x", 1

    def __init__(self):
        self.ledger = Ledger()

    def snapshot(self):
        return self.ledger.snapshot()

    def stall(self, lane):
        return "20 in flight on each connection, no more allowed"


class Way:
    feeders, slowed = (), ()

    def __init__(self):
        self.pump = Pump()


class Told:
    """A judge whose time and readings a test decides."""

    def __init__(self, monkeypatch, rate_hz=1000):
        self.now_s = monotonic()
        monkeypatch.setattr(quality, "monotonic", lambda: self.now_s)
        self.clock = PacedClock(0, 1.0)
        monkeypatch.setattr(PacedClock, "now_us", lambda _: int((self.now_s - self.begin_s) * 1e6))
        self.begin_s = self.now_s
        self.board = Board()
        self.judge = Judge(self.clock, self.board, 0)
        monkeypatch.setattr(self.judge.lag, "begin", lambda: None)
        self.judge.begin()
        self.rate_hz = rate_hz
        chunk = sensors("rows", 1).generate("100m").capture.chunks()[0]
        self.rows = chunk.take(slice(0, rate_hz))

    def second(self, late=0, lag_s=0.0, by_s=0.2):
        late_s = np.where(np.arange(self.rate_hz) < late, by_s, 0.0)
        due_us = (self.clock.now_us() - late_s * 1e6).astype(np.int64)
        self.judge.handed(self.rows, due_us, late_s, scripted=False)
        self.now_s += 1.0001
        self.judge._beat(self.now_s, lag_s)

    def publisher(self, wanted_hz=200.0):
        way = Way()
        self.board.ways = (way,)
        self.judge.wanted_hz = lambda _: wanted_hz
        return way.pump.ledger

    def verdict(self):
        self.judge.end(int((self.now_s - self.begin_s) * 1e6))
        return self.judge.quality


def test_one_pause_of_300_ms_is_forgiven_and_one_of_400_ms_is_not(monkeypatch):
    for late, valid in ((200, True), (300, False)):  # what is 100 ms late is in time
        told = Told(monkeypatch)
        for second in range(10):
            told.second(late if second == 4 else 0)
        assert (told.verdict() == "valid") is valid


def test_a_pause_in_a_short_run_counts_as_in_a_long_one(monkeypatch):
    told = Told(monkeypatch)
    told.second(200)
    assert told.verdict() == "valid"


def test_two_percent_late_for_a_minute_is_not_valid_and_five_seconds_of_it_are(monkeypatch):
    for seconds, valid in ((5, True), (70, False)):
        told = Told(monkeypatch)
        for _ in range(seconds):
            told.second(20)
        assert (told.verdict() == "valid") is valid


def test_a_loop_that_stood_still_is_told_though_nothing_was_due(monkeypatch):
    told = Told(monkeypatch)
    told.second()
    told.second(lag_s=1.5)
    assert "the event loop was blocked for up to 1.5 s" in told.verdict()


def test_bad_times_far_apart_are_told_once_with_the_worst_and_how_many_more(monkeypatch):
    told = Told(monkeypatch)
    for second in range(60):
        told.second({3: 400, 23: 900, 43: 400}.get(second, 0), by_s=0.9)
    said = told.verdict()
    assert said.startswith(BLOCKED + "00:22 to 00:23, because "), said
    assert said.endswith("(and 2 more times)")


def test_a_run_of_days_keeps_a_bounded_memory_of_bad_times(monkeypatch):
    told = Told(monkeypatch, rate_hz=10)
    for second in range(3000):
        told.second(10 if second % 12 == 0 else 0)
    assert len(told.judge._episodes[SIMULATOR]) == quality.EPISODES_MAX
    assert len(told.judge._seconds) < 70


@pytest.mark.parametrize(("seen", "why"), [
    ({"lag_s": 2.3, "behind_s": 2.2, "cores": 0.97},
     "the event loop was blocked for up to 2.3 s (another cell computing?)"),
    ({"lag_s": 2.3, "behind_s": 2.2, "cores": 0.02},
     "the event loop was blocked for up to 2.3 s (a blocking call in another cell, or a machine "
     "busy with something else?)"),
    ({"lag_s": 0.08, "own_s": 0.07, "behind_s": 1.2, "cores": 0.99},
     "it used a whole core (99%) and was 1.2 s behind"),
    ({"lag_s": 0.01, "behind_s": 0.8, "cores": 0.1, "late_scripted": 10},
     "its scripted devices were up to 0.8 s behind (do they wait for something real?)"),
    ({"lag_s": 0.1, "own_s": 0.09, "behind_s": 0.4, "cores": 0.4},
     "it was up to 0.4 s behind at 40% of a core (is the machine busy with something else?)"),
])
def test_the_cause_is_what_was_seen(seen, why):
    one = Second(0.0, 0, end_s=1.0, end_us=1_000_000, rows=10, late={SIMULATOR: 10})
    for name, value in seen.items():
        setattr(one, name, {SIMULATOR: value} if name == "behind_s" else value)
    episode = Episode()
    episode.add(one, SIMULATOR)
    assert episode.simulator_why() == why


def test_a_backlog_that_gets_no_verdict_for_two_seconds_is_the_publishers(monkeypatch):
    told = Told(monkeypatch)
    ledger = told.publisher()
    for second in range(8):
        ledger.offer(200)
        ledger.move("queued", "acknowledged", 200 if second < 3 else 85)
        told.second()
    assert told.verdict() == (
        "mqtt://there was the bottleneck from 00:05 to 00:08: it took about 85/s of the 200/s that "
        "its devices make, it was up to 2.0 s behind (20 in flight on each connection, no more "
        "allowed)")


def test_a_drain_that_takes_long_is_told_with_times_within_the_run(monkeypatch):
    told = Told(monkeypatch)
    ledger = told.publisher()
    for second in range(4):
        ledger.offer(200)
        ledger.move("queued", "acknowledged", 150 + (second == 3) * 10)
        told.second()
    told.judge.ending(4_000_000)
    for _ in range(4):
        ledger.move("queued", "acknowledged", 10)
        told.second()
    told.judge.end(4_000_000)
    assert told.judge.quality.startswith("mqtt://there was the bottleneck from 00:0")
    assert " to 00:04: it took about " in told.judge.quality


def test_what_waits_while_the_loop_stands_still_is_not_the_publishers(monkeypatch):
    told = Told(monkeypatch)
    ledger = told.publisher()
    for lag_s in (0.0, 0.9, 0.9, 0.9, 0.9):
        ledger.offer(200)
        told.second(lag_s=lag_s)
    assert told.verdict() == "valid"


def test_history_that_is_still_on_its_way_is_nobodys_delay(monkeypatch):
    told = Told(monkeypatch)
    ledger = told.publisher()
    told.judge._history = True
    ledger.offer(5_000)
    for _ in range(5):
        ledger.move("queued", "acknowledged", 500)
        told.second()
    assert told.verdict() == "valid"


def test_a_block_is_told_from_when_to_when_it_was(monkeypatch):
    told = Told(monkeypatch)
    told.second()
    told.now_s += 2.5
    told.second(300, lag_s=2.5, by_s=2.5)
    told.second()
    assert told.verdict().startswith(BLOCKED + "00:01 to 00:0")


def test_processor_time_only_goes_up():
    assert cpu_s() <= cpu_s()
