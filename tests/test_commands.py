"""Commands as actions: whom they reach and when, what is answered; a replay is the same."""

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iotsim
from iotsim import Fleet, Scenario, verbs
from iotsim.actions import Action
from iotsim.commands import BYTES_MAX, LETTERS_MAX, plain
from iotsim.digest import Digest
from iotsim.engine.inbox import INBOX_MAX
from iotsim.engine.simulation import Simulation
from iotsim.errors import BadValue, DeviceFailed, IotsimError, SavedRunError
from iotsim.scenario_code import scenario_of
from tests.fleets import START_US
from tests.live import run as whole
from tests.live import until

SECOND = 1_000_000


async def meter(dev):
    """Changes its interval when told to, says what it cannot, and leaves some unanswered."""
    every, heard = 5, 0
    while True:
        command = await dev.commands().get(every)
        if command is None:
            dev.emit(power=dev.draw("power", "gaussian", mean=400, stddev=25), heard=heard)
            continue
        heard += 1
        if command.name == "set":
            every = command.payload["every"]
            command.ack(every=every, at=command.at)
        elif command.name == "refuse":
            command.fail("not today")
        dev.emit(command=command.id, heard=heard)


async def listener(dev):
    async for command in dev.commands():
        dev.emit(name=command.name, at=command.at)
        command.ack()


async def deaf(dev):
    while True:
        dev.emit(n=1)
        await dev.sleep("3s")


def meters(count=3, name="told"):
    return Fleet(name, seed=7).add(meter, count=count, every="5s", labels={"site": "north"}).add(
        "pump", count=2, labels={"site": "south"})


def told(result, ident):
    """Return {device: (status, answer)} of one command."""
    rows = result.commands()
    rows = rows[rows["command_id"] == ident]
    return {row.device_id: (row.status, row.answer) for row in rows.itertuples()}


# -- in a scenario ------------------------------------------------------------------------------


def test_a_device_that_listens_reacts_at_the_time_of_the_command():
    made = (Scenario("s", meters()).at("13s").command("set", payload={"every": 1}, id="faster")
            .lasting("30s")).generate()
    assert not made.errors
    assert told(made, "faster") == {
        **{f"meter-000{i}": ("ack", {"every": 1, "at": 13.0}) for i in range(3)},
        **{f"pump-000{i}": ("acknowledged", None) for i in range(2)}}
    rows = made.frame(device_type="meter")
    assert (rows[rows["command"] == "faster"]["time"] == made.start.replace(second=13)).all()
    after = rows[(rows["device_id"] == "meter-0000") & (rows["heard"] == 1)]["time"]
    assert (after.diff().dropna().dt.total_seconds() == 1).all()
    assert len(after) == 17


def test_waiting_with_a_limit_wakes_exactly_then_however_often_it_was_woken_early():
    async def patient(dev):
        while True:
            before = dev.now_us
            found = await dev.commands().get("10s")
            dev.emit(waited=(dev.now_us - before) / 1e6, found=found is not None)
            if found is not None:
                await dev.sleep("4s")
                dev.emit(waited=-1.0, found=False)

    scenario = Scenario("s", Fleet("f", seed=1).add(patient)).lasting("60s")
    for at in ("3s", "12s", "12500ms", "40s"):
        scenario = scenario.at(at).command("go")
    waited = scenario.generate().frame()["waited"].tolist()
    #  3: told; 7: rested; 12: told; 16: rested, one waited: told; 20: rested; 30; 40: told and
    #  due at once; 44: rested; 54
    assert waited == [3, -1, 5, -1, 0, -1, 10, 10, -1, 10]


def test_a_command_and_a_deadline_at_one_instant_give_the_command():
    scenario = Scenario("s", Fleet("f", seed=1).add(meter)).at("5s").command("x").lasting("11s")
    assert scenario.generate().frame()["command"].notna().tolist() == [True, False]


def test_who_has_not_begun_yet_hears_when_it_has():
    fleet = Fleet("f", seed=1).add(meter, count=20, every="5s")
    made = Scenario("s", fleet).command("set", payload={"every": 2}, id="a").lasting("20s")
    found = made.generate().commands()
    assert set(found["status"]) == {"ack"}
    assert (found["latency"] > 0).all()
    assert (found["latency"] < 5).all()


def test_who_does_not_listen_acknowledges():
    scenario = Scenario("s", Fleet("f", seed=1).add(deaf)).at("4s").command("x", id="a")
    made = scenario.lasting("9s").generate()
    assert told(made, "a") == {"deaf-0000": ("acknowledged", None)}
    assert made.digest == scenario.fleet.generate("9s").digest


