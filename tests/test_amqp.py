"""AMQP against a real RabbitMQ: what arrives, what is refused, who is told what."""

import asyncio
import contextlib
import re
import time

import aio_pika
import pytest
from pamqp import commands, frame, header
from pamqp.body import ContentBody

import iotsim
from iotsim.errors import BadValue, ConnectError, UnknownName
from iotsim.preflight_probe import Wish, contacts
from iotsim.publishers.amqp_printer import Printer
from iotsim.publishers.base import build
from iotsim.publishers.pump import Pump
from tests.publishing import block, in_order_per_device, one, own, pumping, until
from tests.servers.rabbit import Consumer, rabbit_node  # noqa: F401  (a fixture)

pytestmark = pytest.mark.broker


def run(coroutine):
    return asyncio.run(coroutine)


async def publish(url, *blocks, **options):
    async with pumping(url, **options) as pump:
        for messages in blocks:
            await pump.offer(0, messages)
    return pump.snapshot()


# -- what arrives ---------------------------------------------------------------------------------


def test_every_message_arrives_once_in_order_and_looks_as_amqp_expects_it(rabbit):
    async def work():
        async with Consumer(rabbit.url) as consumer:
            await consumer.consume()
            end = await publish(rabbit.url, block(3000, devices=50), stamp=True)
            await until(lambda: len(consumer.messages) >= 3000)
            return end, consumer

    before_us = time.time_ns() // 1000
    end, consumer = run(work())
    assert end.acknowledged == 3000
    assert end.retries == 0
    assert sorted(consumer.ids) == sorted(block(3000, devices=50).ids)
    assert in_order_per_device(consumer.ids)
    bodies = {message.message_id: message.body for message in consumer.messages}
    assert bodies == dict(zip(block(3000, devices=50).ids, block(3000).payloads, strict=True))
    message = consumer.messages[0]
    assert message.content_type == "application/json"
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.app_id == "iotsim"
    assert message.exchange == "iot.telemetry"
    assert message.routing_key == "devices/d-0/telemetry"
    assert before_us < int(message.headers["sent"]) < time.time_ns() // 1000
    assert not message.redelivered


def test_topics_may_have_dots_so_that_bindings_may_have_stars(rabbit):
    async def work():
        async with (Consumer(rabbit.url, key="devices.*.telemetry") as dotted,
                    Consumer(rabbit.url, key="devices/d-1/telemetry") as slashed):
            await dotted.consume()
            await slashed.consume()
            await publish(rabbit.url, block(20), separator=".")
            await publish(rabbit.url, own("d-1", 5))
            await until(lambda: len(dotted.messages) == 20 and len(slashed.messages) == 5)
            return {m.routing_key for m in dotted.messages}

    assert run(work()) == {f"devices.d-{i}.telemetry" for i in range(10)}


def test_messages_of_every_size_arrive_whole(rabbit):
    sizes = [0, 1, 4095, 131_063, 131_064, 131_065, 262_129, 1_048_576]

    async def work():
        async with Consumer(rabbit.url) as consumer:
            await consumer.consume()
            blocks = [one("a", bytes(n), f"run/a/{n}/0") for n in sizes]
            end = await publish(rabbit.url, *blocks)
            await until(lambda: len(consumer.messages) == len(sizes))
            return end, [len(message.body) for message in consumer.messages]

    end, received = run(work())
    assert received == sizes
    assert end.acknowledged == len(sizes)


def test_frames_by_hand_are_those_of_the_codec():
    for options in ({}, {"exchange": "", "mandatory": False, "persistent": False}):
        publisher = build("amqp://localhost", **options)
        printer = Printer(publisher)
        printer.frame_max = 4096
        for key, size, sent in (("a/b", 5, ""), ("ü" * 100, 0, "17"), ("k", 10_000, "1" * 16)):
            properties = commands.Basic.Properties(
                content_type="application/json", headers={"sent": sent} if sent else None,
                delivery_mode=2 if publisher.persistent else 1, message_id="run/d/1/0",
                app_id="iotsim")
            payload = bytes(size)
            parts = [
                commands.Basic.Publish(exchange=publisher.exchange, routing_key=key,
                                       mandatory=publisher.mandatory),
                header.ContentHeader(body_size=size, properties=properties),
                *(ContentBody(payload[i : i + 4088]) for i in range(0, size, 4088)),
            ]
            expected = b"".join(frame.marshal(part, 1) for part in parts)
            assert printer.frames(key.encode(), b"run/d/1/0", payload, sent.encode()) == expected


