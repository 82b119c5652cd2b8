"""HTTP when things break: answers lost, servers silent, killed; nothing is lost silently."""
# ruff: noqa: F811 - fixtures are imported

import asyncio
import json
import os
import socket
from collections import Counter
from contextlib import asynccontextmanager

import pytest

import iotsim
from iotsim import Fleet
from iotsim.clock import monotonic
from iotsim.publishers.base import build
from iotsim.publishers.http_link import HttpLink
from tests.proxy import Proxy
from tests.publishing import block, in_order_per_device, own, pumping, until
from tests.servers.http import Reply, endpoint  # noqa: F401
from tests.test_http import documents, post

pytestmark = pytest.mark.broker


async def _drained(pump, seconds=45):
    assert await pump.drain(seconds), (pump.snapshot(), pump.errors)


def deduplicated(got):
    """What an endpoint keeps that heeds the key."""
    first = {}
    for one in got:
        first.setdefault(one.key, one)
    return list(first.values())


@asynccontextmanager
async def idle_server(serve):
    """A plain TCP server; its connections end with it."""
    tasks = set()

    async def track(reader, writer):
        task = asyncio.current_task()
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(track, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


# -- answers that get lost --------------------------------------------------------------------


def test_a_thousand_lost_answers_lose_nothing_and_keys_tell_the_duplicates(endpoint):
    server = endpoint(lambda got: Reply(cut="after") if got.seen == 0 else Reply())

    async def publish():
        async with pumping(server.url, connections=50) as pump:
            await pump.offer(0, block(1000, devices=100))
            await _drained(pump)
            return pump

    pump = asyncio.run(publish())
    account = pump.snapshot()
    assert account.acknowledged == 1000
    assert account.retries >= 1000
    assert account.reconnects == 0
    assert ("in_flight", "unknown") in pump._ledger.seen
    assert ("unknown", "in_flight") in pump._ledger.seen
    assert set(Counter(one.key for one in server.taken).values()) == {2}
    kept = deduplicated(server.taken)
    assert len(kept) == 1000
    assert in_order_per_device([one.key for one in kept])
    bodies = {(one.key, one.body) for one in server.got}
    assert len(bodies) == 1000


def test_a_batch_whose_answer_is_lost_goes_out_again_as_the_same_batch(endpoint):
    server = endpoint(lambda got: Reply(cut="after") if got.seen < 2 else Reply())
    sent = documents(1000, devices=40)
    account, _ = post(server.url, sent, batch=30, connections=4)
    assert account.acknowledged == 1000
    kept = deduplicated(server.taken)
    assert len({(one.key, one.body) for one in server.got}) == len(kept)
    ids = [d["_id"] for one in kept for d in json.loads(one.body)]
    assert sorted(ids) == sorted(sent.ids)
    assert in_order_per_device(ids)


def test_an_answer_cut_at_any_byte_loses_nothing():
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntaken"
    head_bytes = answer.index(b"taken")

    async def publish():
        posts = Counter()

        async def serve(reader, writer):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"HEAD"):
                    writer.write(answer[:head_bytes])
                    continue
                await reader.readexactly(40)
                key = head.split(b"Idempotency-Key: ")[1].split(b"\r\n")[0].decode()
                posts[key] += 1
                cut = min(int(key.split("/")[2]), len(answer)) if posts[key] == 1 else len(answer)
                writer.write(answer[:cut])
                if cut < len(answer):
                    await writer.drain()
                    writer.close()
                    return

        url = "http://127.0.0.1:{}/in"
        async with idle_server(serve) as port, pumping(url.format(port), connections=4) as pump:
            await pump.offer(0, block(4 * len(answer), devices=4))
            await _drained(pump)
            return pump.snapshot(), posts

    account, posts = asyncio.run(publish())
    assert account.acknowledged == account.offered == len(posts)
    assert account.refused == account.reconnects == 0
    assert all(count == (2 if int(key.split("/")[2]) < head_bytes else 1)
               for key, count in posts.items())


