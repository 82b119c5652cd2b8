"""Faults on the link: lost, late, twice, overtaken, together."""

import math

import numpy as np
import pytest

from iotsim.faults.base import NEVER_US, build
from tests.fault_rig import START_US, apply, readings, window


def causes(draft):
    return np.array([draft.causes[code] for code in draft.withheld])


def test_a_disconnect_wins_over_what_withheld_a_reading_before():
    draft = readings()
    masks = apply(draft, window("packet_loss", loss=1), window("disconnect", end_s=10, number=1))
    np.testing.assert_array_equal(causes(draft), np.where(draft.n < 10, "disconnect",
                                                          "packet_loss"))
    np.testing.assert_array_equal(masks[1], draft.n < 10)


def test_nothing_is_lost_on_a_link_that_is_not_there():
    draft = readings()
    masks = apply(draft, window("disconnect", end_s=10), window("packet_loss", loss=1, number=1),
                  window("latency_spike", latency_ms=5, number=2),
                  window("duplicate", number=3), window("reorder", probability=1, number=4))
    for mask in masks[2:]:
        assert not mask.any()  # packet_loss took the rest
    np.testing.assert_array_equal(masks[1], draft.n >= 10)
    assert not draft.delay_us.any()
    assert not draft.copies.any()


def test_what_was_stored_leaves_when_the_link_is_back():
    draft = readings()
    (mask,) = apply(draft, window("disconnect", store_and_forward=True, begin_s=5, end_s=12))
    inside = (draft.n >= 5) & (draft.n < 12)
    np.testing.assert_array_equal(mask, inside)
    leaves_us = (draft.at_us + draft.delay_us)[inside]
    assert set(leaves_us.tolist()) == {START_US + 12_000_000}
    assert not draft.withheld.any()


def test_what_was_stored_never_leaves_if_nobody_said_when_the_link_is_back():
    draft = readings()
    apply(draft, window("disconnect", store_and_forward=True))
    assert set(draft.delay_us.tolist()) == {NEVER_US}


def test_clearing_a_disconnect_sets_free_what_was_stored():
    draft, one = readings(), window("disconnect", store_and_forward=True)
    one.clear(np.array([0, 1, 2]), START_US + 8_000_000)
    apply(draft, one)
    leaves_us = (draft.at_us + draft.delay_us)[draft.n < 8]
    assert set(leaves_us.tolist()) == {START_US + 8_000_000}
    assert not draft.delay_us[draft.n >= 8].any()


def test_of_two_disconnects_the_later_end_counts():
    draft = readings()
    apply(draft, window("disconnect", store_and_forward=True, end_s=12),
          window("disconnect", store_and_forward=True, end_s=6, number=1))
    leaves_us = (draft.at_us + draft.delay_us)[draft.n < 12]
    assert set(leaves_us.tolist()) == {START_US + 12_000_000}


def test_latency_delays_by_itself_and_never_past_the_end_of_the_fault():
    draft = readings()
    apply(draft, window("latency_spike", latency_ms=2500, end_s=10))
    left_us = (10 - draft.n) * 1_000_000
    expected = np.where(draft.n < 10, np.minimum(2_500_000, left_us), 0)
    np.testing.assert_array_equal(draft.delay_us, expected)


def test_latencies_add_up_and_rise_with_their_ramp():
    draft = readings()
    apply(draft, window("latency_spike", latency_ms=100),
          window("latency_spike", latency_ms=1000, ramp="10s", number=1))
    np.testing.assert_array_equal(draft.delay_us, 100_000 + np.minimum(draft.n, 10) * 100_000)


def test_latency_makes_no_stored_reading_leave_earlier():
    draft = readings()
    masks = apply(draft, window("disconnect", store_and_forward=True, end_s=18),
                  window("latency_spike", latency_ms=100, end_s=4, number=1))
    assert not masks[1].any()
    assert ((draft.at_us + draft.delay_us)[draft.n < 18] == START_US + 18_000_000).all()


