"""The nasty cases of RELIABILITY.md: those that no other file holds, and where each is held.

Cases, and what holds them (`here` is this file; names are of tests, without `test_`):

* 1 refused but acknowledged: test_mqtt::a_topic_that_the_broker_forbids,
  test_audit_live::a_broker_that_acknowledges_what_it_throws_away_is_blamed,
  test_nats::what_the_server_denies, test_amqp::a_topic_that_may_not_be_written_to
* 2 windows: test_mqtt::the_receive_maximum_is_never_exceeded_also_when_it_changes, test_amqp and
  test_coap::never_more…, test_http::requests_of_one_device_never_run_together; JetStream here
* 3 poison at the head: test_{mqtt,nats}::poison…, test_{amqp,coap}::what_…_is_refused_here,
  test_http::a_topic_that_cannot_be_sent, test_*::a_message_that_ends_the_connection_twice; a
  message without an answer: here
* 4 the silent accept: here, all schemes with their true deadlines; each protocol's file has it
  with short ones
* 5 the acknowledgement is lost: test_nasty_brokers (MQTT, AMQP, JetStream, CoAP),
  test_http_outages::a_thousand_lost_answers, test_nats_outages::an_answer_that_is_lost; cut at
  any byte: test_matrix
* 6 killed again and again: test_nasty_brokers (short: about 25 kills in 7 s, five protocols),
  test_ten_thousand
* 7 no route, no stream, no exchange, no vhost: test_nasty_brokers,
  test_amqp_outages::an_exchange_that_is_deleted, test_amqp::each_wrong_identity_has_its_line,
  test_jetstream::a_stream_that_is_deleted
* 8 ten minutes without a broker: test_nasty_ends (short: seconds, once the queues are full),
  test_run_edges::a_run_that_is_stopped_in_an_outage
* 9 cancelled anywhere: test_nasty_ends; Ctrl-C (a cancellation for asyncio.run): test_demo; a
  parent killed: test_tap
* 10 a storm of actions: test_nasty_ends,
  test_actions_properties::whatever_is_done_live_and_at_whatever_pace
* 11 independent faults:
  test_actions_properties::each_fault_leaves_other_devices_and_other_times_alone, test_faults_laws
* 12 edges of time: test_units, test_run_edges::beyond_the_year_9999, test_audit_live (pauses,
  speeds); a stepped wall clock: here
* 13 hostile files: test_forged, test_saved, test_profiles, test_scenario_files, test_messages
* 14 hostile names: test_nasty_brokers (door and five protocols),
  test_nats::whatever_the_names_are, test_http::whatever_a_topic_holds,
  test_profiles::nothing_that_is_filled_in

Traps of the libraries and brokers:

* an acknowledgement is not durable: test_ten_thousand, test_nasty_brokers: what mosquitto lost is
  its loss
* a tap loses messages, or its thread: test_audit_live::a_tap_that_…, test_tap,
  test_nats_outages::a_tap_that_is_too_slow; its audit: here
* paho's queues at QoS 0: it publishes no more; test_mqtt::what_a_slow_reader_does_not_take_at_qos_0
* a stream forgets ids: here
* answers of JetStream that never come: test_nats_outages::acknowledgements_that_never_come
* a NATS server that stands still, goes silent, says nonsense, wants TLS:
  test_nats_outages::a_server_that_stands_still, test_nats::whoever_does_not_speak_nats,
  test_matrix "half-open"
* a stream's subject that a listener answers for:
  test_jetstream::a_listener_that_answers_for_no_stream
* injection by subjects and headers:
  test_nats::whatever_the_names_are_nothing_but_publications_is_written
* unroutable returns like routed; one 404 closes the channel for all:
  test_amqp::what_no_queue_takes, test_amqp::equal_ids_in_flight,
  test_amqp_outages::an_exchange_that_is_deleted
* no replay after a kill; confirms lost: test_amqp_outages::killed_in_a_run,
  test_amqp_outages::where_acknowledgements_are_lost
* low on memory, low on disk: test_amqp_outages::while_it_is_short_of_memory; disk:
  test_nasty_brokers, JetStream here
* a frozen broker; a queue that rejects: test_amqp_outages::frozen,
  test_amqp::a_full_queue_that_rejects
* NSTART, message ids, retransmission: test_coap::never_more…,
  test_coap::no_message_id_is_given_twice,
  test_coap::an_acknowledgement_that_is_lost_makes_no_duplicate
* one that is given up takes the backlog along:
  test_coap::what_is_given_up_while_the_server_talks; its bound: here
* aiohttp repeats, and waits 300 s: test_http_outages (lost answers count as retries; a silent
  server)
* wait_for swallows a cancellation: test_tidy (banned); test_nasty_ends
* mosquitto drops for a slow subscriber: here
"""

import asyncio
import os
import re
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import iotsim
from iotsim import clock
from iotsim.errors import ConnectError
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
            assert await pump.drain(45)
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
            assert await pump.drain(45)
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
                assert await pump.drain(45)
                return pump.snapshot()

    assert asyncio.run(work()).acknowledged == seen["sent"] == 300
    assert seen["most"] == window


