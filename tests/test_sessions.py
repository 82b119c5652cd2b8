"""Sessions of a device's own: names, last wills, hanging up, coming back, joining late."""

import asyncio
import gc
import json
import os
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mqtt5 import ConnAckPacket, PublishPacket

import iotsim
from iotsim.broker import free_port
from iotsim.errors import BadValue, ConnectError, UnknownName
from iotsim.publishers import sessions
from iotsim.publishers.base import Identity, Loss, build
from iotsim.publishers.connector import OPENINGS_MAX
from iotsim.publishers.pump import Pump
from tests.fake_broker import FakeBroker, answer_all, message_id
from tests.publishing import (
    CheckedLedger,
    Gate,
    gated,
    in_order_per_device,
    names,
    own,
    pumping,
    turn,
    until,
)

both_versions = pytest.mark.parametrize("version", ["5", "3.1.1"])
DEEDS = ("offer", "acknowledge", "lost", "hang_up", "call_back", "refuse", "turn")
OWN = {"sessions": "per-device"}


def own_sessions(url, count, **options):
    return pumping(url, pump={"names": names(count)}, **OWN, **options)


def acknowledging(link, tokens, items):
    link.verdicts.acknowledged(tokens)


def numbers(tap, device):
    """What a tap has of one device, in order of arrival."""
    topic = f"devices/{device}/telemetry"
    return [int(payload.split()[1]) for at, payload, _ in tap.messages() if at == topic]


# -- names and wills, as a broker sees them -------------------------------------------------------


@pytest.mark.broker
@both_versions
def test_two_hundred_devices_publish_each_under_its_own_client_id(mosquitto, version):
    # The broker lets a client write to the topic that has its client id in it, and to no other.
    broker = mosquitto(acl=["pattern write devices/%c/telemetry", "topic read #"])

    async def publish(tap):
        async with own_sessions(broker.url, 200, version=version) as pump:
            assert pump.lanes == pump.connected == 200
            for i in range(200):
                await pump.offer(i, own(f"d-{i}", 3))
            await pump.offer(7, own("d-8", 1, first=3))  # of somebody else
            assert await pump.drain(45)
            assert await tap.received(600, 45)
        return pump.snapshot()

    with iotsim.tap(broker.url, version=version) as tap:
        account = asyncio.run(publish(tap))
        got = Counter(topic for topic, _, _ in tap.messages())
    assert got == {f"devices/d-{i}/telemetry": 3 for i in range(200)}
    if version == "5":  # 3.1.1 cannot say no
        assert account.refusals == {"not authorized (135)": 1}
    assert account.offered == 601


@pytest.mark.broker
@both_versions
def test_a_session_that_is_hung_up_sends_its_will_and_comes_back_with_all_it_missed(
    mosquitto, version
):
    broker = mosquitto()
    wills = {"will": "devices/{device_id}/status", "will_payload": '{"{device_id}": {"up": 0}}'}

    async def publish(tap):
        async with own_sessions(broker.url, 3, version=version, qos=2, **wills) as pump:
            for i in range(3):
                await pump.offer(i, own(f"d-{i}", 50))
            assert await pump.drain(45)
            pump.hang_up(1)
            assert pump.connected == 2
            assert await tap.received(151, 45)  # the will, and nothing else
            for i in range(3):
                await pump.offer(i, own(f"d-{i}", 50, first=50))
            assert await tap.received(251, 45)
            assert pump.snapshot().queued == 50
            assert numbers(tap, "d-1") == list(range(50))
            pump.call_back(1)
            assert await pump.drain(45)
            assert await tap.received(301, 45)
            assert pump.connected == 3
        return pump.snapshot(), pump.errors

    with iotsim.tap(broker.url) as tap:
        account, errors = asyncio.run(publish(tap))
        status = [(t, json.loads(p)) for t, p, _ in tap.messages() if t.endswith("/status")]
        assert [numbers(tap, f"d-{i}") for i in range(3)] == [list(range(100))] * 3
    assert status == [("devices/d-1/status", {"d-1": {"up": 0}})]
    assert (account.acknowledged, account.retries, account.reconnects) == (300, 0, 1)
    assert errors == ()


