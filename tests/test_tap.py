"""The tap: what it holds, what it says of itself, and that it ends."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import iotsim
from iotsim.broker import Broker
from iotsim.errors import BadValue, ConnectError
from tests.matrix import nats
from tests.publishing import block, one, pumping

pytestmark = pytest.mark.broker


def publish(url, *blocks, **options):
    async def work():
        async with pumping(url, **options) as pump:
            for messages in blocks:
                await pump.offer(0, messages)
        return pump.snapshot()

    return asyncio.run(work())


def gone(pid):
    """Whether a process ends within a moment."""
    for _ in range(300):
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as status:
                if status.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_a_frame_says_what_arrived_and_when(mosquitto):
    broker = mosquitto()
    with iotsim.tap(broker.url) as tap:
        before = time.time()
        publish(broker.url, block(20, devices=4), qos=2)
        assert tap.wait(20, 45)
        frame = tap.frame()
        assert list(frame) == ["time", "sent", "topic", "id", "payload", "qos", "retain", "dup"]
        assert list(frame["payload"]) == list(block(20).payloads)
        assert list(frame["id"]) == list(block(20, devices=4).ids)
        assert frame["topic"].nunique() == 4
        assert (frame["qos"] == 2).all()
        assert str(frame["time"].dtype) == "datetime64[us, UTC]"
        assert frame["time"].is_monotonic_increasing
        assert abs(frame["time"].iloc[0].timestamp() - before) < 5
        assert tap.ok
    assert tap.count == len(tap.messages()) == 20
    assert "20 received, ok" in repr(tap)


def test_only_what_it_subscribed_to_arrives_and_retained_is_told(mosquitto):
    broker = mosquitto()
    publish(broker.url, one("site/a/x"), retain=True)
    with iotsim.tap(broker.url, topic="site/+/x") as tap:
        publish(broker.url, one("site/b/x"), one("other"))
        assert tap.wait(2, 45)
        assert {t for t, _, _ in tap.messages()} == {"site/a/x", "site/b/x"}
        assert list(tap.frame()["retain"]) == [True, False]


def test_beyond_its_capacity_it_counts_and_is_ill(mosquitto):
    broker = mosquitto()
    with iotsim.tap(broker.url, capacity=50) as tap:
        publish(broker.url, block(80))
        assert tap._until(lambda: tap.health == "over its capacity: 30 messages dropped", 45)
        assert tap.count == len(tap.messages()) == 50
    assert not tap.ok


def test_it_says_when_its_broker_has_died_and_does_not_forget(mosquitto):
    broker = mosquitto()
    with iotsim.tap(broker.url) as tap:
        publish(broker.url, block(10))
        assert tap.wait(10, 45)
        broker.kill()
        assert tap._until(lambda: not tap.ok, 45)
        assert tap.health == "not connected to the broker"
        broker.start()
        assert tap._until(lambda: "was disconnected" in tap.health, 45)
        publish(broker.url, block(10, first=10))
        assert tap.wait(20, 45)
        assert tap.health == "was disconnected once: messages may be missing"


def test_a_frozen_or_dead_process_is_an_illness(mosquitto, monkeypatch):
    monkeypatch.setattr("iotsim.taps.HEARTBEAT_MISSING_S", 0.8)
    monkeypatch.setattr("iotsim.taps.FETCH_S", 0.5)
    broker = mosquitto()
    with iotsim.tap(broker.url) as tap:
        publish(broker.url, block(5))
        assert tap.wait(5, 45)
        pid = tap._process.pid
        os.kill(pid, signal.SIGSTOP)
        assert tap._until(lambda: "no heartbeat" in tap.health, 45)
        with pytest.raises(ConnectError, match="the tap's process does not answer"):
            tap.frame()
        os.kill(pid, signal.SIGKILL)
        assert tap._until(lambda: "process ended (exit status -9)" in tap.health, 45)
        assert not tap.wait(100, 5)
        assert not asyncio.run(tap.received(100, 5))
    assert not tap.ok


def test_a_frozen_process_holds_up_neither_audit_nor_close(mosquitto):
    broker = mosquitto()
    fleet = iotsim.Fleet("cold", seed=1).add("pump", count=5, every="1s").publish_to(broker.url)
    tap = iotsim.tap(broker.url)
    pid = tap._process.pid
    try:
        result = asyncio.run(fleet.run("10s", speed=50))
        assert tap.wait(50, 45)
        os.kill(pid, signal.SIGSTOP)
        begun_s = time.monotonic()
        audit = result.audit(tap)
        assert time.monotonic() - begun_s < 20
        assert (audit.unknown, audit.lost) == (50, 0)
        assert "the tap's process does not answer" in audit.verdict
    finally:
        begun_s = time.monotonic()
        tap.close()
    assert time.monotonic() - begun_s < 10
    assert gone(pid)
    assert "no heartbeat" in tap.health
    assert result.audit(tap).unknown == 50


def test_a_dead_process_is_said_to_have_listened(mosquitto):
    broker = mosquitto()
    with iotsim.tap(broker.url) as tap:
        publish(broker.url, block(5))
        assert tap.wait(5, 45)
        os.kill(tap._process.pid, signal.SIGKILL)
        assert tap._until(lambda: "process ended" in tap.health, 45)
        with pytest.raises(ConnectError, match="cannot listen to mqtt://"):
            tap.frame()


def test_nothing_of_it_is_left_after_its_end(mosquitto):
    broker = mosquitto()
    tap = iotsim.tap(broker.url)
    pid = tap._process.pid
    tap.close()
    tap.close()
    assert gone(pid)
    assert not tap._reader.is_alive()
    assert tap.ok


def test_its_process_ends_with_a_parent_that_is_killed(mosquitto):
    broker = mosquitto()
    code = f"""
        import os, iotsim, time
        from iotsim.broker import Broker
        tap, own = iotsim.tap({broker.url!r}), Broker(embedded=False)
        own.start()
        print(tap._process.pid, own.pid, flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    worker, own = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(worker)
    assert gone(own)


def test_no_password_stands_in_its_command_line(mosquitto):
    broker = mosquitto(users={"ann": "marker-secret"})
    with iotsim.tap(broker.url, username="ann", password="marker-secret") as tap:
        with (
            open(f"/proc/{tap._process.pid}/cmdline") as line,
            open(f"/proc/{tap._process.pid}/environ") as environment,
        ):
            assert "marker" not in line.read() + environment.read()
        assert "marker" not in repr(tap)


def test_no_broker_is_one_clear_line(mosquitto):
    with pytest.raises(ConnectError, match="nothing listens there"):
        iotsim.tap("mqtt://127.0.0.1:1")
    with pytest.raises(ConnectError, match="host name is unknown"):
        iotsim.tap("mqtt://no-such-host.invalid")
    broker = mosquitto(users={"ann": "x"})
    with pytest.raises(ConnectError, match="refused us: Not authorized"):
        iotsim.tap(broker.url, password="y", username="ann")
    with pytest.raises(BadValue, match="url scheme='ftp' is unknown"):
        iotsim.tap("ftp://h")
    with pytest.raises(BadValue, match="topic='' is no topic filter"):
        iotsim.tap("mqtt://h", topic="")


@pytest.mark.parametrize("topic", [
    "a/#/b", "a#", "#/a", "a+/b", "a/+b", "a\ud800", "a\nb", "a\0b", "a" * 70_000, "", 7])
def test_a_topic_that_cannot_be_is_one_line_at_once(topic):
    with pytest.raises(BadValue, match=r"topic=.* Give one such as"):
        iotsim.tap("mqtt://127.0.0.1:1", topic)


@pytest.mark.parametrize("scheme", ["amqp", "nats", "nats+jetstream", "coap"])
@pytest.mark.parametrize("topic", ["a\ud800", "a\nb", "a\0b", "a" * 70_000])
def test_no_protocol_takes_a_topic_that_cannot_be_sent(scheme, topic):
    with pytest.raises(BadValue, match=r"topic=.* Give "):
        iotsim.tap(f"{scheme}://127.0.0.1:1", topic)


@pytest.mark.parametrize("topic", ["#", "+/+/#", "$SYS/#", "/", "a//b", "grüße/+", "+"])
def test_a_topic_that_can_be_reaches_the_broker(topic):
    with pytest.raises(ConnectError, match="nothing listens there"):
        iotsim.tap("mqtt://127.0.0.1:1", topic)


@pytest.mark.parametrize("wrong", ["marker\0", "marker\ud800", "marker\r\nx", "marker" * 20_000])
@pytest.mark.parametrize(("url", "name"), [
    ("mqtt://127.0.0.1:1", "username"), ("mqtt://127.0.0.1:1", "password"),
    ("amqp://127.0.0.1:1", "password"), ("nats://127.0.0.1:1", "creds"),
    ("nats://127.0.0.1:1", "token")])
def test_who_we_are_must_be_text_that_can_be_sent_and_is_not_shown(url, name, wrong):
    given = {name: wrong, **({"username": "ann"} if name == "password" else {})}
    for call in (iotsim.tap, iotsim.Fleet("who", seed=1).add("pump", count=1).publish_to):
        with pytest.raises(BadValue, match="Give printable text") as caught:
            call(url, **given)
        assert "marker" not in str(caught.value)


def test_the_embedded_broker_carries_messages_and_ends():
    with Broker(embedded=True) as broker:
        assert (broker.kind, broker.version) == ("embedded", "3.1.1")
        pid = broker.pid
        with iotsim.tap(broker.url, version="3.1.1") as tap:
            account = publish(broker.url, block(300), version="3.1.1")
            assert tap.wait(300, 45)
            assert [p for _, p, _ in tap.messages()] == list(block(300).payloads)
        assert account.acknowledged == 300
    assert gone(pid)


def test_without_a_topic_a_tap_of_nats_hears_all_but_what_servers_and_clients_tell_each_other():
    with nats(jetstream=True) as server:
        server.add_stream("PLANT", ("plant.>",))
        with (iotsim.tap(server.url) as core,
              iotsim.tap(server.jetstream_url, stream="PLANT") as stream):
            with pytest.raises(ConnectError, match="several streams, give stream=: MATRIX, PLANT"):
                iotsim.tap(server.jetstream_url)
            publish(server.jetstream_url, block(20, topic="plant/{}"))
            assert core.wait(20)
            assert stream.wait(20)
            for tap in (core, stream):
                assert {topic[:8] for topic, _, _ in tap.messages()} == {"plant.d-"}
                assert tap.count == 20
