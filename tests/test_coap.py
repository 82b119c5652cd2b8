"""CoAP against libcoap's server, aiocoap's (the tap), bad weather, and a peer that is told what."""

import asyncio
import logging
import socket
from collections import Counter

import pytest
from aiocoap import Message
from aiocoap.numbers.codes import Code
from hypothesis import given, settings
from hypothesis import strategies as st

import iotsim
from iotsim import Fleet
from iotsim.errors import BadValue, ConnectError, UnknownName
from iotsim.publishers import coap_codec as codec
from iotsim.publishers.base import build
from iotsim.publishers.coap_numbers import Numbers
from iotsim.publishers.payload import Messages
from tests.publishing import block, in_order_per_device, one, own, pumping, until
from tests.servers.certificates import Certificates
from tests.servers.coap import ScriptedPeer, libcoap, path_of, udp_port
from tests.udp_proxy import UdpProxy, Weather

__all__ = ("libcoap",)  # a fixture

pytestmark = pytest.mark.broker

QUICK = {"ack_timeout_s": 0.05}
SOCKET_HOLDS = 180  # datagrams at least, of a server that has no time to read them


def traced(messages):
    """The same messages with their id in the payload, as `audit_field="_seq"` makes them."""
    return Messages(messages.topics, [b'{"_seq":"%s"}' % i.encode() for i in messages.ids],
                    messages.ids, messages.time_us)


async def _drained(pump, seconds=45):
    assert await pump.drain(seconds), (pump.snapshot(), pump.errors)


def _publish(url, *blocks, seconds=20, **options):
    async def work():
        async with pumping(url, **options) as pump:
            for messages in blocks:
                await pump.offer(0, messages)
            await _drained(pump, seconds)
        return pump.snapshot(), pump.errors

    return asyncio.run(work())


# -- aiocoap's server -------------------------------------------------------------------------


@pytest.mark.parametrize("confirmable", [True, False])
def test_every_message_arrives_once_and_in_order_per_device(confirmable):
    count = 300 if confirmable else SOCKET_HOLDS // 3
    sent = [traced(block(count, first=n * count, devices=20)) for n in range(3)]

    async def publish(tap):
        async with pumping(tap.url, confirmable=confirmable, rate=1000) as pump:
            for messages in sent:
                await pump.offer(0, messages)
            await _drained(pump)
            assert await tap.received(3 * count, 45), tap
        return pump.snapshot()

    with iotsim.tap("coap://127.0.0.1:0") as tap:
        account = asyncio.run(publish(tap))
        got = tap.messages()
        frame = tap.frame()
        assert tap.ok, tap.health
    assert account.acknowledged == account.offered == 3 * count
    assert account.retries == account.reconnects == 0
    assert Counter(got) == Counter(m for b in sent for m in zip(b.topics, b.payloads, b.ids,
                                                                strict=True))
    assert in_order_per_device(ident for _, _, ident in got)
    assert (frame["qos"] == int(confirmable)).all()


def test_a_fleet_speaks_coap_and_the_tap_sees_what_it_says():
    with iotsim.tap("coap://127.0.0.1:0") as tap:
        fleet = Fleet("plant", seed=3).add("temperature_sensor", count=20, every="100ms")
        live = fleet.publish_to(f"{tap.url}/a%20b", audit_field="_seq")
        result = asyncio.run(live.run("1s"))
        assert tap.wait(200, 45)
        got = tap.messages()
        assert tap.digest() == result.digest
    assert result.errors == ()
    assert {topic for topic, _, _ in got} == {
        f"a b/devices/{name}/telemetry" for name in result.frame()["device_id"].unique()
    }
    assert len({ident for _, _, ident in got}) == 200


def test_a_tap_answers_404_where_it_does_not_listen_and_lives_alone_on_its_port():
    with iotsim.tap("coap://127.0.0.1:0", topic="devices/#") as tap:
        account, _ = _publish(tap.url, block(20), one("elsewhere"))
        assert account.acknowledged == 20
        assert dict(account.refusals) == {"4.04 Not Found": 1}
        assert tap.wait(20, 45)
        with pytest.raises(ConnectError, match=r"cannot listen there: .*in use"):
            iotsim.tap(tap.url)
    with pytest.raises(BadValue, match="has its # elsewhere"):
        iotsim.tap("coap://127.0.0.1:0", topic="a/#/b")
    with pytest.raises(UnknownName, match="audit_field"):
        iotsim.tap("coap://127.0.0.1:0", audit="x")


