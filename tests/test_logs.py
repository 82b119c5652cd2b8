"""Logs: nothing unless asked, one JSON object per line, every step of a run's life with its id."""

import asyncio
import io
import json
import logging
import subprocess
import sys

import pytest

from iotsim import Fleet
from iotsim.errors import BadValue, ConnectError
from iotsim.logs import JsonFormatter, one_line, plain
from iotsim.publishers.memory import messages
from tests.live import generated, meter, sensors, until


class Lines(io.StringIO):
    """What was logged, as the objects that stand on its lines."""

    @property
    def all(self):
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def of(self, *events):
        return [line for line in self.all if line["event"] in events]

    @property
    def events(self):
        return [line["event"] for line in self.all]


@pytest.fixture
def logged():
    """A function that asks for logs of a level; they end with the test."""
    logger, lines = logging.getLogger("iotsim"), Lines()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())

    def ask(level="INFO"):
        logger.addHandler(handler)
        logger.setLevel(level)
        return lines

    yield ask
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_nothing_is_shown_unless_somebody_asks():
    code = ("import asyncio, logging\nfrom iotsim import Fleet\n"
            "fleet = Fleet('quiet', seed=1).add('pump', count=2).publish_to('memory:q')\n"
            "async def broken(dev):\n    raise RuntimeError('x')\n"
            "asyncio.run(fleet.add(broken).run('1s', speed='max'))\n"
            "logger = logging.getLogger('iotsim')\n"
            "assert logger.level == logging.NOTSET, logger.level\n"
            "assert [type(one) for one in logger.handlers] == [logging.NullHandler]\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_a_run_says_how_it_lives(logged):
    lines = logged()

    async def main():
        live = sensors("life", 3, every="100ms").publish_to("memory:life").start()
        await live.ready()
        live.inject("offset", by=1, where="count=2")
        live.inject("stuck", duration="100ms")
        live.clear("offset")
        live.set(every="200ms")
        live.add("pump", count=2)
        live.stop(where="device_type=pump")
        live.log("two\nlines")
        await until(lambda: len(lines.of("fault_cleared")) == 2)
        return live, await live.stop()

    live, result = asyncio.run(main())
    assert {line["run"] for line in lines.all} == {live.id}
    assert {line["fleet"] for line in lines.all} == {"life"}
    first = ["run_connecting", "publisher_connected", "devices_spawned", "run_ready",
             "fault_injected", "fault_injected", "fault_cleared", "devices_updated",
             "devices_spawned", "devices_stopped", "log", "fault_cleared", "run_stopping",
             "run_over"]
    assert lines.events == first
    spawned = lines.of("devices_spawned")
    assert [(line["device_type"], line["count"]) for line in spawned[:1]] == [
        ("temperature_sensor", 3)]
    assert spawned[1]["devices"] == 2
    injected = lines.of("fault_injected")[0]
    assert (injected["fault"], injected["devices"]) == ("offset", 2)
    assert lines.of("run_ready")[0]["message"] == f"runtime ready, run_id={live.id}"
    over = lines.of("run_over")[0]
    assert over["message"] == "shutdown complete"
    assert over["readings"] == result.rows
    assert over["publishers"]["memory:life"]["acknowledged"] == result.rows
    assert over["quality"] == result.quality
    assert len(lines.getvalue().splitlines()) == len(first)


def test_every_reading_is_there_at_debug_with_its_payload_and_changes_nothing(logged):
    lines = logged("DEBUG")

    async def main():
        fleet = sensors("debug", 3, every="50ms").publish_to("memory:debug")
        live = fleet.start("500ms")
        await live.ready()
        live.inject("packet_loss", loss=1.0, where="count=1")
        return fleet, await live.wait()

    fleet, result = asyncio.run(main())
    told = lines.of("reading")
    assert len(told) == result.rows
    sent = {line["id"]: line["reading"] for line in told if "withheld" not in line}
    assert sent == {ident: json.loads(payload) for _, payload, ident in messages("debug")}
    assert {line["withheld"] for line in told if "withheld" in line} == {"packet_loss"}
    assert generated(fleet, result) != result.digest  # there was a fault


def test_readings_are_not_even_encoded_below_debug(logged, monkeypatch):
    from iotsim.journal import Journal

    logged("INFO")
    monkeypatch.setattr(Journal, "readings", lambda *_: pytest.fail("encoded for nobody"))
    asyncio.run(sensors("info", 3, every="50ms").run("200ms"))


async def outage(broker, lines, fleet):
    live = fleet.start()
    await live.ready()
    await until(lambda: live.snapshot().readings > 50)
    await asyncio.to_thread(broker.stop)
    await until(lambda: lines.of("publisher_lost") and lines.of("backpressure_slowing_down"))
    await asyncio.to_thread(broker.start)
    await until(lambda: lines.of("publisher_reconnected") and lines.of("backpressure_restored"))
    await live.stop()


def test_a_broker_that_goes_and_comes_back_is_told(logged, mosquitto):
    lines, broker = logged(), mosquitto()
    fleet = sensors("outage", 100, every="100ms").publish_to(
        broker.url, qos=1, queue_messages=100, backpressure="slow_down")
    asyncio.run(outage(broker, lines, fleet))
    lost = lines.of("publisher_lost")[0]
    assert lost["level"] == "WARNING"
    assert lost["publisher"] == broker.url
    assert lost["connected"] < lost["connections"]
    assert lost["why"]
    assert lines.of("backpressure_slowing_down")[0]["message"] == "backpressure: slowing down"
    restored = lines.of("backpressure_restored")[0]
    assert restored["message"] == "backpressure: restored normal rate"


def test_thousands_of_refusals_are_a_line_a_second(logged, mosquitto):
    lines, broker = logged("WARNING"), mosquitto(acl=["topic readwrite ok/#"])
    result = asyncio.run(sensors("refused", 100, every="50ms").publish_to(
        broker.url, "no/{device_id}", qos=1).run("1500ms"))
    told = lines.of("publish_error")
    refused = sum(one.refused for one in result.publishers.values())
    assert 1 <= len(told) <= 5
    assert sum(line["count"] for line in told) == refused >= 1000
    assert "refused at" in told[0]["message"]


def test_failed_devices_are_told_and_many_are_counted(logged):
    lines = logged("ERROR")

    async def broken(dev):
        raise RuntimeError("worn\nout")

    asyncio.run(Fleet("broken", seed=1).add(broken, count=25).run("300ms"))
    told = lines.of("device_failed")
    assert told[0]["device_id"] == "broken-0000"
    assert told[-1]["count"] == 15
    assert len(told) == 11


def test_what_could_not_be_done_is_told(logged):
    lines = logged()

    async def main():
        live = sensors("wrong", 2).start()
        await live.ready()
        with pytest.raises(BadValue):
            live.add("pump", id="temperature_sensor-{index:04d}")
        await live.stop()

    asyncio.run(main())
    assert [line["level"] for line in lines.of("spawn_failed")] == ["ERROR"]


def test_a_run_that_cannot_connect_says_why_without_a_secret(logged):
    lines = logged("DEBUG")
    fleet = sensors("nobody", 2).publish_to("mqtt://ann:swordfish@127.0.0.1:1")
    with pytest.raises(ConnectError):
        asyncio.run(fleet.run("1s"))
    assert "swordfish" not in lines.getvalue()
    assert lines.events == ["run_connecting", "run_stopping", "run_error", "run_over"]
    assert "connection refused" in lines.of("run_error")[0]["message"]


def test_scripts_live_too(logged):
    lines = logged()
    asyncio.run(Fleet("scripted", seed=1).add(meter, count=2, every="50ms").run("200ms"))
    assert lines.of("devices_spawned")[0]["device_type"] == "meter"


# -- one line of JSON ---------------------------------------------------------------------------

HOSTILE = ["two\nlines", "nul\0", "\u2028", '"quote', "\x1b[31m", "\ud800", "\u202e", "<img>", ""]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_on_one_line_of_ascii(text):
    record = logging.LogRecord("iotsim", logging.INFO, "", 1, "%s", (text,), None)
    record.iotsim = {"event": "x", text: text, "deep": [{text: (text,)}]}
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["deep"] == [{text: [text]}]


@pytest.mark.parametrize("text", HOSTILE)
def test_plain_messages_are_one_printable_line_too(text):
    assert one_line(text).isprintable()


def test_what_json_cannot_hold_is_null_or_text():
    class Odd:
        def __str__(self):
            return "odd"

    assert plain([float("nan"), float("inf"), Odd(), b"x", {1: 2}, 2**70]) == [
        None, None, "odd", "b'x'", {"1": 2}, 2**70]
    deep = []
    for _ in range(100):
        deep = [deep]
    assert isinstance(json.dumps(plain(deep)), str)
    assert len(plain("x" * 20_000)) == 10_000


def test_records_of_others_can_be_formatted_too():
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("app", logging.ERROR, "", 1, "hi %d", (3,), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert (line["event"], line["message"], line["error"]) == ("", "hi 3", "ValueError: no")
    assert line["time"].endswith("Z")
