"""Scripts: stepped by hand, done at the call, and ended by what goes wrong in them."""

import asyncio

import pytest

from iotsim import DeviceIds, FaultType, Fleet, IotsimError, LabelSelector, Scenario
from iotsim.context import Done, who
from iotsim.faults.base import ALIASES, FAULTS
from iotsim.script import ACTS_AT_ONE_INSTANT_MAX
from iotsim.script_choice import Dice
from iotsim.selectors import parse
from tests.acting import Played


def fleet(seed=42):
    return (Fleet("plant", seed=seed)
            .add("pump", count=5, labels={"site": "north"})
            .add("temperature_sensor", count=3, labels={"site": "south"}))


def play(script, **options):
    lasting = options.pop("lasting", None)
    made = Scenario("s", fleet(), script=script)
    return Played(made if lasting is None else made.lasting(lasting), **options)


def line_of(script, ahead):
    return f"{__file__}:{script.__code__.co_firstlineno + ahead}"


def test_what_a_script_does_lands_in_the_log_at_its_time():
    async def run(ctx):
        ids = await ctx.spawn("pump", count=2, labels={"site": "east"})
        await ctx.log(f"spawned {len(ids)}")
        await ctx.wait("1m")
        await ctx.inject_fault("LATENCY_SPIKE", ids=ids, params={"latency_ms": 50})
        await ctx.update_behavior({"temperature": {"baseline": 30}},
                                  device_type="temperature_sensor")
        await ctx.wait("2m")
        assert await ctx.stop(device_type="pump") == 7
        await ctx.clear()

    played = play(run)
    assert played.error is None
    assert played.said() == [
        "00:00:00 add pump count=2",
        "00:00:00 log spawned 2",
        "00:01:00 inject latency_spike where=ids(pump-0005, pump-0006) duration=1m latency_ms=50.0",
        "00:01:00 set where=device_type=temperature_sensor temperature={'baseline': 30}",
        "00:03:00 stop where=device_type=pump",
        "00:03:00 clear",
    ]
    assert played.director.end_us == 180_000_000


def test_a_forgotten_await_loses_nothing():
    async def run(ctx):
        ctx.log("one")
        ids = ctx.spawn("pump", count=2)
        ctx.stop(list(ids))
        assert len(ids) == 2
        assert ids[0] == "pump-0005"
        if not ctx.expect("devices == 8"):
            ctx.log("never")
        await ctx.wait(1)

    played = play(run)
    assert played.error is None
    assert [action.verb for action in played.actions] == ["log", "add", "stop"]
    assert played.statuses() == ["passed"]


@pytest.mark.parametrize("after", [True, False])
def test_a_wait_must_be_awaited(after):
    async def run(ctx):
        ctx.log("x")
        ctx.wait("1m")
        if after:
            ctx.log("y")

    played = play(run)
    assert str(played.error).startswith(
        "scenario 's' failed at 00:00:00: ")
    assert "ctx.wait(...) was not awaited. Write `await ctx.wait(...)`." in str(played.error)
    assert len(played.actions) == 1


def test_an_empty_list_of_ids_is_nobody():
    async def run(ctx):
        assert await ctx.stop([]) == 0
        assert await ctx.stop(ids=[]) == 0
        assert await ctx.stop(DeviceIds([])) == 0
        assert await ctx.stop(ids=[], device_type="pump") == 0
        assert await ctx.inject_fault("disconnect", ids=[]) == 0
        assert (await ctx.status())["total_devices"] == 8
        assert await ctx.stop() == 8
        await ctx.wait("1s")

    assert play(run).error is None


def test_ids_never_collide_whatever_the_offset():
    async def run(ctx):
        waves = [await ctx.spawn("pump", count=2, offset=offset) for offset in (0, 0, 1, 100, 0)]
        assert waves == [["pump-0005", "pump-0006"], ["pump-0007", "pump-0008"],
                         ["pump-0009", "pump-0010"], ["pump-0100", "pump-0101"],
                         ["pump-0102", "pump-0103"]]
        await ctx.wait("1s")

    assert play(run).error is None


def test_status_is_the_state_of_the_model():
    async def run(ctx):
        await ctx.wait("10s")
        await ctx.stop(device_type="temperature_sensor")
        await ctx.inject_fault("disconnect", where="site=north")
        assert await ctx.status() == {
            "total_devices": 5, "by_state": {"running": 5, "stopped": 3},
            "by_type": {"pump": 5}, "faults": {"disconnect": 5}}
        await ctx.wait("1s")

    played = play(run)
    assert played.error is None, played.error


def test_the_clock_is_simulated_time():
    async def run(ctx):
        await ctx.wait("90s")
        assert ctx.clock.elapsed == 90
        assert ctx.clock.now.isoformat() == "2026-01-01T00:01:30+00:00"
        assert ctx.seed == 42
        assert len(ctx.fleet) == 8
        assert not ctx.live

    assert play(run).error is None