def test_a_tap_that_is_overrun_says_so():
    async def publish(tap):
        async with pumping(tap.url, confirmable=False, rate=1_000_000) as pump:
            for n in range(10):
                await pump.offer(0, block(1000, first=n * 1000))
            await _drained(pump)
            await until(lambda: "the system dropped" in tap.health)
        return pump.snapshot()

    with iotsim.tap("coap://127.0.0.1:0") as tap:
        account = asyncio.run(publish(tap))
        assert account.acknowledged == 10_000
        assert tap.count < 10_000
    assert "may be missing" in tap.health


# -- libcoap's server -------------------------------------------------------------------------


@pytest.mark.parametrize("confirmable", [True, False])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_libcoap_receives_exactly_what_was_sent(libcoap, method, confirmable):
    server = libcoap()
    messages = block(SOCKET_HOLDS - 15, devices=15)
    account, errors = _publish(f"{server.url}/base/v%201", block(15), messages, method=method,
                               confirmable=confirmable, rate=1000)
    assert (account.acknowledged, errors) == (SOCKET_HOLDS, ())
    kind = "CON" if confirmable else "NON"
    expected = [(kind, method, f"base/v 1/{t}", p.decode(), "application/json")
                for b in (block(15), messages) for t, p in zip(b.topics, b.payloads, strict=True)]

    async def all_there():
        await until(lambda: len(server.received()) >= SOCKET_HOLDS)

    asyncio.run(all_there())
    got = server.received()
    assert Counter(got) == Counter(expected)
    for topic in {entry[2] for entry in expected}:
        assert [e for e in got if e[2] == topic] == [e for e in expected if e[2] == topic]


def test_what_libcoap_refuses_is_refused_and_nothing_else(libcoap):
    server = libcoap(resources=5)
    account, errors = _publish(server.url, block(200, devices=10))
    assert account.acknowledged == 100
    assert dict(account.refusals) == {"4.06 Not Acceptable": 100}
    assert "refused: 4.06 Not Acceptable" in errors[0]
    assert account.reconnects == 0


def test_a_server_that_is_killed_and_revived_gets_everything(libcoap):
    server = libcoap()

    async def publish():
        async with pumping(server.url, endpoints=2, **QUICK) as pump:
            for n in range(6):
                await pump.offer(n % 2, own(f"d-{n % 2}", 100, first=n * 100))
                if n in (1, 3):
                    await until(lambda half=n * 50: pump.snapshot().acknowledged >= half)
                    server.kill()
                    await until(lambda: pump.connected < 2)
                    await asyncio.to_thread(server.start)
            await _drained(pump, 30)
        return pump.snapshot(), pump.errors

    account, errors = asyncio.run(publish())
    assert account.acknowledged == 600
    assert account.unknown == 0
    assert account.reconnects >= 2
    assert any("nothing listens there" in text for text in errors)
    sent = {f"d-{n % 2} {i}" for n in range(6) for i in range(n * 100, n * 100 + 100)}
    assert {payload for *_, payload, _ in server.received()} == sent


def test_a_server_that_stops_answering_is_left_and_found_again(libcoap):
    server = libcoap()

    async def publish():
        async with pumping(server.url, ack_timeout_s=0.05, max_retransmit=2) as pump:
            await pump.offer(0, block(50))
            await _drained(pump)
            server.freeze()
            await pump.offer(0, block(50, first=50))
            await until(lambda: not pump.connected)
            assert pump.snapshot().unknown > 0
            server.thaw()
            await _drained(pump, 30)
        return pump.snapshot(), pump.errors

    account, errors = asyncio.run(publish())
    assert account.acknowledged == 100
    assert any("no answer in" in text and "3 transmissions" in text for text in errors), errors


@pytest.mark.parametrize("confirmable", [True, False])
def test_a_stop_while_the_server_is_away_is_over_in_time_and_says_what_is_left(
    libcoap, confirmable
):
    server = libcoap()

    async def publish():
        loop = asyncio.get_running_loop()
        async with pumping(server.url, 1.0, confirmable=confirmable, ack_timeout_s=0.3) as pump:
            await pump.offer(0, block(10))
            await _drained(pump)
            server.kill()
            await pump.offer(0, block(500, first=10))
            await until(lambda: not pump.connected)
            before_s = loop.time()
        return pump.snapshot(), loop.time() - before_s

    account, lasted_s = asyncio.run(publish())
    assert lasted_s < 10
    if confirmable:
        assert account.acknowledged == 10
        assert account.unknown == 8  # what was on its way
        assert dict(account.drops) == {"stopped before it was sent": 492}


