"""The nasty cases that need all brokers at once: lost acknowledgements, no route, odd names."""

import asyncio
import re
import time
from collections import Counter

import pytest

import iotsim
from iotsim import Fleet, Profile
from iotsim.errors import BadValue
from tests.live import START, until
from tests.matrix import mosquitto, nats
from tests.proxy import Proxy
from tests.publishing import block, in_order_per_device, pumping
from tests.servers.http import Endpoint
from tests.servers.rabbit import doomed_rabbit_node  # noqa: F401  (a fixture)
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
            await until(lambda: pump.fill(0) < 0.05, 60)
            assert len(sent) < 40
        assert await pump.drain(30)
        return pump.snapshot(), pump._ledger.seen, [i for m in sent for i in m.ids]


def all_of(tap, sent, timeout_s=20):
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
def test_a_thousand_lost_acknowledgements_over_amqp(doomed_rabbit):
    thief = Thief(confirms, passing=3, keep=1)
    # One confirm stands for many messages: a hundred of them lose more than a thousand.
    thief.stolen = LOST - 100
    with iotsim.tap(doomed_rabbit.url, "#") as tap:
        account, seen, sent = asyncio.run(
            stolen(doomed_rabbit.port, "amqp://127.0.0.1:{}", thief, window=30,
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
            if (mark := data[1:4 + (data[0] & 15)]) not in lost:
                lost.add(mark)
                return []
        return [data]

    messages = block(LOST + 200, devices=200)
    traced = [b'{"_seq":"%b"}' % ident.encode() for ident in messages.ids]
    messages = type(messages)(messages.topics, traced, messages.ids, messages.time_us)

    async def work(port):
        async with UdpProxy(port, rule) as proxy:
            url = f"coap://127.0.0.1:{proxy.port}"
            async with pumping(url, ack_timeout_s=0.1, window=100, audit_field="_seq") as pump:
                await pump.offer(0, messages)
                assert await pump.drain(30)
                return pump.snapshot()

    with iotsim.tap("coap://127.0.0.1:0") as tap:
        account = asyncio.run(work(int(tap.url.rpartition(":")[2])))
        assert tap.wait(len(messages))
        received = [payload for _, payload, _ in tap.messages()]
    assert account.acknowledged == len(messages)
    assert len(lost) == LOST
    assert sorted(received) == sorted(traced), "known by their message ids"
