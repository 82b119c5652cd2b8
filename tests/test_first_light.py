"""The promise of the first release, end to end, on real parts."""

import asyncio
from collections import defaultdict

import pytest

from iotsim import Fleet, tap
from iotsim.publishers.payload import Encoder

START = "2026-03-01T12:00:00Z"


def test_fifty_sensors_for_ten_minutes_are_six_thousand_rows():
    fleet = Fleet("p", seed=1).add("temperature_sensor", count=50)
    result = fleet.generate("10m")
    frame = result.frame()
    assert len(frame) == 6000
    assert fleet.generate("10m").digest == result.digest
    other = Fleet("p", seed=2).add("temperature_sensor", count=50)
    assert other.generate("10m").digest != result.digest
    assert same_readings(frame, fleet.add("temperature_sensor", count=1000))
    fewer = Fleet("p", seed=1).add("temperature_sensor", count=30)
    few = fewer.generate("10m").frame()
    assert len(few) == 3600
    assert same_readings(few, fleet)


def same_readings(frame, larger):
    """Return whether the devices of a frame have the same readings in a larger fleet."""
    found = larger.generate("10m").frame()
    ids = set(frame.device_id)
    found = found[found.device_id.isin(ids)].reset_index(drop=True)
    plain = {"device_id": str}
    return found.astype(plain).equals(frame.astype(plain))


def by_device(messages):
    """Return each device's (topic, payload, tick) in the order they came."""
    found = defaultdict(list)
    for topic, payload, name in messages:
        _, device, seq, _ = name.split("/")
        found[device].append((topic, payload, int(seq)))
    return found


def encoded(result):
    """Return what the readings of a result are on the wire, per device."""
    topics = {member.type: member for member in result.fleet.members}

    def topic_of(group, i):
        outlet = result.fleet.outlets[0]
        return outlet.topic_of(topics[group.device_type], group, i)

    encoder, found = Encoder("x", topic_of), defaultdict(list)
    for chunk in result.capture.chunks():
        messages = encoder.encode(chunk)
        rows = zip(messages.topics, messages.payloads, messages.ids, strict=True)
        for device, items in by_device(rows).items():
            found[device] += items
    return {device: sorted(items, key=lambda item: item[2]) for device, items in found.items()}


async def meter(dev):
    while True:
        dev.emit(power=dev.draw("power", "gaussian", mean=400, stddev=25, resolution=0.1))
        await dev.sleep()


@pytest.mark.broker
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_offline_live_and_received_are_the_same_bytes(mosquitto, version):
    broker = mosquitto()
    fleet = (
        Fleet("light", seed=42)
        .add("temperature_sensor", count=40, labels={"site": "north"})
        .add("smart_lock", count=10)
        .add("pump", count=5, every="1500ms")
        .add(meter, count=5, every="2s")
        .publish_to(broker.url, qos=1, version=version, topic="all/{device_type}/{device_id}")
    )
    offline = fleet.generate("1m", start=START)

    async def session(receiver):
        run = fleet.start("1m", speed=30, start=START, capture="all")
        await run.ready()
        await asyncio.sleep(0.4)
        run.pause()
        await asyncio.sleep(0.1)
        run.resume()
        run.set_speed(60)
        result = await run.wait()
        assert await receiver.received(result.rows, 45)
        return result

    with tap(broker.url, topic="all/#", version=version) as receiver:
        result = asyncio.run(session(receiver))
        received = receiver.messages()
        seen = receiver.digest() if version == "5" else ""
        assert receiver.health == "ok"
    assert result.errors == ()
    assert result.digest == offline.digest
    assert len(received) == result.rows
    if version == "3.1.1":  # no user properties: the tick is not on the wire
        assert sorted(body for _, body, _ in received) == sorted(
            body for items in encoded(offline).values() for _, body, _ in items
        )
        return
    assert seen == offline.digest
    assert by_device(received) == encoded(offline)


@pytest.mark.parametrize("speed", [1, 100])
def test_run_at_speed_one_and_a_hundred_is_generate(speed):
    fleet = Fleet("pace", seed=3).add("temperature_sensor", count=50, every="200ms")
    duration = "1s" if speed == 1 else "60s"
    result = asyncio.run(fleet.run(duration, speed=speed, start=START))
    assert result.digest == fleet.generate(duration, start=START).digest
    assert result.rows == 50 * (5 if speed == 1 else 300)