@pytest.mark.broker
def test_who_sends_again_after_a_stream_forgot_says_that_it_may_hold_some_twice(nats_server):  # noqa: F811
    server = nats_server(jetstream=True)
    server.add_stream(duplicate_window=0.2)

    def answer(number, data):
        return b"" if number == 0 and b'"seq"' in data and b"api" not in data else data

    async def work():
        async with Proxy(server.port, answer) as proxy:
            url = f"nats+jetstream://127.0.0.1:{proxy.port}"
            async with pumping(url, ack_wait_s=0.5, stream="DEVICES") as pump:
                await pump.offer(0, block(50, devices=50))
                assert await pump.drain(45)
                return pump.snapshot(), pump.errors

    account, errors = asyncio.run(work())
    assert account.acknowledged == 50
    assert any("knows a message for 0.2 s only: it may hold some twice" in text for text in errors)
    assert len(server.stored()) == 100


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
        assert tap.wait(result.rows, 45)
        audit = result.audit(tap)
    assert all(5 < pace < 80 for pace in paces), paces
    assert result.digest == generated(fleet, result)
    assert audit.ok, audit.verdict
    assert audit.received == audit.sent == result.rows == 800
    assert not result.errors
    (account,) = result.publishers.values()
    assert account.reconnects == 0
    assert 0 < account.latency_max_s < 45


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
    fleet = sensors("slow", count=500).publish_to(broker.url, qos=1)

    async def work(tap):
        run = fleet.start("60s", speed=30, start=START, capture="all")
        await run.ready()
        await tap.received(500)
        os.kill(tap._process.pid, signal.SIGSTOP)
        await until(lambda: run.snapshot().readings > 3_000)
        result = await run.wait()
        os.kill(tap._process.pid, signal.SIGCONT)
        return result

    with (subscribed_and_deaf(broker.port),
          iotsim.tap(broker.url, qos=1) as tap):
        result = asyncio.run(work(tap))
        assert tap._until(lambda: tap.count > 500, 45)
        audit = result.audit(tap)
    (account,) = result.publishers.values()
    assert account.acknowledged == account.offered == result.rows == 6_000
    assert account.latency_p99_s < 5
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
        assert tap._until(lambda: "was disconnected" in tap.health, 45)
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
        await until(lambda: pump.stall(0) == "refused for now")
        kept = await asyncio.to_thread(server.stored)
        full = pump.snapshot()
        await asyncio.to_thread(server.purge)
        await until(lambda: pump.snapshot().acknowledged > full.acknowledged)
        return full, kept, await run.stop()

    full, kept, result = asyncio.run(work())
    (account,) = result.publishers.values()
    assert full.acknowledged + full.queued + full.in_flight + full.refused == full.offered
    assert len(kept) == full.acknowledged > 100
    assert len(kept) + len(server.stored()) == account.acknowledged
    assert account.acknowledged + account.dropped + account.refused == account.offered
    assert any(re.search("refused for now: .*insufficient", text) for text in result.notes), (
        result.notes)


# -- 4: the silent accept -------------------------------------------------------------------------

SILENT = {
    "mqtt://127.0.0.1:{}": {}, "mqtts://127.0.0.1:{}": {"verify": False},
    "mqtt://127.0.0.1:{}/": {"version": "3.1.1"}, "mqtts://localhost:{}": {"version": "3.1.1"},
    "amqp://127.0.0.1:{}": {}, "amqps://127.0.0.1:{}": {"verify": False},
    "nats://127.0.0.1:{}": {}, "nats+tls://127.0.0.1:{}": {"verify": False, "tls_first": True},
    "nats+jetstream://127.0.0.1:{}": {}, "http://127.0.0.1:{}/in": {},
    "https://127.0.0.1:{}/in": {"verify": False}, "coap://127.0.0.1:{}": {},
    "coaps://127.0.0.1:{}": {"verify": False},
}


def test_a_peer_that_accepts_and_says_nothing_fails_in_time_and_may_be_left_at_any_moment():
    """All schemes at once; of each, one run waits for its error and others are stopped."""

    async def failed(number, url, options):
        fleet = sensors(f"silent {number}").publish_to(url, **options)
        began_s = time.monotonic()
        run = fleet.start(speed=10)
        with pytest.raises(ConnectError) as caught:
            await run.ready()
        took_s = time.monotonic() - began_s
        await run.stop()
        return str(caught.value), took_s

    async def stopped(number, url, options, after_s):
        run = sensors(f"left {number}").publish_to(url, **options).start(speed=10)
        await asyncio.sleep(after_s)
        began_s = time.monotonic()
        result = await run.stop()
        assert result.rows == 0
        return time.monotonic() - began_s

    async def work():
        with socket.create_server(("127.0.0.1", 0), backlog=200) as mute:
            port = mute.getsockname()[1]
            peer = socket.socket(type=socket.SOCK_DGRAM)
            peer.bind(("127.0.0.1", port))
            with peer:
                given = [(n, url.format(port), options)
                         for n, (url, options) in enumerate(SILENT.items())]
                failures = asyncio.gather(*(failed(*one) for one in given))
                stops = await asyncio.gather(*(stopped(*one, 0.05 * one[0]) for one in given))
                return given, await failures, stops

    given, failures, stops = asyncio.run(work())
    assert max(stops) < 5, stops
    for (_, url, _), (text, took_s) in zip(given, failures, strict=True):
        assert took_s < 20, (url, took_s)  # 4 to 9 on a machine with time
        assert "\n" not in text
        assert f":{url.rpartition(':')[2].rstrip('/in')}" in text, text


# -- the inventory above --------------------------------------------------------------------------


def test_every_test_that_is_named_above_exists():
    here = Path(__file__).parent
    named = re.findall(r"(test_\w+)::(\w+)", __doc__)
    assert len(named) > 25
    gone = [f"{file}::{name}" for file, name in named
            if not re.search(rf"def test_\w*{name}", (here / f"{file}.py").read_text("utf-8"))]
    assert not gone, gone
    files = {file for file in re.findall(r"\btest_[a-z_]+\b", __doc__) if file != "test_"}
    assert not [file for file in files if not (here / f"{file}.py").exists()]
