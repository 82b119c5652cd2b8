"""`run.panel()` without a browser: its handlers on any thread, and what goes out of it."""

import asyncio
import gc
import json
import math
import threading
import time
import weakref

import pytest
from mqtt5 import ConnAckPacket

import iotsim
from iotsim import Fleet, ids
from iotsim.errors import BadValue, IotsimError
from iotsim.panels import run_panel
from iotsim.panels.base import SAID_CHARS_MAX
from iotsim.panels.run_panel import RunPanel
from tests.fake_broker import FakeBroker, answer_now
from tests.live import START, meter, until
from tests.panel_rig import Wire, abroad, live, on_stage, plant
from tests.panel_rig import wires as wires

# One message for each thing that a panel can be asked for; what it must have done.
MESSAGES = {
    "seen": {},
    "choose": {"chosen": {"where": "site=north", "mode": "value"}},
    "pause": {},
    "resume": {},
    "speed": {"speed": "60×"},
    "inject": {"where": "site=north", "fault": "offset", "duration": "60s",
               "parameters": {"by": "8"}},
    "clear": {"where": "all"},
    "add": {"profile": "pump", "count": "3", "labels": "site=east"},
    "stop_devices": {"where": "site=south"},
    "match": {"where": "site=north"},
    "field": {"field": "rpm"},
    "pick": {"id": "pump-0001"},
    "save": {},
    "copy": {},
    "stop": {},
    "start": {},
}


def names_of(panel):
    return sorted(name.removeprefix("do_") for name in dir(panel) if name.startswith("do_"))


@pytest.fixture
def threads(monkeypatch):
    """On which threads the handlers of panels ran, by message."""
    seen = {}
    for name in names_of(RunPanel):
        real = getattr(RunPanel, f"do_{name}")

        def handler(panel, message, name=name, real=real):
            seen[name] = threading.get_ident()
            return real(panel, message)

        monkeypatch.setattr(RunPanel, f"do_{name}", handler)
    return seen


def test_everything_a_panel_can_be_asked_for_is_done_on_the_loop_of_its_run(
    wires, threads, tmp_path, monkeypatch,
):
    monkeypatch.chdir(tmp_path)
    assert sorted(MESSAGES) == names_of(RunPanel)

    async def work(stage):
        here = threading.get_ident()
        for name, message in MESSAGES.items():
            if name == "start":
                await until(lambda: stage.run.ended)
            await stage.ask(do=name, **message)
            assert threads[name] == here, name
            assert not stage.facts["said"].get("wrong"), (name, stage.facts["said"])
        assert {thread for _, _, thread in stage.wire.sent} == {here}
        return stage.run, stage.panel.run

    first, second = live(work)
    verbs = [action.verb for action in first.actions]
    assert verbs == ["pause", "resume", "speed", "inject", "clear", "add", "stop", "stop"]
    assert first is not second
    assert second.fleet is first.fleet
    assert [path.suffix for path in tmp_path.iterdir()] == [".iotsim"]


def test_on_a_thread_that_is_not_the_runs_nothing_is_done_but_to_hand_over(wires, threads):
    async def work(stage):
        def bring_all():
            for name in ("inject", "pause", "match", "choose", "field"):
                stage.wire.bring({"do": name, **MESSAGES[name]})

        async def there():
            bring_all()

        sent = len(stage.wire.sent)
        thread = threading.Thread(target=lambda: asyncio.run(there()))
        thread.start()
        thread.join()  # the run's loop stands still meanwhile
        assert threads == {}
        assert len(stage.wire.sent) == sent
        assert stage.run.state == "running"
        await until(lambda: len(threads) == 5)
        await until(lambda: stage.facts["state"] == "paused")

    live(work)


def test_a_panel_of_a_run_with_a_loop_of_its_own_lives_on_that(wires, threads):
    async def work(stage):
        there = stage.run._home.thread
        assert there != threading.get_ident()
        await stage.ask(do="inject", **MESSAGES["inject"])
        await stage.ticks(2)
        assert set(threads.values()) == {there}
        assert {thread for kind, _, thread in stage.wire.updates} == {there}
        await stage.run.stop()
        await until(lambda: stage.facts["state"] == "stopped")
        assert [run for run, _ in run_panel._ENDED] == [stage.run]

    live(work, thread=True)


