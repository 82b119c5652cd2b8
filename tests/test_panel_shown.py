"""What `run.panel()` shows is what the readings say: lines, map, fault windows, still picture."""

import asyncio
import json
import math

import pytest

from iotsim import Fleet
from iotsim.errors import IotsimError
from iotsim.panels.watch import FAULT, FINE, NOTHING, SILENT, STOPPED, UNHEARD
from tests.live import START, meter, until
from tests.panel_rig import live, plant
from tests.panel_rig import wires as wires


def heard(run, field):
    """Return by device (instant of the last reading that came, its value, whether withheld)."""
    frame = run.frame(wire=True)
    frame["time_us"] = frame["time"].dt.as_unit("us").astype("int64")
    found = {}
    for row in frame.to_dict("records"):
        at_us = row["time_us"]
        last = found.get(row["device_id"], (-1, math.nan, False))
        withheld = bool(row["withheld"])
        value = last[1]
        if not withheld and row[field] == row[field]:
            value = row[field]
        found[row["device_id"]] = (last[0] if withheld else at_us, value, withheld)
    return found


def oracle(stage, field, every_us=1_000_000):
    """Return states, values and bands as they must be, the slow way."""
    run, scope = stage.run, stage.panel.scope
    now_us = scope.now_us()
    simulation = run.works.driver.simulation
    people = simulation.population
    known = heard(run, field)
    states, values, alive = [], [], []
    for slot, name in enumerate(people.ids):
        at_us, value, withheld = known.get(name, (-1, math.nan, False))
        silent = withheld or (at_us >= 0 and now_us - at_us > 2.5 * every_us)
        faulty = any(slot in window.slots.tolist() and window.begin_us <= now_us
                     and window.ends_us[window.slots.tolist().index(slot)] > now_us
                     for window in simulation.deeds.windows)
        state = UNHEARD if at_us < 0 else FINE
        state = FAULT if faulty else state
        state = SILENT if silent else state
        states.append(STOPPED if people.ended_us[slot] <= now_us else state)
        values.append(value)
        if not silent and value == value and states[-1] != STOPPED:
            alive.append(value)
    alive.sort()
    bands = [alive[round(share * (len(alive) - 1))] for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
    return states, values, bands


def check(stage, field):
    states, values, bands = oracle(stage, field)
    state, shade, _ = stage.cells()
    assert state == states
    row = stage.lines()[-1]
    assert [row[name] for name in ("q05", "q25", "q50", "q75", "q95")] == pytest.approx(bands)
    about = stage.facts["map"]
    assert about["cells"] == len(states)
    order = ("not heard yet", "stopped", "fine", "fault", "silent")
    assert about["states"] == {name: states.count(code) for code, name in enumerate(order)}
    low, high = about["low"], about["high"]
    for code, value in zip(shade, values, strict=True):
        if value != value:
            assert code == NOTHING
        else:
            share = min(1.0, max(0.0, (value - low) / (high - low)))
            assert abs(code - share * 254) <= 1
    return states


async def still(stage):
    """Pause, and wait until the panel has drawn the instant at which the run stands."""
    if stage.run.state != "paused":
        await stage.ask(do="pause")
    await stage.ticks(4)
    await until(lambda: abs(stage.lines()[-1]["time"] - stage.facts["series"]["now"]) < 1e-3)


def test_lines_and_map_say_what_the_readings_say(wires):
    async def work(stage):
        await until(lambda: stage.run.elapsed_us > 5e6)
        await stage.ask(do="inject", where="site=north,count=9", fault="disconnect",
                        duration="3000s", parameters={})
        await stage.ask(do="inject", where="site=north,fraction=40%", fault="offset",
                        duration="3000s", parameters={"by": "5"})
        await stage.ask(do="stop_devices", where="id=temperature_sensor-0003")
        await stage.ask(do="add", profile="temperature_sensor", count="5", labels="site=west")
        stage.run.set("site=west", every="1s")
        later_us = stage.run.elapsed_us + 8e6
        await until(lambda: stage.run.elapsed_us > later_us)
        await still(stage)
        states = check(stage, "temperature")
        assert {FAULT, SILENT, STOPPED, FINE} <= set(states)
        assert len(states) == 55
        await stage.ask(do="field", field="rpm")  # from what is held of it
        await stage.ticks(2)
        assert stage.facts["field"] == "rpm"
        await stage.ask(do="resume")
        await stage.ticks(6)
        await still(stage)
        check(stage, "rpm")
        picked = "pump-0004"
        await stage.ask(do="pick", id=picked)
        assert stage.facts["picked"]["id"] == picked
        assert stage.facts["picked"]["labels"]["site"] == "south"
        cell = stage.facts["picked"]["cell"]
        await stage.ask(do="pick", cell=0)
        assert stage.facts["picked"]["id"] == "temperature_sensor-0000"
        await stage.ask(do="pick", cell=cell)
        last = heard(stage.run, "rpm")[picked]
        assert stage.facts["picked"]["value"] == pytest.approx(last[1], rel=1e-6)

    live(work, speed=20, start=START)


def test_devices_that_were_added_and_have_said_nothing_yet_are_in_the_map(wires):
    async def work(stage):
        for n in range(12):
            stage.run.add("pump", count=3, every="1h")
            stage.panel.renew()
            assert stage.facts["said"] == {}, stage.facts["said"]
            assert stage.facts["devices"] == 53 + 3 * n
            await asyncio.sleep(0.05)
        await stage.ticks(3)
        assert stage.facts["map"]["states"]["not heard yet"] >= 30

    live(work)


def test_with_more_devices_than_squares_a_square_is_the_worst_of_its_devices(wires, monkeypatch):
    monkeypatch.setattr("iotsim.panels.watch.CELLS", 16)
    monkeypatch.setattr("iotsim.panels.scope.CELLS", 16)

    async def work(stage):
        await stage.ask(do="inject", where="id=pump-0002", fault="offset", duration="",
                        parameters={"by": "5"})
        await stage.ticks(5)
        await still(stage)
        states, _, _ = oracle(stage, "temperature")
        each = stage.facts["map"]["each"]
        assert each == 4
        assert stage.cells()[0] == [max(states[at : at + each]) for at in range(0, 50, each)]
        await stage.ask(do="pick", id="pump-0002")
        cell = stage.facts["picked"]["cell"]
        assert cell == 42 // 4
        assert stage.cells()[0][cell] == FAULT
        await stage.ask(do="pick", cell=cell)
        assert stage.facts["picked"]["cell"] == cell

    live(work)


def test_fault_windows_count_down_in_simulated_time_and_stay_in_the_lines(wires):
    async def work(stage):
        await stage.said(do="inject", where="site=north", fault="offset", duration="1000s",
                         parameters={"by": "5"})
        await stage.said(do="inject", where="site=south", fault="disconnect", duration="",
                         parameters={})
        await stage.ticks(1)
        one, two = stage.facts["windows"]
        assert (one["name"], one["where"], one["devices"]) == ("offset", "site=north", 40)
        assert one["active"]
        assert one["left"] == pytest.approx(one["to"] - stage.facts["series"]["now"], abs=1e-5)
        assert one["to"] - one["from"] == pytest.approx(1000)
        assert two["to"] is two["left"] is None
        await stage.ask(do="speed", speed="2000")
        await until(lambda: not stage.facts["windows"][0]["active"])
        assert stage.facts["windows"][0]["left"] == 0
        assert stage.facts["windows"][1]["active"]
        await stage.said(do="clear", where="site=south", fault="disconnect")
        await stage.ticks(2)
        two = stage.facts["windows"][1]
        assert not two["active"]
        assert two["to"] <= stage.facts["series"]["now"]

    live(work)


def test_faults_of_one_instant_are_told_apart_and_cleared_one_by_one(wires):
    async def work(stage):
        await stage.ask(do="pause")
        many = "|".join(f"temperature_sensor-{n:04}" for n in range(30))
        wheres = ["site=south", f"id={many}", "site=nobody|south,count=3", "site=north"]
        for where in wheres[:3]:
            await stage.said(do="inject", where=where, fault="offset", duration="600s",
                             parameters={"by": "5"})
        await stage.said(do="inject", where="site=north", fault="disconnect", parameters={})
        await stage.ask(do="resume")
        await until(lambda: sum(one["active"] for one in stage.facts["windows"]) == 4)
        assert [(one["where"], one["devices"]) for one in stage.facts["windows"]] == [
            ("site=south", 10), ("30 ids", 30), (wheres[2], 3), ("site=north", 40)]
        ids_only = stage.facts["windows"][1]
        await stage.said(do="clear", fault="offset", window=ids_only["number"])
        await until(lambda: not stage.facts["windows"][1]["active"])
        assert [one["active"] for one in stage.facts["windows"]] == [True, False, True, True]
        assert stage.run.actions[-1].devices == 30
        for wrong in (99, None, "1", -1):
            said = await stage.said(do="clear", fault="offset", window=wrong)
            assert said["wrong"]

    live(work)


def test_what_is_active_is_shown_however_much_was(wires):
    async def work(stage):
        await stage.said(do="inject", where="site=south", fault="offset", parameters={"by": "5"})
        for _ in range(60):
            stage.run.inject("outlier", "site=north", "1s")
        later_us = stage.run.elapsed_us + 3e6
        await until(lambda: stage.run.elapsed_us > later_us)
        await stage.ticks(2)
        shown = stage.facts["windows"]
        assert len(shown) <= 40
        assert [one["name"] for one in shown if one["active"]] == ["offset"]
        assert [one["number"] for one in shown] == sorted(one["number"] for one in shown)

    live(work)


def test_numbers_beyond_all_bounds_can_be_looked_at(wires):
    async def work(stage):
        for by in ("1e39", "1e100", "-1e100", "-1e100"):
            await stage.said(do="inject", where="site=north", fault="offset",
                             parameters={"by": by})
            later_us = stage.run.elapsed_us + 3e6
            await until(lambda later_us=later_us: stage.run.elapsed_us > later_us)
            await stage.ask(do="pick", cell=3)
            await stage.ticks(2)
            assert not stage.facts["said"]["wrong"], stage.facts["said"]
            assert stage.facts["picked"]["value"] is not None
        assert "<svg" in stage.panel.still()
        assert stage.facts["errors"]["count"] == 0
        assert stage.run.state == "running"

    live(work)


def test_a_panel_that_cannot_read_a_reading_says_so_and_the_run_goes_on(wires, monkeypatch):
    async def work(stage):
        await stage.ticks(1)
        monkeypatch.setattr(stage.panel.scope._watch, "_values", None)
        await until(lambda: stage.facts["said"].get("wrong"))
        rows = stage.run.snapshot().readings
        await until(lambda: stage.run.snapshot().readings > rows + 100)
        assert stage.run.state == "running"
        assert stage.run.errors == ()

    live(work)


def test_paused_time_adds_no_points_and_at_max_speed_it_keeps_its_rhythm(wires):
    async def work(stage):
        await stage.ask(do="pause")
        await stage.ticks(2)
        points, at_s = len(stage.lines()), stage.facts["time"]
        await stage.ticks(4)
        assert len(stage.lines()) <= points + 1
        assert stage.facts["time"] == at_s
        assert stage.facts["state"] == "paused"
        await stage.ask(do="speed", speed="max")
        await stage.ask(do="resume")
        await stage.ticks(5)
        assert stage.facts["speed"] == "max"
        times = [row["time"] for row in stage.lines()]
        assert times == sorted(times)
        assert times[-1] > at_s + 100
        assert stage.facts["time"] >= times[-1] - 1e-3 * times[-1]

    live(work)


def test_scripts_without_a_number_gateways_and_a_run_that_connects_have_a_panel_too(wires):
    async def words(dev):
        while True:
            dev.emit(mood="good" if dev.draw("mood", "gaussian", mean=0, stddev=1) > 0 else "bad")
            await dev.sleep()

    async def work(stage):
        await stage.ticks(3)
        assert stage.facts["fields"] == []
        assert stage.facts["field"] == ""
        assert stage.facts["map"]["states"]["fine"] == 3
        await stage.ask(do="field", field="mood")
        await stage.ask(do="pick", cell=0)
        assert stage.facts["picked"]["value"] is None
        assert "<svg" not in stage.panel.still()

    live(work, Fleet("talk", seed=1).add(words, count=3, every="1s"))

    async def connecting():
        run = plant().start(speed=1)
        panel = run.panel()
        assert panel.facts["state"] == "connecting"
        assert "connecting" in panel.still()
        panel.hear({"do": "match", "where": "site=north"})
        panel.hear({"do": "pick", "cell": 1})
        assert panel.facts["match"]["count"] == 40
        await run.stop()
        panel.close()

        run = plant().publish_to("mqtt://127.0.0.1:1").start()
        panel = run.panel()
        with pytest.raises(IotsimError):
            await run.ready()
        await until(lambda: panel.facts["state"] == "failed")
        assert "127.0.0.1:1" in panel.facts["errors"]["texts"][0]
        assert "127.0.0.1:1" in panel.still()
        panel.close()

    asyncio.run(connecting())


def test_numbers_that_only_scripts_have_and_those_of_added_profiles_can_be_looked_at(wires):
    async def work(stage):
        await until(lambda: "power" in stage.facts["fields"])
        await stage.ask(do="field", field="power")
        await stage.ticks(3)
        assert 300 < stage.lines()[-1]["q50"] < 500
        await stage.ask(do="add", profile="pump", count="2")
        await stage.ticks(2)
        assert "rpm" in stage.facts["fields"]

    live(work, Fleet("meters", seed=1).add(meter, count=3, every="1s"))


# -- as a still picture ---------------------------------------------------------------------------


def test_the_still_picture_is_escaped_and_whole(wires):
    bad = "<script>alert(1)</script>&\"'"

    async def work(stage):
        stage.run.inject("offset", "all", "20s", parameters={"by": 1}, reason=bad)
        stage.run.log(bad)
        await stage.ticks(4)
        html = stage.panel._repr_mimebundle_()["text/html"]
        assert "<script" not in html
        assert "&lt;script" in html
        assert "<svg" in html
        assert "50 devices" in html
        assert "offset" in html
        plain = json.dumps(stage.facts)
        assert bad in json.loads(plain)["log"][-1][1]

    live(work, Fleet("plant", seed=1).add("pump", count=50, every="1s", labels={"site": bad}))


def test_a_bundle_is_a_widget_where_one_lives_and_html_elsewhere(wires):
    async def work(stage):
        bundle = stage.panel._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html",
                               "application/vnd.jupyter.widget-view+json"}
        assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == (
            stage.panel.comm.comm_id)
        assert len(bundle["text/plain"]) < 200

    live(work)
