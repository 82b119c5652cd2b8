"""The fluent scenario: frozen, checked at the call, and what it does when."""

import asyncio
import copy

import pytest

from iotsim import Fleet, IotsimError, Profile, Scenario, ids
from iotsim.errors import NameInUse, RunFailed
from iotsim.scenario_checks import STEPS_MAX
from iotsim.units import duration_us
from tests.acting import Played


def fleet():
    return (Fleet("plant", seed=42)
            .add("pump", count=5, labels={"site": "north"})
            .add("temperature_sensor", count=3, labels={"site": "south"}))


def scenario(name="s"):
    return Scenario(name, fleet())


def times(made, verb=None):
    return [step.at_us / 1e6 for step in made.steps if verb in (None, step.verb)]


def end_s(made):
    end_us = made.end_us()
    return None if end_us is None else end_us / 1e6


def test_every_verb_returns_another_scenario():
    empty = scenario()
    made = [empty.at("1s"), empty.wait("1s"), empty.add("pump"), empty.stop(), empty.clear(),
            empty.inject("disconnect"), empty.set(every="1s"), empty.suspend(), empty.log("x"),
            empty.expect("devices > 0"), empty.block(), empty.lasting("1m"),
            empty.publish_to("memory:x"), empty.with_seed(7)]
    assert all(one is not empty for one in made)
    assert empty.steps == ()
    assert empty == scenario()
    with pytest.raises(AttributeError):
        empty.name = "other"


def test_at_is_absolute_and_wait_is_relative():
    made = (scenario().at("5m").log("a").wait("2m").log("b").at("1m").log("c").wait("30s").log("d"))
    assert times(made) == [300, 420, 60, 90]


def test_steps_of_one_time_keep_their_order_whatever_was_written_between():
    made = scenario().at("1m").log("b").at("0s").log("a").at("1m").log("c").lasting("2m")
    assert [line.split()[-1] for line in Played(made).said()] == ["a", "b", "c"]


def test_equal_scenarios_are_equal_whatever_the_order_of_the_calls():
    one = scenario().at("5m").stop("site=north").at("1m").log("x").lasting("9m")
    other = scenario().lasting("9m").at("1m").log("x").at("5m").stop("site=north")
    assert one == other
    assert hash(one) == hash(other)
    assert one != other.log("more")
    assert one != Scenario("other", fleet())
    assert one != 5
    assert copy.copy(one) == one


def test_a_repeated_block_happens_so_many_times_in_all():
    made = scenario().at("1m").block().log("x").wait("10s").repeat(3).log("after")
    assert times(made) == [60, 70, 80, 90]


def test_blocks_nest():
    inner = scenario().block().log("a").wait("1m").block().log("b").wait("10s").repeat(2)
    made = inner.repeat(2)
    assert sorted(times(made)) == [0, 60, 70, 80, 140, 150]
    assert end_s(made) == 160


def test_repeats_are_bounded():
    block = scenario().block().log("x").wait("1s")
    with pytest.raises(IotsimError, match="are too many"):
        block.repeat(STEPS_MAX + 1)


def test_it_ends_when_the_last_action_and_fault_have_ended():
    made = scenario().at("5m").inject("disconnect", duration="60s").at("2m").stop("site=north")
    assert end_s(made) == 360
    assert end_s(made.at("20m").log("late")) == 1200


def test_a_last_wait_counts():
    assert end_s(scenario().log("x").wait("10m")) == 600


def test_an_endless_fault_ends_when_it_is_cleared():
    made = scenario().inject("disconnect", "site=north").inject("noise", stddev=1)
    assert end_s(made) is None
    assert end_s(made.at("5m").clear("disconnect")) is None
    assert end_s(made.at("5m").clear()) == 300
    assert end_s(made.at("5m").clear("disconnect", "site=north").wait("1m").clear("noise")) == 360


def test_lasting_wins_over_what_happens():
    made = scenario().inject("disconnect").lasting("30m")
    assert end_s(made) == 1800


def test_added_devices_get_ids_that_nobody_had():
    made = scenario().block().add("pump", count=2).wait("1m").repeat(3).add(
        "pump", id="p-{index}").lasting("5m")
    played = Played(made)
    assert played.error is None
    people = played.simulation.population.ids
    assert people == [*(f"pump-{i:04d}" for i in range(5)),
                      *(f"temperature_sensor-{i:04d}" for i in range(3)),
                      *(f"pump-{i:04d}" for i in range(5, 11)), "p-11"]


