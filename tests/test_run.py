"""A live run: the same bytes at any pace, and an end whatever happens."""

import asyncio
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iotsim
from iotsim import Fleet, IotsimError
from iotsim.engine import live as live_kernel
from iotsim.errors import BadValue, ConnectError, NameInUse, NoLoop, StalledError
from iotsim.publishers.base import UNTRACED
from iotsim.publishers.memory import messages
from iotsim.rebuilt import digest_of_messages
from iotsim.registry import PUBLISHERS
from iotsim.seeding import fnv1a_many, mix_many
from tests.live import START, generated, meter, run, sensors


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert iotsim.runs() == []


@pytest.mark.parametrize("speed", [1, 20, 1000, "max"])
def test_a_run_at_any_speed_gives_the_bytes_of_generate(speed):
    fleet = sensors(every="100ms")
    duration = "600ms" if speed == 1 else "10s"
    result = run(fleet.run(duration, speed=speed, start=START))
    assert result.digest == fleet.generate(duration, start=START).digest
    assert result.errors == ()


def test_a_pause_and_changes_of_speed_leave_the_bytes_alone():
    fleet = sensors()

    async def session():
        live = fleet.start("10m", speed=200, start=START)
        await live.ready()
        await asyncio.sleep(0.1)
        live.pause()
        paused_at_us = live.snapshot().elapsed_us
        await asyncio.sleep(0.05)
        assert live.snapshot().elapsed_us == paused_at_us
        live.resume()
        live.set_speed(5000)
        return await live.wait()

    result = run(session())
    assert result.digest == fleet.generate("10m", start=START).digest
    assert [action.verb for action in result.actions] == ["pause", "resume", "speed"]
    assert all(action.is_pace for action in result.actions)


@settings(max_examples=8)
@given(st.lists(st.sampled_from(["pause", "resume", 50, 3000, "max"]), max_size=6))
def test_no_sequence_of_pace_events_changes_the_bytes(events):
    fleet = sensors(count=7, every="250ms")

    async def session():
        live = fleet.start("40s", speed=300, start=START)
        await live.ready()
        for event in events:
            {"pause": live.pause, "resume": live.resume}.get(event, lambda: 0)()
            if event not in ("pause", "resume"):
                live.set_speed(event)
            await asyncio.sleep(0.01)
        live.resume()
        live.set_speed("max")
        return await live.wait()

    assert run(session()).digest == fleet.generate("40s", start=START).digest


def test_a_stopped_run_equals_generate_up_to_where_it_stopped():
    fleet = sensors().add(meter, count=5, every="3s")

    async def session():
        live = fleet.start(speed=500, start=START)
        await live.ready()
        await asyncio.sleep(0.15)
        return await live.stop()

    result = run(session())
    assert result.rows > 0
    assert result.actions[-1].verb == "stop"
    assert result.actions[-1].at_us == result.end_us - result.start_us
    assert result.digest == generated(fleet, result)


def test_a_stop_in_the_very_moment_a_slot_ends_is_not_overshot():
    fleet = sensors(count=200)

    async def session():
        live = fleet.start(speed=60, start=START)
        await live.ready()
        await asyncio.sleep(0.03)
        # The loop is held up: the slot's timer and the stop wake in the same pass.
        asyncio.get_running_loop().call_soon(time.sleep, 0.03)
        await asyncio.sleep(0.001)
        return await live.stop()

    for _ in range(10):
        result = run(session())
        assert result.digest == generated(fleet, result)


def test_a_live_run_starts_now_cut_to_milliseconds():
    result = run(sensors().run("1s", speed="max"))
    assert result.start_us % 1000 == 0
    assert result.start.year >= 2026


@pytest.mark.parametrize("speed", [100, "max"])
def test_scripted_devices_live_give_the_bytes_of_generate(speed):
    fleet = Fleet("scripted", seed=7).add(meter, count=20, every="2s").add("pump", count=3)
    result = run(fleet.run("1m", speed=speed, start=START))
    assert result.digest == fleet.generate("1m", start=START).digest