def test_an_answer_cut_in_its_body_is_an_answer():
    lines = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"

    async def publish():
        posts = []

        async def serve(reader, writer):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"HEAD"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    continue
                posts.append(head)
                writer.write(lines)
                await writer.drain()
                return

        async with idle_server(serve) as port, pumping(f"http://127.0.0.1:{port}/in") as pump:
            await pump.offer(0, block(20))
            await _drained(pump)
            return pump.snapshot(), posts

    account, posts = asyncio.run(publish())
    assert (account.acknowledged, account.retries, len(posts)) == (20, 0, 20)


def test_a_reading_at_which_the_connection_always_ends_is_given_up_and_stops_nobody(
    endpoint, monkeypatch
):
    monkeypatch.setattr("iotsim.publishers.refusals.TRIES_MAX", 6)  # two seconds instead of eight
    server = endpoint(lambda got: Reply(cut="before") if got.key == "run/d-3/0/0" else Reply())
    account, errors = post(server.url, block(500), seconds=30)
    assert (account.acknowledged, account.refused) == (499, 1)
    assert account.reconnects == 0
    [reason] = account.refusals
    assert reason.endswith(", 6 times")
    assert Counter(one.key for one in server.got)["run/d-3/0/0"] == 6
    assert any("sent again" in line for line in errors)


@pytest.mark.parametrize("batch", [1, 8])
def test_what_is_dropped_while_the_server_asks_us_to_wait_holds_nobody_up(endpoint, batch):
    server = endpoint(lambda got: Reply(503, headers={"Retry-After": "1"})
                      if len(server.got) <= 2 else Reply())

    async def publish():
        async with pumping(server.url, backpressure="drop_oldest", queue_messages=20,
                           batch=batch, connections=2) as pump:
            await pump.offer(0, block(20, devices=4))
            await until(lambda: len(server.got) >= 2 and not pump.snapshot().in_flight)
            await pump.offer(0, block(7, first=20, devices=4))
            held = pump.snapshot()
            await _drained(pump)
            return held, pump.snapshot()

    held, account = asyncio.run(publish())
    assert held.queued == 20
    assert (account.dropped, account.acknowledged) == (7, 20)


def test_a_reading_that_the_server_never_answers_delays_only_its_device(endpoint):
    server = endpoint(
        lambda got: Reply(delay_s=5) if got.key == "run/d-3/0/0" and got.seen < 2 else Reply()
    )

    async def publish():
        # The others go on all the time, so that the server is not taken for dead.
        async with pumping(server.url, timeout_s=0.3, connections=4) as pump:
            await pump.offer(0, block(10))
            n = 10
            while pump.snapshot().acknowledged < n:
                await pump.offer(0, own("busy", 1, n))
                n += 1
                await asyncio.sleep(0.01)
            await _drained(pump)
            return pump.snapshot(), pump.errors

    account, errors = asyncio.run(publish())
    assert account.acknowledged == account.offered
    assert account.reconnects == 0
    assert Counter(one.key for one in server.got)["run/d-3/0/0"] == 3
    assert any("no answer to a request in time" in line for line in errors)


# -- servers that go away ---------------------------------------------------------------------


def test_a_server_that_is_killed_again_and_again_loses_nothing(endpoint):
    server = endpoint(lambda got: Reply(delay_s=0.001))

    async def publish():
        async with pumping(server.url, connections=8) as pump:
            async def feed():
                for n in range(40):
                    await pump.offer(0, block(50, first=50 * n, devices=25))
                    await asyncio.sleep(0.02)

            feeding = asyncio.ensure_future(feed())
            for _ in range(4):
                before = len(server.got)
                await until(lambda before=before: len(server.got) > before + 20)
                await asyncio.to_thread(server.kill)
                await until(lambda: pump.connected == 0)
                await asyncio.to_thread(server.start)
                await until(lambda: pump.connected == 1)
            await feeding
            await _drained(pump)
            return pump

    pump = asyncio.run(publish())
    account = pump.snapshot()
    assert account.acknowledged == account.offered == 2000
    assert account.reconnects >= 4
    assert ("in_flight", "unknown") in pump._ledger.seen
    kept = deduplicated(server.taken)
    assert len(kept) == 2000
    assert in_order_per_device([one.key for one in kept])
    assert any("connection refused" in line for line in pump.errors)


