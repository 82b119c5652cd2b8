"""What every door says at a wrong address: one clear line, soon, and nothing of who we are."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
import urllib.request
from pathlib import Path

import pytest

import iotsim
from iotsim import Fleet, taps
from iotsim.errors import BadValue, ConnectError, IotsimError
from iotsim.transport.probing import judged
from tests.addresses_child import INFO, SECRET, cells
from tests.fleets import fleet
from tests.servers.certificates import Certificates
from tests.servers.nats import nats_server  # noqa: F401

ROOT = Path(__file__).parent.parent
CELLS = list(cells())


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What was said at each cell of the table, and all that was printed."""
    path = tmp_path_factory.mktemp("cells") / "cells.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.addresses_child", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {tuple(one["cell"]): one for one in json.loads(path.read_text())}
    return found, done.stdout + done.stderr


EXPECTED = {
    "closed": "nothing listens there (connection refused)",
    "silent": "answer",
    "banner": "does not speak",
    "unknown": "the host name is unknown",
    "plain": "TLS",
    "taken": "another program has this address already in use",
    "stranger": "refused us",
}


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_a_wrong_address_is_one_clear_line(told, cell):
    one = told[0][cell]
    door, scheme, wrong = cell
    text = one["text"]
    assert one["kind"] == "ConnectError", one
    assert text.startswith(f"cannot {'publish' if door == 'publish' else 'listen'} to {scheme}://")
    if cell == ("listen", "coap", "banner"):  # aiocoap does not hear what is no CoAP
        wrong = "silent"
    if not (scheme == "mqtts" and door == "publish"):  # a broker without TLS only hangs up
        assert EXPECTED[wrong] in text
    assert text.endswith((".", "?"))
    assert "\n" not in text
    assert len(text) < 250
    assert "Error" not in text
    assert one["took_s"] < 15
    assert not one["secret"], one


def test_nothing_is_printed_at_a_wrong_address(told):
    assert told[1] == ""


# -- TLS that is asked for is had, or nothing is said ---------------------------------------------


class Sniffer(asyncio.Protocol):
    """A NATS server without TLS: keeps all that it is told."""

    heard = b""

    def connection_made(self, transport):
        transport.write(INFO)

    def data_received(self, data):
        type(self).heard += data


@pytest.mark.parametrize("scheme", ["nats+tls", "nats+jetstream+tls"])
def test_a_tap_that_wants_tls_says_nothing_without_it(scheme):
    async def main():
        Sniffer.heard = b""
        server = await asyncio.get_running_loop().create_server(Sniffer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectError, match="the server offers no TLS"):
            await asyncio.to_thread(iotsim.tap, f"{scheme}://ann:{SECRET}@127.0.0.1:{port}")
        server.close()
        return Sniffer.heard

    assert asyncio.run(main()) == b""


