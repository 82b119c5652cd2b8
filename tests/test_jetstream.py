"""JetStream as its server sees it: what a stream stores, what it refuses, and in which order."""

import asyncio
import json
from collections import Counter

import nats
import pytest
from nats.js.api import DiscardPolicy

import iotsim
from iotsim.errors import BadValue, ConnectError, UnknownName
from iotsim.publishers.base import build
from iotsim.publishers.nats_jetstream import NO_STREAM
from iotsim.publishers.nats_session import DENIED
from tests.publishing import block, in_order_per_device, one, own, pumping, until
from tests.servers import nats as servers
from tests.servers.certificates import Certificates

nats_server = servers.nats_server  # the fixture
pytestmark = pytest.mark.broker


async def drained(pump, seconds=45):
    assert await pump.drain(seconds), (pump.snapshot(), pump.errors)


async def refused_for_now(pump, done):
    before = pump.snapshot().retries
    await until(lambda: pump.snapshot().retries > before + 5
                or pump.snapshot().acknowledged == done)


def publish(url, *blocks, **options):
    async def work():
        async with pumping(url, **options) as pump:
            for messages in blocks:
                await pump.offer(0, messages)
            await drained(pump)
        return pump.snapshot(), pump.errors

    return asyncio.run(work())


@pytest.fixture
def server(nats_server):
    one = nats_server(jetstream=True)
    one.add_stream()
    return one


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("stream", [None, "DEVICES"])
def test_every_message_is_stored_once_and_in_order_per_device(server, ordered, stream):
    sent = [block(500, first=n * 500, devices=40) for n in range(6)]
    with iotsim.tap(server.jetstream_url, stream=stream) as tap:
        options = {"ordered": ordered, "stream": stream, "stamp": True}
        account, errors = publish(server.jetstream_url, *sent, **options)
        assert tap.wait(3000, 45)
        got, frame = tap.messages(), tap.frame()
        assert tap.ok, tap.health
    assert (account.acknowledged, account.offered, errors) == (3000, 3000, ())
    assert Counter((i, p) for _, p, i in got) == Counter(
        pair for m in sent for pair in zip(m.ids, m.payloads, strict=True))
    assert in_order_per_device(i for _, _, i in got)
    assert [(t, i, p) for t, p, i in got] == server.stored()
    assert frame["sent"].notna().all()
    assert not frame["dup"].any()


def test_what_is_sent_again_is_stored_once(server):
    messages = block(500)
    assert publish(server.jetstream_url, messages)[0].acknowledged == 500
    assert publish(server.jetstream_url, messages)[0].acknowledged == 500
    assert len(server.stored()) == 500


def test_a_subject_that_no_stream_takes_is_refused_and_the_others_are_not(server):
    blocks = [part for n in range(4) for part in (
        block(200, first=n * 200), block(50, first=n * 50, topic="plant/{}/x"))]
    account, errors = publish(server.jetstream_url, *blocks)
    assert account.acknowledged == 800
    assert dict(account.refusals) == {NO_STREAM: 200}
    assert account.reconnects == 0
    assert NO_STREAM in errors[0]


def test_a_listener_that_answers_for_no_stream_hides_nothing(server):
    # Somebody listens to the subject, so the server does not say that nobody does.
    async def work():
        listener = await nats.connect(server.url)
        answerer = await nats.connect(server.url)
        try:
            async def answer(message):
                await message.respond(b"thank you")

            await listener.subscribe("plant.*.x")
            await answerer.subscribe("plant.*.y", cb=answer)
            await listener.flush()
            await answerer.flush()
            async with pumping(server.jetstream_url, ack_wait_s=0.5) as pump:
                await pump.offer(0, block(100, topic="plant/{}/x"))
                await pump.offer(0, block(100, topic="plant/{}/y", first=100))
                await pump.offer(0, block(100, first=200))
                await drained(pump)
            return pump.snapshot()
        finally:
            await listener.close()
            await answerer.close()

    account = asyncio.run(work())
    assert account.acknowledged == 100
    assert dict(account.refusals) == {
        NO_STREAM: 100, "answered by something that is no stream": 100}
    assert account.reconnects == 0


