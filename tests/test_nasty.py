"""The nasty cases of RELIABILITY.md: what no other test file holds yet."""

import asyncio
import os
import re
import signal
import socket
import time
from types import SimpleNamespace

import pytest

import iotsim
from iotsim import clock
from tests.live import START, generated, sensors, until
from tests.proxy import Proxy
from tests.publishing import Gate, block, gated, in_order_per_device, pumping
from tests.servers.coap import ScriptedPeer, path_of
from tests.servers.nats import nats_server  # noqa: F401  (a fixture)

pytestmark = pytest.mark.timeout(120)


# -- a message that never gets an answer ----------------------------------------------------------


def test_a_message_without_an_answer_is_tried_a_bounded_number_of_times():
    lost = "run/d-2/0/0"

    def behave(link, tokens, items):
        for token, item in zip(tokens, items, strict=True):
            if item[2] == lost:
                link.verdicts.uncertain([token], "no answer")
            else:
                link.verdicts.acknowledged([token])

    async def work():
        gate = Gate(behave=behave)
        async with gated(gate) as pump:
            await pump.offer(0, block(40))
            assert await pump.drain(5)
            assert not pump._lanes[0]._tries
            return pump.snapshot(), gate.links[0].sent

    account, sent = asyncio.run(work())
    assert account.acknowledged == 39
    assert dict(account.refusals) == {"no answer, 8 times": 1}
    assert sent.count(lost) == 8
    assert account.retries == 7


def test_a_reading_that_a_coap_server_never_answers_is_given_up_and_stops_nobody():
    mute = "devices/d-3/telemetry"

    def behave(peer, message, addr):
        if path_of(message) != mute or not message.payload.startswith(b"3."):
            peer.answer(message, addr)

    async def work():
        async with (
            ScriptedPeer(behave) as peer,
            pumping(peer.url, ack_timeout_s=0.05, max_retransmit=1, rate=200) as pump,
        ):
            await pump.offer(0, block(600))  # three seconds of answers for the others
            assert await pump.drain(20)
        return pump.snapshot(), [bytes(m.payload).rstrip(b".") for m in peer.requests]

    account, asked = asyncio.run(work())
    assert dict(account.refusals) == {"no answer, 8 times": 1}
    assert account.acknowledged == 599
    assert asked.count(b"3") == 16  # each of the eight tries has one retransmission
    assert in_order_per_device(dict.fromkeys(f"run/d-{int(n) % 10}/{int(n)}/0" for n in asked))


# -- 2: windows -----------------------------------------------------------------------------------


@pytest.mark.broker
@pytest.mark.parametrize("window", [1, 2, 20])
def test_no_more_is_under_way_to_a_stream_than_the_window_allows(nats_server, window):  # noqa: F811
    server = nats_server(jetstream=True)
    server.add_stream()
    seen = {"sent": 0, "answered": 0, "most": 0}

    def count(number, data):
        seen["answered"] += data.count(b'"seq"')
        return data

    class Counting(Proxy):
        def _accept(self, reader, writer):
            read = reader.read

            async def counted(size):
                data = await read(size)
                seen["sent"] += len(re.findall(rb"HPUB devices", data))
                seen["most"] = max(seen["most"], seen["sent"] - seen["answered"])
                return data

            reader.read = counted
            super()._accept(reader, writer)

    async def work():
        async with Counting(server.port, count) as proxy:
            url = f"nats+jetstream://127.0.0.1:{proxy.port}"
            async with pumping(url, window=window) as pump:
                await pump.offer(0, block(300, devices=100))
                assert await pump.drain(20)
                return pump.snapshot()

    assert asyncio.run(work()).acknowledged == seen["sent"] == 300
    assert seen["most"] == window


# -- 12: the wall clock is stepped ----------------------------------------------------------------


@pytest.mark.broker
def test_a_wall_clock_that_is_stepped_changes_neither_pace_nor_timestamps(mosquitto, monkeypatch):
    broker, step_ns = mosquitto(), [0]
    stepped = SimpleNamespace(monotonic=time.monotonic, process_time=time.process_time,
                              thread_time=time.thread_time,
                              time_ns=lambda: time.time_ns() + step_ns[0])
    monkeypatch.setattr(clock, "time", stepped)
    fleet = sensors("stepped", count=100)

    async def work():
        run = fleet.publish_to(broker.url, keepalive=2).start("40s", speed=20, capture="all")
        await run.ready()
        paces = []
        for hours in (-1, 24, 0):
            elapsed_us, began_s = run.snapshot().elapsed_us, time.monotonic()
            step_ns[0] = hours * 3_600_000_000_000
            await asyncio.sleep(0.4)
            passed_s = (run.snapshot().elapsed_us - elapsed_us) / 1e6
            paces.append(passed_s / (time.monotonic() - began_s))
        return await run.wait(), paces

    with iotsim.tap(broker.url) as tap:
        result, paces = asyncio.run(work())
        assert tap.wait(result.rows)
        audit = result.audit(tap)
    assert all(15 < pace < 25 for pace in paces), paces
    assert result.digest == generated(fleet, result)
    assert audit.ok, audit.verdict
    assert audit.received == audit.sent == result.rows == 800
    assert not result.errors
    (account,) = result.publishers.values()
    assert account.reconnects == 0
    assert 0 < account.latency_max_s < 5