def test_several_connections_keep_each_device_in_order(rabbit):
    async def work():
        async with Consumer(rabbit.url) as consumer:
            await consumer.consume()
            async with pumping(rabbit.url, connections=3) as pump:
                for lane in range(3):
                    await pump.offer(lane, own(f"d-{lane}", 300))
                await pump.drain(45)
                names = (await rabbit.tells(
                    "[proplists:get_value(<<\"connection_name\">>, [{K, V} || {K, _, V} <- "
                    "proplists:get_value(client_properties, C)]) || C <- "
                    "rabbit_networking:connection_info_all([client_properties])]")).count("iotsim-")
            await until(lambda: len(consumer.messages) == 900)
            return names, consumer.ids

    names, ids = run(work())
    assert names == 3
    assert in_order_per_device(ids)


def test_without_confirms_what_is_written_counts_and_arrives(rabbit):
    async def work():
        async with Consumer(rabbit.url) as consumer:
            await consumer.consume()
            end = await publish(rabbit.url, block(500), confirms=False, persistent=False)
            await until(lambda: len(consumer.messages) == 500)
            return end, consumer.messages[0].delivery_mode

    end, mode = run(work())
    assert end.acknowledged == 500
    assert mode == aio_pika.DeliveryMode.NOT_PERSISTENT


def test_a_vhost_and_an_exchange_of_another_kind_may_be_chosen(rabbit):
    async def work():
        url = f"{rabbit.url}/plant"
        connection = await aio_pika.connect(url)
        async with connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange("all", "fanout", durable=True)
            queue = await channel.declare_queue(exclusive=True)
            await queue.bind(exchange)
            await publish(url, block(10), exchange="all", exchange_type="fanout")
            to_queue = one(queue.name, b"straight")
            await publish(url, to_queue, exchange="")
            return [(await queue.get()).body for _ in range(11)]

    received = run(work())
    assert received == [*block(10).payloads, b"straight"]


# -- what is refused ------------------------------------------------------------------------------


def test_what_no_queue_takes_is_refused_and_the_rest_arrives(rabbit):
    async def work():
        async with Consumer(rabbit.url, key="devices/d-1/telemetry") as consumer:
            await consumer.consume()
            async with pumping(rabbit.url) as pump:
                await pump.offer(0, block(1000))
                await pump.drain(45)
                await consumer.queue.bind(consumer.exchange, "#")
                await pump.offer(0, block(100, first=1000))
            await until(lambda: len(consumer.messages) == 200)
            return pump, consumer.ids

    pump, ids = run(work())
    end = pump.snapshot()
    assert end.refusals == {"no route (312)": 900}
    assert end.acknowledged == 200
    assert ids == [i for i in block(1000).ids if "d-1/" in i] + list(block(100, first=1000).ids)
    assert [line for line in pump.errors if re.search("no route .*'devices/d-0/telemetry'", line)]


def test_equal_ids_in_flight_do_not_change_places(rabbit):
    async def work():
        settled = []
        async with Consumer(rabbit.url, key="good"):
            watch = {"settled": lambda ids, outcome, seconds: settled.append((len(ids), outcome))}
            async with pumping(rabbit.url, pump=watch, strict_order=False) as pump:
                for _ in range(50):
                    await pump.offer(0, one("good", ident="run/same/0/0"))
                    await pump.offer(0, one("lost", ident="run/same/0/0"))
        return pump.snapshot()

    end = run(work())
    assert end.acknowledged == 50
    assert end.refusals == {"no route (312)": 50}


def test_without_mandatory_what_no_queue_takes_is_taken_for_sent(rabbit):
    end = run(publish(rabbit.url, block(10, topic="nobody/{}"), mandatory=False))
    assert end.acknowledged == 10


def test_what_cannot_be_a_message_is_refused_here_and_stops_nobody(rabbit):
    async def work():
        async with Consumer(rabbit.url) as consumer:
            await consumer.consume()
            end = await publish(
                rabbit.url, block(50), one("x" * 256), one("a\nb"), one("\ud800"),
                one("a", ident="i" * 256), one("a", ident="i\0"), one("ä" * 127),
                one("a", bytes(1_048_577)), one("a", bytes(1_048_577)), block(50, first=50),
            )
            await until(lambda: len(consumer.messages) >= 101)
            return end, consumer

    end, consumer = run(work())
    assert end.refusals == {
        "routing key over 255 bytes": 1,
        "control character or lone surrogate in the topic": 2,
        "control character or lone surrogate in the message id": 1,
        "message id over 255 bytes": 1,
        "larger than the broker takes (1,048,576 bytes)": 2,
    }
    assert end.acknowledged == 101
    assert end.reconnects == 0
    assert set(consumer.ids) == {*block(100).ids, "run/odd/0/0"}