def test_what_is_observed_is_known_live_only():
    async def run(ctx):
        await ctx.wait("10s")
        seen = await ctx.observed()
        assert seen.offered == seen.acknowledged + seen.queued + seen.in_flight > 0
        assert seen.lost == 0
        assert list(seen.publishers) == ["memory:observed"]

    made = Scenario("s", fleet(), script=run)
    live = made.publish_to("memory:observed")
    assert asyncio.run(live.run(speed="max")).errors == ()
    assert "ctx.observed() is known of a live run only" in str(Played(made).error)


def test_an_expect_says_whether_it_held():
    async def run(ctx):
        await ctx.wait("1m")
        assert not await ctx.expect("count() > 1000", "many", last="30s")
        assert await ctx.expect("count() == 93", last="30s")
        assert await ctx.expect("lost == 0")

    played = play(run)
    assert played.error is None, [str(one) for one in played.expectations]
    assert played.statuses() == ["failed", "passed", "not evaluated"]
    assert str(played.expectations[0]) == "00:01:00 ✗ many (count()=93)"


def test_an_expect_knows_the_fields_of_what_was_added():
    async def run(ctx):
        await ctx.spawn("smart_meter", count=2)
        await ctx.wait("1m")
        assert await ctx.expect("max(power) > 0 and nulls(power) == 0", "theirs")
        await ctx.expect("mean(powr) > 0")

    meters = Scenario("s", Fleet("f", seed=1).add("temperature_sensor"), script=run)
    played = Played(meters)
    assert "Did you mean 'power'?" in str(played.error)
    assert played.statuses() == ["passed"]


def test_what_the_contract_gives_by_position_arrives():
    async def run(ctx):
        assert await ctx.inject_fault("disconnect", ["pump-0001"], None, "10s") == 1
        assert await ctx.inject_fault("noise", None, "pump", "20s", {"stddev": 2}) == 5
        assert await ctx.inject_fault("noise", "site=south", None, None, {"stddev": 2}) == 3
        assert await ctx.inject_fault("stuck", DeviceIds(["pump-0000"]), "pump") == 1
        assert await ctx.inject_fault("stuck", LabelSelector(site="north")) == 5
        assert await ctx.inject_fault("stuck", where="site=north", ids=["pump-0000"]) == 1
        assert await ctx.update_behavior({"flow": {"offset": 3}}, ["pump-0002"], "pump") == 1
        assert await ctx.update_behavior({"flow": {"offset": 3}}, None, "pump") == 5
        assert await ctx.stop(["pump-0003"], "pump", True) == 1
        assert await ctx.stop("site=south", "pump") == 0
        assert await ctx.stop(None, "temperature_sensor", False) == 3
        assert await ctx.stop(DeviceIds(["pump-0004"])) == 1
        await ctx.wait("1s")

    played = play(run)
    assert played.error is None, played.error
    assert [action.parameters.get("duration_us") for action in played.actions[:4]] == [
        10_000_000, 20_000_000, None, 60_000_000]


@pytest.mark.parametrize(("call", "said"), [
    (lambda ctx: ctx.inject_fault("offset", params={"by": 1}, by=2), "by=2 is given twice"),
    (lambda ctx: ctx.inject_fault("offset", None, None, "60s", "by"), "params='by' is not a mapp"),
    (lambda ctx: ctx.inject("offset", parameters={"by": 1}, by=2), "by=2 is given twice"),
    (lambda ctx: ctx.inject("offset", parameters="by"), "parameters='by' is not a mapping"),
    (lambda ctx: ctx.set(fields="flow"), "fields='flow' is not a mapping"),
    (lambda ctx: ctx.stop("pump-0001"), "ids='pump-0001' is text, not a list of ids"),
    (lambda ctx: ctx.stop(None, 5), "device_type=5 is not the name of a type"),
])
def test_what_is_said_wrongly_to_ctx_is_one_clear_error(call, said):
    async def run(ctx):
        call(ctx)

    assert said in str(play(run).error)


def test_parameters_are_spelled_alike_in_steps_and_scripts():
    async def run(ctx):
        await ctx.inject("offset", "site=north", "10s", reason="a", parameters={"by": 1},
                         field="flow")

    steps = Scenario("s", fleet()).inject("offset", "site=north", "10s", reason="a",
                                          parameters={"by": 1}, field="flow")
    assert play(run).actions[0].parameters == Played(steps).actions[0].parameters


def test_an_expect_of_a_field_that_nobody_has_ends_the_scenario():
    async def run(ctx):
        await ctx.expect("mean(flwo) > 1")

    assert "Did you mean 'flow'?" in str(play(run).error)


