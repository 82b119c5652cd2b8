"""Anomalies of gateways in a live run: contract A7, and defects 9, 14, 15 and 16 of the last part.

Asserted on what the lab's streams hold and on what its nats-server says of connections.
"""

import math

import numpy as np
import pandas as pd
import pytest

from iotsim import Gateway, Scenario
from iotsim.errors import BadValue, UnknownName
from tests import gateway_runs
from tests.gateway_runs import until
from tests.servers import notip

site, notip_lab = gateway_runs.site, notip.notip_lab  # the fixtures

pytestmark = pytest.mark.broker


def of(frame, gateway):
    return frame[frame["device_id"].str.startswith(f"{gateway}:")]


def keys_of(frame, copies=True):
    columns = ["device_id", "seq", "copy"] if copies else ["device_id", "seq"]
    return sorted(map(tuple, frame[columns].astype({"device_id": str}).values.tolist()))


# -- the contract's names and values ---------------------------------------------------------------


@pytest.mark.parametrize(("given", "loss"), [
    ({"packet_loss_pct": 30}, 0.3),       # above 1 it is per cent
    ({"packet_loss_pct": 1.5}, 0.015),    # as the reference reads it
    ({"packet_loss_pct": 100}, 1.0),
    ({"packet_loss_pct": 1}, 1.0),
    ({"packet_loss_pct": 0.25}, 0.25),
    ({"packet_loss_pct": 0}, 0.3),        # as if it were absent
    ({"packet_loss_pct": None}, 0.3),
    ({}, 0.3),
    ({"loss": 0}, 0.0),
])
def test_a_network_degradation_takes_the_platforms_loss(given, loss):
    scenario = Scenario("loss", Gateway("gw", seed=1).sensor("humidity")).inject(
        "NETWORK-DEGRADATION", where="gateway=gw", parameters={**given, "duration_seconds": 90})
    (step,) = scenario.steps
    assert step.parameters["fault"] == "packet_loss"
    assert step.parameters["duration_us"] == 90_000_000
    assert step.parameters.get("parameters", {}).get("loss", 0.3) == loss


@pytest.mark.parametrize(("name", "value"), [
    ("packet_loss_pct", -1), ("packet_loss_pct", 101), ("packet_loss_pct", math.nan),
    ("packet_loss_pct", "much"), ("packet_loss_pct", True),
    ("duration_seconds", 0), ("duration_seconds", -5), ("duration_seconds", math.nan),
])
def test_what_a_degradation_cannot_be_is_one_clear_error(name, value):
    scenario = Scenario("loss", Gateway("gw", seed=1).sensor("humidity"))
    with pytest.raises(BadValue, match=f"^{name}=") as caught:
        scenario.inject("network_degradation", parameters={name: value})
    assert "\n" not in str(caught.value)


def test_a_loss_and_a_duration_are_given_once():
    scenario = Scenario("loss", Gateway("gw", seed=1).sensor("humidity"))
    with pytest.raises(BadValue, match="given twice"):
        scenario.inject("network_degradation", loss=0.1, packet_loss_pct=10)
    with pytest.raises(BadValue, match="given twice"):
        scenario.inject("disconnect", duration="5s", duration_seconds=5)


# -- outliers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(-30, -10), (-10, 0), (-1e-6, 0), (10, 30)])
def test_an_outlier_is_outside_the_range_whatever_the_range_is(low, high):
    gateway = Gateway("gw", every="1s", seed=1).sensor("temperature", algorithm="constant",
                                                       min=low, max=high)
    result = (Scenario("out", gateway).at("2s").inject("outlier", times=1, waits=True)
              .lasting("6s")).generate()
    frame = result.frame()
    hit = frame[frame["hit"] == "outlier"]
    assert len(hit) == 1
    assert not low <= hit["value"].iloc[0] <= high
    assert frame["faults"].tolist().count("outlier") == 1  # it is over with the reading it changed