def test_a_listener_that_wants_tls_says_nothing_without_it():
    async def main():
        Sniffer.heard = b""
        server = await asyncio.get_running_loop().create_server(Sniffer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        run = fleet(1).listen_to(f"nats+tls://ann:{SECRET}@127.0.0.1:{port}").start()
        with pytest.raises(ConnectError, match="the server offers no TLS"):
            await run.ready()
        await run.stop()
        server.close()
        return Sniffer.heard

    assert asyncio.run(main()) == b""


def test_a_tap_takes_tls_where_a_server_only_offers_it(nats_server, tmp_path):  # noqa: F811
    files = Certificates(tmp_path)
    server = nats_server(tls=(files.server.cert, files.server.key), more="allow_non_tls: true")
    with iotsim.tap(server.url, ca=files.ca) as tap:
        assert tap.ok
    with pytest.raises(ConnectError, match="certificate is not accepted"):
        iotsim.tap(server.url)


# -- no secret in what a traceback shows ----------------------------------------------------------


def knocked(call):
    """What a traceback with its local variables shows of our frames, and the text."""
    with pytest.raises(IotsimError) as caught:
        call()
    shown = "".join(traceback.TracebackException.from_exception(
        caught.value, capture_locals=True).format())
    frames = [part for part in shown.split('  File "') if "/iotsim/" in part.split('"')[0]]
    assert frames
    return "".join(frames), str(caught.value)


URL = f"ann:{SECRET}@127.0.0.1:1"


@pytest.mark.parametrize("call", [
    lambda: Fleet("f").publish_to(f"mqtt://{URL}", wrong=1),
    lambda: Fleet("f").publish_to(f"coap://{URL}"),
    lambda: Fleet("f").publish_to(f"nats://{URL}", window=-1, password=SECRET),
    lambda: Fleet("f").publish_to(f"nowhere://{URL}"),
    lambda: Fleet("f").listen_to(f"mqtt://{URL}", qos=7),
    lambda: Fleet("f").listen_to(f"coap://{URL}"),
    lambda: Fleet("f").listen_to(f"nats+jetstream://{URL}"),
    lambda: Fleet("f").listen_to(f"amqp://{URL}", topic="{nobody", password=SECRET),
    lambda: iotsim.tap(f"mqtt://{URL}", wrong=1),
    lambda: iotsim.tap(f"coap://{URL}"),
    lambda: iotsim.tap(f"https://{URL}"),
    lambda: iotsim.Tap(f"amqp://{URL}", password=SECRET, capacity=0),
    lambda: iotsim.tap("mqtt://127.0.0.1:1", username="ann", password=SECRET),
])
def test_no_secret_stands_in_the_local_variables_of_a_traceback(call):
    frames, text = knocked(call)
    assert SECRET not in frames
    assert SECRET not in text


def test_what_was_said_shows_no_options():
    made = Fleet("f").publish_to("mqtt://127.0.0.1:1", username="ann", password=SECRET)
    made = made.listen_to("mqtt://127.0.0.1:1", username="ann", password=SECRET)
    for one in (*made.outlets, *made.ears):
        assert SECRET not in repr(one.options)
        assert one.options["password"] == SECRET
    assert SECRET not in repr(made.ears[0].settings)


# -- what there is instead ------------------------------------------------------------------------


@pytest.mark.parametrize(("url", "says"), [
    ("nats+jetstream://h", "Use nats:// there"),
    ("nats+jetstream+tls://h", r"Use nats\+tls:// there"),
    ("http://h", "listen_to speaks: mqtt, mqtts, nats"),
    (f"x{SECRET}", "listen_to speaks"),
])
def test_devices_listen_by_what_commands_come_by(url, says):
    with pytest.raises(BadValue, match=says):
        Fleet("f").listen_to(url)


@pytest.mark.parametrize("scheme", ["https", "coaps"])
def test_a_receiving_tap_has_no_certificate(scheme):
    with pytest.raises(BadValue, match=f"Use {scheme[:-1]}:// for tap and run"):
        iotsim.tap(f"{scheme}://127.0.0.1:0")


@pytest.mark.parametrize(("protocol", "said", "text"), [
    ("MQTT", b"", ""), ("MQTT", b"\x20\x02\0\0", ""), ("AMQP", b"AMQP\0\0\x09\x01", ""),
    ("AMQP", b"\x01\0\0\0\0", ""), ("NATS", INFO, ""),
    ("MQTT", b"\x15\x03\x03\0\x02", "it speaks TLS, and this is the scheme of plain MQTT"),
    ("NATS", b"SSH-2.0-x", "it does not speak NATS: it sent b'SSH-2.0-x'"),
])
def test_first_words_tell_who_speaks(protocol, said, text):
    assert judged(protocol, said) == text


def test_a_logger_that_somebody_listens_to_still_hears_the_libraries():
    import iotsim.listening.amqp  # noqa: F401

    assert logging.getLogger("aiormq").propagate
    assert logging.getLogger("aiormq").level == logging.NOTSET


# -- a tap's late answer --------------------------------------------------------------------------


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(monkeypatch):
    def post(number):
        request = urllib.request.Request(
            f"{tap.url}/devices/a/telemetry", data=b"%d" % number, method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    monkeypatch.setattr(taps, "FETCH_RECORDS", 1)
    with iotsim.tap("http://127.0.0.1:0") as tap:
        post(0)
        post(1)
        assert tap._until(lambda: tap.count == 2, 45)
        monkeypatch.setattr(taps, "FETCH_S", 0.05)
        os.kill(tap._process.pid, signal.SIGSTOP)
        with pytest.raises(ConnectError, match="does not answer"):
            tap.messages()
        os.kill(tap._process.pid, signal.SIGCONT)
        monkeypatch.setattr(taps, "FETCH_S", 10)
        assert tap._until(lambda: bool(tap._answers), 10)  # the late one
        post(2)
        assert tap._until(lambda: tap.count == 3, 45)
        assert [payload for _, payload, _ in tap.messages()] == [b"0", b"1", b"2"]