@pytest.mark.broker
@both_versions
def test_a_will_is_sent_for_a_lost_process_and_not_for_a_goodbye(mosquitto, version):
    broker = mosquitto()
    options = {"will": "{site}/{device_id}", "will_retain": True, "version": version}

    async def publish(tap):
        async with own_sessions(broker.url, 20, **options):
            pass
        async with own_sessions(broker.url, 20, **options) as pump:
            for lane in range(0, 20, 2):
                pump.hang_up(lane)
            assert await tap.received(10, 45)

    with iotsim.tap(broker.url, topic="#") as tap:
        asyncio.run(publish(tap))
        got = {topic: payload for topic, payload, _ in tap.messages()}
        assert tap.count == 10
    assert got == {f"north/d-{i}": b"offline" for i in range(0, 20, 2)}
    with iotsim.tap(broker.url, topic="#") as later:
        assert later.wait(10)


@pytest.mark.broker
@both_versions
def test_sessions_that_are_hung_up_under_load_lose_nothing(mosquitto, version):
    broker = mosquitto()

    async def publish(tap):
        async with own_sessions(broker.url, 5, version=version) as pump:
            for n in range(20):
                for i in range(5):
                    await pump.offer(i, own(f"d-{i}", 20, first=n * 20))
                await turn()
                (pump.call_back if n % 2 else pump.hang_up)(n // 2 % 5)
            assert await pump.drain(45), (pump.snapshot(), pump.errors)
            async with asyncio.timeout(45):
                while len(set(tap.messages())) < 2000:
                    await tap.received(tap.count + 1, 0.5)
        return pump.snapshot()

    with iotsim.tap(broker.url) as tap:
        account = asyncio.run(publish(tap))
        for i in range(5):
            arrived = numbers(tap, f"d-{i}")
            assert sorted(set(arrived)) == list(range(400))
    assert account.acknowledged == account.offered == 2000
    assert 5 <= account.reconnects <= 10  # some are hung up before they are back


@pytest.mark.broker
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@both_versions
def test_hanging_up_gives_its_files_back_at_once(mosquitto, version):
    # paho cannot wait for a socket beyond the 1,024th open file of the process.
    broker = mosquitto()

    async def publish():
        async with own_sessions(broker.url, 40, version=version) as pump:
            at_first = len(os.listdir("/proc/self/fd"))
            for _ in range(4):
                for lane in range(40):
                    pump.hang_up(lane)
                    pump.call_back(lane)
                await until(lambda: pump.connected == 40)
            return at_first, len(os.listdir("/proc/self/fd"))

    gc.collect()
    gc.disable()
    try:
        at_first, in_the_end = asyncio.run(publish())
    finally:
        gc.enable()
    assert in_the_end <= at_first + 6  # a thread or two may still be at its last line


# -- hanging up -----------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [True, False])
def test_what_was_in_flight_at_the_hang_up_is_sent_again_under_the_same_ids(present):
    async def mute_at_first(connection, packet):
        if connection.number:
            await answer_all(connection, packet)

    async def scenario():
        connacks = (ConnAckPacket(), ConnAckPacket(session_present=present))
        async with FakeBroker(mute_at_first, connacks) as broker:
            async with own_sessions(broker.url, 1) as pump:
                await pump.offer(0, own("d-0", 5))
                await broker.until(lambda: len(broker.connections[0].publishes) == 5)
                pump.hang_up(0)
                hung = pump.snapshot()
                await broker.until(broker.connections[0].ended.is_set)
                await pump.offer(0, own("d-0", 3, first=5))
                assert len(broker.connections) == 1
                pump.call_back(0)
                assert await pump.drain(45)
            first, second = broker.connections
            return hung, pump.snapshot(), first, second.connect, second.publishes

    hung, account, first, connect, again = asyncio.run(scenario())
    assert (hung.unknown, hung.in_flight) == (5, 0)
    assert all(isinstance(packet, PublishPacket) for packet in first.packets)  # no DISCONNECT
    assert (first.connect.client_id, connect.client_id) == ("d-0", "d-0")
    assert [message_id(packet) for packet in again] == list(own("d-0", 8).ids)
    assert [packet.duplicate for packet in again] == [present] * 5 + [False] * 3
    assert (account.acknowledged, account.retries, account.reconnects) == (8, 5, 1)


def test_to_hang_up_or_call_back_twice_is_to_do_it_once():
    async def scenario():
        gate = Gate(per_device=True, behave=acknowledging)
        async with gated(gate, names=names(2)) as pump:
            pump.call_back(0)
            pump.hang_up(0)
            pump.hang_up(0)
            await turn()
            assert [link.opened for link in gate.links] == [1, 1]
            pump.call_back(0)
            pump.call_back(0)
            await turn()
            assert [link.opened for link in gate.links] == [2, 1]
            assert pump.connected == 2
            return pump.snapshot().reconnects

    assert asyncio.run(scenario()) == 1


def test_nobody_connects_while_hung_up_also_when_the_link_was_lost_before():
    async def scenario():
        gate = Gate(per_device=True, behave=acknowledging)
        async with gated(gate, names=names(1)) as pump:
            link = gate.links[0]
            link.verdicts.lost(Loss("the cable"))
            gate.held = asyncio.Event()
            await until(lambda: gate.opening)  # in the middle of an attempt
            pump.hang_up(0)
            await turn()
            assert (gate.opening, link.opened, pump.connected) == (0, 1, 0)
            gate.held.set()
            await pump.offer(0, own("d-0", 3))
            await turn()
            assert (link.opened, pump.snapshot().queued) == (1, 3)
            pump.call_back(0)
            assert await pump.drain(1)
            return link.sent

    assert asyncio.run(scenario()) == list(own("d-0", 3).ids)


def test_a_device_that_is_hung_up_while_it_first_connects_stays_away():
    async def scenario():
        gate = Gate(per_device=True, behave=acknowledging, held=asyncio.Event())
        pump = Pump(gate, names=names(2), ledger=CheckedLedger())
        opening = asyncio.create_task(pump.open())
        await turn()
        pump.hang_up(0)
        gate.held.set()
        await opening
        assert (pump.connected, gate.links[0].closed) == (1, True)
        pump.call_back(0)
        await turn()
        assert pump.connected == 2
        await pump.close(0.6)

    asyncio.run(scenario())


def test_called_back_while_the_broker_is_away_it_is_as_after_any_lost_link():
    async def scenario():
        gate = Gate(per_device=True, behave=acknowledging)
        async with gated(gate, names=names(1)) as pump:
            pump.hang_up(0)
            await pump.offer(0, own("d-0", 3))
            gate.failures = 2
            pump.call_back(0)
            assert await pump.drain(3)
            return pump.snapshot(), pump.errors

    account, errors = asyncio.run(scenario())
    assert (account.acknowledged, account.reconnects) == (3, 1)
    assert errors == ("cannot publish to gate:: closed for now. (×2)",)


def test_the_end_does_not_wait_for_who_is_hung_up_and_accounts_for_what_is_left():
    async def scenario():
        gate = Gate(per_device=True)
        async with gated(gate, deadline_s=30, names=names(2), queue_messages=50) as pump:
            await pump.offer(0, own("d-0", 4))
            await turn()
            pump.hang_up(0)
            await pump.offer(0, own("d-0", 50, first=4))
            late = asyncio.create_task(pump.offer(0, own("d-0", 5, first=54)))
            await turn()
            gate.behave = acknowledging
            await pump.offer(1, own("d-1", 9))
            async with asyncio.timeout(45):
                await pump.close(30)
            await late
            pump.call_back(0)
            pump.hang_up(1)
            await turn()
            assert gate.links[0].opened == 1
            return pump.snapshot()

    account = asyncio.run(scenario())
    assert (account.acknowledged, account.unknown, account.dropped) == (9, 4, 55)
    assert account.drops == {"stopped while hung up": 50, "stopped while waiting for room": 5}


@given(
    st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 1), st.integers(1, 12)), max_size=40)
)
@settings(max_examples=60)
def test_whatever_happens_in_whatever_order_the_account_is_right(deeds):
    async def scenario():
        gate = Gate(per_device=True, window=7)
        offered = [0, 0]
        async with gated(gate, names=names(2), queue_messages=1000) as pump:
            for deed, lane, count in deeds:
                link = gate.links[lane]
                if deed == "offer":
                    await pump.offer(lane, own(f"d-{lane}", count, first=offered[lane]))
                    offered[lane] += count
                elif deed == "turn":
                    await turn()
                elif deed in ("hang_up", "call_back"):
                    getattr(pump, deed)(lane)
                elif pump._lanes[lane].connected:  # a link that is dropped says nothing
                    if deed == "acknowledge":
                        link.acknowledge(count)
                    elif deed == "refuse":
                        link.verdicts.refused(link.open_tokens[:1], "no")
                        del link.open_tokens[:1]
                    else:
                        link.verdicts.lost(Loss("cut", "other"))
            gate.behave = acknowledging
            for lane in (0, 1):
                pump.call_back(lane)
                if pump._lanes[lane].connected:
                    gate.links[lane].acknowledge()
            assert await pump.drain(45), pump.snapshot()
            for lane in (0, 1):
                sent = gate.links[lane].sent
                assert list(dict.fromkeys(sent)) == list(own(f"d-{lane}", offered[lane]).ids)
            account = pump.snapshot()
            assert account.acknowledged + account.refused == sum(offered)

    asyncio.run(scenario())


