"""The panels of a fleet, a scenario and a result, without a browser; asked from other threads."""

import asyncio
import gc
import json
import re
import threading
import weakref
from importlib.resources import files

import numpy as np
import pytest

pytest.importorskip("anywidget")

from iotsim import Fleet, Scenario, runs, verify
from iotsim.panels import past
from iotsim.panels.assets import MODULES
from iotsim.panels.lookback import COLUMNS, Lookback
from iotsim.panels.run_panel import ENDED_KEPT
from iotsim.panels.watch import STATES
from iotsim.units import instant_text
from tests.live import run as to_the_end
from tests.live import until

EVIL = "<img src=x>"


def ask(panel, **message):
    """Send what a browser would, on a thread of nobody's."""
    thread = threading.Thread(target=panel._arrived, args=(None, message, None))
    thread.start()
    return thread


def plant(name="plant", count=20):
    return (Fleet(name, seed=42).add("temperature_sensor", count=count, labels={"site": "north"})
            .add("pump", count=count // 4, labels={"site": "south"}))


def outage(name="outage", **options):
    return (Scenario(name, plant(name, **options))
            .at("1m").inject("disconnect", where="site=north", duration="30s")
            .at("2m").stop(where="id=pump-0001")
            .at("3m").expect("count() > 10", "somebody is there", last="1m")
            .expect("mean(temperature) > 90", "it boils", last="1m")
            .lasting("4m"))


# -- fleet ---------------------------------------------------------------------------------------


def test_a_fleets_panel_says_what_it_is():
    facts = plant().publish_to("memory:small").panel().facts
    assert facts["devices"] == 25
    assert [row[:3] for row in facts["groups"]] == [["temperature_sensor", "20", "5s"],
                                                    ["pump", "5", "2s"]]
    assert "site=north" in facts["groups"][0][3]
    assert facts["places"] == ["→ memory:small"]
    assert facts["rate"] == 20 / 5 + 5 / 2
    assert facts["run"] == ""


def test_a_cell_that_is_run_again_gets_the_same_panel_and_another_fleet_another():
    panel = plant("again").panel()
    assert plant("again").panel() is panel
    assert plant("again", count=8).panel() is not panel
    assert "still" not in repr(panel)


def test_a_panel_answers_in_a_new_loop_though_the_last_one_was_closed_in_a_burst():
    async def burst():
        panel = plant("burst").panel()
        for _ in range(40):  # more than are answered at once
            panel._arrived(None, {"do": "seen"}, None)
        await asyncio.sleep(0)
        return panel

    panel = asyncio.run(burst())

    async def anew():
        assert plant("burst").panel() is panel
        panel._arrived(None, {"do": "nonsense"}, None)
        await until(lambda: "nonsense" in panel.facts["said"].get("text", ""))

    asyncio.run(anew())


def test_preflight_is_shown_and_the_loop_goes_on_meanwhile():
    async def main():
        panel = plant("fits").panel()
        ask(panel, do="preflight", speed="10", duration="10m")
        await until(lambda: panel.facts["preflight"]["busy"])  # told on this loop, while it looks
        await until(lambda: panel.facts["preflight"]["lines"])
        assert panel.facts["preflight"]["ok"]
        assert "own speed" in [name for _, name, _ in panel.facts["preflight"]["lines"]]
        assert "own speed" in panel.still()

    asyncio.run(main())


def test_start_shows_the_runs_panel_in_the_same_place_and_starts_one_run_only():
    async def main():
        panel = plant("begun").panel()
        ask(panel, do="start", speed="10")
        await until(lambda: panel.facts["run"])
        (run,) = runs()
        assert run.snapshot().speed == 10
        assert panel.facts["run"] == run.panel().model_id
        assert plant("begun").panel() is panel
        ask(panel, do="start", speed="10")
        await until(lambda: panel.facts["said"].get("number", 0) > 1)
        assert runs() == [run]
        await run.stop()
        ask(run.panel(), do="start")  # another one like it, by a click in its panel
        await until(lambda: run.panel().run is not run)
        ask(panel, do="back")
        await until(lambda: panel.run is run.panel().run)
        assert panel.facts["run"]
        await panel.run.stop()
        ask(panel, do="back")
        await until(lambda: panel.facts["run"] == "")

    to_the_end(main())


def test_of_the_runs_that_panels_started_the_last_ones_are_held_and_no_more():
    async def main():
        known = []
        for n in range(ENDED_KEPT + 2):
            panel = plant(f"started-{n}", count=4).panel()
            ask(panel, do="start", speed="max", duration="5s")
            await until(lambda panel=panel: panel.run is not None and panel.run.ended)
            known.append((weakref.ref(panel.run), panel))

        def alive():
            gc.collect()
            return [run() is not None for run, _ in known]

        held = [False] * 2 + [True] * ENDED_KEPT
        await until(lambda: alive() == held)  # the last is held a turn after its end
        assert alive() == held
        ask(known[0][1], do="seen")
        await until(lambda: known[0][1].facts["run"] == "")  # the form again

    to_the_end(main())


def test_a_fleet_that_is_live_already_shows_its_run_also_when_it_began_elsewhere():
    async def main():
        panel = plant("elsewhere").panel()
        assert panel.facts["run"] == ""
        run = plant("elsewhere").start()
        ask(panel, do="seen")
        await until(lambda: panel.facts["run"] == run.panel().model_id)
        await run.stop()
        assert panel.still() == run.panel().still()
        assert plant("elsewhere").panel().facts["run"] == ""  # a cell that is run again

    to_the_end(main())


def test_what_is_wrong_with_a_start_is_said_in_the_form():
    async def main():
        panel = plant("nobody-there").publish_to("mqtt://127.0.0.1:9").panel()
        ask(panel, do="start")
        await until(lambda: panel.facts["said"].get("wrong"))
        assert "nothing listens there" in panel.facts["said"]["text"]
        assert panel.facts["run"] == ""
        ask(panel, do="start", duration="for ever")
        await until(lambda: "not a duration" in panel.facts["said"]["text"])
        assert not runs()

    to_the_end(main())


def test_a_name_that_is_taken_is_said_and_can_be_replaced():
    async def main():
        other = plant("taken", count=4).start()
        panel = plant("taken").panel()
        assert panel.facts["run"] == ""
        ask(panel, do="start")
        await until(lambda: panel.facts["taken"])
        assert "already live" in panel.facts["said"]["text"]
        ask(panel, do="start", replace=True)
        await until(lambda: panel.facts["run"])
        assert panel.facts["taken"] == ""
        await other.wait()
        await panel.run.stop()

    to_the_end(main())


def test_a_panel_without_a_loop_says_what_to_do_or_starts_on_a_thread_of_its_own():
    panel = plant("no-loop").panel()
    ask(panel, do="start").join()
    assert "needs a running event loop" in panel.facts["said"]["text"]
    ask(panel, do="start", thread=True, duration="10m", speed="max").join()
    run = panel.run
    assert run.has_own_loop
    assert asyncio.run(run.wait()).rows > 0


def test_names_and_labels_are_escaped_where_no_widget_lives():
    fleet = Fleet(f"evil {EVIL}", seed=1).add("pump", labels={"site": EVIL})
    result = Scenario(f"evil {EVIL}", fleet).at("1m").inject(
        "stuck", where=f"site={EVIL}", duration="30s").lasting("2m").generate()
    scenario = Scenario(f"evil {EVIL}", fleet).at("1m").inject(
        "stuck", where=f"site={EVIL}", duration="30s").expect("faults == 1", EVIL).lasting("2m")
    for panel in (fleet.panel(), scenario.panel(), result.panel()):
        text = panel._repr_mimebundle_()["text/html"]
        assert "evil" in text
        assert "&lt;img" in text
        assert "<img" not in text
        assert json.dumps(panel.facts, allow_nan=False)  # as a page gets it


# -- scenario ------------------------------------------------------------------------------------


def test_a_timeline_has_a_lane_for_each_fault_and_each_verb():
    facts = outage().panel().facts
    assert facts["end"] == 240
    lanes = {lane["name"]: lane for lane in facts["lanes"]}
    assert list(lanes) == ["disconnect", "stop", "expect"]
    assert lanes["disconnect"]["bars"] == [[60.0, 90.0, 1.0]]
    assert lanes["disconnect"]["right"] == "20 devices"
    assert lanes["stop"]["marks"] == [120.0]
    assert lanes["expect"]["marks"] == [180.0, 180.0]
    assert facts["steps"][0] == [60.0, "00:01:00",
                                 "inject disconnect where=site=north duration=30s"]


def test_a_timeline_of_thousands_of_steps_is_bounded_and_says_what_it_leaves_out():
    many = Scenario("many", plant())
    for i in range(600):
        many = many.at(f"{i}s").inject("stuck", where="count=1", duration="1s")
    facts = many.lasting("1h").panel().facts
    assert len(facts["steps"]) + facts["steps_hidden"] == 600
    (lane,) = facts["lanes"]
    assert len(lane["bars"]) <= 240
    assert lane["bars"][-1][1] == 600
    assert len(str(facts)) < 40_000


def test_generate_happens_in_a_thread_and_shows_what_came_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def main():
        panel = outage("verdict").panel()
        ask(panel, do="generate")
        await until(lambda: panel.facts["busy"])
        await until(lambda: panel.facts["verdict"])
        verdict = panel.facts["verdict"]
        assert verdict["digest"] == outage("verdict").generate().digest == panel.result.digest
        assert not verdict["passed"]
        assert verdict["counts"] == {"passed": 1, "failed": 1, "not evaluated": 0}
        assert [one[2] for one in panel.facts["checks"]] == ["passed", "failed"]
        assert "digest" in panel.still()
        ask(panel, do="save")
        await until(lambda: "saved" in panel.facts["said"]["text"])
        ask(panel, do="look")
        await until(lambda: panel.facts["past"])
        ask(panel, do="look")
        await until(lambda: panel.facts["past"] == "")

    asyncio.run(main())
    assert verify(tmp_path / "verdict.iotsim").ok


def test_generating_can_be_cancelled_and_shows_how_far_it_is():
    there, go = threading.Event(), threading.Event()

    async def story(ctx):
        await ctx.wait("1m")
        there.set()
        go.wait(20)
        await ctx.wait("1m")

    async def main():
        panel = Scenario("endless", plant(), script=story).panel()
        assert panel.facts["script"]
        assert panel.facts["lanes"] == []
        ask(panel, do="generate")
        await until(there.is_set)
        await until(lambda: panel.facts["busy"]["at"] == "00:01:00")
        ask(panel, do="generate")
        await until(lambda: "already" in panel.facts["said"].get("text", ""))
        ask(panel, do="cancel")
        await until(lambda: panel.facts["busy"]["leaving"])
        go.set()
        await until(lambda: panel.facts["busy"] is None)
        assert panel.result is None
        assert "cancelled" in panel.facts["said"]["text"]

    asyncio.run(main())


def test_more_than_memory_should_hold_is_not_generated():
    async def main():
        panel = Scenario("huge", plant(count=100_000)).lasting("1d").panel()
        ask(panel, do="generate")
        await until(lambda: panel.facts["said"].get("wrong"))
        assert "generate(to='readings.parquet')" in panel.facts["said"]["text"]

    asyncio.run(main())


def test_a_script_has_a_timeline_when_it_has_run():
    async def story(ctx):
        for _ in range(15):
            await ctx.inject_fault("stuck", where="count=2", duration="20s")
            await ctx.wait("30s")
        await ctx.expect("faults == 0", "all is over")

    async def main():
        panel = Scenario("told", plant(), script=story).panel()
        ask(panel, do="generate")
        await until(lambda: panel.facts["verdict"])
        lanes = {lane["name"]: lane for lane in panel.facts["lanes"]}
        assert len(lanes["stuck"]["bars"]) == 15
        assert lanes["stuck"]["bars"][1][:2] == [30.0, 50.0]
        assert lanes["expect"]["marks"] == [450.0]
        assert panel.facts["steps"][-1][2] == "expect all is over"

    asyncio.run(main())


def test_a_scenario_that_is_started_shows_its_run_and_what_it_expects():
    async def main():
        panel = outage("live-one").panel()
        ask(panel, do="start", speed="max")
        await until(lambda: panel.facts["run"])
        run = panel.run
        assert run.scenario == panel.scenario
        await run.wait()
        ask(panel, do="seen")
        await until(lambda: [one[2] for one in panel.facts["checks"]] == ["passed", "failed"])
        ask(panel, do="look")  # back through what the run has left
        await until(lambda: panel.facts["past"])
        ask(panel, do="back")
        await until(lambda: panel.facts["run"] == panel.facts["past"] == "")
        ask(panel, do="look")
        await until(lambda: "Generate" in panel.facts["said"]["text"])

    to_the_end(main())


# -- result --------------------------------------------------------------------------------------


def test_the_same_readings_judged_otherwise_have_a_panel_of_their_own():
    for condition, said, failed in (("faults == 0", "1 of 1 passed", False),
                                    ("faults == 3", "0 of 1 passed; failed", True)):
        judged = Scenario("judged", plant("judged")).at("30s").expect(condition).lasting("1m")
        panel = judged.generate().panel()
        assert panel.facts["expected"].startswith(said)
        assert panel.facts["failed"] is failed
        assert said in panel.still()


def test_lines_are_the_quantiles_of_the_readings_of_each_bin():
    result = outage(count=40).generate()
    found = Lookback(result)
    frame = result.frame()
    bins = len(found.table)
    at_us = frame["time"].astype("int64").to_numpy() - result.start_us
    place = at_us * bins // 240_000_000
    for i in (0, bins // 2, bins - 1):
        values = np.sort(frame["temperature"].to_numpy()[place == i])
        values = values[~np.isnan(values)]
        wanted = [values[round(share * (len(values) - 1))] for share in (0.05, 0.25, 0.5, 0.75,
                                                                          0.95)]
        assert found.table[i, 1:6] == pytest.approx(wanted, rel=1e-9)
    width_s = 240 / bins
    left = found.table[:, COLUMNS.index("left")].sum() * width_s
    withheld = found.table[:, COLUMNS.index("withheld")].sum() * width_s
    assert round(left) == len(frame)
    assert round(left + withheld) == len(result.frame(wire=True)) == result.rows


def states_at(result, found, seconds):
    facts, cells = found.moment(result.start_us + round(seconds * 1e6))
    assert len(cells) == 3 * facts["map"]["cells"]
    return {name: count for name, count in facts["map"]["states"].items() if count}


@pytest.mark.parametrize("kept", [past.KEPT_ROWS, 100])
def test_the_map_is_as_it_was_at_any_moment(monkeypatch, kept):
    monkeypatch.setattr(past, "KEPT_ROWS", kept)
    result = outage().generate()
    found = Lookback(result)
    assert states_at(result, found, 59.9) == {"fine": 25}
    assert states_at(result, found, 66) == {"silent": 20, "fine": 5}
    assert states_at(result, found, 96) == {"fine": 25}
    assert states_at(result, found, 120) == {"stopped": 1, "fine": 24}
    assert states_at(result, found, 59.9) == {"fine": 25}


def test_the_picked_device_says_its_last_value_before_the_moment():
    result = outage().generate()
    found = Lookback(result)
    name = "temperature_sensor-0007"
    found.pick(found.slot_of(None, name))
    mine = result.frame().query("device_id == @name")
    seconds = (mine["time"].astype("int64") - result.start_us) / 1e6
    for at in (30.0, 75.0, 200.0):
        facts, _ = found.moment(result.start_us + round(at * 1e6))
        wanted = mine["temperature"][seconds <= at].iloc[-1]
        assert facts["value"] == pytest.approx(wanted, rel=1e-6)
    line = found.table[:, COLUMNS.index("picked")]
    assert np.isin(np.round(line[~np.isnan(line)], 6), np.round(mine["temperature"], 6)).all()


def test_a_delayed_reading_is_no_silence_and_one_that_is_stored_comes_back():
    late = (Scenario("late", plant()).at("1m").inject("latency_spike", latency_ms=900,
                                                      duration="1m").lasting("3m")).generate()
    assert states_at(late, Lookback(late), 90) == {"fault": 25}
    stored = (Scenario("stored", plant()).at("1m").inject(
        "disconnect", duration="1m", store_and_forward=True).lasting("3m")).generate()
    found = Lookback(stored)
    assert states_at(stored, found, 110) == {"silent": 25}
    assert states_at(stored, found, 130) == {"fine": 25}


def test_a_moment_is_answered_with_one_message_and_of_many_the_latest_counts():
    async def main():
        result = outage().generate()
        panel = result.panel()
        seen = []
        panel.observe(lambda change: seen.append(change["new"]["moment"]), names="facts")
        ask(panel, do="moment", at=75.0)
        await until(lambda: panel.facts["moment"] == 75.0)
        assert panel.facts["clock"] == "00:01:15"
        assert panel.facts["active"] == [{"name": "disconnect", "devices": 20, "left": 15.0}]
        assert panel.facts["log_past"] == 1
        assert (panel.facts["before"], panel.facts["after"]) == (60.0, 120.0)
        assert seen == [75.0]
        for i in range(40):
            panel._arrived(None, {"do": "moment", "at": float(i)}, None)
        await until(lambda: panel.facts["moment"] == 39.0)
        assert len(seen) < 10
        ask(panel, do="moment", at=float("nan")).join()
        ask(panel, do="moment", at=1e9)
        await until(lambda: panel.facts["moment"] == panel.facts["to"])

    asyncio.run(main())


def test_a_device_is_picked_by_its_square_or_its_id_and_tells_its_events():
    async def main():
        panel = outage().generate().panel()
        ask(panel, do="pick", cell=3)
        await until(lambda: panel.facts["picked"])
        assert panel.facts["picked"]["id"] == "temperature_sensor-0003"
        ask(panel, do="pick", id="pump-0001")
        await until(lambda: panel.facts["picked"]["id"] == "pump-0001")
        assert panel.facts["picked"]["state"] == "stopped"
        assert panel.facts["picked"]["events"][-1][0] == "00:02:00"
        ask(panel, do="pick", id="nobody")
        await until(lambda: panel.facts["said"].get("wrong"))
        assert "nobody" in panel.facts["said"]["text"]
        ask(panel, do="field", field="rpm")
        await until(lambda: panel.facts["field"] == "rpm")
        assert panel.facts["unit"] == "rpm"
        assert panel.facts["picked"]["value"] > 100

    asyncio.run(main())


def test_a_result_has_one_panel_and_readings_of_long_ago_are_let_go():
    async def main():
        result = outage("kept").generate()
        panel = result.panel()
        assert outage("kept").generate().panel() is panel  # a cell that is run again
        others = [plant(f"other-{i}").generate("1m").panel() for i in range(4)]
        ask(panel, do="moment", at=75.0)
        await until(lambda: panel.facts["said"].get("wrong"))
        assert "run its cell again" in panel.facts["said"]["text"]
        assert "<svg" in panel.still()
        assert outage("kept").generate().panel() is not panel
        ask(others[3], do="moment", at=30.0)
        await until(lambda: others[3].facts["moment"] == 30.0)

    asyncio.run(main())


def test_what_is_sent_is_bounded_however_many_devices_there_are():
    result = plant("wide", count=20_000).generate("20s")
    panel = result.panel()
    assert panel.facts["map"]["each"] == 3
    assert panel.facts["map"]["cells"] <= 10_000
    assert len(panel.lines) <= 600 * len(COLUMNS) * 4
    assert sum(panel.facts["map"]["states"].values()) == 25_000
    assert list(panel.facts["map"]["states"]) == list(STATES)


def test_a_capture_that_forgot_its_beginning_is_seen_from_its_first_reading():
    async def main():
        result = await plant("forgets").run("10m", speed="max", capture=600)
        panel = result.panel()
        assert panel.facts["kept"] == 600
        first_us = int(result.frame()["time"].astype("int64").min())
        assert panel.facts["from"] == (first_us - result.start_us) / 1e6 > 60
        return result

    to_the_end(main())


def test_a_run_that_never_began_has_a_panel_that_says_why():
    async def main():
        run = plant("never").publish_to("mqtt://127.0.0.1:9").start()
        result = await run.wait()
        panel = result.panel()
        assert panel.facts["devices"] == 0
        assert "nothing listens there" in panel.facts["errors"][0]
        assert "nothing listens there" in panel.still()
        ask(panel, do="moment", at=3.0)
        ask(panel, do="field", field="nonsense")
        await until(lambda: panel.facts["said"].get("wrong"))

    to_the_end(main())


def test_intervals_that_were_changed_do_not_make_devices_late():
    slower = (Scenario("slower", plant()).at("1m").set(every="20s").lasting("3m")).generate()
    found = Lookback(slower)
    assert states_at(slower, found, 50) == {"fine": 25}
    assert states_at(slower, found, 150) == {"fine": 25}
    assert instant_text(found.since_us) == "2026-01-01T00:00:00.000000Z"


# -- the browser's half --------------------------------------------------------------------------


def test_every_class_in_the_style_sheet_of_the_small_panels_is_used():
    folder = files("iotsim.panels") / "js"
    css = (folder / "small.css").read_text("utf-8")
    told = " ".join((folder / f"{name}.js").read_text("utf-8") for name in MODULES)
    lost = {name for name in re.findall(r"\.(is-[a-z]+)", css) if name not in told}
    assert not lost
