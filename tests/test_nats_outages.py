"""NATS when it goes wrong: killed, stopped, cut, silent, leaving; nothing is lost in silence."""

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

import iotsim
from tests.proxy import Proxy
from tests.publishing import block, in_order_per_device, one, pumping, until
from tests.servers import nats as servers
from tests.test_nats import Scripted

nats_server = servers.nats_server  # the fixture
pytestmark = pytest.mark.broker


async def drained(pump, seconds=45):
    assert await pump.drain(seconds), (pump.snapshot(), pump.errors)


@pytest.fixture
def server(nats_server):
    one = nats_server(jetstream=True)
    one.add_stream()
    return one


def stood_still(server):
    """Stop a server's process, and wait until all of it stands."""
    server.signal(signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stored_once(server, blocks):
    """Whether a stream holds each message of these once, each device's in order."""
    got = server.stored()
    assert Counter((i, p) for _, i, p in got) == Counter(
        pair for m in blocks for pair in zip(m.ids, m.payloads, strict=True))
    assert in_order_per_device(i for _, i, _ in got)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stream_whose_server_is_killed_twice_holds_everything_once(server, ordered):
    blocks = [block(500, first=n * 500, devices=200) for n in range(10)]

    async def work():
        async with pumping(server.jetstream_url, ordered=ordered) as pump:
            for n, messages in enumerate(blocks):
                if n in (3, 7):  # while the block before is in flight
                    server.kill()
                    await pump.offer(0, messages)
                    await asyncio.to_thread(server.start)
                    await until(lambda: pump.connected)
                else:
                    await pump.offer(0, messages)
                    await asyncio.sleep(0)
            await drained(pump)
            return pump.snapshot(), pump.errors, pump._ledger.seen

    account, errors, seen = asyncio.run(work())
    assert account.acknowledged == account.offered == 5_000
    assert account.reconnects >= 2
    assert account.unknown == 0
    assert ("in_flight", "unknown") in seen
    assert any("link lost" in text for text in errors)
    stored_once(server, blocks)


def test_core_messages_without_a_pong_are_sent_again_after_a_kill(nats_server):
    server = nats_server()
    blocks = [block(500, first=n * 500) for n in range(10)]

    async def work(tap):
        async with pumping(server.url) as pump:
            for n, messages in enumerate(blocks):
                await pump.offer(0, messages)
                if n in (3, 7):
                    await asyncio.sleep(0)  # it is written
                    server.kill()
                    await until(lambda: not pump.connected)
                    await asyncio.to_thread(server.start)
                    await until(lambda: pump.connected)
            await drained(pump)
            return pump.snapshot()

    with iotsim.tap(server.url) as tap:
        account = asyncio.run(work(tap))
        assert tap._until(lambda: "was disconnected" in tap.health, 45)
    assert account.acknowledged == 5_000
    assert account.unknown == 0
    assert account.reconnects >= 2


def test_what_is_offered_without_a_fence_has_left_when_the_pump_is_closed(nats_server):
    server = nats_server()
    with iotsim.tap(server.url) as tap:
        async def work():
            async with pumping(server.url, fence=False) as pump:
                for n in range(8):
                    await pump.offer(0, block(1000, first=n * 1000, size=1000))

        asyncio.run(work())
        assert tap.wait(8_000, 45)
        assert tap.ok


@pytest.mark.parametrize("scheme", ["nats", "nats+jetstream"])
def test_an_answer_that_is_lost_with_its_connection_costs_no_message(server, scheme):
    # Each connection passes one answer on, so that no message looks as if it were the cause.
    cuts, passed = 15, Counter()

    def answer(number, data):
        if b'"seq"' in data or data == b"PONG\r\n":
            passed[number] += 1
            if number < cuts and passed[number] > 2 + (scheme == "nats+jetstream"):
                return None
        return data

    blocks = [block(100, first=n * 100, devices=20) for n in range(10)]

    async def work():
        proxy = Proxy(server.port, answer)
        async with proxy, pumping(f"{scheme}://127.0.0.1:{proxy.port}", window=20) as pump:
            for messages in blocks:
                await pump.offer(0, messages)
            await drained(pump, 40)
            return pump.snapshot(), proxy.connections

    if scheme == "nats":
        with iotsim.tap(server.url) as tap:
            account, connections = asyncio.run(work())
            ids = {i for m in blocks for i in m.ids}  # some arrive twice
            assert tap._until(lambda: {i for _, _, i in tap.messages()} == ids, 45)
    else:
        account, connections = asyncio.run(work())
        stored_once(server, blocks)
    assert account.acknowledged == 1000
    assert account.unknown == 0
    assert connections == cuts + 1


def test_acknowledgements_that_never_come_are_asked_for_by_sending_again(server):
    def answer(number, data):
        return b"" if number == 0 and b'"seq"' in data and b"api" not in data else data

    async def work():
        async with Proxy(server.port, answer) as proxy:
            url = f"nats+jetstream://127.0.0.1:{proxy.port}"
            async with pumping(url, ack_wait_s=0.5) as pump:
                await pump.offer(0, block(200))
                await drained(pump)
                return pump.snapshot(), pump.errors

    account, errors = asyncio.run(work())
    assert account.acknowledged == 200
    assert account.reconnects == 1
    assert "link lost: no acknowledgement of the stream for 0.5 s" in errors
    stored_once(server, [block(200)])


@pytest.mark.parametrize("scheme", ["nats", "nats+jetstream"])
def test_a_server_that_stands_still_is_left_and_found_again(server, scheme):
    async def work():
        url = f"{scheme}://127.0.0.1:{server.port}"
        async with pumping(url, keepalive=2) as pump:
            await pump.offer(0, block(100))
            await drained(pump)
            stood_still(server)
            try:
                await pump.offer(0, block(100, first=100))
                begun = time.monotonic()
                await until(lambda: pump.snapshot().unknown == 100)
                took_s = time.monotonic() - begun
            finally:
                server.signal(signal.SIGCONT)
            await drained(pump)
            return pump.snapshot(), pump.errors, took_s

    account, errors, took_s = asyncio.run(work())
    assert account.acknowledged == 200
    assert "link lost: no answer to a PING in 1 s" in errors
    assert took_s < 20
    if scheme == "nats+jetstream":
        stored_once(server, [block(200)])


def test_stopping_while_the_server_stands_still_is_quick_and_says_what_is_not_known(server):
    async def work():
        async with pumping(server.jetstream_url, deadline_s=1.5) as pump:
            await pump.offer(0, block(100))
            await drained(pump)
            stood_still(server)
            await pump.offer(0, block(100, first=100))
            await asyncio.sleep(0.05)
            begun = time.monotonic()
        return pump.snapshot(), time.monotonic() - begun

    try:
        account, took_s = asyncio.run(work())
    finally:
        server.signal(signal.SIGCONT)
    assert (account.acknowledged, account.unknown) == (100, 100)
    assert took_s < 10


def test_a_server_in_lame_duck_mode_is_left_in_peace(server):
    blocks = [block(500, first=n * 500, devices=20) for n in range(4)]

    async def work():
        async with pumping(server.jetstream_url) as pump:
            await pump.offer(0, blocks[0])
            await drained(pump)
            await pump.offer(0, blocks[1])
            await asyncio.sleep(0)
            server.signal(signal.SIGUSR2)
            await until(lambda: pump.snapshot().in_flight == 0 and not pump.connected)
            left = pump.snapshot()
            await pump.offer(0, blocks[2])
            server.kill()
            await asyncio.to_thread(server.start)
            await pump.offer(0, blocks[3])
            await drained(pump)
            return left, pump.snapshot(), pump.errors

    left, account, errors = asyncio.run(work())
    assert left.unknown == 0  # what was in flight had its answer first
    assert account.acknowledged == 2000
    assert any("about to shut down (lame duck mode)" in text for text in errors)
    stored_once(server, blocks)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"-ERR 'Slow Consumer'\r\n", "the server ended the connection: slow consumer"),
        (b"-ERR 'Stale Connection'\r\n", "the server ended the connection: stale connection"),
        (b"-ERR 'User Authentication Expired'\r\n", "user authentication expired"),
        (b"rubbish\r\n", "it does not speak NATS: it sent b'rubbish"),
        (b"MSG x y z\r\n", "it does not speak NATS"),
        (b"x" * 70_000, "it does not speak NATS"),
        (None, "the peer closed the connection"),
    ],
)
def test_whatever_ends_a_connection_is_said_and_what_had_no_answer_goes_out_again(said, why):
    seen = []

    def answer(peer, writer, line):
        if line.startswith(b"HPUB"):
            seen.append(line)
        if line == b"PING" and seen and peer.connections == 1:
            if said is None:
                writer.close()
            else:
                writer.write(said)
        elif line == b"PING":
            writer.write(b"PONG\r\n")

    async def work():
        async with Scripted(answer=answer) as peer, pumping(peer.url) as pump:
            await pump.offer(0, block(50))
            await drained(pump)
            return pump.snapshot(), pump.errors

    account, errors = asyncio.run(work())
    assert (account.acknowledged, account.reconnects) == (50, 1)
    assert any(why in text for text in errors), errors
    assert len(seen) in (50 + 50, 50 + 1 + 49)


