"""AMQP when things break: broker killed, frozen, short of memory; link cut; rights revoked."""

import asyncio
import contextlib
import time
from collections import Counter

import pytest

import iotsim
from iotsim.publishers.base import build
from iotsim.publishers.pump import Pump
from tests.proxy import Proxy
from tests.publishing import (
    CheckedLedger,
    block,
    in_order_per_device,
    one,
    own,
    pumping,
    turn,
    until,
)
from tests.servers.rabbit import Consumer, rabbit_node  # noqa: F401  (a fixture)

pytestmark = pytest.mark.broker


def run(coroutine):
    return asyncio.run(coroutine)


def firsts(ids):
    """The ids as they came first."""
    return list(dict.fromkeys(ids))


async def offering(pump, count, step=100, devices=20, pause_s=0.01):
    for first in range(0, count, step):
        await pump.offer(0, block(step, first=first, devices=devices))
        await asyncio.sleep(pause_s)


@pytest.mark.slow
@pytest.mark.timeout(240)  # a node may need half a minute to come up on a busy machine
def test_killed_in_a_run_nothing_acknowledged_is_missing(rabbit):
    broker = rabbit
    count = 4_000  # twice, in a run of ten thousand devices: tests/test_ten_thousand.py

    async def work(tap):
        async with pumping(broker.url, 30, window=500, queue_messages=2000) as pump:
            task = asyncio.create_task(offering(pump, count, step=200, pause_s=0.02))
            await until(lambda: pump.snapshot().acknowledged > 500)
            await asyncio.to_thread(broker.kill)
            await until(lambda: pump.snapshot().unknown > 0)
            assert pump.snapshot().balanced
            await asyncio.to_thread(broker.start)
            await task
            assert await pump.drain(45)
        end = pump.snapshot()
        assert await tap.received(count, 45)
        return end, pump._ledger.seen

    with iotsim.tap(broker.url) as tap:
        end, seen = run(work(tap))
        assert tap.health == "ok"  # its queue has waited for it
        frame = tap.frame()
    ids = list(frame["id"])
    assert end.acknowledged == count
    assert end.reconnects == 1
    assert ("in_flight", "unknown") in seen
    assert ("unknown", "in_flight") in seen
    assert set(ids) == set(block(count, devices=20).ids)
    assert in_order_per_device(firsts(ids))
    again = sum(n - 1 for n in Counter(ids).values())
    assert again <= end.retries  # a duplicate is one of ours, or a delivery that was not confirmed
    assert len(ids) == count + again == len(frame)


def test_frozen_it_is_left_in_the_time_of_the_heartbeat_and_found_again(rabbit):
    broker = rabbit

    async def work():
        async with (Consumer(broker.url, queue="frozen"),
                    pumping(broker.url, 20, heartbeat=2) as pump):
            await pump.offer(0, block(100))
            await pump.drain(45)
            async with broker.frozen():
                began = time.monotonic()
                await pump.offer(0, block(100, first=100))
                await until(lambda: pump.snapshot().unknown == 10)
                assert pump.snapshot().queued == 90  # those behind one of their device
                assert time.monotonic() - began < 15
                assert any("not a sign of life in 2 s" in line for line in pump.errors)
            assert await pump.drain(45)
            end = pump.snapshot()
        async with Consumer(broker.url, queue="frozen") as consumer:
            await consumer.consume()
            await until(lambda: len(set(consumer.ids)) == 200)
            await consumer.queue.delete(if_unused=False, if_empty=False)
        return end, consumer.ids

    end, ids = run(work())
    assert end.acknowledged == 200
    assert end.reconnects >= 1
    assert in_order_per_device(firsts(ids))


