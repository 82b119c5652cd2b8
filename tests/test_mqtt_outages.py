"""MQTT brokers that change their mind, stop, or are full, while messages come."""

import asyncio
import os
import signal
import threading

import pytest
from mqtt5 import (
    DisconnectPacket,
    DisconnectReasonCode,
    PingReqPacket,
    PubAckReasonCode,
    PublishPacket,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
)

import iotsim
from iotsim.publishers.base import Identity, build
from iotsim.publishers.pump import Pump
from iotsim.tapping import mqtt
from iotsim.tapping.settings import settings_of
from iotsim.tapping.store import Store
from tests.fake_broker import FakeBroker, answer_all, message_id
from tests.publishing import CheckedLedger, block, in_order_per_device, own, pumping, until

pytestmark = pytest.mark.broker
ALL = ["topic readwrite #"]
NO_THREE = ["topic write devices/#", "topic deny devices/d-3/#", "topic read #"]


async def drained(pump, seconds=45):
    assert await pump.drain(seconds), (pump.snapshot(), pump.errors)


def test_one_topic_of_ten_that_is_forbidden_is_refused_and_the_tap_agrees(mosquitto):
    broker = mosquitto(acl=NO_THREE)

    async def publish(tap):
        async with pumping(broker.url) as pump:
            for first in range(0, 3000, 1000):
                await pump.offer(0, block(1000, first=first))
            await drained(pump)
            assert await tap.received(2700, 45)
        return pump.snapshot()

    with iotsim.tap(broker.url) as tap:
        account = asyncio.run(publish(tap))
        ids = [ident for _, _, ident in tap.messages()]
    assert dict(account.refusals) == {"not authorized (135)": 300}
    assert account.acknowledged == 2700 == len(ids)
    assert not any("/d-3/" in ident for ident in ids)
    assert in_order_per_device(ids)


def test_a_permission_that_is_revoked_and_given_back_while_running(mosquitto):
    broker = mosquitto(acl=ALL)

    async def publish():
        sent = 0

        async def offer(pump):
            nonlocal sent
            await pump.offer(0, block(10, first=sent))
            sent += 10
            await drained(pump)
            return pump.snapshot().refused

        async with pumping(broker.url) as pump:
            assert await offer(pump) == 0
            broker.reload(acl=NO_THREE)
            async with asyncio.timeout(45):
                while not await offer(pump):
                    await asyncio.sleep(0.02)
            broker.reload(acl=ALL)
            before = pump.snapshot().refused
            async with asyncio.timeout(45):
                while (now := await offer(pump)) != before:
                    before = now
                    await asyncio.sleep(0.02)
            return sent, pump.snapshot()

    sent, account = asyncio.run(publish())
    assert set(account.refusals) == {"not authorized (135)"}
    assert account.acknowledged == sent - account.refused
    assert account.reconnects == 0  # nobody else noticed


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_password_that_is_no_longer_right_after_an_outage_is_said_and_tried_again(
    mosquitto, version
):
    broker = mosquitto(users={"ann": "old"})

    async def publish():
        options = {"username": "ann", "password": "old", "version": version}
        async with pumping(broker.url, **options) as pump:
            await pump.offer(0, block(10))
            await drained(pump)
            broker.kill()
            broker._settings = (1000, None, {"ann": "new"}, None, ())
            await asyncio.to_thread(broker.start)
            await pump.offer(0, block(10, first=10))
            await until(lambda: any("refused us: not authorized (135)" in text
                                    for text in pump.errors), 10)
            assert pump.snapshot().queued == 10
            broker.reload(users={"ann": "old"})
            await drained(pump)
            assert "old" not in " ".join(pump.errors)
            return pump.snapshot()

    account = asyncio.run(publish())
    assert account.acknowledged == 20
    assert account.reconnects == 1


def test_a_broker_that_is_stopped_and_goes_on_is_left_within_a_keepalive_and_loses_nothing(
    mosquitto,
):
    broker = mosquitto()

    async def publish(tap):
        async with pumping(broker.url, keepalive=2) as pump:
            await pump.offer(0, block(100))
            await drained(pump)
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                await pump.offer(0, block(100, first=100))
                async with asyncio.timeout(6):
                    while not any("no PINGRESP" in text for text in pump.errors):
                        await asyncio.sleep(0.02)
                assert pump.snapshot().unknown == 100
                await pump.offer(0, block(100, first=200))
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            await drained(pump)
            while len({ident for _, _, ident in tap.messages()}) < 300:
                await tap.received(tap.count + 1, 0.5)
            ids = [ident for _, _, ident in tap.messages()]
        return pump.snapshot(), ids

    with iotsim.tap(broker.url) as tap:
        account, ids = asyncio.run(publish(tap))
    assert account.acknowledged == 300
    assert in_order_per_device(list(dict.fromkeys(ids)))
    assert len(ids) - len(set(ids)) <= 100


