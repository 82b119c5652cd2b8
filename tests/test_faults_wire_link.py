"""What each fault of the link does to what a subscriber got: whether, when, in which order."""

import statistics
from itertools import pairwise

import pytest

from iotsim.faults.base import fault_name
from tests import wire
from tests.wire import BEGIN_S, CASES, END_S, NORTHERN, SOUTHERN, in_window, within_four_sigma

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]
CYCLES = 2  # of a storm: every 10 s for 20 s
CLOCKS_S = 0.005  # two processes, two clocks
OWN = [f"own-{case}{how}" for case in wire.OFFLINE for how in ("", ", cleared")]


def losses(seen):
    """How many of the readings of the window never came."""
    window = [key for key, row in seen.rows.items() if in_window(row)]
    assert len(window) == 20 * wire.NORTH
    return sum(key not in seen.by_key for key in window), len(window)


def too_early(seen, speed, leaves_us):
    """Messages that came before simulated time had come to where they leave."""
    return [message for message in seen.messages
            if message.at_s < seen.anchor_s + leaves_us(message) / 1e6 / speed - CLOCKS_S]


@pytest.mark.parametrize("how", ["", ", cleared"])
def test_a_device_without_a_link_is_silent(how):
    seen = wire.everything()["disconnect" + how]
    assert losses(seen) == (20 * wire.NORTH, 20 * wire.NORTH)


@pytest.mark.parametrize("case", ["network_degradation"])
def test_a_bad_link_loses_the_share_that_was_asked_for(case):
    seen = wire.everything()[case]
    assert within_four_sigma(*losses(seen), 0.5)
    withheld = {row["withheld"] for row in seen.rows.values()}
    assert withheld == {"", "packet_loss"}


def test_nothing_comes_before_its_time():
    for name, seen in wire.everything().items():
        early = too_early(seen, wire.SPEED, lambda one: seen.rows[one.key]["true_us"])  # noqa: B023
        assert early == [], name


# -- later ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["", ", cleared"])
def test_what_was_stored_comes_when_the_link_is_back_in_order_complete_and_marked(how):
    seen = wire.everything()["store_and_forward" + how]
    for device in NORTHERN:
        assert [message.key[1] for message in seen.of(device)] == list(range(wire.LASTS_S))
    stored = {key: row for key, row in seen.left.items() if in_window(row)}
    assert len(stored) == 20 * wire.NORTH
    for row in stored.values():
        assert row["hit"] == "disconnect"
        assert row["acked"] is True
        waited_s = END_S - row["true_us"] / 1e6
        assert waited_s <= row["latency"] < waited_s + 10
    early = too_early(seen, wire.SPEED,
                      lambda one: END_S * 1e6 if one.key in stored else 0)
    assert early == []


def test_a_slow_link_delays_its_own_readings_and_nobody_else():
    seen, calm = wire.special()["late by five"], wire.special()["nobody late"]
    assert seen.result.digest == calm.result.digest

    def leaves_us(message):
        true_us = seen.rows[message.key]["true_us"]
        if in_window(seen.rows[message.key]):
            return min(true_us + 5_000_000, END_S * 1e6)
        return true_us

    assert too_early(seen, wire.SLOW, leaves_us) == []
    late_s = {"north": [], "south": []}
    reached_us = {}
    for message in seen.messages:  # how far the others were when it came
        side, true_us = message.key[0].split("-")[0], message.stamp_us
        other = reached_us.get("south" if side == "north" else "north", 0)
        if BEGIN_S * 1e6 <= true_us < (END_S - 5) * 1e6:
            late_s[side].append((other - true_us) / 1e6)
        reached_us[side] = max(reached_us.get(side, 0), true_us)
    # Two connections carry them: one may be up to a few simulated seconds behind the other.
    assert 1 < statistics.median(late_s["north"]) <= 7
    assert statistics.median(late_s["south"]) < -1
    for device in (*NORTHERN, *SOUTHERN):
        numbers = [message.key[1] for message in seen.of(device)]
        assert numbers == list(range(wire.BEGIN_S + 25))
    for row in seen.left.values():
        waited_s = min(5, END_S - row["true_us"] / 1e6) if in_window(row) else 0
        assert row["latency"] >= waited_s