def test_an_id_that_a_repeat_would_give_twice_is_refused():
    block = scenario().block().add("pump", id="boss").wait("1m")
    with pytest.raises(IotsimError, match="id='boss' would be given to two devices"):
        block.repeat(2)


def test_a_scenario_without_a_fleet_has_nobody_at_first():
    made = Scenario("alone").add("pump", count=2).lasting("1m")
    assert len(made.fleet) == 0
    assert made.fleet.name == "alone"
    assert sum(map(len, Played(made).chunks)) == 60


def test_what_is_done_lands_in_the_log_at_its_time():
    made = (scenario().at("1m").inject("DISCONNECT", where="site=north", duration="60s",
                                       reason="a test")
            .wait("2m").stop(where=ids(["pump-0001"])).set("device_type=pump", every="1s")
            .suspend("site=south", "10s").clear("disconnect").lasting("5m"))
    assert Played(made).said() == [
        "00:01:00 inject disconnect where=site=north duration=1m reason=a test",
        "00:03:00 stop where=ids(pump-0001)",
        "00:03:00 set where=device_type=pump every=1s",
        "00:03:00 inject suspend where=site=south duration=10s",
        "00:03:00 clear disconnect",
    ]


def test_an_expect_at_the_very_end_is_looked_at():
    made = scenario().lasting("1m").at("1m").expect("count() == 186")
    assert Played(made).statuses() == ["passed"]


def test_expects_change_no_reading():
    plain = scenario().at("1m").inject("offset", by=1, duration="1m").lasting("3m")
    watched = plain.at("30s").expect("count() > 1").at("90s").expect("mean(flow) > 0", last="1m")
    assert Played(plain).said() == Played(watched).said()
    assert plain.generate().digest == watched.generate().digest


def test_verbs_are_checked_at_the_call():
    script = Scenario("x", fleet(), script=tell)
    table = {
        lambda: scenario().inject("disconect"): "Did you mean 'disconnect'?",
        lambda: scenario().inject("disconnect", "sit=north"): "Did you mean 'site'?",
        lambda: scenario().inject("packet_loss", loss=2): "loss=2",
        lambda: scenario().inject("offset", by=1, field="flwo"): "Did you mean 'flow'?",
        lambda: scenario().inject("offset", by=1, parameters={"by": 2}): "by=1 is given twice",
        lambda: scenario().inject("offset", parameters="by"): "is not a mapping",
        lambda: scenario().set(fields="flow"): "fields='flow' is not a mapping",
        lambda: scenario().set(flow={"men": 3}): "no parameter of",
        lambda: scenario().set(flwo={"mean": 3}): "Did you mean 'flow'?",
        lambda: scenario().set(): "changes nothing",
        lambda: scenario().wait("0s"): "wait='0s' is zero",
        lambda: scenario().at("-1s"): "at='-1s' is negative",
        lambda: scenario().repeat(2): "has no block",
        lambda: scenario().block().repeat(2): "takes no time",
        lambda: scenario().block().wait("1s").repeat(0): "is not a whole number of times",
        lambda: scenario().lasting("1m").at("2m").stop(): "ends before stop() at 2m",
        lambda: scenario().at("2m").stop().lasting("1m"): "ends before stop() at 2m",
        lambda: scenario().stop(where=""): "where='' is empty",
        lambda: scenario().expect("devices > 0", message="a\nb"): "is not printable text",
        lambda: scenario().expect("devices > 0", last="0s"): "last='0s' is zero",
        lambda: Scenario("", fleet()): "name='' is not printable text",
        lambda: Scenario("x", "plant"): "fleet='plant' is not a fleet",
        lambda: Scenario("x", script=print): "is not a coroutine function",
        lambda: Scenario("x", script=no_ctx): "does not take one argument",
        lambda: script.stop(): "is a script, so it takes no stop()",
    }
    for wrong, said in table.items():
        with pytest.raises(IotsimError) as caught:
            wrong()
        assert said in str(caught.value), str(caught.value)
        assert "\n" not in str(caught.value)


async def tell(ctx):
    await ctx.wait("1m")


async def no_ctx():
    pass


def test_battery_drain_wants_a_battery():
    with pytest.raises(IotsimError, match="needs a field `battery` that drifts"):
        Scenario("x", Fleet("f", seed=1).add("pump")).inject("battery_drain")


