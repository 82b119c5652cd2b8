"""When readings leave: stored until nothing keeps their device offline, or late, or never."""

import asyncio
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iotsim import Fleet, Profile, Scenario, ids
from iotsim.actions import Action
from iotsim.engine.departures import back_us
from iotsim.engine.simulation import Simulation
from iotsim.links import STORED, Links
from iotsim.publishers.memory import messages
from tests.fault_rig import START_US, window
from tests.live import START, replayed, run

SECOND = 1_000_000
GAUGE = Profile("gauge", {"level": {"type": "gaussian", "mean": 5, "stddev": 1}},
                telemetry_interval="1s", phase=0)
STORE = {"store_and_forward": True}
NAMES = ("gauge-0000", "gauge-0001", "gauge-0002")


def gauges(name="gauges", count=3, profile=GAUGE):
    return Fleet(name, seed=5).add(profile, count=count)


def scenario(name="gauges", count=1, profile=GAUGE):
    return Scenario(name, gauges(name, count, profile)).lasting("20s")


def left_s(result, device="gauge-0000"):
    """When each reading left, by seq: seconds since the start, None if never."""
    rows = result.frame(wire=True, truth=True)
    rows = rows[(rows["device_id"] == device) & (rows["copy"] == 0)]
    at_s = (rows["true_time"] - result.start).dt.total_seconds() + rows["latency"]
    return {seq: None if word else round(left, 6) for seq, left, word in
            zip(rows["seq"], at_s, rows["withheld"], strict=True)}


OVER = {
    "disconnect": {"duration": "12s"},
    "reboot": {"duration": "12s"},
    "firmware_update": {"duration": "12s", "version": "2"},
    "reconnect_storm": {"duration": "12s", "every": "20s", "down": "11900ms"},
}


@pytest.mark.parametrize("fault", OVER)
def test_a_backlog_waits_until_the_last_of_the_faults_that_keep_a_device_offline(fault):
    made = scenario().inject("disconnect", duration="8s", **STORE).at("4s").inject(
        fault, **OVER[fault])
    back_s = 15.9 if fault == "reconnect_storm" else 16
    found = left_s(made.generate())
    assert {found[seq] for seq in range(4)} == {back_s}
    assert found[16] == 16


def test_a_storm_over_an_outage_lets_the_backlog_go_in_its_first_gap():
    made = scenario().inject("disconnect", duration="4500ms", **STORE).inject(
        "reconnect_storm", every="4s", down="3s")
    found = left_s(made.generate())
    assert {found[seq] for seq in range(5)} == {7}


def test_a_backlog_is_neither_lost_nor_late_nor_sent_twice_nor_in_disorder():
    for first in (True, False):
        made = scenario()
        if first:
            made = made.inject("disconnect", duration="10s", **STORE)
        made = (made.inject("packet_loss", loss=1).inject("duplicate").inject("reorder", by="1h")
                .inject("latency_spike", latency_ms=3_600_000).inject("offset", by=1)
                .inject("reconnect_storm", every="30s", down="9s"))
        if not first:
            made = made.inject("disconnect", duration="10s", **STORE)
        result = made.generate()
        rows = result.frame(wire=True)
        stored = rows[rows["seq"] < 10]
        assert len(stored) == 10
        assert set(stored["hit"]) == {"disconnect+offset"}
        assert set(left_s(result).values()) == {10, None}
        assert (rows.loc[rows["seq"] >= 10, "withheld"] == "packet_loss").all()


def test_what_a_stopped_device_still_stores_never_leaves():
    made = (scenario().inject("disconnect", duration="8s", **STORE).at("3s").stop("all"))
    result = made.generate()
    assert left_s(result) == {0: None, 1: None, 2: None}
    assert set(result.frame(wire=True)["withheld"]) == {"disconnect"}
    live = run(Scenario("silent", gauges("silent").publish_to("memory:silent"))
               .inject("disconnect", duration="8s", **STORE).at("3s").stop("all")
               .lasting("20s").run(speed="max"))
    (account,) = live.publishers.values()
    assert (messages("silent"), live.errors) == ([], ())
    assert dict(account.drops) == {STORED: 9}