def test_a_clear_lets_go_what_that_fault_holds_and_nothing_else():
    seen = wire.special()["both"]  # late by 8 s from 10 s to 25 s, and off by one until 15 s
    for row in seen.left.values():
        true_s = row["true_us"] / 1e6
        slow = wire.is_north(row["device_id"]) and BEGIN_S <= true_s < 25
        delay_s = seen.delays_s[row["device_id"], row["seq"], 0, 0]
        assert delay_s == pytest.approx(min(8, 25 - true_s) if slow else 0)
    assert too_early(seen, wire.SLOW, lambda one: (
        seen.rows[one.key]["true_us"] + seen.delays_s[one.key] * 1e6)) == []


# -- twice, and in another order ------------------------------------------------------------------


def test_a_duplicate_is_the_same_message_again_under_the_id_of_a_copy():
    seen = wire.everything()["duplicate"]
    copies = [message for message in seen.messages if message.key[3]]
    for copy in copies:
        device, seq, sub, number = copy.key
        first = seen.by_key[device, seq, sub, 0]
        assert number == 1
        assert (copy.payload, copy.topic) == (first.payload, first.topic)
        assert copy.place > first.place
    assert within_four_sigma(len(copies), 20 * wire.NORTH, 0.5)


def test_reordered_readings_all_come_and_not_in_their_order():
    seen = wire.everything()["reorder"]
    for device in NORTHERN:
        numbers = [message.key[1] for message in seen.of(device)]
        assert sorted(numbers) == list(range(wire.LASTS_S))
        overtaken = {one for one, after in pairwise(numbers) if one > after}
        assert overtaken
        assert all(BEGIN_S - 1 <= number < END_S for number in overtaken)
    for device in SOUTHERN:
        assert [message.key[1] for message in seen.of(device)] == list(range(wire.LASTS_S))


# -- sessions -------------------------------------------------------------------------------------


def case_of(name):
    return name.removeprefix("own-").removesuffix(", cleared")


@pytest.mark.parametrize("name", OWN)
def test_a_session_is_closed_without_a_goodbye_and_opened_again(name):
    seen = wire.own_sessions()[name]
    cycles = CYCLES if case_of(name) == "reconnect_storm" else 1
    topics = sorted(message.topic for message in seen.wills)
    assert topics == sorted(f"will/{seen.scenario.fleet.name}/{device}"
                            for device in NORTHERN for _ in range(cycles))
    assert {message.payload for message in seen.wills} == {b"offline"}
    connects = {device: seen.connects[f"{seen.scenario.fleet.name}-{device}"]
                for device in (*NORTHERN, *SOUTHERN)}
    assert connects == {**dict.fromkeys(NORTHERN, 1 + cycles), **dict.fromkeys(SOUTHERN, 1)}


@pytest.mark.parametrize("name", OWN)
def test_with_sessions_of_their_own_devices_send_what_they_send_on_shared_ones(name):
    seen, shared = wire.own_sessions()[name], wire.everything()[name.removeprefix("own-")]
    assert seen.result.digest == shared.result.digest
    assert seen.result.errors == ()
    # What was in flight when the session broke is sent again under the same id.
    assert {key: one.payload for key, one in seen.by_key.items()} == {
        key: one.payload for key, one in shared.by_key.items()}


@pytest.mark.parametrize("name", OWN)
def test_between_last_will_and_return_nothing_comes_from_a_device(name):
    seen = wire.own_sessions()[name]
    lost = [message for message in seen.wills if message.topic.endswith(NORTHERN[0])]
    down = [(BEGIN_S + 10 * i, BEGIN_S + 10 * i + 4) for i in range(CYCLES)]
    if case_of(name) != "reconnect_storm":
        down = [(BEGIN_S, END_S)]
    stored = case_of(name) == "store_and_forward"
    for message in seen.of(NORTHERN[0]):
        time_s = seen.rows[message.key]["true_us"] / 1e6
        assert stored or not any(begin <= time_s < end for begin, end in down)
        for (_, end), will in zip(down, lost, strict=True):
            assert time_s < end or message.place > will.place


@pytest.mark.parametrize("name", OWN)
def test_others_keep_their_sessions_and_their_bytes(name):
    seen, calm = wire.own_sessions()[name], wire.own_sessions()["own-calm"]
    for device in SOUTHERN:
        assert [(message.key, message.payload) for message in seen.of(device)] == [
            (message.key, message.payload) for message in calm.of(device)]
    assert not any(message.topic.endswith(SOUTHERN) for message in seen.wills)
    assert {key[0] for key, row in seen.rows.items() if row["hit"]} == set(NORTHERN)
    assert fault_name(CASES[case_of(name)][0]) in set(seen.result.frame(wire=True)["hit"])