# -- DTLS -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("dtls"))


def _secure(libcoap, pair, *options):
    server = libcoap(options=("-c", pair.cert, "-j", pair.key, *options))
    return server, f"coaps://127.0.0.1:{server.port + 1}"


@pytest.mark.parametrize("confirmable", [True, False])
def test_libcoap_receives_over_dtls_exactly_what_was_sent(libcoap, files, confirmable):
    server, url = _secure(libcoap, files.server, "-n")
    messages = block(150, devices=15)
    options = {"confirmable": confirmable, "rate": 500, "endpoints": 2}
    account, errors = _publish(url, messages, ca=files.ca, **options)
    assert (account.acknowledged, errors) == (150, ())

    async def all_there():
        await until(lambda: len(server.received()) >= 150)

    asyncio.run(all_there())
    got = [(topic, payload) for _, _, topic, payload, _ in server.received()]
    assert Counter(got) == Counter(zip(messages.topics, [p.decode() for p in messages.payloads],
                                       strict=True))
    named = url.replace("127.0.0.1", "localhost")
    assert _publish(named, block(10), ca=files.ca, **options)[0].acknowledged == 10


def test_a_dtls_certificate_is_verified_unless_it_is_said_otherwise(libcoap, files):
    for pair, text in ((files.expired, "its certificate is not accepted: certificate has expired"),
                       (files.elsewhere, "its certificate is not accepted: IP address mismatch")):
        _, url = _secure(libcoap, pair, "-n")
        with pytest.raises(ConnectError, match=text):
            _publish(url, block(1), ca=files.ca)
        assert _publish(url, block(10), verify=False)[0].acknowledged == 10
    _, url = _secure(libcoap, files.server, "-n")
    for options in ({"ca": files.stranger.ca}, {}):
        with pytest.raises(ConnectError, match=r"its certificate is not accepted: .*certificate"):
            _publish(url, block(1), **options)


def test_a_server_that_asks_for_a_certificate_gets_ours(libcoap, files):
    _, url = _secure(libcoap, files.server, "-C", files.ca)
    for pair in (files.client("pump-1"), files.client("pump-2", password="marker")):
        account, _ = _publish(url, block(10), ca=files.ca, cert=pair.cert, key=pair.key,
                              key_password=pair.password)
        assert account.acknowledged == 10
    with pytest.raises(ConnectError, match="cannot publish to coaps://"):
        _publish(url, block(10), ca=files.ca)


def test_a_dtls_session_that_is_killed_is_made_again(libcoap, files):
    server, url = _secure(libcoap, files.server, "-n")

    async def publish():
        async with pumping(url, ca=files.ca, **QUICK) as pump:
            await pump.offer(0, block(100))
            await _drained(pump)
            server.kill()
            await pump.offer(0, block(100, first=100))
            await until(lambda: not pump.connected)
            await asyncio.to_thread(server.start)
            await _drained(pump, 30)
        return pump.snapshot()

    account = asyncio.run(publish())
    assert account.acknowledged == 200
    assert account.reconnects >= 1


def test_a_dtls_handshake_survives_loss_and_names_what_is_no_dtls(libcoap, files, monkeypatch):
    server, _ = _secure(libcoap, files.server, "-n")

    async def publish():
        lost = []

        def rule(direction, number, data):
            if number in (1, 4, 8):
                lost.append(number)
                return []
            return [data, data]

        async with UdpProxy(server.port + 1, rule) as proxy:
            url = f"coaps://127.0.0.1:{proxy.port}"
            async with pumping(url, ca=files.ca, **QUICK) as pump:
                await pump.offer(0, block(20))
                await _drained(pump)
            return pump.snapshot(), lost

    monkeypatch.setattr("iotsim.publishers.coap_link.CONNECT_S", 9.0)
    account, lost = asyncio.run(publish())
    assert account.acknowledged == 20
    assert len(lost) == 3
    monkeypatch.setattr("iotsim.publishers.coap_link.CONNECT_S", 0.5)
    with pytest.raises(ConnectError, match="no answer to a DTLS handshake"):
        _publish(f"coaps://127.0.0.1:{server.port}", block(1))
    with pytest.raises(ConnectError, match="nothing listens there"):
        _publish(f"coaps://127.0.0.1:{udp_port()}", block(1))


