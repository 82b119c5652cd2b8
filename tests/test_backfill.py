"""History first, then live, in one run: the same bytes as one longer run, and then real pace."""

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iotsim
from iotsim import Fleet
from iotsim.errors import BadValue
from iotsim.publishers.memory import messages
from iotsim.rebuilt import digest_of_messages
from iotsim.units import duration_text, instant_text, instant_us
from tests.action_rig import THING
from tests.live import START, generated, meter, run, sensors

SECOND = 1_000_000


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert iotsim.runs() == []


def mixed(seed=5, name="mixed"):
    """Walks, chains, waves and draws of profiles, and devices that scripts play."""
    return (Fleet(name, seed=seed).add(THING, count=6).add("pump", count=4, every="700ms")
            .add(meter, count=3, every="4s"))


def one_longer(fleet, history_us, live_us, start=START):
    """The digest of a run that begins where the history does and takes no notice of the seam."""
    begin = instant_text(instant_us(start) - history_us)
    return fleet.generate(duration_text(history_us + live_us), start=begin).digest


@settings(max_examples=12)
@given(
    history_us=st.integers(1, 400 * SECOND), live_us=st.integers(1, 60 * SECOND),
    speed=st.sampled_from([500, 4000, "max"]), seed=st.integers(0, 9),
)
def test_history_and_live_are_one_longer_run_at_any_speed(history_us, live_us, speed, seed):
    fleet = mixed(seed).publish_to("memory:seam")
    messages("seam").clear()
    result = run(fleet.run(duration_text(live_us), start=START, speed=speed, capture="all",
                           backfill=duration_text(history_us)))
    assert result.digest == one_longer(fleet, history_us, live_us)
    assert result.start_us == instant_us(START) - history_us
    assert result.end_us == instant_us(START) + live_us
    assert result.errors == ()
    assert digest_of_messages((body, name) for _, body, name in messages("seam")) == result.digest


@pytest.mark.broker
@pytest.mark.parametrize("options", [{"qos": 1}, {"qos": 1, "queue_messages": 50}])
def test_a_broker_gets_history_and_live_to_the_last_reading(mosquitto, options):
    broker = mosquitto()
    fleet = mixed().publish_to(broker.url, **options)
    with iotsim.tap(broker.url, topic="#") as tap:
        result = run(fleet.run("20s", start=START, speed=40, backfill="5m", capture="all"))
        assert tap.wait(result.rows, 45)
        assert tap.digest() == result.digest
    assert result.digest == one_longer(fleet, 300 * SECOND, 20 * SECOND)
    (ledger,) = result.publishers.values()
    assert ledger.acknowledged == ledger.offered == result.rows
    assert result.errors == ()


def test_history_waits_for_full_lanes_and_then_real_time_is_kept():
    # Lanes of ten messages: everything has to wait, nothing is dropped, nobody is late.
    fleet = mixed().publish_to("memory:narrow", queue_messages=10)

    async def session():
        live = fleet.start("1s", start=START, backfill="20m", capture="all")
        await live.ready()
        clock = live._works.driver.clock
        while clock.hurries and not live.ended:
            await asyncio.sleep(0)
        history, began_s = live.snapshot(), time.perf_counter()
        result = await live.wait()
        return history, time.perf_counter() - began_s, result

    history, took_s, result = run(session())
    assert 0 <= history.elapsed_us - 1200 * SECOND < SECOND
    assert history.speed == 1.0
    times_us = np.concatenate([chunk.time_us for chunk in result.capture.chunks()])
    assert history.readings == (times_us < instant_us(START)).sum()
    assert took_s >= 0.99
    assert history.late == 0
    (ledger,) = result.publishers.values()
    assert (ledger.acknowledged, ledger.dropped) == (result.rows, 0)
    assert result.digest == one_longer(fleet, 1200 * SECOND, SECOND)


def test_without_a_start_history_ends_at_now_and_live_goes_on_from_there():
    fleet = mixed().publish_to("memory:now")

    async def session():
        before_us = time.time_ns() // 1000
        live = fleet.start("3s", backfill="30m", capture="all")
        await live.ready()
        while live._works.driver.clock.hurries and not live.ended:
            await asyncio.sleep(0)
        late = live.snapshot().late
        result = await live.wait()
        return before_us, result, time.time_ns() // 1000, late

    before_us, result, after_us, late = run(session())
    assert before_us - 1000 <= result.start_us + 1800 * SECOND <= before_us + SECOND
    assert result.end_us - result.start_us == 1803 * SECOND
    newest_us = max(int(chunk.time_us.max()) for chunk in result.capture.chunks())
    assert result.end_us - SECOND < newest_us < after_us
    assert after_us >= result.end_us  # not a reading left before its time
    assert late == 0
    assert result.digest == generated(fleet, result)