# -- what goes out --------------------------------------------------------------------------------


def test_a_look_is_one_message_with_the_whole_state(wires):
    async def work(stage):
        await stage.ticks(3)
        del stage.wire.sent[:]
        number = stage.panel.looks
        await stage.ticks(6)
        looked = stage.panel.looks - number
        assert len(stage.wire.sent) <= looked
        assert {keys for _, keys, _ in stage.wire.sent} <= {
            ("facts",), ("facts", "lines"), ("cells", "facts"), ("cells", "facts", "lines")}
        assert ("cells", "facts", "lines") in {keys for _, keys, _ in stage.wire.sent}

    live(work)


def test_half_an_emoji_does_not_keep_later_states_back(wires):
    half = "\ud83d"

    async def work(stage):
        await stage.ask(do="match", where=f"site={half}")
        await stage.ask(do="choose", chosen={"where": half})
        await stage.ask(do="inject", fault="offset", reason=half, parameters={"by": "1"})
        stage.run.log(half)
        await stage.ticks(2)
        json.dumps(stage.facts, ensure_ascii=False).encode()  # as a kernel does

    live(work)


def test_a_burst_of_messages_is_answered_by_a_few(wires):
    async def work(stage):
        await stage.ticks(2)
        del stage.wire.sent[:]
        began_s = time.monotonic()
        await abroad(lambda: [stage.wire.bring({"do": "choose", "chosen": {"where": f"id={n}"}})
                              for n in range(2000)])
        await until(lambda: stage.facts["chosen"].get("where") == "id=1999")
        took_s = time.monotonic() - began_s
        assert len(stage.wire.updates) <= 25 + 25 * took_s  # a server drops more than 1,000/s

    live(work)


def test_a_message_that_is_lost_leaves_no_page_behind(wires):
    async def work(stage):
        await stage.ticks(2)
        stage.wire.lost = 10**9
        await abroad(lambda: stage.wire.bring({"do": "pause"}))
        await until(lambda: stage.run.state == "paused")
        await stage.ticks(3)
        stage.wire.lost = 0
        assert stage.facts["state"] == "running"  # what the page still shows
        await stage.ask(do="seen")  # as every page says every few seconds
        assert stage.facts["state"] == "paused"
        assert stage.wire.state["lines"] == bytes(stage.panel.lines)
        assert stage.wire.state["cells"] == bytes(stage.panel.cells)
        assert stage.facts == stage.panel.facts

    live(work)


def test_a_page_that_is_loaded_again_has_the_state_again(wires):
    async def work(stage):
        await stage.ask(do="choose", chosen={"where": "site=south", "fault": "offset"})
        await stage.ask(do="match", where="site=south")
        await stage.ask(do="pause")
        await stage.ticks(2)
        before = dict(stage.wire.state)
        after = stage.wire.reload()
        for name in ("kind", "menu", "facts", "lines", "cells", "_esm", "_css"):
            assert after[name] == before[name], name
        assert after["facts"]["chosen"] == {"where": "site=south", "fault": "offset"}
        assert after["facts"]["match"] == {"where": "site=south", "count": 10}

    live(work)


def test_what_was_copied_is_not_sent_with_every_look(wires):
    async def work(stage):
        for _ in range(40):
            stage.run.inject("outlier", "site=north", "10s")
        await stage.ask(do="copy")
        text = stage.wire.state["code"]["text"]
        assert text.count("outlier") >= 40
        assert text not in json.dumps(stage.facts)
        return text

    text = live(work)
    compile(text, "scenario", "exec")


