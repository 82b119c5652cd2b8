"""HTTP as an endpoint sees it: requests, batches, order, refusals, what is set up wrong."""
# ruff: noqa: F811 - fixtures are imported

import asyncio
import json
import socket
import struct
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from email.utils import format_datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import iotsim
from iotsim import Credentials, Fleet
from iotsim.errors import BadValue, ConnectError, UnknownName
from iotsim.publishers.base import build
from iotsim.publishers.http_order import Order
from iotsim.publishers.http_request import escaped, retry_after_s
from iotsim.publishers.payload import Messages
from iotsim.publishers.pump import Pump
from iotsim.tapping.http import _documents
from tests.publishing import block, in_order_per_device, one, own, pumping, until
from tests.servers.certificates import Certificates
from tests.servers.http import Reply, endpoint  # noqa: F401

pytestmark = pytest.mark.broker
SECRET = "marker-s3cret"


async def _drained(pump, seconds=45):
    assert await pump.drain(seconds), (pump.snapshot(), pump.errors)


def documents(count, first=0, devices=10):
    """As `block`, with JSON documents that hold their id."""
    made = block(count, first, devices)
    payloads = [json.dumps({"n": n, "_id": ident}).encode()
                for n, ident in enumerate(made.ids, first)]
    return Messages(made.topics, payloads, made.ids, made.time_us)


def post(url, *blocks, seconds=45, pump=None, **options):
    """Publish blocks and return the account and what went wrong."""

    async def publish():
        async with pumping(url, pump=pump, **options) as carrier:
            for messages in blocks:
                await carrier.offer(0, messages)
            await _drained(carrier, seconds)
            return carrier

    carrier = asyncio.run(publish())
    return carrier.snapshot(), carrier.errors


# -- what arrives -----------------------------------------------------------------------------


def test_each_reading_is_one_request_with_its_topic_and_id(endpoint):
    server = endpoint()
    sent = block(200)
    account, errors = post(server.url, sent)
    assert account.acknowledged == 200
    assert account.retries == account.reconnects == 0
    assert errors == ()
    got = {one.key: one for one in server.got}
    assert len(got) == len(server.got) == 200
    for topic, payload, ident in zip(sent.topics, sent.payloads, sent.ids, strict=True):
        assert (got[ident].topic, got[ident].body) == (topic, payload)
    assert {one.path for one in server.got} == {"/in"}
    assert {one.headers["Content-Type"] for one in server.got} == {"application/json"}
    assert all("Sent" not in one.headers for one in server.got)
    assert server.probes == 1
    assert server.running_most <= 8


@pytest.mark.parametrize("kind", ["json", "ndjson"])
def test_a_batch_is_an_array_or_lines_of_the_very_documents(endpoint, kind):
    server = endpoint()
    sent = documents(1000)
    account, _ = post(server.url, sent, batch=50, body=kind, connections=3)
    assert account.acknowledged == 1000
    bodies = [one.body for one in server.got]
    if kind == "json":
        found = [json.loads(body) for body in bodies]
        assert all(body == b"[" + b",".join(json.dumps(d).encode() for d in array) + b"]"
                   for body, array in zip(bodies, found, strict=True))
    else:
        found = [[json.loads(line) for line in body.splitlines()] for body in bodies]
    flat = [document for array in found for document in array]
    assert sorted(d["n"] for d in flat) == list(range(1000))
    assert in_order_per_device([d["_id"] for d in flat])
    assert max(map(len, found)) <= 50
    assert len(found) <= 80
    assert len({one.key for one in server.got}) == len(bodies)
    assert {one.query for one in server.got} == {""}
    assert {one.headers["Iotsim-Id-Field"] for one in server.got} == {"_id"}
    assert server.running_most <= 3