# -- joining late ---------------------------------------------------------------------------------


@pytest.mark.broker
@both_versions
def test_a_publisher_that_begins_before_its_broker_delivers_all(mosquitto, version):
    broker = mosquitto()
    broker.kill()

    async def publish():
        pump = Pump(build(broker.url, version=version), ledger=CheckedLedger())
        pump.begin()
        await pump.offer(0, own("d-0", 20))
        await until(lambda: pump.errors)
        waiting = pump.snapshot()
        await asyncio.to_thread(broker.start)
        assert await pump.drain(45)
        await pump.close()
        return waiting, pump.snapshot(), pump.errors

    waiting, account, errors = asyncio.run(publish())
    assert waiting.queued == 20
    assert account.acknowledged == 20
    assert account.reconnects == 0
    assert errors[0].startswith(f"cannot publish to {broker.url}: nothing listens there")


def test_a_publisher_that_only_ever_began_ends_in_time():
    async def scenario():
        pump = Pump(build(f"mqtt://127.0.0.1:{free_port()}"), ledger=CheckedLedger())
        pump.begin()
        await pump.offer(0, own("d-0", 20))
        await pump.close(0.6)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return pump.snapshot()

    account = asyncio.run(scenario())
    assert account.drops == {"stopped before it was sent": 20}


