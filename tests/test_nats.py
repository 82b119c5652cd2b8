"""NATS core as a server sees it: nats-server where it can, a scripted peer where it must."""

import asyncio
import base64
import json
import socket
import time

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

import iotsim
from iotsim.errors import BadValue, ConnectError, UnknownName
from iotsim.publishers.base import build
from iotsim.publishers.nats_frames import Framer, why_not
from iotsim.publishers.nats_session import DENIED
from iotsim.publishers.nats_wire import Wire
from tests.publishing import block, in_order_per_device, one, pumping
from tests.servers import nats as servers
from tests.servers.certificates import Certificates

nats_server = servers.nats_server  # the fixture
pytestmark = pytest.mark.broker
SPLIT = "a '.' in a part of the topic: it would be two parts of the subject"
ODD = "blank, wildcard, control character or lone surrogate in the topic"


async def drained(pump, seconds=45):
    assert await pump.drain(seconds), (pump.snapshot(), pump.errors)


def publish(url, *blocks, tap=None, expect=None, **options):
    """The account and the notices of publishing these."""

    async def work():
        async with pumping(url, **options) as pump:
            for messages in blocks:
                await pump.offer(0, messages)
            await drained(pump)
            if tap is not None:
                assert await tap.received(expect, 45), (tap, pump.snapshot())
        return pump.snapshot(), pump.errors

    return asyncio.run(work())


# -- delivery -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fence", "stamp"), [(True, False), (True, True), (False, False)])
def test_every_message_arrives_once_and_in_order(nats_server, fence, stamp):
    server = nats_server()
    sent = [block(500, first=n * 500, devices=40) for n in range(6)]
    with iotsim.tap(server.url) as tap:
        account, errors = publish(server.url, *sent, tap=tap, expect=3000, fence=fence, stamp=stamp)
        got, frame = tap.messages(), tap.frame()
        assert tap.ok, tap.health
    assert account.acknowledged == account.offered == 3000
    assert errors == ()
    assert [p for _, p, _ in got] == [p for m in sent for p in m.payloads]
    assert [i for _, _, i in got] == [i for m in sent for i in m.ids]
    assert got[0][0] == "devices.d-0.telemetry"
    assert frame["sent"].notna().all() == stamp
    if stamp:
        assert (frame["sent"] <= frame["time"]).all()


@pytest.mark.parametrize("stamp", [False, True])
def test_ids_can_be_left_out(nats_server, stamp):
    server = nats_server()
    with iotsim.tap(server.url) as tap:
        publish(server.url, block(200), tap=tap, expect=200, ids=False, stamp=stamp)
        assert {i for _, _, i in tap.messages()} == {""}
        assert [p for _, p, _ in tap.messages()] == list(block(200).payloads)


def test_a_fleet_publishes_to_nats_what_it_generates(nats_server):
    server = nats_server()
    fleet = iotsim.Fleet("plant", seed=3).add("temperature_sensor", count=50, every="1s")

    async def run(tap):
        result = await fleet.publish_to(server.url).run("5s", speed=10)
        assert await tap.received(250, 45)
        return result

    with iotsim.tap(server.url) as tap:
        result = asyncio.run(run(tap))
        assert result.digest == tap.digest()


def test_letters_of_any_alphabet_and_templates_with_dots_arrive(nats_server):
    server = nats_server()
    topics = ["geräte/gerät-1/messung", "devices.d-1.telemetry", "one", "a/b-c_d/$x"]
    with iotsim.tap(server.url, topic=">") as tap:
        publish(server.url, *(one(topic, b"x", "run/ä/0/0") for topic in topics),
                tap=tap, expect=4)
        got = tap.messages()
    assert [t for t, _, _ in got] == [topic.replace("/", ".") for topic in topics]
    assert {i for _, _, i in got} == {"run/ä/0/0"}


# -- what is refused ------------------------------------------------------------------------------

POISON = [
    ("devices/a b/telemetry", ODD),
    ("devices/*/telemetry", ODD),
    ("devices/>", ODD),
    ("devices/a\r\nPUB evil 1\r\nx/telemetry", ODD),
    ("devices/a\n/telemetry", ODD),
    ("devices/a\x00b/telemetry", ODD),
    ("devices/a\u2028b/telemetry", ODD),
    ("devices/a\ud800b/telemetry", ODD),
    ("devices/a.b/telemetry", SPLIT),
    ("devices//telemetry", "empty part in the topic"),
    ("/devices", "empty part in the topic"),
    ("devices/", "empty part in the topic"),
    ("", "empty topic"),
    ("devices/" + "x" * 5000, "topic over 2,048 bytes"),
]


