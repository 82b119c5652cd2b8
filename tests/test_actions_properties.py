"""Whatever is done to a fleet, in whatever order: what must hold all the same."""

import asyncio
from collections import Counter
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iotsim
from iotsim.errors import IotsimError
from iotsim.scenario_code import scenario_of
from iotsim.selectors import ids
from iotsim.units import DEFAULT_START
from iotsim.verbs import clear, inject, set_, stop
from tests.action_rig import (
    END_US,
    PLAIN,
    SCRIPTS,
    SECOND,
    THING,
    Hand,
    Oracle,
    free,
    mixed,
    rows,
    same_again,
    started,
    until,
    walker,
)
from tests.fleets import START_US
from tests.live import replayed, run

SHARE = st.sampled_from((0, 0.25, 0.5, 1))
RAMP = st.sampled_from((None, "7s"))
FIELD = st.sampled_from((None, "power", ["power", "level"], "walk", "state"))
WITHIN = st.sampled_from(("500ms", "3s", "11s"))


def options(**given):
    """Parameters of a fault; None is one that is not given."""
    made = st.fixed_dictionaries(given)
    return made.map(lambda chosen: {k: v for k, v in chosen.items() if v is not None})


FAULTS = {
    "battery_drain": options(drain_multiplier=st.sampled_from((0.5, 10, 500))),
    "clock_drift": options(drift_rate_ms_per_sec=st.sampled_from((-200, 50, 1000))),
    "data_corruption": options(corruption_rate=SHARE, ramp=RAMP, field=FIELD),
    "disconnect": options(store_and_forward=st.booleans()),
    "drift": options(rate_per_sec=st.sampled_from((-1, 0.25)), field=FIELD),
    "dropout": options(probability=SHARE, ramp=RAMP, field=FIELD),
    "duplicate": options(probability=SHARE, ramp=RAMP),
    "firmware_update": options(version=st.sampled_from(("1.1", "2.0"))),
    "latency_spike": options(latency_ms=st.sampled_from((1, 800, 9000)), probability=SHARE),
    "noise": options(stddev=st.sampled_from((0, 2)), probability=SHARE, field=FIELD),
    "offset": options(by=st.sampled_from((-2.5, 0.001)), ramp=RAMP, field=FIELD),
    "outlier": options(times=st.sampled_from((None, 1, 3)), field=FIELD,
                       value=st.sampled_from((None, 4))),
    "packet_loss": options(loss=SHARE, ramp=RAMP),
    "rate": options(factor=st.integers(2, 5)),
    "reboot": options(),
    "reconnect_storm": options(every=st.just("7s"), down=st.sampled_from(("1s", "4s"))),
    "reorder": options(probability=SHARE, by=st.sampled_from((None, "6s"))),
    "slow_down": options(),
    "stuck": options(field=FIELD),
    "suspend": options(),
}
WHERE = st.sampled_from((
    "all", "site=a", "site=b", "device_type=thing", "device_type=walker|free", "fraction=50%",
    "count=3", "site=b,count=2", "id=thing-0001|walker-0001|plain-0002", "site=nowhere", ids([]),
    ids(["thing-0003", "thing-0006", "free-0000"]),
))
TIMES = st.one_of(st.integers(0, 59).map(lambda s: s * SECOND), st.integers(0, END_US),
                  st.sampled_from((0, 20 * SECOND, 20 * SECOND + 1, 30 * SECOND)))
LASTS = st.one_of(st.none(), WITHIN, st.sampled_from(("1us", "20s", "1h")))
CHANGES = st.one_of(
    st.tuples(WHERE, st.sampled_from(("1s", "2500ms", "3s", "5s", "9s", "1234567us")),
              st.just({})),
    st.tuples(WHERE, st.none(), st.sampled_from((
        {"power": {"mean": 1}}, {"walk": {"volatility": 2}, "day": {"max": 20}},
        {"power": {"type": "constant", "value": 5}}, {"battery": {"drift": -1}}))),
)
JOINS = st.one_of(
    st.fixed_dictionaries({"device": st.sampled_from((THING, PLAIN)), "count": st.integers(1, 3),
                           "labels": st.sampled_from(({"site": "a"}, {}))}),
    st.fixed_dictionaries({"device": st.just(free)}),
    st.fixed_dictionaries({"device": st.just(walker), "every": st.just("3s")}),
)


@st.composite
def injections(draw):
    name = draw(st.sampled_from(sorted(FAULTS)))
    return "inject", inject(name, draw(WHERE), draw(LASTS), None, draw(FAULTS[name]))


DEEDS = st.one_of(
    injections(), injections(), injections(),
    st.builds(lambda where, lasts: ("inject", inject("suspend", where, lasts)), WHERE, LASTS),
    st.builds(lambda name, where: ("clear", clear(name, where)),
              st.one_of(st.none(), st.sampled_from(sorted(FAULTS))), WHERE),
    st.builds(lambda where: ("stop", stop(where)), WHERE.filter(lambda w: w != "all")),
    CHANGES.map(lambda given: ("set", set_(*given))),
    JOINS.map(lambda given: ("add", given)),
)
PLANS = st.lists(st.tuples(TIMES, DEEDS), min_size=1, max_size=9).map(
    lambda plan: sorted(((at_us, *deed) for at_us, deed in plan), key=lambda deed: deed[0]))