def test_a_batch_that_is_not_full_waits_a_little_for_more(endpoint):
    server = endpoint()

    async def publish(**options):
        async with pumping(server.url, batch=100, connections=1, **options) as pump:
            for n in range(90):
                await pump.offer(0, documents(1, n))
                await asyncio.sleep(0.001)
            await _drained(pump)
            return pump.snapshot().acknowledged

    assert asyncio.run(publish(linger_s=0.5)) == 90
    assert len(server.got) <= 3
    before = len(server.got)
    assert asyncio.run(publish(linger_s=0)) == 90
    assert len(server.got) - before > 5
    for part in (server.got[:before], server.got[before:]):
        sent = [d["n"] for one in part for d in json.loads(one.body)]
        assert sent == list(range(90))


def test_a_batch_with_a_place_for_the_topic_has_one_topic(endpoint):
    server = endpoint()
    account, _ = post(server.url, documents(300, devices=6), batch=20, topic_in="query")
    assert account.acknowledged == 300
    for got in server.got:
        owners = {d["_id"].split("/")[1] for d in json.loads(got.body)}
        assert [f"devices/{owner}/telemetry" for owner in owners] == [got.topic]


HOSTILE = ["a&b=c", "a#b", "a?x=1&topic=no", "a b", "a+b", "a%20b", "Ünïcode/日本", "a\"'<b>",
           "a\\b;c", "a\r\nX-Evil: 1", "\0", "‮x"]  # fmt: skip


@pytest.mark.parametrize("place", ["query", "header", "path"])
def test_whatever_a_topic_holds_it_arrives_as_it_was(endpoint, place):
    server = endpoint()
    odd = [one(topic, b"x", f"run/{topic.replace('/', '')}/0/0") for topic in HOSTILE]
    with iotsim.tap("http://127.0.0.1:0/a%20b/") as tap:
        account, errors = post(tap.url, *odd, topic_in=place)
        assert tap.wait(len(odd), 45)
        got = tap.messages()
    assert account.acknowledged == len(HOSTILE), errors
    assert {(t, i) for t, _, i in got} == {(m.topics[0], m.ids[0]) for m in odd}
    post(f"{server.url}?key=a%26b", *odd, topic_in=place)
    assert all("X-Evil" not in one.headers for one in server.got)
    if place == "query":
        assert {one.topic for one in server.got} == set(HOSTILE)
        assert all(one.query.startswith("key=a%26b&topic=") for one in server.got)


@pytest.mark.parametrize(
    ("place", "topic", "words"),
    [
        ("query", "", "empty topic"),
        ("query", "a\ud800", "lone surrogate"),
        ("path", "a/../../etc", "would change the path"),
        ("path", "a//b", "would change the path"),
    ],
)
def test_a_topic_that_cannot_be_sent_is_refused_and_stops_nobody(
    endpoint, place, topic, words
):
    account, errors = post(endpoint().url, block(20), one(topic), block(20, 20), topic_in=place)
    assert (account.acknowledged, account.refused) == (40, 1)
    assert words in errors[0]


def test_large_bodies_and_odd_answers_are_read_through(endpoint):
    def answer(got):
        return [Reply(200, body=b"x" * 200_000), Reply(201, body=b"ok"), Reply(202),
                Reply(200, body=b"slow" * 100, drip_s=0.1)][got.number % 4]

    server = endpoint(answer)
    messages = [one("t", bytes(size), f"run/d-{size}/0/0") for size in (0, 1, 3_000_000)]
    account, errors = post(server.url, *messages, block(9, devices=9))
    assert account.acknowledged == 12, errors
    assert account.retries == 0
    assert Counter(len(one.body) for one in server.got)[3_000_000] == 1


def test_a_stamped_request_says_when_it_was_handed_over(endpoint):
    server = endpoint()
    post(server.url, block(5), stamp=True, headers={"X-Site": "north"})
    stamps = [int(one.headers["Sent"]) for one in server.got]
    assert all(stamp > 1_600_000_000_000_000 for stamp in stamps)
    assert {one.headers["X-Site"] for one in server.got} == {"north"}


# -- the tap ----------------------------------------------------------------------------------