def test_a_silent_server_is_a_lost_link_and_refuses_no_reading(endpoint):
    server = endpoint()

    async def publish():
        async with pumping(server.url, timeout_s=0.3, connections=4) as pump:
            await pump.offer(0, block(100))
            await _drained(pump)
            server.freeze()
            await pump.offer(0, block(100, first=100))
            await until(lambda: pump.connected == 0)
            assert pump.snapshot().unknown > 0
            server.thaw()
            await _drained(pump)
            return pump.snapshot(), pump.errors

    account, errors = asyncio.run(publish())
    assert (account.acknowledged, account.refused) == (200, 0)
    assert account.reconnects >= 1
    assert any("link lost: no answer" in line for line in errors)
    assert in_order_per_device([one.key for one in deduplicated(server.taken)])


def test_a_connection_that_neither_reads_nor_ends_is_left(endpoint):
    # The peer's window is full and stays so: only our own deadline helps.
    async def publish():
        connections = []

        async def serve(reader, writer):
            connections.append(writer)
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"HEAD") or len(connections) > 2:
                writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                while await reader.read(1 << 20):
                    pass
                return
            await asyncio.Event().wait()

        async with idle_server(serve) as port:
            url = f"http://127.0.0.1:{port}/in"
            async with pumping(url, timeout_s=0.5, connections=1) as pump:
                large = block(1, size=30_000_000)
                await pump.offer(0, large)
                await _drained(pump)
                return pump.snapshot()

    account = asyncio.run(publish())
    assert account.acknowledged == 1
    assert account.retries >= 1


def test_an_unavailable_server_is_waited_for_and_its_readings_are_not_given_up(endpoint):
    until_s = monotonic() + 3
    server = endpoint(lambda got: Reply() if monotonic() > until_s else Reply(503))
    account, _ = post(server.url, block(50), seconds=30)
    assert (account.acknowledged, account.refused) == (50, 0)
    assert in_order_per_device([one.key for one in server.taken])


def test_a_permission_that_is_revoked_shows_as_refusals(endpoint):
    server = endpoint(lambda got: Reply() if got.number < 50 else Reply(401, body=b"expired"))
    account, _ = post(server.url, block(200), token="t0ken")
    assert (account.acknowledged, account.refused) == (50, 150)
    assert dict(account.refusals) == {"HTTP 401: expired": 150}


def test_a_connection_that_the_server_closes_after_each_answer_costs_nothing(endpoint):
    server = endpoint(lambda got: Reply(headers={"Connection": "close"}))
    account, errors = post(server.url, block(200))
    assert (account.acknowledged, account.retries) == (200, 0), errors


def test_a_tap_that_comes_back_on_its_port_gets_the_rest():
    async def publish():
        with iotsim.tap("http://127.0.0.1:0/in") as first:
            url = first.url
            async with pumping(url) as pump:
                await pump.offer(0, block(100))
                await _drained(pump)
                await asyncio.to_thread(first.close)
                await pump.offer(0, block(100, first=100))
                await until(lambda: pump.connected == 0)
                with await asyncio.to_thread(iotsim.tap, url) as second:
                    await _drained(pump)
                    assert await second.received(100, 45)
                    return {ident for tap in (first, second) for _, _, ident in tap.messages()}

    assert len(asyncio.run(publish())) == 200