def test_what_a_subscriber_gets_has_the_digest_of_the_run():
    fleet = sensors().add("smart_lock", count=10).add(meter, count=3, every="2s")
    live = fleet.publish_to("memory:seen")
    result = run(live.run("5m", speed="max", start=START))
    assert digest_of_messages((body, name) for _, body, name in messages("seen")) == result.digest
    assert result.digest == fleet.generate("5m", start=START).digest


def test_starting_an_equal_fleet_again_returns_the_same_run():
    async def session():
        first = sensors().add(meter, every="1s").start(speed=10)
        second = sensors().add(meter, every="1s").start(speed=10)
        assert first is second
        assert iotsim.runs() == [first]
        await first.stop()

    run(session())


def test_a_function_defined_again_by_a_cell_is_the_same_device():
    source = "async def probe(dev):\n    dev.emit(x=1.0)\n    await dev.sleep('1s')\n"
    first, again, changed = {}, {}, {}
    exec(source, first)
    exec("\n\n" + source, again)
    exec(source.replace("1.0", "2.0"), changed)

    async def session():
        one = Fleet("cells", seed=1).add(first["probe"]).start()
        assert Fleet("cells", seed=1).add(again["probe"]).start() is one
        with pytest.raises(NameInUse):
            Fleet("cells", seed=1).add(changed["probe"]).start()
        await one.stop()

    run(session())


def test_another_fleet_under_a_live_name_is_refused_or_replaces_it():
    async def session():
        first = sensors().start(speed=10)
        with pytest.raises(NameInUse, match="replace=True"):
            sensors(count=3).start(speed=10)
        with pytest.raises(NameInUse):
            await sensors(count=3).run("1s")
        second = sensors(count=3).start(speed=10, replace=True)
        await second.ready()
        await first.wait()
        assert first.ended
        assert iotsim.runs() == [second]
        await second.stop()

    run(session())


def test_start_without_a_loop_says_what_to_type():
    with pytest.raises(NoLoop, match=r"asyncio\.run\("):
        sensors().start()


def test_a_device_that_fails_is_named_and_takes_nobody_down():
    async def fragile(dev):
        dev.emit(x=1)
        await dev.sleep("7s")
        raise ValueError("out of\nluck")

    fleet = Fleet("mixed", seed=5).add(fragile, count=2).add(meter, every="1s")
    result = run(fleet.run("20s", speed="max", start=START))
    assert [str(error) for error in result.errors] == [
        f"device 'fragile-000{i}' failed at 2026-03-01T12:00:07.000000Z (seed=5): "
        "ValueError: out of luck"
        for i in range(2)
    ]
    assert (result.frame().device_type == "meter").sum() == 20
    with pytest.raises(IotsimError, match="fragile-0000"):
        result.raise_for_errors()


def test_a_raw_wait_that_stalls_virtual_time_is_named(monkeypatch):
    monkeypatch.setattr(live_kernel, "STALL_S", 0.05)

    async def stuck(dev):
        await dev.sleep("1s")
        await asyncio.Event().wait()

    async def session():
        live = Fleet("stall", seed=1).add(stuck).start("1m", speed="max")
        return await live.wait()

    result = run(session())
    assert isinstance(result.errors[0], StalledError)
    assert "device 'stuck-0000' waits at" in str(result.errors[0])
    assert "test_run.py" in str(result.errors[0])


def test_real_io_in_a_paced_run_delays_only_its_own_device():
    async def slow(dev):
        while True:
            dev.emit(x=1.0)
            await asyncio.sleep(0.05)
            await dev.sleep("1s")

    fleet = Fleet("io", seed=1).add(slow).add(meter, every="1s")
    result = run(fleet.run("30s", speed=300, start=START))
    frame = result.frame()
    assert (frame.device_type == "meter").sum() == 30
    seconds = frame[frame.device_type == "slow"].time.diff().dropna().dt.total_seconds()
    assert (seconds == 1).all()


def test_virtual_time_stands_still_during_real_io():
    async def slow(dev):
        for _ in range(5):
            dev.emit(x=1.0)
            await asyncio.sleep(0.005)
            await dev.sleep("1s")

    result = run(Fleet("io", seed=1).add(slow, count=3).run("10s", speed="max", start=START))
    assert result.rows == 15


