"""Metrics and log of gateways: every one moves, is right, and ends with its gateway."""

import asyncio
import json
import logging
import os
import signal
import urllib.request
from collections import defaultdict
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from iotsim import Fleet, live_runs, metrics
from iotsim.gateway import tally
from iotsim.gateway.chronicle import Chronicle
from iotsim.gateway.command_log import CommandLog
from iotsim.gateway.publisher import GatewayPublisher
from iotsim.logs import LOG, JsonFormatter
from iotsim.publishers.backoff import Pace
from tests.gateway_platforms import gateways, on_lab, platform_of, until
from tests.servers.notip import notip_lab

__all__ = ("notip_lab",)

CONTRACT = {  # A16: labels beside `run`
    "notip_sim_gateways_running": set(),
    "notip_sim_envelopes_published_total": {"gateway_id"},
    "notip_sim_publish_errors_total": {"gateway_id"},
    "notip_sim_buffer_dropped_total": {"gateway_id"},
    "notip_sim_buffer_fill_level": {"gateway_id"},
    "notip_sim_nats_reconnects_total": {"gateway_id"},
    "notip_sim_anomalies_injected_total": {"type"},
    "notip_sim_provisioning_success_total": None,
    "notip_sim_provisioning_errors_total": None,
}
SERIES = [name for name, labels in CONTRACT.items() if labels == {"gateway_id"}]


@pytest.fixture
def server():
    with metrics.serve(port=0) as there:
        yield there
    assert not live_runs.WATCHES


async def scrape(server):
    """Values by metric and by its one label beside `run`; each is parsed as Prometheus would."""

    def read():
        with urllib.request.urlopen(server.url, timeout=10) as answer:
            return answer.read().decode()

    found = defaultdict(dict)
    for family in text_string_to_metric_families(await asyncio.to_thread(read)):
        for sample in family.samples:
            if sample.name.startswith("notip_"):
                labels = {name: value for name, value in sample.labels.items() if name != "run"}
                key = tuple(labels.values())
                key = key[0] if len(key) == 1 else key
                assert key not in found[sample.name], sample
                found[sample.name][key] = sample.value
                wanted = CONTRACT.get(sample.name)
                assert wanted is None or set(labels) == wanted
    return found


def one(found, name):
    return found[f"notip_sim_{name}"].get((), 0)


async def troubled(lab_thread, server, run):
    """An anomaly of each kind, a command, a server that is frozen, killed and back."""
    lab, first, second = lab_thread.lab, *run.gateways().gateway
    run.degrade(first, "300ms", loss=0.5, latency_ms=5)
    run.disconnect(second, "300ms")
    run.outlier(first, "temperature")
    command = await on_lab(lab_thread, lab.console.config(run.gateways().gateway_id[0],
                                                          send_frequency_ms=30))
    await on_lab(lab_thread, lab.console.answer(command))
    pump = run.works.pumps[0]
    await until(lambda: not run.snapshot().faults and pump.connected == 2)
    os.kill(lab.nats_pid, signal.SIGSTOP)
    await until(lambda: pump.snapshot().in_flight > 4)
    await on_lab(lab_thread, lab.kill_nats())
    await until(lambda: pump.snapshot().dropped > 4)
    down = await scrape(server)
    await on_lab(lab_thread, lab.restart_nats())
    await until(lambda: pump.connected == 2)
    return down


def test_every_metric_of_the_contract_moves_and_is_right(
    notip_lab, server, tmp_path, monkeypatch
):
    monkeypatch.setattr(GatewayPublisher, "pace", Pace(0.2, 0.2, 0.2))
    gateway = gateways(count=3)
    platform = platform_of(notip_lab, tmp_path, gateway, known=2, buffer=20)

    async def main():
        before = await scrape(server)
        run = await platform.start(gateway, capture="all")
        down = await troubled(notip_lab, server, run)
        ids = list(run.gateways().gateway_id)
        for name in run.gateways().gateway:
            run.suspend(f"gateway={name}")
        await until(lambda: not run.works.pumps[0].snapshot().offered
                    - run.works.pumps[0].snapshot().acknowledged
                    - run.works.pumps[0].snapshot().dropped)
        return before, down, await scrape(server), ids, await run.stop()

    before, down, after, ids, result = asyncio.run(main())
    for name in CONTRACT:
        assert after[name], f"{name} is not there"
    assert one(down, "gateways_running") == one(after, "gateways_running") == 2
    assert one(down, "gateways_connected") == 0
    assert one(after, "gateways_connected") == 2
    (ledger,) = result.publishers.values()
    stored = notip_lab.run(notip_lab.lab.console.telemetry())
    stored = stored[stored.message_id.str.startswith(f"{result.run_id}/")]
    published = after["notip_sim_envelopes_published_total"]
    assert set(published) == set(ids)
    assert published == stored.groupby("gateway_id").size().to_dict()
    assert sum(published.values()) == ledger.acknowledged
    assert sum(after["notip_sim_buffer_dropped_total"].values()) == ledger.dropped > 0
    assert max(down["notip_sim_buffer_fill_level"].values()) > 0
    assert set(after["notip_sim_buffer_fill_level"].values()) == {0}
    assert sum(after["notip_sim_publish_errors_total"].values()) > 4
    assert after["notip_sim_nats_reconnects_total"] == {ids[0]: 1, ids[1]: 2}
    assert after["notip_sim_anomalies_injected_total"] == {
        "network_degradation": 1, "disconnect": 1, "sensor_outlier": 1}
    # Its stream was killed before it had heard that it is done, and delivers it again.
    assert {frozenset(key): count for key, count in after["notip_sim_commands_total"].items()} == {
        frozenset(("config_update", "ack")): 1}
    grown = {name: one(after, f"provisioning_{name}_total") - one(
        before, f"provisioning_{name}_total") for name in ("success", "errors")}
    assert grown == {"success": 2, "errors": 1}


