"""NATS, JetStream and AMQP: a pump beside the bare client, and live fleets over NATS core.

    python -m tests.benchmarks --live                 # all of it, minutes; wants a quiet machine
"""

import asyncio
import contextlib

from tests.benchmarks.measures import Row
from tests.benchmarks.mqtt import child, flat_out, live, live_rows
from tests.servers.nats import NatsServer
from tests.servers.rabbit import Rabbit

EXCHANGE = "iot.telemetry"


@contextlib.contextmanager
def nats(jetstream=False):
    server = NatsServer(jetstream=jetstream)
    try:
        server.start()
        if jetstream:
            server.add_stream("DEVICES", ("devices.>",))
        yield server
    finally:
        server.stop()


def beside(what, ours, bare, least):
    """The lines of two clients, and how they compare per second of processor and of time."""
    rates = {}
    for name, found in ((f"bare {what}", bare), (f"iotsim, {what}", ours)):
        rates[name] = (found["acknowledged"] / found["wall_s"],
                       found["acknowledged"] / max(found["cpu_s"], 1e-9))
        hz, per_cpu = rates[name]
        yield Row(f"{name}, as fast as it goes", hz,
                  f"{hz / 1e3:.1f} k msg/s, {per_cpu / 1e3:.1f} k msg per processor-second")
    first, second = rates.values()
    ratio = second[0] / first[0]
    yield Row("… against the bare client", ratio,
              f"{ratio:.2f} × per second, {second[1] / first[1]:.2f} × per processor-second",
              f"≥ {least:g} ×", ratio >= least)


def flat(scale):
    """Each pump beside the bare client library, in the same run."""
    count = max(2000, int(200_000 * scale) // 2000 * 2000)
    with nats() as server:
        yield from beside("nats-py `publish`, with the id in a header",
                          flat_out("iotsim", server.url, count),
                          child("bare_child", client="nats", url=server.url, count=count), 1)
        yield from beside("nats-py `publish`, no header",
                          flat_out("iotsim", server.url, count, ids=False),
                          child("bare_child", client="nats", url=server.url, count=count,
                                options={"ids": False}), 1)
    count = max(2000, count // 4)
    with nats(jetstream=True) as server:
        yield from beside("nats-py `publish_async`",
                          flat_out("iotsim", server.jetstream_url, count),
                          child("bare_child", client="jetstream", url=server.url,
                                count=count), 0.8)
    count = max(2000, count // 5)
    with Rabbit() as server:
        asyncio.run(_bound(server.url))
        options = {"exchange": EXCHANGE}
        yield from beside("aio-pika, 1,024 in flight", flat_out("iotsim", server.url, count),
                          child("bare_child", client="aio-pika", url=server.url, count=count,
                                options=options), 1)


async def _bound(url):
    import aio_pika

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(EXCHANGE, "topic", durable=True)
        await (await channel.declare_queue("bench", durable=True)).bind(exchange, "#")


def living(scale):
    """Live fleets over NATS core, and one over JetStream."""
    seconds = max(1, int(20 * scale))
    warm_s = None if scale >= 0.1 else 1
    for full, cores, late_ms, memory_mb in (
        (100_000, 0.15, 20, 250), (500_000, None, None, None), (1_000_000, None, None, None),
    ):
        devices = max(50, int(full * scale))
        with nats() as server:
            found = live(server.url, devices, seconds=seconds, warm_s=warm_s)
        yield from live_rows("NATS core", found, devices, cores, 5, None, memory_mb, late_ms)
    devices = max(50, int(100_000 * scale))
    with nats(jetstream=True) as server:
        found = live(server.jetstream_url, devices, seconds=seconds, warm_s=warm_s)
    yield from live_rows("JetStream", found, devices)


def rows(scale):
    yield from flat(scale)
    yield from living(scale)