def test_there_is_one_widget_however_often_it_is_asked_for(wires):
    async def work(stage):
        assert stage.run.panel() is stage.panel
        assert await asyncio.to_thread(stage.run.panel) is stage.panel
        assert stage.run.panel(rate_hz=4).rate_hz == 4
        again = plant().start(speed=20)  # the cell is run again
        assert again.panel() is stage.panel
        for wrong in (3.9, 11, math.nan, "5", True):
            with pytest.raises(BadValue, match="rate_hz"):
                stage.run.panel(rate_hz=wrong)
        assert len(wires) == 2  # the widget and its layout

    live(work)


def test_a_widget_that_was_closed_looks_no_more_and_another_takes_its_place(wires):
    async def work(stage):
        await stage.ticks(1)
        stage.panel.close()
        await asyncio.sleep(0.3)
        looks = stage.panel.looks
        await asyncio.sleep(0.3)
        assert stage.panel.looks == looks
        other = stage.run.panel()
        assert other is not stage.panel
        stage.panel, stage.wire = other, Wire.known[other.comm.comm_id]
        await stage.ticks(2)
        assert stage.facts["state"] == "running"

    live(work)


def test_a_widget_that_was_closed_holds_neither_readings_nor_the_run(wires):
    async def main():
        run = plant().start(speed=20)
        await run.ready()
        panels = [run.panel(), run.dashboard()]
        await until(lambda: len(run.works.viewers) == 2)  # what both look at, and the table
        for panel in panels:
            panel.close()
        await until(lambda: gc.collect() >= 0 and not run.works.viewers)
        known = weakref.ref(run)
        await run.stop()
        return known, panels

    known, panels = asyncio.run(main())
    gc.collect()
    assert known() is None
    assert all(panel.scope is None for panel in panels)


def test_a_look_that_fails_is_said_and_the_next_one_comes(wires, monkeypatch):
    async def work(stage):
        real, failed = run_panel.facts_of, []

        def facts_of(*given):
            if len(failed) < 2:
                failed.append(1)
                raise ValueError("a bad look")
            return real(*given)

        monkeypatch.setattr(run_panel, "facts_of", facts_of)
        await until(lambda: "a bad look" in stage.facts["said"].get("text", ""))
        assert stage.facts["said"]["wrong"]
        await stage.ticks(2)
        await stage.ask(do="pause")
        assert stage.facts["state"] == "paused"

    live(work)


def test_panels_of_runs_that_are_over_do_not_hold_them_for_ever(wires):
    async def main():
        known = []
        for n in range(run_panel.ENDED_KEPT + 3):
            run = Fleet(f"short-{n}", seed=1).add("pump", count=2, every="1s").start(speed="max",
                                                                               duration="5s")
            panel = run.panel()
            await run.wait()
            await until(lambda panel=panel: panel.facts["state"] == "stopped")
            known.append((weakref.ref(run), panel))
        return known

    known = asyncio.run(main())
    gc.collect()
    alive = [run() is not None for run, _ in known]
    alive_not = [not yes for yes in alive]
    assert alive == [False] * 3 + [True] * run_panel.ENDED_KEPT
    oldest = known[0][1]
    oldest.hear({"do": "save"})  # an old page is still open
    assert oldest.facts["said"]["wrong"]
    assert "short-0" in oldest.facts["said"]["text"]
    assert oldest.facts["state"] == "stopped"
    assert "short-0" in oldest.still()
    assert [panel.scope is None for _, panel in known] == alive_not
    run_panel._ENDED.clear()


# -- what comes in --------------------------------------------------------------------------------

