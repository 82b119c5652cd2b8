"""Scripted devices that misbehave when they are ended: the same bytes and errors, at any pace."""

import asyncio
import gc
import subprocess
import sys
import time
import warnings

import pytest

from iotsim import Fleet, Scenario
from iotsim.engine import kernel
from iotsim.engine.simulation import Simulation
from tests.action_rig import beyond
from tests.live import START, meter, run

PACES = ["max", 20]


async def swallower(dev):
    while True:
        try:
            dev.emit(n=1)
            await dev.sleep(1)
        except BaseException:
            dev.emit(n=-1)


async def canceller(dev):
    dev.emit(n=1)
    try:
        await dev.sleep(3)
        raise asyncio.CancelledError
    except (GeneratorExit, asyncio.CancelledError):
        dev.emit(n=9)
        raise


async def waits_on_its_way_out(dev):
    try:
        while True:
            dev.emit(n=1)
            await dev.sleep(1)
    finally:
        dev.emit(n=2)
        await dev.sleep(2)
        dev.emit(n=3)


async def waits_deep_inside_on_its_way_out(dev):
    await waits_on_its_way_out(dev)
    dev.emit(n=4)


async def goes_on_once(dev):
    for _ in range(2):
        try:
            while True:
                dev.emit(n=dev.draw("n"))
                await dev.sleep(1)
        except asyncio.CancelledError:
            dev.emit(n=dev.draw("n"))


async def leaves_with_a_wish(dev):
    queue = dev.queue(1)
    dev.emit(n=0)
    try:
        await queue.get()
    finally:
        await queue.put(1)
        dev.emit(n=await queue.get())
        await queue.get()


async def breaks_on_its_way_out(dev):
    try:
        while True:
            dev.emit(n=1)
            await dev.sleep(1)
    finally:
        raise ValueError("the valve is stuck")


async def leaves_in_a_huff(dev):
    try:
        dev.emit(n=1)
        await dev.sleep("1h")
    except asyncio.CancelledError:
        raise GeneratorExit from None


async def returns_when_told(dev):
    try:
        dev.emit(n=1)
        await dev.sleep("1h")
    except asyncio.CancelledError:
        return


async def never_ends_talking(dev):
    try:
        dev.emit(n=1)
        await dev.sleep("1h")
    finally:
        for n in range(10_000):
            dev.emit(n=n)


GALLERY = [swallower, canceller, waits_on_its_way_out, waits_deep_inside_on_its_way_out,
           goes_on_once, leaves_with_a_wish, breaks_on_its_way_out, leaves_in_a_huff,
           returns_when_told, never_ends_talking]


def stopping(*devices, first="2500ms", lasting="6s"):
    """Two of each, and one of each is stopped on the way."""
    fleet = Fleet("ends", seed=1).add(meter, every="1s")
    for device in devices:
        fleet = fleet.add(device, count=2)
    firsts = "|".join(f"{device.__name__}-0000" for device in devices)
    return Scenario("ends", fleet).at(first).stop(where=f"id={firsts}").lasting(lasting)


STUBBORN = """
import asyncio
from iotsim import Fleet

async def swallower(dev):
    while True:
        try:
            dev.emit(n=1)
            await dev.sleep(1)
        except BaseException:
            pass

fleet = Fleet("ends", seed=1).add(swallower, count=2)
result = asyncio.run(fleet.run("6s", speed="max"))
print(len(result.errors), len(fleet.generate("6s", progress=False).errors))
"""


def told(result):
    return sorted(str(error) for error in result.errors)


def live(scenario, pace):
    return run(scenario.run(speed=pace, start=START))


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("device", GALLERY)
def test_however_a_device_takes_its_end_it_gives_the_same_bytes_and_errors(device, pace):
    scenario = stopping(device)
    offline, result = scenario.generate(start=START), live(scenario, pace)
    assert result.digest == offline.digest, result.diff(offline)
    assert told(result) == told(offline)


@pytest.mark.parametrize("pace", PACES)
def test_all_of_them_at_once_give_the_same_bytes_and_errors(pace):
    scenario = stopping(*GALLERY)
    offline, result = scenario.generate(start=START), live(scenario, pace)
    assert result.digest == offline.digest, result.diff(offline)
    assert told(result) == told(offline)


