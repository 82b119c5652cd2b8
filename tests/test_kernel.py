"""Parties under one clock: order, waits, failures, and what may not be awaited."""

import asyncio
import itertools

import pytest

from iotsim import Fleet
from iotsim.engine import kernel
from iotsim.errors import DeviceFailed, ForeignAwait
from tests.fleets import fleet, rows, simulate


def run(*scripts, duration="10s", every=None, seed=7):
    made = Fleet("f", seed=seed)
    for script in scripts:
        made = made.add(script, every=every)
    return made.generate(duration)


def error_of(script, **options):
    result = run(script, **options)
    (error,) = result.errors
    return error


def said(result):
    frame = result.frame()
    return list(zip(frame["device_type"], frame["x"], strict=True))


# -- order and time -----------------------------------------------------------------------------


def test_devices_wake_in_order_of_time_then_of_their_place_in_the_fleet():
    seen = []

    def device(name, *sleeps):
        async def script(dev):
            for pause in sleeps:
                await dev.sleep(pause)
                seen.append((dev.elapsed, name))

        script.__name__ = name
        return script

    run(device("a", 3, 2), device("b", 1, 2, 2), device("c", 5))
    assert seen == [(1, "b"), (3, "a"), (3, "b"), (5, "a"), (5, "b"), (5, "c")]


def test_a_sleep_is_exact_and_adds_up():
    times = []

    async def meter(dev):
        for _ in range(1000):
            times.append(dev.now_us - dev.start_us)
            await dev.sleep("0.1s")

    run(meter, duration="200s")
    assert times == [i * 100_000 for i in range(1000)]


def test_a_device_ends_when_it_returns_and_others_go_on():
    async def short(dev):
        dev.emit(x=1)

    async def long(dev):
        while True:
            dev.emit(x=2)
            await dev.sleep("1s")

    result = run(short, long)
    assert not result.errors
    assert [x for _, x in said(result)].count(2) == 10


def test_with_every_the_devices_begin_on_their_phases_and_sleep_one_interval():
    async def meter(dev):
        while True:
            dev.emit(x=dev.elapsed)
            await dev.sleep()

    result = Fleet("f", seed=7).add(meter, count=50, every="2s").generate("10s")
    frame = result.frame()
    assert len(frame) == 250
    assert frame.groupby("device_id", observed=True)["time"].min().nunique() == 50
    assert set(frame["x"]) == {0, 2, 4, 6, 8}


def test_now_and_labels_and_id_and_seed_are_there():
    seen = []

    async def meter(dev):
        await dev.sleep("90s")
        seen.append((dev.id, dict(dev.labels), dev.seed, dev.now.isoformat(), dev.elapsed,
                     repr(dev)))

    Fleet("f", seed=7).add(meter, labels={"site": "north"}).generate("2m")
    assert seen == [("meter-0000", {"site": "north"}, 7, "2026-01-01T00:01:30+00:00", 90.0,
                     "<Device 'meter-0000' at 2026-01-01T00:01:30+00:00>")]


# -- draws --------------------------------------------------------------------------------------


def test_draws_are_of_the_device_and_the_name_and_count_per_name():
    seen = {}

    async def meter(dev):
        seen[dev.id] = [dev.draw("a"), dev.draw("a"), dev.draw("b")]

    Fleet("f", seed=7).add(meter, count=2).generate("1s")
    first, values = dict(seen), list(itertools.chain(*seen.values()))
    assert len(set(values)) == 6
    assert all(0 <= value < 1 for value in values)

    async def other_order(dev):
        b = dev.draw("b")
        seen[dev.id.replace("other_order", "meter")] = [dev.draw("a"), dev.draw("a"), b]

    other_order.__name__ = "meter"
    Fleet("f", seed=7).add(other_order, count=2).generate("1s")
    assert {k.replace("other_order", "meter"): v for k, v in seen.items()} == first


def test_an_unknown_signal_or_parameter_of_a_draw_is_an_error_of_that_device():
    async def typo(dev):
        dev.draw("x", "gausian", mean=1, stddev=1)

    async def missing(dev):
        dev.draw("x", "gaussian", mean=1)

    async def walk(dev):
        dev.draw("x", "brownian", volatility=1)

    assert "no signal called 'gausian'. Did you mean 'gaussian'?" in str(error_of(typo))
    assert "lacks stddev" in str(error_of(missing))
    assert "dev.draw(…, 'brownian') needs it. Use add(…, every='5s')." in str(error_of(walk))