@pytest.mark.parametrize("limit", [{"max_msgs": 300}, {"max_bytes": 30_000}])
def test_a_full_stream_is_waited_for_and_order_is_kept(nats_server, limit):
    server = nats_server(jetstream=True)
    server.add_stream(discard=DiscardPolicy.NEW, **limit)
    blocks = [block(100, first=n * 100, devices=7, size=20 + 30 * (n % 3)) for n in range(6)]

    async def work():
        got = []
        async with pumping(server.jetstream_url) as pump:
            for messages in blocks:
                await pump.offer(0, messages)
            while pump.snapshot().acknowledged < 600:
                await refused_for_now(pump, 600)
                assert pump.snapshot().refused == 0
                got += await asyncio.to_thread(server.stored)
                await asyncio.to_thread(server.purge)
            await drained(pump)
        return pump.snapshot(), got + await asyncio.to_thread(server.stored)

    account, got = asyncio.run(work())
    ids = list(dict.fromkeys(i for _, i, _ in got))  # stored between the look and the purge: lost
    assert account.acknowledged == 600
    assert account.retries > 0
    assert account.reconnects == 0
    assert in_order_per_device(ids)


def test_what_overtakes_in_a_stream_is_counted_where_order_was_not_asked_for(nats_server):
    # It has no room for large ones any more, and room for small ones.
    server = nats_server(jetstream=True)
    server.add_stream(discard=DiscardPolicy.NEW, max_bytes=6_000)

    async def work():
        async with pumping(server.jetstream_url, ordered=False) as pump:
            for n in range(8):
                await pump.offer(0, own("d-1", 1, n, size=4_000 if n == 1 or not n else 100))
            await until(lambda: pump.snapshot().retries)
            await asyncio.to_thread(server.purge)
            await drained(pump)
        return pump.snapshot(), pump.errors

    account, errors = asyncio.run(work())
    assert account.acknowledged == 8
    assert account.overtaken > 0
    assert any("overtaken" in line for line in errors)


def test_a_stream_that_stays_full_refuses_in_the_end(nats_server):
    server = nats_server(jetstream=True)
    server.add_stream(discard=DiscardPolicy.NEW, max_msgs=30)
    account, errors = publish(server.jetstream_url, block(40), backpressure="block")
    assert account.acknowledged == 30
    assert dict(account.refusals) == {"maximum messages exceeded (10077)": 10}
    assert "maximum messages exceeded" in " ".join(errors)
    assert len(server.stored()) == 30


def test_what_a_stream_finds_too_large_is_refused(nats_server):
    server = nats_server(jetstream=True, more="max_payload: 3000")
    server.add_stream(max_msg_size=500)
    account, _ = publish(
        server.jetstream_url, block(100), one("devices/a/x", b"x" * 600, "run/a/0/0"),
        one("devices/b/x", b"x" * 3000, "run/b/0/0"), one("devices/b c/x", b"x", "run/b c/0/0"),
        block(100, first=100),
    )
    assert account.acknowledged == 200
    assert dict(account.refusals) == {
        "message size exceeds maximum allowed (10054)": 1,
        "larger than the server's max_payload": 1,
        "blank, wildcard, control character or lone surrogate in the topic": 1,
    }
    assert account.reconnects == 0


def test_a_server_without_room_on_its_disk_refuses_and_recovers(nats_server):
    server = nats_server(jetstream=True, max_file="50KB")
    server.add_stream()

    async def work():
        async with pumping(server.jetstream_url) as pump:
            await pump.offer(0, block(1000, size=100))
            await until(lambda: pump.snapshot().retries > 5)
            full = pump.snapshot()
            await asyncio.to_thread(server.purge)
            await until(lambda: pump.snapshot().acknowledged > full.acknowledged)
            return full, pump.snapshot()

    full, later = asyncio.run(work())
    assert 0 < full.acknowledged < 1000
    assert full.acknowledged + full.queued + full.in_flight == 1000
    assert later.acknowledged > full.acknowledged


def test_the_stream_that_was_asked_for_is_there_and_takes_the_subject(server):
    server.add_stream("OTHER", ["plant.>"])
    account, _ = publish(server.jetstream_url, block(10), one("plant/a/x"), stream="DEVICES")
    assert account.acknowledged == 10
    assert dict(account.refusals) == {"expected stream does not match (10060)": 1}
    with pytest.raises(ConnectError, match=r"there is no stream 'NONE'\. Create it") as got:
        publish(server.jetstream_url, block(1), stream="NONE")
    assert "\n" not in str(got.value)
    with pytest.raises(ConnectError, match="no such stream"):
        iotsim.tap(server.jetstream_url, stream="NONE")