def test_a_tap_is_an_endpoint_and_splits_batches_into_readings():
    fleet = Fleet("plant", seed=42).add("temperature_sensor", count=20)

    async def publish(url, **options):
        return await fleet.publish_to(url, **options).run("15s", speed="max")

    for options in ({}, {"batch": 50}, {"batch": 7, "body": "ndjson", "audit_field": "_nr"}):
        with iotsim.tap("http://127.0.0.1:0/ingest", status=201) as tap:
            assert tap.url.startswith("http://127.0.0.1:")
            assert tap.url.endswith("/ingest")
            result = asyncio.run(publish(tap.url, **options))
            assert tap.wait(len(result.frame()))
            frame = tap.frame()
            assert tap.ok, tap.health
        assert len(frame) == len(result.frame())
        assert frame["id"].is_unique
        assert not frame["dup"].any()
        assert in_order_per_device(frame["id"])
        assert tap.digest() == result.digest


def test_a_tap_flags_a_key_that_comes_again_and_refuses_strangers():
    import urllib.error
    import urllib.request

    def ask(url, body=b"{}", method="POST", **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url, data=body, method=method, headers=names)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    with iotsim.tap("http://127.0.0.1:0/in", token=SECRET) as tap:
        key = {"Authorization": f"Bearer {SECRET}"}
        assert SECRET not in repr(tap)
        assert ask(f"{tap.url}?topic=a", Authorization="Bearer no") == 401
        assert ask(f"{tap.url}?topic=a%26b", Idempotency_Key="k1", **key) == 204
        assert ask(f"{tap.url}?topic=a%26b", Idempotency_Key="k1", Sent="17", **key) == 204
        assert ask(tap.url.replace("/in", "/out"), **key) == 404
        assert ask(tap.url, method="PUT", **key) == 405
        for bad in (b"{}", b"[", b"[1", b"[1,", b"[1 2]", b"[1],", b"\xff", b"[" * 5000):
            assert ask(tap.url, bad, Iotsim_Id_Field="_id", **key) == 400
        assert ask(tap.url, b'[ 1 , "a" ]', Iotsim_Id_Field="_id", **key) == 204
        assert tap.wait(4, 45)
        frame = tap.frame()
        assert tap.ok, tap.health
    assert list(frame["topic"][:2]) == ["a&b", "a&b"]
    assert list(frame["dup"]) == [False, True, False, False]
    assert list(frame["payload"]) == [b"{}", b"{}", b"1", b'"a"']
    assert int(frame["sent"].astype("int64")[1]) == 17


_LEAVES = st.none() | st.integers() | st.text() | st.floats(allow_nan=False)
_VALUES = st.recursive(_LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                       max_leaves=5)


@given(st.lists(_VALUES, max_size=5), st.sampled_from([(",", ":"), (" ,\n", " : ")]))
def test_an_array_is_split_into_the_bytes_of_its_documents(values, separators):
    raw = [json.dumps(v, separators=separators, ensure_ascii=False).encode("utf-8", "replace")
           for v in values]
    found = list(_documents(b" [" + b" , ".join(raw) + b"]\n"))
    assert [part for _, part in found] == raw


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("http://h/?a=1", {}, "has a query"),
        ("http://h", {"topic": "a"}, "has no meaning"),
        ("http://h", {"status": 300}, "from 200 to 299"),
        ("http://h", {"verify": False}, "needs TLS"),
        ("http://127.0.0.1:1/", {}, "cannot listen to"),
    ],
)
def test_a_tap_that_cannot_be_is_an_error(url, options, words):
    if words == "cannot listen to":  # where somebody else listens
        with iotsim.tap("http://127.0.0.1:0") as first, pytest.raises(ConnectError, match=words):
            iotsim.tap(first.url)
        return
    with pytest.raises(iotsim.IotsimError, match=words):
        iotsim.tap(url, **options)


