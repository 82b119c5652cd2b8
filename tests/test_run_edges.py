"""Live runs at their edges: devices that depend on each other, outages, odd devices, threads."""

import asyncio
import threading
import time

import numpy as np
import pytest

import iotsim
from iotsim import Fleet
from tests.live import START, generated, meter, run, sensors


def linked(name="linked"):
    """A producer, and two who take from its queue at the very same instant."""
    shared = {}

    async def first(dev):
        shared["go"], shared["line"] = dev.event(), dev.queue(10)
        await shared["go"].wait()
        dev.emit(got=await shared["line"].get())

    async def second(dev):
        await dev.sleep("1s")
        await shared["line"].put(1)
        shared["go"].set()
        await shared["line"].put(2)

    async def third(dev):
        await dev.sleep("1s")
        dev.emit(got=await shared["line"].get())

    return Fleet(name, seed=1).add(first).add(second).add(third)


@pytest.mark.parametrize("speed", [100, "max"])
def test_devices_that_depend_on_each_other_meet_in_the_same_order_live(speed):
    live = run(linked().run("5s", speed=speed, start=START))
    assert live.digest == linked().generate("5s", start=START).digest
    assert live.rows == 2


def test_a_crowd_beside_them_does_not_change_their_order():
    def fleet():
        return linked().add("temperature_sensor", count=3000, every="1s")

    live = fleet().publish_to("memory:crowd", where="device_type=temperature_sensor|first")
    result = run(live.run("10s", speed="max", start=START))
    assert result.digest == fleet().generate("10s", start=START).digest


@pytest.mark.broker
def test_a_run_that_is_stopped_in_an_outage_ends_where_it_stands(mosquitto):
    broker = mosquitto()
    fleet = sensors(count=500)

    async def session():
        live = fleet.publish_to(broker.url, queue_messages=2000).start(speed=600, start=START)
        await live.ready()
        await asyncio.sleep(0.3)
        broker.kill()
        before, still = -1, 0
        while still < 5:  # until the full lane holds them all up
            now = live.snapshot().readings
            before, still = now, still + 1 if now == before else 0
            await asyncio.sleep(0.2)
        began = time.monotonic()
        result = await live.stop()
        assert time.monotonic() - began < 12
        assert result.rows == before
        return result

    result = run(session())
    assert result.digest == generated(fleet, result)
    ledger = next(iter(result.publishers.values()))
    assert ledger.balanced
    assert ledger.offered == result.rows
    assert ledger.dropped + ledger.unknown > 0


def test_a_speed_beyond_reason_leaves_the_loop_to_others():
    async def session():
        live = sensors(count=100).publish_to("memory:fast").start(speed=1e9, start=START)
        await live.ready()
        longest_s, last_s = 0.0, time.monotonic()
        for _ in range(50):
            await asyncio.sleep(0.01)
            now_s = time.monotonic()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
        result = await live.stop()
        assert longest_s < 5
        return result

    result = run(session())
    assert result.digest == generated(sensors(count=100), result)
    assert result.errors == ()


def test_what_is_done_while_it_connects_is_not_lost():
    async def session():
        live = sensors().start(speed=10, start=START)
        live.pause()
        live.set_speed(500)
        await live.ready()
        assert live.state == "paused"
        live.resume()
        await asyncio.sleep(0.05)
        assert live.snapshot().speed == 500
        return await live.stop()

    assert [action.verb for action in run(session()).actions] == [
        "pause", "speed", "resume", "stop",
    ]


def test_the_same_cell_with_another_speed_changes_the_pace():
    async def session():
        live = sensors().start(speed=10, start=START)
        await live.ready()
        assert sensors().start(speed=200, start=START) is live
        assert live.snapshot().speed == 200
        await live.stop()

    run(session())


class Odd(BaseException):
    pass


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("error", [Odd("odd"), Mute(), asyncio.CancelledError(), GeneratorExit()])
def test_whatever_a_device_raises_is_its_own_failure(live, error):
    async def bad(dev):
        await dev.sleep("1s")
        raise error

    fleet = Fleet("odd", seed=1).add(bad).add(meter, every="1s")
    if live:
        result = run(fleet.run("10s", speed="max", start=START))
    else:
        result = fleet.generate("10s", start=START)
    assert [text.split(" failed")[0] for text in map(str, result.errors)] == ["device 'bad-0000'"]
    assert "\n" not in str(result.errors[0])
    assert result.rows == 10


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    "value",
    ["\ud800", np.uint64(2**64 - 1), np.timedelta64(1, "s"), np.complex64(1), np.bytes_(b"x"),
     np.longdouble(1.5), 2**70, b"x", {1, 2}],
    ids=repr,
)
def test_a_value_that_json_cannot_hold_is_its_devices_failure(live, value):
    async def bad(dev):
        dev.emit(x=value)

    fleet = Fleet("odd", seed=1).add(bad).add(meter, every="1s")
    if live:
        result = run(fleet.publish_to("memory:odd").run("10s", speed="max", start=START))
    else:
        result = fleet.generate("10s", start=START)
    assert "device 'bad-0000' failed" in str(result.errors[0])
    assert result.rows == 10


def test_a_device_that_will_not_end_is_named():
    async def stubborn(dev):
        while True:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                if released.is_set():
                    raise

    released = threading.Event()

    async def session():
        live = Fleet("stubborn", seed=1).add(stubborn).start(speed=10)
        await live.ready()
        await asyncio.sleep(0.05)
        result = await live.stop()
        released.set()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)
        return result

    assert "did not end when it was cancelled" in str(run(session()).errors[0])


def test_frames_and_snapshots_may_be_taken_from_any_thread():
    fleet = sensors(count=200, every="100ms")
    sizes, stop = [], threading.Event()

    def watch(live):
        while not stop.is_set():
            sizes.append((len(live.frame()), live.snapshot().captured))

    async def session():
        live = fleet.start("30s", speed=60, start=START, capture="all")
        await live.ready()
        threads = [threading.Thread(target=watch, args=(live,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            return await live.wait()
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    result = run(session())
    assert sizes
    assert len(result.frame()) == result.rows == 60_000
    assert result.digest == fleet.generate("30s", start=START).digest


def test_a_run_left_behind_ends_with_its_loop():
    async def leave():
        sensors().publish_to("memory:left").start(speed=10)
        await asyncio.sleep(0.05)

    began = time.monotonic()
    asyncio.run(leave())
    assert time.monotonic() - began < 12
    assert iotsim.runs() == []


@pytest.mark.parametrize("way", ["generate", "run", "start"])
def test_a_run_beyond_the_year_9999_is_refused_at_the_door(way):
    from iotsim.errors import BadValue

    async def live():
        return await sensors().run("1d", start="9999-12-31T23:00Z")

    async def begun():
        return sensors().start("1d", start="9999-12-31T23:00Z")

    def offline():
        return sensors().generate("1d", start="9999-12-31T23:00Z")

    with pytest.raises(BadValue, match="goes beyond the year 9999"):
        {"generate": offline, "run": lambda: run(live()), "start": lambda: run(begun())}[way]()


def test_readings_without_end_at_one_instant_are_one_devices_failure(monkeypatch):
    monkeypatch.setattr("iotsim.engine.device.ROWS_MAX", 1000)

    async def flood(dev):
        while True:
            dev.emit(x=1)

    result = Fleet("flood", seed=1).add(flood).add(meter, every="1s").generate("10s")
    assert "time stands still" in str(result.errors[0])
    assert (result.frame().device_type == "meter").sum() == 10
