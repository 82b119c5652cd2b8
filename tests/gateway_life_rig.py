"""A lab and a store for tests of runs of gateways, and what the lab must have received.

    site = Site(notip_lab, tmp_path)                 # the fixture of tests/servers/notip.py
    async with site.running(gateway) as run: ...     # checks the account at every move
    await site.check(result)                         # what was acknowledged is there, once
"""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import pytest

import iotsim.works
from iotsim import Gateway, Platform
from iotsim.gateway import connections
from iotsim.gateway.publisher import GatewayPublisher
from iotsim.publishers.backoff import Pace
from iotsim.publishers.pump import Pump
from tests.publishing import CheckedLedger, until

STORE_KEY = "5e" * 32
WAIT_S = 20


@pytest.fixture(scope="module")
def swift():
    """Waits of seconds are tenths of seconds: to connect again, to say goodbye, to drain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GatewayPublisher, "pace", Pace(first_s=0.3, ceiling_s=0.3, slow_s=1.0))
        patch.setattr(GatewayPublisher, "goodbye_s", 0.5)
        patch.setattr(connections, "DRAIN_S", 0.5)
        yield


class Site:
    """A lab on another thread, and a store in a folder."""

    def __init__(self, thread, folder):
        self.thread, self.lab, self.folder = thread, thread.lab, folder
        self.console = thread.lab.console

    async def at(self, coroutine):
        """Await a coroutine of the lab's loop."""
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(coroutine, self.thread.loop))

    def platform(self, **options):
        lab = self.lab
        return Platform(**{
            "provisioning_url": lab.provisioning_url, "nats_url": lab.nats_url,
            "nats_ca": lab.ca_path, "nats_cert": lab.simulator_cert,
            "nats_key": lab.simulator_key, "own_certificates": True,
            "store": self.folder / "gateways.db", "store_key": STORE_KEY, **options})

    def gateway(self, name="gw-{n}", count=2, every="50ms", **options):
        """Gateways with a temperature; registered at the platform, unless they are."""
        made = Gateway(name, factory_id=f"f-{name}", factory_key="key", every=every, seed=42,
                       count=count, **options).sensor("temperature", algorithm="sine_wave")
        known = {one.factory_id for one in self.lab.register_of_gateways.all()}
        new = [(one.factory_id, "key") for one in made.records() if one.factory_id not in known]
        if new:
            self.thread.run(self.lab.register_many(new))
        return made

    async def command(self, gateway_id, **config):
        """Send a config_update; return its answer."""
        sent = await self.at(self.console.config(gateway_id, **config))
        return await self.at(self.console.answer(sent))

    async def received(self, run_id):
        """How often each message of a run came into the stream."""
        frame = await self.at(self.console.telemetry())
        return Counter(one for one in frame.message_id if one.startswith(f"{run_id}/"))

    async def check(self, result):
        """What was acknowledged is there exactly once; what is there was sent."""
        received = await self.received(result.run_id)
        frame = result.frame(wire=True)
        ids = [f"{result.run_id}/{row.device_id}/{row.seq}/{row.copy}"
               for row in frame.itertuples()]
        acked = {one for one, done in zip(ids, frame.acked.fillna(False), strict=True) if done}
        assert set(received.values()) <= {1}, "twice in the stream"
        # Of two copies the platform's table takes the one that comes first.
        missing = {one[:-2] for one in acked} - {one[:-2] for one in received}
        assert not missing, sorted(missing)[:5]
        assert set(received) <= set(ids)
        (ledger,) = result.publishers.values()
        assert ledger.balanced
        assert not ledger.queued
        assert not ledger.in_flight
        assert ledger.acknowledged == len(acked)
        return received

    @asynccontextmanager
    async def running(self, *args, alone=True, platform=None, **options):
        """A run whose account is looked at at every move; stopped and checked in the end."""
        ledgers = []

        def checked(*args, **options):
            ledgers.append(CheckedLedger())
            return Pump(*args, ledger=ledgers[-1], **options)

        iotsim.works.Pump = checked
        try:
            run = await (platform or self.platform()).start(*args, progress=False, **options)
        finally:
            iotsim.works.Pump = Pump
        try:
            yield run
        finally:
            result = await run.stop()
        await self.check(result)
        assert [ledger.wrong for ledger in ledgers] == [[]] * len(ledgers)
        assert not alone or left_over() == []


def left_over():
    """Tasks of ours on this loop that should have ended."""
    here = asyncio.current_task()
    return [task for task in asyncio.all_tasks() if task is not here]


def row(run, name):
    """A gateway's row of `run.gateways()`."""
    frame = run.gateways().set_index("gateway")
    return frame.loc[name]


async def sees(run, name, timeout_s=WAIT_S, **facts):
    """Wait until a gateway's row says so."""
    def so():
        found = row(run, name)
        return all(found[key] == value for key, value in facts.items())

    try:
        await until(so, timeout_s)
    except TimeoutError:
        raise AssertionError(f"not {facts}: {row(run, name).to_dict()}, {run.notes}") from None


async def readings(run, device, more=1, timeout_s=WAIT_S):
    """Wait for more readings of a device; return the number of the last."""
    def last():
        frame = run.frame()
        mine = frame[frame.device_id == device]
        return -1 if not len(mine) else int(mine.seq.max())

    before = last()
    await until(lambda: last() >= before + more, timeout_s)
    return last()