def test_a_device_that_waits_for_commands_holds_nobody_up():
    fleet = Fleet("f", seed=1).add(listener, count=3).add("pump")
    made = fleet.generate("2h")
    assert made.rows == Fleet("f", seed=1).add("pump").generate("2h").rows
    assert whole(fleet.run("10m", speed="max")).rows


def test_whose_link_is_down_does_not_hear():
    scenario = (Scenario("s", meters()).at("2s").inject("disconnect", "site=north", duration="10s")
                .inject("suspend", "site=south", duration="10s")
                .at("11s").command("refuse", id="a").at("12s").command("refuse", id="b"))
    made = scenario.lasting("15s").generate()
    assert {told(made, "a")[f"meter-000{i}"] for i in range(3)} == {("offline", None)}
    assert told(made, "a")["pump-0000"] == ("acknowledged", None)
    assert told(made, "b")["meter-0000"] == ("fail", "not today")


def test_who_is_stopped_does_not_answer():
    scenario = (Scenario("s", meters()).at("2s").command("ignore", id="a")
                .at("3s").stop("id=meter-0000").command("ignore", id="b"))
    made = scenario.lasting("6s").generate()
    assert told(made, "a")["meter-0000"] == ("stopped", None)
    assert told(made, "a")["meter-0001"] == ("pending", None)
    assert "meter-0000" not in told(made, "b")


def test_what_ended_by_itself_is_stopped():
    async def brief(dev):
        await dev.sleep("1s")

    scenario = Scenario("s", Fleet("f", seed=1).add(brief)).at("2s").command("x", id="a")
    assert told(scenario.lasting("3s").generate(), "a") == {"brief-0000": ("stopped", None)}


async def brief(dev):
    async for command in dev.commands():
        if command.name == "raise":
            raise ValueError("no more")
        if command.name == "hang":
            await asyncio.sleep(1)
        if command.name == "leave":
            return


@pytest.mark.parametrize("how", ["raise", "leave", "hang"])
def test_whose_code_ends_on_a_command_is_stopped(how):
    scenario = (Scenario("s", Fleet("f", seed=1).add(brief)).at("2s").command("keep", id="a")
                .at("3s").command(how, id="b").at("4s").command("late", id="c"))
    made = scenario.lasting("6s").generate()
    for ident in "abc":
        assert told(made, ident) == {"brief-0000": ("stopped", None)}


def test_a_device_is_told_nothing_twice_under_one_id():
    scenario = Scenario("s", meters(1)).at("1s").command("set", payload={"every": 1}, id="a")
    scenario = scenario.at("2s").command("set", payload={"every": 9}, id="a").lasting("30s")
    made = scenario.generate()
    assert told(made, "a")["meter-0000"] == ("ack", {"every": 1, "at": 1.0})
    assert len(made.commands()) == 3
    assert [action.devices for action in made.actions] == [3, 0]


def test_an_inbox_is_bounded():
    async def slow(dev):
        dev.commands()
        await dev.sleep("1h")

    scenario = Scenario("s", Fleet("f", seed=1).add(slow)).at("1s")
    for _ in range(INBOX_MAX + 5):
        scenario = scenario.command("x")
    found = scenario.lasting("2s").generate().commands()["status"].value_counts()
    assert (found["pending"], found["busy"]) == (INBOX_MAX, 5)


def test_an_answer_is_given_once():
    async def eager(dev):
        async for command in dev.commands():
            command.ack()
            command.fail()

    scenario = Scenario("s", Fleet("f", seed=1).add(eager)).at("1s").command("x", id="a")
    made = scenario.lasting("2s").generate()
    assert told(made, "a") == {"eager-0000": ("ack", None)}
    [error] = made.errors
    assert isinstance(error, DeviceFailed)
    assert "is answered already" in str(error)


def test_what_a_device_does_to_a_payload_is_its_own_business():
    async def spoiler(dev):
        async for command in dev.commands():
            command.payload["list"].append(1)
            command.ack(seen=command.payload["list"])

    payload = {"list": []}
    fleet = Fleet("f", seed=1).add(spoiler, count=2)
    scenario = Scenario("s", fleet).at("1s").command("x", payload=payload, id="a").lasting("2s")
    for _ in range(2):
        made = scenario.generate()
        assert {answer["seen"][0] for _, answer in told(made, "a").values()} == {1}
        assert all(len(answer["seen"]) == 1 for _, answer in told(made, "a").values())
    assert made.actions[0].parameters["payload"] == {"list": []}