LIVE = {"start": DEFAULT_START, "capture": "all"}


def few(examples):
    return settings(max_examples=examples // 2, deadline=None,
                    suppress_health_check=list(HealthCheck))


def by_tick(found):
    return {(row["id"], row["n"]): row for row in found if row["sub"] == row["copy"] == 0}


@few(40)
@given(PLANS)
def test_ticks_and_active_faults_are_what_a_slow_loop_counts_and_ids_are_never_used_twice(plan):
    hand = Hand(mixed(), plan)
    oracle, found = Oracle(mixed(), hand.done), hand.rows
    _check_ticks(hand, oracle, found)
    _check_what_is_active(oracle, found)
    _check_ids(hand)


def _check_ticks(hand, oracle, found):
    per_device = Counter(row["id"] for row in found)
    assert sum(per_device.values()) == hand.digest.rows == len(found)
    for name, device in oracle.devices.items():
        mine = [row for row in found if row["id"] == name and row["copy"] == 0]
        if device["profile"] is None:
            assert [row["n"] for row in mine] == list(range(len(mine)))
            continue
        times = {(row["n"], row["sub"]): row["true_time"] - START_US for row in mine}
        assert len(times) == len(mine)
        expected = oracle.expected(name)
        assert times.keys() == expected.keys(), name
        for place, at_us in expected.items():
            jitter_us = device["profile"].jitter_us if place[1] == 0 else 0
            assert 0 <= times[place] - at_us <= max(0, jitter_us - 1)


def _check_what_is_active(oracle, found):
    when = {name: oracle.expected(name) for name in oracle.devices}
    for row in found:
        at_us = when[row["id"]].get((row["n"], row["sub"]), row["true_time"] - START_US)
        windows = oracle.on(row["id"], at_us)
        names = {w["name"] for w in windows}
        assert row["faults"] == "+".join(sorted(names))
        hit = set(row["hit"].split("+")) - {""}
        assert hit - names <= {"battery_drain"}  # what was drained stays drained
        assert row["labels"] == oracle.labels(row["id"], at_us)
        if any(w["name"] == "disconnect" and not w["fault"].store_and_forward for w in windows):
            assert (row["withheld"], row["hit"]) == ("disconnect", "disconnect")
        if names & {"suspend", "reboot", "firmware_update"}:
            assert row["withheld"]
        assert bool(row["withheld"]) <= (row["withheld"] in hit)


def _check_ids(hand):
    people = hand.simulation.population
    assert len(set(people.ids)) == len(people.ids)
    for group, slots in zip(people.groups, people.slots, strict=True):
        assert [people.ids[slot] for slot in slots.tolist()] == list(group.ids)
    for before, after in pairwise(hand.done):
        assert before.at_us <= after.at_us


@few(30)
@given(PLANS)
def test_a_row_that_nothing_hit_is_the_truth_and_the_truth_is_that_of_a_run_without_faults(plan):
    hand = Hand(mixed(), plan)
    quiet = Hand(mixed(), plan, skip=("inject", "clear"))
    calm, found = quiet.rows, hand.rows
    truth = by_tick(calm)
    _check_who_is_never_named(hand, found, calm)
    assert truth.keys() == by_tick(found).keys()
    for row in found:
        plain = (row["values"] == row["truth"] and not row["withheld"] and not row["delay_us"]
                 and not row["shift_us"] and not row["sub"] and not row["copy"])
        assert plain or row["hit"], row
        if not plain or row["faults"].count("+") == 0:
            assert plain == (not row["hit"]), row
        assert not row["withheld"] or not (row["delay_us"] or row["copy"])
        if row["sub"] == 0:
            there = truth[row["id"], row["n"]]
            assert row["truth"] == there["values"]
            assert row["true_time"] == there["true_time"]


def _check_who_is_never_named(hand, found, calm):
    named = {name for w in Oracle(mixed(), hand.done).windows for name in w["ends"]}
    others = [row for row in found if row["id"] not in named]
    assert others == [row for row in calm if row["id"] not in named]
    assert not any(row["faults"] or row["hit"] for row in others)


@few(30)
@given(PLANS, st.sets(st.integers(0, END_US), max_size=12))
def test_it_does_not_matter_how_time_was_cut(plan, cuts):
    whole, cut = Hand(mixed(), plan), Hand(mixed(), plan, cuts=cuts)
    assert list(map(str, cut.refused)) == list(map(str, whole.refused))
    found = whole.rows
    assert cut.rows == found
    again = replayed(mixed(), whole.done, START_US, START_US + END_US)
    assert again.digest == whole.digest.hexdigest() == cut.digest.hexdigest()
    assert rows(again.capture.chunks()) == found