@pytest.mark.parametrize("device", GALLERY)
def test_nothing_that_a_device_emits_after_its_end_counts(device):
    frame = stopping(device).generate(start=START).frame()
    mine = frame[frame["device_id"] == f"{device.__name__}-0000"]
    assert (mine["time"].dt.second <= 2).all()
    assert not mine["time"].duplicated().any()
    assert (mine["n"] >= 0).all()


@pytest.mark.parametrize("pace", [None, *PACES])
def test_a_device_that_will_not_end_is_reported_once_and_says_where_it_waits(pace):
    scenario = stopping(swallower)
    result = scenario.generate(start=START) if pace is None else live(scenario, pace)
    first, second = told(result)
    assert first.startswith("device 'swallower-0000' failed at 2026-03-01T12:00:02.500000Z")
    assert second.startswith("device 'swallower-0001' failed at 2026-03-01T12:00:06.000000Z")
    for text in (first, second):
        assert "it did not end when it was cancelled; it waits at" in text
        assert f"{__file__}:" in text
        assert text.endswith("Let asyncio.CancelledError pass.")


@pytest.mark.parametrize("pace", [None, *PACES])
def test_a_device_that_cancels_itself_has_failed(pace):
    async def moody(dev):
        await dev.sleep(3)
        raise asyncio.CancelledError

    scenario = Scenario("moody", Fleet("f", seed=1).add(moody)).lasting("6s")
    result = scenario.generate(start=START) if pace is None else live(scenario, pace)
    assert told(result) == ["device 'moody-0000' failed at 2026-03-01T12:00:03.000000Z (seed=1): "
                            "CancelledError"]


@pytest.mark.parametrize("pace", [None, *PACES])
def test_a_device_that_is_ended_is_cancelled_at_the_instant_of_its_end(pace):
    seen = []

    async def watcher(dev):
        try:
            while True:
                await dev.sleep(2)
        except BaseException as error:
            seen.append((dev.id, dev.elapsed, type(error)))
            raise

    scenario = stopping(watcher)
    result = scenario.generate(start=START) if pace is None else live(scenario, pace)
    assert not result.errors
    assert seen == [("watcher-0000", 2.5, asyncio.CancelledError),
                    ("watcher-0001", 6.0, asyncio.CancelledError)]


def handing_over(queued):
    """Devices of which those that are stopped wake others on their way out."""
    shared = {}

    async def holder(dev):
        made = shared.setdefault("it", dev.queue(9) if queued else dev.event())
        dev.emit(n=0)
        try:
            await dev.sleep("1h")
        finally:
            if queued:
                await made.put(dev.id)
            else:
                made.set()

    async def waiter(dev):
        dev.emit(n=1)
        got = await (shared["it"].get() if queued else shared["it"].wait())
        dev.emit(n=2, got=str(got))
        await dev.sleep("500ms")
        dev.emit(n=3)

    fleet = Fleet("hand", seed=1).add(holder, count=3).add(waiter, count=4)
    stopped = "id=holder-0000|holder-0001|waiter-0000"
    return Scenario("hand", fleet).at("2500ms").stop(where=stopped).lasting("6s")


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("queued", [False, True])
def test_who_is_woken_by_the_last_words_of_another_wakes_at_the_instant_of_the_stop(queued, pace):
    offline = handing_over(queued).generate(start=START)
    result = live(handing_over(queued), pace)
    assert result.digest == offline.digest, result.diff(offline)
    frame = offline.frame()
    woken = frame[frame["n"] == 2]
    assert set(woken["time"].dt.strftime("%S.%f")) == {"02.500000"}
    # Nobody who was stopped at the same instant swallows a call.
    expected = ["waiter-0001", "waiter-0002"] + ([] if queued else ["waiter-0003"])
    assert woken["device_id"].tolist() == expected


def test_a_thousand_that_are_stopped_before_they_begin_leave_nothing_behind():
    fleet = Fleet("many", seed=1).add(swallower, count=1000, every="1h")
    scenario = Scenario("many", fleet).at("1ms").stop().lasting("2ms")
    offline, result = scenario.generate(start=START), live(scenario, "max")
    assert result.digest == offline.digest
    assert len(offline.errors) == len(result.errors) == 0


