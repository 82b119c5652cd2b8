"""MQTT as a broker sees it: mosquitto where it can, a scripted broker where it must."""

import asyncio
import socket
import subprocess
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqtt5 import (
    ConnAckPacket,
    ConnAckReasonCode,
    DisconnectPacket,
    DisconnectReasonCode,
    PubAckPacket,
    PubAckReasonCode,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    QoS,
)

import iotsim
from iotsim.errors import ConnectError
from iotsim.publishers.base import build
from iotsim.publishers.mqtt5_wire import Wire
from iotsim.publishers.pump import Pump
from tests.fake_broker import FakeBroker, answer_all, answer_now, message_id
from tests.proxy import Proxy
from tests.publishing import block, in_order_per_device, one, pumping, until

pytestmark = pytest.mark.broker


async def _drained(pump, seconds=45):
    assert await pump.drain(seconds), (pump.snapshot(), pump.errors)


async def _tapped(tap, ids):
    # All of these arrive, however many of them twice.
    async with asyncio.timeout(45):
        while not set(ids) <= {ident for _, _, ident in tap.messages()}:
            await tap.received(tap.count + 1, 0.5)


# -- mosquitto --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_every_message_arrives_once_and_in_order_per_device(mosquitto, qos, version):
    broker = mosquitto()
    sent = [block(500, first=n * 500, devices=40) for n in range(6)]

    async def publish(tap):
        async with pumping(broker.url, qos=qos, connections=3, version=version) as pump:
            for messages in sent:
                await pump.offer(1, messages)
            await _drained(pump)
            assert await tap.received(3000, 45)
        return pump.snapshot()

    with iotsim.tap(broker.url, version=version) as tap:
        account = asyncio.run(publish(tap))
        frame = tap.frame()
        got = tap.messages()
        assert tap.ok, tap.health
    assert account.acknowledged == account.offered == 3000
    assert [p for _, p, _ in got] == [p for m in sent for p in m.payloads]
    assert (frame["qos"] == qos).all()
    assert not frame["dup"].any()
    if version == "5":
        assert [i for _, _, i in got] == [i for m in sent for i in m.ids]


@pytest.mark.parametrize("limit", [1, 2, 20])
def test_the_receive_maximum_that_mosquitto_grants_is_enough(mosquitto, limit):
    broker = mosquitto(receive_maximum=limit)

    async def publish():
        async with pumping(broker.url) as pump:
            await pump.offer(0, block(300))
            await _drained(pump)
        return pump.snapshot()

    account = asyncio.run(publish())
    assert account.acknowledged == 300
    assert account.reconnects == 0


@pytest.mark.parametrize("qos", [1, 2])
def test_a_topic_that_the_broker_forbids_is_refused_and_the_others_are_not(mosquitto, qos):
    lines = [f"topic readwrite devices/d-{i}/telemetry" for i in range(9)]
    broker = mosquitto(acl=lines)

    async def publish():
        async with pumping(broker.url, qos=qos) as pump:
            for n in range(4):
                await pump.offer(0, block(1000, first=n * 1000))
            await _drained(pump)
        return pump.snapshot(), pump.errors

    account, errors = asyncio.run(publish())
    assert account.acknowledged == 3600
    assert dict(account.refusals) == {"not authorized (135)": 400}
    assert account.reconnects == 0
    assert "not authorized (135)" in errors[0]


def test_poison_stops_nobody_else(mosquitto):
    broker = mosquitto(packet_bytes_max=2000)
    poison = [
        one("devices/+/telemetry"),
        one("devices/#"),
        one(""),
        one("a\0b"),
        one("a\nb"),
        one("x" * 70_000),
        one("a\ud800b"),
        one("devices/big/telemetry", b"x" * 5000),
        one("devices/d/telemetry", b"x", "run/\0/0/0"),
    ]

    async def publish(tap):
        async with pumping(broker.url) as pump:
            for n, bad in enumerate(poison):
                await pump.offer(0, block(100, first=n * 100))
                await pump.offer(0, bad)
            await _drained(pump)
            assert await tap.received(900, 45)
        return pump.snapshot()

    with iotsim.tap(broker.url, topic="#") as tap:
        account = asyncio.run(publish(tap))
        got = tap.messages()
    assert account.acknowledged == 900
    assert account.refused == len(poison)
    assert sum(account.refusals.values()) == len(poison)
    assert account.refusals["wildcard in the topic"] == 2
    assert account.refusals["larger than the broker's Maximum Packet Size"] == 1
    assert account.reconnects == 0
    assert len(got) == 900
    assert in_order_per_device(ident for _, _, ident in got)


