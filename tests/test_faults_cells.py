"""Cells of a column: what a fault puts there changes those rows and what they are made of."""

import numpy as np
import pytest

from iotsim.faults.cells import put, put_objects, restored
from iotsim.readings import Column
from tests.fault_rig import apply, cell, readings, values, window


def draft_of(column):
    draft = readings(ticks=len(column.values), devices=1)
    draft.columns, draft.spans = {"x": column}, {"x": (0.0, 10.0)}
    return draft


def rows(*places):
    return np.array(places, dtype=np.int64)


def test_one_and_true_and_one_point_nought_are_three_things():
    draft = draft_of(Column("int", np.array([1, 2, 3, 4])))
    put_objects(draft, "x", rows(1, 2, 3), [True, 1.0, 1])
    found = values(draft, "x")
    assert [(type(value), value) for value in found] == [(int, 1), (bool, True), (float, 1.0),
                                                         (int, 1)]


def test_lists_and_mappings_are_found_again():
    draft = draft_of(Column("json", np.array([0, 1], dtype=np.int32), ([1], {"a": 2})))
    put_objects(draft, "x", rows(0), [{"a": 2}])
    assert draft.columns["x"].categories == ([1], {"a": 2})
    assert values(draft, "x") == [{"a": 2}, {"a": 2}]


def test_a_text_among_floats_leaves_their_nulls_null():
    draft = draft_of(Column("float", np.array([1.5, np.nan, 2.5])))
    put_objects(draft, "x", rows(0), ["broken"])
    assert values(draft, "x") == ["broken", None, 2.5]


def test_a_text_field_stays_one_as_long_as_it_can():
    draft = draft_of(Column("text", np.array([0, 1], dtype=np.int32), ("a", "b")))
    put_objects(draft, "x", rows(0), ["c"])
    assert draft.columns["x"].kind == "text"
    put_objects(draft, "x", rows(0), [3])
    assert draft.columns["x"].kind == "json"
    assert values(draft, "x") == [3, "b"]


def test_whole_numbers_beyond_the_floats_keep_their_last_digit_where_nothing_is_put():
    large = 2**62 + 1
    draft = draft_of(Column("int", np.array([large, large, large])))
    new = np.array([np.nan, 5.0, 7.0])
    hit = put(draft, "x", rows(0, 1, 2), new, np.array([True, True, False]), np.ones(3, bool))
    assert values(draft, "x") == [None, 5, large]
    assert hit.tolist() == [True, True, False]


def test_numbers_of_a_field_that_a_row_does_not_have_are_not_touched():
    there = np.array([True, False, True])
    for column in (Column("float", np.array([1.0, 2.0, 3.0]), (), there),
                   Column("int", np.array([1, 2, 3]), (), there),
                   Column("json", np.array([0, 1, 2], dtype=np.int32), (1, 2, 3), there)):
        for name, given in (("offset", {"by": 5}), ("outlier", {}), ("outlier", {"value": 99}),
                            ("stuck", {}), ("dropout", {"field": "x"}), ("data_corruption", {})):
            draft = draft_of(column)
            (mask,) = apply(draft, window(name, devices=(0,), **given))
            assert not mask[1], name
            assert values(draft, "x")[1] == 2, name
            assert draft.columns["x"].present is there


def test_a_null_has_no_outlier_unless_its_value_is_named():
    draft = draft_of(Column("float", np.array([1.0, np.nan])))
    assert apply(draft, window("outlier"))[0].tolist() == [True, False]
    assert values(draft, "x") == [40.0, None]
    assert apply(draft, window("outlier", value=-0.0))[0].tolist() == [True, True]
    assert not np.signbit(draft.columns["x"].values).any()


def test_a_json_field_of_whole_numbers_and_others_keeps_both():
    draft = draft_of(Column("json", np.array([0, 1, -1], dtype=np.int32), (3, 2.5)))
    apply(draft, window("offset", by=1.25))
    assert [(type(value), value) for value in values(draft, "x")] == [
        (int, 4), (float, 3.75), (type(None), None)]


def test_what_kind_of_corruption_a_value_gets_has_nothing_to_do_with_the_next_field():
    draft = readings(ticks=3000, devices=1)
    draft.columns = {name: Column("float", np.full(3000, 5.0)) for name in ("x", "y")}
    apply(draft, window("data_corruption"))
    x, y = (np.isnan(draft.columns[name].values) for name in ("x", "y"))
    assert abs((x & y).mean() - 1 / 9) < 5 * np.sqrt(1 / 9 * 8 / 9 / 3000)


@pytest.mark.parametrize("fault", ["data_corruption", "outlier", "offset", "stuck", "dropout"])
def test_what_was_true_can_be_put_back_in_any_row(fault):
    fields = ["temperature", "count", "door", "state", "extra", "level"]
    draft = readings()
    truth, picked = draft.columns, rows(1, 2, 30, 31, 59)
    given = {"offset": {"by": 2.5}, "stuck": {"field": fields}, "dropout": {"field": fields}}
    apply(draft, window(fault, **given.get(fault, {})))
    for name, column in draft.columns.items():
        back = restored(column, truth[name], picked)
        for row in range(len(draft.n)):
            source = truth[name] if row in picked else column
            assert cell(back, row) == cell(source, row), name