def test_a_server_without_jetstream_is_one_line(nats_server):
    server = nats_server()
    with pytest.raises(ConnectError, match=r"JetStream is not enabled there\. Start the server"):
        publish(server.jetstream_url, block(1))
    with pytest.raises(ConnectError, match="JetStream is not enabled there"):
        iotsim.tap(server.jetstream_url)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_user_with_few_permissions_can_publish_and_is_told_what_is_denied(nats_server, ordered):
    allowed = {"publish": {"allow": ["devices.>"], "deny": ["devices.d-3.>"]},
               "subscribe": "_INBOX.>"}
    users = [{"user": "ann", "password": "a", "permissions": allowed},
             {"user": "mute", "password": "a", "permissions": {"publish": ">", "subscribe": "x"}},
             {"user": "all", "password": "a"}]
    server = nats_server(jetstream=True, more=f"authorization: {json.dumps({'users': users})}",
                         login={"user": "all", "password": "a"})
    server.add_stream()
    who = {"username": "ann", "password": "a", "ordered": ordered}
    blocks = [block(200, first=n * 200) for n in range(5)]
    account, _ = publish(server.jetstream_url, *blocks, **who)
    assert account.acknowledged == 900
    assert dict(account.refusals) == {DENIED: 100}
    assert account.reconnects == 0
    with pytest.raises(ConnectError, match="permissions violation for subscription"):
        publish(server.jetstream_url, block(1), username="mute", password="a")


def test_a_stream_that_is_deleted_and_made_again_is_refused_meanwhile(server):
    async def work():
        async with pumping(server.jetstream_url) as pump:
            await pump.offer(0, block(100))
            await drained(pump)
            await asyncio.to_thread(server.delete_stream)
            await pump.offer(0, block(100, first=100))
            await drained(pump)
            await asyncio.to_thread(server.add_stream)
            await pump.offer(0, block(100, first=200))
            await drained(pump)
        return pump.snapshot()

    account = asyncio.run(work())
    assert (account.acknowledged, account.reconnects) == (200, 0)
    assert dict(account.refusals) == {NO_STREAM: 100}
    assert len(server.stored()) == 100


def test_jetstream_speaks_tls_1_3_and_shows_who_we_are(nats_server, tmp_path):
    files = Certificates(tmp_path)
    server = nats_server(jetstream=True, tls=(files.server.cert, files.server.key), ca=files.ca)
    mine = files.client("gateway-1")
    tls = iotsim.TLS(ca=files.ca, cert=mine.cert, key=mine.key, minimum="1.3")

    async def stream():
        link = await nats.connect(server.url.replace("nats+tls", "tls"), tls=tls.context())
        await link.jetstream().add_stream(name="DEVICES", subjects=["devices.>"])
        await link.close()

    asyncio.run(stream())
    with iotsim.tap(server.jetstream_url, tls=tls) as tap:
        account, _ = publish(server.jetstream_url, block(500), tls=tls)
        assert tap.wait(500, 45)
    assert account.acknowledged == 500


def test_a_tap_can_begin_with_what_the_stream_holds(server):
    publish(server.jetstream_url, block(50))
    with iotsim.tap(server.jetstream_url, deliver="all", topic="devices.*.telemetry") as tap:
        assert tap.wait(50, 45)
        publish(server.jetstream_url, block(50, first=50))
        assert tap.wait(100, 45)
        assert in_order_per_device(i for _, _, i in tap.messages())


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"fence": True}, UnknownName, "no nats.jetstream option called 'fence'.*ack_wait_s"),
        ({"ids": False}, BadValue, "would store a message twice"),
        ({"stream": "a.b"}, BadValue, "cannot be the name of a stream"),
        ({"stream": "a\r\nb"}, BadValue, "cannot be the name of a stream"),
        ({"stream": 3}, BadValue, "stream="),
        ({"ack_wait_s": 0}, BadValue, "ack_wait_s=0"),
        ({"ack_wait_s": "5s"}, BadValue, "ack_wait_s='5s'"),
        ({"ordered": None}, BadValue, "ordered=None"),
    ],
)
def test_a_wrong_option_is_named_with_what_may_be(options, error, why):
    with pytest.raises(error, match=why) as got:
        build("nats+jetstream://localhost", **options)
    assert "\n" not in str(got.value)


@pytest.mark.parametrize(("scheme", "options", "why"), [
    ("nats", {"stream": "X"}, "nothing that core NATS has"),
    ("nats", {"topic": "a..b"}, "is no subject"),
    ("nats", {"topic": "a b"}, "is no subject"),
    ("nats+jetstream", {"deliver": "old"}, "Use one of: new, all"),
    ("nats+jetstream", {"tls_first": 1}, "tls_first=1"),
])
def test_a_tap_names_what_is_wrong_with_its_options(scheme, options, why):
    with pytest.raises(BadValue, match=why):
        iotsim.tap(f"{scheme}://localhost", **options)
