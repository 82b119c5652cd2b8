"""Metrics over HTTP: every one of them moves with a real run against a real broker."""

import asyncio
import socket
import threading
import urllib.request
from collections import defaultdict

import pytest
from prometheus_client.parser import text_string_to_metric_families

import iotsim
from iotsim import Fleet, live_runs, metrics, run_tally
from iotsim.errors import BadValue, MissingExtra
from iotsim.metrics import TABLE
from tests.live import sensors, until

CONTRACT = {  # contract B6, and the four that its documents name but never had
    "sim_devices_active": {"device_type", "protocol"},
    "sim_messages_sent_total": {"device_type", "protocol", "status"},
    "sim_publish_latency_seconds_count": {"device_type", "protocol"},
    "sim_device_errors_total": {"device_type", "error_type"},
    "sim_backpressure_drops_total": {"device_type"},
    "sim_faults_injected_total": {"fault_type"},
    "sim_backpressure_slowdowns_total": {"device_type"},
    "sim_publish_queue_depth": {"protocol"},
    "sim_telemetry_batch_size_count": set(),
    "sim_memory_alloc_bytes": None,
    "sim_faults_active": {"fault_type"},
    "sim_tasks_active": set(),
}


def scraped(server):
    """Samples by name and labels; each scrape is parsed as Prometheus would."""
    with urllib.request.urlopen(server.url, timeout=10) as answer:
        text = answer.read().decode()
    found = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert tuple(sample.labels.items()) not in found[sample.name], sample
            found[sample.name][tuple(sample.labels.items())] = sample.value
    return found


async def scrape(server):
    return await asyncio.to_thread(scraped, server)


def total(found, name, **labels):
    return sum(value for key, value in found[name].items() if labels.items() <= dict(key).items())


@pytest.fixture
def server():
    with metrics.serve(port=0) as there:
        yield there
    assert not live_runs.WATCHES


async def faulty(dev):
    await dev.sleep()
    raise RuntimeError("worn out")


async def busy(server, broker, fleet):
    """A run with faults, errors, drops, slow-downs; what was seen on the way and at the end."""
    live = fleet.start("60s")
    await live.ready()
    await until(lambda: live.snapshot().readings > 200)
    live.inject("disconnect", where="device_type=smart_lock", duration="1s")
    live.inject("offset", where="device_type=smart_lock", by=1, field="battery")
    await asyncio.sleep(0.05)
    during = await scrape(server)
    await asyncio.to_thread(broker.stop)
    await until(lambda: any(one.dropped for one in live.snapshot().publishers.values()))
    await until(lambda: any(action.parameters.get("fault") == "slow_down"
                            for action in live.actions))
    down = await scrape(server)
    await asyncio.to_thread(broker.start)
    await until(lambda: all(one.reconnects for url, one in live.snapshot().publishers.items()
                            if url.startswith("mqtt")))
    await live.stop()
    return live, during, down, await scrape(server)


def test_every_metric_of_the_contract_moves(server, mosquitto):
    broker = mosquitto()
    fleet = (Fleet("moving", seed=4).add("temperature_sensor", count=100, every="50ms")
             .add("smart_lock", count=50, every="100ms").add(faulty, count=3, every="100ms")
             .publish_to(broker.url, qos=1, where="device_type=temperature_sensor",
                         queue_messages=200, backpressure="drop_oldest")
             .publish_to(broker.url, qos=1, where="device_type=smart_lock", queue_messages=100,
                         backpressure="slow_down")
             .publish_to("memory:all"))
    live, during, down, after = asyncio.run(busy(server, broker, fleet))
    for name, labels in CONTRACT.items():
        assert after[name], f"{name} is not there"
        for key in after[name]:
            assert set(dict(key)) - {"le"} == (set() if labels is None else {"run", *labels})
    ledgers = live.snapshot().publishers
    assert total(during, "sim_devices_active", protocol="mqtt") == 150
    assert total(during, "sim_devices_active", protocol="memory") >= 150
    assert total(during, "sim_faults_active", fault_type="disconnect") == 50
    assert total(during, "sim_tasks_active") > 1
    assert total(during, "sim_memory_alloc_bytes") > 1e6
    assert total(down, "sim_publish_queue_depth", protocol="mqtt") > 0
    assert total(down, "sim_backpressure_slowdowns_total", device_type="smart_lock") >= 50
    assert total(after, "sim_backpressure_drops_total", device_type="temperature_sensor") == sum(
        one.drops.get("queue full, oldest dropped", 0) for one in ledgers.values())
    assert total(after, "sim_backpressure_drops_total", device_type="smart_lock") == 0
    assert total(after, "sim_faults_injected_total", fault_type="disconnect") == 1
    assert total(after, "sim_faults_injected_total", fault_type="offset") == 1
    assert total(after, "sim_device_errors_total", error_type="device_failed") == 3
    assert total(after, "sim_devices_active") == total(after, "sim_tasks_active") == 0
    acknowledged = sum(one.acknowledged for one in ledgers.values())
    assert total(after, "sim_messages_sent_total", status="ok") == acknowledged
    assert total(after, "sim_publish_latency_seconds_count") == acknowledged
    assert total(after, "sim_publish_latency_seconds_bucket", le="+Inf") == acknowledged
    assert total(after, "sim_publish_latency_seconds_sum") > 0
    assert total(after, "sim_telemetry_batch_size_sum") == live.snapshot().readings
    assert 0 < total(during, "sim_readings_total") < total(after, "sim_readings_total")


