"""What happened, as a frame: the same live and offline, and nothing that has not happened yet."""

import asyncio
from collections import defaultdict

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsim import Fleet, Scenario
from iotsim import events as events_module
from iotsim.errors import BadValue, UnknownName
from iotsim.events import EVENTS, ORDER
from tests.action_rig import mixed
from tests.live import START, replayed, run

DAY = pd.Timestamp("2026-01-01", tz="UTC")


def plant(count=3, pumps=2):
    fleet = Fleet("plant", seed=3).add("temperature_sensor", count=count, labels={"site": "n"})
    return fleet.add("pump", count=pumps) if pumps else fleet


def told(frame):
    """Every row as (seconds, device or None, event, message)."""
    return [(pd.Timedelta(row.time - DAY).total_seconds(),
             None if pd.isna(row.device_id) else row.device_id, row.event, row.message)
            for row in frame.itertuples()]


def of(frame, *names):
    return [entry for entry in told(frame) if entry[2] in names]


def test_devices_come_connect_and_go():
    result = (Scenario("s", plant(1, 1)).at("10s").add("pump").at("20s").stop(where="id=pump-0000")
              .lasting("1m").generate())
    assert of(result.events(), "spawned", "connected", "stopped") == [
        (0.0, "temperature_sensor-0000", "spawned", "a temperature_sensor begins"),
        (0.0, "pump-0000", "spawned", "a pump begins"),
        (0.0, "temperature_sensor-0000", "connected", "the link is up"),
        (0.0, "pump-0000", "connected", "the link is up"),
        (10.0, "pump-0001", "spawned", "a pump begins"),
        (10.0, "pump-0001", "connected", "the link is up"),
        (20.0, "pump-0000", "stopped", "a pump ends"),
    ]
    spawned = result.events("spawned")["metadata"].iloc[0]
    assert spawned["device_type"] == "temperature_sensor"
    assert spawned["labels"]["site"] == "n"


def test_the_columns_are_typed():
    frame = plant().generate("1s").events()
    assert list(frame) == ["time", "device_id", "event", "message", "metadata"]
    kinds = [str(kind) for kind in frame.dtypes]
    assert kinds == ["datetime64[us, UTC]", "category", "category", "str", "object"]
    assert list(frame["event"].cat.categories) == list(EVENTS)


def test_a_run_of_nobody_has_a_frame_with_the_same_columns():
    frame = plant().generate("1s").events("stopped")
    assert not len(frame)
    assert [str(kind) for kind in frame.dtypes] == [
        "datetime64[us, UTC]", "category", "category", "str", "object"]


def test_a_fault_begins_and_ends_by_itself_or_by_a_clear():
    result = (Scenario("s", plant(1, 2))
              .at("10s").inject("noise", where="device_type=pump", duration="30s", reason="worn",
                                stddev=2)
              .at("15s").clear("noise", where="id=pump-0001").lasting("1m").generate())
    frame = result.events(["fault_injected", "fault_cleared"])
    assert told(frame) == [
        (10.0, "pump-0000", "fault_injected", "noise for 30s"),
        (10.0, "pump-0001", "fault_injected", "noise for 30s"),
        (15.0, "pump-0001", "fault_cleared", "noise was cleared"),
        (40.0, "pump-0000", "fault_cleared", "noise is over"),
    ]
    first, _, early, late = frame["metadata"]
    assert first == {"fault": "noise", "parameters": {"stddev": 2.0}, "reason": "worn",
                     "until": "2026-01-01T00:00:40.000000Z"}
    assert (early["cleared"], late["cleared"]) == (True, False)


def test_what_ends_after_the_run_has_not_ended():
    result = (Scenario("s", plant(1, 0)).at("10s").inject("disconnect", duration="50s")
              .inject("noise", stddev=1, duration="51s").inject("stuck").lasting("1m").generate())
    frame = result.events(["fault_cleared", "connected", "disconnected"])
    assert told(frame)[1:] == [
        (10.0, "temperature_sensor-0000", "disconnected", "the link is gone: disconnect"),
        (60.0, "temperature_sensor-0000", "fault_cleared", "disconnect is over"),
        (60.0, "temperature_sensor-0000", "connected", "the link is back"),
    ]
    assert result.events("fault_injected")["metadata"].iloc[-1]["until"] is None