def test_dtls_options_are_checked(files, tmp_path):
    with pytest.raises(BadValue, match=r"ca=.* needs TLS. Use coaps:// in the URL"):
        build("coap://h", ca=files.ca)
    with pytest.raises(BadValue, match="is not a file"):
        build("coaps://h", ca=str(tmp_path / "no.pem"))
    with pytest.raises(BadValue, match=r"minimum='1.3' is beyond DTLS"):
        build("coaps://h", tls=iotsim.TLS(minimum="1.3"))
    assert "verify=False" in repr(build("coaps://h", verify=False))
    assert build("coaps://h").url == "coaps://h:5684"


# -- bad weather ------------------------------------------------------------------------------

WEATHER = {
    "loss of 30 %": Weather(lose=0.3),
    "doubling": Weather(double=0.5),
    "reordering": Weather(swap=0.3, swap_s=0.02, jitter_s=0.01),
    "all of it": Weather(lose=0.2, double=0.2, swap=0.2, swap_s=0.02, delay_s=0.005),
}


@pytest.mark.parametrize("name", list(WEATHER))
def test_confirmable_messages_come_through(name):
    sent = traced(block(200, devices=40))

    async def publish(tap):
        async with (
            UdpProxy(int(tap.url.rsplit(":", 1)[1]), WEATHER[name], seed=7) as proxy,
            pumping(f"coap://127.0.0.1:{proxy.port}", window=20, **QUICK) as pump,
        ):
            await pump.offer(0, sent)
            await _drained(pump, 40)
            print(proxy, pump.errors)
            trouble = proxy.lost + proxy.doubled + proxy.swapped
        return pump.snapshot(), trouble

    with iotsim.tap("coap://127.0.0.1:0") as tap:
        account, trouble = asyncio.run(publish(tap))
        ids = [ident for _, _, ident in tap.messages()]
    assert account.acknowledged == 200
    assert account.unknown == account.refused == 0
    assert trouble > 50
    assert set(ids) == set(sent.ids)
    # The server knows what came twice; only a message that was given up comes as a new one.
    assert len(ids) - 200 <= account.retries
    assert in_order_per_device(dict.fromkeys(ids))


def test_an_acknowledgement_that_is_lost_makes_no_duplicate():
    sent = traced(block(100, devices=50))

    async def publish(tap):
        seen = set()

        def rule(direction, number, data):
            mid = data[2:4]
            if direction == "up" or data[0] >> 4 & 3 != 2 or mid in seen:
                return [data]
            seen.add(mid)
            return []

        async with (
            UdpProxy(int(tap.url.rsplit(":", 1)[1]), rule) as proxy,
            pumping(f"coap://127.0.0.1:{proxy.port}", window=50, **QUICK) as pump,
        ):
            await pump.offer(0, sent)
            await _drained(pump)
        return pump.snapshot(), len(seen)

    with iotsim.tap("coap://127.0.0.1:0") as tap:
        account, lost = asyncio.run(publish(tap))
        ids = [ident for _, _, ident in tap.messages()]
    assert account.acknowledged == lost == 100
    assert sorted(ids) == sorted(sent.ids)


def test_what_is_given_up_while_the_server_talks_is_unknown_and_goes_out_again():
    chosen = "devices/d-3/telemetry"

    async def publish():
        silent = [2]

        def behave(peer, message, addr):
            if path_of(message) == chosen and silent[0]:
                return
            peer.answer(message, addr)

        async with (
            ScriptedPeer(behave) as peer,
            pumping(peer.url, ack_timeout_s=0.05, max_retransmit=1, window=4) as pump,
        ):
            await pump.offer(0, block(200))
            await until(lambda: pump.snapshot().acknowledged >= 150)
            ledger = pump._ledger
            await until(lambda: ("in_flight", "unknown") in ledger.seen)
            silent[0] = 0
            await _drained(pump)
            ids = [bytes(m.payload) for m in peer.requests if path_of(m) == chosen]
        return pump.snapshot(), pump.errors, ids

    account, _, payloads = asyncio.run(publish())
    assert account.acknowledged == 200
    assert account.retries >= 1
    numbers = [int(p.split(b".")[0]) for p in dict.fromkeys(payloads)]
    assert numbers == sorted(numbers)
    assert len(numbers) == 20


