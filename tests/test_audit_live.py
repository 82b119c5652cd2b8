"""Sent against received through a real broker: what is lost, and whose loss it is."""

import asyncio
import os
import signal

import numpy as np
import pandas as pd
import pytest

import iotsim
from iotsim import Fleet, Scenario
from iotsim.errors import BadValue
from tests.rig import CALM_AFTER, Rig


def sensors(url, count=20, every="50ms", name="plant", **options):
    made = Fleet(name, seed=42).add("temperature_sensor", count=count, every=every,
                                    labels={"site": "north"})
    return made.publish_to(url, **options)


def run(coroutine):
    return asyncio.run(coroutine)


def law(audit):
    """Every reading that left is in exactly one place."""
    assert audit.sent == audit.received + audit.lost + audit.refused + audit.unknown
    frame = audit.frame()
    assert frame["sent"].sum() == audit.sent
    return audit


def test_a_clean_run_arrives_whole_and_its_latency_is_known(mosquitto):
    broker = mosquitto()
    with iotsim.tap(broker.url) as tap:
        result = run(sensors(broker.url, stamp=True).run("1s"))
        audit = law(result.audit(tap))
        assert audit.ok
        assert audit.verdict.startswith("ok: 400 sent, 400 received, 0 lost, 0 duplicated, latency")
        assert audit.clock == "stamp"
        assert 0 < audit.latency[0] <= audit.latency[1] <= audit.latency[2] < 45
        slower = result.audit(tap, clock="timestamp")
        assert slower.clock == "timestamp"
        assert slower.latency[0] > audit.latency[0]  # the slot is in it, too
        assert (audit.late, result.audit(tap, late="1us").late) == (0, 400)
        frame = audit.frame()
        assert (frame["latency_p50"] <= frame["latency_p99"]).all()
        assert (frame["latency_p99"] <= frame["latency_max"]).all()
    assert result.audit(tap).verdict == audit.verdict  # closed, and none the worse
    assert result.audit(tap.frame()).latency == audit.latency
    axes = audit.plot()
    assert axes.get_ylabel() == "latency, ms (since the hand-over)"


@pytest.mark.parametrize("speed", [4, "max"])
def test_at_any_pace_but_the_highest_a_timestamp_is_a_time_of_day(mosquitto, speed):
    broker = mosquitto()
    with iotsim.tap(broker.url) as tap:
        result = run(sensors(broker.url).run("1s", speed=speed))
        audit = law(result.audit(tap))
    assert audit.ok
    if speed == "max":
        assert np.isnan(audit.latency[0])
        assert audit.verdict.endswith("at speed 'max' a timestamp is no time of day")
    else:
        assert 0 < audit.latency[0] < 45
        assert audit.clock == "timestamp"


def test_a_pause_and_another_speed_do_not_count_as_latency(mosquitto):
    broker = mosquitto()

    async def main():
        live = sensors(broker.url).start()
        await live.ready()
        await asyncio.sleep(0.3)
        live.pause()
        await asyncio.sleep(1)
        live.resume()
        live.set_speed(3)
        await asyncio.sleep(0.4)
        return await live.stop()

    with iotsim.tap(broker.url) as tap:
        audit = law(run(main()).audit(tap))
    assert audit.ok
    assert 0 < audit.latency[0] < 0.8  # without the pause; most readings came after it


def test_simulated_faults_lose_nothing(mosquitto):
    broker = mosquitto()
    story = (Scenario("outage", sensors(broker.url))
             .at("200ms").inject("packet_loss", loss=0.3, duration="300ms")
             .at("500ms").inject("disconnect", duration="300ms", store_and_forward=True)
             .at("600ms").inject("disconnect", where="count=4", duration="400ms")
             .at("900ms").inject("duplicate", duration="300ms")
             .at("1000ms").inject("reorder", duration="400ms")
             .at("1200ms").inject("latency_spike", latency_ms=150, duration="300ms")
             .at("1300ms").inject("data_corruption", corruption_rate=0.5, duration="300ms")
             .at("1400ms").inject("clock_drift", drift_rate_ms_per_sec=-300, duration="300ms")
             .at("1500ms").inject("rate", factor=3, duration="200ms")
             .lasting("2s"))
    with iotsim.tap(broker.url) as tap:
        audit = law(run(story.run()).audit(tap))
    assert audit.ok, audit.verdict
    assert audit.expected > 20
    assert audit.duplicated == audit.out_of_order == audit.corrupted == audit.unexpected == 0
    table = audit.by_fault().set_index("fault")
    assert table.loc["packet_loss", "expected"] > 0
    assert table.loc["duplicate", "sent"] > 100
    assert table["lost_by_broker"].sum() == 0
    assert set(audit.readings("expected")["whose"]) == {"packet_loss", "disconnect"}