def test_an_outlier_waits_for_a_reading_that_leaves_and_a_later_one_replaces_it():
    gateway = Gateway("gw", every="1s", seed=1).sensor("humidity")
    base = Scenario("out", gateway).at("2s").suspend(duration="3s").inject(
        "disconnect", duration="5s")
    frame = (base.at("3s").inject("outlier", times=1, waits=True, value=500)
             .at("4s").inject("outlier", times=1, waits=True, value=900)
             .lasting("12s")).generate().frame(wire=True)
    left = frame[frame["withheld"] == ""]
    assert left["value"].gt(100).sum() == 1
    first = left[left["seq"] >= 4].iloc[0]
    assert (first["value"], first["hit"]) == (900, "outlier")
    assert frame[frame["withheld"] != ""]["value"].lt(100).all()


def test_an_envelope_that_is_lost_takes_its_outlier_along():
    gateway = Gateway("gw", every="1s", seed=1).sensor("humidity")
    frame = (Scenario("out", gateway).at("2s").inject("network_degradation", duration="3s", loss=1)
             .inject("outlier", times=1, waits=True, value=500)
             .lasting("8s")).generate().frame(wire=True)
    assert frame[frame["value"] == 500]["withheld"].tolist() == ["packet_loss"]


def test_a_count_of_outliers_says_when_it_is_over():
    gateway = Gateway("gw", every="1s", seed=1).sensor("humidity")
    result = (Scenario("out", gateway).at("2s").inject("outlier", times=2, waits=True)
              .lasting("8s")).generate()
    assert (result.frame()["hit"] == "outlier").sum() == 2
    (over,) = result.events("fault_cleared")["message"]
    assert over == "outlier is over"
    with pytest.raises(BadValue, match="waits=True is about the first readings"):
        Scenario("out", gateway).inject("outlier", waits=True)


def test_live_the_next_envelope_of_a_sensor_is_the_outlier(site):
    async def work(run):
        run.outlier("gw-1", "temperature")
        run.outlier("gw-1", "humidity", value=-7)
        with pytest.raises(BadValue, match="'pressure' is none of gateway gw-1"):
            run.outlier("gw-1", "pressure")
        with pytest.raises(UnknownName):
            run.outlier("gw-9", "humidity")
        await until(lambda: (run.frame()["hit"] == "outlier").sum() == 2, "outliers")
        await until(lambda: not run.snapshot().faults, "the end of the faults")
        result = await run.stop()
        return result, await site.sent(run)

    result, sent = site.go(work)
    hot = sent[sent["device"] == "gw-1:temperature"]
    assert (hot["value"] > -10).sum() == 1
    assert (sent[sent["device"] == "gw-1:humidity"]["value"] == -7).sum() == 1
    assert sent[sent["gateway"] == "gw-2"]["value"].between(-30, 70).all()
    assert [one.parameters["fault"] for one in result.actions[:2]] == ["outlier", "outlier"]


# -- a degraded link -------------------------------------------------------------------------------


def test_a_degraded_gateway_loses_doubles_and_delays_envelopes_and_the_others_do_not(site):
    async def work(run):
        done = run.degrade("gw-1", "1500ms", loss=0.4, latency_ms=150, duplicate=0.5, reorder=0.3)
        assert [one.parameters["fault"] for one in done] == [
            "packet_loss", "duplicate", "reorder", "latency_spike"]
        assert set(run.snapshot().faults) == {one.parameters["fault"] for one in done}
        await until(lambda: not run.snapshot().faults, "the end of the anomaly")
        ticks = run.snapshot().readings
        await until(lambda: run.snapshot().readings > ticks + 4)
        result = await run.stop()
        return result, await site.sent(run)

    result, sent = site.go(work, every="50ms")
    wire = result.frame(wire=True)
    left = wire[wire["withheld"] == ""]
    assert keys_of(left) == keys_of(sent.rename(columns={"device": "device_id"}))
    bad = of(wire, "gw-1")
    assert (bad["withheld"] == "packet_loss").sum() > 5
    assert (bad["copy"] == 1).sum() > 5
    assert (of(wire, "gw-2")["faults"] == "").all()
    assert bad.loc[bad["withheld"] == "packet_loss", "hit"].str.contains("packet_loss").all()
    copies = sent[sent["copy"] == 1].merge(sent[sent["copy"] == 0], on=["device", "seq"])
    assert len(copies)
    assert (copies["payload_x"] == copies["payload_y"]).all()  # the same envelope
    assert not sent[sent["device"] == "gw-1:humidity"]["seq"].is_monotonic_increasing
    assert sent[sent["device"] == "gw-2:humidity"]["seq"].is_monotonic_increasing
    calm = sorted(set(bad.loc[bad["faults"] == "", "seq"]))
    assert calm
    assert calm[-1] > bad.loc[bad["faults"] != "", "seq"].max()  # it ended by itself