# -- what a peer may say ------------------------------------------------------------------------


def _against(behave, messages, *, seen=lambda peer: True, **options):
    async def work():
        async with ScriptedPeer(behave) as peer, pumping(peer.url, **{**QUICK, **options}) as pump:
            await pump.offer(0, messages)
            await _drained(pump)
            await until(lambda: seen(peer))
        return pump.snapshot(), pump.errors, peer

    return asyncio.run(work())


def test_an_answer_may_come_long_after_the_acknowledgement():
    def behave(peer, message, addr):
        peer.say(addr, 2, "0.00", message.mid)
        asyncio.get_running_loop().call_later(
            0.3, peer.say, addr, 0, "2.04", message.mid ^ 0x8000, message.token
        )

    account, _, peer = _against(behave, block(8))
    assert account.acknowledged == 8
    assert len(peer.requests) == 8  # acknowledged: not sent again
    acks = [m for m in peer.heard if m.mtype == 2]
    assert sorted(m.mid for m in acks) == sorted(m.mid ^ 0x8000 for m in peer.requests)


def test_an_answer_that_comes_again_is_acknowledged_again_and_a_strange_one_is_reset():
    def behave(peer, message, addr):
        for _ in range(2):
            peer.say(addr, 0, "2.04", message.mid ^ 0x8000, message.token)
        peer.say(addr, 0, "2.05", message.mid ^ 0x4000, b"strange")

    def replies(peer):
        return Counter((m.mtype, m.mid ^ r.mid) for r in peer.requests for m in peer.heard
                       if m.mtype in (2, 3) and m.mid ^ r.mid in (0x8000, 0x4000))

    account, _, peer = _against(behave, block(5), seen=lambda p: replies(p).total() == 15)
    assert account.acknowledged == 5
    assert account.reconnects == 0
    assert replies(peer) == {(2, 0x8000): 10, (3, 0x4000): 5}


def test_acknowledgements_twice_wrong_or_of_nothing_change_nothing():
    def behave(peer, message, addr):
        peer.say(addr, 2, "2.04", message.mid, b"nope")  # another token
        peer.say(addr, 2, "2.04", message.mid ^ 0x2000, message.token)  # another message id
        peer.transport.sendto(b"\x00\x01 no CoAP", addr)
        peer.transport.sendto(b"", addr)
        peer.transport.sendto(b"\x64\x44\x00", addr)
        for _ in range(2):
            peer.answer(message, addr)

    # Nothing may be sent again: a peer on a busy machine has time for its answers.
    account, _, peer = _against(behave, block(30), ack_timeout_s=5.0)
    assert account.acknowledged == 30
    assert account.reconnects == account.retries == 0
    assert len(peer.requests) == 30


@pytest.mark.parametrize(("code", "text"), [
    ("4.00", "4.00 Bad Request"), ("4.13", "4.13 Request Entity Too Large"),
    ("4.31", "4.31"), ("5.01", "5.01 Not Implemented"),
])
def test_a_refusal_is_final_and_stops_nobody_else(code, text):
    def behave(peer, message, addr):
        bad = path_of(message) == "devices/d-3/telemetry"
        peer.answer(message, addr, code if bad else "2.01")

    account, errors, peer = _against(behave, block(100))
    assert account.acknowledged == 90
    assert dict(account.refusals) == {text: 10}
    assert f"refused: {text} (topic 'devices/d-3/telemetry') (×10)" in errors
    assert len(peer.requests) == 100


def test_a_reset_is_a_refusal():
    def behave(peer, message, addr):
        if path_of(message) == "devices/d-3/telemetry":
            peer.say(addr, 3, "0.00", message.mid)
        else:
            peer.answer(message, addr)

    account, _, _ = _against(behave, block(100))
    assert account.acknowledged == 90
    assert dict(account.refusals) == {"reset: the server cannot process it": 10}


def test_a_server_that_asks_to_wait_is_given_its_time_and_order_is_kept():
    async def work():
        loop, seen = asyncio.get_running_loop(), {}

        def behave(peer, message, addr):
            payload = bytes(message.payload)
            if path_of(message) == "devices/d-3/telemetry" and payload not in seen:
                seen[payload] = loop.time()
                peer.answer(message, addr, "4.29", max_age=1)
                return
            if payload in seen:
                waits.append(loop.time() - seen[payload])
            taken.append(payload)
            peer.answer(message, addr)

        waits, taken = [], []
        async with ScriptedPeer(behave) as peer, pumping(peer.url) as pump:
            await pump.offer(0, block(30))
            await until(lambda: pump.snapshot().acknowledged == 27)  # the others do not wait
            assert not waits
            await _drained(pump, 20)
        return pump.snapshot(), waits, taken

    account, waits, taken = asyncio.run(work())
    assert account.acknowledged == 30
    assert len(waits) == 3
    assert min(waits) >= 1.0
    own = [int(p.split(b".")[0]) for p in taken if int(p.split(b".")[0]) % 10 == 3]
    assert own == sorted(own)