def test_a_script_that_raises_ends_the_scenario_there_and_says_where():
    async def run(ctx):
        await ctx.wait("5m")
        raise ValueError("no more\nof this")

    played = play(run)
    assert str(played.error) == (f"scenario 's' failed at 00:05:00: ValueError: no more of this "
                                 f"({line_of(run, 2)})")
    assert isinstance(played.error.__cause__, ValueError)
    assert played.director.end_us == played.at_us == 300_000_000
    assert played.director.next_us is None


def test_the_result_of_a_script_that_raises_holds_the_error_and_stops_there():
    async def run(ctx):
        await ctx.wait("5m")
        raise ValueError("enough")

    result = Scenario("s", fleet(), script=run).lasting("1h").generate()
    assert [str(error)[:40] for error in result.errors] == [
        "scenario 's' failed at 00:05:00: ValueEr"]
    assert result.duration.total_seconds() == 300


def test_a_script_that_exits_is_a_script_that_failed():
    async def run(ctx):
        raise SystemExit(3)

    assert "SystemExit: 3" in str(play(run).error)


def test_a_foreign_await_names_the_line():
    async def run(ctx):
        await ctx.wait("1s")
        await asyncio.sleep(0)

    played = play(run)
    assert str(played.error) == (
        "scenario 's' failed at 00:00:01: the script awaits asyncio.sleep(0) or a bare yield at "
        f"{line_of(run, 2)}: it may only await what ctx gives, such as ctx.wait.")


def test_a_foreign_await_inside_a_loop_is_the_same_error():
    async def run(ctx):
        await asyncio.sleep(1)

    async def inside():
        return play(run)

    assert "the script awaits an asyncio Future" in str(asyncio.run(inside()).error)


def test_a_foreign_await_without_any_loop_says_so_too():
    async def run(ctx):
        await ctx.wait("1s")
        await asyncio.sleep(1)

    assert str(play(run).error) == (
        f"scenario 's' failed at 00:00:01: the script uses asyncio ({line_of(run, 2)}), which says "
        "RuntimeError: no running event loop: it may only await what ctx gives, such as ctx.wait.")


def test_a_runtime_error_of_the_script_is_its_own():
    async def run(ctx):
        raise RuntimeError("no running pump")

    assert f"RuntimeError: no running pump ({line_of(run, 1)})" in str(play(run).error)


def test_a_script_that_never_waits_is_stopped():
    async def run(ctx):
        while True:
            ctx.random("x")

    error = play(run).error
    assert f"time has not moved on for {ACTS_AT_ONE_INSTANT_MAX:,} calls" in str(error)


def test_a_script_runs_until_its_timed_faults_have_ended():
    async def run(ctx):
        await ctx.inject_fault("disconnect", duration="3m")
        await ctx.inject("noise", stddev=1)
        await ctx.wait("1m")

    assert play(run).director.end_us == 180_000_000


def test_a_script_that_ends_under_a_fault_that_nothing_ends_says_so():
    async def run(ctx):
        await ctx.inject("noise", stddev=1)
        await ctx.inject("stuck", [f"pump-{i:04d}" for i in range(2)])
        await ctx.inject("disconnect", "site=north", "2m")
        await ctx.clear("stuck", ids=["pump-0000"])
        await ctx.clear("stuck", ids=["pump-0001"])
        await ctx.stop(device_type="temperature_sensor")
        await ctx.wait("1m")

    result = Scenario("s", fleet(), script=run).generate()
    assert result.duration.total_seconds() == 120
    assert result.notes == (
        "scenario 's' ended while noise was active on 5 devices: nothing clears it. "
        "Say .lasting('30m') to go on with it.",)
    live = asyncio.run(Scenario("s", fleet(), script=run).run(speed="max"))
    assert live.notes == result.notes
    assert Scenario("s", fleet(), script=run).lasting("3m").generate().notes == ()


def test_lasting_ends_a_script_that_would_go_on():
    async def run(ctx):
        while True:
            await ctx.wait("1m")
            await ctx.log("tick")

    played = play(run, lasting="150s")
    assert [action.at for action in played.actions] == [60, 120]
    assert played.at_us == 150_000_000


def test_a_script_is_closed_where_it_stands_and_may_not_act_then():
    ended = []

    async def run(ctx):
        try:
            await ctx.wait("1h")
        finally:
            ended.append(True)
            ctx.log("too late")

    played = play(run, lasting="1m")
    assert ended == [True]
    assert played.actions == []
    assert played.director.errors == []


def test_a_ctx_works_only_in_its_own_script():
    kept = []

    async def run(ctx):
        kept.append(ctx)
        await ctx.wait("1s")

    play(run)
    with pytest.raises(IotsimError, match="works only inside its own script"):
        kept[0].log("x")