def test_a_broker_that_is_not_there_is_one_clear_error():
    fleet = sensors().publish_to("mqtt://127.0.0.1:1")
    with pytest.raises(ConnectError) as caught:
        run(fleet.run("1s"))
    assert "\n" not in str(caught.value)
    assert "mqtt://127.0.0.1:1" in str(caught.value)

    async def session():
        live = fleet.start()
        with pytest.raises(ConnectError):
            await live.ready()
        result = await live.stop()
        assert "mqtt://127.0.0.1:1" in repr(live)
        return result

    result = run(session())
    assert result.rows == 0
    assert isinstance(result.errors[0], ConnectError)


class Stuck:
    """A publisher whose peer never acknowledges: the window fills and stays full."""

    per_device = pipelines = False
    tracing = UNTRACED

    def __init__(self, limits):
        self.limits, self.url = limits, "stuck:"

    @classmethod
    def build(cls, url, **options):
        from iotsim.publishers.base import Limits

        return cls(Limits.take({"queue_messages": 100, **options}))

    def lanes(self, devices):
        return 1

    def link(self, lane, run_id, verdicts):
        return self

    async def open(self):
        return 10

    def send(self, tokens, items):
        return True

    def drop(self):
        pass

    async def close(self):
        pass


@pytest.mark.parametrize("scripted", [False, True])
def test_a_full_lane_delays_its_own_devices_and_nobody_else(monkeypatch, scripted):
    monkeypatch.setitem(PUBLISHERS, "stuck", f"{__name__}:Stuck")
    monkeypatch.setattr("iotsim.registry.resolve", _resolve_here)
    monkeypatch.setattr("iotsim.publishers.base.resolve", _resolve_here)
    monkeypatch.setattr("iotsim.feeders.FEEDER_ROWS", 50)
    fleet = sensors(count=20, every="1s", labels={"way": "free"})
    fleet = (
        fleet.add(meter, count=20, every="1s", labels={"way": "stuck"})
        if scripted
        else fleet.add("pump", count=20, every="1s", labels={"way": "stuck"})
    )
    live = fleet.publish_to("memory:free", where="way=free").publish_to("stuck:", where="way=stuck")

    async def session():
        running = live.start(speed=100, start=START)
        await running.ready()
        await asyncio.sleep(0.6)
        now = running.snapshot()
        free = now.publishers["memory:free"].acknowledged
        assert free > 0.5 * 20 * now.elapsed_us / 1e6
        stuck = now.publishers["stuck:"]
        assert stuck.offered <= 100 + 50 + 20
        for ledger in now.publishers.values():
            assert ledger.balanced
        began = asyncio.get_running_loop().time()
        result = await running.stop()
        assert asyncio.get_running_loop().time() - began < 12
        return result

    result = run(session())
    assert result.digest == generated(fleet, result)
    stuck = result.publishers["stuck:"]
    assert stuck.offered == (result.frame().way == "stuck").sum()
    assert stuck.acknowledged == 0
    assert stuck.dropped + stuck.unknown == stuck.offered
    assert "stuck:" in str(result.errors[0])
    assert "stuck: was the bottleneck from 00:" in result.quality
    assert "in flight on each connection, no more allowed" in result.quality


def _resolve_here(table, name, kind):
    if name == "stuck":
        return Stuck
    from iotsim.registry import UnknownName, import_module

    if name not in table:
        raise UnknownName(kind, name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


def test_the_capture_is_bounded_and_says_what_fell_out():
    result = run(sensors(count=10, every="1s").run("1m", speed="max", start=START, capture="10s"))
    assert len(result.frame()) == 100
    assert result.rows == 600
    assert "100 of 600 readings" in result._repr_html_()
    assert result.digest == sensors(count=10, every="1s").generate("1m", start=START).digest


def test_a_live_run_streams_every_reading_to_parquet(tmp_path):
    path = tmp_path / "all.parquet"
    fleet = sensors(count=10, every="1s")
    result = run(fleet.run("1m", speed="max", start=START, capture=50, to=path))
    assert result.path == path
    import pandas as pd

    assert len(pd.read_parquet(path)) == 600
    assert len(result.frame()) == 50


def test_a_frame_can_be_taken_while_the_run_goes_on():
    async def session():
        live = sensors(every="1s").start(speed=100, start=START)
        await live.ready()
        await asyncio.sleep(0.1)
        early = live.frame()
        await asyncio.sleep(0.1)
        late = live.frame(fields="temperature")
        assert 0 < len(early) < len(late)
        assert list(late.columns[-3:]) == ["temperature", "faults", "hit"]
        await live.stop()

    run(session())


def test_methods_may_be_called_from_any_thread_and_any_loop():
    async def session():
        live = sensors().start(speed=100, start=START)
        await live.ready()

        def foreign():
            live.pause()
            live.set_speed(300)
            live.resume()
            results.append(asyncio.run(live.stop()))

        results = []
        await asyncio.sleep(0.05)
        thread = threading.Thread(target=foreign)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.01)
        assert [action.verb for action in results[0].actions] == [
            "pause", "speed", "resume", "stop",
        ]
        return results[0]

    result = run(session())
    assert result.digest == generated(sensors(), result)