def test_while_it_is_short_of_memory_it_says_so_and_nothing_is_lost(rabbit):
    broker = rabbit

    async def work():
        async with Consumer(broker.url) as consumer:
            await consumer.consume()
            async with pumping(broker.url, 20) as pump:
                await pump.offer(0, block(10))
                await pump.drain(45)
                async with broker.short_of_memory():
                    await pump.offer(0, block(100, first=10))
                    await until(lambda: any("blocks us: low on memory" in line
                                            for line in pump.errors))
                    await pump.offer(0, block(100, first=110))
                    await until(lambda: pump.snapshot().in_flight == 200)
                    await pump.offer(0, block(100, first=210))
                    await turn()
                    held = pump.snapshot()
                assert await pump.drain(45)
            await until(lambda: len(consumer.messages) == 310)
            return held, pump, consumer.ids

    held, pump, ids = run(work())
    assert held.acknowledged == 10
    assert held.queued == 100  # it is not written to any more
    assert pump.snapshot().acknowledged == 310
    assert pump.snapshot().reconnects == 0
    assert any("takes messages again" in line for line in pump.errors)
    assert in_order_per_device(ids)


def test_who_connects_to_a_broker_short_of_memory_and_stops_is_told_the_truth(rabbit):
    broker = rabbit

    async def work():
        pump = Pump(build(broker.url, mandatory=False), ledger=CheckedLedger())
        async with broker.short_of_memory():
            await pump.open()
            await pump.offer(0, block(10))
            await until(lambda: any("blocks us" in line for line in pump.errors))
            await pump.offer(0, block(10, first=10))
            began = time.monotonic()
            await pump.close(1)
            assert time.monotonic() - began < 8
        return pump.snapshot()

    end = run(work())
    assert end.unknown + end.dropped == 20
    assert end.balanced


@pytest.mark.parametrize("declare", [False, True])
def test_an_exchange_that_is_deleted_is_waited_for_or_made_again(rabbit, declare):
    broker = rabbit
    name = f"away-{declare}"

    async def work():
        options = {"exchange": name, "declare": declare, "mandatory": False}
        async with Consumer(broker.url, exchange=name) as consumer, Proxy(broker.port) as way:
            await consumer.consume()
            async with pumping(f"amqp://127.0.0.1:{way.port}", 20, **options) as pump:
                await pump.offer(0, block(50))
                await pump.drain(45)
                await consumer.exchange.delete(if_unused=False)
                await pump.offer(0, block(50, first=50))
                await until(lambda: pump.snapshot().unknown > 0 or declare)
                if not declare:
                    await until(lambda: any("no exchange" in s and "(404)" in s
                                            for s in pump.errors))
                    # The pump shall not come between the exchange and its queue.
                    passing, way.answer = way.answer, lambda number, data: None
                async with Consumer(broker.url, exchange=name) as again:
                    await again.consume()
                    if not declare:
                        way.answer = passing
                    assert await pump.drain(45)
                    if not declare:
                        await until(lambda: len(set(again.ids)) == 50)
            return pump, again.ids

    pump, ids = run(work())
    assert pump.snapshot().acknowledged == 100
    assert pump.snapshot().reconnects >= 1
    assert any("NOT_FOUND - no exchange" in line for line in pump.errors)
    if not declare:
        assert firsts(ids) == list(block(50, first=50).ids)


def test_rights_that_are_revoked_are_told_and_when_they_are_back_it_goes_on(rabbit):
    broker = rabbit

    async def allow(write):
        await broker.tells(f'rabbit_auth_backend_internal:set_permissions(<<"writer">>, <<"/">>, '
                           f'<<"^$">>, <<"{write}">>, <<"^$">>, <<"me">>)')

    async def work():
        async with Consumer(broker.url) as consumer:
            await consumer.consume()
            url = broker.as_user("writer")
            try:
                async with pumping(url, 20, declare=False) as pump:
                    await pump.offer(0, block(20))
                    await pump.drain(45)
                    await allow("^$")
                    await broker.tells('rabbit_networking:close_all_user_connections('
                                       '<<"writer">>, <<"revoked">>)')
                    await until(lambda: not pump._lanes[0].connected)
                    await pump.offer(0, block(20, first=20))
                    await until(lambda: any("access to exchange 'iot.telemetry'" in line
                                            for line in pump.errors))
                    assert pump.snapshot().refused == 0
                    await allow("^iot[.].*")
                    assert await pump.drain(45)
            finally:
                await allow("^iot[.].*")
            await until(lambda: len(set(consumer.ids)) == 40)
            return pump, consumer.ids

    pump, ids = run(work())
    assert pump.snapshot().acknowledged == 40
    assert any("CONNECTION_FORCED - revoked" in line for line in pump.errors)
    assert in_order_per_device(firsts(ids))
    assert "s3cret" not in " ".join(pump.errors)


