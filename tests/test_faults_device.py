"""Faults on the device: its clock, its restarts, how often it reports."""

import numpy as np
import pytest

from iotsim.faults.base import build
from iotsim.faults.device import CLOCK_US
from tests.fault_rig import START_US, apply, readings, window


def causes(draft):
    return np.array([draft.causes[code] for code in draft.withheld])


def test_fifty_milliseconds_a_second_are_three_seconds_after_a_minute():
    draft = readings(ticks=61)
    before = draft.time_us
    apply(draft, window("clock_drift", drift_rate_ms_per_sec=50))
    np.testing.assert_array_equal(draft.time_us - before, draft.n * 50_000)
    assert (draft.time_us - before)[-1] == 3_000_000
    assert before is not draft.time_us


def test_a_clock_is_right_again_after_the_fault_and_two_drifts_add_up():
    draft = readings()
    before = draft.time_us
    masks = apply(draft, window("clock_drift", drift_rate_ms_per_sec=-7, end_s=10),
                  window("clock_drift", drift_rate_ms_per_sec=3, begin_s=5, end_s=10, number=1))
    n = draft.n
    expected = np.where(n < 10, -7000 * n, 0) + np.where((n >= 5) & (n < 10), 3000 * (n - 5), 0)
    np.testing.assert_array_equal(draft.time_us - before, expected)
    assert masks[0].sum() == 3 * 9
    assert masks[1].sum() == 3 * 4


@pytest.mark.parametrize("rate", [-1e6, 1e6])
def test_a_clock_stops_at_the_ends_of_the_calendar(rate):
    draft = readings()
    one = window("clock_drift", drift_rate_ms_per_sec=rate)
    one.begin_us = START_US - 400 * 365 * 86_400 * 1_000_000  # as if it had begun 400 years ago
    apply(draft, one)
    assert set(draft.time_us.tolist()) == {CLOCK_US[rate > 0]}


@pytest.mark.parametrize(("name", "seconds"), [("reboot", 10), ("firmware_update", 30)])
def test_a_restart_takes_its_time_and_closes_the_session(name, seconds):
    given = {"version": "2.0"} if name == "firmware_update" else {}
    fault = build(name, given)
    assert (fault.offline, fault.duration_default_us) == (True, seconds * 1_000_000)
    assert fault.is_down(0)
    assert fault.next_turn_us(0) is None
    draft = readings()
    (mask,) = apply(draft, window(name, begin_s=5, end_s=15, **given))
    inside = (draft.n >= 5) & (draft.n < 15)
    np.testing.assert_array_equal(mask, inside)
    np.testing.assert_array_equal(causes(draft), np.where(inside, name, ""))


def test_a_suspended_device_keeps_its_session():
    fault = build("suspend", {})
    assert not fault.offline
    assert not fault.is_down(0)
    assert fault.duration_default_us is None
    draft = readings()
    apply(draft, window("suspend", devices=(1,)))
    np.testing.assert_array_equal(causes(draft), np.where(draft.slot == 1, "suspend", ""))


def test_a_slow_device_reports_on_even_ticks_only():
    draft = readings(subs=3)
    (mask,) = apply(draft, window("slow_down", begin_s=4))
    odd = (draft.n % 2 == 1) & (draft.n >= 4)
    np.testing.assert_array_equal(mask, odd)
    np.testing.assert_array_equal(causes(draft), np.where(odd, "slow_down", ""))


def test_what_was_withheld_before_is_not_hit_again():
    draft = readings()
    masks = apply(draft, window("slow_down"), window("reboot", number=1),
                  window("suspend", number=2))
    np.testing.assert_array_equal(masks[0], draft.n % 2 == 1)
    np.testing.assert_array_equal(masks[1], draft.n % 2 == 0)
    assert not masks[2].any()
    np.testing.assert_array_equal(causes(draft), np.where(draft.n % 2, "slow_down", "reboot"))


def test_a_rate_is_the_reason_of_the_readings_between_and_changes_none():
    draft = readings(subs=4)
    before = draft.time_us, draft.columns
    (mask,) = apply(draft, window("rate", factor=4, devices=(0,)))
    np.testing.assert_array_equal(mask, (draft.sub > 0) & (draft.slot == 0))
    assert (draft.time_us, draft.columns) == before
    assert not draft.withheld.any()


def test_a_drain_that_has_ended_still_shows_and_is_no_longer_active():
    draft = readings(subs=2)
    one = window("battery_drain", drain_multiplier=5000, begin_s=2, end_s=6)
    active, running = one.active(draft)
    since = (draft.at_us - START_US)[active.rows] / 1e6
    np.testing.assert_array_equal(running, since < 6)
    assert since.max() > 6


def test_the_first_cause_stands_unless_a_later_one_wins():
    draft, rows = readings(ticks=1), np.array([0, 1])
    draft.withhold(rows[:1], "first")
    draft.withhold(rows, "second")
    assert causes(draft).tolist() == ["first", "second", ""]
    draft.withhold(rows, "third", wins=True)
    assert causes(draft).tolist() == ["third", "third", ""]