def test_what_the_broker_refuses_is_refused_and_said_why(mosquitto):
    names = [f"temperature_sensor-{i:04d}" for i in range(10)]
    acl = [f"topic write devices/{name}/telemetry" for name in names[1:]]
    broker = mosquitto(acl=["topic read #", *acl])
    with iotsim.tap(broker.url) as tap:
        audit = law(run(sensors(broker.url, count=10).run("1s")).audit(tap))
    assert (audit.sent, audit.received, audit.refused, audit.lost) == (200, 180, 20, 0)
    assert dict(audit.reasons) == {"not authorized (135)": 20}
    assert audit.verdict.startswith("20 refused (not authorized (135)), 0 lost by the simulator: ")
    assert not audit.ok
    assert audit.lost_by_simulator == 0
    refused = audit.readings("refused")
    assert set(refused["device_id"]) == {names[0]}
    assert set(refused["whose"]) == {"not authorized (135)"}
    assert not refused["acked"].any()


def test_a_broker_that_acknowledges_what_it_throws_away_is_blamed(mosquitto):
    names = [f"temperature_sensor-{i:04d}" for i in range(10)]
    acl = [f"topic write devices/{name}/telemetry" for name in names[1:]]
    broker = mosquitto(acl=["topic read #", *acl])
    # MQTT 3.1.1 has no word for no: a PUBACK says nothing.
    with iotsim.tap(broker.url, version="3.1.1") as tap:
        fleet = sensors(broker.url, count=10, version="3.1.1", audit_field="_seq")
        result = run(fleet.run("1s"))
        audit = law(result.audit(tap))
    assert (audit.sent, audit.received, audit.lost_by_broker) == (200, 180, 20)
    assert (audit.lost_by_simulator, audit.lost_in_flight, audit.duplicated) == (0, 0, 0)
    assert audit.verdict.startswith(
        "20 lost after the broker acknowledged them, 0 lost by the simulator: 200 sent")
    frame = audit.frame().set_index("device_id")
    assert frame.loc[names[0], "lost_by_broker"] == 20
    assert frame["lost_by_broker"].sum() == 20


def test_acknowledgements_that_are_cut_off_make_duplicates_and_lose_nothing(mosquitto):
    broker = mosquitto()

    async def main(tap):
        async with Rig(broker.port, "cut on the way back", seed=3) as rig:
            url = f"mqtt://127.0.0.1:{rig.port}"
            live = sensors(url, every="20ms").start()
            await live.ready()
            async with asyncio.timeout(45):
                while rig.struck < CALM_AFTER:
                    await asyncio.sleep(0.05)
            result = await live.stop()
            with pytest.raises(BadValue, match="listens where this run did not publish to"):
                result.audit(tap)
            return result.audit(tap, publisher=url)

    with iotsim.tap(broker.url) as tap:
        audit = law(run(main(tap)))
    assert audit.ok, audit.verdict
    assert audit.recovered > 0
    assert audit.duplicated > 0
    assert audit.out_of_order == 0
    doubled = audit.readings("duplicated")
    assert (doubled["copies"] > 1).all()
    assert doubled["copies"].sum() - len(doubled) == audit.duplicated


def test_at_qos_0_what_a_lost_link_takes_along_was_in_flight(mosquitto):
    broker = mosquitto()

    async def main(tap):
        async with Rig(broker.port, "cut on the way there", seed=5) as rig:
            url = f"mqtt://127.0.0.1:{rig.port}"
            live = sensors(url, every="20ms", qos=0).start()
            await live.ready()
            async with asyncio.timeout(45):
                while rig.struck < CALM_AFTER:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
            return (await live.stop()).audit(tap, publisher=url)

    with iotsim.tap(broker.url) as tap:
        audit = law(run(main(tap)))
    assert audit.lost_in_flight > 0
    assert audit.lost_by_simulator == audit.lost_by_broker == 0
    assert "lost in flight, where nobody acknowledged them" in audit.verdict
    assert set(audit.readings("lost")["whose"]) == {"in flight"}