def test_a_message_that_ends_the_connection_twice_is_refused_and_passed_over():
    def answer(peer, writer, line):
        if line.startswith(b"HPUB poison"):
            writer.write(b"-ERR 'Maximum Payload Violation'\r\n")
            writer.close()
        elif line == b"PING" and not writer.is_closing():
            writer.write(b"PONG\r\n")

    async def work():
        async with Scripted(answer=answer) as peer, pumping(peer.url) as pump:
            await pump.offer(0, one("poison"))
            await pump.offer(0, block(50))
            await drained(pump)
            return pump.snapshot()

    account = asyncio.run(work())
    assert account.acknowledged == 50
    assert dict(account.refusals) == {"ended the connection twice": 1}


def test_a_server_that_asks_whether_we_live_is_answered(nats_server):
    server = nats_server(more='ping_interval: "200ms"\nping_max: 1')

    async def work():
        async with pumping(server.url) as pump:
            await pump.offer(0, block(10))
            await asyncio.sleep(1)  # five questions
            await pump.offer(0, block(10, first=10))
            await drained(pump)
            return pump.snapshot()

    account = asyncio.run(work())
    assert (account.acknowledged, account.reconnects) == (20, 0)


def test_a_link_that_is_idle_and_half_open_is_noticed_and_made_anew(server):
    def answer(number, data):
        return b"" if number == 0 and closed else data

    closed = []

    async def work():
        proxy = Proxy(server.port, answer)
        async with proxy, pumping(f"nats://127.0.0.1:{proxy.port}", keepalive=2) as pump:
            closed.append(True)
            await until(lambda: pump.snapshot().reconnects == 1)
            await pump.offer(0, block(10))
            await drained(pump)
            return pump.snapshot()

    assert asyncio.run(work()).acknowledged == 10