def test_an_unstarted_script_leaves_no_warning():
    async def run(ctx):
        await ctx.wait("1s")

    director = Scenario("s", fleet(), script=run).director(0)
    director.close()
    assert director.next_us is None


def test_only_scripts_that_expect_need_readings():
    async def plain(ctx):
        await ctx.wait("1s")

    async def watching(ctx):
        async def inner():
            await ctx.expect("count() > 0")
        await inner()

    assert Scenario("s", fleet(), script=plain).director(0).needs_us == 0
    assert Scenario("s", fleet(), script=watching).director(0).needs_us > 10**15


def test_chaos_is_the_same_for_the_same_seed():
    async def run(ctx):
        for _ in range(5):
            if ctx.random("strike") < 0.7:
                await ctx.inject_fault("disconnect", await ctx.choose(count=2), duration="10s")
            await ctx.wait("1m")

    def told(seed):
        return Played(Scenario("s", fleet(seed), script=run)).said()

    assert told(1) == told(1)
    assert told(1) != told(2)


def test_a_script_gives_the_same_digest_as_its_log():
    async def run(ctx):
        await ctx.spawn("pump", count=2)
        await ctx.wait("1m")
        await ctx.inject_fault(FaultType.DATA_CORRUPTION, LabelSelector(site="north"),
                               corruption_rate=0.5)
        await ctx.wait("1m")
        await ctx.update_behavior({"temperature": {"baseline": 30}}, where="site=south")
        await ctx.wait("1m")

    result = Scenario("s", fleet(), script=run).generate()
    assert not result.errors
    assert result.to_scenario().generate(start=result.start).digest == result.digest


def test_choices_are_stable_when_devices_go():
    ids = [f"pump-{i:04d}" for i in range(1000)]
    chosen = Dice(7).choose(ids, None, "20%")
    assert 150 < len(chosen) < 250
    fewer = [name for name in ids if name != chosen[0]]
    assert Dice(7).choose(fewer, None, 0.2) == chosen[1:]
    assert Dice(7).choose(ids, 5, None) == sorted(Dice(7).choose(ids, 5, None))
    assert len(Dice(7).choose(ids[:3], 5, None)) == 3
    assert Dice(7).choose([], 5, None) == []
    dice = Dice(7)
    assert dice.choose(ids, 5, None) != dice.choose(ids, 5, None)


@pytest.mark.parametrize(("arguments", "said"), [
    ((None, None), "is not one of them"),
    ((1, 0.5), "is not one of them"),
    ((-1, None), "is not a whole number"),
    ((True, None), "is not a whole number"),
    ((None, 1.5), "is not from 0 to 1"),
    ((None, "x"), "is not from 0 to 1"),
    ((None, True), "is not from 0 to 1"),
])
def test_what_cannot_be_chosen_is_an_error(arguments, said):
    with pytest.raises(IotsimError, match=said):
        Dice(1).choose(["a"], *arguments)


def test_draws_are_even_and_streams_are_apart():
    dice = Dice(3)
    one = [dice.uniform("one") for _ in range(4000)]
    other = [dice.uniform("other") for _ in range(4000)]
    assert abs(sum(one) / 4000 - 0.5) < 0.02
    assert len(set(one) & set(other)) == 0


def test_the_names_of_the_contract_are_selectors_and_faults():
    assert parse(LabelSelector("site=north")).spec() == "site=north"
    assert parse(LabelSelector(site=["a", "b"], zone="1")).spec() == "site=a|b,zone=1"
    assert parse(DeviceIds(["a", "b"])).spec() == {"ids": ["a", "b"]}
    assert {one.value for one in FaultType} == {*FAULTS, *ALIASES}
    assert all(one.name == one.value.upper() for one in FaultType)


@pytest.mark.parametrize(("make", "said"), [
    (lambda: LabelSelector(), "says nobody"),
    (lambda: LabelSelector(site="a,b"), "is not the value of a label"),
    (lambda: LabelSelector(site=[]), "is not the value of a label"),
    (lambda: LabelSelector(site=[5]), "is not the value of a label"),
    (lambda: DeviceIds("pump-0001"), "is text, not a list of ids"),
    (lambda: who(["a"], ["b"], None), "is given twice"),
    (lambda: who(None, "pump-0001", None), "is text, not a list of ids"),
])
def test_who_that_cannot_be_is_an_error(make, said):
    with pytest.raises(IotsimError, match=said):
        make()


def test_who_is_meant():
    def spec(*arguments):
        return parse(who(*arguments)).spec()

    assert spec(None, None, None) == "all"
    assert spec("site=north", None, "pump") == "site=north,device_type=pump"
    assert spec(Done(["a"]), None, None) == {"ids": ["a"]}
    assert spec(None, ["a", "b"], "pump") == "id=a|b,device_type=pump"
