"""The nasty cases of time: a long outage, a cancellation anywhere, a storm of actions."""

import asyncio
import contextlib
import itertools
import os
import random
import re
import threading
import time
from collections.abc import Coroutine
from pathlib import Path

import pytest

import iotsim
from iotsim import Fleet, Profile
from tests.action_rig import gauges, same_again
from tests.live import START, sensors, until
from tests.matrix import PROTOCOLS, mosquitto

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


# -- 8: a long outage with 100,000 devices --------------------------------------------------------

DEVICES = 100_000


def rss_mb():
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_an_outage_with_a_hundred_thousand_devices_costs_nothing_and_ends_in_time():
    """Half of them wait for room in the queue, half of them go on and drop the oldest."""
    unit = Profile("unit", {"value": {"type": "gaussian", "mean": 20, "stddev": 2}},
                   telemetry_interval="5s")
    normal = DEVICES / 2 / 5

    async def work(broker):
        fleet = Fleet("crowd", seed=8)
        for policy in ("block", "drop_oldest"):
            fleet = fleet.add(unit, count=DEVICES // 2, labels={"does": policy}, id=policy + "{n}")
            fleet = fleet.publish_to(broker.url, where=f"does={policy}", queue_messages=5_000,
                                     backpressure=policy)
        run = fleet.start(start=START, capture=1000)
        await run.ready()
        pumps = run._works.pumps
        blocking, dropping = pumps

        def full():
            return all(pump.snapshot().queued >= 4_900 and not pump.connected for pump in pumps)

        await until(lambda: all(pump.snapshot().acknowledged > 5_000 for pump in pumps))
        broker.kill()
        await until(full)
        before = rss_mb(), open_files(), time.process_time(), time.monotonic()
        readings = run.snapshot().readings
        for _ in range(2):
            await asyncio.sleep(1)
        after = rss_mb(), open_files(), time.process_time(), time.monotonic()
        assert run.snapshot().readings - readings > 0.3 * normal, "half of them go on"
        assert after[0] < 1.1 * before[0], (before, after)
        assert after[1] <= before[1], (before, after)
        assert (after[2] - before[2]) / (after[3] - before[3]) <= 0.6, (before, after)

        await asyncio.to_thread(broker.start)
        await until(lambda: all(pump.connected for pump in pumps))
        await until(lambda: dropping.snapshot().queued < 100)
        rate = await rate_of(dropping, 0.5)  # of what a machine can that may be slow
        assert 0.1 * normal < rate < 3 * normal, rate
        await until(lambda: blocking.snapshot().queued < 100)

        broker.kill()
        await until(full)
        began = time.monotonic()
        result = await run.stop()
        assert time.monotonic() - began < 10
        return result, [pump.snapshot() for pump in pumps]

    with mosquitto() as broker:
        result, accounts = asyncio.run(work(broker))
    for account in accounts:
        assert account.balanced
        assert account.queued == account.in_flight == 0
        assert account.drops["stopped before it was sent"] > 4_000
    assert accounts[1].drops["queue full, oldest dropped"] > normal
    assert not accounts[0].drops.get("queue full, oldest dropped")
    assert sum("stopped before it was sent" in str(error) for error in result.errors) == 2


async def rate_of(pump, seconds):
    count, began = pump.snapshot().acknowledged, time.monotonic()
    await asyncio.sleep(seconds)
    return (pump.snapshot().acknowledged - count) / (time.monotonic() - began)


# -- 9: cancelled anywhere ------------------------------------------------------------------------


class Steps:
    """Counts each await of each task of a loop, and cancels one task at the n-th."""

    def __init__(self, cancel_at=-1):
        self.count, self.cancel_at, self.victim = 0, cancel_at, None
        self.where = ""

    def watch(self, loop):
        loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(
            Counted(coro, self), loop=loop, **options))

    def note(self, coro):
        self.count += self.victim is not None
        if self.count == self.cancel_at and self.victim is not None:
            self.where = coro.__qualname__
            asyncio.get_running_loop().call_soon(self.victim.cancel)


class Counted(Coroutine):
    """A coroutine that notes where it waits."""

    def __init__(self, coro, steps):
        self.coro, self.steps = coro, steps

    def send(self, value):
        waits = self.coro.send(value)
        self.steps.note(self.coro)
        return waits

    def throw(self, *error):
        waits = self.coro.throw(*error)
        self.steps.note(self.coro)
        return waits

    def close(self):
        self.coro.close()

    def __await__(self):
        return self.coro.__await__()


def sockets():
    links = Path("/proc/self/fd")
    found = []
    for name in os.listdir(links):
        with contextlib.suppress(OSError):
            if os.readlink(links / name).startswith("socket:"):
                found.append(name)
    return len(found)


async def run_of(fleet):
    """What a cell does: `await fleet.run(...)`."""
    return await fleet.run("4s", speed=40, start=START, capture="all")


async def stop_of(fleet):
    """What two cells do: start, and stop."""
    run = fleet.start(speed=40, start=START, capture="all")
    await run.ready()
    await until(lambda: run.snapshot().readings > 60)
    return await run.stop()


def lived(deed, fleet, cancel_at):
    """One loop in which a cell is cancelled; what the run says afterwards, and the steps."""
    steps = Steps(cancel_at)

    async def main():
        loop = asyncio.get_running_loop()
        before = sockets(), threading.active_count()
        steps.watch(loop)
        steps.victim = cell = asyncio.create_task(deed(fleet))
        live = []
        while not cell.done():
            live = iotsim.runs() or live
            await asyncio.wait([cell], timeout=0.005)
        if not cell.cancelled():
            cell.result()
        left = iotsim.runs()
        live = live or left
        result = await live[0].stop() if live else None
        await until(lambda: not asyncio.all_tasks(loop) - {asyncio.current_task()})
        await asyncio.sleep(0)  # transports end a turn later
        assert (sockets(), threading.active_count()) == before
        return cell.cancelled(), left, result

    return *asyncio.run(main()), steps