@few(12)
@given(PLANS, st.sampled_from((300, 2000, "max")))
def test_saved_exported_and_live_runs_give_the_same_bytes(tmp_path_factory, plan, speed):
    hand = Hand(mixed(), plan)
    fleet = mixed().publish_to("memory:any")
    digest, found = hand.digest.hexdigest(), hand.rows
    scenario = scenario_of(fleet, hand.done, START_US, START_US + END_US, "any")
    offline = scenario.generate()
    assert offline.digest == digest
    assert offline.to_scenario().generate().digest == digest
    path = offline.save(tmp_path_factory.mktemp("any") / "any.iotsim")
    assert iotsim.verify(path, devices=SCRIPTS), iotsim.verify(path, devices=SCRIPTS).difference
    live = asyncio.run(scenario.run(speed=speed, **LIVE))
    assert not live.errors, live.errors
    assert live.digest == digest
    assert rows(live.capture.chunks()) == found
    _check_balance(live, found)


def _check_balance(live, found):
    (ledger,) = live.publishers.values()
    left = [row for row in found if not row["withheld"]]
    stored = sum(count for reason, count in ledger.drops.items() if "stored" in reason)
    assert ledger.offered == len(left)
    assert ledger.acknowledged + stored == len(left)
    assert ledger.queued == ledger.in_flight == ledger.refused == ledger.unknown == 0
    sent = Counter(name.split("/", 1)[1] for _, _, name in iotsim.publishers.memory.messages("any"))
    assert sent.total() == ledger.acknowledged
    assert max(sent.values(), default=1) == 1
    wanted = {f"{row['id']}/{row['n']}{'.' + str(row['sub']) if row['sub'] else ''}/{row['copy']}"
              for row in left}
    assert sent.keys() <= wanted


@few(15)
@given(st.lists(injections(), min_size=1, max_size=6), st.randoms())
def test_a_device_has_the_same_draws_whatever_other_devices_have_had(deeds, random):
    # Every fault again, on others: what a device has had of a name is its own business.
    def only(who, others):
        plan = [(i * SECOND, verb, {**given, "where": {"ids": [who]}})
                for i, (verb, given) in enumerate(deeds)]
        more = [(at_us, verb, {**given, "where": {"ids": others}})
                for at_us, verb, given in plan if others]
        random.shuffle(more)
        merged = [step for pair in zip(more, plan, strict=True) for step in pair] if more else plan
        hand = Hand(mixed(), sorted(merged, key=lambda step: step[0]))
        return [row for row in hand.rows if row["id"] == who]

    assert only("thing-0001", []) == only("thing-0001", ["thing-0000", "thing-0005"])


@pytest.fixture(scope="module")
def quiet():
    """The rows of a fleet to which nothing is done."""
    return by_tick(Hand(mixed(), []).rows)


@pytest.mark.parametrize("name", sorted(FAULTS))
@few(4)
@given(data=st.data())
def test_each_fault_leaves_other_devices_and_other_times_alone(quiet, name, data):
    where = {"ids": ["thing-0001", "thing-0004"]}
    given = inject(name, where, "14s", None, data.draw(FAULTS[name]))
    at_us = data.draw(st.integers(0, 40 * SECOND))
    hand = Hand(mixed(), [(at_us, "inject", given)])
    oracle = Oracle(mixed(), hand.done)
    for row in hand.rows:
        if row["faults"] == "" and row["hit"] == "":
            there = quiet[row["id"], row["n"]]
            assert row["values"] == there["values"]
            assert row["time"] == there["time"]
    if hand.done and name != "battery_drain":
        active = [row for row in hand.rows if row["faults"]]
        assert all(row["id"] in where["ids"] for row in active)
        grid = [oracle.expected(row["id"])[row["n"], row["sub"]] for row in active]
        assert all(at_us <= t < at_us + 14 * SECOND for t in grid)


PACE = st.sampled_from(("pause", "resume", 20, 400, "max", "breathe", "breathe"))


@few(10)
@given(st.lists(st.one_of(PACE, DEEDS), min_size=1, max_size=12), st.sampled_from((40, "max")))
def test_whatever_is_done_live_and_at_whatever_pace_the_log_does_it_again(
    tmp_path_factory, deeds, speed
):
    async def session(live):
        for deed in deeds:
            if isinstance(deed, tuple):
                verb, given = deed
                with suppress(IotsimError):
                    live.add(**given) if verb == "add" else live._act(verb, given)
            elif deed in ("pause", "resume"):
                getattr(live, deed)()
            elif deed == "breathe":
                for _ in range(20):
                    await asyncio.sleep(0.001)
            else:
                live.set_speed(deed)

    async def main():
        live = await started(mixed(name="session").publish_to("memory:any"), speed)
        await session(live)
        live.resume()
        live.set_speed(4000)  # what "max" has run ahead of is soon made up for
        driver = live._works.driver
        seen_us = driver.frontier_us
        await until(lambda: driver.frontier_us > seen_us)
        return await live.stop()

    result = run(main())
    same_again(result, tmp_path_factory.mktemp("live"), **SCRIPTS)
    if result.rows < 20_000:
        _check_balance(result, rows(result.capture.chunks()))