@pytest.mark.parametrize(("fault", "options", "spells"), [
    ("disconnect", {"duration": "20s"}, [(10, 30)]),
    ("reboot", {}, [(10, 20)]),
    ("firmware_update", {"version": "9"}, [(10, 40)]),
    ("reconnect_storm", {"every": "10s", "down": "2s", "duration": "25s"},
     [(10, 12), (20, 22), (30, 32)]),
    ("reconnect_storm", {"every": "10s", "down": "9s", "duration": "15s"}, [(10, 19), (20, 25)]),
    ("latency_spike", {"latency_ms": 5, "duration": "9s"}, []),
    ("packet_loss", {"duration": "9s"}, []),
    ("suspend", {"duration": "9s"}, []),
])
def test_faults_that_take_the_link_are_seen_as_lost_links(fault, options, spells):
    result = Scenario("s", plant(1, 0)).at("10s").inject(fault, **options).lasting("1m").generate()
    found = of(result.events(), "disconnected", "connected")[1:]
    times = [entry[0] for entry in found]
    assert list(zip(times[::2], times[1::2], strict=True)) == spells
    assert [entry[2] for entry in found] == ["disconnected", "connected"] * len(spells)


def test_a_link_that_several_faults_take_is_back_after_the_last():
    result = (Scenario("s", plant(1, 0)).at("10s").inject("disconnect", duration="20s")
              .at("20s").inject("reboot", duration="20s").at("40s").inject("reboot", duration="5s")
              .lasting("1m").generate())
    assert of(result.events(), "disconnected", "connected")[1:] == [
        (10.0, "temperature_sensor-0000", "disconnected", "the link is gone: disconnect"),
        (45.0, "temperature_sensor-0000", "connected", "the link is back"),
    ]


def test_who_is_stopped_while_its_link_is_gone_does_not_come_back():
    result = (Scenario("s", plant(1, 0)).at("10s").inject("disconnect", duration="20s")
              .at("15s").stop().lasting("1m").generate())
    assert [entry[2] for entry in told(result.events())[2:]] == [
        "action", "fault_injected", "disconnected", "action", "stopped"]


def test_a_firmware_update_says_the_new_version_unless_it_was_cleared():
    scenario = (Scenario("s", plant(1, 1)).at("10s").inject("firmware_update", version="2.1")
                .at("20s").clear(where="device_type=pump").lasting("1m"))
    result = scenario.generate()
    assert of(result.events(), "fault_cleared") == [
        (20.0, "pump-0000", "fault_cleared", "firmware_update was cleared"),
        (40.0, "temperature_sensor-0000", "fault_cleared",
         "firmware_update is over, firmware is 2.1"),
    ]
    # Its labels changed; it did not begin anew.
    assert len(result.events("spawned")) == 2


def test_every_action_is_a_row_of_the_run():
    result = (Scenario("s", plant()).log("here we go").at("5s").set(every="1s")
              .at("6s").inject("stuck", where="count=1").add("pump").lasting("1m").generate())
    frame = result.events("action")
    assert told(frame) == [
        (0.0, None, "action", "log here we go"), (5.0, None, "action", "set every=1s"),
        (6.0, None, "action", "inject stuck where=count=1"),
        (6.0, None, "action", "add pump count=1"),
    ]
    assert frame["metadata"].iloc[1] == {"verb": "set", "where": "all", "every_us": 1_000_000,
                                         "devices": 5}
    assert "count=1" in frame["metadata"].iloc[2]["note"]
    assert "profile" not in frame["metadata"].iloc[3]["members"]


def test_a_device_that_fails_says_when_and_why():
    async def fails(dev):
        await dev.sleep("12s")
        raise ValueError("no more")

    result = Fleet("p", seed=1).add(fails, count=2, id="f-{index}").generate("1m")
    found = of(result.events(), "error")
    assert [entry[:3] for entry in found] == [(12.0, "f-0", "error"), (12.0, "f-1", "error")]
    assert "ValueError: no more" in found[0][3]
    assert result.events("error")["metadata"].iloc[0] == {"error": "DeviceFailed"}


def test_events_and_devices_can_be_asked_for():
    result = Scenario("s", plant()).at("5s").inject("disconnect", duration="5s").lasting(
        "1m").generate()
    assert set(result.events("connected")["event"]) == {"connected"}
    one = result.events(device_id="pump-0001")
    assert [entry[2] for entry in told(one)] == [
        "spawned", "connected", "fault_injected", "disconnected", "fault_cleared", "connected"]
    assert set(result.events(["spawned", "stopped"], ["pump-0000", "pump-0001"])["device_id"]) == {
        "pump-0000", "pump-0001"}
    with pytest.raises(UnknownName, match=r"no event called 'conected'. Did you mean 'connected'"):
        result.events("conected")
    with pytest.raises(UnknownName, match="no device called 'pump-9'"):
        result.events(device_id="pump-9")