def test_what_a_stopped_device_has_on_a_slow_link_leaves_in_its_time():
    made = scenario().inject("latency_spike", latency_ms=5000).at("3s").stop("all")
    assert left_s(made.generate()) == {0: 5, 1: 6, 2: 7}


@pytest.mark.parametrize(("latency_ms", "by", "cleared", "left"), [
    (5000, "4s", "latency_spike", (4, 4)),
    (3000, "9s", "reorder", (3, 5)),  # what the other one let go is late from then on
    (8000, "4s", "reorder", (8, 10)),
    (8000, "1s", "latency_spike", (2, 2)),
])
def test_a_clear_does_not_let_go_what_another_fault_still_holds(latency_ms, by, cleared, left):
    slow = scenario().inject("latency_spike", latency_ms=latency_ms).inject(
        "reorder", by=by, probability=1)
    mixed = scenario().inject("reorder", by=by, probability=1).inject(
        "latency_spike", latency_ms=latency_ms)
    assert tuple(left_s(made.at("2s").clear(cleared).generate())[0]
                 for made in (slow, mixed)) == left


def test_two_slow_links_one_of_which_is_mended():
    fleet = gauges("two", 2)
    made = (Scenario("two", fleet).lasting("30s").inject("latency_spike", latency_ms=5000)
            .inject("latency_spike", "id=gauge-0000", latency_ms=5000).at("2s"))
    assert left_s(made.generate())[0] == 10
    assert left_s(made.clear("latency_spike", "id=gauge-0000").generate())[0] == 2
    assert left_s(made.clear("latency_spike").generate(), "gauge-0001")[0] == 2


def test_a_reading_is_never_sent_before_its_own_time_however_it_jitters():
    jittery = Profile("gauge", {"level": {"type": "gaussian", "mean": 5, "stddev": 1}},
                      telemetry_interval="1s", jitter="900ms")
    made = scenario(profile=jittery).inject("disconnect", duration="8s", **STORE).at("2s").inject(
        "rate", factor=3).at("5s").clear("disconnect")
    rows = made.generate().frame(wire=True, truth=True)
    assert (rows["latency"] >= 0).all()
    at_s = (rows["true_time"] - rows["true_time"].iloc[0].floor("1min")).dt.total_seconds()
    stored = rows["hit"].str.contains("disconnect")
    assert (at_s + rows["latency"])[stored].round(6).tolist() == [
        max(5.0, at_s) for at_s in at_s[stored].round(6)]


def test_links_that_are_never_up_together_are_given_up_on_and_not_for_ever():
    storms = [window("reconnect_storm", begin_s=begin_s, end_s=end_s, every="100ms", down="50ms")
              for begin_s, end_s in ((0, 500), (0.05, 400))]
    until_us = back_us(storms, np.array([0]), np.array([START_US + 1]))
    assert until_us.tolist() == [START_US + 500 * SECOND]


# -- against a slow oracle ------------------------------------------------------------------------

HALF = 500_000
END, NEVER = 40, 10**6  # in halves of a second, as all times below
FAULTS = {
    "store": ("disconnect", STORE), "disconnect": ("disconnect", {}), "reboot": ("reboot", {}),
    "storm": ("reconnect_storm", {"every": "2s", "down": "1500ms"}),
    "firmware_update": ("firmware_update", {"version": "2"}),
}
STEPS = st.lists(st.tuples(
    st.integers(0, END - 1),
    st.one_of(
        st.tuples(st.sampled_from(["store", "store", *FAULTS]), st.integers(1, 20)),
        st.tuples(st.sampled_from(["store", "storm"]), st.just(NEVER)),
        st.tuples(st.just("clear"), st.sampled_from([None, "disconnect", "reboot"])),
        st.tuples(st.just("stop"), st.none())),
    st.sampled_from(NAMES),
), max_size=10).map(lambda steps: sorted(steps, key=lambda step: step[0]))