LONG = "x" * 1_000_000
HTML = "<img src=x onerror=alert(1)>\"'&"
HOSTILE = [
    {"do": "nonsense"}, {"do": None}, {"do": ["inject"]}, {"do": "__init__"}, {"do": LONG}, {},
    "text", 7, None, ["do", "stop"],
    {"do": "inject"}, {"do": "inject", "fault": LONG, "where": LONG},
    {"do": "inject", "fault": "offset", "parameters": ["by"]},
    {"do": "inject", "fault": "offset", "parameters": {"by": math.nan}},
    {"do": "inject", "fault": "offset", "duration": "nan", "parameters": {"by": "1"}},
    {"do": "inject", "fault": "offset", "duration": "-5s", "parameters": {"by": "1"}},
    {"do": "inject", "fault": "offset", "duration": "1e999", "parameters": {"by": "1"}},
    {"do": "inject", "fault": HTML, "where": HTML, "reason": HTML},
    {"do": "inject", "fault": "offset", "parameters": {"by": "1", HTML: HTML}},
    {"do": "clear", "fault": {"a": 1}}, {"do": "clear", "where": {"ids": [1]}},
    {"do": "speed"}, {"do": "speed", "speed": "NaN"}, {"do": "speed", "speed": "-1"},
    {"do": "speed", "speed": []}, {"do": "speed", "speed": "0"},
    {"do": "add", "profile": "pump", "count": "NaN"},
    {"do": "add", "profile": "pump", "count": "0"},
    {"do": "add", "profile": "pump", "count": "1e9"}, {"do": "add", "profile": "../x"},
    {"do": "add", "profile": LONG}, {"do": "add", "profile": "pump", "count": "two"},
    {"do": "add", "profile": "pump", "labels": "north"},
    {"do": "add", "profile": "pump", "labels": f"site={LONG}"},
    {"do": "stop_devices", "where": "site"}, {"do": "stop_devices", "where": "id=nobody"},
    {"do": "save", "path": "/proc/nowhere/x"}, {"do": "save", "path": "a\0b"},
    {"do": "save", "path": "../x.iotsim"},
]
HARMLESS = [
    {"do": "match"}, {"do": "match", "where": LONG}, {"do": "match", "where": HTML},
    {"do": "match", "where": {"a": [1]}}, {"do": "field", "field": LONG}, {"do": "field"},
    {"do": "pick"}, {"do": "pick", "cell": math.nan}, {"do": "pick", "cell": -1},
    {"do": "pick", "cell": 10**30}, {"do": "pick", "id": LONG}, {"do": "pick", "cell": [1]},
    {"do": "choose"}, {"do": "choose", "chosen": 3}, {"do": "choose", "chosen": {"a": math.nan}},
    {"do": "choose", "chosen": {LONG: LONG}}, {"do": "choose", "chosen": {"a": {"b": [LONG]}}},
    *({"do": "choose", "chosen": {f"k{n}{k}": k for k in range(40)}} for n in range(20)),
    {"do": "seen", "more": LONG},
]


