"""Every protocol through every misfortune of the rig: what was sent, what came, what was said.

The cells of one protocol run side by side in one loop, against one server and before one tap,
once per process; the fleets have names and topics of their own.
"""

import asyncio
import contextlib
import functools
import math
import time
from dataclasses import dataclass, field

import iotsim
from iotsim import Fleet, Profile
from iotsim.broker import Broker, find_mosquitto
from iotsim.publishers import pump as pump_module
from tests.conftest import lacking
from tests.live import START
from tests.publishing import CheckedLedger
from tests.rig import MISFORTUNES, Rig
from tests.servers.nats import NatsServer
from tests.servers.rabbit import lent
from tests.udp_proxy import UdpProxy, Weather

DEVICES, LASTS_S, SPEED = 10, 20, 20
TOPIC = "matrix/{fleet}/{{device_id}}"
SEED = 1

class Silence:
    """A rule under which nothing passes for a while, once some datagrams have."""

    delay_s = 0.0

    def __init__(self, after=80, lasts_s=1.5):
        self.lost, self._left, self._lasts_s, self._until_s = 0, after, lasts_s, math.inf

    def __call__(self, direction, number, data):
        if number == self._left:
            self._until_s = time.monotonic() + self._lasts_s
        if number < self._left or time.monotonic() > self._until_s:
            return [data]
        self.lost += 1
        return []


WEATHERS = {
    "late": functools.partial(Weather, delay_s=0.02),
    "a quarter lost": functools.partial(Weather, lose=0.25),
    "twice": functools.partial(Weather, double=0.5),
    "in another order": functools.partial(Weather, swap=0.3),
    "silent for a while": Silence,
}


@dataclass(frozen=True)
class Protocol:
    """How one protocol is spoken here.

    `serve()` gives a server with `port`; `url(port)` where to publish; `tap(server)` a tap before
    it, of everything; `options` keep what waits for a deadline short.
    """

    serve: object
    url: object
    tap: object
    options: dict = field(default_factory=dict)
    datagrams: bool = False
    down: tuple = (100, 900)

    @property
    def misfortunes(self):
        return tuple(WEATHERS) if self.datagrams else MISFORTUNES


@contextlib.contextmanager
def mosquitto():
    if find_mosquitto() is None:
        lacking("mosquitto is not installed (apt-get install mosquitto)")
    with Broker(embedded=False) as broker:
        yield broker


@contextlib.contextmanager
def nats(**options):
    server = NatsServer(**options)
    try:
        server.start()
        if options.get("jetstream"):
            server.add_stream("MATRIX", ("matrix.>",))
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def itself():
    """The tap is the server."""
    yield None


PROTOCOLS = {
    "mqtt": Protocol(
        mosquitto, "mqtt://127.0.0.1:{}".format,
        lambda server: iotsim.tap(server.url, "matrix/#"), {"keepalive": 2, "qos": 1},
        down=(100, 600)),
    "mqtt, exactly once": Protocol(
        mosquitto, "mqtt://127.0.0.1:{}".format,
        lambda server: iotsim.tap(server.url, "matrix/#"), {"keepalive": 2, "qos": 2}),
    "mqtt 3.1.1": Protocol(
        mosquitto, "mqtt://127.0.0.1:{}".format,
        lambda server: iotsim.tap(server.url, "matrix/#"),
        {"keepalive": 2, "qos": 1, "version": "3.1.1", "audit_field": "_seq"}, down=(100, 600)),
    "amqp": Protocol(
        lent, "amqp://guest:guest@127.0.0.1:{}".format,
        lambda server: iotsim.tap(server.url, "#", exchange="matrix"),
        {"heartbeat": 2, "exchange": "matrix"}, down=(600, 680)),
    "nats": Protocol(
        nats, "nats://127.0.0.1:{}".format,
        lambda server: iotsim.tap(server.url, "matrix.>"), {"keepalive": 2}, down=(265, 340)),
    "jetstream": Protocol(
        functools.partial(nats, jetstream=True), "nats+jetstream://127.0.0.1:{}".format,
        lambda server: iotsim.tap(server.jetstream_url, "matrix.>", stream="MATRIX"),
        {"keepalive": 2, "ack_wait_s": 2.0}),
    "http": Protocol(
        itself, "http://127.0.0.1:{}/in".format,
        lambda server: iotsim.tap("http://127.0.0.1:0/in"), {"timeout_s": 1.5}),
    "http, in batches": Protocol(
        itself, "http://127.0.0.1:{}/in".format,
        lambda server: iotsim.tap("http://127.0.0.1:0/in"), {"timeout_s": 1.5, "batch": 20}),
    "coap": Protocol(
        itself, "coap://127.0.0.1:{}".format,
        lambda server: iotsim.tap("coap://127.0.0.1:0"),
        {"ack_timeout_s": 0.1, "audit_field": "_seq"}, datagrams=True),
}


@dataclass(frozen=True)
class Cell:
    """What came of one protocol in one misfortune."""

    rig: object
    result: iotsim.Result
    ledgers: list
    received: list  # ids, in order of arrival
    audit: object

    @property
    def sent(self):
        """Every id of the run."""
        frame = self.result.frame()
        return {f"{self.result.run_id}/{device}/{seq}/0"
                for device, seq in zip(frame["device_id"], frame["seq"], strict=True)}


def fleet_of(name, number, url, options):
    profile = Profile("unit", {"value": {"type": "gaussian", "mean": 20, "stddev": 2,
                                         "resolution": 0.01}}, telemetry_interval="1s")
    return (Fleet(name, seed=number + 1).add(profile, count=DEVICES, id=f"u{number}-{{n}}")
            .publish_to(url, topic=TOPIC.format(fleet=f"m{number}"), **options))


def _far_port(protocol, server, tap):
    if server is not None:
        return server.port
    return int(tap.url.partition("://")[2].partition("/")[0].rpartition(":")[2])


async def _played(protocol, number, name, port):
    rig = UdpProxy(port, WEATHERS[name](), SEED) if protocol.datagrams else (
        Rig(port, name, SEED, down=protocol.down))
    async with rig, asyncio.timeout(60):
        url = protocol.url(rig.port)
        fleet = fleet_of(f"matrix {number}", number, url, protocol.options)
        run = fleet.start(f"{LASTS_S}s", speed=SPEED, start=START)
        result = await run.wait()
        return rig, run._works.pumps[0].url, result, [pump._ledger for pump in run._works.pumps]


@functools.cache
def cells(name):
    """Every misfortune of a protocol."""
    protocol = PROTOCOLS[name]

    async def all_of(port):
        return await asyncio.gather(*(_played(protocol, number, one, port)
                                      for number, one in enumerate(protocol.misfortunes)))

    kept, pump_module.Ledger = pump_module.Ledger, CheckedLedger
    try:
        with protocol.serve() as server, protocol.tap(server) as tap:
            played = asyncio.run(all_of(_far_port(protocol, server, tap)))
            sent = sum(result.rows for _, _, result, _ in played)
            tap.wait(sent, 45)
            assert tap.ok, tap.health
            found = {}
            for misfortune, (rig, url, result, ledgers) in zip(
                    protocol.misfortunes, played, strict=True):
                audit = result.audit(tap, publisher=url)
                found[misfortune] = Cell(rig, result, ledgers, _ids_of(tap, result), audit)
            return found
    finally:
        pump_module.Ledger = kept


def _ids_of(tap, result):
    import orjson

    found = []
    for _, payload, ident in tap.messages():
        ident = ident or orjson.loads(payload).get("_seq", "")
        if ident.startswith(f"{result.run_id}/"):
            found.append(ident)
    return found
