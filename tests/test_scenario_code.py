"""A scenario as source: executed, it is an equal scenario; and no secret is in it."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsim import Fleet, IotsimError, Profile, Scenario, ids
from iotsim.actions import Action
from iotsim.scenario_code import literal, members_again, scenario_of
from iotsim.units import DEFAULT_START, instant_us

START_US = instant_us(DEFAULT_START)


async def meter(dev):
    await dev.sleep("1s")
    dev.emit(level=1)


async def tell(ctx):
    await ctx.wait("1m")


def odd():
    return Profile("odd", {"a b": {"type": "gaussian", "mean": 1, "stddev": 2},
                           "flag": {"type": "static", "value": "it's \"so\""}})


def fleet():
    return (Fleet("plant's", seed=42)
            .add("pump", count=20, labels={"site": "north"})
            .add("temperature_sensor", count=2, every="7s")
            .add("pump", count=2)
            .add(odd(), id="w-{n}"))


def again(source, **names):
    exec(source, names)
    return names["scenario"]


def check(made, **names):
    source = made.code()
    ast.parse(source)
    rebuilt = again(source, **names)
    assert rebuilt == made, source
    assert rebuilt.code() == source


def test_every_verb_survives():
    check(Scenario("all", fleet(), start="2026-05-01")
          .at("1m").inject("disconnect", "site=north", "60s", reason="it's")
          .wait("2m").stop("fraction=10%").add("pump", count=3, labels={"site": "x"})
          .add(odd(), id="v-{index}", every="1m").set(ids(["pump-0001"]), "1s")
          .set(**{"a b": {"mean": 3}}).set("device_type=pump", flow={"offset": 3.5})
          .clear("disconnect").clear(where="site=north").log("hi 'there' \"you\"")
          .suspend(duration="5s").stop(ids([])).inject("reboot").inject("noise", stddev=1)
          .expect("count() > 100", message="m", last="1m").at("10s").log("back")
          .lasting("1h"))


def test_exact_times_survive():
    check(Scenario("s", fleet()).at("300010us").inject("offset", by=0.1, duration="1500us")
          .at(5.000001).log("x").lasting("1h1us"))


def test_an_end_that_only_a_wait_gives_survives():
    check(Scenario("s", fleet()).log("x").wait("10m"))
    check(Scenario("s", fleet()).at("1m").inject("disconnect", duration="60s").wait("10s"))


def test_repeats_are_written_out():
    made = Scenario("s", fleet()).block().add("pump").wait("1m").repeat(3)
    check(made)
    assert made.code().count(".add(\"pump\")") == 3


def test_a_long_scenario_is_several_statements():
    made = Scenario("s", fleet()).block().log("x").wait("1s").repeat(2500)
    check(made)


def test_a_scenario_of_nothing_is_one_line():
    check(Scenario("s", Fleet("f", seed=1)))


def test_scripted_devices_and_scripts_are_named_not_written():
    made = Scenario("s", Fleet("f", seed=1).add(meter, count=2, every="2s"), script=tell)
    source = made.code()
    assert "# meter: your async def" in source
    assert "# tell: your async def" in source
    assert "async def meter" not in source
    assert again(source, meter=meter, tell=tell) == made


def test_functions_are_left_out_with_a_comment():
    made = Scenario("s", fleet()).log("x").expect(lambda view: True).lasting("1m")
    assert "# expect(<lambda>): a function is not in this source" in made.code()
    assert len(again(made.code()).steps) == 1


def test_no_secret_is_in_it():
    made = (Scenario("s", fleet()).lasting("1m")
            .publish_to("mqtt://me:hunter2@localhost:1883", password="hunter3"))
    source = made.code()
    assert "hunter" not in source
    assert "# It published to mqtt://" in source
    assert again(source).fleet.spec() == made.fleet.spec()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(
    st.integers(0, 10**9),
    st.sampled_from(["inject", "clear", "stop", "log", "set", "add", "expect"]),
    st.sampled_from(["all", "site=north", "count=3", "id=pump-0001|pump-0002"]),
    st.text("abc'\"\\{}é ", max_size=8)), max_size=12))
def test_any_scenario_survives(calls):
    made = Scenario("s", fleet())
    for at_us, verb, where, text in calls:
        made = made.at(f"{at_us}us" if at_us else 0)
        if verb == "inject":
            made = made.inject("offset", where, f"{at_us + 1}us", by=at_us / 7,
                               reason=text or None)
        elif verb == "set":
            made = made.set(where, f"{at_us + 1}us")
        elif verb == "add":
            made = made.add("pump", count=at_us % 5 + 1)
        elif verb == "log":
            made = made.log(text)
        elif verb == "expect":
            made = made.expect("devices > 0", text or None)
        else:
            made = getattr(made, verb)(where=where)
    check(made)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_literals_are_exact(value):
    assert repr(eval(literal(value))) == repr(value)


def test_a_log_is_a_scenario_with_the_same_bytes():
    made = (Scenario("s", fleet()).at("1m").inject("data_corruption", "site=north", "60s",
                                                   corruption_rate=0.25)
            .wait("30s").add("pump", count=2).log("x").wait("30s").stop("count=3")
            .expect("devices > 0").lasting("5m"))
    result = made.generate()
    told = result.to_scenario()
    assert told.generate().digest == result.digest
    assert again(told.code()).generate().digest == result.digest


def test_pace_and_the_end_of_a_run_are_left_out():
    from iotsim.actions import Action

    actions = [Action("log", 0, {"text": "a"}), Action("pause", 5), Action("resume", 9),
               Action("speed", 9, {"factor": 2}), Action("stop", 10, {"where": "site=north"}),
               Action("stop", 60_000_000)]
    made = scenario_of(fleet(), actions, START_US, START_US + 60_000_000, "s")
    assert [(step.at_us, step.verb) for step in made.steps] == [(0, "log"), (10, "stop")]
    assert made.lasting_us == 60_000_000
    assert made.start_us == START_US
    check(made)


def test_what_was_expected_goes_with_the_log():
    made = Scenario("s", fleet()).at("1m").expect("devices > 0", "some", "10s").lasting("2m")
    result = made.generate()
    told = scenario_of(result.fleet, result.actions, result.start_us, result.end_us, "s",
                       result.expectations)
    assert [step.condition for step in told.steps] == [step.condition for step in made.steps]
    assert told.steps[0].parameters == made.steps[0].parameters


def test_members_come_back_from_a_log_alone():
    for member in fleet().members:
        assert members_again(member.spec()) == member
    with pytest.raises(ValueError, match="are scripted devices"):
        members_again(Fleet("f").add(meter).members[0].spec())


def test_labels_that_come_with_an_update_or_a_later_line_survive():
    check(Scenario("s", fleet()).at("1m").inject("firmware_update", duration="30s", version="3",
                                                 label="fw").at("2m").stop("fw=3"))
    check(Scenario("s", fleet()).at("2m").stop("batch=n")
          .at("1m").add("pump", labels={"batch": "n"}))


def test_a_session_with_new_labels_is_code_with_the_same_bytes():
    made = (Scenario("s", fleet()).inject("firmware_update", "site=north", "30s", version="3",
                                          label="fw")
            .at("40s").stop("fw=3").add("pump", labels={"batch": "n"})
            .at("50s").inject("offset", "batch=n", by=9, field="flow").lasting("1m"))
    result = made.generate()
    assert not result.errors
    assert again(result.to_scenario().code()).generate().digest == result.digest


def test_what_was_done_to_nobody_is_code_too():
    made = (Scenario("s", fleet()).stop("device_type=pump")
            .inject("offset", "device_type=pump", by=1, field="temperature")
            .inject("offset", ids([]), by=1, field="nothing").set(ids([]), nothing={"mean": 1})
            .at("1m").inject("noise", "site=nowhere", stddev=1).lasting("2m"))
    result = made.generate()
    assert not result.errors
    assert [action.devices for action in result.actions[1:]] == [0, 0, 0, 0]
    check(result.to_scenario())


def test_what_was_asked_for_after_the_end_is_left_out():
    actions = [Action("log", 10, {"text": "a"}), Action("log", 60_000_000, {"text": "b"}),
               Action("stop", 60_000_001, {"where": "all"})]
    made = scenario_of(fleet(), actions, START_US, START_US + 60_000_000, "s")
    assert [step.at_us for step in made.steps] == [10, 60_000_000]
    check(made)


def test_a_run_that_was_stopped_at_once_takes_no_time():
    actions = [Action("inject", 0, {"fault": "disconnect", "where": "all"})]
    made = scenario_of(fleet(), actions, START_US, START_US, "s")
    check(made)
    with pytest.raises(IotsimError, match="takes no time"):
        made.generate()