def test_a_tap_that_is_too_slow_for_its_server_says_so(nats_server):
    server = nats_server(more='write_deadline: "200ms"\nmax_payload: 100000\nmax_pending: 1000000')

    async def work():
        async with pumping(server.url) as pump:
            for n in range(30):
                await pump.offer(0, block(1000, first=n * 1000, size=1000))
            await drained(pump)

    with iotsim.tap(server.url) as tap:
        os.kill(tap._process.pid, signal.SIGSTOP)
        try:
            asyncio.run(work())
        finally:
            os.kill(tap._process.pid, signal.SIGCONT)
        assert tap._until(lambda: "disconnected" in tap.health or "dropped" in tap.health, 45)
        assert tap.count < 30_000


def test_a_tap_of_a_stream_misses_nothing_while_its_server_is_away(server):
    async def work(first):
        async with pumping(server.jetstream_url) as pump:
            await pump.offer(0, block(500, first=first))
            await drained(pump)

    with iotsim.tap(server.jetstream_url) as tap:
        asyncio.run(work(0))
        assert tap.wait(500, 45)
        server.kill()
        server.start()
        asyncio.run(work(500))
        assert tap.wait(1000, 45)
        assert tap._until(lambda: tap.ok, 45), tap.health
        assert [i for _, _, i in tap.messages()] == list(block(1000).ids)


def test_a_link_that_is_hung_up_comes_back_with_everything(server):
    async def work():
        async with pumping(server.jetstream_url) as pump:
            await pump.offer(0, block(1000, devices=50))
            await asyncio.sleep(0)
            pump.hang_up(0)
            await pump.offer(0, block(1000, first=1000, devices=50))
            await asyncio.sleep(0.05)
            assert pump.connected == 0
            pump.call_back(0)
            await drained(pump)
            return pump.snapshot()

    assert asyncio.run(work()).acknowledged == 2000
    stored_once(server, [block(2000, devices=50)])