def lost_at_the_end_of_what_came_before(audit, tap, since_us):
    """Each device's losses follow all that came before the tap was cut, and precede the rest."""
    came = tap.frame()
    early = set(came["id"][came["time"] <= pd.Timestamp(since_us, unit="us", tz="UTC")])
    readings = audit.readings()
    readings["early"] = readings["id"].isin(early)
    assert readings["early"].sum() >= 200
    for _, mine in readings.groupby("device_id"):
        lost = mine.loc[mine["class"] == "lost", "seq"]
        heard = mine[mine["received"].notna()]
        assert not set(lost) & set(heard["seq"])
        if len(lost):
            assert heard.loc[heard["early"], "seq"].max() < lost.min()
            assert lost.max() < heard.loc[~heard["early"], "seq"].min()


@pytest.mark.parametrize("qos", [0, 1])
def test_a_broker_that_is_killed_ends_the_tap_too_and_the_verdict_says_so(mosquitto, qos):
    broker = mosquitto()

    async def main(tap):
        live = sensors(broker.url, every="20ms", qos=qos).start()
        await live.ready()
        await tap.received(200)
        broker.kill()
        await asyncio.sleep(0.3)
        broker.start()
        await tap.received(tap.count + 200, 45)
        return await live.stop()

    with iotsim.tap(broker.url) as tap:
        audit = law(run(main(tap)).audit(tap))
        assert not tap.ok
        ((since_us, until_us),) = tap.away
        assert 0 < until_us - since_us < 5_000_000
    # What mosquitto had not delivered when it was killed is gone, and nothing else is.
    assert audit.lost == (audit.lost_by_broker if qos else audit.lost_in_flight)
    lost_at_the_end_of_what_came_before(audit, tap, since_us)
    assert audit.lost_by_simulator == audit.out_of_order == 0
    assert audit.unexpected == audit.corrupted == 0
    assert audit.received > 300
    if audit.unknown:  # what came while the tap was away, unless it was back first
        assert audit.verdict.startswith("unknown: ")
        assert "was disconnected once" in audit.verdict
        assert "0 lost by the simulator" in audit.verdict
    assert audit.ok == (not audit.unknown and not audit.lost)


def test_what_never_left_a_dead_brokers_queue_is_the_simulators_loss(mosquitto):
    broker = mosquitto()

    async def main(tap):
        live = sensors(broker.url, every="20ms").start()
        await live.ready()
        await tap.received(200)
        broker.kill()
        await asyncio.sleep(1.0)
        return await live.stop()

    with iotsim.tap(broker.url) as tap:
        result = run(main(tap))
        audit = law(result.audit(tap))
    (ledger,) = result.publishers.values()
    assert audit.lost_by_simulator == ledger.dropped > 0
    assert set(audit.readings("lost")["whose"]) == {"never sent"}
    assert f"{ledger.dropped:,} lost by the simulator (stopped before it was sent)" in audit.verdict
    assert not audit.ok


def test_a_tap_that_is_full_is_no_witness(mosquitto):
    broker = mosquitto()
    with iotsim.tap(broker.url, capacity=10) as tap:
        audit = law(run(sensors(broker.url).run("500ms")).audit(tap))
    assert (audit.received, audit.unknown, audit.lost) == (10, 190, 0)
    assert "over its capacity: 190 messages dropped" in audit.verdict
    assert audit.verdict.startswith("unknown: 190 of 200 did not come, and the tap did not see")


def test_a_tap_that_was_killed_is_no_witness(mosquitto):
    broker = mosquitto()
    with iotsim.tap(broker.url) as tap:

        async def main():
            live = sensors(broker.url).start()
            await live.ready()
            await tap.received(100)
            held = len(tap.messages())
            os.kill(tap._process.pid, signal.SIGKILL)
            await asyncio.sleep(0.2)
            return await live.stop(), held

        result, held = run(main())
        audit = law(result.audit(tap))
    assert audit.received == held
    assert audit.lost == 0
    assert audit.unknown == audit.sent - held > 0
    assert "process" in audit.verdict


def test_a_tap_that_came_late_does_not_accuse_anybody(mosquitto):
    broker = mosquitto()

    async def main():
        live = sensors(broker.url).start()
        await live.ready()
        await asyncio.sleep(0.5)
        with iotsim.tap(broker.url) as tap:
            await tap.received(100)
            return (await live.stop()).audit(tap)

    audit = law(run(main()))
    assert audit.lost == 0
    assert audit.unknown > 50
    assert "they left before or after it listened" in audit.verdict


def test_what_was_kept_for_a_tap_is_no_excuse(mosquitto):
    # As a stream or a durable queue has it: all that came had left before anybody listened.
    broker = mosquitto()
    with iotsim.tap(broker.url) as tap:
        result = run(sensors(broker.url).run("500ms"))
        assert tap.wait(200, 45)
        tap._fetched()
        tap.since_us += 5_000_000
        del tap._records[107:109]
        tap._state["count"] -= 2
        tap.close()
        audit = law(result.audit(tap))
    assert (audit.lost_by_broker, audit.unknown) == (2, 0)