@pytest.mark.broker
def test_a_device_that_joins_gets_a_session_of_its_own(mosquitto):
    broker = mosquitto(acl=["pattern write devices/%c/telemetry", "topic read #"])

    async def publish(tap):
        async with own_sessions(broker.url, 2) as pump:
            lane = pump.add_lane(Identity("late"))
            await pump.offer(lane, own("late", 5))
            assert await pump.drain(45)
            assert await tap.received(5, 45)
            return lane, pump.lanes, pump.connected, pump.snapshot(), pump.errors

    with iotsim.tap(broker.url) as tap:
        lane, lanes, connected, account, errors = asyncio.run(publish(tap))
    assert (lane, lanes, connected) == (2, 3, 3)
    assert (account.acknowledged, account.reconnects, errors) == (5, 0, ())


def test_a_device_that_joins_after_the_end_is_accounted_for():
    async def scenario():
        gate = Gate(per_device=True)
        async with gated(gate, names=names(1)) as pump:
            await pump.close(0.6)
            lane = pump.add_lane(Identity("late"))
            await pump.offer(lane, own("late", 2))
            await turn()
            assert gate.links[lane].opened == 0
            return pump.snapshot()

    assert asyncio.run(scenario()).drops == {"offered after the stop": 2}


# -- how many -------------------------------------------------------------------------------------


def test_no_more_than_fifty_connect_at_a_time():
    async def scenario():
        gate = Gate(per_device=True, held=asyncio.Event())
        pump = Pump(gate, names=names(170))
        opening = asyncio.create_task(pump.open())
        await turn()
        assert gate.opening == OPENINGS_MAX
        gate.held.set()
        await opening
        for link in gate.links:
            link.verdicts.lost(Loss("the broker went"))
        await until(lambda: pump.connected == 170)
        await pump.close(0.6)
        return gate.opening_most

    assert asyncio.run(scenario()) == OPENINGS_MAX