def test_cancelling_an_awaited_run_stops_it_gracefully():
    async def session():
        task = asyncio.create_task(sensors().run("10m", speed=10))
        while not iotsim.runs():
            await asyncio.sleep(0)
        live = iotsim.runs()[0]
        await live.ready()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert live.ended
        assert live.state == "stopped"
        return await live.stop()

    assert run(session()).errors == ()


def test_stopping_twice_and_at_once_gives_the_same_result():
    async def session():
        live = sensors().start(speed=10)
        one, two = await asyncio.gather(live.stop(), live.stop())
        assert one is two
        assert await live.stop() is one
        return one

    assert run(session()).rows == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"duration": "0s"}, "duration='0s' is zero."),
        ({"duration": "5 sec"}, "duration='5 sec' is not a duration."),
        ({"duration": "1s", "speed": 0}, "speed=0 is out of range."),
        ({"duration": "1s", "speed": "fast"}, "speed='fast' is not a speed."),
        ({"duration": "1s", "capture": 0}, "capture=0 is not a positive number of rows."),
        ({"duration": "1s", "start": "soon"}, "start='soon' is not an instant."),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, text):
    with pytest.raises(BadValue) as caught:
        run(sensors().run(**arguments))
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_the_repr_of_a_run_says_how_it_is_doing():
    async def session():
        live = sensors().publish_to("memory:repr").start("1m", speed="max", start=START)
        await live.wait()
        assert repr(live) == (
            "<Run 'plant': stopped ×max, 00:01:00, 50 devices, 600 readings, "
            "memory:repr: 600 of 600 acknowledged>"
        )
        assert "600 readings" in live._repr_html_()

    run(session())


def test_lanes_are_chosen_by_device_and_stay():
    from iotsim.publishers.base import build
    from iotsim.publishers.pump import Pump

    async def session():
        pump = Pump(build("memory:lanes"))
        return pump.lane_of(mix_many(fnv1a_many(["a", "b", "c"])))

    assert run(session()).tolist() == [0, 0, 0]


async def spinning(dev):
    while True:
        await dev.sleep("0s")


async def hanging(dev):
    await asyncio.get_running_loop().create_future()


def test_a_device_that_spins_is_named_and_ended(monkeypatch):
    monkeypatch.setattr("iotsim.engine.kernel.STEPS_AT_ONE_INSTANT_MAX", 500)
    fleet = Fleet("spin", seed=1).add(spinning).add(meter, every="1s")
    result = run(fleet.run("10s", speed="max", start=START))
    assert "device 'spinning-0000'" in str(result.errors[0])
    assert "Sleep for longer than 0 s." in str(result.errors[0])
    assert len(result.errors) == 1
    assert result.rows == 10


@pytest.mark.parametrize("device", [spinning, hanging])
@pytest.mark.parametrize("speed", [10, "max"])
def test_stop_is_over_in_five_seconds_whatever_a_device_does(device, speed):
    async def session():
        live = Fleet("stuck", seed=1).add(device).add(meter, every="1s").start(speed=speed)
        await live.ready()
        await asyncio.sleep(0.05)
        began = asyncio.get_running_loop().time()
        result = await live.stop()
        assert asyncio.get_running_loop().time() - began < 10  # five, and what the machine takes
        return result

    run(session())