# -- somebody reads slowly ------------------------------------------------------------------------


def subscribed_and_deaf(port):
    """A subscriber of MQTT that never reads what it is sent."""
    deaf = socket.create_connection(("127.0.0.1", port))
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.sendall(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04deaf")
    assert deaf.recv(4)[:1] == b"\x20"
    deaf.sendall(b"\x82\x06\x00\x01\x00\x01#\x01")
    assert deaf.recv(5)[:1] == b"\x90"
    return deaf


@pytest.mark.broker
def test_a_subscriber_that_does_not_read_slows_nobody_and_its_losses_are_the_brokers(mosquitto):
    broker = mosquitto(conf=("max_queued_messages 100", "max_inflight_messages 20"))
    fleet = sensors("slow", count=1000).publish_to(broker.url, qos=1)

    async def work(tap):
        run = fleet.start("60s", speed=30, start=START, capture="all")
        await run.ready()
        await tap.received(500)
        os.kill(tap._process.pid, signal.SIGSTOP)
        await until(lambda: run.snapshot().readings > 6_000)
        result = await run.wait()
        os.kill(tap._process.pid, signal.SIGCONT)
        return result

    with (subscribed_and_deaf(broker.port),
          iotsim.tap(broker.url, qos=1) as tap):
        result = asyncio.run(work(tap))
        assert tap._until(lambda: tap.count > 500, 10)
        audit = result.audit(tap)
    (account,) = result.publishers.values()
    assert account.acknowledged == account.offered == result.rows == 12_000
    assert account.latency_p99_s < 1
    assert result.quality == "valid" or "publisher" not in result.quality
    assert audit.lost_by_simulator == audit.lost_in_flight == 0
    missing = audit.sent - audit.received
    assert missing > 1000
    assert audit.lost_by_broker + audit.unknown == missing, audit.verdict


@pytest.mark.broker
def test_a_tap_that_nats_cut_off_for_its_slowness_accuses_nobody(nats_server):  # noqa: F811
    server = nats_server(more='write_deadline: "200ms"\nmax_payload: 100000\nmax_pending: 200000')
    fleet = sensors("slow", count=2000).publish_to(server.url)

    async def work(tap):
        run = fleet.start("60s", speed=30, start=START, capture="all")
        await run.ready()
        os.kill(tap._process.pid, signal.SIGSTOP)
        result = await run.wait()
        os.kill(tap._process.pid, signal.SIGCONT)
        return result

    with iotsim.tap(server.url) as tap:
        result = asyncio.run(work(tap))
        assert tap._until(lambda: "was disconnected" in tap.health, 10)
        audit = result.audit(tap)
    assert "Slow Consumer" in server.log()
    (account,) = result.publishers.values()
    assert account.acknowledged == account.offered == result.rows
    assert account.reconnects == 0
    assert audit.lost == 0, audit.verdict
    assert audit.unknown == audit.sent - audit.received > 0
    assert audit.verdict.startswith("unknown"), audit.verdict


# -- the disk of the broker is full ---------------------------------------------------------------


@pytest.mark.broker
def test_a_stream_whose_disk_is_full_holds_all_that_was_acknowledged(nats_server):  # noqa: F811
    server = nats_server(jetstream=True, max_file="200KB")
    server.add_stream()
    fleet = sensors("full", count=50).publish_to(server.jetstream_url)

    async def work():
        run = fleet.start(speed=20, start=START, capture="all")
        await run.ready()
        (pump,) = run._works.pumps
        await until(lambda: pump.snapshot().retries > 3)
        shown = pump.snapshot(), pump.stall(0)
        return shown, await run.stop()

    (full, stall), result = asyncio.run(work())
    kept = server.stored()
    (account,) = result.publishers.values()
    assert stall == "refused for now"
    assert full.acknowledged + full.queued + full.in_flight + full.refused == full.offered
    assert len(kept) == account.acknowledged > 100
    assert account.acknowledged + account.dropped + account.refused == account.offered
    assert any(re.search("refused for now: .*insufficient", text) for text in result.notes), (
        result.notes)
