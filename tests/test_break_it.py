"""Issue 3 in one file: what it promises, from the outside."""

import asyncio

import numpy as np
import pytest

import iotsim
from iotsim import Fleet, Scenario
from tests.benchmarks.breaking import bad_day
from tests.live import START, run, sensors


def plant(name="plant"):
    fleet = Fleet(name, seed=42).add("temperature_sensor", count=40, labels={"site": "north"})
    return fleet.add("temperature_sensor", count=40, labels={"site": "south"}).add("pump", count=8)


async def driven_by_hand(fleet):
    """Inject, pause, ten times as fast, stop half of the fleet, resume."""
    live = fleet.publish_to(f"memory:{fleet.name}").start(speed=60, start=START)
    await live.ready()
    live.inject("offset", where="site=north", duration="40s", by=25)
    while live.snapshot().readings < 100:
        await asyncio.sleep(0.01)
    live.pause()
    live.inject("disconnect", where="count=5", duration="20s", store_and_forward=True)
    live.set_speed(600)
    live.stop(where="fraction=50%")
    live.resume()
    while live.snapshot().readings < 1500:
        await asyncio.sleep(0.01)
    return await live.stop()


def executed(code):
    names = {}
    exec(compile(code, "<exported>", "exec"), names)
    return names["scenario"]


def test_a_session_driven_by_hand_is_saved_verified_and_exported(tmp_path):
    result = run(driven_by_hand(plant()))
    assert not result.errors
    verbs = [action.verb for action in result.actions]
    assert verbs == ["inject", "pause", "inject", "speed", "stop", "resume", "stop"]

    path = result.save(tmp_path / "session.iotsim")
    again = iotsim.verify(path)
    assert again.ok, again.difference
    assert again.digest == result.digest

    scenario = result.to_scenario()
    assert scenario.generate().digest == result.digest
    exported = executed(scenario.code())
    assert exported.steps == scenario.steps
    assert exported.generate().digest == result.digest
    assert "pause" not in scenario.code()
    assert "speed" not in scenario.code()


async def rough_day(ctx):
    ids = await ctx.spawn("temperature_sensor", count=20, labels={"site": "north"}, every="1s")
    await ctx.wait("800ms")
    await ctx.inject_fault("CLOCK_DRIFT", ids=ids[:5], duration="1500ms",
                           params={"drift_rate_ms_per_sec": 50})
    more = await ctx.spawn("temperature_sensor", count=5, every="500ms")
    assert not set(ids) & set(more)
    await ctx.wait("700ms")
    await ctx.update_behavior({"temperature": {"baseline": 60}}, ids=more)
    await ctx.stop(ids=ids[:10])
    ctx.log("half of them are gone")
    status = ctx.status()
    assert status["total_devices"] == 15
    await ctx.wait("1s")


def test_a_coroutine_scenario_live_at_speed_1_and_offline_has_one_digest():
    scenario = Scenario("rough day", Fleet("rough", seed=5), script=rough_day)
    offline = scenario.generate(start=START)
    live = run(scenario.run(speed=1, start=START))
    assert not live.errors
    assert live.digest == offline.digest
    assert offline.rows > 10


def test_clock_drift_of_50_ms_per_s_for_60_s_is_3_s():
    frame = (Scenario("drift", sensors(every="1s")).at("10s")
             .inject("clock_drift", duration="60s", drift_rate_ms_per_sec=50)
             .lasting("90s").generate().frame(truth=True))
    shift_s = (frame["time"] - frame["true_time"]).dt.total_seconds()
    assert shift_s.max() == pytest.approx(3.0, abs=0.06)
    assert (shift_s[frame["hit"] == ""] == 0).all()
    assert (shift_s[frame["hit"] == "clock_drift"] > 0).all()


def test_a_corruption_rate_of_a_quarter_corrupts_a_quarter():
    result = (Scenario("rot", sensors()).inject("data_corruption", corruption_rate=0.25)
              .lasting("20m").generate())
    frame = result.frame(truth=True)
    for field in ("temperature", "humidity", "battery"):
        told, true = frame[field].to_numpy(), frame[f"true_{field}"].to_numpy()
        share = float(np.mean(~((told == true) | (np.isnan(told) & np.isnan(true)))))
        spread = np.sqrt(0.25 * 0.75 / len(frame))
        assert abs(share - 0.25) < 5 * spread


def test_a_day_with_50_faults_keeps_its_books():
    # `python -m tests.benchmarks` tells how long it takes with 1,000 devices.
    result = bad_day(100, 24).generate()
    wire = result.frame(wire=True)
    assert len(wire) == result.rows
    assert len(result.frame()) == (wire["withheld"] == "").sum()
    copies = int((wire["copy"] > 0).sum())
    assert result.rows == 100 * 24 * 720 + copies
    assert copies > 0


def test_what_is_done_to_nobody_says_so():
    result = Scenario("nobody", sensors()).inject("stuck", where=iotsim.ids([])).lasting(
        "1m").generate()
    assert result.digest == sensors().generate("1m").digest
    assert "matches no device" in result.notes[0]


