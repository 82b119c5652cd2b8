"""Commands of gateways in a live run: contract A6, on what the lab's streams received.

What a command does is an action like any other; it is never applied to a reading that is computed.
"""

import numpy as np
import pandas as pd
import pytest

import iotsim
from iotsim.gateway import commands as commands_module
from iotsim.gateway.store import Store
from tests import gateway_runs
from tests.gateway_runs import until
from tests.servers import notip

site, notip_lab = gateway_runs.site, notip.notip_lab  # the fixtures

pytestmark = pytest.mark.broker

BOTH = ("gw-1:temperature", "gw-1:humidity")


def steps_ms(sent, device):
    """The time from each envelope to the next, in their order."""
    times = sent[sent["device"] == device].sort_values("seq")["time"]
    return np.rint(times.diff().dropna().dt.total_seconds() * 1e3).astype(int).tolist()


def test_a_frequency_holds_from_the_next_tick_on_for_all_sensors_of_the_gateway(site):
    async def work(run):
        await until(lambda: run.snapshot().readings > 8)
        answer = await site.config(run, "gw-1", send_frequency_ms=60)
        assert answer.status == "ack"
        seen = run.snapshot().readings
        await until(lambda: run.snapshot().readings > seen + 12)
        result = await run.stop()
        return result, await site.sent(run), run.gateways()

    result, sent, gateways = site.go(work, every="200ms")
    for device in BOTH:
        steps = steps_ms(sent, device)
        turn = next(i for i, step in enumerate(steps) if step != 200)
        assert turn > 0
        assert steps[turn] % 60 == 0  # the grid goes on from the last tick, and has no past
        assert steps[turn] < 200 + 60
        assert set(steps[turn + 1:]) == {60}
    first, second = (sent[sent["device"] == device].set_index("seq")["time"] for device in BOTH)
    pd.testing.assert_series_equal(first, second)
    assert set(steps_ms(sent, "gw-2:humidity")) == {200}
    assert gateways["send_frequency_ms"].tolist() == [60, 200]
    changed = next(one for one in result.actions if one.verb == "set")
    assert dict(changed.parameters) == {"where": "gateway=gw-1", "every_us": 60_000}
    with Store.open(site.store) as store:
        assert store.get("gw-1").send_frequency_ms == 60


@pytest.mark.parametrize(("word", "status"), [("suspended", "paused"), ("offline", "offline")])
def test_a_silent_gateway_goes_on_ticking_and_answering_until_it_is_online(site, word, status):
    async def work(run):
        await until(lambda: run.snapshot().readings > 4)
        assert (await site.config(run, "gw-1", status=word)).status == "ack"
        assert run.gateways()["status"].tolist() == [status, "online"]
        assert await site.attached(run, "gw-1")  # silent, not gone
        seen = run.snapshot().readings
        await until(lambda: run.snapshot().readings > seen + 8)
        assert (await site.config(run, "gw-1", send_frequency_ms=80)).status == "ack"
        seen = run.snapshot().readings
        await until(lambda: run.snapshot().readings > seen + 8)
        assert (await site.config(run, "gw-1", status="online")).status == "ack"
        seen = run.snapshot().readings
        await until(lambda: run.snapshot().readings > seen + 8)
        result = await run.stop()
        return result, await site.sent(run)

    result, sent = site.go(work)
    wire = result.frame(wire=True)
    silent = wire[wire["withheld"] == "suspend"]
    assert set(silent["device_id"]) == set(BOTH)
    seqs = silent.loc[silent["device_id"] == BOTH[0], "seq"].tolist()
    assert seqs == list(range(seqs[0], seqs[-1] + 1))
    arrived = sent.loc[sent["device"] == BOTH[0], "seq"].tolist()
    assert not set(arrived) & set(seqs)
    assert min(arrived) < seqs[0] < seqs[-1] < max(arrived)
    assert sent.loc[sent["device"] == BOTH[0], "seq"].is_monotonic_increasing


def test_a_command_changes_both_or_nothing(site):
    async def work(run):
        refused = [
            await site.config(run, "gw-1", send_frequency_ms=70, status="asleep"),
            await site.config(run, "gw-1", send_frequency_ms=0, status="paused"),
            await site.config(run, "gw-1", send_frequency_ms=10**13),
        ]
        assert run.gateways()["status"].tolist() == ["online", "online"]
        done = await site.config(run, "gw-1", send_frequency_ms=70, status="paused")
        return refused, done, run.gateways(), await run.stop()

    refused, done, gateways, result = site.go(work)
    assert [one.status for one in refused] == ["nack"] * 3
    assert refused[0].message.startswith("unknown status 'asleep'")
    assert refused[1].message == "sendFrequencyMs must be > 0"
    assert refused[2].message.startswith("sendFrequencyMs must be <= 86400000")
    assert done.status == "ack"
    assert (gateways["status"][0], gateways["send_frequency_ms"][0]) == ("paused", 70)
    assert [one.verb for one in result.actions] == ["command", "set", "inject", "stop"]


