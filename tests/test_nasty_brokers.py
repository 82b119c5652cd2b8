"""The nasty cases that need all brokers at once: lost acknowledgements, no route, odd names."""

import asyncio
import contextlib
import json
import logging
import random
import re
import time
from collections import Counter

import aio_pika
import pytest

import iotsim
from iotsim import Fleet, Profile
from iotsim.errors import BadValue
from iotsim.publishers.nats_jetstream import NO_STREAM
from tests.live import START, until
from tests.matrix import mosquitto, nats
from tests.proxy import Proxy
from tests.publishing import block, in_order_per_device, pumping
from tests.servers.coap import LibcoapServer
from tests.servers.http import Endpoint
from tests.servers.rabbit import rabbit_node  # noqa: F401  (a fixture)
from tests.udp_proxy import UdpProxy

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

UNIT = Profile("unit", {"value": {"type": "gaussian", "mean": 20, "stddev": 2,
                                  "resolution": 0.01}}, telemetry_interval="1s")


@pytest.fixture(scope="module", name="mqtt_broker")
def mqtt_broker_of_the_module():
    with mosquitto() as broker:
        yield broker


@pytest.fixture(scope="module", name="stream_server")
def stream_server_of_the_module():
    with nats(jetstream=True) as server:
        server.add_stream("DEVICES", ("devices.>",))
        yield server