# -- what a device emits ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["time", "device_id", "device_type", "seq", "faults", "hit", "sub",
                                  "copy", "withheld", "acked", "latency", "site"])
def test_a_field_named_like_a_column_is_an_error(name):
    async def meter(dev):
        dev.emit(**{name: 1})

    (error,) = Fleet("f", seed=1).add(meter, labels={"site": "a"}).generate("1s").errors
    assert f"field={name!r} is the name of a column of every frame" in str(error)


@pytest.mark.parametrize(
    ("value", "text"),
    [({1, 2}, "is a set, which JSON cannot hold"), (object, "which JSON cannot hold"),
     (2**63, "does not fit 64 bits"), (-(2**63) - 1, "does not fit 64 bits"),
     (b"x", "is a bytes, which JSON cannot hold")],
)
def test_a_value_that_json_cannot_hold_is_an_error(value, text):
    async def meter(dev):
        dev.emit(x=value)

    assert text in str(error_of(meter))


def test_any_json_value_can_be_emitted():
    import numpy as np

    values = [1, 1.5, True, None, "a", {"a": [1, None]}, [1, 2], np.float32(0.5), np.int64(3),
              float("nan"), float("inf"), -0.0]

    async def meter(dev):
        for value in values:
            dev.emit(x=value)
            await dev.sleep("1s")

    got = run(meter, duration="20s").frame()["x"].tolist()
    assert got == [1, 1.5, True, None, "a", {"a": [1, None]}, [1, 2], 0.5, 3, None, None, 0.0]


def test_what_was_emitted_is_not_changed_by_the_device_afterwards():
    async def meter(dev):
        state = {"a": 1}
        dev.emit(x=state)
        state["a"] = 2

    assert run(meter).frame()["x"].tolist() == [{"a": 1}]


# -- failures -----------------------------------------------------------------------------------


def test_a_failing_device_names_itself_its_time_and_seed_and_takes_nobody_down():
    async def frail(dev):
        await dev.sleep("2s")
        raise ValueError("the valve\nis stuck")

    async def sound(dev):
        while True:
            dev.emit(x=1)
            await dev.sleep("1s")

    result = run(frail, sound)
    (error,) = result.errors
    assert isinstance(error, DeviceFailed)
    assert str(error) == ("device 'frail-0000' failed at 2026-01-01T00:00:02.000000Z (seed=7): "
                          "ValueError: the valve is stuck")
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__.__traceback__ is not None
    assert len(result) == 10


def test_a_thousand_failures_are_kept_and_the_rest_is_counted():
    async def frail(dev):
        raise ValueError

    made = Fleet("f", seed=1).add(frail, count=1200)
    result = made.generate("1s")
    assert len(result.errors) == 1000


def test_a_device_that_is_ended_may_clean_up():
    ended = []

    async def meter(dev):
        try:
            while True:
                await dev.sleep("1s")
        finally:
            ended.append(dev.id)

    Fleet("f", seed=1).add(meter, count=3).generate("5s")
    assert sorted(ended) == ["meter-0000", "meter-0001", "meter-0002"]


def line_of(function, text):
    import inspect

    source, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(source) if text in line)


async def sleeps_for_real(dev):
    await dev.sleep("1s")
    await asyncio.sleep(0)


async def waits_for_a_future(dev):
    await somebody_elses()


async def somebody_elses():
    await asyncio.get_running_loop().create_future()


def test_a_foreign_await_names_device_line_and_what_it_is():
    error = error_of(sleeps_for_real).__cause__
    assert isinstance(error, ForeignAwait)
    assert error.device_id == "sleeps_for_real-0000"
    assert error.line == f"{__file__}:{line_of(sleeps_for_real, 'asyncio.sleep(0)')}"
    assert "asyncio.sleep(0) or a bare yield" in str(error)


def test_a_foreign_await_deep_inside_names_the_line_that_awaits():
    async def cell():
        return error_of(waits_for_a_future).__cause__

    error = asyncio.run(cell())
    assert error.line == f"{__file__}:{line_of(somebody_elses, 'create_future')}"
    assert "awaits an asyncio Future at" in str(error)


def test_a_sleep_that_is_not_awaited_is_an_error_and_not_a_hang():
    async def forgetful(dev):
        while True:
            dev.emit(x=1)
            dev.sleep("1s")

    assert "sleep='1s' follows a sleep that was not awaited. Write `await dev.sleep(…)`." in str(
        error_of(forgetful))