@pytest.mark.parametrize(("name", "entry"), [("packet_loss", "loss"), ("duplicate", "probability"),
                                             ("reorder", "probability"),
                                             ("latency_spike", "probability"),
                                             ("dropout", "probability")])
def test_so_many_readings_are_drawn_as_were_asked_for_and_in_no_pattern(name, entry):
    given = {"latency_ms": 1} if name == "latency_spike" else {}
    draft = readings(ticks=10_000)
    (mask,) = apply(draft, window(name, **{entry: 0.02}, **given))
    rows = len(mask)
    assert abs(mask.mean() - 0.02) < 5 * math.sqrt(0.02 * 0.98 / rows)
    runs = mask.reshape(-1, 3)
    pairs = (runs[1:] & runs[:-1]).mean()
    assert abs(pairs - 0.0004) < 5 * math.sqrt(0.0004 / rows)


def test_a_duplicate_of_a_duplicate_is_a_third_copy():
    draft = readings()
    masks = apply(draft, window("duplicate"), window("duplicate", end_s=5, number=1))
    np.testing.assert_array_equal(draft.copies, 1 + (draft.n < 5))
    assert masks[0].all()


def test_a_reordered_reading_is_overtaken_by_the_next():
    draft = readings(devices=1, ticks=50)
    (mask,) = apply(draft, window("reorder", probability=0.3))
    leaves_us = draft.at_us + draft.delay_us
    overtaken = leaves_us[:-1] > leaves_us[1:]
    np.testing.assert_array_equal(overtaken, mask[:-1] & ~mask[1:])
    assert set(draft.delay_us[mask].tolist()) == {1_500_000}


@pytest.mark.parametrize(("interval", "wait_us"), [
    (2_000_000, {3_000_000}), (0, {1_500_000}),
    (np.tile([1_000_000, 4_000_000, 0], 20), {1_500_000, 6_000_000})])
def test_a_reordered_reading_waits_one_and_a_half_intervals_of_its_device(interval, wait_us):
    draft = readings()
    draft.interval_us = interval
    apply(draft, window("reorder", probability=1))
    assert set(draft.delay_us.tolist()) == wait_us


def test_a_reordered_reading_waits_as_long_as_it_is_told_and_not_past_the_end():
    draft = readings()
    apply(draft, window("reorder", probability=1, by="250ms", end_s=10.1))
    expected = np.where(draft.n < 10, 250_000, np.where(draft.n == 10, 100_000, 0))
    np.testing.assert_array_equal(draft.delay_us, expected)


def test_in_a_storm_all_devices_go_and_come_back_together():
    draft = readings(ticks=40)
    fault = build("reconnect_storm", {"every": "10s", "down": "3s"})
    (mask,) = apply(draft, window("reconnect_storm", every="10s", down="3s", begin_s=2))
    down = (draft.n >= 2) & ((draft.n - 2) % 10 < 3)
    np.testing.assert_array_equal(mask, down)
    np.testing.assert_array_equal(causes(draft), np.where(down, "reconnect_storm", ""))
    for second in range(25):
        assert fault.is_down(second * 1_000_000) == (second % 10 < 3)


def test_a_storm_says_when_the_link_turns_next_and_the_turns_never_stand_still():
    fault = build("reconnect_storm", {"every": "10s", "down": "3s"})
    turns, now_us = [], 0
    for _ in range(5):
        turn_us = fault.next_turn_us(now_us)
        assert fault.is_down(now_us) != fault.is_down(turn_us)
        assert fault.is_down(turn_us - 1) == fault.is_down(now_us)
        turns.append(turn_us)
        now_us = turn_us
    assert turns == [3_000_000, 10_000_000, 13_000_000, 20_000_000, 23_000_000]


def test_a_disconnected_session_is_down_all_the_time_and_others_never_are():
    assert build("disconnect", {}).is_down(0)
    assert build("disconnect", {"store_and_forward": True}).next_turn_us(5) is None
    for name in ("packet_loss", "duplicate", "reorder"):
        assert not build(name, {}).is_down(0)
