"""Live runs of a few gateways against the lab of a module; they are provisioned once.

    site, notip_lab = gateway_runs.site, notip.notip_lab  # the fixtures

    def test_it(site):
        async def work(run):                              # a GatewayRun, ready
            await site.config(run, "gw-1", status="paused")
            return await run.stop()

        site.go(work, every="100ms")
"""

import asyncio
import json
import time

import pandas as pd  # not first when a run is live: it takes a second
import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from iotsim import Gateway, Platform
from iotsim.clock import wall_us
from iotsim.lab.moments import iso_ms
from iotsim.lab.telemetry import opened
from tests.commanding import until as until
from tests.servers.notip import client_context, connection

COUNT = 2


@pytest.fixture(scope="module")
def site(notip_lab, tmp_path_factory):
    return Site(notip_lab, tmp_path_factory.mktemp("gateways"))


class Site:
    """A lab, a store beside it, and gateways gw-1, gw-2 with a temperature and a humidity."""

    def __init__(self, thread, folder):
        self.thread, self.lab, self.folder = thread, thread.lab, folder
        self.store = folder / "gateways.db"
        thread.run(thread.lab.register_many({f"f-{n + 1}": "k" for n in range(COUNT)}))

    def gateway(self, every="100ms", seed=7, count=COUNT):
        return (Gateway("gw-{n}", factory_id="f-{n}", factory_key="k", every=every, seed=seed,
                        count=count)
                .sensor("temperature", algorithm="sine_wave", min=-30, max=-10)
                .sensor("humidity"))

    def platform(self, **options):
        lab = self.lab
        return Platform(**{"provisioning_url": lab.provisioning_url, "nats_url": lab.nats_url,
                           "nats_ca": lab.ca_path, "nats_cert": lab.simulator_cert,
                           "nats_key": lab.simulator_key, "own_certificates": True,
                           "store": self.store, **options})

    def go(self, work, every="100ms", *, seed=7, count=COUNT, start=None, **options):
        """Start the gateways and do something with their run; it ends with it."""
        async def main():
            gateway = self.gateway(every, seed, count)
            run = await self.platform(**options).start(gateway, start=start)
            try:
                return await work(run)
            finally:
                await run.stop()

        return asyncio.run(main())

    async def on_lab(self, coroutine):
        """Wait for something of the lab; the run goes on meanwhile."""
        there = asyncio.run_coroutine_threadsafe(coroutine, self.thread.loop)
        return await asyncio.wrap_future(there)

    # -- commands ---------------------------------------------------------------------------------

    @staticmethod
    def id_of(run, name):
        return run.crew.records[name].gateway_id

    async def send(self, run, name, kind, payload, *, id=None, age_s=0.0):
        """Send a command without waiting for its answer; returns its id."""
        ident = id or f"c-{time.monotonic_ns()}"
        body = {"command_id": ident, "type": kind, "payload": payload,
                "issued_at": iso_ms(wall_us() - round(age_s * 1e6))}
        return await self.on_lab(self.lab.console.send(self.id_of(run, name),
                                                       json.dumps(body).encode()))

    async def answer(self, ident):
        return await self.on_lab(self.lab.console.answer(ident, timeout="20s"))

    async def config(self, run, name, *, age_s=0.0, **payload):
        """Send a config_update and return its answer."""
        ident = await self.send(run, name, "config_update", payload, age_s=age_s)
        return await self.answer(ident)

    # -- what the server says ---------------------------------------------------------------------

    async def attached(self, run, name):
        """Whether the server has a connection that takes the commands of a gateway."""
        return (await self.consumer(run, name)).push_bound

    async def consumer(self, run, name):
        ident = self.id_of(run, name)
        streams = self.lab._connections[0].jetstream(timeout=10)
        return await self.on_lab(streams.consumer_info("COMMANDS", f"gw-{ident}"))

    # -- telemetry --------------------------------------------------------------------------------

    async def sent(self, run):
        """What the TELEMETRY stream has of a run, opened: one row per message, in its order."""
        ids = {record.gateway_id: record for record in run.crew.records.values()}
        rows = []
        for payload, ident in await self.raw(run.id):
            envelope = json.loads(payload)
            record = ids[envelope["gatewayId"]]
            value, unit = opened(envelope, record.aes_key)
            _, device, seq, copy = ident.split("/")
            rows.append((pd.Timestamp(envelope["timestamp"]), record.name, device, int(seq),
                         int(copy), value, unit, envelope["iv"], payload))
        return pd.DataFrame(rows, columns=["time", "gateway", "device", "seq", "copy", "value",
                                           "unit", "iv", "payload"])

    async def raw(self, run_id):
        """(payload, message id) of each message of a run, in the order of the stream."""
        async with connection(self.lab, client_context(self.lab)) as link:
            streams = link.jetstream(timeout=10)
            last = (await streams.stream_info("TELEMETRY")).state.last_seq
            pull = await streams.pull_subscribe("telemetry.data.>", stream="TELEMETRY",
                                                config=ConsumerConfig(ack_policy=AckPolicy.NONE))
            found, seen = [], 0
            while seen < last:
                for message in await pull.fetch(min(1000, max(last - seen, 2)), timeout=5):
                    seen = message.metadata.sequence.stream
                    ident = message.headers["Nats-Msg-Id"]
                    if ident.startswith(run_id):
                        found.append((message.data, ident))
            return found