def test_a_degradation_with_a_mistake_in_one_part_does_nothing(site):
    async def work(run):
        for wrong in ({"loss": 30}, {"latency_ms": -1}, {"duplicate": 2}, {"reorder": math.nan}):
            with pytest.raises(BadValue, match=f"^{next(iter(wrong))}="):
                run.degrade("gw-1", "5s", **{"loss": 0.1, **wrong})
        with pytest.raises(BadValue):
            run.degrade("gw-1", 0)
        return list(run.actions), run.snapshot().faults

    assert site.go(work) == ([], {})


def test_a_run_of_gateways_keeps_the_pace_of_the_wall(site):
    async def work(run):
        with pytest.raises(BadValue, match="is no pace for gateways"):
            run.set_speed(60)
        run.set_speed(1)
        return run.snapshot().speed

    assert site.go(work) == 1


# -- a disconnected gateway ------------------------------------------------------------------------


def test_a_disconnect_ends_the_session_and_its_end_does_not_wait_for_a_tick(site):
    async def work(run):
        await until(lambda: site.attached(run, "gw-1"))
        run.disconnect("gw-1", "800ms")  # the next tick is an hour away
        await until(lambda: asyncio_not(site.attached(run, "gw-1")), "the loss")
        assert await site.attached(run, "gw-2")
        states = run.gateways().set_index("gateway")["connected"]
        assert states.to_dict() == {"gw-1": False, "gw-2": True}
        answer = await site.config(run, "gw-1", status="paused")  # it waits at the platform
        assert await site.attached(run, "gw-1")
        return answer, run.commands(), await run.stop()

    answer, commands, result = site.go(work, every="1h")
    assert answer.status == "ack"
    injected = next(one for one in result.actions if one.verb == "inject")
    over_us = result.start_us + injected.at_us + 800_000
    received = commands["received_at"].iloc[0]
    assert received >= pd.Timestamp(over_us, unit="us", tz="UTC")
    assert received < pd.Timestamp(over_us + 10_000_000, unit="us", tz="UTC")


async def asyncio_not(found):
    return not await found


def test_what_a_disconnected_gateway_measures_is_lost_or_follows(site):
    async def work(run):
        run.disconnect("gw-1", "600ms")
        run.disconnect("gw-2", "600ms", store_and_forward=True)
        await until(lambda: not run.snapshot().faults, "the end")
        seen = run.snapshot().readings
        await until(lambda: run.snapshot().readings > seen + 4)
        result = await run.stop()
        return result, await site.sent(run)

    result, sent = site.go(work)
    wire = result.frame(wire=True)
    lost = wire[wire["withheld"] == "disconnect"]
    assert set(of(lost, "gw-1")["device_id"]) == {"gw-1:temperature", "gw-1:humidity"}
    assert not len(of(lost, "gw-2"))
    assert keys_of(wire[wire["withheld"] == ""], False) == sorted(
        map(tuple, sent[["device", "seq"]].values.tolist()))
    # A signal goes on whatever its link does.
    assert result.events("disconnected")["device_id"].nunique() == 4
    assert result.events("connected", "gw-1:humidity")["message"].tolist()[-1] == "the link is back"
    generated = site.gateway().generate("10s", start=result.start).frame()
    both = sent.merge(generated, left_on=["device", "seq"], right_on=["device_id", "seq"])
    assert len(both) == len(sent)
    np.testing.assert_array_equal(both["value_x"], both["value_y"])


def test_clear_ends_an_anomaly_before_its_time(site):
    async def work(run):
        await until(lambda: site.attached(run, "gw-1"))
        run.disconnect("gw-1", "1h")
        run.degrade("gw-1", "1h", loss=1)
        await until(lambda: asyncio_not(site.attached(run, "gw-1")), "the loss")
        ident = await site.send(run, "gw-1", "config_update", {"status": "paused"})
        run.clear("disconnect", "gateway=gw-1")
        await until(lambda: "held" in run.commands()["status"].tolist())  # still degraded
        run.clear(where="gateway=gw-1")
        return (await site.answer(ident)).status

    assert site.go(work) == "ack"