def door():
    return Profile("door", {"state": {"type": "static", "value": "shut"}})


def test_devices_that_cannot_have_a_fault_are_known_at_the_call():
    made = Scenario("x", fleet().add(door()))
    table = {
        lambda: made.inject("battery_drain", "device_type=pump"): "needs a field `battery`",
        lambda: made.inject("offset", "site=south", by=1, field="flow"): "no field of the selected",
        lambda: made.inject("offset", by=1, field="state"): "is text, and offset changes numbers",
        lambda: made.inject("offset", "count=1", by=1, field="flwo"): "Did you mean 'flow'?",
        lambda: made.set("site=south", flow={"mean": 3}): "no field of the selected devices",
        lambda: Scenario("x", Fleet("f").add(tell)).inject("rate", factor=2): "needs devices with",
    }
    for wrong, said in table.items():
        with pytest.raises(IotsimError) as caught:
            wrong()
        assert said in str(caught.value), str(caught.value)


@pytest.mark.parametrize("call", [
    lambda made: made.inject("battery_drain", "site=south"),
    lambda made: made.inject("offset", "site=nowhere", by=1, field="flow"),
    lambda made: made.inject("offset", ids([]), by=1, field="anything"),
    lambda made: made.inject("offset", "fraction=0%", by=1, field="anything"),
    lambda made: made.stop().inject("offset", "site=south", by=1, field="flow"),
    lambda made: (made.add(door()).set(state={"type": "gaussian", "mean": 1, "stddev": 1})
                  .inject("offset", by=1, field="state")),
    lambda made: (made.inject("firmware_update", "site=south", "1m", version="2", label="fw")
                  .inject("offset", "fw=2", by=1, field="temperature")),
    lambda made: (made.inject("firmware_update", "site=south", "1m", version="far", label="site")
                  .inject("offset", "site=far|north", by=1, field="temperature")),
])
def test_what_is_known_only_when_it_happens_is_left_to_then(call):
    assert call(scenario()).steps


def test_a_long_scenario_does_not_look_at_all_of_itself_again_and_again():
    made = scenario()
    for i in range(100):
        made = (made.at(f"{i + 1}s").inject("firmware_update", duration="1s", version=str(i))
                .inject("noise", stddev=1).clear("noise").stop(ids([])).log("x"))
    assert [step.verb for step in made._telling] == ["inject", "stop"]
    assert made._with(steps=made.steps)._telling == made._telling
    assert len(made.steps) == 500


def test_a_label_that_nobody_ever_has_is_an_error_before_anything_runs():
    made = scenario().at("1m").stop("batch=n").lasting("5m")
    with pytest.raises(IotsimError) as caught:
        made.generate()
    said = "scenario 's', stop() at 1m: no selector key called 'batch'"
    assert str(caught.value).startswith(said)
    later = made.at("2m").add("pump", labels={"batch": "n"})
    with pytest.raises(IotsimError, match="no selector key called 'batch'"):
        later.generate()
    assert not made.at("30s").add("pump", labels={"batch": "n"}).generate().errors


def test_what_a_replaced_signal_takes_is_not_guessed():
    made = scenario().set(flow={"type": "gaussian", "mean": 3, "stddev": 1}).set(flow={"mean": 4})
    assert len(made.steps) == 2


@pytest.mark.parametrize(("made", "said"), [
    (lambda: scenario(), "takes no time. Say how long it is, as in .lasting('30m')."),
    (lambda: scenario().inject("disconnect"), "has no end: a fault in it is never cleared."),
])
def test_a_scenario_without_an_end_says_lasting(made, said):
    with pytest.raises(IotsimError) as caught:
        made().generate()
    assert said in str(caught.value)


def test_the_step_that_cannot_be_ends_the_scenario():
    meter = Profile("meter", {"level": {"type": "gaussian", "mean": 1, "stddev": 1}})
    made = (Scenario("s", Fleet("f", seed=1).add(meter))
            .set(level={"type": "static", "value": 1}).at("1m").set(level={"mean": 4}).wait("1m")
            .log("never"))
    played = Played(made)
    assert str(played.error).startswith("scenario 's' failed at 00:01:00: set: ")
    assert len(played.actions) == 1
    assert played.director.end_us == duration_us("1m")


def test_its_repr_says_what_over_how_long_on_whom():
    made = scenario().at("5m").stop(where="fraction=10%").lasting("30m")
    assert repr(made) == "<Scenario 's': 1 step over 30m on fleet 'plant', 8 devices>"
    assert repr(Scenario("x", fleet(), script=tell)) == (
        "<Scenario 'x': a script on fleet 'plant', 8 devices>")


