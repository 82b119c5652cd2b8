"""Many gateways in one process: connections of their own, everything stored, commands to all."""

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import iotsim
from iotsim.gateway.store import Store
from tests.gateway_life_rig import STORE_KEY, Site
from tests.publishing import until
from tests.servers.notip import key_pem, notip_lab, rsa_key  # noqa: F401

pytestmark = pytest.mark.broker
COUNT, SENSORS = 40, 3
WAIT_S = 60


async def delays(kept):
    while True:
        at_s = time.perf_counter()
        await asyncio.sleep(0.01)
        kept.append(time.perf_counter() - at_s - 0.01)


def keys_made_before(site, gateway):
    """To make keys is tested elsewhere, and takes a minute here."""
    pems = [key_pem(rsa_key(i)).decode() for i in range(2)]
    with Store.open(site.folder / "gateways.db", key=STORE_KEY) as store:
        store.save(*(replace(one, private_key_pem=pems[i % 2], created_at="2026-01-01T00:00:00Z")
                     for i, one in enumerate(gateway.records())))


def blocks_of(run):
    return run._works.driver.simulation.blocks


def test_forty_gateways_send_and_are_commanded_all_at_once(notip_lab, tmp_path):  # noqa: F811
    site, threads = Site(notip_lab, tmp_path), {one.name for one in threading.enumerate()}
    gateway = site.gateway(count=COUNT, every="1s").sensor("humidity").sensor("pressure")
    keys_made_before(site, gateway)

    async def main():
        kept = []
        probe = asyncio.create_task(delays(kept))
        run = await site.platform().start(gateway, progress=False)
        table = run.gateways()
        assert len(table) == COUNT
        assert len(run.enrolment.errors) == 0
        await until(lambda: run.gateways().connected.all(), WAIT_S)
        await until(lambda: run.snapshot().readings >= 3 * COUNT * SENSORS, WAIT_S)

        ids = list(table.gateway_id)
        said = await asyncio.gather(*(site.command(one, send_frequency_ms=700) for one in ids))
        assert {one.status for one in said} == {"ack"}
        assert set(run.gateways().send_frequency_ms) == {700}
        commands = run.commands()
        assert len(commands) == COUNT
        assert (commands.status == "ack").all()
        await until(lambda: len(blocks_of(run)) == SENSORS, WAIT_S)  # not one for each sensor
        seen = run.snapshot().readings
        await until(lambda: run.snapshot().readings >= seen + 2 * COUNT * SENSORS, WAIT_S)

        run.inject("disconnect", duration="1s")
        way, = run._works.ways
        await until(lambda: way.pump.connected == 0, WAIT_S)
        await until(lambda: way.pump.connected == COUNT, WAIT_S)
        result = await run.stop()
        probe.cancel()
        await asyncio.wait([probe])
        assert np.percentile(kept, 50) < 1
        assert {task.get_name() for task in asyncio.all_tasks()} == {"scale"}
        await site.check(result)
        return result

    async def named():
        asyncio.current_task().set_name("scale")
        return await main()

    result = asyncio.run(named())
    account, = result.publishers.values()
    assert account.offered == account.acknowledged > 5 * COUNT * SENSORS
    assert set(result.frame().device_id.str.partition(":")[0]) == {
        f"gw-{n + 1}" for n in range(COUNT)}
    result.save(tmp_path / "many.iotsim")
    assert iotsim.verify(tmp_path / "many.iotsim").ok  # however they were stepped together
    left = {one.name for one in threading.enumerate()} - threads
    assert not {name for name in left if name.startswith("iotsim")}, left