def test_poison_is_refused_here_and_stops_nobody_else(nats_server):
    server = nats_server(more="max_payload: 3000")
    blocks = []
    for n, (topic, _) in enumerate(POISON):
        blocks += [block(50, first=n * 50), one(topic)]
    blocks += [
        one("devices/big/telemetry", b"x" * 3000),
        one("devices/d/telemetry", b"x", "run/a\r\nPUB evil 1\r\nx/0/0"),
        one("devices.a.b.telemetry", b"x", "run/a.b/0/0"),
    ]
    with iotsim.tap(server.url, topic=">") as tap:
        account, _ = publish(server.url, *blocks, tap=tap, expect=50 * len(POISON))
        got = tap.messages()
    assert account.acknowledged == 50 * len(POISON) == len(got)
    assert account.refused == len(POISON) + 3
    wanted = {}
    for reason in [*(r for _, r in POISON), SPLIT, "larger than the server's max_payload",
                   "message id cannot be a header"]:
        wanted[reason] = wanted.get(reason, 0) + 1
    assert dict(account.refusals) == wanted
    assert account.reconnects == 0
    assert "evil" not in {t for t, _, _ in got}
    assert in_order_per_device(ident for _, _, ident in got)


def test_a_payload_of_just_the_size_that_the_server_takes_arrives(nats_server):
    server = nats_server(more="max_payload: 3000")
    head = len(b"NATS/1.0\r\nNats-Msg-Id: run/odd/0/0\r\n\r\n")
    fits, over = b"x" * (3000 - head), b"x" * (3001 - head)
    with iotsim.tap(server.url, topic=">") as tap:
        account, _ = publish(server.url, one("a", fits), one("b", over), tap=tap, expect=1)
        assert [t for t, _, _ in tap.messages()] == ["a"]
    assert (account.acknowledged, account.refused, account.reconnects) == (1, 1, 0)


def permitted(*subjects, deny=()):
    rules = {"publish": {"allow": list(subjects), "deny": list(deny)}}
    rules["subscribe"] = ">"
    user = {"user": "ann", "password": "s3cret-marker", "permissions": rules}
    tap = {"user": "tap", "password": "tap"}
    return f"authorization: {json.dumps({'users': [user, tap]})}"


def test_what_the_server_denies_is_refused_and_the_rest_is_acknowledged(nats_server):
    server = nats_server(more=permitted(">", deny=["devices.d-3.>"]))
    url = server.url.replace("//", "//ann:s3cret-marker@")
    blocks = [block(1000, first=n * 1000) for n in range(4)]
    with iotsim.tap(server.url, username="tap", password="tap") as tap:
        account, errors = publish(url, *blocks, tap=tap, expect=3600)
        assert tap.count == 3600
    assert account.acknowledged == 3600
    assert dict(account.refusals) == {DENIED: 400}
    assert account.reconnects == 0
    assert DENIED in errors[0]
    assert "marker" not in str(errors)


def test_without_a_fence_what_is_denied_is_at_least_said(nats_server):
    server = nats_server(more=permitted(">", deny=["devices.d-3.>"]))
    who = {"username": "ann", "password": "s3cret-marker"}

    async def work():
        async with pumping(server.url, fence=False, **who) as pump:
            await pump.offer(0, block(100))
            async with asyncio.timeout(45):
                while not pump.errors:
                    await asyncio.sleep(0.01)
        return pump.snapshot(), pump.errors

    account, errors = asyncio.run(work())
    assert account.acknowledged == 100
    assert errors[0].startswith(f"{DENIED}: 'devices.d-3.telemetry'")


def test_a_permission_that_is_revoked_while_it_runs_is_seen(nats_server):
    server = nats_server(more=permitted(">"))

    async def work():
        async with pumping(server.url, username="ann", password="s3cret-marker") as pump:
            await pump.offer(0, block(100))
            await drained(pump)
            await asyncio.to_thread(server.configure, permitted(">", deny=["devices.d-1.>"]))
            await pump.offer(0, block(100, first=100))
            await drained(pump)
            await asyncio.to_thread(server.configure, permitted(">"))
            await pump.offer(0, block(100, first=200))
            await drained(pump)
        return pump.snapshot()

    account = asyncio.run(work())
    assert dict(account.refusals) == {DENIED: 10}
    assert account.acknowledged == 290