@pytest.mark.parametrize("strict", [True, False])
def test_a_topic_that_may_not_be_written_to_is_refused_alone(rabbit, strict):
    async def work():
        async with Consumer(rabbit.url) as consumer:
            await consumer.consume()
            async with pumping(rabbit.as_user("vetted"), strict_order=strict) as pump:
                for i in range(0, 600, 60):
                    await pump.offer(0, block(30, first=i // 2, topic="open/{}"))
                    await pump.offer(0, block(30, first=i // 2, topic="shut/{}"))
            await until(lambda: len(set(consumer.ids)) == 300)
            return pump.snapshot(), consumer

    end, consumer = run(work())
    assert end.acknowledged == 300
    assert end.refused == 300
    assert end.refusals == {"we may not write to its topic (403)": 300}
    assert end.reconnects == 0
    assert not [m for m in consumer.messages if m.routing_key.startswith("shut")]
    firsts = list(dict.fromkeys(consumer.ids))  # what had no verdict yet was sent again
    assert in_order_per_device(firsts)


def test_a_full_queue_that_rejects_is_asked_again_and_loses_nothing(rabbit):
    async def work(**options):
        full = {"x-max-length": 20, "x-overflow": "reject-publish"}
        async with Consumer(rabbit.url, **full) as consumer:
            async with pumping(rabbit.url, 20, **options) as pump:
                await pump.offer(0, block(100, devices=5))
                await until(lambda: pump.snapshot().retries > 0)
                held = pump.snapshot()
                await consumer.consume()
                await pump.drain(45)
            await until(lambda: len(consumer.messages) == 100)
            return held, pump.snapshot(), consumer.ids

    held, end, ids = run(work())
    assert held.acknowledged < 100
    assert held.refused == 0
    assert end.acknowledged == 100
    assert in_order_per_device(ids)
    held, end, ids = run(work(strict_order=False))
    assert end.acknowledged == 100
    assert sorted(ids) == sorted(block(100, devices=5).ids)


def test_a_queue_that_rejects_for_ever_refuses_with_the_reason(rabbit, monkeypatch):
    monkeypatch.setattr("iotsim.publishers.refusals.TRIES_MAX", 3)

    async def work():
        full = {"x-max-length": 10, "x-overflow": "reject-publish"}
        async with Consumer(rabbit.url, **full):
            async with pumping(rabbit.url, 20) as pump:
                await pump.offer(0, block(40, devices=4))
                await pump.drain(45)
            return pump.snapshot()

    end = run(work())
    assert end.refusals == {"the broker does not take it now (nack)": end.refused}
    assert end.refused + end.acknowledged == 40
    assert end.acknowledged >= 10


@pytest.mark.parametrize("strict", [True, False])
def test_a_device_s_messages_keep_their_order_beside_refused_ones(rabbit, strict):
    async def work():
        async with Consumer(rabbit.url) as consumer:
            await consumer.consume()
            bad = one("\n", ident="run/d-0/1000/0")
            end = await publish(rabbit.url, block(200, devices=40), bad, bad,
                                block(200, first=200, devices=40), strict_order=strict)
            await until(lambda: len(consumer.messages) == 400)
            return end, consumer.ids

    end, ids = run(work())
    assert end.acknowledged == 400
    assert end.refused == 2
    assert in_order_per_device(ids)


# -- back-pressure --------------------------------------------------------------------------------


def test_drop_oldest_drops_the_oldest(rabbit):
    async def work():
        async with Consumer(rabbit.url) as consumer:
            await consumer.consume()
            options = {"backpressure": "drop_oldest", "queue_messages": 100, "window": 10}
            async with pumping(rabbit.url, **options) as pump:
                await pump.offer(0, block(1000))
                await pump.drain(45)
            end = pump.snapshot()
            await until(lambda: len(consumer.messages) == end.acknowledged)
            return end, consumer.ids

    end, ids = run(work())
    assert end.dropped == 900
    assert end.acknowledged == 100
    assert ids == list(block(100, first=900).ids)


def test_never_more_is_under_way_than_the_window_allows(rabbit):
    async def work():
        async with Consumer(rabbit.url):
            pump = Pump(build(rabbit.url, window=7))
            await pump.open()
            most = 0
            try:
                offering = asyncio.create_task(pump.offer(0, block(300)))
                while not offering.done() or not pump.idle.is_set():
                    most = max(most, pump.snapshot().in_flight)
                    await asyncio.sleep(0)
            finally:
                await pump.close()
            return most, pump.snapshot()

    most, end = run(work())
    assert most == 7
    assert end.acknowledged == 300


# -- who cannot come in ---------------------------------------------------------------------------


async def refused(url, **options):
    pump = Pump(build(url, **options))
    began = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        await pump.open()
    assert time.monotonic() - began < 15
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value) + repr(caught.value) + repr(build(url, **options))
    return str(caught.value)


def test_each_wrong_identity_has_its_line(rabbit):
    async def work():
        first = {"exchange": "iot.telemetry"}
        await publish(rabbit.url, mandatory=False)  # the exchange is there
        return [
            await refused(rabbit.as_user("writer", "s3cret-wrong")),
            await refused(rabbit.url + "/nowhere"),
            await refused(rabbit.as_user("writer", vhost="plant")),
            await refused(rabbit.as_user("nobody"), **first),
            await refused(rabbit.url, exchange="missing", declare=False),
            await refused(rabbit.url, exchange_type="fanout"),
        ]

    lines = run(work())
    for line, pattern in zip(lines, (
        r"Login was refused.*\(403\).*username= and password=",
        r"vhost nowhere not found \(530\).*vhost is the path",
        r"access to vhost 'plant' refused.*\(530\)",
        r"access to exchange 'iot\.telemetry'.*\(403\).*declare=False",
        r"no exchange 'missing'.*\(404\).*declare=True",
        r"inequivalent arg 'type'.*\(406\).*declare=False",
    ), strict=True):  # fmt: skip
        assert re.search(pattern, line), line


def test_who_may_only_write_needs_no_more(rabbit):
    async def work():
        async with Consumer(rabbit.url) as consumer:
            await consumer.consume()
            end = await publish(rabbit.as_user("writer"), block(20), declare=False)
            await until(lambda: len(consumer.messages) == 20)
            return end

    assert run(work()).acknowledged == 20


def test_credentials_may_be_options_or_come_from_the_environment(rabbit, monkeypatch):
    who = iotsim.Credentials("writer", "s3cret-amqp")
    common = {"declare": False, "mandatory": False}
    assert run(publish(rabbit.url, block(1), credentials=who, **common)).acknowledged == 1
    monkeypatch.setenv("IOTSIM_AMQP_USERNAME", "writer")
    monkeypatch.setenv("IOTSIM_AMQP_PASSWORD", "s3cret-amqp")
    assert run(publish(rabbit.url, block(1), **common)).acknowledged == 1
    assert "s3cret" not in repr(build(rabbit.url))
    monkeypatch.setenv("IOTSIM_AMQP_PASSWORD", "s3cret-wrong")
    assert "Login was refused" in run(refused(rabbit.url))


@contextlib.asynccontextmanager
async def stranger(answer=b"", hold=True):
    """A server that is no AMQP broker."""
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            await reader.read(8)
            writer.write(answer)
            await writer.drain()
            if hold:
                await asyncio.Event().wait()
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(("answer", "hold", "pattern"), [
    (b"", True, "accepts the connection but does not answer"),
    (b"", False, "no handshake came about: the peer closed the connection"),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", True, "does not speak AMQP: it sent b'HTTP/1.1"),
    (b"AMQP\x00\x01\x00\x00", True, "does not speak AMQP 0-9-1, but AMQP 1.0.0"),
    (b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0aX", True, "malformed frame"),
    (b"\x01\x00\x00\xff\xff\xff\xff\x00\x0a\x00\x0a", True, "over 128 kB"),
])  # fmt: skip
def test_who_does_not_speak_amqp_is_told_apart(monkeypatch, answer, hold, pattern):
    monkeypatch.setattr("iotsim.publishers.amqp_link.HANDSHAKE_S", 0.5)

    async def work():
        async with stranger(answer, hold) as url:
            return await refused(url)

    line = run(work())
    assert re.search(pattern, line), line


def test_nobody_there_is_one_clear_line(rabbit):
    assert "nothing listens there" in run(refused("amqp://127.0.0.1:1"))
    assert "host name is unknown" in run(refused("amqp://nowhere.invalid"))


def test_tls_is_verified_and_a_certificate_may_be_who_we_are(rabbit, tmp_path):
    files = rabbit.certificates
    url = f"amqps://localhost:{rabbit.tls_port}"
    device = files.client("writer")
    common = {"mandatory": False, "declare": False}

    async def work():
        await publish(rabbit.url, mandatory=False)
        ends = [
            await publish(url, block(5), ca=files.ca, **common),
            await publish(url, block(5), verify=False, **common),
            await publish(url, block(5), ca=files.ca, cert=device.cert, key=device.key, **common),
        ]
        lines = [
            await refused(url),
            await refused(url, ca=files.stranger.ca),
            await refused(f"amqps://127.0.0.1:{rabbit.port}", ca=files.ca),
            await refused(f"amqp://127.0.0.1:{rabbit.tls_port}"),
        ]
        stranger = files.stranger.client("writer")
        lines.append(await refused(url, ca=files.ca, cert=stranger.cert, key=stranger.key))
        unknown = files.client("unheard-of")
        lines.append(await refused(url, ca=files.ca, cert=unknown.cert, key=unknown.key))
        return ends, lines

    ends, lines = run(work())
    assert [end.acknowledged for end in ends] == [5, 5, 5]
    assert "certificate is not accepted" in lines[0]
    assert "certificate is not" in lines[1]
    assert "TLS" in lines[2]
    assert "TLS" in lines[3]
    assert lines[4]
    assert "Login was refused" in lines[5]


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "kind", "text"), [
    ({"exchang": "x"}, UnknownName, "Did you mean 'exchange'"),
    ({"exchange": "a\nb"}, BadValue, "is no name in AMQP"),
    ({"exchange": "x" * 128}, BadValue, "is no name in AMQP"),
    ({"exchange_type": "tree"}, BadValue, "topic, direct, fanout, headers"),
    ({"separator": ""}, BadValue, "to leave topics as they are"),
    ({"separator": 5}, BadValue, "is not text"),
    ({"declare": "yes"}, BadValue, "not a yes or no"),
    ({"mandatory": True, "confirms": False}, BadValue, "needs confirms"),
    ({"strict_order": True, "confirms": False}, BadValue, "needs confirms"),
    ({"heartbeat": 1}, BadValue, "from 2 to 3,600"),
    ({"window": 0}, BadValue, "from 1 to 65,535"),
    ({"connections": 0}, BadValue, "from 1 to 1,000"),
    ({"ca": "ca.pem"}, BadValue, "Use amqps://"),
    ({"token": "s3cret"}, UnknownName, "Known: audit_field"),
    ({"credentials": iotsim.Credentials(token="s3cret")}, BadValue, "mean nothing to AMQP"),
])
def test_a_wrong_option_is_named_with_what_is_allowed(options, kind, text):
    with pytest.raises(kind, match=re.escape(text)) as caught:
        build("amqp://ann:s3cret@host", **options)
    assert "s3cret" not in str(caught.value)


def test_an_address_has_a_vhost_and_no_query():
    assert build("amqp://host").vhost == build("amqp://host/").vhost == "/"
    assert build("amqp://host/%2F").vhost == build("amqp://host//").vhost == "/"
    publisher = build("amqps://ann:s3cret@host/plant%2Fnorth")
    assert (publisher.vhost, publisher.address.port) == ("plant/north", 5671)
    assert "s3cret" not in repr(publisher) + publisher.url
    assert publisher == build("amqps://ann:s3cret@host/plant%2Fnorth")
    with pytest.raises(BadValue, match="has a query"):
        build("amqp://host/?heartbeat=s3cret")
    with pytest.raises(BadValue, match="vhost="):
        build("amqp://host/a%0Ab")


def test_more_devices_have_more_connections():
    assert [build("amqp://host").lanes(n) for n in (1, 50_000, 50_001, 10**6)] == [1, 1, 2, 8]
    assert build("amqp://host", connections=3).lanes(10**6) == 3


# -- a fleet and a tap -----------------------------------------------------------------------------


def test_a_fleet_s_readings_all_come_to_a_tap_over_tls(rabbit):
    url, ca = f"amqps://localhost:{rabbit.tls_port}", rabbit.certificates.ca
    fleet = iotsim.Fleet("plant", seed=42).add("temperature_sensor", count=50, every="100ms")
    with iotsim.tap(url, ca=ca) as tap:
        result = asyncio.run(fleet.publish_to(url, ca=ca, stamp=True).run("1s"))
        assert len(result.frame()) == 500
        assert tap.wait(500, 45)
        frame = tap.frame()
    assert len(set(frame["id"])) == len(frame) == 500
    assert (frame["time"] >= frame["sent"]).all()
    assert in_order_per_device(frame["id"])
    assert not result.errors


def test_how_far_the_broker_is_is_measured_with_questions(rabbit):
    contact = contacts([Wish(build(rabbit.url), None, ["devices/a/telemetry"])])[0]
    assert not contact.error
    assert 0 < contact.round_trip_s < 4
    assert contact.window > 1