def test_a_server_that_is_overloaded_for_good_ends_as_refusals(monkeypatch):
    monkeypatch.setattr("iotsim.publishers.backoff.BACKOFF_CEILING_S", 0.1)

    def behave(peer, message, addr):
        peer.answer(message, addr, "5.03")

    account, _, peer = _against(behave, block(4, devices=2))
    assert dict(account.refusals) == {"5.03 Service Unavailable": 4}
    assert len(peer.requests) == 4 * 8
    numbers = [int(bytes(m.payload).split(b".")[0]) for m in peer.requests]
    for i in range(2):  # a device's second only after its first
        assert [n for n in numbers if n % 2 == i] == [i] * 8 + [i + 2] * 8


def test_what_coap_cannot_carry_is_refused_here_and_stops_nobody_else():
    poison = [
        (one("devices/big/telemetry", b"x" * 1025),
         "larger than 1,024 bytes: CoAP would need block-wise transfer"),
        (one("devices/" + "x" * 256), "a level of the topic is over 255 bytes"),
        (one("devices/" + "ü" * 128), "a level of the topic is over 255 bytes"),
        (one("a//b"), "a level of the topic is empty, '.' or '..'"),
        (one(""), "a level of the topic is empty, '.' or '..'"),
        (one("a/../b"), "a level of the topic is empty, '.' or '..'"),
        (one("a\0b"), "control character or lone surrogate in the topic"),
        (one("a\r\nb"), "control character or lone surrogate in the topic"),
        (one("a\ud800b"), "control character or lone surrogate in the topic"),
    ]
    odd = ["a b/%2F/<img>", "x" * 255 + "/y", "devices/ünï/‮?a=b&c#d", "/lead"]
    blocks = []
    for n, (bad, _) in enumerate(poison):
        blocks += [bad, block(10, first=n * 10)]
    with iotsim.tap("coap://127.0.0.1:0") as tap:
        account, _ = _publish(tap.url, *blocks, *[one(topic) for topic in odd],
                              one("devices/most/telemetry", b"x" * 1024), one("e", b""))
        assert tap.wait(len(poison) * 10 + 6, 45)
        topics = {topic for topic, _, _ in tap.messages()}
    assert account.acknowledged == len(poison) * 10 + 6
    assert dict(account.refusals) == Counter(why for _, why in poison)
    assert {topic.removeprefix("/") for topic in odd} < topics


def test_a_reset_or_a_refusal_of_what_needs_no_answer_is_said():
    def reset(peer, message, addr):
        if len(peer.requests) == 1:
            peer.say(addr, 3, "0.00", message.mid)

    async def work(behave, text):
        async with (
            ScriptedPeer(behave) as peer,
            pumping(peer.url, confirmable=False) as pump,
        ):
            await pump.offer(0, block(40))
            await until(lambda: any(text in error for error in pump.errors))
            await pump.offer(0, block(40, first=40))
            await _drained(pump)
            await until(lambda: len(peer.requests) >= 80)
        return pump.snapshot(), peer

    def refuse(peer, message, addr):
        peer.answer(message, addr, "4.04")

    account, peer = asyncio.run(work(reset, "the server resets messages"))
    assert account.acknowledged == 80
    account, peer = asyncio.run(work(refuse, "the server answers 4.04 Not Found; only with conf"))
    assert account.reconnects == 1  # said once
    assert len(peer.requests) == 80


# -- pace -------------------------------------------------------------------------------------