def test_the_log_says_which_command_asked_and_no_more_of_it_than_it_changed(site):
    async def work(run):
        ident = await site.send(run, "gw-2", "firmware_push", {
            "firmware_version": "2.1.0", "download_url": "https://host/secret-token"})
        assert (await site.answer(ident)).status == "ack"
        assert run.gateways()["firmware"].tolist() == ["1.0.0", "2.1.0"]
        other = await site.send(run, "gw-1", "config_update", {"status": "paused", "extra": 1})
        await site.answer(other)
        await until(lambda: run.commands()["status"].tolist() == ["ack", "ack"])
        return ident, other, run.commands(), await run.stop()

    ident, other, table, result = site.go(work)
    asked = [one for one in result.actions if one.verb == "command"]
    assert [dict(one.parameters) for one in asked] == [
        {"name": "firmware_push", "where": "gateway=gw-2", "payload": {"firmware": "2.1.0"},
         "id": ident, "by": site.lab.nats_url},
        {"name": "config_update", "where": "gateway=gw-1", "payload": {"status": "paused"},
         "id": other, "by": site.lab.nats_url},
    ]
    after = result.actions[result.actions.index(asked[1]) + 1]
    assert (after.verb, dict(after.parameters)) == (
        "inject", {"fault": "suspend", "where": "gateway=gw-1", "by": "platform"})
    assert after.at_us - asked[1].at_us < 1_000_000
    assert "secret-token" not in str([one.spec() for one in result.actions])
    assert table["command_id"].tolist() == [ident, other]
    assert table["type"].tolist() == ["firmware_push", "config_update"]
    assert (table["latency"] < 10).all()
    assert set(result.commands()["command_id"]) == {ident, other}
    with Store.open(site.store) as store:
        assert store.get("gw-2").firmware == "2.1.0"


def test_a_command_that_comes_twice_is_done_once(site):
    async def work(run):
        for _ in range(2):
            await site.send(run, "gw-1", "config_update", {"send_frequency_ms": 70}, id="twice-1")
        await until(lambda: run.commands()["status"].tolist() == ["ack", "ack"])
        return run.commands(), await run.stop()

    table, result = site.go(work)
    assert table["repeated"].tolist() == [False, True]
    assert [one.verb for one in result.actions] == ["command", "set", "stop"]


def test_commands_of_a_degraded_gateway_are_answered_after_it_in_order(site):
    async def work(run):
        run.degrade("gw-1", "900ms", loss=0.5)
        idents = [await site.send(run, "gw-1", "config_update", {"send_frequency_ms": every})
                  for every in (70, 90, 110)]
        other = await site.config(run, "gw-2", send_frequency_ms=130)
        assert other.status == "ack"
        assert run.snapshot().faults.get("packet_loss") == 2  # gw-2's own link is well
        await until(lambda: run.commands()["status"].tolist().count("held") == 3)
        await until(lambda: run.gateways()["waiting"].tolist() == [3, 0])
        answers = [await site.answer(ident) for ident in idents]
        return answers, run.gateways(), await run.stop()

    answers, gateways, result = site.go(work, every="200ms")
    assert [one.status for one in answers] == ["ack"] * 3
    assert gateways["send_frequency_ms"].tolist() == [110, 130]
    injected = next(one for one in result.actions if one.verb == "inject")
    sets = [one for one in result.actions if one.verb == "set" and "gw-1" in str(one.parameters)]
    assert [one.parameters["every_us"] for one in sets] == [70_000, 90_000, 110_000]
    assert all(one.at_us >= injected.at_us + 900_000 for one in sets)


def test_a_command_that_grew_old_in_an_anomaly_is_expired(site, monkeypatch):
    monkeypatch.setattr(commands_module, "FRESH_US", 1_000_000)  # instead of a minute

    async def work(run):
        run.disconnect("gw-1", "1500ms")
        run.degrade("gw-2", "1500ms", loss=0)
        idents = [await site.send(run, name, "config_update", {"status": "paused"})
                  for name in ("gw-1", "gw-2")]
        answers = [await site.answer(ident) for ident in idents]
        late = await site.config(run, "gw-2", status="paused", age_s=61)
        return [one.status for one in (*answers, late)], run.gateways(), await run.stop()

    statuses, gateways, result = site.go(work)
    assert statuses == ["expired"] * 3
    assert gateways["status"].tolist() == ["online", "online"]
    assert not [one for one in result.actions if one.verb == "command"]