def test_a_tap_that_listens_to_some_devices_says_nothing_of_the_others(mosquitto):
    broker = mosquitto()
    with (
        iotsim.tap(broker.url, "devices/temperature_sensor-0003/#") as one,
        iotsim.tap(broker.url, "elsewhere/+/telemetry") as none,
    ):
        result = run(sensors(broker.url).run("500ms"))
        audit = law(result.audit(one))
        assert not audit.ok
        assert audit.verdict.startswith("190 of 200 not listened to, 0 lost by the simulator: ")
        assert (audit.sent, audit.received, len(audit.frame())) == (10, 10, 1)
        chosen = law(result.audit(one, where="id=temperature_sensor-0003"))
        assert chosen.ok, chosen.verdict
        assert (chosen.sent, chosen.unheard) == (10, 0)
        assert result.audit(one.frame()).unheard == 190
        nothing = result.audit(none)
    assert nothing.sent == 0
    assert not nothing.ok
    assert nothing.verdict.startswith(
        "nothing to compare: the tap listens to none of the 200 readings that left a device")
    assert nothing.frame().empty
    assert nothing.readings().empty
    assert len(nothing.by_fault()) == 1
    nothing.plot()


def test_without_a_topic_a_tap_hears_whatever_topics_devices_have(mosquitto):
    broker = mosquitto()
    fleet = sensors(broker.url, count=5, topic="plant/{device_id}").add(
        "temperature_sensor", count=5, every="50ms", id="other-{n}")
    with iotsim.tap(broker.url) as tap:
        audit = law(run(fleet.run("300ms")).audit(tap))
    assert audit.ok, audit.verdict
    assert audit.sent == 60


def test_a_table_of_an_ill_tap_is_no_better_a_witness_than_the_tap(mosquitto):
    broker = mosquitto()
    with iotsim.tap(broker.url, capacity=10) as tap:
        result = run(sensors(broker.url).run("200ms"))
        whole, table = law(result.audit(tap)), law(result.audit(tap.frame()))
        plain = result.audit(tap.messages())
    assert table.verdict == whole.verdict
    assert (table.unknown, table.lost) == (70, 0)
    assert plain.lost_by_broker == 70
    assert plain.verdict.endswith("the tap's health is not known")


def test_of_two_runs_before_one_tap_each_is_waited_for(mosquitto):
    broker = mosquitto()
    with iotsim.tap(broker.url) as tap:
        for count in (5, 20):
            audit = law(run(sensors(broker.url, count=count).run("300ms")).audit(tap))
            assert audit.ok, audit.verdict
        assert audit.foreign == 30


def test_messages_of_another_run_are_told_apart(mosquitto):
    broker = mosquitto()

    async def main():
        return await asyncio.gather(sensors(broker.url).run("500ms"),
                                    sensors(broker.url, name="other").run("500ms"))

    with iotsim.tap(broker.url) as tap:
        one, other = (result.audit(tap) for result in run(main()))
    for audit in (one, other):
        assert audit.ok
        assert (audit.sent, audit.foreign, audit.unexpected) == (200, 200, 0)
        assert "200 of other runs or senders" in audit.verdict


def test_sessions_of_the_devices_own_are_audited_alike(mosquitto):
    broker = mosquitto()
    story = (Scenario("own", sensors(broker.url, count=5, every="20ms", sessions="per-device"))
             .at("300ms").inject("disconnect", where="count=2", duration="300ms",
                                 store_and_forward=True)
             .lasting("1s"))
    with iotsim.tap(broker.url) as tap:
        audit = law(run(story.run()).audit(tap))
    assert audit.lost == audit.out_of_order == 0, audit.verdict
    assert audit.ok


def test_devices_that_join_and_leave_are_in_it(mosquitto):
    broker = mosquitto()

    async def main():
        live = sensors(broker.url, count=5).start()
        await live.ready()
        await asyncio.sleep(0.2)
        live.add("temperature_sensor", count=3, every="50ms", labels={"site": "south"})
        await asyncio.sleep(0.3)
        live.stop(where="site=north")
        await asyncio.sleep(0.2)
        live.inject("firmware_update", version="2", duration="100ms")
        await asyncio.sleep(0.4)
        return await live.stop()

    with iotsim.tap(broker.url) as tap:
        result = run(main())
        audit = law(result.audit(tap))
        assert audit.ok, audit.verdict
        assert len(audit.frame()) == 8
        assert law(result.audit(tap, where="site=south")).received > 10
