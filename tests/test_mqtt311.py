"""MQTT 3.1.1: what its sessions keep over lost connections, and what its brokers cannot say."""

import asyncio
import json
import socket

import pytest

import iotsim
from iotsim import Fleet
from iotsim.publishers.base import Identity, build
from iotsim.publishers.pump import Pump
from tests.proxy import Proxy
from tests.publishing import CheckedLedger, block, own, pumping

pytestmark = pytest.mark.broker
OLD = {"version": "3.1.1"}


def numbers(tap):
    """What arrived of `block`, in order."""
    return [int(payload.split(b".")[0]) for _, payload, _ in tap.messages()]


def cutting(every):
    """What a proxy does that cuts at every so manieth answer instead of passing it on."""
    seen = {"answers": 0}

    def answer(number, data):
        seen["answers"] += 1
        return None if number < 8 and seen["answers"] % every == 0 else data

    return answer


@pytest.mark.parametrize(("qos", "most"), [(2, 0), (1, 8 * 256)])
def test_cut_connections_lose_nothing_and_qos_2_delivers_nothing_twice(mosquitto, qos, most):
    broker, count = mosquitto(), 2000

    async def publish(tap):
        async with (
            Proxy(broker.port, cutting(7)) as proxy,
            pumping(proxy.url, qos=qos, **OLD) as pump,
        ):
            await pump.offer(0, block(count, devices=20))
            assert await pump.drain(45), (pump.snapshot(), pump.errors)
            account = pump.snapshot()
            async with asyncio.timeout(45):
                while len(set(numbers(tap))) < count:  # some come twice
                    await asyncio.sleep(0.05)
        return account

    with iotsim.tap(broker.url, qos=2) as tap:
        account = asyncio.run(publish(tap))
        arrived = numbers(tap)
    assert account.acknowledged == count
    assert account.reconnects >= 7  # one of them may have been that which throws a session away
    assert set(arrived) == set(range(count))
    assert len(arrived) - count <= most
    last = {}
    for number in arrived:  # the first of each in order, per device
        if number > last.get(number % 20, -1):
            assert number - last.get(number % 20, number % 20 - 20) == 20
            last[number % 20] = number


def test_a_session_that_somebody_left_behind_swallows_nothing(mosquitto):
    broker = mosquitto()
    with socket.create_connection(("127.0.0.1", broker.port), timeout=5) as other:
        other.sendall(b"\x10\x0f\x00\x04MQTT\x04\x00\x00\x3c\x00\x03d-0")  # not clean
        assert other.recv(4) == b"\x20\x02\x00\x00"
        other.sendall(b"\x34\x07\x00\x01t\x00\x01xx")  # QoS 2, packet id 1, never released
        assert other.recv(4) == b"\x50\x02\x00\x01"

    async def publish(tap):
        pump = Pump(build(broker.url, sessions="per-device", qos=2, **OLD),
                    names=[Identity("d-0")], ledger=CheckedLedger())
        await pump.open()
        await pump.offer(0, own("d-0", 5))
        assert await pump.drain(45)
        await pump.close()
        assert await tap.received(5, 45)

    with iotsim.tap(broker.url, qos=2) as tap:
        asyncio.run(publish(tap))
        assert [payload for _, payload, _ in tap.messages()] == [
            b"d-0 0", b"d-0 1", b"d-0 2", b"d-0 3", b"d-0 4"]
    with socket.create_connection(("127.0.0.1", broker.port), timeout=5) as other:
        other.sendall(b"\x10\x0f\x00\x04MQTT\x04\x00\x00\x3c\x00\x03d-0")
        assert other.recv(4) == b"\x20\x02\x00\x00"  # no session is left of ours


@pytest.mark.parametrize("qos", [1, 2])
def test_a_broker_that_is_killed_gets_everything_in_order(mosquitto, qos):
    broker = mosquitto()

    async def publish():
        async with pumping(broker.url, qos=qos, **OLD) as pump:
            await pump.offer(0, block(300, devices=10))
            broker.kill()
            await asyncio.to_thread(broker.start)
            with iotsim.tap(broker.url, qos=2) as tap:
                await pump.offer(0, block(300, first=300, devices=10))
                assert await pump.drain(45), (pump.snapshot(), pump.errors)
                while not set(range(300, 600)) <= set(numbers(tap)):
                    await tap.received(tap.count + 1, 0.5)
                arrived = numbers(tap)
        assert pump.snapshot().acknowledged == 600
        return arrived

    arrived = asyncio.run(publish())
    for device in range(10):  # from whatever the first was, without a gap
        own_numbers = list(dict.fromkeys(n for n in arrived if n % 10 == device))
        assert own_numbers == list(range(own_numbers[0], 600, 10))


def test_a_broker_that_lies_is_found_out_by_what_arrives(mosquitto):
    broker = mosquitto(acl=["topic write devices/#", "topic deny devices/d-3/#", "topic read #"])

    async def publish(tap):
        async with pumping(broker.url, **OLD) as pump:
            for first in range(0, 3000, 1000):
                await pump.offer(0, block(1000, first=first))
            assert await pump.drain(45)
            assert await tap.received(2700, 45)
        return pump.snapshot()

    with iotsim.tap(broker.url) as tap:
        account = asyncio.run(publish(tap))
        assert account.acknowledged == 3000  # so it says
        assert account.refused == 0
        assert not asyncio.run(tap.received(2701, 0.3))
        assert all(number % 10 != 3 for number in numbers(tap))


def test_an_id_that_the_protocol_has_no_place_for_goes_into_the_document(mosquitto):
    broker = mosquitto()
    fleet = Fleet("plant", seed=1).add("temperature_sensor", count=10, every="1s")
    fleet = fleet.publish_to(broker.url, audit_field="_seq", **OLD)
    with iotsim.tap(broker.url) as tap:
        result = asyncio.run(fleet.run("3s", speed=20))
        account, = result.publishers.values()
        assert asyncio.run(tap.received(account.acknowledged, 45))
        ids = [json.loads(payload)["_seq"] for _, payload, _ in tap.messages()]
    assert len(set(ids)) == account.offered
    assert all(len(ident.split("/")) == 4 for ident in ids)
