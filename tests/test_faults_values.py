"""Faults on values: what each makes of a number, a null, a whole number, a text."""

import math

import numpy as np
import pytest

from iotsim.digest import Digest
from iotsim.readings import Column, Group, Readings
from tests.fault_rig import SPANS, apply, readings, values, window

CORRUPTED = 40_000


def plain(ticks=20, devices=1, **columns):
    """Rows with the given columns only, on a field without span or resolution."""
    draft = readings(ticks=ticks, devices=devices)
    draft.columns = {name: column if isinstance(column, Column) else Column(
        "int" if np.asarray(column).dtype.kind == "i" else "float", np.asarray(column))
        for name, column in columns.items()}
    return draft


def constant(value, ticks=20, devices=1):
    return np.full(ticks * devices, value)


def test_an_outlier_is_three_spans_above_the_range_of_its_field():
    draft = readings()
    apply(draft, window("outlier", field="temperature"))
    found = {value for value in values(draft, "temperature") if value is not None}
    low, high = SPANS["temperature"]
    assert found == {high + 3 * (high - low)}


def test_an_outlier_of_a_field_without_range_goes_by_its_value():
    draft = plain(x=np.linspace(-50, 50, 20))
    before = draft.columns["x"].values
    apply(draft, window("outlier"))
    np.testing.assert_array_equal(
        draft.columns["x"].values, before + 10 * (np.abs(before) + 1))


def test_an_outlier_of_a_constant_is_far_from_it():
    draft = plain(x=constant(3.0))
    draft.spans = {"x": (3.0, 3.0)}
    apply(draft, window("outlier"))
    assert set(values(draft, "x")) == {43.0}


def test_an_outlier_takes_exactly_the_value_it_is_given():
    draft = readings()
    apply(draft, window("outlier", value=-40.12345, field=["temperature", "count"]))
    assert set(values(draft, "temperature")) == {-40.12345}  # a null too gets it
    assert set(values(draft, "count")) == {-40.12345}


def test_a_whole_outlier_of_a_whole_field_stays_whole():
    draft = readings()
    apply(draft, window("outlier", value=999.0, field="count", devices=(0,)))
    assert draft.columns["count"].kind == "int"
    assert set(draft.columns["count"].values[draft.slot == 0].tolist()) == {999}


def test_times_counts_the_first_ticks_of_each_device_with_all_that_is_within_them():
    draft = readings(subs=4)
    (mask,) = apply(draft, window("outlier", times=2, value=1, field="count", begin_s=3.5))
    assert set(draft.n[mask].tolist()) == {3, 4}
    assert mask.sum() == 3 * (2 + 4)  # the window begins in the middle of tick 3


def test_corruption_of_a_quarter_corrupts_a_quarter_and_a_third_of_each_kind():
    ticks = CORRUPTED // 4
    draft = readings(ticks=ticks, devices=4)
    draft.columns = {"x": Column("float", np.full(CORRUPTED, 20.0))}
    draft.spans = {"x": (10.0, 30.0)}
    (mask,) = apply(draft, window("data_corruption", corruption_rate=0.25, devices=range(4)))
    sigma = math.sqrt(CORRUPTED * 0.25 * 0.75)
    assert abs(mask.sum() - CORRUPTED * 0.25) < 5 * sigma
    found = draft.columns["x"].values[mask]
    counts = [np.isnan(found).sum(), (found == 0).sum(), (found == 90).sum(), (found == -50).sum()]
    assert sum(counts) == mask.sum()
    for count, part in zip(counts, (1 / 3, 1 / 3, 1 / 6, 1 / 6), strict=True):
        assert abs(count - part * len(found)) < 5 * math.sqrt(len(found) * part * (1 - part))


def test_fields_are_corrupted_each_by_itself():
    draft = plain(ticks=2000, x=constant(5.0, 2000), y=constant(5.0, 2000))
    apply(draft, window("data_corruption", corruption_rate=0.5))
    x, y = (draft.columns[name].values != 5.0 for name in "xy")
    assert abs((x & y).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 2000)


def test_corruption_of_one_field_does_not_move_with_the_fields_beside_it():
    one = plain(ticks=200, x=constant(5.0, 200))
    two = plain(ticks=200, a=constant(1.0, 200), x=constant(5.0, 200))
    for draft in (one, two):
        apply(draft, window("data_corruption", corruption_rate=0.5))
    np.testing.assert_array_equal(one.columns["x"].values, two.columns["x"].values)


def test_whole_numbers_stay_whole_under_corruption_and_the_others_keep_their_bytes():
    draft, group = readings(ticks=200, devices=1), Group(0, "meter", ["m-0000"])
    before = draft.columns["count"]
    (mask,) = apply(draft, window("data_corruption", corruption_rate=0.3, field="count"))
    column = draft.columns["count"]
    assert column.kind == "json"
    assert {type(value) for value in values(draft, "count")} == {int, type(None)}
    assert {v for v, hit in zip(values(draft, "count"), mask, strict=True) if hit} == {
        None, 0, 400, -300}
    assert digest_of(draft, group, before, ~mask) == digest_of(draft, group, column, ~mask)
    assert digest_of(draft, group, before, mask) != digest_of(draft, group, column, mask)