# -- order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7])
def test_order_per_device_holds_whatever_fails_and_however_long_it_takes(
    endpoint, batch
):
    chance = np.random.default_rng(7)
    fates = chance.random(20_000)
    delays = chance.exponential(0.002, 20_000)

    def moody(got):
        fate, delay_s = fates[got.number], delays[got.number]
        if fate < 0.04 and got.seen < 3:
            return Reply(500 if fate < 0.02 else 503, delay_s=delay_s)
        if fate < 0.08 and got.seen < 3:
            return Reply(cut="after" if fate < 0.06 else "before", delay_s=delay_s)
        return Reply(delay_s=delay_s)

    server = endpoint(moody)
    sent = documents(1000, devices=50)
    account, errors = post(server.url, sent, connections=50, batch=batch)
    assert account.acknowledged == 1000, errors
    assert account.retries > 0
    taken, seen = [], set()
    for got in server.taken:
        if got.key not in seen:  # as an endpoint does that heeds the key
            seen.add(got.key)
            array = json.loads(got.body)
            taken += [d["_id"] for d in (array if batch > 1 else [array])]
    assert sorted(taken) == sorted(sent.ids)
    assert in_order_per_device(taken)
    if batch == 1:
        assert server.running_most > 20


def test_requests_of_one_device_never_run_together(endpoint):
    server = endpoint(lambda got: Reply(delay_s=0.002))
    account, _ = post(server.url, own("lone", 100), connections=20)
    assert account.acknowledged == 100
    assert server.running_most == 1
    assert [one.key for one in server.got] == list(own("lone", 100).ids)


@given(st.data())
def test_lines_let_nobody_overtake_and_keep_a_written_batch_together(data):
    batch = data.draw(st.integers(1, 4))
    order = Order(batch, 3, by_topic=False, patient=batch > 1 and data.draw(st.booleans()))
    items = [("t", b"", f"run/d-{data.draw(st.integers(0, 4))}/{n}/0", 0.0) for n in range(30)]
    waiting, flying, done, written = list(range(30)), [], [], {}
    for _ in range(120):
        act = data.draw(st.integers(0, 3))
        if order.waits and data.draw(st.booleans()):
            order.hurry()
        if act == 0 and waiting:
            token = waiting.pop(0)
            order.add(token, items[token])
        elif act == 1 and (found := order.take()) is not None:
            line, chunk = found
            tokens = tuple(token for token, _ in chunk)
            for token in tokens:
                assert written.setdefault(token, tokens) == tokens
            flying.append((line, chunk))
        elif flying:
            line, chunk = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            tokens = [token for token, _ in chunk]
            if act == 2:
                done += tokens
                order.forget(tokens)
            else:
                line.head = tuple(tokens)
                waiting = sorted(waiting + tokens)
            order.free(line)
        elif act == 3:
            waiting = sorted(waiting + order.withdraw())
    owners = {token: items[token][2].split("/")[1] for token in done}
    for owner in set(owners.values()):
        mine = [token for token in done if owners[token] == owner]
        assert mine == sorted(mine)


# -- verdicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(422, body=b"bad\r\n\tunit \x1b[31m" + b"y" * 200),
         f"HTTP 422: bad unit ?[31m{'y' * 65}…"),
        (Reply(413, body=b"too large"), "HTTP 413: too large"),
        (Reply(404), "HTTP 404"),
        (Reply(401, body=f"no {SECRET}".encode()), "HTTP 401: no ***"),
        (Reply(403, body=b"<html>"), "HTTP 403: <html>"),
        (Reply(302, headers={"Location": "https://u:p@other/in?k=v"}),
         "HTTP 302: redirects are not followed (https://***@other/in)"),
        (Reply(307), "HTTP 307: redirects are not followed (no Location)"),
        (Reply(304), "HTTP 304"),
    ],
)
def test_what_is_refused_is_refused_once_and_stops_nobody(endpoint, reply, reason):
    server = endpoint(lambda got: reply if "/d-3/" in got.key else Reply())
    account, errors = post(server.url, block(200), token=SECRET)
    assert (account.acknowledged, account.refused) == (180, 20)
    assert dict(account.refusals) == {reason: 20}
    assert account.retries == account.reconnects == 0
    assert len(server.got) == 200
    assert all(SECRET not in line for line in errors)
    assert {one.headers["Authorization"] for one in server.got} == {f"Bearer {SECRET}"}