def test_message_ids_that_are_used_up_are_not_used_again_but_another_port_is(monkeypatch):
    monkeypatch.setattr("iotsim.publishers.coap_numbers._BLOCK", 2)
    monkeypatch.setattr("iotsim.publishers.coap_numbers._BLOCKS", 8)

    def behave(peer, message, addr):
        used.append((addr[1], message.mid))
        peer.answer(message, addr)

    used = []
    account, errors, peer = _against(behave, block(60))
    assert account.acknowledged == 60
    assert len(set(used)) == len(used) == 60
    assert len(peer.ports) == 4  # 15 messages and a ping each
    assert account.reconnects == 3
    assert account.retries == 0 or account.unknown == 0
    assert any("its message ids are used up for 247 s" in text for text in errors)
    used.clear()
    account, errors, peer = _against(behave, block(60), confirmable=False,
                                     seen=lambda p: len(p.requests) == 60)
    assert account.acknowledged == 60
    assert len(set(used)) == 60
    assert any("used up for 145 s" in text for text in errors)


@settings(max_examples=5)
@given(st.integers(0, 2**64), st.lists(st.floats(0, 200), min_size=30, max_size=40))
def test_no_message_id_is_given_twice_within_its_lifetime(first, steps):
    numbers, now_s, last = Numbers(first), 0.0, {}
    numbers_taken = 0
    for step in steps:
        now_s += step
        for _ in range(2500):
            number = numbers.take(now_s)
            if number is None:
                assert numbers_taken >= 65_536
                break
            assert 0 <= number < 65_536
            assert now_s - last.get(number, -1e9) >= 247.0
            last[number] = now_s
            numbers_taken += 1


@pytest.mark.parametrize("confirmable", [True, False])
def test_no_more_leave_in_a_second_than_the_rate(confirmable):
    async def work():
        loop, times = asyncio.get_running_loop(), []

        def behave(peer, message, addr):
            times.append(loop.time())
            peer.answer(message, addr)

        async with (
            ScriptedPeer(behave) as peer,
            pumping(peer.url, rate=200, confirmable=confirmable) as pump,
        ):
            await pump.offer(0, block(150, devices=150))
            await _drained(pump)
            await until(lambda: len(times) == 150)
        return times

    times = asyncio.run(work())
    assert times[-1] - times[0] >= 140 / 200 - 0.01


@pytest.mark.parametrize("window", [1, 3])
def test_never_more_than_the_window_is_unanswered_and_of_a_device_one(window):
    async def work():
        open_now, most, devices = {}, [0], [0]

        def answer(peer, message, addr):
            del open_now[message.token]
            peer.answer(message, addr)

        def behave(peer, message, addr):
            open_now[message.token] = path_of(message)
            most[0] = max(most[0], len(open_now))
            devices[0] = max(devices[0], *Counter(open_now.values()).values())
            asyncio.get_running_loop().call_later(0.003, answer, peer, message, addr)

        async with ScriptedPeer(behave) as peer, pumping(peer.url, window=window) as pump:
            await pump.offer(0, block(100, devices=2))
            await pump.offer(0, block(100, first=100))
            await _drained(pump)
            assert pump.snapshot().acknowledged == 200
        return most[0], devices[0]

    assert asyncio.run(work()) == (window, 1)


# -- addresses where no server is -----------------------------------------------------------------


async def _to(url, **options):
    async with pumping(url, **options):
        pass


@pytest.mark.parametrize("confirmable", [True, False])
def test_nobody_there_is_one_clear_line(confirmable):
    port = udp_port()
    with pytest.raises(ConnectError, match=rf"127\.0\.0\.1:{port}: nothing listens there"):
        asyncio.run(_to(f"coap://127.0.0.1:{port}", confirmable=confirmable))
    with pytest.raises(ConnectError, match="host name is unknown"):
        asyncio.run(_to("coap://no-such-host.invalid", confirmable=confirmable))


@pytest.mark.parametrize("confirmable", [True, False])
def test_a_peer_that_is_silent_fails_in_time(monkeypatch, confirmable):
    monkeypatch.setattr("iotsim.publishers.coap_link.PING_S", 0.4)
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"coap://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectError, match=r"no answer to a CoAP ping in 0\.4 s"):
            asyncio.run(_to(url, confirmable=confirmable))


@pytest.mark.parametrize(("says", "text"), [
    (lambda data: b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak CoAP"),
    (lambda data: b"?", "does not speak CoAP"),
    (lambda data: data, "sends our own words back"),
])
def test_a_peer_that_speaks_something_else_is_one_clear_line(says, text):
    class Peer(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, addr):
            self.transport.sendto(says(data), addr)

    async def work():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Peer, local_addr=("127.0.0.1", 0))
        try:
            await _to(f"coap://127.0.0.1:{transport.get_extra_info('sockname')[1]}")
        finally:
            transport.abort()
            await asyncio.sleep(0)

    with pytest.raises(ConnectError, match=text) as caught:
        asyncio.run(work())
    assert "\n" not in str(caught.value)