def test_messages_of_types_that_share_a_publisher_are_told_apart_exactly(server, mosquitto):
    broker = mosquitto()

    async def main():
        fleet = (Fleet("mixed", seed=4).add("temperature_sensor", count=30, every="100ms")
                 .add("pump", count=10, every="100ms", id="gw-{n}")
                 .publish_to(broker.url, "a/{device_type}", qos=1))
        live = fleet.start("1s")
        await live.ready()
        live.add("smart_lock", count=5, every="100ms")
        result = await live.wait()
        return result, await scrape(server)

    result, found = asyncio.run(main())
    made = result.frame().groupby("device_type", observed=True).size()
    assert len(made) == 3
    for device_type, count in made.items():
        assert total(found, "sim_messages_sent_total", device_type=device_type,
                     status="ok", protocol="mqtt") == count
        assert total(found, "sim_publish_latency_seconds_count", device_type=device_type) == count


def test_what_a_broker_refuses_is_an_error_of_its_type(server, mosquitto):
    broker = mosquitto(acl=["topic readwrite ok/#"])

    async def main():
        fleet = (Fleet("refused", seed=4).add("temperature_sensor", count=5, every="100ms")
                 .add("pump", count=5, every="100ms")
                 .publish_to(broker.url, "ok/{device_type}", qos=1, where="device_type=pump")
                 .publish_to(broker.url, "no/{device_type}", qos=1,
                             where="device_type=temperature_sensor"))
        result = await fleet.run("500ms")
        return result, await scrape(server)

    result, found = asyncio.run(main())
    refused = sum(one.refused for one in result.publishers.values())
    assert refused
    assert total(found, "sim_messages_sent_total", status="error") == refused
    assert total(found, "sim_device_errors_total", error_type="publish_error",
                 device_type="temperature_sensor") == refused


def test_a_scrape_in_the_cell_of_the_run_does_not_hang(server):
    async def main():
        live = sensors("own", 10, every="100ms").publish_to("memory:own").start()
        await live.ready()
        found = scraped(server)  # blocks the run's own loop
        await live.stop()
        return found

    assert total(asyncio.run(main()), "sim_devices_active", run="own") == 10


def test_two_runs_and_two_servers_share_names_and_are_told_apart(server):
    async def main():
        one = sensors("one", 3).publish_to("memory:one").start()
        with metrics.serve(port=0) as second:
            two = sensors("two", 4).publish_to("memory:two").start()
            await one.ready()
            await two.ready()
            seen = await scrape(server), await scrape(second)
        await one.stop()
        await two.stop()
        return seen

    for found in asyncio.run(main()):
        assert total(found, "sim_devices_active", run="one") == 3
        assert total(found, "sim_devices_active", run="two") == 4


def test_a_run_that_began_before_its_metrics_is_served_from_then_on():
    async def main():
        live = sensors("early", 5, every="100ms").publish_to("memory:early").start()
        await live.ready()

        def acknowledged():
            (ledger,) = live.snapshot().publishers.values()
            return ledger.acknowledged

        await until(lambda: acknowledged() > 20)
        before = acknowledged()
        with metrics.serve(port=0) as late:  # nothing is awaited since: it counts what follows
            await until(lambda: acknowledged() > before + 20)
            least = acknowledged() - before
            found = await scrape(late)
            most = acknowledged() - before
        await live.stop()
        return least, found, most

    least, found, most = asyncio.run(main())
    assert 20 < least <= total(found, "sim_messages_sent_total") <= most
    assert total(found, "sim_devices_active") == 5