def test_a_broker_that_is_killed_and_revived_gets_everything(mosquitto):
    broker = mosquitto()

    async def publish(tap):
        async with pumping(broker.url) as pump:
            for n in range(8):
                await pump.offer(0, block(1000, first=n * 1000))
                if n in (2, 5):
                    await until(lambda: pump.connected)
                    broker.kill()
                    await asyncio.to_thread(broker.start)
            await _drained(pump, 30)
            await tap.received(8_000, 2)
        return pump.snapshot(), pump.errors

    with iotsim.tap(broker.url) as tap:
        account, errors = asyncio.run(publish(tap))
        assert not tap.ok
        assert "disconnected" in tap.health
    assert account.acknowledged == 8_000
    assert account.reconnects >= 2
    assert account.unknown == 0
    assert any("link lost" in text for text in errors)


def test_a_wrong_password_is_one_clear_line(mosquitto, monkeypatch):
    broker = mosquitto(users={"ann": "s3cret/pass"})
    url = broker.url.replace("mqtt://", "mqtt://ann:wr0ng-marker@")

    async def publish(given, **options):
        async with pumping(given, **options) as pump:
            await pump.offer(0, block(10))
            await _drained(pump)
        return pump.snapshot().acknowledged

    word = "not authorized (135). Check username= and password=."
    for version in ("5", "3.1.1"):
        with pytest.raises(ConnectError) as caught:
            asyncio.run(publish(url, version=version))
        text = str(caught.value)
        assert word in text, text
        assert "\n" not in text
        assert "marker" not in text + repr(caught.value)
    assert asyncio.run(publish(broker.url, username="ann", password="s3cret/pass")) == 10
    right = broker.url.replace("mqtt://", "mqtt://ann:s3cret%2Fpass@")
    assert asyncio.run(publish(right)) == 10
    monkeypatch.setenv("IOTSIM_MQTT_USERNAME", "ann")
    monkeypatch.setenv("IOTSIM_MQTT_PASSWORD", "s3cret/pass")
    assert asyncio.run(publish(broker.url)) == 10
    with iotsim.tap(broker.url) as tap:
        assert tap.ok


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A self-signed certificate for localhost: (certificate, key)."""
    folder = tmp_path_factory.mktemp("tls")
    names = (str(folder / "cert.pem"), str(folder / "key.pem"))
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost"
    subprocess.run(
        [*command.split(), "-out", names[0], "-keyout", names[1]], check=True, capture_output=True
    )
    return names


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_tls_is_verified_unless_it_is_said_otherwise(mosquitto, certificates, version):
    cert, key = certificates
    broker = mosquitto(certificate=(cert, key))
    url = broker.url

    async def publish(given, **options):
        async with pumping(given, version=version, **options) as pump:
            await pump.offer(0, block(50))
            await _drained(pump)
        return pump.snapshot().acknowledged

    with pytest.raises(ConnectError, match=r"certificate is not accepted: self.signed"):
        asyncio.run(publish(url))
    with pytest.raises(ConnectError, match=r"not accepted: .*(mismatch|not valid for)"):
        asyncio.run(publish(f"mqtts://127.0.0.1:{broker.port}", ca=cert))
    with pytest.raises(ConnectError):
        asyncio.run(publish(f"mqtt://localhost:{broker.port}"))
    assert asyncio.run(publish(url, ca=cert)) == 50
    assert asyncio.run(publish(url, verify=False)) == 50
    assert "verify=False" in repr(build(url, verify=False))
    with iotsim.tap(url, ca=cert, version=version) as tap:
        assert tap.ok
    with pytest.raises(ConnectError, match="certificate"):
        iotsim.tap(url, version=version)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_file_of_certificates_that_is_away_for_a_while_is_waited_for(
    mosquitto, certificates, tmp_path, version
):
    broker = mosquitto(certificate=certificates)
    ca = tmp_path / "ca.pem"
    trusted = Path(certificates[0]).read_bytes()
    ca.write_bytes(trusted)

    async def publish():
        async with pumping(broker.url, version=version, ca=str(ca)) as pump:
            await pump.offer(0, block(50))
            await _drained(pump)
            ca.unlink()
            broker.kill()
            await asyncio.to_thread(broker.start)
            async with asyncio.timeout(45):
                while not any("is not a file" in text for text in pump.errors):
                    await asyncio.sleep(0.01)
            await pump.offer(0, block(50, first=50))
            ca.write_bytes(trusted)
            await _drained(pump)
            return pump.snapshot()

    account = asyncio.run(publish())
    assert account.acknowledged == 100
    assert account.reconnects == 1


# -- addresses where no broker is -----------------------------------------------------------------


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_nobody_there_is_one_clear_line(version):
    async def to(url):
        async with pumping(url, version=version):
            pass

    with pytest.raises(ConnectError, match=r"127\.0\.0\.1:1: nothing listens there"):
        asyncio.run(to("mqtt://127.0.0.1:1"))
    with pytest.raises(ConnectError, match="host name is unknown"):
        asyncio.run(to("mqtt://no-such-host.invalid"))


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b""])
def test_a_peer_that_speaks_something_else_is_one_clear_line(greeting, version):
    async def talk(reader, writer):
        await reader.read(1)
        writer.write(greeting)
        await writer.drain()
        writer.close()

    async def publish():
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            try:
                async with pumping(f"mqtt://127.0.0.1:{port}", version=version):
                    pass
            finally:
                server.close()

    with pytest.raises(ConnectError) as caught:
        asyncio.run(publish())
    assert "\n" not in str(caught.value)
    if version == "5":
        assert "does not speak MQTT" in str(caught.value) or not greeting


def test_a_broker_that_accepts_and_says_nothing_fails_in_time(monkeypatch):
    monkeypatch.setattr("iotsim.publishers.mqtt5_session.CONNACK_S", 0.3)

    async def publish():
        async with FakeBroker(connacks=(None,)) as broker, pumping(broker.url):
            pass

    with pytest.raises(ConnectError, match="accepts the connection but does not answer"):
        asyncio.run(publish())


def test_a_broker_that_goes_silent_is_left_by_the_keepalive_and_close_ends_in_time():
    async def mute(connection, packet):
        pass

    async def publish():
        async with FakeBroker(mute, pong=False) as broker:
            async with pumping(broker.url, deadline_s=1.0, keepalive=2) as pump:
                await pump.offer(0, block(10))
                await broker.until(lambda: len(broker.connections) == 2)
                started = asyncio.get_running_loop().time()
                await pump.close(1.0)
                assert asyncio.get_running_loop().time() - started < 8
            return pump.snapshot(), pump.errors

    account, errors = asyncio.run(publish())
    assert account.unknown == 10
    assert any("no PINGRESP" in text for text in errors)


def test_an_acknowledgement_that_never_comes_ends_the_link():
    async def mute_at_first(connection, packet):
        if connection.number > 0:
            await answer_all(connection, packet)

    async def publish():
        async with FakeBroker(mute_at_first) as broker:
            async with pumping(broker.url, pump={"ack_deadline_s": 0.4}) as pump:
                await pump.offer(0, block(10))
                await _drained(pump)
            return pump.snapshot(), pump.errors

    account, errors = asyncio.run(publish())
    assert account.acknowledged == 10
    assert any("no acknowledgement for 0.4 s" in text for text in errors)


class _Dozing:
    """Speaks enough MQTT 3.1.1 for QoS 0; its first connection stops reading after CONNECT."""

    def __init__(self):
        self.writers, self.sizes, self.ended = [], [], []
        self.awake = asyncio.Event()

    async def serve(self, reader, writer):
        number = len(self.sizes)
        self.writers.append(writer)
        self.sizes.append(0)
        self.ended.append(asyncio.Event())
        await reader.read(1024)
        writer.write(b"\x20\x02\x00\x00")
        try:
            if number == 0:
                writer.transport.pause_reading()
                await self.awake.wait()
                writer.transport.resume_reading()
            while data := await reader.read(65536):
                self.sizes[number] += len(data)
        except OSError:
            pass
        writer.transport.abort()
        self.ended[number].set()


def test_what_a_slow_reader_does_not_take_at_qos_0_is_bounded_and_goes_on_when_it_does():
    offered, size = 5000, 4096
    packet = 1 + 2 + 2 + len("devices/d-0/telemetry") + size

    async def publish():
        peer, listening = _Dozing(), socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        server = await asyncio.start_server(peer.serve, sock=listening)
        url = f"mqtt://127.0.0.1:{listening.getsockname()[1]}"
        async with server, pumping(url, version="3.1.1", qos=0) as pump:
            await pump.offer(0, block(offered, size=size))
            held, before = pump.snapshot(), None
            while held != before:  # until no more goes into the sockets
                await asyncio.sleep(0.2)
                held, before = pump.snapshot(), held
            peer.awake.set()
            await _drained(pump)
            await pump.close()
            async with asyncio.timeout(45):
                await asyncio.gather(*(ended.wait() for ended in peer.ended))
            await asyncio.sleep(0)  # for the last transport to be closed
            return held, pump.snapshot(), peer.sizes

    held, account, sizes = asyncio.run(publish())
    assert 0 < held.acknowledged < held.acknowledged + held.queued == offered
    assert account.acknowledged == offered
    assert sizes[0] // packet == offered


# -- what only a scripted broker does ------------------------------------------------------------


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("limit", [1, 2, 20])
def test_the_receive_maximum_is_never_exceeded_also_when_it_changes(limit, qos):
    seen = Counter()

    async def cut_once(connection, packet):
        seen[connection.number] += isinstance(packet, PublishPacket)
        if connection.number == 0 and seen[0] == 100:
            connection.cut()
            return
        # Answers come late, so that as much as may be is in flight.
        asyncio.get_running_loop().call_later(0.001, answer_now, connection, packet)

    async def publish():
        grants = (ConnAckPacket(receive_max=limit), ConnAckPacket(receive_max=5))
        async with FakeBroker(cut_once, grants) as broker:
            async with pumping(broker.url, qos=qos) as pump:
                await pump.offer(0, block(500))
                await _drained(pump)
            assert [c.open_most for c in broker.connections] == [limit, 5]
            return pump.snapshot(), broker.ids

    account, ids = asyncio.run(publish())
    assert account.acknowledged == 500
    assert account.reconnects == 1
    assert in_order_per_device(dict.fromkeys(ids))


@pytest.mark.parametrize("present", [True, False])
def test_a_replay_has_dup_only_in_a_resumed_session_and_comes_first(present):
    async def deaf_at_first(connection, packet):
        if connection.number > 0:
            await answer_all(connection, packet)

    async def publish():
        grants = (ConnAckPacket(receive_max=7), ConnAckPacket(session_present=present))
        async with FakeBroker(deaf_at_first, grants) as broker:
            async with pumping(broker.url) as pump:
                await pump.offer(0, block(30))
                await broker.until(lambda: len(broker.connections[0].publishes) == 7)
                assert pump.snapshot().in_flight == 7
                broker.connections[0].cut()
                await _drained(pump)
            first, second = broker.connections
            assert first.connect.clean_start
            assert not second.connect.clean_start
            return first.publishes, second.publishes

    first, second = asyncio.run(publish())
    ids = list(block(30).ids)
    assert [message_id(p) for p in second] == ids
    assert [p.duplicate for p in second] == [present] * 7 + [False] * 23
    if present:
        assert [p.packet_id for p in second[:7]] == [p.packet_id for p in first]


def test_a_qos_2_message_that_was_recorded_is_released_and_not_sent_again():
    async def record_only(connection, packet):
        if connection.number > 0:
            await answer_all(connection, packet)
        elif isinstance(packet, PublishPacket) and packet.packet_id % 2:
            connection.say(PubRecPacket(packet.packet_id))
        elif isinstance(packet, PubRelPacket) and packet.packet_id == 9:
            connection.cut()

    async def publish():
        grants = (ConnAckPacket(), ConnAckPacket(session_present=True))
        async with FakeBroker(record_only, grants) as broker:
            async with pumping(broker.url, qos=2) as pump:
                await pump.offer(0, block(10))
                await _drained(pump)
            return broker.connections[1].packets, pump.snapshot()

    packets, account = asyncio.run(publish())
    kinds = [
        (type(p) is PubRelPacket, p.packet_id) for p in packets[:10] if hasattr(p, "packet_id")
    ]
    assert account.acknowledged == 10
    replayed = {n for released, n in kinds if not released}
    assert replayed <= {2, 4, 6, 8, 10}


class _Told:
    """The verdicts of a link, counted."""

    def __init__(self):
        self.taken, self.losses = [], asyncio.Queue()

    def acknowledged(self, tokens):
        self.taken += tokens

    def lost(self, loss):
        self.losses.put_nowait(loss)


def test_a_recorded_message_that_was_passed_over_leaves_nothing_to_its_packet_id():
    async def record_only(connection, packet):
        if connection.number == 0 and isinstance(packet, PublishPacket):
            connection.say(PubRecPacket(packet.packet_id))
        elif connection.number == 0:
            connection.cut()

    async def publish():
        grants = (ConnAckPacket(), ConnAckPacket(session_present=True))
        items = [(f"t/{n}", b"x", f"run/d/{n}/0", 0.0) for n in range(3)]
        async with FakeBroker(record_only, grants) as broker:
            told = _Told()
            link = build(broker.url, qos=2).link(0, "run", told)
            await link.open()
            link.send([0], items[:1])
            await told.losses.get()
            await link.open()
            link.send([1], items[1:2])  # 0 was given up meanwhile
            link._last_id = 0  # as after 65,535 others
            link.send([2], items[2:])
            await broker.until(lambda: len(broker.connections[1].publishes) == 2)
            broker.connections[1].cut()
            await told.losses.get()
            await link.open()
            link.send([1, 2], items[1:])
            await broker.until(lambda: len(broker.connections[2].packets) == 2)
            await link.close()
            return broker.connections, told.taken

    (first, second, third), taken = asyncio.run(publish())
    assert [p.packet_id for p in first.publishes] == [1]
    assert [(p.packet_id, message_id(p)) for p in second.publishes] == [
        (2, "run/d/1/0"), (1, "run/d/2/0"),
    ]  # fmt: skip
    assert [message_id(p) for p in third.publishes] == ["run/d/1/0", "run/d/2/0"]
    assert taken == []


def test_lost_acknowledgements_lose_nothing_and_duplicates_carry_the_same_id(mosquitto):
    broker = mosquitto()
    answers = Counter()
    sent = {ident for n in range(10) for ident in block(300, first=300 * n).ids}

    def cut_the_first_ten(number, data):
        # Acknowledgements, not the CONNACK: the message arrived and nobody says so.
        answers[number] += data[0] == 0x40
        return None if answers[number] > 2 and number < 10 else data

    async def publish(tap):
        async with Proxy(broker.port, cut_the_first_ten) as proxy:
            async with pumping(proxy.url) as pump:
                for n in range(10):
                    await pump.offer(0, block(300, first=300 * n))
                await _drained(pump, 30)
            await _tapped(tap, sent)
            return pump

    with iotsim.tap(broker.url) as tap:
        pump = asyncio.run(publish(tap))
        ids = Counter(ident for _, _, ident in tap.messages())
    account = pump.snapshot()
    assert account.acknowledged == 3000
    assert account.reconnects >= 5
    assert set(ids) == sent
    assert 0 < sum(ids.values()) - 3000 <= account.retries
    assert ("in_flight", "unknown") in pump._ledger.seen


def test_a_message_that_ends_the_connection_twice_is_refused_and_passed_over():
    async def touchy(connection, packet):
        if isinstance(packet, PublishPacket) and message_id(packet) == "run/d-3/1/0":
            reason = DisconnectReasonCode.PAYLOAD_FORMAT_INVALID
            connection.say(DisconnectPacket(reason_code=reason))
            connection.writer.close()
            return
        await answer_all(connection, packet)

    async def publish():
        async with FakeBroker(touchy) as broker:
            async with pumping(broker.url) as pump:
                await pump.offer(0, block(200))
                await _drained(pump)
            return pump.snapshot()

    account = asyncio.run(publish())
    assert account.acknowledged == 199
    assert dict(account.refusals) == {"ended the connection twice": 1}
    assert account.reconnects <= 3


def test_a_quota_is_waited_for_and_other_reasons_are_not():
    asked = Counter()

    async def moody(connection, packet):
        if not isinstance(packet, PublishPacket):
            return
        asked[message_id(packet)] += 1
        if message_id(packet) == "run/d-1/0/0" and asked[message_id(packet)] < 4:
            connection.settle(packet.packet_id, PubAckReasonCode.QUOTA_EXCEEDED)
        elif message_id(packet) == "run/d-2/0/0":
            connection.settle(packet.packet_id, PubAckReasonCode.PAYLOAD_FORMAT_INVALID)
        else:
            connection.settle(packet.packet_id)

    async def publish():
        async with FakeBroker(moody) as broker:
            async with pumping(broker.url) as pump:
                await pump.offer(0, block(10))
                await _drained(pump)
            return pump.snapshot()

    account = asyncio.run(publish())
    assert account.acknowledged == 9
    assert dict(account.refusals) == {"payload format invalid (153)": 1}
    assert asked["run/d-1/0/0"] == 4
    assert account.retries == 3


def test_a_quota_that_refuses_a_whole_window_at_once_stops_nothing_else():
    """8,192 answers "not now" in one piece; meanwhile the loop goes round."""
    count, seen, slowest = 8192, [], []
    asked = Counter()

    async def full(connection, packet):
        if not isinstance(packet, PublishPacket):
            return
        asked[message_id(packet)] += 1
        seen.append(packet.packet_id)
        if len(seen) == count:
            code = PubAckReasonCode.QUOTA_EXCEEDED
            connection.say(*(PubAckPacket(one, reason_code=code) for one in seen))
        elif len(seen) > count:
            connection.settle(packet.packet_id)

    async def watch():
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            slowest.append(time.perf_counter() - began)

    async def publish():
        async with FakeBroker(full) as broker:
            async with pumping(broker.url) as pump:
                await pump.offer(0, block(count, devices=2000))
                watcher = asyncio.create_task(watch())
                await _drained(pump)
                watcher.cancel()
            return pump.snapshot()

    account = asyncio.run(publish())
    assert (account.acknowledged, account.refused, account.retries) == (count, 0, count)
    assert set(asked.values()) == {2}
    assert max(slowest) < 1.5, max(slowest)  # it was 7


def test_under_a_quota_a_device_has_one_in_flight_and_what_overtook_before_is_counted():
    taken, refusals = [], []

    async def rationed(connection, packet):
        # Every 13th answer is that there is no room, for somebody or other.
        if not isinstance(packet, PublishPacket):
            return
        rationed.count += 1
        if rationed.count % 13 == 0:
            refusals.append(len(taken))
            connection.settle(packet.packet_id, PubAckReasonCode.QUOTA_EXCEEDED)
        else:
            taken.append(message_id(packet))
            connection.settle(packet.packet_id)

    rationed.count = 0

    async def publish():
        async with FakeBroker(rationed) as broker:
            async with pumping(broker.url) as pump:
                await pump.offer(0, block(20, devices=4))  # some of it is on its way
                await _drained(pump)
                before = pump.snapshot().overtaken
                first = len(taken)
                await pump.offer(0, block(100, first=20, devices=4))
                await _drained(pump)
            return before, first, pump.snapshot()

    before, first, account = asyncio.run(publish())
    assert account.acknowledged == 120
    assert before > 0
    assert not in_order_per_device(taken[:first])
    assert account.overtaken == before  # nothing more since it knows
    assert in_order_per_device(taken[first:])
    assert len(refusals) > 5


@pytest.mark.parametrize(
    ("connack", "options", "words"),
    [
        (ConnAckPacket(max_qos=QoS.AT_LEAST_ONCE), {"qos": 2}, "grants QoS 1 at most"),
        (ConnAckPacket(retain_available=False), {"retain": True}, "retains no messages"),
        (ConnAckPacket(reason_code=ConnAckReasonCode.BANNED), {}, r"banned \(138\)"),
        (
            ConnAckPacket(reason_code=ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION),
            {},
            "version='3.1.1'",
        ),
    ],
)
def test_what_the_broker_does_not_grant_is_an_error_at_the_start(connack, options, words):
    async def publish():
        async with FakeBroker(connacks=(connack,)) as broker, pumping(broker.url, **options):
            pass

    with pytest.raises(ConnectError, match=words):
        asyncio.run(publish())


def test_the_end_is_drained_and_says_disconnect():
    async def publish():
        async with FakeBroker() as broker:
            async with pumping(broker.url, client_id="lab") as pump:
                await pump.offer(0, block(2000))
            await broker.until(lambda: broker.connections[0].ended.is_set())
            connection = broker.connections[0]
            assert connection.connect.client_id == "lab-run-0"
            assert type(connection.packets[-1]) is DisconnectPacket
            assert connection.packets[-1].session_expiry_interval == 0
            return pump.snapshot()

    assert asyncio.run(publish()).acknowledged == 2000


def test_packet_ids_are_used_again_and_never_twice_at_a_time():
    async def publish():
        async with FakeBroker() as broker:
            async with pumping(broker.url) as pump:
                for n in range(35):
                    await pump.offer(0, block(2000, first=2000 * n, size=1))
                await _drained(pump, 40)
            sent = broker.connections[0].publishes
            assert {p.packet_id for p in sent} == set(range(1, 65_536))
            return pump.snapshot()

    assert asyncio.run(publish()).acknowledged == 70_000


class _Listener:
    def __init__(self):
        self.heard, self.losses = [], []

    def settled(self, packet_ids):
        self.heard += [(number, 0) for number in packet_ids]

    def received(self, packets):
        self.heard += [
            (p.packet_id, p.reason_code.value) for p in packets if hasattr(p, "packet_id")
        ]

    def gone(self, loss):
        self.losses.append(loss)


@given(st.data())
def test_acknowledgements_are_read_alike_however_the_bytes_arrive(data):
    reasons = st.sampled_from([PubAckReasonCode.SUCCESS] * 5 + [PubAckReasonCode.NOT_AUTHORIZED])
    runs = data.draw(st.lists(st.tuples(reasons, st.integers(1, 30)), min_size=1, max_size=6))
    nobody = data.draw(st.booleans())
    acks = [reason for reason, length in runs for _ in range(length)]
    if nobody:
        quiet = PubAckReasonCode.NO_MATCHING_SUBSCRIBERS
        acks = [quiet if a == PubAckReasonCode.SUCCESS else a for a in acks]
    stream = b"".join(PubAckPacket(n + 1, reason_code=a).write() for n, a in enumerate(acks))
    stream = ConnAckPacket().write() + stream
    listener = _Listener()
    wire = Wire(listener)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    edges = [0, *sorted(cuts), len(stream)]
    for first, last in pairwise(edges):
        wire.data_received(stream[first:last])
    assert [n for n, _ in listener.heard] == list(range(1, len(acks) + 1))
    assert [c >= 128 for _, c in listener.heard] == [a.value >= 128 for a in acks]
    assert not listener.losses


def test_no_secret_in_any_text():
    secret = "marker-s3cret"
    publisher = build(f"mqtt://marker-user:{secret}@127.0.0.1:1", client_id="c")
    texts = [repr(publisher), str(publisher), publisher.url, repr(Pump(publisher))]

    async def publish():
        async with pumping(f"mqtt://marker-user:{secret}@127.0.0.1:1"):
            pass

    for call in (
        lambda: asyncio.run(publish()),
        lambda: build(f"mqtt://u:{secret}@h/path"),
        lambda: build(f"mqtt://u:{secret}/{secret}@h:1x"),
        lambda: build(f"mqtt://h:1?password={secret}"),
        lambda: build("mqtt://h", password=(secret,)),
        lambda: iotsim.tap(f"mqtt://marker-user:{secret}@127.0.0.1:1"),
        lambda: iotsim.tap(f"amqp://marker-user:{secret}@127.0.0.1:1"),
    ):
        with pytest.raises(iotsim.IotsimError) as caught:
            call()
        texts += [str(caught.value), repr(caught.value)]
    assert not [text for text in texts if "marker" in text]