def test_what_a_device_still_stores_at_the_end_has_not_left():
    outage = Scenario("outage", sensors(count=4)).at("30s").inject(
        "disconnect", where="count=1", store_and_forward=True).lasting("60s")
    result = outage.generate()
    assert result.rows == 48
    assert len(result.frame()) == 48 - 6
    wire = result.frame(wire=True)
    assert (wire["withheld"] == "disconnect").sum() == 6
    back = outage.at("50s").clear("disconnect").generate()
    assert back.digest == result.digest
    assert len(back.frame()) == 48
    live = run(outage.publish_to("memory:stored").run(speed="max"))
    assert not live.errors
    assert len(live.frame()) == 42
    ledger = live.publishers["memory:stored"]
    assert (ledger.acknowledged, ledger.dropped) == (42, 6)


def test_an_action_in_an_idle_stretch_is_stamped_with_what_the_clock_shows():
    async def idle():
        live = Fleet("idle", seed=1).add("pump", every="1h").publish_to("memory:idle")
        begun = live.start(speed=100, start=START)
        await begun.ready()
        seen = []
        for _ in range(5):
            await asyncio.sleep(0.05)
            shown_s = begun.snapshot().elapsed_us / 1e6
            seen.append((shown_s, begun.inject("stuck", duration="1m").at))
        return seen, await begun.stop()

    seen, result = run(idle())
    assert all(abs(at_s - shown_s) < 2 for shown_s, at_s in seen), seen
    assert result.to_scenario().generate().digest == result.digest


def test_faults_that_are_over_do_not_hide_those_that_are_to_come():
    fleet = Fleet("many", seed=1).add("smart_lock", count=100, every="1s")
    scenario = Scenario("many", fleet)
    for i in range(40):
        scenario = scenario.at(f"{10 * i}ms").inject("offset", by=1, duration="1ms")
    scenario = scenario.at("10.39s").inject("disconnect", duration="500ms").at("12.7s").log("x")
    scenario = scenario.lasting("20s")
    result = scenario.generate(start=START)
    gone = result.frame(wire=True)["withheld"] == "disconnect"
    assert 30 < gone.sum() < 70
    assert run(scenario.run(speed=40, start=START)).digest == result.digest


def test_an_inject_that_is_refused_has_done_nothing():
    async def refused():
        fleet = Fleet("refused", seed=1).add("temperature_sensor", count=3)
        live = fleet.publish_to("memory:refused", topic="d/{firmware}/{device_id}")
        begun = live.start(speed=60, start=START)
        await begun.ready()
        for parameters in ({"version": "a/b"}, {"version": "2", "label": "humidity"}):
            with pytest.raises(iotsim.IotsimError):
                begun.inject("firmware_update", duration="5s", **parameters)
        with pytest.raises(iotsim.IotsimError):
            begun.add("vehicle_tracker", count=2, labels={"firmware": "#"})
        while begun.snapshot().elapsed_us < 20_000_000:
            await asyncio.sleep(0.01)
        return await begun.stop()

    result = run(refused())
    assert not result.errors
    assert [action.verb for action in result.actions] == ["stop"]
    assert len(result.history.population) == 3
    assert set(result.frame(wire=True)["hit"]) == {""}
    assert set(result.events()["event"]) == {"spawned", "connected", "action"}


def test_what_set_was_given_may_change_afterwards():
    states = {"states": ["a", "b"], "initial_state": "a",
              "transition_matrix": [[0.5, 0.5], [0.5, 0.5]]}
    fleet = Fleet("kept", seed=1).add("smart_lock", count=3)
    scenario = Scenario("kept", fleet).at("5s").set(
        state=states, battery={"drift": np.float64(-0.5)}).lasting("1m")
    before = scenario.generate()
    states["states"].append("c")
    assert scenario.generate().digest == before.digest
    assert executed(before.to_scenario().code()).generate().digest == before.digest


def test_a_field_cannot_be_shared_by_a_label_that_is_not_there():
    result = Scenario("shared", sensors(count=2)).at("5s").set(
        temperature={"shared": "site"}).lasting("1m").generate()
    assert "shared by a label that these devices lack" in str(result.errors[0])


async def waits_twice(ctx):
    pause = ctx.wait("1s")
    await pause
    await ctx.wait("60s")
    await pause  # back in time: an action would be stamped where all has been computed


async def waits_in_place(ctx):
    pause = ctx.wait("1s")
    while True:
        await pause


async def cancels_itself(ctx):
    await ctx.wait("1s")
    raise asyncio.CancelledError


@pytest.mark.parametrize(("script", "why"), [
    (waits_twice, "this wait is over"), (waits_in_place, "this wait is over"),
    (cancels_itself, "CancelledError")])
def test_a_script_that_misuses_time_ends_the_scenario_alike(script, why):
    scenario = Scenario("misuse", sensors(count=3), script=script).lasting("2m")
    offline = scenario.generate(start=START)
    live = run(scenario.run(speed="max", start=START))
    assert live.digest == offline.digest
    assert why in str(offline.errors[0])
    assert str(offline.errors[0]) == str(live.errors[0])


def test_an_empty_block_is_repeated_at_once():
    scenario = Scenario("empty", sensors(count=1)).block().wait("1us").repeat(10**8)
    assert scenario.steps == ()
    assert scenario.end_us() == 10**8