def test_one_device_that_is_not_let_in_is_named_and_leaves_no_connection(mosquitto):
    broker = mosquitto(conf=["clientid_prefixes d-1"])

    async def publish():
        async with own_sessions(broker.url, 20):
            pass

    with pytest.raises(ConnectError, match=r"d-0: the broker refused us: .*\(1\d\d\)"):
        asyncio.run(publish())


def test_too_many_sessions_are_one_line_that_says_why(monkeypatch):
    with pytest.raises(BadValue) as caught:
        build("mqtt://h", **OWN).lanes(5001)
    assert str(caught.value) == (
        "sessions='per-device' is too much for 5,001 devices: each is an open file, here and at "
        "the broker. Choose at most 5,000 with where=, or use sessions='shared'."
    )
    monkeypatch.setattr(sessions, "_files_max", lambda: 1024)
    assert build("mqtt://h", **OWN).lanes(960) == 960
    with pytest.raises(BadValue, match=r"needs about 1,025 open files .* may have 1,024. Raise"):
        build("mqtt://h", **OWN).lanes(961)
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 2)

    async def join():
        pump = Pump(build("mqtt://h", **OWN), names=names(2))
        pump.add_lane(Identity("one-too-many"))

    with pytest.raises(BadValue, match="too much for 3 devices"):
        asyncio.run(join())


# -- what may be asked for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sessions": "own"}, "Use one of: shared, per-device"),
        ({**OWN, "connections": 2}, "connections=2 cannot be chosen where each device has its own"),
        ({**OWN, "client_id": "gw"}, r"client_id='gw' is the same for every device. Let it hold"),
        ({"client_id": "gw-{device_id}"}, "names a device, but devices share connections"),
        ({"client_id": ""}, "Give 1 to 64 characters"),
        ({"will": "a"}, "will='a' needs a session for each device. Use sessions='per-device'."),
        ({**OWN, "will": "a/#"}, "will='a/#' has a wildcard"),
        ({**OWN, "will": 3}, "will=3 is not text"),
        ({**OWN, "will_payload": "x"}, "needs the topic of a last will"),
        ({**OWN, "will": "a", "will_payload": 1}, "will_payload=1 is not text"),
        ({**OWN, "will": "a", "will_payload": "x" * 70_000}, "is too long. Give text of at most"),
        ({**OWN, "will": "a", "will_retain": 1}, "Give True or False"),
    ],
)
def test_options_of_sessions_are_checked_at_the_door(options, words):
    with pytest.raises(BadValue, match=words):
        build("mqtt://h", **options)


def test_client_ids_are_the_devices_own_or_what_a_template_says():
    def client_id(device, **options):
        return build("mqtt://h", **OWN, **options).link(0, "run", None, device)._client_id

    device = Identity("d-1", "meter", {"site": "north"})
    assert client_id(device) == "d-1"
    assert client_id(device, client_id="{site}:{device_type}:{device_id}") == "north:meter:d-1"
    with pytest.raises(UnknownName, match=r"placeholder called 'sit'. Did you mean 'site'"):
        client_id(device, client_id="{sit}-{device_id}")


def test_shared_connections_are_as_they_were():
    publisher = build("mqtt://h")
    assert not publisher.per_device
    assert publisher.link(3, "run", None)._client_id == "iotsim-run-3"
    assert publisher.limits.queue_messages == 10_000
    assert build("mqtt://h", **OWN).limits.queue_messages == 1000
    assert not any(build(url).per_device for url in ("memory:", "console:", "file:x"))


def test_what_the_devices_of_a_fake_broker_publish_stays_in_order():
    async def scenario():
        async with FakeBroker() as broker:
            async with own_sessions(broker.url, 4) as pump:
                for n in range(5):
                    for i in range(4):
                        await pump.offer(i, own(f"d-{i}", 10, first=10 * n))
                assert await pump.drain(45)
            return broker.ids, {c.connect.client_id for c in broker.connections}

    ids, clients = asyncio.run(scenario())
    assert in_order_per_device(ids)
    assert clients == {f"d-{i}" for i in range(4)}