def test_an_answer_on_the_way_out_does_not_count():
    async def late(dev):
        command = await dev.commands().get()
        try:
            await dev.sleep("1h")
        finally:
            command.ack(late=True)

    scenario = Scenario("s", Fleet("f", seed=1).add(late)).at("1s").command("x", id="a")
    assert told(scenario.lasting("5s").generate(), "a") == {"late-0000": ("pending", None)}
    live = whole(scenario.lasting("5s").run(speed="max"))
    assert told(live, "a") == {"late-0000": ("pending", None)}


def test_a_script_gives_commands():
    async def drill(ctx):
        await ctx.wait("6s")
        assert await ctx.command("set", "site=north", payload={"every": 1}) == 3
        await ctx.wait("6s")

    made = Scenario("drill", meters(), script=drill).generate()
    assert not made.errors
    assert set(told(made, "command-0001")) == {"meter-0000", "meter-0001", "meter-0002"}


@pytest.mark.parametrize(("given", "why"), [
    ({"name": 7}, "is not printable text"),
    ({"name": "a\nb"}, "is not printable text"),
    ({"name": "n" * 129}, "is not printable text"),
    ({"name": "x", "payload": object()}, "is not plain JSON"),
    ({"name": "x", "payload": "y" * (BYTES_MAX + 1)}, "is over 65,536 bytes"),
    ({"name": "x", "payload": 2**70}, "is not plain JSON"),
    ({"name": "x", "id": ""}, "is not 1 to 128 printable"),
    ({"name": "x", "where": ""}, "is empty"),
])
def test_what_cannot_be_a_command_is_an_error_at_the_call(given, why):
    with pytest.raises(BadValue, match=why):
        Scenario("s", meters()).command(**given)


def test_a_payload_too_deep_is_refused():
    deep = []
    for _ in range(40):
        deep = [deep]
    with pytest.raises(BadValue, match="levels deep"):
        plain("payload", deep)


# -- the same again -----------------------------------------------------------------------------

NAMES = st.sampled_from(("set", "refuse", "ignore", ""))
WHO = st.sampled_from(("all", "site=north", "site=south", "id=meter-0001", "fraction=50%",
                       "count=2", "id=nobody"))
IDS = st.sampled_from((None, None, "a", "b", "command-0002"))
TIMES = st.one_of(st.integers(0, 40).map(lambda s: s * SECOND), st.integers(0, 40 * SECOND))
OTHERS = st.sampled_from((
    ("inject", verbs.inject("disconnect", "site=north", "7s")),
    ("inject", verbs.inject("firmware_update", "id=meter-0000", "3s", None, {"version": "2"})),
    ("set", verbs.set_("site=north", "1s")),
    ("stop", verbs.stop("id=meter-0002")),
))


@st.composite
def deeds(draw):
    found = []
    for _ in range(draw(st.integers(1, 8))):
        at_us = draw(TIMES)
        if draw(st.integers(0, 3)) == 0:
            verb, given = draw(OTHERS)
        else:
            payload = draw(st.sampled_from(({"every": 1}, {"every": 3})))
            verb = "command"
            given = verbs.command(draw(NAMES), draw(WHO), payload, draw(IDS))
        found.append(Action(verb, at_us, given))
    return sorted(found, key=lambda action: action.at_us)


def by_hand(fleet, actions, end_us, cuts):
    """Return digest and answers of a simulation that is advanced piece by piece."""
    simulation = Simulation(fleet.members, fleet.seed, START_US)
    digest, left = Digest(START_US), list(actions)
    for cut in sorted({*cuts, *(action.at_us for action in actions), end_us}):
        for readings in simulation.advance(START_US + cut):
            digest.add(readings)
        while left and left[0].at_us == cut:
            simulation.act(left.pop(0))
    simulation.close()
    letters = simulation.deeds.mail.book.letters
    return digest.hexdigest(), [
        (letter.id, letter.slots.tolist(), letter.codes.tolist(), letter.answered_us.tolist(),
         letter.answers) for letter in letters]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(actions=deeds(), cuts=st.lists(st.integers(0, 45 * SECOND), max_size=6))