def test_a_device_may_bid_the_outside_world_farewell():
    said = []

    async def client(dev):
        try:
            await asyncio.sleep(0)
            while True:
                await dev.sleep("1s")
        finally:
            async with asyncio.timeout(10):
                await asyncio.sleep(0.01)
            said.append(dev.id)

    result = live(stopping(client), 20)
    assert not result.errors
    assert sorted(said) == ["client-0000", "client-0001"]


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("when", ["2500ms", "6s"])
def test_a_device_that_waits_for_the_outside_world_for_ever_holds_nobody_up(when, pace):
    async def clinger(dev):
        dev.emit(n=1)
        await dev.sleep("1s")
        while True:
            try:
                await dev.sleep("1h")
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    continue

    began = time.monotonic()
    scenario = stopping(clinger, first="2500ms")
    result = live(scenario, pace)
    assert time.monotonic() - began < 15
    assert ["did not end" in text for text in told(result)] == [True, True]
    assert result.rows == 8


@pytest.mark.parametrize("pace", [None, "max"])
def test_python_has_nothing_to_complain_of_when_a_device_will_not_end(pace, monkeypatch):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        scenario = stopping(swallower, goes_on_once, waits_on_its_way_out)
        result = scenario.generate(start=START) if pace is None else live(scenario, pace)
        del result, scenario
        gc.collect()
    assert not complaints
    assert not warned


def test_no_more_than_so_many_that_would_not_end_are_kept():
    assert kernel._abandoned.maxlen == kernel.ABANDONED_KEPT


def test_a_process_with_devices_that_will_not_end_exits_at_once_and_in_silence():
    done = subprocess.run([sys.executable, "-c", STUBBORN], capture_output=True, text=True,
                          check=False, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 2\n", "")


@pytest.mark.parametrize("pace", [None, "max"])
def test_a_device_that_will_not_end_keeps_nothing_of_its_run(pace):
    fleet = Fleet("kept", seed=4711).add(swallower, count=2)
    result = fleet.generate("3s") if pace is None else run(fleet.run("3s", speed=pace))
    assert len(result.errors) == 2
    del result, fleet
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Simulation and one.seed == 4711]


@pytest.mark.parametrize("live_run", [False, True])
def test_a_flood_of_last_words_is_one_devices_failure(live_run, monkeypatch):
    monkeypatch.setattr("iotsim.engine.device.ROWS_MAX", 1000)

    async def flood(dev):
        try:
            await dev.sleep("1h")
        finally:
            while True:
                dev.emit(n=1)

    scenario = stopping(flood)
    result = live(scenario, "max") if live_run else scenario.generate(start=START)
    assert ["readings and no end" in text for text in told(result)] == [True, True]
    assert result.rows == 6


def test_stopping_by_hand_ends_a_device_that_swallows_everything():
    async def session():
        begun = Fleet("hand", seed=1).add(swallower, count=2).start(speed=20, start=START)
        await begun.ready()
        await beyond(begun, 3)
        begun.stop(where="id=swallower-0000")
        return await begun.stop()

    result = run(session())
    assert len(result.errors) == 2
    again = result.to_scenario().generate(start=START)
    assert again.digest == result.digest


@pytest.mark.parametrize("device", [swallower, waits_on_its_way_out])
def test_a_run_left_behind_with_such_devices_ends_with_its_loop(device):
    async def leave():
        begun = Fleet("left", seed=1).add(device, count=2).start(speed=20)
        await begun.ready()
        await beyond(begun, 2)

    began = time.monotonic()
    asyncio.run(leave())
    assert time.monotonic() - began < 15


def test_a_time_limit_of_its_own_ends_a_real_wait_and_not_the_device():
    async def patient(dev):
        try:
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            dev.emit(n=1)
        await dev.sleep("1s")
        dev.emit(n=2)

    result = live(Scenario("limit", Fleet("f", seed=1).add(patient)).lasting("3s"), "max")
    assert not result.errors
    assert result.frame()["n"].tolist() == [1, 2]