def test_more_rows_than_a_frame_should_have_are_refused(monkeypatch):
    monkeypatch.setattr(events_module, "ROWS_MAX", 1000)
    storm = Scenario("s", plant(5)).inject("reconnect_storm", every="1s", down="10ms").lasting("1h")
    result = storm.generate()
    with pytest.raises(BadValue, match=r"are too many for a frame. Ask for some: events\(event="):
        result.events()
    assert len(result.events("fault_injected")) == 7
    with pytest.raises(BadValue, match="too many"):
        result.events("disconnected", device_id="pump-0000")


def test_rows_are_in_order_of_time_then_event():
    result = (Scenario("s", mixed()).at("5s").inject("reboot").at("8s").stop(where="site=a")
              .at("9s").clear().lasting("1m").generate())
    frame = result.events()
    keys = list(zip(frame["time"], map(ORDER.index, frame["event"]), strict=True))
    assert keys == sorted(keys)


def oracle(result):
    """Who is down when, per device, asked instant by instant of the windows."""
    people, windows = result.history.population, result.history.deeds.windows
    found = defaultdict(list)
    for slot, name in enumerate(people.ids):
        was = False
        for second in range(int(people.began_us[slot] - result.start_us) // 1_000_000, 61):
            now_us = result.start_us + second * 1_000_000
            if now_us >= people.ended_us[slot]:
                break
            down = any(
                w.fault.offline and slot in w.slots.tolist() and w.begin_us <= now_us
                < w.ends_us[w.slots.tolist().index(slot)] and w.fault.is_down(now_us - w.begin_us)
                for w in windows)
            if down != was:
                found[name].append((float(second), "disconnected" if down else "connected"))
            was = down
    return dict(found)


STEPS = st.lists(st.tuples(
    st.integers(0, 59),
    st.sampled_from(["disconnect", "reboot", "firmware_update", "reconnect_storm", "stuck",
                     "clear", "stop", "add"]),
    st.sampled_from(["all", "site=a", "count=3", "fraction=40%", "device_type=plain"]),
    st.integers(1, 40)), max_size=8)


def scenario_of_steps(steps):
    made = Scenario("s", mixed()).lasting("1m")
    for second, verb, where, length in steps:
        made = made.at(f"{second}s")
        if verb == "clear":
            made = made.clear(where=where)
        elif verb == "stop":
            made = made.stop(where=where)
        elif verb == "add":
            made = made.add("pump", count=2, labels={"site": "a"})
        else:
            more = {"firmware_update": {"version": "7"},
                    "reconnect_storm": {"every": "7s", "down": "3s"}}.get(verb, {})
            made = made.inject(verb, where, f"{length}s", **more)
    return made


@given(STEPS)
def test_links_are_down_exactly_when_some_window_says_so(steps):
    result = scenario_of_steps(steps).generate()
    found = defaultdict(list)
    for second, name, event, message in of(result.events(), "connected", "disconnected"):
        if message != "the link is up":
            found[name].append((second, event))
    assert dict(found) == oracle(result)


@settings(max_examples=6)
@given(STEPS)
def test_a_live_run_and_its_replay_have_the_same_events(steps):
    scenario = scenario_of_steps(steps)
    result = run(scenario.run(speed=2000, start=START))
    again = replayed(result.fleet, list(result.actions), result.start_us, result.end_us)
    assert again.digest == result.digest
    pd.testing.assert_frame_equal(result.events(), again.events())


def test_a_live_run_tells_what_has_happened_so_far():
    async def session():
        live = plant().start(speed=50, start=START)
        await live.ready()
        live.inject("disconnect", where="device_type=pump")
        live.log("look")
        seen = live.events()
        live.pause()
        result = await live.stop()
        return seen, result

    seen, result = asyncio.run(session())
    assert [entry[2] for entry in told(seen)].count("disconnected") == 2
    assert len(of(seen, "fault_injected")) == 2
    # Both have the time of the boundary that was begun last.
    assert {entry[3] for entry in of(result.events(), "action")} == {
        "inject disconnect where=device_type=pump", "log look", "pause", "stop"}


def test_a_hundred_thousand_devices_are_told_at_once():
    result = (Scenario("s", Fleet("big", seed=1).add("temperature_sensor", count=100_000,
                                                     every="1h"))
              .inject("disconnect", duration="5s").lasting("30s").generate())
    assert len(result.events()) == 600_001  # 0.6 s on two cores
    assert len(result.events("spawned")) == 100_000