@pytest.mark.parametrize(("protocol", "deed"), [
    ("mqtt", run_of), ("nats", run_of), ("http", run_of), ("mqtt", stop_of)])
def test_cancelled_at_any_await_nothing_is_left_and_nothing_counted_twice(protocol, deed):
    with PROTOCOLS[protocol].serve() as server, PROTOCOLS[protocol].tap(server) as tap:
        url = tap.url if server is None else server.url
        fleet = sensors("cell", count=20).publish_to(url, topic="matrix/{device_id}")
        *_, whole, steps = lived(deed, fleet, -1)
        most = steps.count
        chosen = random.Random(9).sample(range(1, most), 8) if most > 60 else range(1, most + 1)
        points = sorted({*range(1, 12), *chosen})
        ends = [lived(deed, fleet, at) for at in points]
        *_, again, _ = lived(deed, fleet, -1)
        results = [whole, *(result for *_, result, _ in ends if result is not None), again]
        account_for_all(results, tap)
    assert whole.rows
    assert again.rows
    cancelled = [steps.where for done, *_, steps in ends if done]
    assert len(cancelled) >= 10, (most, [(s.where, s.cancel_at) for *_, s in ends])


def account_for_all(results, tap):
    wanted = 0
    for result in results:
        (account,) = result.publishers.values() or (None,)
        if account is None:  # it ended before it had a publisher
            assert result.rows == 0
            continue
        assert account.balanced
        assert account.queued == account.in_flight == 0
        assert account.offered == result.rows, (account, result)
        wanted += account.acknowledged
    assert tap.wait(wanted, 45)
    ids = [ident for _, _, ident in tap.messages()]
    assert len(ids) == len(set(ids))
    sent = {f"{result.run_id}/{device}/{seq}/0" for result in results if result.rows
            for device, seq in zip(result.frame()["device_id"], result.frame()["seq"], strict=True)}
    assert set(ids) <= sent
    assert len(ids) >= wanted


# -- 10: a storm of actions -----------------------------------------------------------------------


@pytest.mark.parametrize("first", [
    lambda live: live.set(every="20ms"), lambda live: live.inject("rate", factor=50),
    lambda live: live.add("temperature_sensor", every="20ms"), lambda live: live.stop("count=1"),
], ids=["set", "rate", "add", "stop"])
def test_two_actions_in_one_turn_of_the_loop_with_time_between_them_are_both_done(tmp_path, first):
    # What the first brings about is due before the second, and before anybody would have looked.
    async def work():
        live = gauges("turn", count=3, every="2s").start(speed=1, start=START, capture="all")
        await live.ready()
        await until(lambda: live.snapshot().readings)
        first(live)
        time.sleep(0.05)
        live.log("and then")
        await asyncio.sleep(0.1)
        return await live.stop()

    result = asyncio.run(work())
    assert [action.verb for action in result.actions[1:]] == ["log", "stop"]
    same_again(result, tmp_path)

CLICKS, HANDS = 1_500, 20  # each waits for the instant at which its click took effect


def test_clicks_from_many_threads_are_each_in_the_log_once_and_do_it_again(tmp_path):
    """Meanwhile the speed goes from 1 to 1,000, to 0.1 and to a standstill, and devices leave."""
    said = [[] for _ in range(HANDS)]
    wrong = []

    def clicking(live, hand):
        chance = random.Random(hand)
        try:
            for n in range(CLICKS // HANDS):
                mark = f"hand {hand}, click {n}"
                match chance.randrange(30):
                    case 0 | 1:
                        live.inject("offset", f"id=gauge-{chance.randrange(1, 50):04d}", "5s",
                                    field="power", by=chance.randrange(9), reason=mark)
                    case 2:
                        live.clear("offset", where=f"count={1 + chance.randrange(3)}")
                    case 3:
                        live.set(f"count={1 + chance.randrange(3)}",
                                 every=chance.choice(("500ms", "1s", "2s")))
                    case 4 if n % 10 == 0:
                        live.stop(f"id=gauge-{chance.randrange(1, 20):04d}")
                    case _:
                        live.log(mark)
                said[hand].append(n)
        except Exception as error:
            wrong.append(error)

    async def work():
        with mosquitto() as broker:
            live = gauges("storm", count=50).publish_to(broker.url).start(
                speed=1, start=START, capture="all")
            await live.ready()
            threads = [threading.Thread(target=clicking, args=(live, hand))
                       for hand in range(HANDS)]
            for thread in threads:
                thread.start()
            for speed in itertools.cycle((1, 1000, 0.1, None)):
                live.pause() if speed is None else live.set_speed(speed)
                await asyncio.sleep(0.02)
                live.resume()
                if not any(thread.is_alive() for thread in threads):
                    break
            live.set_speed(20)
            await asyncio.sleep(0)
            return await live.stop()

    result = asyncio.run(work())
    assert not wrong, wrong
    content = [a for a in result.actions if a.verb not in ("speed", "pause", "resume")]
    assert content[-1].verb == "stop"  # of the run
    assert len(content) == CLICKS + 1
    marks = [re.search(r"hand (\d+), click (\d+)", str(action)) for action in content]
    assert sum(mark is not None for mark in marks) > CLICKS / 2
    for hand in range(HANDS):
        order = [int(mark[2]) for mark in marks if mark and int(mark[1]) == hand]
        assert order == sorted(set(order))
    (account,) = result.publishers.values()
    assert account.acknowledged == account.offered == result.rows
    same_again(result, tmp_path)