class Oracle:
    """Three devices every second, by plain loops over halves of seconds."""

    def __init__(self, steps):
        self.windows, self.ended = [], {}
        for at, (what, how), name in steps:
            if name in self.ended:
                continue
            if what == "stop":
                self.ended[name] = at
            elif what == "clear":
                for one in self.windows:
                    if one["name"] == name and how in (None, FAULTS[one["what"]][0]):
                        one["end"] = min(one["end"], max(at, one["begin"]))
            else:
                self.windows.append({"what": what, "name": name, "begin": at, "end": at + how})

    def on(self, name, at):
        """What keeps a device offline."""
        found = {one["what"]: at - one["begin"] for one in self.windows
                 if one["name"] == name and one["begin"] <= at < one["end"]}
        storms = [one for one in self.windows if one["name"] == name and one["what"] == "storm"
                  and one["begin"] <= at < one["end"] and (at - one["begin"]) % 4 < 3]
        found.pop("storm", None)
        return set(found) | ({"storm"} if storms else set())

    def leaves(self, name, seq):
        """When a reading leaves; None if it never does."""
        ended, on = self.ended.get(name, NEVER), self.on(name, 2 * seq)
        if on and ("store" not in on or on & {"disconnect", "reboot", "firmware_update"}):
            return None
        back = next((at for at in range(2 * seq, 2 * END) if not self.on(name, at)), NEVER)
        return back if not on or back < min(ended, END + 1) else None

    def all(self):
        return {(name, seq): self.leaves(name, seq) for name in NAMES
                for seq in range(END // 2) if 2 * seq < self.ended.get(name, NEVER)}


def actions_of(steps):
    """The same as actions; nobody is asked anything after its end."""
    ended = set()
    for at, (what, how), name in steps:
        given = {"where": {"ids": [name]}}
        if name in ended:
            continue
        if what == "stop":
            ended.add(name)
            yield Action("stop", at * HALF, given)
        elif what == "clear":
            yield Action("clear", at * HALF, {**given, **({"fault": how} if how else {})})
        else:
            fault, parameters = FAULTS[what]
            lasting = {} if how == NEVER else {"duration_us": how * HALF}
            yield Action("inject", at * HALF, {**given, "fault": fault, "parameters": parameters,
                                               **lasting})


class Board:
    """Where a switchboard would be: what left, and within which slot."""

    def __init__(self):
        self.ways, self.left, self.discarded, self.now = [], [], Counter(), (0, 0)

    def check(self, member, group, slots):
        pass

    def joined(self, member, group, slots):
        pass

    def put(self, readings):
        self.left += [((readings.group.ids[device], seq), self.now)
                      for device, seq in zip(readings.device, readings.seq.tolist(), strict=True)]

    def discard(self, readings, reason):
        self.discarded[reason] += len(readings)


def by_slots(actions, slot_us, end_us):
    """What a driver does with links, slot by slot."""
    board = Board()
    links, fleet = Links(board), gauges()
    simulation = Simulation(fleet.members, fleet.seed, START_US, witness=links,
                            parts=lambda group: [np.array([i], np.int32) for i in range(3)])
    links.follow(simulation.deeds)
    at_us, todo = START_US, list(actions)
    while True:
        while todo and START_US + todo[0].at_us <= at_us:
            simulation.act(todo.pop(0))
        links.turn(at_us)
        if at_us == START_US + end_us:
            break
        stops = [at_us + slot_us, START_US + end_us, links.next_us]
        until_us = min(stop for stop in (*stops, *(START_US + one.at_us for one in todo[:1]))
                       if stop > at_us)
        board.now = at_us - START_US, until_us - START_US
        for block in simulation.blocks:
            for readings in block.advance(until_us):
                links.put(block, readings)
            links.come_to(block, min(block.time_us, until_us))
        simulation.drop_retired()
        links.release(until_us)
        at_us = until_us
    board.now = end_us, end_us + 1
    links.flush(at_us)
    assert links.waiting_rows == 0
    return board


@settings(max_examples=30)
@given(steps=STEPS, slot_us=st.sampled_from([10_000, 370_000, 20 * SECOND]))
@example(steps=[(0, ("store", 16), NAMES[0]), (8, ("disconnect", 24), NAMES[0])], slot_us=10_000)
@example(steps=[(0, ("store", 16), NAMES[0]), (4, ("stop", None), NAMES[0])], slot_us=10_000)
@example(steps=[(0, ("store", NEVER), NAMES[2]), (9, ("clear", None), NAMES[2])], slot_us=10_000)
@example(steps=[(0, ("store", 8), NAMES[1]), (8, ("storm", 20), NAMES[1])], slot_us=370_000)
def test_links_and_frames_agree_with_a_slow_oracle(steps, slot_us):
    expected, end_us = Oracle(steps).all(), END * HALF
    actions = list(actions_of(steps))
    # By slots: each leaves in the slot that its instant is in.
    board = by_slots(actions, slot_us, end_us)
    assert len(board.left) == len(dict(board.left))
    for key, (since_us, until_us) in board.left:
        assert since_us <= expected[key] * HALF < until_us, key
    assert set(dict(board.left)) == {key for key, at in expected.items() if at is not None}
    # In frames: at its instant.
    assert frame_of(actions, end_us) == expected
    stored = [key for key, at in expected.items()
              if at is None and Oracle(steps).on(key[0], 2 * key[1]) <= {"store", "storm"}
              and "store" in Oracle(steps).on(key[0], 2 * key[1])]
    assert dict(board.discarded) == ({STORED: len(stored)} if stored else {})


def frame_of(actions, end_us):
    result = replayed(gauges(), actions, START_US, START_US + end_us)
    rows = result.frame(wire=True)
    at_us = (rows["time"] - result.start).dt.total_seconds() + rows["latency"]
    return {(device, seq): None if word else round(left * SECOND) // HALF for device, seq, left,
            word in zip(rows["device_id"], rows["seq"], at_us, rows["withheld"], strict=True)}


# -- events ---------------------------------------------------------------------------------------


def test_at_one_instant_a_cause_stands_before_what_follows_from_it():
    made = (scenario().at("4s").inject("disconnect", duration="4s", **STORE)
            .at("10s").inject("reboot").at("12s").clear().at("14s").inject("disconnect")
            .at("16s").stop("all"))
    frame = made.generate().events()
    told = [((time - frame["time"].iloc[0]).total_seconds(), event)
            for time, event in zip(frame["time"], frame["event"], strict=True)]
    down, up = ["fault_injected", "disconnected"], ["fault_cleared", "connected"]
    assert told == [(at_s, event) for at_s, events in (
        (0, ["spawned", "connected"]), (4, ["action", *down]), (8, up), (10, ["action", *down]),
        (12, ["action", *up]), (14, ["action", *down]), (16, ["action", "stopped"]),
    ) for event in events]


# -- live -----------------------------------------------------------------------------------------


def lived(steps, speed, name):
    """The same as a scenario, live; (result, [(device, seq), …] as they came)."""
    made = Scenario(name, gauges(name).publish_to(f"memory:{name}", topic="d/{device_id}"))
    for action in actions_of(steps):
        given, made = action.parameters, made.at(f"{action.at_us}us")
        where = ids(given["where"]["ids"])
        if action.verb == "stop":
            made = made.stop(where)
        elif action.verb == "clear":
            made = made.clear(given.get("fault"), where)
        else:
            lasting = f"{given['duration_us']}us" if "duration_us" in given else None
            made = made.inject(given["fault"], where, lasting, parameters=given["parameters"])
    made = made.lasting(f"{END * HALF}us")
    result = run(made.run(speed=speed, start=START))
    came = [(topic.removeprefix("d/"), int(ident.split("/")[-2]))
            for topic, _, ident in messages(name)]
    return made, result, came


def check_live(steps, speed, name):
    made, result, came = lived(steps, speed, name)
    expected = Oracle(steps).all()
    if not any(what == "firmware_update" for _, (what, _), _ in steps):
        assert result.errors == ()
    assert set(came) == {key for key, at in expected.items() if at is not None}
    assert len(came) == len(set(came))
    for device in NAMES:
        left = [expected[key] for key in came if key[0] == device]
        assert left == sorted(left)
    assert made.generate(start=START).digest == result.digest
    result = replace(result, acks=None)  # latency without the real time of acknowledgements
    assert left_s(result) == {seq: None if at is None else at / 2 for (device, seq), at in
                              expected.items() if device == NAMES[0]}


PACED = [
    (0, ("store", 16), NAMES[0]), (0, ("store", NEVER), NAMES[1]), (2, ("store", 20), NAMES[2]),
    (8, ("disconnect", 18), NAMES[0]), (9, ("storm", NEVER), NAMES[1]),
    (10, ("stop", None), NAMES[2]), (15, ("clear", "disconnect"), NAMES[1]),
]


def test_live_at_a_pace_what_leaves_when_is_what_the_oracle_says():
    check_live(PACED, 20, "paced")


def test_live_as_fast_as_it_goes_what_leaves_when_is_what_the_oracle_says():
    check_live(PACED, "max", "fast")


@settings(max_examples=15)
@given(STEPS)
def test_live_any_plan_leaves_in_order_and_as_the_oracle_says(steps):
    check_live(steps, "max", "any")


@pytest.mark.parametrize("speed", [50, 2000, "max"])
@pytest.mark.parametrize("stops", [False, True])
def test_the_order_on_the_wire_is_that_of_leaving_at_any_speed(speed, stops):
    # A slot may take in several ticks of a device, and be computed in several pieces.
    fleet = Fleet("order", seed=1).add("pump", count=20, every="1s").publish_to("memory:order")
    story = Scenario("order", fleet).at("5s").inject("reorder", duration="10s", probability=0.5)
    story = story.at("8s").stop(where="count=3") if stops else story
    result = run(story.lasting("25s").run(speed=speed, start=START))
    frame = result.frame(wire=True)
    leave_s = (frame["time"] - result.start).dt.total_seconds() + frame["latency"].fillna(0)
    delays = frame["latency"] > 1
    assert delays.sum() > 20
    arrived = defaultdict(list)
    for _, _, ident in messages("order"):
        _, device, seq, _ = ident.split("/")
        arrived[device].append(int(seq))
    for device, rows in frame.assign(leave=leave_s).groupby("device_id", observed=True):
        # What is simulated decides; the acknowledgement adds microseconds.
        assert arrived[device] == rows.sort_values("leave", kind="stable")["seq"].tolist()


def order_on_the_wire(scenario, speed, device):
    asyncio.run(scenario.run(speed=speed, start="2026-03-01T12:00:00Z"))
    return [int(ident.split("/")[2]) for _, _, ident in messages("order")
            if f"/{device}/" in ident]


@pytest.mark.parametrize("every", ["500ms", "1s"])
@pytest.mark.parametrize("who", ["id=p-0005", "all"])
def test_a_backlog_leaves_in_order_though_its_block_is_split_or_merged_at_any_pace(every, who):
    profile = Profile("p", {"x": {"type": "gaussian", "mean": 1, "stddev": 1}},
                      telemetry_interval="1s")
    fleet = Fleet("f", seed=1).add(profile, count=6).publish_to("memory:order")
    scenario = (Scenario("s", fleet).at("10s")
                .inject("disconnect", where=who, duration="9s", store_and_forward=True)
                .at("15s").set(where="id=p-0000", every=every).lasting("25s"))
    for speed in ("max", 100, 25):
        assert order_on_the_wire(scenario, speed, "p-0005") == list(range(25))


@pytest.mark.parametrize(("fault", "more"), [
    ("latency_spike", {"latency_ms": 2500}), ("reorder", {"probability": 0.4})])
def test_what_a_slow_link_holds_leaves_alike_at_any_pace_though_its_block_is_split(fault, more):
    profile = Profile("p", {"x": {"type": "gaussian", "mean": 1, "stddev": 1}},
                      telemetry_interval="200ms")
    fleet = Fleet("f", seed=1).add(profile, count=6).publish_to("memory:order")
    scenario = (Scenario("s", fleet).at("2s").inject(fault, duration="6s", **more)
                .at("4s").set(where="id=p-0000", every="300ms")
                .at("6s").set(where="id=p-0000", every="200ms").lasting("10s"))
    orders = [order_on_the_wire(scenario, speed, "p-0005") for speed in ("max", 40, 15)]
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == list(range(50))