def test_its_html_is_escaped_and_short():
    made = scenario("<b>").log("<script>")
    for i in range(1, 30):
        made = made.at(f"{i}s").log("x")
    page = made._repr_html_()
    assert "<script>" not in page
    assert "Scenario &lt;b&gt;" in page
    assert "… and 18 more steps" in page


def test_another_seed_is_the_same_devices():
    other = scenario().publish_to("memory:x").with_seed(7)
    assert other.fleet.seed == 7
    assert other.fleet.members == fleet().members
    assert len(other.fleet.outlets) == 1


def test_the_start_of_a_scenario_is_the_start_of_its_runs():
    made = Scenario("s", fleet(), start="2026-05-01").lasting("1m")
    assert made.generate().start.isoformat() == "2026-05-01T00:00:00+00:00"
    assert made.generate(start="2027-01-01").start.year == 2027


def expecting():
    return (Scenario("half", fleet()).at("1m").expect("devices == 8")
            .expect("devices == 3", "three").expect("devices == 4").expect("lost == 0")
            .lasting("2m"))


def test_a_result_passes_or_fails_by_what_was_expected():
    result = expecting().generate()
    assert not result.passed
    assert "0 errors, failed expectation: 00:01:00 ✗ three (devices=8) (and 1 more)" in repr(result)
    assert "1 of 4 passed; failed expectation: 00:01:00 ✗ three" in result._repr_html_()
    with pytest.raises(RunFailed) as caught:
        result.raise_for_errors()
    assert str(caught.value) == ("run 'half' ended with failed expectations: 00:01:00 ✗ three "
                                 "(devices=8) (and 1 more)")
    assert [one.text for one in caught.value.failed] == ["devices == 3", "devices == 4"]
    fine = scenario().expect("devices == 8").expect("lost == 0").lasting("1m").generate()
    assert fine.passed
    assert fine.raise_for_errors() is fine


def test_a_result_with_errors_has_not_passed():
    async def run(ctx):
        raise ValueError("no")

    result = Scenario("s", fleet(), script=run).generate()
    assert not result.passed
    with pytest.raises(RunFailed, match="run 's' ended with errors: scenario 's' failed at"):
        result.raise_for_errors()


def test_what_is_left_has_the_name_of_the_scenario():
    result = expecting().generate()
    assert (result.name, result.scenario) == ("half", "half")
    assert repr(result).startswith("<Result 'half' on fleet 'plant': ")
    assert "Result half on fleet plant" in result._repr_html_()
    assert result.to_scenario().name == result.branch("1m").name == "half"
    same = Scenario("plant", fleet()).lasting("1m").generate()
    assert repr(same).startswith("<Result 'plant': ")
    plain = fleet().generate("1m")
    assert (plain.name, plain.scenario) == ("plant", "")
    assert plain.to_scenario().name == "plant"


def test_a_live_run_has_the_name_of_the_scenario_and_tells_what_it_expected():
    async def session():
        live = expecting().start(speed="max")
        said = repr(live), live._repr_html_(), live.name
        with pytest.raises(NameInUse, match="scenario 'half' is already live, with a fleet under"):
            Scenario("other", fleet()).lasting("1m").start()
        with pytest.raises(NameInUse, match="scenario 'half' is already live, with a fleet under"):
            await fleet().run("1m")
        with pytest.raises(NameInUse, match="a different fleet is already live under the name"):
            await fleet().add("pump").run("1m")
        result = await live.wait()
        return *said, live.expectations, result

    short, page, name, expectations, result = asyncio.run(session())
    assert short.startswith("<Run 'half' on fleet 'plant': ")
    assert "Run half on fleet plant" in page
    assert name == "plant"
    assert result.name == "half"
    assert [one.status for one in expectations] == ["passed", "failed", "failed", "not evaluated"]
    assert expectations == result.expectations


def test_a_scenario_that_begins_where_a_fleet_is_live_says_so():
    async def session():
        live = fleet().start(speed=60)
        with pytest.raises(NameInUse, match="the fleet is already live without a scenario, under"):
            expecting().start()
        with pytest.raises(NameInUse, match="a run is already live under the name 'plant'"):
            await fleet().run("1m")
        await live.stop()

    asyncio.run(session())