def test_a_walk_keeps_its_parameters_and_others_may_change_them():
    async def walk(dev):
        for volatility in (1, 2):
            dev.draw("x", "brownian", volatility=volatility)

    async def swing(dev):
        for mean in (1, 2, 1):
            dev.emit(x=dev.draw("x", "gaussian", mean=mean, stddev=0))

    assert "draw='x' changes the parameters of its brownian, which walks. Keep them" in str(
        error_of(walk, every="1s"))
    assert run(swing).frame()["x"].tolist() == [1, 2, 1]


def test_a_device_that_never_stops_at_one_instant_is_ended_and_named(monkeypatch):
    monkeypatch.setattr(kernel, "STEPS_AT_ONE_INSTANT_MAX", 10_000)

    async def busy(dev):
        while True:
            await dev.sleep(0)

    async def sound(dev):
        while True:
            dev.emit(x=1)
            await dev.sleep("1s")

    result = run(busy, sound)
    (error,) = result.errors
    assert "device 'busy-0000' failed" in str(error)
    assert "time has not moved on for 10," in str(error)
    assert f"{__file__}:{line_of(busy, 'sleep(0)')}" in str(error)
    assert len(result) == 10


# -- waits between devices ----------------------------------------------------------------------


def shared(make):
    """A value that the first device to ask makes and the others find."""
    kept = []

    def get(dev):
        if not kept:
            kept.append(make(dev))
        return kept[0]

    return get


def test_an_event_wakes_all_who_wait_at_the_time_it_was_set():
    event = shared(lambda dev: dev.event())

    async def waiter(dev):
        await event(dev).wait()
        dev.emit(x=dev.elapsed)
        await event(dev).wait()
        dev.emit(x=dev.elapsed)

    async def setter(dev):
        await dev.sleep("3s")
        event(dev).set()

    made = Fleet("f", seed=1).add(waiter, count=3).add(setter)
    assert made.generate("10s").frame()["x"].tolist() == [3] * 6


def test_an_event_that_is_cleared_makes_wait_again():
    event = shared(lambda dev: dev.event())

    async def waiter(dev):
        for _ in range(2):
            await event(dev).wait()
            dev.emit(x=dev.elapsed)
            event(dev).clear()

    async def setter(dev):
        for _ in range(2):
            await dev.sleep("3s")
            event(dev).set()

    assert run(waiter, setter).frame()["x"].tolist() == [3, 6]


def test_a_queue_hands_over_in_order_and_holds_back_who_fills_it_too_fast():
    queue = shared(lambda dev: dev.queue(2))

    async def producer(dev):
        for i in range(6):
            await queue(dev).put(i)
            dev.emit(x=float(dev.elapsed))

    async def consumer(dev):
        while True:
            await dev.sleep("1s")
            dev.emit(x=float(await queue(dev).get()))

    result = run(producer, consumer)
    got = [x for kind, x in said(result) if kind == "consumer"]
    put = [x for kind, x in said(result) if kind == "producer"]
    assert got == [0, 1, 2, 3, 4, 5]
    assert put == [0, 0, 1, 2, 3, 4]


def test_several_getters_get_each_item_once():
    queue = shared(lambda dev: dev.queue())

    async def getter(dev):
        while True:
            dev.emit(x=await queue(dev).get())

    async def putter(dev):
        for i in range(10):
            await queue(dev).put(i)
            await dev.sleep("0.5s")

    made = Fleet("f", seed=1).add(getter, count=3).add(putter)
    assert sorted(made.generate("10s").frame()["x"]) == list(range(10))


def test_a_queue_of_no_size_is_an_error():
    async def meter(dev):
        dev.queue(0)

    assert "size_max=0" in str(error_of(meter))


def test_a_device_that_waits_for_ever_does_not_hang_the_run():
    async def waiter(dev):
        await dev.event().wait()

    assert run(waiter).errors == ()


def test_scripted_and_declared_devices_live_side_by_side():
    async def beat(dev):
        while True:
            dev.emit(x=dev.draw("x"))
            await dev.sleep("1s")

    both = fleet(5).add(beat, count=5)
    alone = Fleet("p", seed=1).add(beat, count=5)
    kept = [row for row in rows(simulate(both, [10_000_000])) if row[0].startswith("beat")]
    assert kept == rows(simulate(alone, [10_000_000]))