def test_running_follows_each_gateway_and_its_series_end_with_it(notip_lab, server, tmp_path):
    gateway = gateways()
    platform = platform_of(notip_lab, tmp_path, gateway)

    async def main():
        run = await platform.start(gateway)
        first, second = run.gateways().gateway
        ids = list(run.gateways().gateway_id)
        await until(lambda: run.works.pumps[0].snapshot().acknowledged > 4)
        seen = []
        for change in (None, run.stop_gateway(first), run.start_gateway(first),
                       run.delete_gateway(second)):
            if change is not None:
                await change
            found = await scrape(server)
            seen.append((one(found, "gateways_running"),
                         [sorted(found[name]) == sorted(ids) for name in SERIES]))
        left = {name: list(found[name]) for name in SERIES}
        published = found["notip_sim_envelopes_published_total"][ids[0]]
        await run.stop()
        return seen, left, ids, published, await scrape(server)

    seen, left, ids, published, over = asyncio.run(main())
    assert [count for count, _ in seen] == [2, 1, 2, 1]
    assert [all(same) for _, same in seen] == [True, True, True, False]
    assert left == {name: [ids[0]] for name in SERIES}
    assert published > 0
    assert one(over, "gateways_running") == one(over, "gateways_connected") == 0
    assert not any(over[name] for name in SERIES)
    assert over["notip_sim_anomalies_injected_total"]["disconnect"] == 0


def test_over_one_connection_each_gateway_has_counts_of_its_own(notip_lab, server, tmp_path):
    gateway = gateways(count=3)
    platform = platform_of(notip_lab, tmp_path, gateway, own_certificates=False,
                           connection="shared")

    async def main():
        run = await platform.start(gateway)
        pump = run.works.pumps[0]
        await until(lambda: pump.snapshot().acknowledged > 10)
        table = run.gateways().set_index("gateway_id").gateway
        run.suspend(f"gateway={table.iloc[0]}")
        pump.hang_up(0)
        held = pump.snapshot().offered
        await until(lambda: pump.snapshot().offered > held + 20)
        down = await scrape(server)
        waiting = [name.split(":")[0].split("/")[1] for name in pump.waiting_ids(0)]
        pump.call_back(0)
        await until(lambda: pump.connected)
        after = await scrape(server)
        await run.stop()
        return table, down, waiting, after

    table, down, waiting, after = asyncio.run(main())
    fill = {table[ident]: count for ident, count in down["notip_sim_buffer_fill_level"].items()}
    assert set(fill) == set(table)
    assert sum(fill.values()) > 10
    assert 0 <= fill[table.iloc[0]] <= 4  # what it had measured before it was silenced
    for name, count in fill.items():  # of a moment before
        assert count <= waiting.count(name) <= count + 40
    assert after["notip_sim_nats_reconnects_total"] == dict.fromkeys(table.index, 1)