@pytest.fixture
def short_pauses(monkeypatch):
    """Links that are lost are looked for again at once."""
    monkeypatch.setattr("iotsim.publishers.backoff.BACKOFF_CEILING_S", 0.05)


@pytest.mark.usefixtures("short_pauses")
def test_where_acknowledgements_are_lost_messages_are_not(rabbit):
    cuts = 12

    def answer(number, data):
        # Lets the handshake pass, and resets instead of passing on the first confirms.
        confirms = b"\x00\x3c\x00\x50" in data
        return None if confirms and number < cuts else data

    async def work():
        async with (Consumer(rabbit.url) as consumer,
                    Proxy(rabbit.port, answer) as proxy):
            await consumer.consume()
            url = f"amqp://127.0.0.1:{proxy.port}"
            async with pumping(url, 40) as pump:
                await pump.offer(0, block(1000))
                assert await pump.drain(45)
            await until(lambda: len(set(consumer.ids)) == 1000)
            return pump, consumer.ids, proxy.connections

    pump, ids, connections = run(work())
    end = pump.snapshot()
    assert end.acknowledged == 1000
    assert end.refused == 0
    assert end.reconnects >= cuts == connections - 1
    assert ("in_flight", "unknown") in pump._ledger.seen
    again = len(ids) - 1000
    assert 0 < again <= end.retries
    assert in_order_per_device(firsts(ids))


@pytest.mark.usefixtures("short_pauses")
def test_messages_cut_at_any_byte_arrive(rabbit):
    """A link that is cut in the midst of frames, in both directions, at ever other places."""

    class Cutting(Proxy):
        async def _serve(self, reader, writer):
            number, self.connections = self.connections, self.connections + 1
            left = 700 + 977 * number if number < 10 else 1 << 40
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)

            async def back():
                while data := await far_reader.read(1):
                    writer.write(data)

            async def forth():
                nonlocal left
                while left > 0 and (data := await reader.read(min(left, 311))):
                    left -= len(data)
                    far_writer.write(data)
                    await far_writer.drain()

            both = [asyncio.ensure_future(back()), asyncio.ensure_future(forth())]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
                writer.transport.abort()
                far_writer.transport.abort()

    async def work():
        async with Consumer(rabbit.url) as consumer, Cutting(rabbit.port) as proxy:
            await consumer.consume()
            async with pumping_from_afar(f"amqp://127.0.0.1:{proxy.port}") as pump:
                await pump.offer(0, block(300))
                assert await pump.drain(45)
            await until(lambda: len(set(consumer.ids)) == 300)
            return pump.snapshot(), consumer.ids

    end, ids = run(work())
    assert end.acknowledged == 300
    assert end.reconnects >= 1
    assert in_order_per_device(firsts(ids))


@contextlib.asynccontextmanager
async def pumping_from_afar(url, **options):
    """As `pumping`, but begun in the background: the first attempts fail."""
    pump = Pump(build(url, **options), ledger=CheckedLedger())
    pump.begin()
    try:
        yield pump
    finally:
        await pump.close()


def test_a_full_queue_that_drops_its_head_loses_after_the_acknowledgement(rabbit):
    """The audit's matter: the broker acknowledges, and forgets by its own policy."""

    async def work():
        short = {"x-max-length": 10}
        async with Consumer(rabbit.url, **short) as consumer:
            async with pumping(rabbit.url) as pump:
                await pump.offer(0, block(100))
                await pump.drain(45)
            await consumer.consume()
            await until(lambda: len(consumer.messages) == 10)
            return pump.snapshot(), consumer.ids

    end, ids = run(work())
    assert end.acknowledged == 100
    assert ids == list(block(10, first=90).ids)