def test_hostile_messages_are_errors_in_the_panel_and_harm_nothing(wires, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    async def work(stage):
        before = len(stage.run.actions)
        for message in HOSTILE:
            number = stage.panel._said_count
            await abroad(lambda message=message: stage.wire.bring(message))
            await until(lambda number=number: stage.panel._said_count > number)
            said = stage.panel._said
            assert said["wrong"], (str(message)[:100], said)
            assert "Traceback" not in said["text"]
            assert len(said["text"]) <= SAID_CHARS_MAX
        for message in HARMLESS:
            await abroad(lambda message=message: stage.wire.bring(message))
        await until(lambda: "seen" not in stage.facts)
        await stage.ticks(3)
        assert len(json.dumps(stage.facts, allow_nan=False)) < 40_000
        assert stage.run.state == "running"
        assert sum(action.devices or 0 for action in stage.run.actions[before:]) == 0
        assert stage.facts["devices"] == 50
        assert stage.panel.loop is asyncio.get_running_loop()

    live(work)
    assert not list(tmp_path.glob("*.iotsim"))


def test_what_is_wrong_with_half_a_selection_is_not_shouted(wires):
    async def work(stage):
        await stage.ask(do="match", where="site=no")
        match = stage.facts["match"]
        assert match["where"] == "site=no"
        assert match.get("count") == 0 or "no" in match["wrong"]
        assert stage.facts["said"] == {}
        await stage.ask(do="match", where="fraction=50%")
        assert stage.facts["match"] == {"where": "fraction=50%",
                                        "count": stage.run.matching("fraction=50%")}

    live(work)


def test_what_is_typed_reaches_the_run_as_people_mean_it(wires):
    async def work(stage):
        said = await stage.said(do="add", profile="pump", count="2", labels="site=east, rack = 7")
        assert not said["wrong"], said
        assert stage.run.matching("site=east,rack=7") == 2
        said = await stage.said(do="inject", where=" site=east ", fault="Offset", reason="try",
                                duration=" 90 ", parameters={"by": " 8 ", "field": "rpm, flow"})
        assert not said["wrong"], said
        done = stage.run.actions[-1]
        assert done.devices == 2
        assert done.parameters["duration_us"] == 90_000_000
        assert dict(done.parameters["parameters"])["by"] == 8
        assert done.parameters["reason"] == "try"
        await stage.said(do="inject", where="all", fault="disconnect", duration="", parameters={})
        assert "duration_us" not in stage.run.actions[-1].parameters
        for text, speed in (("60×", 60), ("×2.5", 2.5), ("MAX", math.inf), ("10", 10)):
            await stage.ask(do="speed", speed=text)
            assert stage.run.snapshot().speed == speed, text

    live(work)


def test_a_fault_that_meets_nobody_is_said_to_be_wrong(wires):
    async def work(stage):
        stage.run.stop("site=south")
        said = await stage.said(do="inject", where="site=south", fault="disconnect")
        assert said["wrong"]

    live(work)


def test_a_run_that_is_over_says_so_to_whoever_still_clicks(wires, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def work(stage):
        await until(lambda: stage.run.elapsed_us > 2e6)
        await stage.said(do="stop")
        await until(lambda: stage.facts["state"] == "stopped")
        for name in ("inject", "clear", "add", "stop_devices"):
            said = await stage.said(do=name, **MESSAGES[name])
            assert said["wrong"], name
            assert "plant" in said["text"]
        said = await stage.said(do="stop")
        assert not said["wrong"]
        said = await stage.said(do="save")
        assert not said["wrong"], said
        return (await stage.run.stop()).digest

    digest = live(work)
    [path] = tmp_path.iterdir()
    verified = iotsim.verify(path)
    assert verified.ok
    assert verified.digest == digest


def test_a_panel_is_of_use_when_the_loop_of_its_run_is_gone(wires):
    async def main():
        run = plant().start(speed="max", duration="5s")
        panel = run.panel()
        await run.wait()
        await until(lambda: panel.facts["state"] == "stopped")
        return panel

    panel = asyncio.run(main())
    for name in MESSAGES:
        if name != "save":
            panel.hear({"do": name, **MESSAGES[name]})
    assert panel.facts["said"]["wrong"]
    panel.hear({"do": "copy"})
    assert not panel.facts["said"]["wrong"]
    panel.close()


def test_start_begins_another_run_in_the_same_widget(wires):
    async def work(stage):
        await stage.said(do="start")  # it is live
        assert stage.facts["said"]["wrong"]
        await stage.said(do="stop")
        for _ in range(2):
            old = stage.panel.run
            await stage.ask(do="start")
            await until(lambda old=old: stage.facts["id"] != old.id)
            await until(lambda: stage.facts["state"] == "running")
            assert stage.panel.run.panel() is stage.panel
            await stage.ask(do="stop")
            await until(lambda: stage.facts["state"] == "stopped")

    live(work)


def test_start_begins_another_run_also_on_a_loop_of_its_own(wires):
    async def work(stage):
        await stage.run.stop()
        await until(lambda: stage.facts["state"] == "stopped")
        await abroad(lambda: stage.wire.bring({"do": "start"}))
        await until(lambda: stage.facts["state"] == "running")
        looks = stage.panel.looks
        await until(lambda: stage.panel.looks > looks + 3)

    live(work, thread=True)


# -- saved in the middle --------------------------------------------------------------------------


@pytest.mark.parametrize(("fleet", "act"), [
    (plant(), None),
    (plant(), lambda run: run.inject("disconnect", "site=north", "300s",
                                     parameters={"store_and_forward": True})),
    (plant(), lambda run: run.inject("latency_spike", "site=north", "300s",
                                     parameters={"latency_ms": 7000})),
    (Fleet("meters", seed=1).add(meter, count=20, every="1s"), None),
], ids=["plain", "store and forward", "latency", "scripts"])
def test_a_session_that_is_saved_in_the_middle_runs_again(wires, fleet, act, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def work(stage):
        if act is not None:
            act(stage.run)
        found = []
        for _ in range(2):
            later_us = stage.run.elapsed_us + 4e6
            await until(lambda later_us=later_us: stage.run.elapsed_us > later_us)
            said = await stage.said(do="save")
            assert not said["wrong"], said
            found.append(iotsim.verify(stage.facts["saved"], devices={"meter": meter}))
            assert stage.run.state == "running"
        return found

    found = live(work, fleet, speed=20, start=START)
    for verified in found:
        assert verified.ok, verified.difference
    assert len({verified.digest for verified in found}) == 2


def test_a_session_whose_lanes_are_full_cannot_be_saved_and_its_panel_says_so_once(
    wires, tmp_path, monkeypatch,
):
    monkeypatch.chdir(tmp_path)
    shut, held = [True], []

    async def behave(connection, packet):
        if shut:
            held.append((connection, packet))
        else:
            answer_now(connection, packet)

    async def session():
        async with FakeBroker(behave, (ConnAckPacket(receive_max=10),)) as broker:
            run = plant().publish_to(broker.url, qos=1, queue_messages=20).start(speed=40)
            async with on_stage(run) as stage:
                driver = run.works.driver
                await until(lambda: not driver.reached_by_all(driver.frontier_us - 10**6))
                said = await stage.said(do="save")
                assert said["wrong"]
                assert said["text"].startswith("run='plant' cannot be saved at this moment")
                assert "full lanes" in said["text"]
                assert list(tmp_path.iterdir()) == []
                assert stage.facts["state"] == "running"
                await stage.said(do="copy")  # what was done can be had nevertheless
                shut.clear()
                for connection, packet in held:
                    answer_now(connection, packet)
                for _ in range(40):
                    said = await stage.said(do="save")
                    if not said["wrong"]:
                        break
                    await asyncio.sleep(0.2)
                assert not said["wrong"], said
                return iotsim.verify(stage.facts["saved"])

    verified = asyncio.run(session())
    assert verified.ok, verified.difference


def test_what_is_copied_in_the_middle_is_the_session_that_is_saved_there(
    wires, tmp_path, monkeypatch,
):
    monkeypatch.chdir(tmp_path)

    async def work(stage):
        for _ in range(3):  # whatever the moment is
            await stage.ask(do="inject", **MESSAGES["inject"])
            await stage.ticks(2)
            await stage.ask(do="pause")
            await stage.said(do="save")
            await stage.said(do="copy")
            names = {}
            exec(compile(stage.wire.state["code"]["text"], "copied", "exec"), names)
            verified = iotsim.verify(stage.facts["saved"])
            assert verified.ok
            assert names["scenario"].generate().digest == verified.digest
            await stage.ask(do="resume")

    live(work, speed=37)


def test_the_count_of_a_selection_follows_devices_that_come_and_go(wires):
    async def work(stage):
        await stage.ask(do="match", where="site=north")
        assert stage.facts["match"] == {"where": "site=north", "count": 40}
        stage.run.stop("site=north,count=5")  # by somebody else, in a cell
        await until(lambda: stage.facts["match"] == {"where": "site=north", "count": 35})
        await stage.ask(do="add", profile="pump", count="4", labels="site=north")
        await until(lambda: stage.facts["match"] == {"where": "site=north", "count": 39})

    live(work)


def test_matching_counts_the_living_whom_a_selection_means(wires):
    async def work(stage):
        run = stage.run
        assert [run.matching(), run.matching("site=north"), run.matching(ids(["pump-0001"]))] == [
            50, 40, 1]
        run.stop("site=north,count=5")
        run.add("pump", count=4, labels={"site": "north"})
        assert run.matching("site=north") == 39
        assert await asyncio.to_thread(run.matching, "device_type=pump") == 14
        with pytest.raises(IotsimError):
            run.matching("sight=north")
        with pytest.raises(IotsimError):
            run.matching("fraction=200%")

    live(work)