def test_a_bad_reading_in_a_batch_is_found_and_the_others_are_taken(endpoint):
    bad = {17, 18, 400}

    def picky(got):
        return Reply(422) if bad & {d["n"] for d in json.loads(got.body)} else Reply()

    server = endpoint(picky)
    account, _ = post(server.url, documents(500), batch=64, connections=2)
    assert (account.acknowledged, account.refused) == (497, 3)
    taken = [d["_id"] for one in server.taken for d in json.loads(one.body)]
    assert len(taken) == len(set(taken)) == 497
    assert in_order_per_device(taken)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_the_server_cannot_take_now_is_sent_again_under_the_same_key(
    endpoint, status
):
    server = endpoint(lambda got: Reply(status) if got.seen < 2 and "/d-1/" in got.key else Reply())
    account, errors = post(server.url, block(40, devices=20))
    assert account.acknowledged == 40
    assert account.reconnects == account.refused == 0
    assert f"HTTP {status}: sent again" in errors[0]
    assert sorted(Counter(one.key for one in server.got).values()) == [1] * 38 + [3] * 2


def test_a_reading_that_the_server_stumbles_over_is_given_up_and_delays_only_its_device(
    endpoint, monkeypatch
):
    def tries(number):
        monkeypatch.setattr("iotsim.publishers.refusals.TRIES_MAX", number)

    server = endpoint(lambda got: Reply(500) if got.key == "run/d-3/0/0" else Reply())

    async def publish():
        async with pumping(server.url) as pump:
            tries(1000)  # it is still being tried when the others are through
            await pump.offer(0, block(1000))
            await until(lambda: pump.snapshot().acknowledged == 900)
            others = {one.key.split("/")[1] for one in server.taken}
            tries(6)
            await _drained(pump, 45)
            return others, pump.snapshot()

    others, account = asyncio.run(publish())
    assert others == {f"d-{i}" for i in range(10)} - {"d-3"}
    assert Counter(one.key for one in server.got)["run/d-3/0/0"] >= 6
    assert (account.acknowledged, account.refused) == (999, 1)
    assert dict(account.refusals) == {"HTTP 500, 6 times": 1}


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_heeded_by_all_and_seen(endpoint, form):
    import datetime
    import time

    moments = []

    def busy(got):
        moments.append(time.monotonic())
        if len(moments) > 1:
            return Reply()
        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
        value = "1" if form == "seconds" else format_datetime(soon, usegmt=True)
        return Reply(503, headers={"Retry-After": value})

    server = endpoint(busy)
    account, errors = post(server.url, block(100, devices=5), connections=1)
    assert account.acknowledged == 100
    assert moments[1] - moments[0] >= (0.99 if form == "seconds" else 0.9)
    assert "asks us to wait" in errors[0]
    assert in_order_per_device([one.key for one in server.taken])


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("5", 5), (" 7 ", 7), ("3600", 60), ("9" * 5000, 60), ("-1", 0), ("1.5", 0),
     ("", 0), ("²", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 60),
     ("Fri, 99 Foo 2015", 0), ("\0", 0)],
)  # fmt: skip
def test_a_retry_after_is_bounded_whatever_it_says(value, seconds):
    assert retry_after_s(value) == seconds


# -- the start --------------------------------------------------------------------------------


def fails(url, words, **options):
    """Assert that a pump does not open, with one line; return it."""

    async def publish():
        async with pumping(url, **options):
            pass

    with pytest.raises(ConnectError, match=words) as caught:
        asyncio.run(publish())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (Reply(401), "refused us: HTTP 401"),
        (Reply(403), "forbids it: HTTP 403"),
        (Reply(301, headers={"Location": "https://x/y?k=1"}), "elsewhere: https://x/y"),
        (Reply(cut="before"), "connection"),
    ],
)
def test_a_server_that_does_not_want_us_is_an_error_at_the_start(
    endpoint, probe, words
):
    server = endpoint(probe=probe)
    fails(server.url, words)
    account, _ = post(server.url, block(5), probe=False)
    assert account.acknowledged == 5