@pytest.mark.parametrize("options", [{}, {"batch": 20}])
def test_the_audit_of_a_run_whose_answers_get_lost_finds_duplicates_and_no_loss(options):
    answers = Counter()
    fleet = Fleet("plant", seed=42).add("temperature_sensor", count=60)

    def cut_some(number, data):
        answers["all"] += 1
        return None if answers["all"] % 15 == 0 else data

    async def publish(tap):
        async with Proxy(int(tap.url.split(":")[2].split("/")[0]), cut_some) as proxy:
            url = f"http://127.0.0.1:{proxy.port}/in"
            run = fleet.publish_to(url, stamp=True, **options).start(speed=20)
            await until(lambda: tap.count > 600)
            return await run.stop()

    with iotsim.tap("http://127.0.0.1:0/in") as tap:
        result = asyncio.run(publish(tap))
        found = result.audit(tap, publisher=next(iter(result.publishers)))
    assert found.duplicated > 0
    assert found.lost == found.unexpected == found.corrupted == 0, found
    assert found.ok
    assert found.sent == found.received == len(result.frame())
    assert not result.errors


# -- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["frozen", "slow", "unavailable", "gone"])
def test_the_end_comes_in_time_whatever_the_server_does(endpoint, when):
    reply = {"slow": Reply(delay_s=30), "unavailable": Reply(503)}.get(when, Reply())
    server = endpoint(lambda got: reply)
    files = len(os.listdir("/proc/self/fd"))

    async def publish():
        async with pumping(server.url, deadline_s=1.0) as pump:
            if when == "frozen":
                server.freeze()
            if when == "gone":
                await asyncio.to_thread(server.kill)
            await pump.offer(0, block(500))
            if when != "gone":
                await until(lambda: pump.snapshot().in_flight or pump.snapshot().retries)
            began_s = monotonic()
        assert monotonic() - began_s < 15
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return pump.snapshot()

    account = asyncio.run(publish())
    assert account.acknowledged == 0
    assert account.dropped + account.unknown == 500
    if when in ("frozen", "slow"):
        assert 1 <= account.unknown <= 8
    assert len(os.listdir("/proc/self/fd")) <= files + 12  # those of the server


def test_answers_that_are_due_are_waited_for_at_the_end(endpoint):
    server = endpoint(lambda got: Reply(delay_s=0.2))

    async def publish():
        async with pumping(server.url, deadline_s=0.5) as pump:
            await pump.offer(0, block(8, devices=8))
            await until(lambda: server.running_most == 8)
        return pump.snapshot()

    assert asyncio.run(publish()).acknowledged == 8


class _Told:
    """Verdicts as they come."""

    def __init__(self):
        self.heard = []

    def __getattr__(self, name):
        return lambda *args, **more: self.heard.append((name, args))


def test_after_a_drop_nothing_is_said_and_nothing_is_left(endpoint):
    server = endpoint(lambda got: Reply(delay_s=0.05))

    async def publish(told):
        link = HttpLink(build(server.url), "x", told)
        sent = block(50)
        for _ in range(3):
            assert await link.open() > 0
            items = list(zip(sent.topics, sent.payloads, sent.ids, [0.0] * 50, strict=True))
            assert link.send(range(50), items)
            before = len(server.got)
            await until(lambda before=before: len(server.got) > before)
            link.drop()
            assert link.send([1], items[:1]) is False
            heard = len(told.heard)
            await until(lambda: len(asyncio.all_tasks()) == 1)
            assert len(told.heard) == heard
        link.drop()
        await link.close()

    asyncio.run(publish(_Told()))


def test_opening_can_be_cancelled_at_any_moment():
    async def publish():
        async def serve(reader, writer):
            await reader.read()

        async with idle_server(serve) as port:
            link = HttpLink(build(f"http://127.0.0.1:{port}"), "x", _Told())
            for turns in range(12):
                opening = asyncio.ensure_future(link.open())
                for _ in range(turns):
                    await asyncio.sleep(0)
                opening.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await opening
            await until(lambda: len([t for t in asyncio.all_tasks()
                                     if "http" in t.get_name()]) == 0)

    asyncio.run(publish())


def test_a_port_that_takes_connections_and_says_nothing_is_an_error_in_time():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/in"

        async def publish():
            async with pumping(url):
                pass

        began_s = monotonic()
        with pytest.raises(iotsim.errors.ConnectError, match="no answer"):
            asyncio.run(publish())
        assert monotonic() - began_s < 15