def test_gateways_beyond_the_bound_are_one_series_that_never_falls(
    notip_lab, server, tmp_path, monkeypatch
):
    monkeypatch.setattr(tally, "GATEWAYS_TOLD_MAX", 2)
    gateway = gateways(count=4, sensors=("temperature",))
    platform = platform_of(notip_lab, tmp_path, gateway)

    async def main():
        run = await platform.start(gateway)
        names, ids = run.gateways().gateway, list(run.gateways().gateway_id)
        await until(lambda: run.works.pumps[0].snapshot().acknowledged > 8)
        full = await scrape(server)
        await run.delete_gateway(names[0])
        await run.delete_gateway(names[3])
        fewer = await scrape(server)
        notes = run.notes
        await run.stop()
        return ids, full, fewer, notes

    ids, full, fewer, notes = asyncio.run(main())
    name = "notip_sim_envelopes_published_total"
    assert set(full[name]) == {*ids[:2], "other"}
    assert set(fewer[name]) == {ids[1], "other"}
    assert fewer[name]["other"] >= full[name]["other"] > 0
    assert [note for note in notes if "metrics show 2 gateways one by one" in note]
    assert one(full, "gateways_running") == 4


def test_other_runs_have_no_metrics_of_gateways(server):
    async def main():
        run = Fleet("plain", seed=1).add("temperature_sensor").publish_to("memory:plain").start()
        await run.ready()
        found = await scrape(server)
        await run.stop()
        return found

    found = asyncio.run(main())
    assert not {name for name in found if not name.startswith("notip_sim_provisioning")}


class Lines(logging.Handler):
    """What a person sees who logs as JSON, as it comes."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.setFormatter(JsonFormatter())
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record))


@pytest.fixture
def lines():
    handler, level = Lines(), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    yield handler.lines
    LOG.removeHandler(handler)
    LOG.setLevel(level)


def test_what_becomes_of_gateways_stands_in_the_log_without_secrets(notip_lab, lines, tmp_path):
    gateway = gateways(count=3, sensors=("temperature",))
    platform = platform_of(notip_lab, tmp_path, gateway, known=2)

    async def main():
        run = await platform.start(gateway)
        first, second = run.gateways().gateway
        ids = run.gateways().gateway_id
        console = notip_lab.lab.console
        (look,) = run.works.journal.lookers
        look()  # as each second
        await run.stop_gateway(first)
        await run.attach(second, "humidity")
        look()
        await run.start_gateway(first)
        await run.detach(second, "temperature")
        await until(lambda: run.crew.is_connected(first))
        look()
        command = await on_lab(notip_lab, console.config(ids[1], status="nonsense"))
        await on_lab(notip_lab, console.answer(command))
        await on_lab(notip_lab, console.decommission(ids[0]))
        await until(lambda: first in run.crew.gone)
        await run.delete_gateway(second)
        secrets = [secret for record in run.crew.records.values()
                   for secret in (record.factory_key, record.aes_key.hex(), str(record.aes_key),
                                  *record.private_key_pem.splitlines()[1:-1])]
        await run.stop()
        return run, first, second, secrets, command

    run, first, second, secrets, command = asyncio.run(main())
    events = [json.loads(line) for line in lines]
    told = [(one["event"], one.get("gateway", one.get("gateways"))) for one in events]
    for event in ("gateway_provisioned", "gateway_connected", "gateway_disconnected"):
        assert (event, first) in told, event
    assert [event for event, name in told if name == first and event not in (
        "gateway_provisioned", "gateway_connected", "gateway_disconnected")] == [
        "gateway_joined", "gateway_stopped", "gateway_started", "gateway_decommissioned"]
    assert ("sensor_attached", second) in told
    assert ("sensor_detached", second) in told
    assert ("gateway_deleted", second) in told
    assert [one["level"] for one in events if one["event"] == "gateway_not_provisioned"] == [
        "WARNING"]
    (answered,) = [one for one in events if one["event"] == "gateway_command"]
    assert (answered["command_id"], answered["type"], answered["status"]) == (
        command, "config_update", "nack")
    assert answered["gateway"] == second
    assert {one["run"] for one in events if one["event"] in (
        "gateway_command", "gateway_connected", "gateway_deleted")} == {run.id}
    assert len(secrets) > 20
    everything = "\n".join(lines)
    assert not [secret for secret in secrets if secret in everything]


def test_many_gateways_at_once_are_one_line(lines):
    class Crew:
        def __init__(self):
            self.log, self.gone, self.there = CommandLog(), {}, True
            self.records = {one.name: one for one in gateways(count=500).records()}

        def is_connected(self, name):
            return self.there

    lookers = []
    works = SimpleNamespace(run_id="r", journal=SimpleNamespace(lookers=lookers))
    run = SimpleNamespace(name="plant", works=works, crew=Crew())
    Chronicle(run)
    (look,) = lookers
    look()
    run.crew.there = False
    look()
    look()
    events = [json.loads(line) for line in lines]
    assert [(one["event"], one["count"]) for one in events] == [
        ("gateway_joined", 500), ("gateway_connected", 500), ("gateway_disconnected", 500)]
    assert "500 gateways disconnected: m" in events[-1]["message"]
