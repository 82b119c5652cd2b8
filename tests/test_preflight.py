"""A pre-flight says what will not fit, and what to do, before anything begins."""

import asyncio
import math
import re
import resource
import socket
import threading
import time
from dataclasses import dataclass

import pytest

from iotsim import Fleet, preflight, preflight_fleet, preflight_probe
from iotsim.errors import BadValue
from iotsim.outlets import outlet_of
from iotsim.preflight import Finding, port_finding, size_text
from iotsim.preflight_probe import Contact, Wish, burst, contacts
from iotsim.preflight_rates import MORE, rate_finding
from iotsim.publishers.base import build
from iotsim.registry import PUBLISHERS
from tests.live import meter, sensors
from tests.servers import coap, nats
from tests.servers.http import Endpoint, Reply

libcoap, nats_server = coap.libcoap, nats.nats_server  # fixtures


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Measured for a moment: what is said of it is the same."""
    monkeypatch.setattr(preflight_probe, "TRIPS_S", 0.1)
    monkeypatch.setattr(preflight_probe, "BURST_MESSAGES", 4000)


def named(flight):
    return {finding.name: finding for finding in flight.findings}


def test_a_small_fleet_fits_and_says_so_in_one_line():
    flight = sensors("small", 10).preflight("10m")
    assert flight.ok
    assert bool(flight)
    assert repr(flight) == f"<Preflight 'small': all {len(flight.findings)} fit>"
    assert {"own speed", "memory", "open files"} <= named(flight).keys()


def test_it_works_in_a_cell_while_a_loop_runs():
    async def main():
        return sensors("cell", 10).preflight("1m")

    assert asyncio.run(main()).ok


def test_a_broker_is_asked_for_its_window_and_nothing_is_left_or_published(mosquitto):
    broker = mosquitto(receive_maximum=20)
    fleet = sensors("asked", 100, every="1s").publish_to(broker.url, qos=1)
    found = named(fleet.preflight())[broker.url]
    assert found.ok, found
    assert "20 in flight and " in found.text
    assert found.text.endswith("its devices make 100/s")
    assert not [one for one in threading.enumerate() if one.name == "iotsim preflight"]


def test_a_window_that_is_too_small_says_how_many_connections_would_do():
    publisher = build("mqtt://127.0.0.1:1883", qos=1)
    found = rate_finding("x", publisher, "mqtt", Contact(20, 0.002), 1, 20_000.0, 200)
    assert found == Finding(
        "x", False, "at most 10,000/s by 20 in flight and 2 ms round trip; its devices make "
        "20,000/s. Use connections=3, or raise the broker's max_inflight_messages.")
    assert rate_finding("x", publisher, "mqtt", Contact(20, 0.002), 3, 20_000.0, 200).ok


def test_a_fleet_that_wants_more_than_its_window_is_not_ok(mosquitto):
    broker = mosquitto(receive_maximum=1)
    fleet = sensors("narrow", 5000, every="100ms").publish_to(broker.url, qos=1)
    found = named(fleet.preflight())[broker.url]
    assert not found.ok
    assert "its devices make 50,000/s. Use connections=" in found.text


def test_at_full_speed_the_fleet_waits_for_its_publishers(mosquitto):
    broker = mosquitto()
    found = named(sensors("max").publish_to(broker.url, qos=1).preflight("1d", speed="max"))
    assert found[broker.url].ok
    assert found[broker.url].text.endswith("the fleet waits for it")


@pytest.mark.parametrize("scheme", ["mqtt", "amqp", "nats", "nats+jetstream", "http"])
def test_an_address_where_nobody_listens_is_one_finding(scheme):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        flight = sensors("nobody", 2).publish_to(f"{scheme}://127.0.0.1:{port}").preflight()
    wrong = [finding for finding in flight.findings if not finding.ok]
    assert len(wrong) == 1
    assert f"127.0.0.1:{port}" in wrong[0].name
    assert "refused" in wrong[0].text
    assert repr(flight).startswith("<Preflight 'nobody': does not fit: ")


def test_a_silent_peer_is_a_finding_within_the_deadline(monkeypatch):
    monkeypatch.setattr(preflight_probe, "PROBE_S", 0.5)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        port = mute.getsockname()[1]
        began_s = time.monotonic()
        flight = sensors("mute", 2).publish_to(f"mqtt://127.0.0.1:{port}").preflight()
    assert not flight.ok
    assert "no answer in 0.5 s" in repr(flight)
    assert time.monotonic() - began_s < 20


def test_secrets_are_nowhere_in_it(mosquitto):
    broker = mosquitto(users={"ann": "right-one"})
    url = broker.url.replace("mqtt://", "mqtt://ann:swordfish@")
    flight = sensors("secret", 2).publish_to(url).preflight()
    assert not flight.ok
    assert "swordfish" not in repr(flight) + str(flight) + flight._repr_html_()


def test_sessions_of_their_own_are_counted_as_open_files(mosquitto, monkeypatch):
    broker = mosquitto()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    fleet = sensors("own", 500).publish_to(broker.url, sessions="per-device")
    found = named(fleet.preflight())
    assert not found["open files"].ok
    assert found["open files"].text == ("256 allowed, about 564 needed. Raise it in this shell "
                                        "with: ulimit -n 1128")


def test_sessions_that_are_live_are_not_taken_over(mosquitto):
    broker = mosquitto()
    fleet = sensors("taken", 5, every="200ms").publish_to(broker.url, sessions="per-device")

    async def main():
        live = fleet.start()
        await live.ready()
        found = named(fleet.preflight())[broker.url]
        result = await live.stop()
        return found, result

    found, result = asyncio.run(main())
    assert found.ok
    assert found.text.startswith("not asked: the fleet is live")
    assert sum(one.reconnects for one in result.publishers.values()) == 0


def test_more_connections_than_local_ports_is_said(monkeypatch):
    monkeypatch.setattr(preflight, "_local_ports", lambda: (50_000, 50_099))
    assert port_finding(90).ok
    found = port_finding(91)
    assert not found.ok
    assert found.text.startswith("100 for connections to one peer, 91 needed")


def test_memory_counts_what_the_capture_will_hold(monkeypatch):
    fleet = sensors("held", 1000, every="100ms")
    monkeypatch.setattr(preflight, "memory_free_bytes", lambda: 500_000_000)
    assert named(fleet.preflight("1m"))["memory"].ok
    found = named(fleet.preflight("1d", capture="all"))["memory"]
    assert not found.ok
    assert "500 MB free" in found.text
    assert named(fleet.preflight("1d", capture=100_000))["memory"].ok


def test_a_capture_without_bound_in_a_run_without_end_grows():
    found = named(sensors("grows", 1000, every="1s").preflight(capture="all"))["memory"]
    assert not found.ok
    assert "an hour, and the run has no end" in found.text


def test_a_file_needs_room_on_its_disk(tmp_path):
    fleet = sensors("filed", 100_000, every="1ms")
    found = named(fleet.preflight("1000d", to=tmp_path / "x.parquet", connect=False))["disk"]
    assert not found.ok
    assert "needed. Choose fewer devices" in found.text
    assert named(sensors("a").preflight("1m", to=tmp_path / "x.parquet"))["disk"].ok
    assert not list(tmp_path.iterdir())


def test_this_machine_is_tried_with_the_fleets_own_messages():
    made = burst(sensors("tried", 100).members, 1)
    assert 1_000 < made.rate_hz < 100_000_000
    assert 100 < made.payload_bytes[0] < 1000
    fleet = Fleet("million", seed=1).add("temperature_sensor", count=1_000_000, every="10ms")
    found = named(fleet.preflight())["own speed"]
    assert not found.ok
    assert "the fleet wants 100,000,000" in found.text


def test_scripts_are_not_run_to_try_them():
    ran = []

    async def careful(dev):
        ran.append(dev.id)

    flight = Fleet("scripts", seed=1).add(careful, count=3).add(meter, every="1s").preflight()
    assert not ran
    assert "4 scripted devices not counted" in named(flight)["own speed"].text
    assert math.isnan(burst(Fleet("s", seed=1).add(careful).members, 1).rate_hz)


@dataclass
class Coap:
    confirmable: bool = True
    window: int = 8
    rate: int | None = None
    per_device: bool = False


def test_coap_is_bound_by_its_message_ids_and_by_one_datagram():
    contact = Contact(8, 0.001)
    found = rate_finding("c", Coap(), "coap", contact, 2, 500.0, 200)
    assert not found.ok
    assert found.text.startswith(
        "at most 530/s by 260/s from each of 2 endpoints (message ids of CoAP allow 265)")
    assert "Use endpoints=3" in found.text
    assert rate_finding("c", Coap(confirmable=False), "coap", contact, 2, 500.0, 200).ok
    long = rate_finding("c", Coap(), "coap", contact, 2, 10.0, 1500)
    assert long.ok
    assert "a round trip for every block" in long.text
    assert not rate_finding("c", Coap(confirmable=False), "coap", contact, 2, 10.0, 1500).ok


@dataclass
class Http:
    connections: int = 8
    batch: int = 1
    per_device: bool = False


def test_http_is_bound_by_connections_and_batches():
    contact = Contact(8, 0.010)
    found = rate_finding("h", Http(), "http", contact, 1, 1000.0, 200)
    assert not found.ok
    assert found.text.startswith("at most 800/s by 8 requests at once and 10 ms round trip, if a ")
    measured = Contact(8, 0.010, at_once_hz=101.0)
    one_by_one = rate_finding("h", Http(), "http", measured, 1, 90.0, 200)
    assert one_by_one.text.startswith("at most 100/s by ")
    assert rate_finding("h", Http(batch=50), "http", contact, 1, 1000.0, 200).ok


def test_a_ceiling_is_never_more_than_this_machine_makes():
    publisher = build("mqtt://127.0.0.1:1883", qos=0)
    contact = Contact(65_535, 0.0001)
    found = rate_finding("x", publisher, "mqtt", contact, 1, 0.5, 200, own_hz=123_456.0)
    assert found == Finding("x", True, "65,535 in flight and 0.1 ms round trip allow more than the "
                            "120,000/s that this machine makes (the peer's own pace was not "
                            "measured); its devices make 0.5/s")


def test_how_far_a_broker_is_is_measured_with_questions(nats_server, libcoap, mosquitto):
    servers = nats_server(), mosquitto(), mosquitto(receive_maximum=20), libcoap()
    for url in [server.url for server in servers]:
        contact = contacts([Wish(build(url), None, ["devices/a/telemetry"])])[0]
        assert not contact.error
        assert 0 < contact.round_trip_s < 4  # the machine may be busy


def test_what_was_not_measured_is_said():
    publisher = build("mqtt://127.0.0.1:1883", qos=1)
    found = rate_finding("x", publisher, "mqtt", Contact(20), 1, 5.0, 200)
    assert found == Finding("x", True, "what it takes was not measured; its devices make 5/s")


def test_a_server_that_does_one_thing_at_a_time_is_measured_as_it_is():
    import http.server

    turn = threading.Lock()

    class Slow(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            with turn:
                time.sleep(0.01)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/in"
            found = named(sensors("one", 1000).publish_to(url, connections=8).preflight())[url]
        finally:
            server.shutdown()
            thread.join()
    rate_hz = int(found.text.removeprefix("at most ").partition("/s")[0].replace(",", ""))
    assert 5 <= rate_hz <= 100
    assert not found.ok


@pytest.mark.parametrize(("status", "ok", "said"), [
    (401, False, "refused us: HTTP 401"),
    (403, False, "forbids it: HTTP 403"),
    (404, True, "the server answers HEAD with HTTP 404: perhaps POST, too"),
    (405, True, ""),
    (501, True, ""),
    (503, False, "the server answers HEAD with HTTP 503: perhaps POST, too."),
])
def test_an_endpoint_that_refuses_to_be_asked_is_said(status, ok, said):
    with Endpoint(probe=Reply(status)) as endpoint:
        fleet = sensors("refused", 1).publish_to(endpoint.url, connections=1)
        found = named(fleet.preflight())[endpoint.url]
        assert not endpoint.got
    assert found.ok == ok
    assert said in found.text
    assert said or "HTTP" not in found.text


@pytest.mark.parametrize(("options", "said"), [
    ({}, "no stream takes the subject 'devices.temperature_sensor-0000.telemetry'. Create one"),
    ({"stream": "OTHER"}, "stream 'OTHER' does not take the subject 'devices."),
])
def test_jetstream_without_a_stream_for_the_topics_is_said(nats_server, options, said):
    server = nats_server(jetstream=True)
    server.add_stream("OTHER", subjects=("other.>",))
    url = server.jetstream_url
    fleet = sensors("astray", 1)
    found = named(fleet.publish_to(url, **options).preflight())[url]
    assert not found.ok
    assert said in found.text
    found = named(fleet.publish_to(url, topic="other/{device_id}", **options).preflight())[url]
    assert found.ok
    assert "in flight and " in found.text


def test_every_protocol_with_a_peer_has_words_for_what_to_do():
    names = set(PUBLISHERS) - {"memory", "console", "file"}
    spoken = {outlet_of(f"{name}://127.0.0.1", None, "all", {}).protocol for name in names}
    assert spoken == set(preflight_fleet.PROTOCOLS) == set(MORE)


def test_html_escapes_and_text_is_aligned():
    flight = preflight_fleet.Preflight("<b>", (Finding("a<", False, "no & why"),))
    assert "<b>&lt;b&gt;</b>" not in flight._repr_html_()
    assert "&lt;b&gt;" in flight._repr_html_()
    assert "no &amp; why" in flight._repr_html_()
    assert str(flight) == "NO  a<  no & why"


def test_sizes_are_said_as_people_do():
    assert size_text(1_500_000) == "2 MB"


def test_the_broker_sees_clean_goodbyes(mosquitto):
    broker = mosquitto()
    fleet = sensors("clean", 3).publish_to(broker.url, sessions="per-device",
                                           will="gone/{device_id}")
    import paho.mqtt.client as paho

    heard = []
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.on_message = lambda *message: heard.append(message[2].topic)
    client.connect("127.0.0.1", broker.port)
    client.subscribe("#")
    client.loop_start()
    try:
        assert fleet.preflight().ok
        client.publish("end", b"").wait_for_publish(5)
        deadline_s = time.monotonic() + 5
        while "end" not in heard and time.monotonic() < deadline_s:
            time.sleep(0.01)
    finally:
        client.disconnect()
        client.loop_stop()
    assert heard == ["end"]


@pytest.mark.parametrize(("to", "why"), [
    (5, "to=5 is no path. Write 'x.parquet'."),
    ("/nonexistent/x.parquet", "is in a folder that does not exist. Make it first."),
    ("", "does not end in .parquet. Write 'x.parquet'."),
])
def test_where_nothing_can_be_written_is_said_at_the_call(to, why):
    fleet = Fleet("a", seed=1).add("pump", count=2)
    for call in (fleet.preflight, fleet.generate):
        with pytest.raises(BadValue, match=re.escape(why)):
            call("1m", to=to)