def test_any_cut_of_time_gives_the_same_readings_and_answers(actions, cuts):
    fleet, end_us = meters(), 45 * SECOND
    assert by_hand(fleet, actions, end_us, cuts) == by_hand(fleet, actions, end_us, ())


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(actions=deeds(), speed=st.sampled_from(("max", 300)))
def test_live_a_scenario_and_its_source_are_the_same(actions, speed):
    scenario = scenario_of(meters(), actions, START_US, START_US + 45 * SECOND, "told")
    offline = scenario.generate()
    made = {"meter": meter}
    exec(scenario.code(), made)
    assert made["scenario"] == scenario
    live = whole(scenario.run(speed=speed))
    assert live.digest == offline.digest
    columns = ["device_id", "command_id", "status", "sent", "answered"]
    ours, theirs = (one.commands()[columns] for one in (live, offline))
    assert ours.equals(theirs)
    assert live.commands()["answer"].tolist() == offline.commands()["answer"].tolist()
    assert live.to_scenario().generate().digest == offline.digest


def test_a_session_with_commands_is_saved_verified_and_exported(tmp_path):
    async def main():
        run = meters().start(speed=50)
        await run.ready()
        await run.command("set", "site=north", payload={"every": 2})
        await until(lambda: run.snapshot().readings > 30)
        await run.command("refuse")
        return await run.stop()

    result = whole(main())
    path = result.save(tmp_path / "told.iotsim", readings=True)
    assert iotsim.verify(path, devices={"meter": meter})
    again = result.to_scenario().generate()
    assert again.digest == result.digest
    assert again.commands().drop(columns="by").equals(result.commands().drop(columns="by"))
    said = result.events(event="action")["message"].tolist()
    assert said[0] == 'command set where=site=north payload={"every": 2}'