def test_runs_of_one_name_are_served_once_and_it_is_the_last(server):
    async def main():
        for lasts in ("5s", "9s", "2s"):
            fleet = sensors("again", 1, every="1s").publish_to("memory:again")
            await fleet.run(lasts, speed="max")
        await sensors("other", 1).publish_to("memory:other").run("1s", speed="max")
        return await scrape(server)  # it looks for series that come twice

    found = asyncio.run(main())
    assert total(found, "sim_readings_total", run="again") == 2
    assert {dict(key)["run"] for key in found["sim_devices_active"]} == {"again", "other"}


def test_old_runs_are_forgotten(server):
    async def main():
        for i in range(metrics.OVER_MAX + 2):
            await sensors(f"r{i}", 1).publish_to("memory:again").run("1s", speed="max")
        return await scrape(server)

    found = asyncio.run(main())
    assert len({dict(key)["run"] for key in found["sim_devices_active"]}) == metrics.OVER_MAX


def test_many_types_become_one_beyond_a_hundred(server, monkeypatch):
    monkeypatch.setattr(run_tally, "TYPES_MAX", 2)

    async def main():
        fleet = Fleet("many", seed=1)
        for name in ("temperature_sensor", "pump", "smart_lock", "smart_meter"):
            fleet = fleet.add(name, count=2, every="100ms")
        live = fleet.publish_to("memory:many").start()
        await live.ready()
        await until(lambda: live.snapshot().readings > 50)
        await live.stop()
        return await scrape(server)

    found = asyncio.run(main())
    kinds = {dict(key)["device_type"] for key in found["sim_messages_sent_total"]}
    assert len(kinds) == 3
    assert "other" in kinds
    assert total(found, "sim_messages_sent_total") == total(
        found, "sim_publisher_messages", state="acknowledged")


def test_stop_and_serve_again_on_the_same_port():
    with metrics.serve(port=0) as first:
        port = first.port
        assert repr(first) == f"<Metrics on http://127.0.0.1:{port}/metrics>"
    assert first.closed
    assert repr(first).endswith(": closed>")
    first.close()
    with metrics.serve(port=port) as again:
        assert scraped(again)["sim_memory_alloc_bytes"]
    assert not [one for one in threading.enumerate() if "serve_forever" in one.name]


def test_a_port_in_use_is_one_clear_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadValue, match=rf"port={port} is in use on 127.0.0.1. Give another"):
            metrics.serve(port=port)
    assert not live_runs.WATCHES


@pytest.mark.parametrize(("options", "text"), [
    ({"port": "9090"}, "Give a whole number from 0 to 65,535"),
    ({"port": 70000}, "Give a whole number from 0 to 65,535"),
    ({"port": 0, "host": ""}, "is not an address"),
    ({"port": 0, "host": "no.such.host.invalid"}, "cannot be listened on"),
    ({"port": 0, "host": "192.0.2.1"}, "Give an address of this machine"),
])
def test_what_cannot_be_is_said(options, text):
    with pytest.raises(BadValue, match=text):
        metrics.serve(**options)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(MissingExtra, match=r'pip install "iotsim\[metrics\]"'):
        metrics.serve(port=0)


def test_hostile_names_stay_within_their_quotes_and_no_secret_is_served(server, mosquitto):
    broker = mosquitto()
    name = 'a"b\\c} 1'

    async def main():
        fleet = Fleet(name, seed=1).add("temperature_sensor", count=2, every="100ms")
        url = broker.url.replace("mqtt://", "mqtt://someone:swordfish@")
        live = fleet.publish_to(url, qos=1).start()
        await live.ready()
        await until(lambda: live.snapshot().readings > 5)
        found = await scrape(server)
        await live.stop()
        return found

    found = asyncio.run(main())
    assert total(found, "sim_devices_active", run=name) == 2
    assert "swordfish" not in str(found)
    assert str(broker.port) not in str(found)


def test_while_nobody_serves_nothing_is_counted():
    async def main():
        live = sensors("unseen", 5, every="100ms").publish_to("memory:unseen").start("300ms")
        await live.ready()
        assert live._works.acks.watchers == []
        await live.wait()

    asyncio.run(main())


def test_every_row_of_the_table_has_a_name_of_its_own():
    assert len({row[0] for row in TABLE.values()}) == len(TABLE)
    assert iotsim.metrics is metrics