def test_a_clock_that_can_not_catch_up_gives_up_and_counts_who_is_late():
    fleet = sensors(count=200, every="100ms").publish_to("memory:slow", queue_messages=10)

    async def session():
        live = fleet.start("3h", speed=5000, backfill="10s", capture=1)
        await live.ready()
        driver = live._works.driver
        while driver.clock.hurries and not live.ended:
            await asyncio.sleep(0)
        while not driver.late_rows:
            await asyncio.sleep(0)
        return await live.stop()

    result = run(session())
    assert result.digest == generated(fleet, result)


def test_what_is_done_during_history_takes_effect_there_and_pace_only_changes_pace():
    fleet = mixed()
    said = []

    async def session():
        live = fleet.start("5s", start=START, speed=50, backfill="1h", capture="all")
        await live.ready()
        driver = live._works.driver
        while driver.frontier_us < driver.simulation.start_us + 60 * SECOND:
            await asyncio.sleep(0)
        live.pause()
        await asyncio.sleep(0)
        said.append(live.snapshot())
        while not driver.reached_by_all(driver.frontier_us):  # the slot it was in
            await asyncio.sleep(0)
        still_us = driver.frontier_us
        for _ in range(100):
            await asyncio.sleep(0)
        assert driver.frontier_us == still_us
        said.append(live.inject("offset", by=5, where="device_type=thing"))
        live.set_speed(100)
        live.resume()
        asked = await asyncio.to_thread(lambda: live.inject("stuck", where="device_type=pump"))
        said.append(asked)
        return await live.wait()

    result = run(session())
    paused, offset, stuck = said
    assert paused.state == "paused"
    assert 0 < offset.at_us <= stuck.at_us
    assert offset.at_us < 3600 * SECOND
    assert [action.verb for action in result.actions] == [
        "pause", "inject", "speed", "resume", "inject"]
    assert result.to_scenario().generate().digest == result.digest
    assert result.digest != generated(fleet, result)


def test_a_run_that_is_stopped_during_history_has_the_history_so_far():
    fleet = mixed().publish_to("memory:short")

    async def session():
        live = fleet.start(start=START, backfill="48h", capture=1000)
        await live.ready()
        driver = live._works.driver
        while driver.frontier_us < driver.simulation.start_us + 120 * SECOND:
            await asyncio.sleep(0)
        return await live.stop()

    result = run(session())
    assert result.start_us < result.end_us < instant_us(START)
    assert result.digest == generated(fleet, result)
    (ledger,) = result.publishers.values()
    assert ledger.acknowledged == result.rows


def test_lanes_that_fill_up_slow_nobody_down_in_history():
    fleet = sensors(count=40, every="1s").publish_to(
        "memory:gentle", queue_messages=20, backpressure="slow_down")
    result = run(fleet.run("2s", start=START, speed="max", backfill="3m", capture="all"))
    assert result.errors == ()
    history = [action for action in result.actions if action.at_us < 180 * SECOND]
    assert history == []


def test_the_same_wish_is_the_same_run_and_another_history_is_another_one():
    fleet = sensors(count=2)

    async def session():
        live = fleet.start(start=START, backfill="1m")
        assert fleet.start(start=START, backfill="60s") is live
        with pytest.raises(iotsim.IotsimError, match="already live under the name"):
            fleet.start(start=START, backfill="2m")
        return await live.stop()

    run(session())


@pytest.mark.parametrize(("backfill", "words"), [
    ("0s", "backfill='0s'"), (-3, "backfill=-3"), ("a day", "backfill='a day'"),
    (float("nan"), "backfill=nan"), (float("inf"), "backfill=inf"),
])
def test_a_history_that_cannot_be_is_refused_before_anything_begins(backfill, words):
    with pytest.raises(BadValue) as raised:
        asyncio.run(sensors().run("1s", backfill=backfill))
    assert str(raised.value).startswith(words)
    assert "\n" not in str(raised.value)


def test_a_history_from_before_all_calendars_is_refused():
    with pytest.raises(BadValue, match="goes back beyond the year 1"):
        asyncio.run(sensors().run("1s", start="0001-01-02T00:00:00Z", backfill="48h"))


def test_it_may_be_watched_from_another_thread_meanwhile():
    fleet, seen = mixed(), []

    async def session():
        live = fleet.start("1s", start=START, speed="max", backfill="2h")
        await live.ready()
        watcher = threading.Thread(target=lambda: seen.append((live.snapshot(), repr(live),
                                                                len(live.frame()))))
        watcher.start()
        result = await live.wait()
        watcher.join()
        return result

    result = run(session())
    snapshot, text, _ = seen[0]
    assert 0 <= snapshot.elapsed_us <= result.end_us - result.start_us
    assert "×max" in text