# -- who we are -----------------------------------------------------------------------------------


def test_users_and_tokens_open_the_door_and_wrong_ones_are_one_line(nats_server, monkeypatch):
    users = nats_server(more="authorization { user: ann, password: 's3cret/marker' }")
    token = nats_server(more="authorization { token: 't0ken-marker' }")
    right = {"username": "ann", "password": "s3cret/marker"}
    assert publish(users.url, block(5), **right)[0].acknowledged == 5
    assert publish(users.url.replace("//", "//ann:s3cret%2Fmarker@"), block(5))[0].acknowledged == 5
    assert publish(token.url.replace("//", "//t0ken-marker@"), block(5))[0].acknowledged == 5
    credentials = iotsim.Credentials(token="t0ken-marker")
    assert publish(token.url, block(5), credentials=credentials)[0].acknowledged == 5
    for server, wrong in ((users, {"username": "ann", "password": "wrong-marker"}), (users, {}),
                          (token, {"token": "wrong-marker"})):
        for action in (lambda s=server, w=wrong: publish(s.url, block(1), **w),
                       lambda s=server, w=wrong: iotsim.tap(s.url, **w)):
            with pytest.raises(ConnectError, match="server refused us: authorization viol") as got:
                action()
            assert "\n" not in str(got.value)
            assert "marker" not in str(got.value) + repr(got.value)
    monkeypatch.setenv("IOTSIM_NATS_TOKEN", "t0ken-marker")
    assert publish(token.url, block(5))[0].acknowledged == 5
    with iotsim.tap(token.url) as tap:
        assert tap.ok
    shown = repr(build(users.url, **right)) + repr(build(token.url, token="t0ken-marker"))
    assert "marker" not in shown


def seed_of(kind):
    """A new key pair: the text of its seed and its public key."""
    import os

    prefix = {"operator": nkeys.PREFIX_BYTE_OPERATOR, "account": nkeys.PREFIX_BYTE_ACCOUNT,
              "user": nkeys.PREFIX_BYTE_USER}[kind]
    raw = bytes([nkeys.PREFIX_BYTE_SEED | prefix >> 5, (prefix & 31) << 3]) + os.urandom(32)
    sealed = raw + nkeys.crc16_checksum(bytearray(raw))
    seed = base64.b32encode(sealed).rstrip(b"=")
    pair = nkeys.from_seed(bytearray(seed))
    return seed.decode(), bytes(pair.public_key).decode(), pair


def signed(pair, issuer, subject, name, claims):
    """A JWT as NATS has them."""

    def packed(value):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(body).rstrip(b"=").decode()

    body = {"jti": name, "iat": int(time.time()), "iss": issuer, "sub": subject, "name": name,
            "nats": {**claims, "version": 2}}
    unsigned = f"{packed({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{packed(body)}"
    return f"{unsigned}.{packed(pair.sign(unsigned.encode()))}"


def creds_file(path, token, seed):
    path.write_text(f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
                    f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n")
    return str(path)


def test_a_credentials_file_signs_the_nonce_of_a_server_that_trusts_its_operator(
    nats_server, tmp_path
):
    _, operator_id, operator = seed_of("operator")
    _, account_id, account = seed_of("account")
    user_seed, user_id, _ = seed_of("user")
    trust = signed(operator, operator_id, operator_id, "operator", {"type": "operator"})
    limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
              "wildcards": True, "conn": -1, "leaf": -1}
    home = signed(operator, operator_id, account_id, "home",
                  {"type": "account", "limits": limits})
    user = signed(account, account_id, user_id, "user",
                  {"type": "user", "subs": -1, "data": -1, "payload": -1})
    server = nats_server(more=f"operator: {trust}\nresolver: MEMORY\n"
                              f"resolver_preload: {{ {account_id}: {home} }}")
    creds = creds_file(tmp_path / "user.creds", user, user_seed)
    with iotsim.tap(server.url, creds=creds) as tap:
        account, _ = publish(server.url, block(5), creds=creds, tap=tap, expect=5)
    assert account.acknowledged == 5
    _, _, stranger = seed_of("account")
    forged = signed(stranger, account_id, user_id, "user", {"type": "user"})
    wrong = creds_file(tmp_path / "wrong.creds", forged, user_seed)
    with pytest.raises(ConnectError, match="authorization violation") as got:
        publish(server.url, block(1), creds=wrong)
    assert user_seed not in str(got.value)