def digest_of(draft, group, column, rows):
    made = Digest(0)
    made.add(Readings(group, draft.slot[rows].astype(np.int32), draft.n[rows],
                      draft.time_us[rows], {"count": column.take(rows)}))
    return made.hexdigest()


def test_corruption_leaves_nulls_alone():
    draft = plain(x=constant(np.nan))
    (mask,) = apply(draft, window("data_corruption"))
    assert not mask.any()
    assert set(values(draft, "x")) == {None}


def test_stuck_freezes_the_first_value_of_each_device_in_the_window():
    draft = readings()
    first = {slot: values(draft, "count")[int(np.flatnonzero((draft.slot == slot)
             & (draft.n == 4))[0])] for slot in (0, 2)}
    apply(draft, window("stuck", field="count", begin_s=4, devices=(0, 2)))
    for slot in (0, 2):
        mine = (draft.slot == slot) & (draft.n >= 4)
        assert set(np.array(values(draft, "count"))[mine].tolist()) == {first[slot]}


def test_stuck_freezes_what_the_faults_before_it_made():
    draft = plain(x=np.arange(20.0))
    apply(draft, window("offset", by=100), window("stuck", number=1))
    assert set(values(draft, "x")) == {100.0}


def test_an_offset_after_stuck_moves_the_frozen_value():
    draft = plain(x=np.arange(20.0))
    apply(draft, window("stuck"), window("offset", by=100, number=1))
    assert set(values(draft, "x")) == {100.0}
    draft = plain(x=np.arange(20.0))
    apply(draft, window("stuck"), window("drift", rate_per_sec=1, number=1))
    assert values(draft, "x") == list(np.arange(20.0))


def test_stuck_takes_texts_and_switches_when_they_are_named_and_numbers_by_default():
    draft = readings(devices=1)
    texts, doors = values(draft, "state"), values(draft, "door")
    apply(draft, window("stuck", field=["state", "door", "extra"]))
    assert set(values(draft, "state")) == {texts[0]}
    assert set(values(draft, "door")) == {doors[0]}
    draft = readings(devices=1)
    apply(draft, window("stuck"))
    assert values(draft, "state") == texts
    assert len(set(values(draft, "count"))) == 1


def test_stuck_waits_for_the_first_reading_that_has_the_field():
    codes = np.array([0, 1, 2, 1], dtype=np.int32)
    there = np.array([False, True, True, True])
    draft = plain(ticks=4, x=Column("json", codes, (5, 6, 7), there))
    apply(draft, window("stuck"))
    assert values(draft, "x") == [5, 6, 6, 6]
    assert draft.columns["x"].present is there


def test_drift_grows_with_the_seconds_since_it_began():
    draft = plain(x=constant(1.0))
    (mask,) = apply(draft, window("drift", rate_per_sec=-0.5, begin_s=4))
    np.testing.assert_array_equal(
        draft.columns["x"].values, 1.0 - 0.5 * np.maximum(draft.n - 4, 0))
    assert mask.sum() == 15  # in its first instant it has not moved


def test_what_a_fault_moves_is_rounded_to_what_the_sensor_resolves():
    draft = readings()
    apply(draft, window("drift", rate_per_sec=0.0123, field="temperature"),
          window("noise", stddev=3, field="temperature", number=1))
    found = draft.columns["temperature"].values
    found = found[~np.isnan(found)]
    np.testing.assert_array_equal(np.rint(found * 100) / 100, found)


def test_a_drift_below_the_resolution_hits_nothing():
    draft = readings(ticks=3)
    (mask,) = apply(draft, window("drift", rate_per_sec=0.001, field="temperature"))
    assert not mask.any()


def test_noise_has_the_deviation_and_the_rarity_that_were_asked_for():
    draft = plain(ticks=20_000, x=constant(0.0, 20_000), y=constant(0.0, 20_000))
    (mask,) = apply(draft, window("noise", stddev=2, probability=0.5))
    x, y = draft.columns["x"].values, draft.columns["y"].values
    np.testing.assert_array_equal((x != 0), (y != 0))  # a reading is noisy, with all its fields
    assert abs(mask.mean() - 0.5) < 5 * math.sqrt(0.25 / 20_000)
    assert abs(x[mask].std() - 2) < 5 * 2 / math.sqrt(2 * mask.sum())
    assert abs(x[mask].mean()) < 5 * 2 / math.sqrt(mask.sum())
    assert abs(np.corrcoef(x[mask], y[mask])[0, 1]) < 5 / math.sqrt(mask.sum())