@pytest.mark.parametrize("status", [200, 204, 400, 404, 405, 500, 501, 503])
def test_any_other_answer_to_the_probe_is_a_server_that_speaks_http(
    endpoint, status
):
    account, _ = post(endpoint(probe=Reply(status)).url, block(5))
    assert account.acknowledged == 5


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"\x20\x02\x00\x00", "HTTP"),
        (b"", "HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, "does not speak HTTP"),
        ("reset", "reset the connection. Does it speak HTTP"),
        (None, "no answer"),
    ],
)
def test_what_does_not_speak_http_is_an_error_at_the_start(says, words):
    async def publish():
        async def serve(reader, writer):
            await reader.read(100)
            if says is None:
                await reader.read()
            elif says == "reset":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                writer.write(says)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(45):
                async with pumping(f"http://127.0.0.1:{port}/?key={SECRET}"):
                    pass
        finally:
            server.close()
            await server.wait_closed()

    with pytest.raises(ConnectError, match=words) as caught:
        asyncio.run(publish())
    error = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__


def test_nobody_there_and_no_such_host_are_errors_at_the_start():
    fails("http://127.0.0.1:1/in", "connection refused")
    fails("http://127.0.0.1:1/in", "connection refused", probe=False)
    fails("http://no-such-host.invalid/in", "host name is unknown")


# -- TLS --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_tls_and_our_own_certificate(endpoint, files):
    server = endpoint(certificate=files.server, ca=files.ca)
    mine = files.client("pump", password=SECRET)
    account, _ = post(server.url, block(50), ca=files.ca, cert=mine.cert, key=mine.key,
                      key_password=SECRET, connections=2)
    assert account.acknowledged == 50
    account, _ = post(server.url, block(50), verify=False, cert=mine.cert, key=mine.key,
                      key_password=SECRET)
    assert account.acknowledged == 50
    fails(server.url, r"wants a certificate of ours: cert=", ca=files.ca)
    other = files.stranger.client()
    fails(server.url, "does not accept our cert", ca=files.ca, cert=other.cert, key=other.key)


def test_a_server_that_cannot_be_trusted_is_an_error_at_the_start(endpoint, files):
    fails(endpoint(certificate=files.server).url, "certificate is not accepted")
    fails(endpoint(certificate=files.expired).url, "expired", ca=files.ca)
    fails(endpoint(certificate=files.elsewhere).url, "certificate is not accepted", ca=files.ca)
    fails(endpoint(certificate=files.server).url, "not accepted", ca=files.stranger.ca)
    fails(endpoint().url.replace("http", "https"), "no TLS is spoken there")
    fails(endpoint(certificate=files.server).url.replace("https", "http"), "HTTP|reset")


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("http://", {}, "names no host"),
        ("http://h/#a", {}, "path or a query"),
        ("http://h:0", {}, "port 0"),
        ("http://h", {"qos": 1}, "no http option called 'qos'"),
        ("http://h", {"batch": 0}, "from 1 to 10,000"),
        ("http://h", {"connections": 1001}, "from 1 to 1,000"),
        ("http://h", {"linger_s": 1}, "needs batches"),
        ("http://h", {"linger_s": 6, "batch": 2}, "from 0 to 5"),
        ("http://h", {"timeout_s": 21}, "from 0.05 to 20"),
        ("http://h", {"timeout_s": float("nan")}, "from 0.05 to 20"),
        ("http://h", {"timeout_s": True}, "from 0.05 to 20"),
        ("http://h", {"topic_in": "body"}, "query, header, path"),
        ("http://h", {"body": "xml"}, "json, ndjson"),
        ("http://h", {"probe": 1}, "True or False"),
        ("http://h", {"ca": "x"}, "Use https://"),
        ("https://h", {"ca": "/nonexistent"}, "is not a file"),
        ("http://h", {"token": "a", "password": "b"}, "beside username and password"),
        ("http://h", {"token": "a b"}, "cannot stand in a header"),
        ("http://h", {"token": "a\r\nX: y"}, "has a control character, or half"),
        ("http://h", {"username": "a:b"}, "colon"),
        ("http://h", {"credentials": Credentials(creds="f")}, "mean nothing to HTTP"),
        ("http://h", {"headers": "X: y"}, "is no mapping"),
        ("http://h", {"headers": {"X Y": "z"}}, "is no name"),
        ("http://h", {"headers": {"X\r\nY": "z"}}, "is no name"),
        ("http://h", {"headers": {"X": f"{SECRET}\r\nY: z"}}, "cannot be the value"),
        ("http://h", {"headers": {"X": "ü"}}, "cannot be the value"),
        ("http://h", {"headers": {"X": 1}}, "cannot be the value"),
        ("http://h", {"headers": {"Host": "x"}}, "set by HTTP"),
        ("http://h", {"headers": {"x": "1", "X": "2"}}, "twice"),
        ("http://h", {"headers": {"X": "y" * 20_000}}, "16,384"),
        ("http://h", {"headers": {"authorization": SECRET}, "token": "t"}, "beside credentials"),
    ],
)
def test_a_wrong_option_is_an_error_that_says_what_may_be(url, options, words):
    with pytest.raises((BadValue, UnknownName), match=words) as caught:
        build(url, **options)
    assert SECRET not in str(caught.value)