def test_a_seed_alone_is_a_key_of_its_own(nats_server, tmp_path):
    seed, public, _ = seed_of("user")
    server = nats_server(more=f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    path = tmp_path / "user.nk"
    path.write_text(seed + "\n")
    with iotsim.tap(server.url, creds=str(path)) as tap:
        assert publish(server.url, block(5), creds=str(path), tap=tap, expect=5)[0].refused == 0


@pytest.mark.parametrize("body", [None, "", "nothing", "SUAAA", "S" + "A" * 57])
def test_a_credentials_file_that_cannot_be_used_is_one_line_without_its_content(tmp_path, body):
    path = tmp_path / "x.creds"
    if body is not None:
        path.write_text(body)

    def use():
        build("nats://127.0.0.1:9", creds=str(path))
        publish("nats://127.0.0.1:9", block(1), creds=str(path))

    with pytest.raises((BadValue, ConnectError)) as got:
        use()
    assert "\n" not in str(got.value)
    assert not body or body not in str(got.value).replace("nothing listens", "")


# -- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("tls"))


def test_tls_begins_after_the_greeting_and_is_verified(nats_server, files):
    server = nats_server(tls=(files.server.cert, files.server.key))
    old = nats_server(tls=(files.elsewhere.cert, files.elsewhere.key))
    plain = nats_server()
    with iotsim.tap(server.url, ca=files.ca) as tap:
        account, _ = publish(server.url, block(500), ca=files.ca, tap=tap, expect=500)
    assert account.acknowledged == 500
    strict = iotsim.TLS(ca=files.ca, minimum="1.3")
    assert publish(server.url, block(5), tls=strict)[0].acknowledged == 5
    assert publish(old.url, block(5), verify=False)[0].acknowledged == 5
    for url, options, why in (
        (server.url, {}, "certificate is not accepted"),
        (server.url, {"ca": files.stranger.ca}, "certificate is not accepted"),
        (old.url, {"ca": files.ca}, "certificate is not accepted: .*(mismatch|not valid for)"),
        (server.url.replace("+tls", ""), {}, "the server wants TLS. Use nats.tls://"),
        (plain.url.replace("nats:", "nats+tls:"), {"verify": False}, "offers no TLS. Use nats://"),
    ):
        with pytest.raises(ConnectError, match=why) as got:
            publish(url, block(1), **options)
        assert "\n" not in str(got.value)
    with pytest.raises(ConnectError, match="certificate"):
        iotsim.tap(server.url)


def test_a_server_may_ask_who_we_are_with_tls_1_3(nats_server, files):
    server = nats_server(tls=(files.server.cert, files.server.key), ca=files.ca)
    mine, other = files.client("pump-1"), files.stranger.client("pump-1")
    me = {"ca": files.ca, "cert": mine.cert, "key": mine.key}
    with iotsim.tap(server.url, **me) as tap:
        account, _ = publish(server.url, block(50), tap=tap, expect=50, **me)
    assert account.acknowledged == 50
    strict = iotsim.TLS(minimum="1.3", **me)
    assert publish(server.url, block(5), tls=strict)[0].acknowledged == 5
    for options in ({"ca": files.ca}, {"ca": files.ca, "cert": other.cert, "key": other.key}):
        with pytest.raises(ConnectError, match=r"TLS failed|ended during the handshake|reset"):
            publish(server.url, block(1), **options)


def test_a_server_that_begins_with_tls_is_met_with_tls_first(files):
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.server.cert, files.server.key)

    async def work(**options):
        async with Scripted(context) as peer:
            url = peer.url.replace("nats://127.0.0.1", "nats+tls://localhost")
            async with pumping(url, ca=files.ca, **options) as pump:
                await pump.offer(0, block(20))
                await drained(pump)
            return pump.snapshot().acknowledged, peer.received.count(b"HPUB")

    assert asyncio.run(work(tls_first=True)) == (20, 20)


# -- who does not answer --------------------------------------------------------------------------


