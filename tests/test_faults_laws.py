"""Laws that every fault keeps: what it touches, what it says it touched, what it may depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsim.faults.base import FAULTS
from tests.fault_rig import EVERY, apply, cut, picture, readings, window

IDS = [f"{name} {parameters}" for name, parameters in EVERY]
STACKS = st.lists(
    st.tuples(st.sampled_from(EVERY), st.integers(0, 15), st.integers(1, 12),
              st.sets(st.integers(0, 2), min_size=1)),
    min_size=1, max_size=4,
)


def stack(chosen):
    return [window(name, begin_s=begin, end_s=begin + length, devices=devices, number=i,
                   occurrence=i, **parameters)
            for i, ((name, parameters), begin, length, devices) in enumerate(chosen)]


def changed(before, after):
    return np.array([old != new for old, new in zip(before, after, strict=True)])


def test_every_fault_is_shown_here():
    assert {name for name, _ in EVERY} == set(FAULTS)


@pytest.mark.parametrize(("name", "parameters"), EVERY, ids=IDS)
def test_a_fault_changes_something_within_its_window_and_nothing_outside(name, parameters):
    draft, untouched = readings(subs=2), picture(readings(subs=2))
    one = window(name, begin_s=5, end_s=15, devices=(0, 2), **parameters)
    (mask,) = apply(draft, one)
    inside = np.isin(draft.slot, (0, 2)) & (draft.at_us >= one.begin_us)
    if not one.fault.lingers:
        inside &= draft.at_us < one.end_us
    assert mask.any()
    assert not mask[~inside].any()
    assert not changed(untouched, picture(draft))[~inside].any()


@pytest.mark.parametrize(("name", "parameters"), EVERY, ids=IDS)
def test_a_fault_hits_exactly_the_rows_that_it_changed(name, parameters):
    draft, before = readings(subs=2), picture(readings(subs=2))
    (mask,) = apply(draft, window(name, begin_s=3, end_s=17, devices=(0, 1), **parameters))
    if name == "rate":  # the rows between are there because of it
        expected = (draft.sub > 0) & np.isin(draft.slot, (0, 1)) & mask_of_time(draft, 3, 17)
    else:
        expected = changed(before, picture(draft))
    np.testing.assert_array_equal(mask, expected)


def mask_of_time(draft, low, high):
    since = (draft.at_us - draft.at_us.min()) / 1e6
    return (since >= low) & (since < high)


@settings(max_examples=25, deadline=None)
@given(STACKS)
def test_in_any_stack_each_fault_hits_exactly_what_it_changed_of_what_came_before(chosen):
    draft = readings(subs=2)
    for one in stack(chosen):
        before, sent = picture(draft), draft.withheld == 0
        (mask,) = apply(draft, one)
        expected = changed(before, picture(draft))
        if one.name == "rate":
            continue
        if one.name == "disconnect":
            assert (mask >= expected).all()  # it wins: even over another disconnect
            kept = draft.stored if one.fault.store_and_forward else draft.withheld > 0
            assert kept[mask].all()
            continue
        np.testing.assert_array_equal(mask, expected)
        if one.fault.layer == "link":
            assert not (mask & ~sent).any()  # what never left has nothing left to lose


@settings(max_examples=25, deadline=None)
@given(STACKS, st.sets(st.integers(0, 120), max_size=6), st.integers(0, 3))
def test_it_does_not_matter_how_the_rows_were_cut(chosen, edges, seed):
    whole, pieces = readings(subs=2, seed=seed), cut(readings(subs=2, seed=seed), sorted(edges))
    masks = apply(whole, *stack(chosen))
    windows = stack(chosen)
    parts = [apply(piece, *windows) for piece in pieces]
    assert picture(whole) == [row for piece in pieces for row in picture(piece)]
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(mask, np.concatenate([part[i] for part in parts]))


@pytest.mark.parametrize(("name", "parameters"), EVERY, ids=IDS)
def test_other_devices_in_a_window_change_nothing_of_one(name, parameters):
    alone, together = readings(), readings()
    apply(alone, window(name, devices=(1,), begin_s=2, end_s=18, **parameters))
    apply(together, window(name, devices=(0, 1, 2), begin_s=2, end_s=18, **parameters))
    mine = alone.slot == 1
    pairs = zip(picture(alone), picture(together), mine, strict=True)
    assert all(one == other for one, other, is_mine in pairs if is_mine)


DRAWN = [(name, parameters) for name, parameters in EVERY if name in (
    "data_corruption", "dropout", "duplicate", "latency_spike", "noise", "packet_loss")]


@pytest.mark.parametrize(("name", "parameters"), DRAWN)
def test_draws_go_by_seed_device_and_occurrence_and_nothing_else(name, parameters):
    def drawn(**how):
        draft = readings(ticks=50)
        return apply(draft, window(name, **{"end_s": 50, **how}, **parameters))[0]

    first = drawn()
    np.testing.assert_array_equal(first, drawn(number=99))
    assert (first != drawn(seed=2)).any()
    assert (first != drawn(occurrence=1)).any()
    by_device = first.reshape(50, 3)
    assert (by_device[:, 0] != by_device[:, 1]).any()


def test_draws_of_a_window_do_not_move_when_it_begins_later():
    early, late = readings(), readings()
    (one,) = apply(early, window("packet_loss", loss=0.5, begin_s=0))
    (other,) = apply(late, window("packet_loss", loss=0.5, begin_s=8))
    after = mask_of_time(early, 8, 99)
    np.testing.assert_array_equal(one[after], other[after])


def test_faults_of_one_kind_that_overlap_draw_on_their_own():
    draft = readings(ticks=200)
    first, second = apply(draft, window("noise", stddev=1, probability=0.5, occurrence=0),
                          window("noise", stddev=1, probability=0.5, occurrence=1))
    both = (first & second).mean()
    assert 0.15 < both < 0.35


@pytest.mark.parametrize(("name", "parameters"), EVERY, ids=IDS)
def test_a_window_that_reaches_no_row_hits_none(name, parameters):
    draft, before = readings(), picture(readings())
    (mask,) = apply(draft, window(name, devices=(), **parameters))
    assert not mask.any()
    (mask,) = apply(draft, window(name, begin_s=900, **parameters))
    assert not mask.any()
    assert picture(draft) == before


@pytest.mark.parametrize(("name", "parameters"), EVERY, ids=IDS)
def test_a_cleared_window_ends_at_that_instant_for_those_devices_only(name, parameters):
    cleared, whole = readings(), readings()
    one = window(name, end_s=20, **parameters)
    one.clear(np.array([1]), one.begin_us + 6_000_000)
    (mask,) = apply(cleared, one)
    (full,) = apply(whole, window(name, end_s=20, **parameters))
    rest = cleared.slot != 1
    np.testing.assert_array_equal(mask[rest], full[rest])
    if not one.fault.lingers:
        assert not mask[~rest & ~mask_of_time(cleared, 0, 6)].any()
