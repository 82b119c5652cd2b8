"""What a run keeps: bounded by time or rows, exactly, and what goes is counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsim.capture import Bound, Capture, common_kind, field_kinds, kind_of
from iotsim.errors import BadValue
from iotsim.readings import Column, Group, Readings
from tests.fleets import fleet, simulate

GROUP = Group(0, "k", ["k-0", "k-1"])


def chunk(*times):
    rows = len(times)
    return Readings(GROUP, np.zeros(rows, np.int32), np.arange(rows, dtype=np.int64),
                    np.array(times, dtype=np.int64),
                    {"x": Column("float", np.arange(rows, dtype=np.float64))})


def held(capture):
    return [at for part in capture.chunks() for at in part.time_us.tolist()]


def filled(bound, *chunks):
    capture = Capture(bound)
    for part in chunks:
        capture.add(part)
    return capture


@pytest.mark.parametrize(
    ("written", "bound"),
    [("10m", Bound(span_us=600_000_000)), (1000, Bound(rows=1000)), ("all", Bound()),
     (None, Bound()), (1, Bound(rows=1))],
)
def test_a_bound_is_a_time_a_number_of_rows_or_all(written, bound):
    assert Bound.of(written) == bound


@pytest.mark.parametrize("written", ["10", "0s", 0, -1, True, 1.5, "", "many", [5], " 1_000 "])
def test_what_is_no_bound_is_an_error(written):
    with pytest.raises(BadValue, match=r"^capture="):
        Bound.of(written)


def test_all_keeps_everything():
    capture = filled(Bound(), chunk(1, 2), chunk(3))
    assert held(capture) == [1, 2, 3]
    assert (capture.rows, capture.evicted_rows) == (3, 0)


def test_a_bound_of_time_keeps_exactly_the_newest_stretch():
    capture = filled(Bound(span_us=10), chunk(0, 5), chunk(6, 11), chunk(14))
    assert held(capture) == [5, 6, 11, 14]
    capture.add(chunk(16))
    assert held(capture) == [11, 14, 16]
    assert (capture.rows, capture.evicted_rows) == (3, 3)


def test_a_bound_of_rows_keeps_exactly_the_newest_rows():
    capture = filled(Bound(rows=3), chunk(1, 2), chunk(3, 4))
    assert held(capture) == [2, 3, 4]
    capture.add(chunk(5, 6, 7, 8, 9))
    assert held(capture) == [7, 8, 9]
    assert (capture.rows, capture.evicted_rows) == (3, 6)


@given(st.lists(st.lists(st.integers(0, 50), max_size=5), max_size=12), st.integers(1, 30))
def test_any_bound_keeps_what_a_list_would(parts, limit):
    everything = [at for part in parts for at in part]
    by_rows = filled(Bound(rows=limit), *(chunk(*part) for part in parts))
    assert held(by_rows) == everything[-limit:]
    ordered = sorted(everything)
    by_time = filled(Bound(span_us=limit), *(chunk(at) for at in ordered))
    assert held(by_time) == [at for at in ordered if at > ordered[-1] - limit]
    assert by_time.rows + by_time.evicted_rows == len(ordered)


def test_memory_is_bounded_whatever_comes():
    capture = Capture(Bound(rows=10_000))
    for _ in range(50):
        for part in simulate(fleet(100, every="1s"), [30_000_000]):
            capture.add(part)
            assert capture.rows - capture.bound.rows < 16_384 * 2
    assert capture.evicted_rows > 100_000


def test_a_row_of_three_fields_takes_at_most_50_bytes():
    capture = Capture(Bound())
    from iotsim import Fleet

    for part in simulate(Fleet("p", seed=1).add("temperature_sensor", count=1000), [600_000_000]):
        capture.add(part)
    assert capture.size_bytes / capture.rows <= 50


def test_nothing_is_added_by_nothing():
    capture = filled(Bound(rows=5), chunk(), chunk())
    assert capture.chunks() == []
    assert capture.rows == 0


def test_a_frozen_capture_is_not_changed_by_later_readings():
    capture = filled(Bound(rows=2), chunk(1, 2))
    frozen = capture.freeze()
    capture.add(chunk(3, 4))
    assert held(frozen) == [1, 2]
    assert held(capture) == [3, 4]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [("int", "int", "int"), ("int", "float", "float"), ("bool", "int", "json"),
     ("text", "float", "json"), ("json", "float", "json")],
)
def test_kinds_meet_in_the_plainest_that_holds_both(one, other, both):
    assert common_kind(one, other) == common_kind(other, one) == both


def test_a_mixed_column_is_of_the_plainest_kind_that_holds_its_values():
    def json(*values):
        return Column("json", np.arange(len(values), dtype=np.int32), values)

    assert [kind_of(json(*v)) for v in ((1,), (1, 2.5), ("a",), (True,), (1, "a"), ([1],), ())] == [
        "int", "float", "text", "bool", "json", "json", None]
    nothing = Readings(GROUP, *(np.zeros(1, t) for t in (np.int32, np.int64, np.int64)),
                       {"x": Column("json", np.array([-1], dtype=np.int32))})
    assert field_kinds([nothing]) == {"x": "float"}
    assert field_kinds([nothing, chunk(1)]) == {"x": "float"}
