"""Devices with sessions of their own: who is stopped says goodbye, and who is added comes."""

import asyncio

import pytest

from iotsim import Fleet
from iotsim.errors import BadValue
from tests.live import START, run, sensors

OPTIONS = {"sessions": "per-device", "will": "wills/{device_id}", "qos": 1}


async def until(condition):
    async with asyncio.timeout(45):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_stopped_device_leaves_with_a_goodbye_and_an_added_one_joins(mosquitto):
    url = mosquitto().url

    async def main():
        live = sensors(count=6).publish_to(url, **OPTIONS)
        running = live.start(speed=60, start=START)
        await running.ready()
        pump = running._works.pumps[0]
        assert pump.connected == 6
        await until(lambda: running.snapshot().readings > 30)
        action = running.stop(where="count=2")
        assert action.devices == 2
        await until(lambda: pump.connected == 4)
        running.add("temperature_sensor", count=3)
        await until(lambda: pump.connected == 7)
        await until(lambda: running.snapshot().readings > 200)
        return await running.stop()

    result = run(main())
    ledger = next(iter(result.publishers.values()))
    assert not result.errors
    assert ledger.acknowledged == ledger.offered == result.rows
    assert set(result.frame()["device_id"].unique()) == {
        f"temperature_sensor-{i:04d}" for i in range(9)}


def test_two_sessions_under_one_name_are_refused(mosquitto):
    url = mosquitto().url
    live = sensors(count=2).publish_to(url, **OPTIONS).publish_to(
        url, topic="copy/{device_id}", **OPTIONS)
    with pytest.raises(BadValue, match="is asked for twice"):
        run(live.run("10s", speed=60))


def test_where_they_do_not_overlap_two_are_welcome(mosquitto):
    url = mosquitto().url
    fleet = Fleet("two", seed=1).add("pump", count=2).add("smart_lock", count=2)
    live = fleet.publish_to(url, where="device_type=pump", **OPTIONS).publish_to(
        url, where="device_type=smart_lock", **OPTIONS)
    result = run(live.run("30s", speed=60, start=START))
    assert not result.errors
    assert sum(ledger.acknowledged for ledger in result.publishers.values()) == result.rows