def test_commands_during_a_disconnect_come_at_reconnection(site):
    async def work(run):
        await until(lambda: site.attached(run, "gw-1"))
        run.disconnect("gw-1", "900ms")

        async def gone():
            return not await site.attached(run, "gw-1")

        await until(gone, "the loss")
        idents = [await site.send(run, "gw-1", "config_update", payload) for payload in
                  ({"send_frequency_ms": 70}, {"status": "paused"}, {"status": "nonsense"})]
        assert not len(run.commands())
        answers = [await site.answer(ident) for ident in idents]
        return answers, run.commands(), await run.stop()

    answers, table, result = site.go(work)
    assert [one.status for one in answers] == ["ack", "ack", "nack"]
    assert table["deliveries"].tolist() == [1, 1, 1]
    injected = next(one for one in result.actions if one.verb == "inject")
    back = pd.Timestamp(result.start_us + injected.at_us + 900_000, unit="us", tz="UTC")
    assert (table["received_at"] >= back).all()


def test_commands_that_waited_for_a_gateway_are_done_before_or_soon_after_it_begins(site):
    async def leave(run):
        await run.stop()
        return [await site.send(run, name, "config_update", {"send_frequency_ms": 60})
                for name in ("gw-1", "gw-2")]

    sent = site.go(leave)

    async def work(run):
        answers = [await site.answer(ident) for ident in sent]
        await until(lambda: run.snapshot().readings > 20)
        return answers, run.gateways(), await run.stop()

    answers, gateways, result = site.go(work)
    assert [one.status for one in answers] == ["ack", "ack"]
    assert gateways["send_frequency_ms"].tolist() == [60, 60]
    assert sorted(one.verb for one in result.actions) == [
        "command", "command", "set", "set", "stop"]
    scenario = result.to_scenario()
    assert scenario.generate(start=result.start).digest == result.digest


def test_what_a_platform_asks_while_a_run_ends_is_in_the_store_for_the_next(site):
    async def work(run):
        run._request_stop()
        run.crew.hands.set_frequency("gw-1", 330)
        run.crew.hands.asked("gw-1", "c", "config_update", {"send_frequency_ms": 330})
        assert run.crew.records["gw-1"].send_frequency_ms == 330
        return await run.stop()

    result = site.go(work)
    assert [one.verb for one in result.actions] == ["stop"]
    assert not result.errors


def test_a_command_never_changes_a_reading_that_was_computed(site, tmp_path):
    async def work(run):
        await until(lambda: run.snapshot().readings > 4)
        before = run.frame()
        await site.config(run, "gw-1", send_frequency_ms=60)
        await site.config(run, "gw-1", status="paused")
        await until(lambda: (run.frame(wire=True)["withheld"] == "suspend").any())
        await site.config(run, "gw-1", status="online", send_frequency_ms=90)
        seen = run.snapshot().readings
        await until(lambda: run.snapshot().readings > seen + 8)
        result = await run.stop()
        return before, result, await site.sent(run)

    before, result, sent = site.go(work)
    after = result.frame()
    pd.testing.assert_frame_equal(before, after.iloc[:len(before)].reset_index(drop=True)[
        list(before.columns)], check_categorical=False)
    assert len(after) == len(sent)
    path = tmp_path / "commands.iotsim"
    result.save(path)
    verified = iotsim.verify(path)
    assert verified.ok, verified.difference


def test_what_people_clear_wakes_nobody_whom_the_platform_or_a_stop_has_silenced(site):
    async def work(run):
        await until(lambda: run.snapshot().readings > 4)
        assert (await site.config(run, "gw-1", status="paused")).status == "ack"
        await run.stop_gateway("gw-2")
        run.suspend("gateway=gw-1")
        run.clear()
        run.clear("suspend")
        cleared_us = run.snapshot().elapsed_us
        seen = run.snapshot().readings
        await until(lambda: run.snapshot().readings > seen + 8)
        assert run.gateways()["state"].tolist() == ["running", "stopped"]
        # A person's own silence outlives what the platform says, and a start.
        run.suspend("gateway=gw-1")
        assert (await site.config(run, "gw-1", status="online")).status == "ack"
        await run.start_gateway("gw-2")
        seen = run.snapshot().readings
        await until(lambda: run.snapshot().readings > seen + 8)
        return cleared_us, await run.stop()

    cleared_us, result = site.go(work)
    wire = result.frame(wire=True)
    wire = wire[wire["time"] > result.start + pd.Timedelta(cleared_us, "us")]
    sent = wire[wire["withheld"] == ""]
    assert set(sent["gateway"]) == {"gw-2"}
    woken = next(one for one in reversed(result.actions) if one.verb == "clear")
    assert dict(woken.parameters)["by"] == "stopped"
    assert sent["time"].min() >= result.start + pd.Timedelta(woken.at_us, "us")
    path = result.save(site.folder / "silence.iotsim")
    assert iotsim.verify(path).ok