def test_credentials_come_from_options_url_and_environment(endpoint, monkeypatch):
    server = endpoint()
    monkeypatch.setenv("IOTSIM_HTTP_TOKEN", "from-env")
    post(server.url.replace("//", "//ann:p%40ss@"), block(1))
    post(server.url, block(1))
    post(server.url, block(1), username="bob", password="ü")
    basic = [f"Basic {b64encode(pair.encode()).decode()}" for pair in ("ann:p@ss", "bob:ü")]
    assert [one.headers["Authorization"] for one in server.got] == [
        basic[0], "Bearer from-env", basic[1]]


def test_no_secret_in_any_text(endpoint):
    url = f"http://marker-user:{SECRET}@127.0.0.1:1/in?key={SECRET}"
    options = {"headers": {"X-Key": SECRET}}
    publisher = build(url, **options)
    texts = [repr(publisher), str(publisher), publisher.url, repr(Pump(publisher))]
    texts.append(fails(url, "refused", **options))
    secure = build("https://h", key_password=None, token=SECRET)
    texts += [repr(secure), repr(Fleet("f").publish_to(url, **options))]
    server = endpoint(lambda got: Reply(400, body=str([*got.headers.values(), got.query]).encode()))
    where = server.url.replace("//", f"//marker-user:{SECRET}@")
    account, errors = post(f"{where}?key={SECRET}", block(3), **options)
    texts += [*errors, *account.refusals]
    assert not [text for text in texts if SECRET in text]
    assert SECRET in server.got[0].query
    assert server.got[0].headers["X-Key"] == SECRET


def test_publishers_of_one_address_and_options_are_equal():
    first = build("http://h/in?k=v", headers={"A": "b"}, batch=5)
    assert first == build("http://h/in?k=v", headers={"A": "b"}, batch=5)
    assert first != build("http://h/in?k=w", headers={"A": "b"}, batch=5)
    assert first.lanes(1_000_000) == 1
    assert first.tracing.audit_field == "_id"
    assert first.url == "http://h:80/in"


def test_building_and_running_need_aiohttp_only_when_they_connect():
    code = (
        "import sys\nfrom iotsim.publishers.base import build\n"
        "build('http://h')\nassert 'aiohttp' not in sys.modules\n"
        "sys.modules['aiohttp'] = None\nfrom iotsim.publishers.pump import Pump\n"
        "import asyncio\n"
        "async def main():\n    await Pump(build('http://h')).open()\n"
        "try:\n    asyncio.run(main())\nexcept ImportError as error:\n    print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'iotsim[http]' in out.stdout


@given(st.text())
def test_a_header_value_holds_any_text_in_visible_ascii(text):
    from urllib.parse import unquote

    try:
        value = escaped(text)
    except UnicodeEncodeError:
        return
    assert value.isascii()
    assert value.isprintable()
    assert " " not in value
    assert unquote(value) == text