class Scripted:
    """A peer that speaks NATS as it is told: `answer(peer, writer, line)` for each line."""

    def __init__(self, ssl=None, greeting=b'INFO {"headers":true,"max_payload":1048576}\r\n',
                 answer=None):
        self.ssl, self.greeting, self.received = ssl, greeting, b""
        self.answer = answer or self.pong
        self.connections = 0

    @staticmethod
    def pong(peer, writer, line):
        if line == b"PING":
            writer.write(b"PONG\r\n")

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            writer.write(self.greeting)
            while line := await reader.readline():
                self.received += line
                self.answer(self, writer, line.rstrip())
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("greeting", "why"),
    [
        (b"", "accepts the connection but does not answer. Is it a NATS server"),
        (b"\x20\x02\x00\x00", "does not speak NATS: it sent b' "),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak NATS: it sent b'HTTP/1.1"),
        (b"220 mail\r\n", "does not speak NATS"),
        (b"INFO {broken\r\n", "does not speak NATS"),
        (b"INFO []\r\n", "does not speak NATS"),
        (b"-ERR 'maximum connections exceeded'\r\n", "refused us: maximum connections exceeded"),
        (b'INFO {"headers":true}\r\n-ERR \'maximum connections exceeded\'\r\n',
         "refused us: maximum connections exceeded"),
        (b'INFO {"headers":false}\r\n', "takes no headers. Use ids=False"),
    ],
)
def test_whoever_does_not_speak_nats_is_one_clear_line(greeting, why):
    async def work():
        silent = Scripted(greeting=greeting, answer=lambda *_: None)
        async with silent as peer, pumping(peer.url):
            pass

    begun = time.monotonic()
    with pytest.raises(ConnectError, match=why) as got:
        asyncio.run(work())
    assert "\n" not in str(got.value)
    assert time.monotonic() - begun < 10


def test_nobody_and_a_server_that_greets_and_then_is_silent():
    async def silent():
        async with Scripted(answer=lambda *_: None) as peer, pumping(peer.url):
            pass

    with socket.socket() as taken:  # bound but not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectError, match="nothing listens there"):
            publish(f"nats://127.0.0.1:{taken.getsockname()[1]}", block(1))
    with pytest.raises(ConnectError, match="does not answer"):
        asyncio.run(silent())
    with pytest.raises(ConnectError, match="host name is unknown"):
        publish("nats://no-such-host.invalid", block(1))


def test_a_server_with_no_room_for_another_says_so(nats_server):
    server = nats_server(more="max_connections: 1")
    with (
        iotsim.tap(server.url),
        pytest.raises(ConnectError, match=r"maximum connections exceeded\. Use fewer conn"),
    ):
        publish(server.url, block(1))


def test_a_server_may_say_more_of_itself_at_any_time():
    def answer(peer, writer, line):
        writer.write(b'INFO {"max_payload":500}\r\nPING\r\n+OK\r\n')
        if line == b"PING":
            writer.write(b"PONG\r\n")

    async def work():
        async with Scripted(answer=answer) as peer, pumping(peer.url) as pump:
            await pump.offer(0, block(10))
            await drained(pump)
            await pump.offer(0, one("big", b"x" * 500))
            await drained(pump)
            return pump.snapshot(), peer.received

    account, received = asyncio.run(work())
    assert (account.acknowledged, account.refused) == (10, 1)
    assert b"PONG" in received


def test_an_mqtt_broker_is_no_nats_server(mosquitto):
    with pytest.raises(ConnectError, match=r"does not answer|does not speak|ended during"):
        publish(mosquitto().url.replace("mqtt", "nats"), block(1))


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"qos": 1}, UnknownName, "no nats option called 'qos'.*fence.*keepalive"),
        ({"stream": "X"}, UnknownName, "no nats option called 'stream'"),
        ({"keepalive": 1}, BadValue, "keepalive=1"),
        ({"window": 0}, BadValue, "window=0"),
        ({"connections": 0}, BadValue, "connections=0"),
        ({"ids": "yes"}, BadValue, "ids='yes'"),
        ({"fence": 1}, BadValue, "fence=1"),
        ({"client_name": "a\nb"}, BadValue, "client_name="),
        ({"tls_first": True}, BadValue, "needs TLS"),
        ({"ca": "x.pem"}, BadValue, r"needs TLS. Use nats\+tls://"),
        ({"token": 3}, BadValue, "token="),
        ({"username": "a", "credentials": iotsim.Credentials("b")}, BadValue, "beside credentials"),
    ],
)
def test_a_wrong_option_is_named_with_what_may_be(options, error, why):
    with pytest.raises(error, match=why) as got:
        build("nats://localhost", **options)
    assert "\n" not in str(got.value)