def test_options_are_checked_and_listed():
    with pytest.raises(UnknownName, match=r"Known: ack_timeout_s, .*confirmable, endpoints, key, "):
        build("coap://h", qos=1)
    for name, value in (("method", "GET"), ("confirmable", 1), ("window", 0), ("endpoints", 0),
                        ("ack_timeout_s", 0), ("max_retransmit", -1), ("rate", 0),
                        ("ack_timeout_s", float("nan")), ("stamp", True)):
        with pytest.raises(BadValue, match=f"{name}="):
            build("coap://h", **{name: value})
    for url in ("coap://", "coap://h:0", "coap://ann:marker@h", f"coap://h/{'x' * 256}",
                "coap://h/a/../b", "coap://h/%2e%2e"):
        with pytest.raises(BadValue, match="url=") as caught:
            build(url)
        assert "marker" not in str(caught.value)
    publisher = build("coap://[::1]/v1?key=marker")
    assert "marker" not in repr(publisher) + publisher.url
    assert publisher.url == "coap://[::1]:5683/v1"
    assert [publisher.lanes(n) for n in (1, 1000, 1001, 10**6)] == [1, 1, 2, 64]
    assert build("coap://h", endpoints=3).lanes(10**6) == 3


def test_the_query_of_the_url_goes_with_every_request():
    def behave(peer, message, addr):
        assert message.opt.uri_query == ("key=a b", "x")
        assert message.opt.uri_path[0] == "v1"
        peer.answer(message, addr)

    async def work():
        async with ScriptedPeer(behave) as peer, pumping(f"{peer.url}/v1?key=a%20b&x") as pump:
            await pump.offer(0, block(10))
            await _drained(pump)
            return pump.snapshot().acknowledged, len(peer.requests)

    assert asyncio.run(work()) == (10, 10)


# -- the codec, against aiocoap's -----------------------------------------------------------------


@given(st.lists(st.binary(max_size=255), max_size=6), st.lists(st.binary(max_size=255), max_size=3),
       st.binary(max_size=50), st.integers(0, 65_535), st.binary(min_size=1, max_size=8))
def test_aiocoap_reads_what_we_write(path, query, payload, number, token):
    data = codec.head(codec.CON, 2, number, token) + codec.request_options(path, query)
    data += codec.PAYLOAD_FOLLOWS + payload if payload else b""
    if _texts(path, query):  # aiocoap reads no others
        seen = Message.decode(data)
        assert (seen.mtype, seen.code, seen.mid) == (0, Code.POST, number)
        assert seen.token == token
        assert [part.encode() for part in seen.opt.uri_path] == path
        assert [part.encode() for part in seen.opt.uri_query] == query
        assert seen.opt.content_format == 50
        assert seen.payload == payload
    assert codec.read(data).options == tuple(
        [(11, part) for part in path] + [(12, b"\x32")] + [(15, part) for part in query]
    )


def _texts(path, query):
    try:
        return all(part.decode() is not None for part in (*path, *query))
    except UnicodeDecodeError:
        return False


@given(st.sampled_from([0, 1, 2]), st.sampled_from(["2.04", "4.04", "5.03"]),
       st.integers(0, 65_535), st.binary(max_size=8), st.integers(0, 2**32 - 1) | st.none(),
       st.binary(max_size=300))
def test_we_read_what_aiocoap_writes(kind, code, number, token, max_age, payload):
    upper, lower = code.split(".")
    whole = Code(int(upper) << 5 | int(lower))
    message = Message(code=whole, _mtype=kind, _mid=number, _token=token, payload=payload)
    message.opt.max_age = max_age
    message.opt.location_path = ("a" * 300, "b")
    seen = codec.read(message.encode())
    assert (seen.kind, seen.code, seen.number, seen.token) == (kind, whole, number, token)
    assert seen.max_age_s == max_age


@given(st.binary(max_size=60))
def test_whatever_arrives_is_read_or_refused(data):
    try:
        seen = codec.read(data)
    except codec.NotCoapError:
        return
    assert 0 <= seen.number < 65_536
    assert len(seen.token) <= 8


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """The library logs nothing of its own."""
    yield
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and
                r.name.startswith("asyncio")], caplog.records