def test_a_broker_that_is_full_for_a_while_gets_everything_later_and_in_order():
    seen, taken = [], []

    async def stuffed(connection, packet):
        if isinstance(packet, PublishPacket):
            seen.append(message_id(packet))
            room = len(seen) > 24
            taken.extend(seen[-1:] if room else [])
            reason = PubAckReasonCode.SUCCESS if room else PubAckReasonCode.QUOTA_EXCEEDED
            connection.settle(packet.packet_id, reason)

    async def publish():
        async with FakeBroker(stuffed) as broker:
            pump = Pump(build(broker.url, sessions="per-device"), ledger=CheckedLedger(),
                        names=[Identity(f"d-{i}") for i in range(3)])
            await pump.open()
            try:
                for i in range(3):
                    await pump.offer(i, own(f"d-{i}", 5))
                await drained(pump)
            finally:
                await pump.close()
            return pump.snapshot()

    account = asyncio.run(publish())
    assert account.acknowledged == 15
    assert account.refused == account.overtaken == 0
    assert in_order_per_device(taken)
    assert account.retries == len(seen) - 15


def test_a_server_that_is_busy_ends_connections_and_blames_no_message():
    async def busy(connection, packet):
        if connection.number < 3 and isinstance(packet, PublishPacket):
            reason = DisconnectReasonCode.SERVER_BUSY
            connection.say(DisconnectPacket(reason_code=reason))
            connection.writer.close()
        else:
            await answer_all(connection, packet)

    async def publish():
        async with FakeBroker(busy) as broker, pumping(broker.url) as pump:
            await pump.offer(0, block(50))
            await drained(pump)
            return pump.snapshot(), pump.errors, broker.ids

    account, errors, ids = asyncio.run(publish())
    assert account.acknowledged == 50
    assert account.refused == 0
    assert any("server busy (137)" in text for text in errors)
    assert in_order_per_device(list(dict.fromkeys(ids)))


def test_an_outage_leaves_nothing_open_and_its_backlog_is_gone_at_the_brokers_own_pace(mosquitto):
    broker = mosquitto(receive_maximum=50)
    fds = f"/proc/{os.getpid()}/fd"

    async def publish():
        options = {"queue_messages": 2000, "backpressure": "drop_oldest"}
        async with pumping(broker.url, **options) as pump:
            await pump.offer(0, block(100))
            await drained(pump)
            before = len(os.listdir(fds)) if os.path.isdir(fds) else 0
            broker.kill()
            sent = 100
            async with asyncio.timeout(45):
                while sum("nothing listens" in text for text in pump.errors) < 1 or sent < 5100:
                    await pump.offer(0, block(100, first=sent))
                    sent += 100
                    await asyncio.sleep(0.005)
            held = pump.snapshot()
            assert held.queued <= 2000
            during = len(os.listdir(fds)) if os.path.isdir(fds) else 0
            assert during <= before + 2  # at most the attempt that is going on
            await asyncio.to_thread(broker.start)
            most = 0
            async with asyncio.timeout(45):
                while pump.snapshot().acknowledged + pump.snapshot().dropped < sent:
                    most = max(most, pump.snapshot().in_flight)
                    await asyncio.sleep(0.001)
            return sent, most, pump.snapshot()

    sent, most, account = asyncio.run(publish())
    assert most <= 50
    assert account.acknowledged + account.dropped == sent
    assert account.unknown == 0


def test_a_tap_whose_ping_is_answered_late_stays_connected_while_messages_come(monkeypatch):
    monkeypatch.setattr(mqtt, "KEEPALIVE_S", 1)
    store = Store(1000)

    async def behave(connection, packet):
        if isinstance(packet, SubscribePacket):
            code = SubAckReasonCode.GRANTED_QOS_EXACTLY_ONCE
            connection.say(SubAckPacket(packet.packet_id, [code]))

    async def work():
        async with FakeBroker(behave, pong=False) as broker:
            settings = settings_of(broker.url, "#", {})
            source = mqtt.Source(settings, store)
            ping, slow = source._client._send_pingreq, threading.Event()  # as of a busy machine
            source._client._send_pingreq = lambda: (slow.wait(0.2), ping())
            threading.Thread(target=source.run, daemon=True).start()
            await broker.until(lambda: broker.connections and broker.connections[0].packets)
            (connection,) = broker.connections
            # As of a broker that has much on its way to us: the answer would come last.
            while sum(isinstance(p, PingReqPacket) for p in connection.packets) < 4:
                assert not connection.ended.is_set()
                connection.say(PublishPacket("a", b"x"))
                await asyncio.sleep(0.05)
            assert (store.state["losses"], store.state["connected"]) == (0, True)
            assert store.state["count"] > 20
            source.close()

    asyncio.run(work())