def test_devices_share_few_connections():
    publisher = build("nats://localhost")
    assert publisher.url == "nats://localhost:4222"
    assert [publisher.lanes(n) for n in (1, 250_000, 250_001, 10**7)] == [1, 1, 2, 4]
    assert build("nats://localhost", connections=3).lanes(10**6) == 3
    assert build("nats://localhost") == publisher != build("nats://localhost", ids=False)


# -- frames and framing ---------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("ab/.- *>\r\näü\x00\ud800_$"), max_size=12)


@given(st.lists(st.tuples(TEXTS, st.binary(max_size=30), TEXTS), min_size=1, max_size=6),
       st.booleans(), st.booleans())
def test_whatever_the_names_are_nothing_but_publications_is_written(rows, ids, stamp):
    items = [(topic, payload, f"run/{ident}/0/0", 0.0) for topic, payload, ident in rows]
    batch = Framer({}, ids=ids, stamp=stamp).frames(items)
    refused = {i for i, _ in batch.refused}
    data, kept = batch.data, [item for i, item in enumerate(items) if i not in refused]
    for topic, payload, ident, _ in kept:
        line, _, data = data.partition(b"\r\n")
        words = line.split(b" ")
        assert words[1].decode() == topic.replace("/", ".")
        assert not set(words[1].decode()) & set("*> \r\n")
        size = int(words[-1])
        body, data = data[:size], data[size + 2 :]
        if words[0] == b"HPUB":
            head, body = body[: int(words[2])], body[int(words[2]) :]
            assert head.startswith(b"NATS/1.0\r\n")
            assert head.endswith(b"\r\n\r\n")
            assert head.count(b"\r\n") == 2 + ids + stamp
            assert (ident.encode() in head) == ids
        assert body == payload
    assert data == b""
    assert all(bool(why_not(topic, ident)) == (i in refused)
               for i, (topic, _, ident, _) in enumerate(items))


class Ear:
    """An owner of a wire that notes what it is told."""

    def __init__(self):
        self.heard = []

    def __getattr__(self, name):
        def note(*args):
            if name != "read":
                self.heard.append((name, *args))

        return note


SAID = [
    (b'INFO {"a":1}\r\n', ("informed", {"a": 1})),
    (b"PONG\r\n", ("ponged",)),
    (b'MSG in.12 1 29\r\n{"stream":"S", "seq":1234567}\r\n', ("settled", [12], 0)),
    (b'MSG in.16 1  22\r\n{"stream":"S","seq":1}\r\n', ("settled", [16], 0)),
    (b'MSG in.13 1 43\r\n{"stream":"S","seq":2,   "duplicate": true}\r\n', ("settled", [13], 1)),
    (b"HMSG in.14 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
     ("answered", "in.14", b"NATS/1.0 503\r\n\r\n", b"")),
    (b'MSG in.15 1 22\r\n{"error":{"code":503}}\r\n',
     ("answered", "in.15", b"", b'{"error":{"code":503}}')),
    (b"-ERR 'Stale Connection'\r\n", ("complained", "Stale Connection")),
    (b"+OK\r\n", None),
]


@given(st.lists(st.sampled_from(SAID[1:]), max_size=8), st.lists(st.integers(1, 20), max_size=30))
def test_however_the_bytes_are_cut_the_same_is_heard(said, cuts):
    said = [SAID[0], *said]
    data = b"".join(part for part, _ in said)
    ear = Ear()
    wire = Wire(ear, "in.")
    for cut in [*cuts, len(data)]:
        part, data = data[:cut], data[cut:]
        if part:
            wire.data_received(part)
    merged = []
    for heard in ear.heard:
        if heard[0] == "settled" and merged and merged[-1][0] == "settled":
            heard = ("settled", merged[-1][1] + heard[1], merged.pop()[2] + heard[2])
        merged.append(heard)
    wanted = []
    for _, heard in said:
        if heard is not None and heard[0] == "settled" and wanted and wanted[-1][0] == "settled":
            heard = ("settled", wanted[-1][1] + heard[1], wanted.pop()[2] + heard[2])
        if heard is not None:
            wanted.append(heard)
    assert merged == wanted