@pytest.mark.parametrize("change", [
    {"name": 7}, {"payload": {"a": "x" * 70_000}}, {"id": ""}, {"by": 5}, {"odd": 1},
    {"where": {"ids": 5}},
])
def test_a_forged_command_is_refused_in_one_line(tmp_path, change):
    import json
    import zipfile

    made = Scenario("s", meters()).at("1s").command("x", payload={"a": 1}).lasting("9s").generate()
    path = made.save(tmp_path / "a.iotsim")
    forged = tmp_path / "b.iotsim"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(forged, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "actions.json":
                actions = json.loads(content)
                actions[0].update(change)
                content = json.dumps(actions)
            target.writestr(name, content)
    with pytest.raises(SavedRunError, match="what was done to it is damaged"):
        iotsim.verify(forged, devices={"meter": meter})


def test_another_future_begins_with_the_commands_of_the_past():
    fleet = Fleet("f", seed=3).add("pump", count=4)

    async def main():
        run = fleet.start(speed=50)
        await run.ready()
        await run.command("x", id="a")
        await until(lambda: run.snapshot().readings > 10)
        run.checkpoint()
        at = run.snapshot().elapsed_us
        await until(lambda: run.snapshot().elapsed_us > at + 5 * SECOND)
        return at, await run.stop()

    at_us, result = whole(main())
    made = result.branch(f"{at_us + SECOND}us").command("x", id="a").command("y", id="b").generate()
    assert [action.devices for action in made.actions] == [4, 0, 4]
    assert set(made.commands()["command_id"]) == {"a", "b"}


# -- live ---------------------------------------------------------------------------------------


def live(story, fleet=None, speed=20):
    async def main():
        run = (meters() if fleet is None else fleet).start(speed=speed)
        try:
            found = await story(run)
        finally:
            result = await run.stop()
        return found, result

    return whole(main())


def test_a_command_gives_a_table_of_who_answered_what():
    async def story(run):  # before it is ready, too
        return await run.command("set", payload={"every": 2}, id="a")

    found, result = live(story)
    assert list(found.columns) == ["device_id", "command_id", "command", "status", "answer",
                                   "sent", "answered", "latency", "by"]
    assert dict(zip(found["device_id"], found["status"], strict=True)) == {
        **{f"meter-000{i}": "ack" for i in range(3)},
        **{f"pump-000{i}": "acknowledged" for i in range(2)}}
    assert (found["answered"] >= found["sent"]).all()
    assert found["latency"].notna().all()
    assert len(result.commands()) == 5


def test_a_command_to_nobody_says_so():
    async def story(run):
        return await run.command("set", "id=nobody")

    found, result = live(story)
    assert found.empty
    assert found.attrs["note"] == "where='id=nobody' matches no device"
    assert result.notes == ("where='id=nobody' matches no device",)


def test_who_does_not_answer_in_time_is_a_timeout_and_may_answer_later():
    async def story(run):
        found = await run.command("ignore", "site=north", timeout="50ms", id="a")
        return found, run.commands()

    (found, later), _ = live(story)
    assert set(found["status"]) == {"timeout"}
    assert found["latency"].isna().all()
    assert set(later["status"]) == {"pending"}


def test_while_it_is_paused_a_command_waits_with_everything_else():
    async def story(run):
        await run.ready()
        run.pause()
        asked = asyncio.create_task(run.command("set", "site=north", payload={"every": 2}))
        await asyncio.sleep(0.05)
        assert not asked.done()
        run.resume()
        return await asked

    found, _ = live(story)
    assert set(found["status"]) == {"ack"}


def test_a_run_that_ends_meanwhile_ends_the_waiting():
    async def main():
        run = meters().start(speed=20)
        await run.ready()
        asked = asyncio.create_task(run.command("ignore", timeout="1h"))
        await asyncio.sleep(0.05)
        await run.stop()
        found = await asked
        with pytest.raises(BadValue, match="has ended"):
            await run.command("ignore")
        return found

    assert len(whole(main())) == 5


def test_who_is_stopped_meanwhile_is_not_waited_for():
    async def story(run):
        await run.ready()
        asked = asyncio.create_task(run.command("ignore", "site=north", timeout="1h"))
        await asyncio.sleep(0.05)
        run.stop(where="site=north")
        return await asked

    found, _ = live(story)
    assert set(found["status"]) == {"stopped"}
    assert found["answered"].isna().all()


@pytest.mark.parametrize("how", ["raise", "leave"])
def test_whose_code_ends_on_a_command_is_not_waited_for(how, tmp_path):
    async def story(run):
        await run.ready()
        return await run.command(how, timeout="1h")

    found, result = live(story, Fleet("brief", seed=1).add(brief))
    assert list(found["status"]) == ["stopped"]
    path = result.save(tmp_path / "brief.iotsim")
    assert iotsim.verify(path, devices={"brief": brief})
    assert list(result.commands()["status"]) == ["stopped"]
    assert list(result.to_scenario().generate().commands()["status"]) == ["stopped"]


def test_commands_come_from_any_thread_and_any_loop():
    async def story(run):
        await run.ready()
        found = []

        def elsewhere(i):
            found.append(asyncio.run(run.command("set", payload={"every": 2}, id=f"t-{i}")))

        threads = [threading.Thread(target=elsewhere, args=(i,)) for i in range(5)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
        return found

    found, result = live(story)
    assert len(found) == 5
    assert all(set(one["status"]) == {"ack", "acknowledged"} for one in found)
    assert len(result.commands()) == 25
    assert result.to_scenario().generate().digest == result.digest


def test_devices_that_join_are_told_too():
    async def story(run):
        await run.ready()
        run.add(meter, count=2, every="5s")
        return await run.command("set", payload={"every": 2})

    found, result = live(story)
    assert found["device_id"].tolist()[-2:] == ["meter-0003", "meter-0004"]
    assert set(found["status"]) == {"ack", "acknowledged"}
    assert result.to_scenario().generate().digest == result.digest


def test_a_command_needs_a_name_and_a_way():
    async def story(run):
        with pytest.raises(BadValue, match="has no name"):
            run.command("")
        with pytest.raises(BadValue, match="timeout"):
            run.command("x", timeout=-1)
        with pytest.raises(BadValue, match="is not where this fleet listens"):
            await run.command("x", via="mqtt://ann:s3cret@elsewhere")
        return None

    _, result = live(story)
    assert result.commands().empty


def test_a_whole_fleet_answers_as_one():
    fleet = Fleet("f", seed=1).add("pump", count=20_000)
    made = Scenario("s", fleet).at("1s").command("x").lasting("2s").generate()
    found = made.commands()
    assert len(found) == 20_000
    assert found["device_id"].nunique() == 20_000
    assert np.isclose(found["latency"], 0).all()


def test_commands_of_one_run_are_bounded(monkeypatch):
    assert LETTERS_MAX == 100_000
    monkeypatch.setattr("iotsim.commands.LETTERS_MAX", 2)
    scenario = Scenario("s", meters()).at("1s").command("x").command("x").command("x")
    made = scenario.lasting("5s").generate()
    assert len(made.commands()) == 10
    assert "would be over 2 commands of this run" in str(made.errors[0])
    assert isinstance(made.errors[0], IotsimError)


def test_many_commands_at_once_do_not_stop_the_run():
    count = 150

    async def story(run):
        await run.ready()
        turns = 0

        async def beat():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beating = asyncio.create_task(beat())
        found = await asyncio.gather(*(run.command("x", "id=pump-0000") for _ in range(count)))
        beating.cancel()
        return turns, found

    (turns, found), _ = live(story)
    assert turns > count
    assert {status for table in found for status in table["status"]} == {"acknowledged"}
    assert len({table["command_id"][0] for table in found}) == count