def test_a_command_that_is_on_its_way_when_a_gateway_is_disconnected_is_not_late(site):
    async def work(run):
        await until(lambda: site.attached(run, "gw-1"))
        run.disconnect("gw-1", "500ms")
        ident = await site.send(run, "gw-1", "config_update", {"status": "paused"})
        answer = await site.answer(ident)
        await until(lambda: asyncio_is(site.consumer(run, "gw-1"), 30.0), "the usual ack wait")
        await until(lambda: run.gateways()["waiting"].sum() == 0)
        return answer, run.commands()

    answer, commands = site.go(work)
    assert answer.status == "ack"
    assert answer.latency_s < 10  # and not the 30 s after which a stream delivers again
    # Once done; what the stream had delivered again meanwhile has the same answer.
    assert set(commands["status"]) == {"ack"}
    assert commands["repeated"].tolist().count(False) == 1


async def asyncio_is(consumer, ack_wait_s):
    return (await consumer).config.ack_wait == ack_wait_s


def test_gateways_that_share_a_connection_are_disconnected_one_by_one(site):
    async def work(run):
        await until(lambda: site.attached(run, "gw-1"))
        run.disconnect("gw-1", "700ms")
        ident = await site.send(run, "gw-1", "config_update", {"status": "paused"})
        other = await site.config(run, "gw-2", status="paused")
        assert other.status == "ack"
        assert run.snapshot().faults.get("disconnect") == 2  # gw-2 has not waited for it
        answer = await site.answer(ident)
        assert not run.snapshot().faults.get("disconnect")
        assert await site.attached(run, "gw-1")
        result = await run.stop()
        return answer.status, result, await site.sent(run)

    status, result, sent = site.go(work, connection="shared", own_certificates=False)
    assert status == "ack"
    wire = result.frame(wire=True)
    assert (of(wire, "gw-1")["withheld"] == "disconnect").any()
    assert keys_of(wire[wire["withheld"] == ""]) == keys_of(
        sent.rename(columns={"device": "device_id"}))


def test_a_sensor_that_is_attached_meanwhile_shares_the_anomalies(site):
    async def work(run):
        run.disconnect("gw-1", "700ms")
        run.inject("network_degradation", where="gateway=gw-1", packet_loss_pct=100,
                   duration_seconds=3600)
        await run.attach("gw-1", "pressure")
        await until(lambda: run.snapshot().faults.get("disconnect", 0) == 0)
        await until(lambda: (run.frame(wire=True)["withheld"] == "packet_loss").any())
        result = await run.stop()
        return result, await site.sent(run)

    result, sent = site.go(work)
    wire = result.frame(wire=True)
    fresh = wire[wire["device_id"] == "gw-1:pressure"]
    assert len(fresh)
    assert set(fresh["withheld"]) <= {"disconnect", "packet_loss"}
    assert "gw-1:pressure" not in set(sent["device"])


def test_a_session_closes_when_the_last_sensor_that_was_up_is_detached(site):
    async def work(run):
        await until(lambda: site.attached(run, "gw-1"))
        run.inject("disconnect", where="id=gw-1:humidity", duration="1h")
        await until(lambda: run.snapshot().faults.get("disconnect") == 1)
        assert await site.attached(run, "gw-1")  # its thermometer is up
        await run.detach("gw-1", "temperature")
        await until(lambda: not run.gateways().connected[0])
        await run.attach("gw-1", "pressure")
        run.clear("disconnect")
        await until(lambda: run.gateways().connected[0])
        await until(lambda: "gw-1:pressure" in set(run.frame().device_id))
        return await run.stop()

    site.go(work)


def test_commands_of_gateways_are_their_platform_s_alone(site):
    async def work(run):
        with pytest.raises(ValueError, match=r"from their platform alone.*console\.config"):
            run.command("config_update", where="gateway=gw-1", payload={"send_frequency_ms": 0})
        assert run.disconnect("gateway=gw-1", "1ms").devices == 2  # as a selector, or by name
        return await run.stop()

    site.go(work)