def test_a_deleted_queue_stops_nobody_and_what_has_no_way_is_refused(rabbit):
    async def work():
        async with Consumer(rabbit.url) as kept:
            await kept.consume()
            async with (Consumer(rabbit.url, key="only") as gone,
                        pumping(rabbit.url) as pump):
                await kept.queue.unbind(kept.exchange, "#")
                await kept.queue.bind(kept.exchange, "devices/d-0/telemetry")
                await pump.offer(0, own("d-0", 5))
                await pump.offer(0, one("only"))
                await pump.drain(45)
                await gone.queue.delete(if_unused=False, if_empty=False)
                await pump.offer(0, one("only"))
                await pump.offer(0, own("d-0", 5, first=5))
            await until(lambda: len(kept.messages) == 10)
            return pump.snapshot()

    end = run(work())
    assert end.acknowledged == 11
    assert end.refusals == {"no route (312)": 1}
    assert end.reconnects == 0


def test_stopped_while_the_broker_is_away_it_ends_in_time_and_says_what_is_left(rabbit):
    broker = rabbit

    async def work():
        pump = Pump(build(broker.url, mandatory=False), ledger=CheckedLedger())
        await pump.open()
        await pump.offer(0, block(10))
        await pump.drain(45)
        async with broker.frozen():
            await pump.offer(0, block(50, first=10))
            await until(lambda: pump.snapshot().in_flight >= 10)
            began = time.monotonic()
            await pump.close(1)
            assert time.monotonic() - began < 8
        assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        return pump.snapshot()

    end = run(work())
    assert (end.acknowledged, end.unknown) == (10, 10)
    assert end.drops == {"stopped before it was sent": 40}  # those behind one of their device


# -- the tap --------------------------------------------------------------------------------------


def test_a_tap_of_a_queue_that_is_there_gets_what_waited_in_it(rabbit):
    async def work():
        async with (Consumer(rabbit.url, queue="waiting"),
                    pumping(rabbit.url, stamp=True) as pump):
            await pump.offer(0, block(30))
            await pump.drain(45)

    run(work())
    with iotsim.tap(rabbit.url, queue="waiting") as tap:
        assert tap.wait(30, 45)
        frame = tap.frame()
    assert list(frame["id"]) == list(block(30).ids)
    assert list(frame["payload"]) == list(block(30).payloads)
    assert (frame["time"] >= frame["sent"]).all()
    assert frame["topic"].iloc[0] == "devices/d-0/telemetry"
    assert not frame["dup"].any()


def test_a_tap_leaves_no_queue_and_takes_only_what_it_asked_for(rabbit):
    async def work():
        async with pumping(rabbit.url, mandatory=False, separator=".") as pump:
            await pump.offer(0, block(40))

    with iotsim.tap(rabbit.url, topic="devices.d-3.*") as tap:
        assert "iotsim-tap" in rabbit.tell("rabbit_amqqueue:list_names()")
        run(work())
        assert tap.wait(4, 45)
    assert {topic for topic, _, _ in tap.messages()} == {"devices.d-3.telemetry"}
    deadline = time.monotonic() + 45
    while "iotsim-tap" in rabbit.tell("rabbit_amqqueue:list_names()"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("url", "options", "text"), [
    ("amqp://127.0.0.1:1", {}, "nothing listens there"),
    ("{url}/nowhere", {}, "is there such a vhost"),
    ("{url}", {"queue": "none"}, "no queue 'none'"),
    ("{nobody}", {}, "ACCESS_REFUSED - access to"),
    ("{wrong}", {}, "Login was refused"),
])
def test_a_tap_that_may_not_listen_says_why_in_a_line(rabbit, url, options, text):
    url = url.format(url=rabbit.url, nobody=rabbit.as_user("nobody"),
                     wrong=rabbit.as_user("nobody", "s3cret-wrong"))
    with pytest.raises(iotsim.IotsimError, match=text) as caught:
        iotsim.tap(url, **options)
    assert "s3cret" not in str(caught.value)