@pytest.fixture
def short_pauses(monkeypatch):
    """Links that are lost are looked for again at once."""
    monkeypatch.setattr("iotsim.publishers.backoff.BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr("iotsim.publishers.backoff.BACKOFF_CEILING_S", 0.02)


# -- 5: the acknowledgement is lost, not the message ----------------------------------------------

LOST = 1000


def pubacks(data):
    count, i = 0, 0
    while i + 1 < len(data):  # all packets that a publisher gets are short
        count += data[i] == 0x40
        i += 2 + data[i + 1]
    return count


def confirms(data):
    return len(re.findall(rb"\x00\x00\x00\x0d\x00\x3c\x00\x50", data))


def stored(data):
    return data.count(b'"seq"')


class Thief:
    """Passes some acknowledgements on, keeps what comes then, and cuts; 1,000 times in all.

    Those that pass let the lane trust its link again, so that many are under way at the cut.
    """

    def __init__(self, acks, passing=30, keep=20):
        self.acks, self.passing, self.keep = acks, passing, keep
        self.stolen = 0
        self._passed, self._kept = Counter(), Counter()

    def __call__(self, number, data):
        count = self.acks(data)
        if not count or self.stolen >= LOST:
            return data
        if self._passed[number] < self.passing:
            self._passed[number] += count
            return data
        self.stolen += count
        self._kept[number] += count
        return None if self._kept[number] >= self.keep or self.stolen >= LOST else b""


async def stolen(port, url, thief, **options):
    """A thousand and more messages, until a thousand acknowledgements were lost."""
    async with Proxy(port, thief) as proxy, pumping(url.format(proxy.port), **options) as pump:
        sent = []
        while thief.stolen < LOST:
            messages = block(500, first=500 * len(sent), devices=100)
            sent.append(messages)
            await pump.offer(0, messages)
            await until(lambda: pump.fill(0) < 0.05)
            assert len(sent) < 40
        assert await pump.drain(45)
        return pump.snapshot(), pump._ledger.seen, [i for m in sent for i in m.ids]


def all_of(tap, sent, timeout_s=60):
    """The ids that came, once all that were sent are among them."""
    until_s = time.monotonic() + timeout_s
    while True:
        count = tap.count
        received = [ident for _, _, ident in tap.messages()]
        if set(sent) <= set(received) or time.monotonic() > until_s:
            return received
        tap.wait(count + 1, 0.5)


def assert_only_doubled(account, seen, sent, received, lost):
    assert account.acknowledged == account.offered == len(sent), account
    assert ("in_flight", "unknown") in seen
    assert ("unknown", "in_flight") in seen
    assert set(received) == set(sent)
    assert len(received) - len(sent) <= account.retries
    assert in_order_per_device(dict.fromkeys(received))
    assert lost >= LOST


@pytest.mark.usefixtures("short_pauses")
def test_a_thousand_lost_acknowledgements_over_mqtt(mqtt_broker):
    thief = Thief(pubacks)
    with iotsim.tap(mqtt_broker.url) as tap:
        account, seen, sent = asyncio.run(
            stolen(mqtt_broker.port, "mqtt://127.0.0.1:{}", thief, queue_messages=1000))
        received = all_of(tap, sent)
    assert_only_doubled(account, seen, sent, received, thief.stolen)


@pytest.mark.usefixtures("short_pauses")
def test_a_thousand_lost_acknowledgements_over_amqp(rabbit):
    thief = Thief(confirms, passing=3, keep=1)
    # One confirm stands for many messages: a hundred of them lose more than a thousand.
    thief.stolen = LOST - 100
    with iotsim.tap(rabbit.url, "#") as tap:
        account, seen, sent = asyncio.run(
            stolen(rabbit.port, "amqp://127.0.0.1:{}", thief, window=30,
                   queue_messages=1000))
        received = all_of(tap, sent)
    assert_only_doubled(account, seen, sent, received, account.retries)


@pytest.mark.usefixtures("short_pauses")
def test_a_thousand_lost_acknowledgements_over_jetstream_store_nothing_twice(stream_server):
    thief = Thief(stored)
    stream_server.purge()
    account, seen, sent = asyncio.run(
        stolen(stream_server.port, "nats+jetstream://127.0.0.1:{}", thief, queue_messages=1000,
               ack_wait_s=1.0))
    kept = [ident for _, ident, _ in stream_server.stored()]
    assert_only_doubled(account, seen, sent, kept, thief.stolen)
    assert len(kept) == len(sent), "known by their ids"


def test_a_thousand_lost_acknowledgements_over_coap_make_nothing_double():
    lost = set()

    def rule(direction, number, data):
        if direction == "down" and data[0] >> 4 & 3 == 2 and len(lost) < LOST:
            mark, before = data[1:4 + (data[0] & 15)], len(lost)
            lost.add(mark)
            return [data] if len(lost) == before else []
        return [data]

    messages = block(LOST + 200, devices=200)
    traced = [b'{"_seq":"%b"}' % ident.encode() for ident in messages.ids]
    messages = type(messages)(messages.topics, traced, messages.ids, messages.time_us)

    async def work(port):
        async with UdpProxy(port, rule) as proxy:
            url = f"coap://127.0.0.1:{proxy.port}"
            async with pumping(url, ack_timeout_s=0.1, window=100, audit_field="_seq") as pump:
                await pump.offer(0, messages)
                assert await pump.drain(45)
                return pump.snapshot()

    with iotsim.tap("coap://127.0.0.1:0") as tap:
        account = asyncio.run(work(int(tap.url.rpartition(":")[2])))
        assert tap.wait(len(messages), 45)
        received = [payload for _, payload, _ in tap.messages()]
    assert account.acknowledged == len(messages)
    assert len(lost) == LOST
    assert sorted(received) == sorted(traced), "known by their message ids"


# -- 7: the way is gone while the run goes on -----------------------------------------------------


def routes(urls, name, count=20, options=None):
    """A fleet that has some devices for each protocol, told apart by a label."""
    fleet = Fleet(name, seed=7)
    for protocol in urls:
        many = count if isinstance(count, int) else count[protocol]
        fleet = fleet.add(UNIT, count=many, labels={"via": protocol}, id=protocol + "-{n}")
    for protocol, url in urls.items():
        given = (options or {}).get(protocol, {})
        fleet = fleet.publish_to(url, where=f"via={protocol}", **given)
    return fleet


def test_a_way_that_is_gone_refuses_its_own_readings_and_nobody_elses(
    mqtt_broker, stream_server, rabbit, caplog
):
    caplog.set_level(logging.WARNING, "iotsim")
    stream_server.purge()
    urls = {"mqtt": mqtt_broker.url, "amqp": rabbit.url,
            "jetstream": stream_server.jetstream_url}
    gone = ["amqp", "jetstream"]

    async def work():
        queue = Queue(rabbit.url)
        await queue.bind()
        run = routes(urls, "ways").start(speed=20, start=START)
        await run.ready()

        def account(protocol):
            return next(pump.snapshot() for pump in run._works.pumps
                        if pump.url.startswith(urls[protocol]))

        def more(state, protocols, than=0):
            marks = {name: getattr(account(name), state) + than for name in protocols}
            return lambda: all(getattr(account(name), state) > marks[name] for name in protocols)

        try:
            await until(more("acknowledged", urls, 50))
            await queue.unbind()
            await asyncio.to_thread(stream_server.delete_stream)
            await until(more("refused", gone, 20))
            await until(more("acknowledged", ["mqtt"], 100))
            await queue.bind()
            await asyncio.to_thread(stream_server.add_stream)
            await until(more("acknowledged", gone, 100))
            result = await run.stop()
        finally:
            await queue.close()
        return result, {name: account(name) for name in urls}

    with iotsim.tap(mqtt_broker.url) as tap:
        result, accounts = asyncio.run(work())
        audit = result.audit(tap, publisher=urls["mqtt"])
    assert audit.ok, audit.verdict
    assert audit.received == audit.sent
    assert accounts["mqtt"].refused == 0
    for name in gone:
        account = accounts[name]
        assert account.refused > 20
        assert account.acknowledged + account.refused == account.offered, account
        assert account.reconnects == 0
    assert list(accounts["amqp"].refusals) == ["no route (312)"]
    assert list(accounts["jetstream"].refusals) == [NO_STREAM]
    assert not [line for line in caplog.messages if " lost: " in line], "no connection was"
    assert len(result.errors) == 2
    assert all(" refused (no " in str(error) for error in result.errors), result.errors


class Queue:
    """A queue that can be bound to the exchange, and not."""

    def __init__(self, url):
        self.url = url

    async def bind(self):
        if not hasattr(self, "connection"):
            self.connection = await aio_pika.connect(self.url)
            channel = await self.connection.channel()
            self.exchange = await channel.declare_exchange("iot.telemetry", "topic", durable=True)
            self.queue = await channel.declare_queue(exclusive=True)
        await self.queue.bind(self.exchange, "#")

    async def unbind(self):
        await self.queue.unbind(self.exchange, "#")

    async def close(self):
        await self.connection.close()


# -- the disk of the broker is full ---------------------------------------------------------------


def test_a_broker_whose_disk_is_full_says_so_and_loses_nothing(rabbit):
    limit = "rabbit_disk_monitor:set_disk_free_limit"

    async def work(tap):
        async with pumping(rabbit.url, 20) as pump:
            await pump.offer(0, block(100))
            assert await pump.drain(45)
            await rabbit.tells(f"{limit}(1000000000000000)")
            try:
                await pump.offer(0, block(100, first=100))
                await until(lambda: any("blocks us" in line for line in pump.errors))
                full = pump.snapshot()
            finally:
                await rabbit.tells(f"{limit}(1000000)")
            assert await pump.drain(45)
            return full, pump

    with iotsim.tap(rabbit.url, "#") as tap:
        full, pump = asyncio.run(work(tap))
        sent = block(200).ids
        received = all_of(tap, sent)
    assert full.acknowledged == 100
    assert full.queued + full.in_flight == 100
    assert any("disk" in line for line in pump.errors), pump.errors
    assert pump.snapshot().acknowledged == 200
    assert received == sent


# -- 14: hostile names ----------------------------------------------------------------------------

ODD = ["a.b", "$JS", "x;y", "=cmd()", "<img", "'q'", '"q"', "a?b=c&d", "%0d%0aPUB", "ünï日本",
       "~", "@x:y", "n" * 100, "$share", "-", "null"]
DOTS = ["..", "."]
CLOSED = ["a\r\nPUB x 1", "a b", "a/b", "../x", "a+", "#", "a*", ">", "\0", "\x7f", "‮x",
          "\ud800", "", "x" * 65_536, "a\\b", "{", "{n"]


@pytest.mark.parametrize("name", CLOSED)
def test_a_name_that_could_be_something_else_does_not_pass_the_door(name):
    with pytest.raises(BadValue) as caught:
        Fleet("odd").add(UNIT, id=name)
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 400


def test_a_name_that_passes_the_door_arrives_as_it_is_in_all_protocols(
    mqtt_broker, stream_server, rabbit
):
    stream_server.purge()
    with (iotsim.tap(mqtt_broker.url) as mqtt, iotsim.tap(rabbit.url, "#") as amqp,
          iotsim.tap(stream_server.jetstream_url, "devices.>", stream="DEVICES") as jetstream,
          iotsim.tap(stream_server.url, "core.>") as core,
          iotsim.tap("http://127.0.0.1:0/in") as http, iotsim.tap("coap://127.0.0.1:0") as coap):
        taps = {mqtt: {"qos": 1}, amqp: {}, jetstream: {}, http: {},
                core: {"topic": "core/{device_id}"},
                coap: {"audit_field": "_seq"}}
        fleet = Fleet("odd", seed=3)
        for name in (*ODD, *DOTS):
            fleet = fleet.add(UNIT, id=name)
        for tap, options in taps.items():
            fleet = fleet.publish_to(tap.url, **options)
        result = asyncio.run(fleet.run("3s", speed=10, start=START))
        for tap in taps:
            account = next(a for url, a in result.publishers.items() if url == tap.url)
            refused = {coap: DOTS, core: [*DOTS, "a.b"], jetstream: [*DOTS, "a.b"]}.get(tap, [])
            assert account.acknowledged == 3 * (len(ODD + DOTS) - len(refused)), (tap, account)
            assert account.refused == 3 * len(refused)
            assert account.reconnects == 0
            assert tap.wait(account.acknowledged, 45)
            names = Counter(topic for topic, _, _ in tap.messages())
            shape = {core: "core.{}", jetstream: "devices.{}.telemetry"}.get(
                tap, "devices/{}/telemetry")
            expected = {shape.format(name) for name in ODD + DOTS if name not in refused}
            assert names == dict.fromkeys(expected, 3)
            audit = result.audit(tap, publisher=tap.url)
            assert audit.received + audit.refused == audit.sent, (tap, audit.verdict)
            assert audit.unexpected == audit.corrupted == audit.out_of_order == 0


# -- 6: killed again and again, under load, with five protocols at once ---------------------------

MANY = {"mqtt": 300, "amqp": 100, "jetstream": 300, "http": 100, "coap": 50}


async def killed_again_and_again(servers, chance):
    """Kill and revive each of them at odd moments, so often as it says; return how often."""

    async def doom(server, times):
        for _ in range(times):
            await asyncio.sleep(0.6 * (0.5 + chance.random()))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        return times

    return await asyncio.gather(*(doom(server, times) for server, times in servers))


@pytest.mark.slow
def test_brokers_that_are_killed_again_and_again_cost_nothing_that_iotsim_had(rabbit):
    seed = 6
    chance = random.Random(seed)

    async def queue():
        async with await aio_pika.connect(rabbit.url) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange("iot.telemetry", "topic", durable=True)
            await (await channel.declare_queue("kept", durable=True)).bind(exchange, "#")

    async def work(urls, servers, tap):
        await queue()
        fleet = routes(urls, "killed", MANY, {
            "mqtt": {"qos": 1}, "http": {"batch": 50, "audit_field": "_seq"},
            "coap": {"audit_field": "_seq", "ack_timeout_s": 0.2}})
        run = fleet.start(speed=1, start=START, capture="all")
        await run.ready()
        kills = await killed_again_and_again(servers, chance)
        pumps = run._works.pumps
        # However long the last of them took to come up: all are found again, and all is told.
        await until(lambda: all(pump.connected == pump.lanes for pump in pumps), 60)
        count = tap.count
        await until(lambda: tap.count > count + 100, 60)
        run.pause()
        await until(lambda: all(account.acknowledged == account.offered for account in
                                (pump.snapshot() for pump in pumps)), 60)
        return await run.stop(), kills

    with (mosquitto() as broker, nats(jetstream=True) as streams, Endpoint() as endpoint,
          iotsim.tap(broker.url) as tap, contextlib.ExitStack() as stack):
        coap = LibcoapServer(resources=1000)
        stack.callback(coap.end)
        coap.start()
        streams.add_stream("DEVICES", ("devices.>",))
        urls = {"mqtt": broker.url, "amqp": rabbit.url, "http": endpoint.url,
                "jetstream": streams.jetstream_url, "coap": coap.url}
        servers = [(broker, 3), (streams, 3), (endpoint, 3), (coap, 3), (rabbit, 1)]
        result, kills = asyncio.run(work(urls, servers, tap))
        found = {
            "jetstream": [ident for _, ident, _ in streams.stored()],
            "http": [one["_seq"] for got in endpoint.taken for one in json.loads(got.body)],
            "coap": [json.loads(payload)["_seq"] for _, _, _, payload, _ in coap.received()],
        }
        audit = result.audit(tap, publisher=broker.url)
        with iotsim.tap(rabbit.url, queue="kept") as kept:
            found["amqp"] = all_of(kept, ids_of(result, "amqp"), 60)
    said = f"seed {seed}, kills {kills}, {result.publishers}, {result.notes}"
    for name in urls:
        sent, account = ids_of(result, name), account_of(result, urls[name])
        assert account.acknowledged == account.offered == len(sent), (name, said)
        least = 0 if name in ("http", "coap") else 1  # they have no connection to lose
        assert account.reconnects >= least, (name, said)
        if name != "mqtt":
            assert set(found[name]) == sent, (name, said)
            assert in_order_per_device(dict.fromkeys(found[name])), (name, said)
    assert len(found["jetstream"]) == len(ids_of(result, "jetstream")), "each once"
    # mosquitto keeps nothing, and the tap was cut off with it: nothing of that is iotsim's.
    assert audit.lost_by_simulator == audit.lost_in_flight == audit.corrupted == 0, audit.verdict
    assert audit.unexpected == audit.out_of_order == 0, audit.verdict
    assert audit.received + audit.lost_by_broker + audit.unknown == audit.sent, audit.verdict
    assert audit.received > MANY["mqtt"], audit.verdict


def ids_of(result, protocol):
    frame = result.frame()
    return {f"{result.run_id}/{device}/{seq}/0"
            for device, seq in zip(frame["device_id"], frame["seq"], strict=True)
            if device.startswith(f"{protocol}-")}


def account_of(result, url):
    return next(account for address, account in result.publishers.items()
                if url.startswith(address) or address.startswith(url))