@pytest.mark.parametrize(("before", "by", "after"), [(3, 2.4, 5), (3, 2.5, 6), (4, 2.5, 6),
                                                     (3, 0.4, 3), (3, -5.6, -3)])
def test_whole_numbers_are_moved_to_the_nearest_whole_number(before, by, after):
    draft = plain(x=constant(before))
    (mask,) = apply(draft, window("offset", by=by))
    assert draft.columns["x"].kind == "int"
    assert set(values(draft, "x")) == {after}
    assert mask.all() == (before != after)


def test_an_offset_out_of_this_world_stops_at_the_largest_whole_number():
    draft = plain(x=constant(3))
    apply(draft, window("offset", by=1e99))
    assert set(values(draft, "x")) == {2**63 - 1024}


def test_what_is_beyond_the_floats_becomes_null_and_null_stays_null():
    draft = plain(ticks=3, x=np.array([1.7e308, np.nan, 1.0]))
    (mask,) = apply(draft, window("outlier"))
    assert values(draft, "x") == [None, None, 21.0]
    assert mask.tolist() == [True, False, True]


def test_no_fault_makes_a_negative_zero():
    draft = plain(x=constant(2.0))
    apply(draft, window("offset", by=-2.0))
    assert not np.signbit(draft.columns["x"].values).any()


def test_a_ramp_lets_an_offset_rise_and_a_probability_too():
    draft = plain(x=constant(0.0))
    apply(draft, window("offset", by=10, ramp="10s"))
    np.testing.assert_allclose(draft.columns["x"].values, np.minimum(draft.n, 10.0), rtol=1e-12)
    draft = plain(ticks=10_000, x=constant(1.0, 10_000))
    (mask,) = apply(draft, window("outlier", ramp="10000s"))
    assert abs(mask[:5000].mean() - 0.25) < 0.04
    assert abs(mask[5000:].mean() - 0.75) < 0.04


def test_dropout_withholds_the_reading_and_with_fields_nulls_them():
    draft = readings()
    (mask,) = apply(draft, window("dropout"))
    assert mask.all()
    assert {draft.causes[code] for code in draft.withheld} == {"dropout"}
    draft = readings()
    kinds = ["count", "door", "state", "temperature", "extra"]
    apply(draft, window("dropout", field=kinds))
    assert not draft.withheld.any()
    for name in kinds:
        there = draft.columns[name].present
        found = [value for i, value in enumerate(values(draft, name))
                 if there is None or there[i]]
        assert set(found) == {None}, name


def test_battery_falls_faster_stays_down_after_the_end_and_stops_at_the_floor():
    draft = plain(ticks=40, battery=100 - 0.001 * np.arange(40))
    apply(draft, window("battery_drain", drain_multiplier=1001, begin_s=5, end_s=15))
    lost = 1.0 * np.clip(np.arange(40) - 5, 0, 10)
    np.testing.assert_allclose(
        draft.columns["battery"].values, 100 - 0.001 * np.arange(40) - lost, rtol=1e-12)
    draft = plain(ticks=40, battery=constant(6.0, 40))
    draft.spans = {"battery": (2.0, 100.0)}
    apply(draft, window("battery_drain", drain_multiplier=1001))
    assert draft.columns["battery"].values.min() == 2.0
    draft = plain(ticks=40, battery=constant(6.0, 40))
    apply(draft, window("battery_drain", drain_multiplier=1001))
    assert draft.columns["battery"].values.min() == 0.0


def test_a_battery_whose_drift_nobody_knows_is_left_alone():
    draft, one = readings(), window("battery_drain", drain_multiplier=5000)
    one.memory["drift_per_s"] = np.array([np.nan, -0.001, np.nan])
    (mask,) = apply(draft, one)
    assert set(draft.slot[mask].tolist()) == {1}
    del one.memory["drift_per_s"]
    assert not apply(readings(), one)[0].any()


def test_a_battery_that_was_empty_before_is_not_filled_by_its_floor():
    draft = plain(battery=constant(-1.0))
    (mask,) = apply(draft, window("battery_drain", drain_multiplier=1001))
    assert not mask.any()


def test_texts_and_switches_are_no_numbers_even_when_they_are_named():
    for name in ("drift", "offset", "noise", "outlier", "data_corruption"):
        given = {"drift": {"rate_per_sec": 1}, "offset": {"by": 1}, "noise": {"stddev": 1}}
        draft = readings()
        (mask,) = apply(draft, window(name, field=["state", "door", "extra"],
                                      **given.get(name, {})))
        assert not mask.any()


def test_values_are_replaced_never_written_into():
    draft = readings()
    before, shared = draft.columns["temperature"], draft.columns
    apply(draft, window("offset", by=1))
    assert shared["temperature"] is before
    assert draft.columns["temperature"] is not before
    assert draft.columns["state"] is shared["state"]
