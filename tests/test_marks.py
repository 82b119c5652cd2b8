"""What faults leave on rows survives all that lies behind the engine."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsim import Fleet, Profile, Scenario, arrow
from iotsim.acks import Acks
from iotsim.capture import Bound, Capture
from iotsim.comparison import exact_difference, fingerprint
from iotsim.digest import Digest
from iotsim.errors import BadValue
from iotsim.intake import joined
from iotsim.publishers.payload import Encoder
from iotsim.readings import Column, Group, Marks, Readings
from iotsim.rebuilt import digest_of_messages, readings_of_messages
from iotsim.result import Result
from tests.fleets import START_US, digest_of, simulate

GROUP = Group(0, "k", ["k-0", "k-1"])
SECOND = 1_000_000


def marks(rows, names=("", "drift", "packet_loss"), **arrays):
    """Marks of some rows; what is not given is zero or None."""
    kinds = {"faults": np.int16, "hit": np.int16, "withheld": np.int16, "sub": np.int32,
             "copy": np.int32, "delay_us": np.int64, "shift_us": np.int64}
    nothing = {"faults": [0] * rows, "hit": [0] * rows}
    made = {name: np.array(values, dtype=kinds[name])
            for name, values in ({**nothing, **arrays}).items() if name in kinds}
    return Marks(tuple(names), truth=arrays.get("truth", {}), **made)


def floats(*values):
    return Column("float", np.array(values, dtype=np.float64))


def text(*values, known=("a", "b")):
    return Column("text", np.array([known.index(v) for v in values], dtype=np.int32), known)


def readings(seq, mark=None, device=None, group=GROUP, **columns):
    """Rows at a second each; `x` is the tick as a number unless columns are given."""
    seq = np.array(seq, dtype=np.int64)
    device = np.zeros(len(seq), np.int32) if device is None else np.array(device, np.int32)
    columns = columns or {"x": floats(*seq.tolist())}
    return Readings(group, device, seq, START_US + seq * SECOND, columns, marks=mark)


def cells(pieces):
    """Every row with all its marks in words, whatever the codes."""
    found = []
    for piece in pieces:
        mark = piece.marks or marks(len(piece))
        for i in range(len(piece)):
            def at(array, i=i):
                return 0 if array is None else int(array[i])

            def word(array, i=i, names=mark.names):
                return "" if array is None else names[array[i]]

            truth = {name: mark.truth.get(name, column).values[i].item()
                     for name, column in piece.columns.items()}
            found.append((
                int(piece.device[i]), int(piece.seq[i]), word(mark.faults), word(mark.hit),
                word(mark.withheld), at(mark.sub), at(mark.copy), at(mark.delay_us),
                at(mark.shift_us), truth,
                {name: column.values[i].item() for name, column in piece.columns.items()}))
    return found


# -- the digest -----------------------------------------------------------------------------------


def test_rows_that_were_only_looked_at_keep_the_digest():
    plain = digest_of([readings(range(4))])
    for mark in (marks(4), marks(4, faults=[1] * 4, hit=[1, 0, 2, 1]),
                 marks(4, sub=[0] * 4, copy=[0] * 4, withheld=[0] * 4),
                 marks(4, delay_us=[5] * 4, shift_us=[7] * 4, truth={"x": floats(9, 9, 9, 9)})):
        assert digest_of([readings(range(4), mark)]) == plain


def test_sub_copy_and_the_cause_are_part_of_the_digest_and_differ_from_each_other():
    made = [None, marks(2, sub=[0, 1]), marks(2, copy=[0, 1]), marks(2, withheld=[0, 1]),
            marks(2, withheld=[0, 2]), marks(2, sub=[1, 0]), marks(2, copy=[0, 2]),
            marks(2, sub=[0, 1], copy=[0, 1]), marks(2, sub=[0, 1], withheld=[0, 1]),
            marks(2, sub=[1, 1])]
    assert len({digest_of([readings([3, 4], mark)]) for mark in made}) == len(made)


def test_a_cause_goes_by_its_name_and_not_by_its_code():
    one = marks(2, names=("", "drift", "packet_loss"), withheld=[0, 2])
    other = marks(2, names=("", "packet_loss"), withheld=[0, 1])
    assert digest_of([readings([3, 4], one)]) == digest_of([readings([3, 4], other)])


def test_a_grid_with_marks_has_the_digest_of_its_rows():
    grid = next(part for part in simulate(Fleet("p", seed=1).add("pump", count=4), [60 * SECOND])
                if part.grid is not None)
    rows = len(grid)
    mark = marks(rows, withheld=np.arange(rows) % 3, copy=np.arange(rows) % 2)
    marked = dataclasses.replace(grid, marks=mark)
    assert digest_of([marked]) == digest_of([marked.take(np.arange(rows)[::-1])])
    assert digest_of([marked]) != digest_of([grid])


@given(st.lists(st.integers(0, 12), max_size=4))
def test_the_split_of_marked_rows_does_not_matter(cuts):
    whole = readings(range(12), marks(12, sub=np.arange(12) % 2, copy=np.arange(12) % 3,
                                      withheld=np.arange(12) % 3))
    pieces = [whole.take(rows) for rows in np.split(np.arange(12), sorted(cuts))]
    assert digest_of(pieces) == digest_of([whole])


def test_a_device_that_comes_back_to_its_labels_has_one_sum():
    there = Group(1, "k", ["k-0"], {"firmware": "2"})
    back = Group(2, "k", ["k-0", "k-1"])
    moved = [readings([0, 1]), readings([2], group=there), readings([3], group=back)]
    stayed = [readings([0, 1, 3]), readings([2], group=there)]
    assert digest_of(moved) == digest_of(stayed)


# -- cuts and joins -------------------------------------------------------------------------------


PIECES = [
    readings([0, 1]),
    readings([2, 3], marks(2, faults=[1, 0], hit=[1, 0], truth={"x": floats(20, 3)})),
    readings([4], marks(1, names=("", "packet_loss"), withheld=[1], hit=[1])),
    readings([5, 6], marks(2, sub=[0, 1], copy=[1, 0], delay_us=[5, 6], shift_us=[7, 8])),
    readings([7]),
]


def test_joined_pieces_are_one_and_say_the_same():
    whole = joined(PIECES)
    assert len(whole) == 1
    assert cells(whole) == cells(PIECES)
    assert whole[0].marks.truth["x"].values.tolist() == [0, 1, 20, 3, 4, 5, 6, 7]
    assert whole[0].marks.names == ("", "drift", "packet_loss")


def test_pieces_without_marks_stay_without():
    assert joined([readings([0]), readings([1])])[0].marks is None


@given(st.lists(st.sampled_from(range(len(PIECES))), min_size=1, max_size=8))
def test_any_pieces_join_without_losing_a_mark(order):
    pieces = [PIECES[i] for i in order]
    whole = joined(pieces)
    assert cells(whole) == cells(pieces)
    assert digest_of(whole) == digest_of(pieces)


@pytest.mark.parametrize("truth", [
    {"x": Column("int", np.array([9, 9], dtype=np.int64))},
    {"x": Column("float", np.array([9.0, 9.0]), present=np.array([True, False]))},
    {"x": text("a", "b")}, {"y": floats(1, 2)},
])
def test_a_truth_of_another_kind_is_not_joined_with_what_was_published(truth):
    odd = readings([2, 3], marks(2, truth=truth))
    assert len(joined([readings([0]), odd, odd, readings([1])])) == 3


def test_categories_that_are_lists_can_be_told_apart():
    lists = Column("json", np.array([0], dtype=np.int32), ([1, 2],))
    odd = readings([0], marks(1, truth={"x": lists}))
    assert len(joined([odd, odd, readings([1])])) == 2


def test_a_capture_cuts_rows_with_their_marks_and_counts_their_bytes():
    whole = joined(PIECES)[0]
    capture = Capture(Bound(rows=3))
    capture.add(whole)
    assert cells(capture.chunks()) == cells(PIECES)[-3:]
    bare, marked = Capture(Bound()), Capture(Bound())
    bare.add(dataclasses.replace(whole, marks=None))
    marked.add(whole)
    rows = len(whole)
    assert marked.size_bytes - bare.size_bytes == rows * (2 + 2 + 2 + 4 + 4 + 8 + 8 + 8)


# -- on the wire ----------------------------------------------------------------------------------


def encoded(chunks):
    encoder = Encoder("run", lambda group, i: "t")
    return [pair for chunk in chunks
            for m in [encoder.encode(chunk)] for pair in zip(m.payloads, m.ids, strict=True)]


def test_ids_name_the_reading_within_its_tick_and_the_copy():
    made = readings([3, 3, 3, 4], marks(4, sub=[0, 1, 1, 0], copy=[0, 0, 2, 1]))
    assert [ident for _, ident in encoded([made])] == [
        "run/k-0/3/0", "run/k-0/3.1/0", "run/k-0/3.1/2", "run/k-0/4/1"]
    only_sub = readings([3, 3], marks(2, sub=[0, 1]))
    assert [ident for _, ident in encoded([only_sub])] == ["run/k-0/3/0", "run/k-0/3.1/0"]


def test_messages_give_the_digest_of_what_left():
    sent = [piece.sent() for piece in PIECES]
    messages = encoded(sent)
    assert len(messages) == 7
    assert digest_of_messages(messages) == digest_of(sent) != digest_of(PIECES)
    assert digest_of_messages(reversed(messages)) == digest_of(sent)
    assert digest_of_messages(messages[:-1]) != digest_of(sent)
    found = next(readings_of_messages(messages))
    assert found.marks.sub.tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert found.marks.copy.tolist() == [0, 0, 0, 0, 1, 0, 0]


def test_messages_of_a_device_that_came_back_to_its_labels_give_the_digest():
    there = Group(1, "k", ["k-0"], {"firmware": "2"})
    moved = [readings([0, 1]), readings([2], group=there),
             readings([3], group=Group(2, "k", ["k-0"]))]
    assert digest_of_messages(encoded(moved)) == digest_of(moved)


@pytest.mark.parametrize("ident", ["run/k-0/3.x/0", "run/k-0/./0", "run/k-0/3/", "run/k-0/3.-1/0",
                                   f"run/k-0/3/{2**31}", f"run/k-0/{2**70}/0", "3", ""])
def test_an_id_without_a_place_is_an_error(ident):
    payload = encoded([readings([3])])[0][0]
    with pytest.raises(BadValue, match="is not a reading"):
        digest_of_messages([(payload, ident)])


# -- frames ---------------------------------------------------------------------------------------


async def silent(dev):
    await dev.sleep("1h")


SILENT = Fleet("p", seed=1).add(silent, count=2)
DECLARED = Fleet("p", seed=1).add(Profile("k", {"x": {"type": "constant", "value": 1}}), count=2)


def result_of(chunks, groups=(GROUP,), fleet=SILENT, **more):
    """A result that holds these readings; its fleet declares nothing unless it is given."""
    capture, digest = Capture(Bound()), Digest(START_US)
    for chunk in chunks:
        capture.add(chunk)
        digest.add(chunk)
    return Result(fleet, START_US, START_US + 100 * SECOND, tuple(groups), capture, digest, **more)


FAULTY = [
    readings([0, 1]),
    readings([2, 3], marks(2, faults=[1, 0], hit=[1, 0], shift_us=[500_000, 0],
                           truth={"x": floats(20, 3)})),
    readings([4], marks(1, names=("", "gone", "packet_loss"), faults=[2], hit=[2], withheld=[2])),
    readings([5, 5, 5], marks(3, names=("", "rate", "duplicate+latency_spike"), hit=[0, 2, 1],
                              faults=[1, 2, 1], sub=[1, 0, 0], copy=[0, 1, 0],
                              delay_us=[0, 250_000, 0])),
]


def test_a_frame_has_what_left_with_real_causes():
    frame = result_of(FAULTY).frame()
    assert list(frame.columns) == ["time", "device_id", "device_type", "seq", "x", "faults", "hit"]
    assert frame["seq"].tolist() == [0, 1, 2, 3, 5, 5, 5]
    assert frame["faults"].tolist() == [
        "", "", "drift", "", "rate", "duplicate+latency_spike", "rate"]
    assert list(frame["faults"].cat.categories) == ["", "drift", "duplicate+latency_spike", "rate"]
    assert frame["hit"].tolist() == ["", "", "drift", "", "rate", "duplicate+latency_spike", ""]
    assert list(result_of(FAULTY[:1]).frame()["hit"].cat.categories) == [""]


def test_the_truth_is_at_the_end_and_what_was_published_where_nothing_changed():
    frame = result_of(FAULTY).frame(truth=True)
    assert list(frame.columns)[-3:] == ["hit", "true_time", "true_x"]
    assert frame["x"].tolist() == [0, 1, 2, 3, 5, 5, 5]
    assert frame["true_x"].tolist() == [0, 1, 20, 3, 5, 5, 5]
    assert (frame["time"] - frame["true_time"]).dt.total_seconds().tolist() == [
        0, 0, 0.5, 0, 0, 0, 0]
    assert frame["true_time"].dtype == frame["time"].dtype
    assert frame["true_x"].dtype == frame["x"].dtype


def test_a_truth_has_the_type_that_the_field_has_without_the_fault():
    broken = Column("json", np.array([0, 1], dtype=np.int32), ("garbled", 2.5))
    n, mode = Column("int", np.array([7, 8], dtype=np.int64)), text("a", "b")
    chunk = readings([0, 1], marks(2, hit=[1, 0], truth={"x": floats(1.5, 2.5), "n": n}),
                     x=broken, n=floats(7.5, 8), mode=mode)
    frame = result_of([chunk]).frame(truth=True)
    assert frame["x"].tolist() == ["garbled", 2.5]
    assert frame["true_x"].dtype == np.float64
    assert frame["true_n"].dtype == np.int64
    assert str(frame["true_mode"].dtype) == "category"
    assert frame[["true_x", "true_n"]].to_numpy().tolist() == [[1.5, 7], [2.5, 8]]


def test_the_wire_shows_what_never_left_and_orders_copies():
    frame = result_of(FAULTY).frame(wire=True)
    assert list(frame.columns)[-6:] == ["hit", "sub", "copy", "withheld", "acked", "latency"]
    assert frame["seq"].tolist() == [0, 1, 2, 3, 4, 5, 5, 5]
    assert frame[["sub", "copy"]].to_numpy().tolist()[-3:] == [[0, 0], [0, 1], [1, 0]]
    assert frame["withheld"].tolist() == [""] * 4 + ["packet_loss"] + [""] * 3
    assert list(frame["withheld"].cat.categories) == ["", "packet_loss"]
    assert frame["latency"].isna().tolist() == [False] * 4 + [True] + [False] * 3
    assert frame["latency"].sum() == 0.25
    assert frame["acked"].isna().all()
    assert frame.dtypes.astype(str)[-5:].tolist() == [
        "int64", "int64", "category", "boolean", "float64"]


def test_the_wire_shows_what_brokers_said():
    acks = Acks()
    acks.add(["run/k-0/0/0", "run/k-0/5/1", "run/k-0/5.1/0"], "acknowledged", [0.5, 0.25, 1.0])
    acks.add(["run/k-0/1/0"], "refused: not authorised", [])
    frame = result_of(FAULTY, acks=acks, run_id="run").frame(wire=True)
    found = {(row.seq, row.sub, row.copy): (row.acked, row.latency) for row in
             frame.itertuples()}
    assert found[0, 0, 0] == (True, 0.5)
    assert found[5, 0, 1] == (True, 0.5)  # a quarter of a second on the link, a quarter to the ack
    assert found[5, 1, 0] == (True, 1.0)
    assert frame["acked"].tolist()[:3] == [True, False, pd.NA]
    assert frame["acked"].isna().tolist() == [False, False, True, True, True, True, False, False]
    assert frame["latency"].notna().tolist() == [True] + [False] * 5 + [True] * 2


@pytest.mark.parametrize("flags", [{"truth": True}, {"wire": True}, {"truth": True, "wire": True}])
def test_flags_work_without_rows_with_filters_and_in_the_long_form(flags):
    result = result_of(FAULTY, fleet=DECLARED)
    some, none = result.frame(**flags), result.frame(last="1us", **flags)
    assert len(none) == 0
    assert none.dtypes.astype(str).tolist() == some.dtypes.astype(str).tolist()
    long = result.frame(tidy=True, **flags)
    assert len(long) == len(some)
    assert list(long.columns) == [
        name for name in some.columns if name not in ("x", "true_x")
    ] + ["field", "value"] + ["true_value"] * ("truth" in flags)
    if "truth" in flags:
        assert long["true_value"].tolist() == some["true_x"].tolist()


def test_the_long_form_keeps_the_truth_beside_each_of_several_fields():
    chunk = readings([0, 1], marks(2, truth={"x": floats(10, 11)}), x=floats(1, 2),
                     mode=text("a", "b"))
    long = result_of([chunk]).frame(tidy=True, truth=True)
    assert long[["seq", "field", "value", "true_value"]].to_numpy().tolist() == [
        [0, "x", 1, 10], [0, "mode", "a", "a"], [1, "x", 2, 11], [1, "mode", "b", "b"]]


def test_a_column_that_a_flag_adds_cannot_be_a_field():
    both = result_of([readings([0], x=floats(1), true_x=floats(2), latency=floats(3))])
    with pytest.raises(BadValue, match=r"^field='true_x' is the name of a column that truth=True"):
        both.frame(truth=True)
    with pytest.raises(BadValue, match=r"^field='latency' is the name of a column that wire=True"):
        both.frame(wire=True)
    assert both.frame(truth=True, fields="x")["true_x"].tolist() == [1]
    assert len(both.frame().columns) == 9


OLD, NEW = Group(0, "k", ["k-0", "k-1"], {"fw": "1"}), Group(1, "k", ["k-1"], {"fw": "2"})
BACK = Group(2, "k", ["k-1"], {"fw": "1"})
MOVED = [readings([0, 0], device=[0, 1], group=OLD), readings([1], device=[0], group=OLD),
         readings([1], group=NEW), readings([2], group=BACK)]


def test_a_device_that_moved_to_other_labels_is_one_category():
    frame = result_of(MOVED, (OLD, NEW, BACK)).frame()
    assert list(frame["device_id"].cat.categories) == ["k-0", "k-1"]
    assert frame["device_id"].tolist() == ["k-0", "k-1", "k-0", "k-1", "k-1"]
    assert frame["fw"].tolist() == ["1", "1", "1", "2", "1"]


# -- files ----------------------------------------------------------------------------------------


def test_a_file_has_the_rows_and_causes_of_the_frame(tmp_path):
    result = result_of(FAULTY)
    frame, file = result.frame(), pd.read_parquet(result.to_parquet(tmp_path / "x.parquet"))
    assert list(file.columns) == list(frame.columns)
    by = ["seq", "hit", "faults"]
    for table in (frame, file):
        for name in ("hit", "faults", "device_id", "device_type"):
            table[name] = table[name].astype(object)
    pd.testing.assert_frame_equal(file.sort_values(by, ignore_index=True),
                                  frame.sort_values(by, ignore_index=True))
    assert result.to_arrow().num_rows == 7


def test_a_writer_leaves_out_what_never_left(tmp_path):
    with arrow.Writer(tmp_path / "x.parquet", [GROUP]) as writer:
        for chunk in FAULTY:
            writer.add(chunk)
    assert writer.rows == pq.read_metadata(tmp_path / "x.parquet").num_rows == 7


def test_a_file_read_back_says_what_was_hit_and_keeps_doubles(tmp_path):
    path = result_of(FAULTY).to_parquet(tmp_path / "x.parquet")
    back = arrow.read(path, [GROUP])
    frame = result_of(back).frame()
    expected = result_of(FAULTY).frame()
    assert sorted(zip(frame["seq"], frame["faults"], frame["hit"], strict=True)) == sorted(
        zip(expected["seq"], expected["faults"], expected["hit"], strict=True))
    plain = result_of(FAULTY[:1]).to_parquet(tmp_path / "y.parquet")
    assert all(chunk.marks is None for chunk in arrow.read(plain, [GROUP]))


def test_a_file_read_back_knows_the_labels_of_a_device_that_moved(tmp_path):
    groups = (OLD, NEW, BACK)
    result = result_of(MOVED, groups)
    back = arrow.read(result.to_parquet(tmp_path / "x.parquet"), groups)
    assert digest_of(back) == result.digest
    assert {chunk.group.index for chunk in back} == {0, 1}  # the same labels, the first group


def test_a_file_does_not_know_the_truth_nor_what_never_left(tmp_path):
    path = result_of(FAULTY).to_parquet(tmp_path / "x.parquet")
    streamed = result_of([], path=path)
    assert len(streamed.frame()) == 7
    for flag in ("truth", "wire"):
        with pytest.raises(BadValue, match=rf"^{flag}=True is not in .*x\.parquet"):
            streamed.frame(**{flag: True})


# -- what differs ---------------------------------------------------------------------------------


def test_equal_runs_differ_in_nothing():
    same = result_of(FAULTY).compare(result_of(joined(FAULTY)))
    assert len(same) == 0
    assert list(same.columns) == ["time", "device_id", "seq", "field", "value", "other", "side"]
    assert str(same["time"].dtype) == "datetime64[us, UTC]"
    assert same["seq"].dtype == np.int64


def test_what_differs_is_a_row_per_field_and_a_row_per_missing_reading():
    clean = result_of([readings(range(6))])
    found = result_of(FAULTY).compare(clean)
    assert found[["seq", "field", "value", "other", "side"]].astype(object).where(
        found.notna(), None).to_numpy().tolist() == [
        [4, "", None, None, "second"],
        [5, "", None, None, "first"], [5, "", None, None, "first"]]
    drifted = readings(range(6), x=floats(0, 1, 2.5, 3, 4, np.nan))
    late = dataclasses.replace(drifted, time_us=drifted.time_us + np.array([0, 7, 0, 0, 0, 0]))
    found = result_of([late]).compare(clean)
    assert found["field"].tolist() == ["time", "x", "x"]
    assert found["seq"].tolist() == [1, 2, 5]
    assert found["value"].tolist()[1] == 2.5
    assert found["other"].tolist()[1:] == [2.0, 5.0]
    assert found["value"].isna().tolist() == [False, False, True]
    assert (found["value"][0] - found["other"][0]).microseconds == 7
    assert set(found["side"]) == {"both"}
    assert str(found["time"].dtype) == "datetime64[us, UTC]"
    assert {str(found[name].dtype) for name in ("value", "other", "field", "side")} == {"object"}


def test_fields_of_one_side_and_mixed_values_are_compared():
    lists = Column("json", np.array([0, 1, -1], dtype=np.int32), ([1, 2], "a"))
    other = Column("json", np.array([0, 1, -1], dtype=np.int32), ([1, 3], "a"))
    one = result_of([readings(range(3), x=lists, only=floats(1, np.nan, np.nan))])
    two = result_of([readings(range(3), x=other, empty=floats(np.nan, np.nan, np.nan))])
    found = one.compare(two)
    assert found[["seq", "field", "value", "other"]].to_numpy().tolist() == [
        [0, "x", [1, 2], [1, 3]], [0, "only", 1.0, None]]


def test_runs_of_other_starts_do_not_compare():
    one, other = result_of(FAULTY), dataclasses.replace(result_of(FAULTY[:1]), start_us=0)
    with pytest.raises(BadValue, match=r"^other='1970-01-01T00:00:00\.000000Z' is where it begins"):
        one.compare(other)


def test_of_captures_that_hold_a_stretch_the_stretch_is_compared():
    bounded = Capture(Bound(rows=3))
    bounded.add(readings(range(5, 10)))
    one = dataclasses.replace(result_of([readings(range(10))]), capture=bounded)
    changed = readings(range(10), x=floats(*range(9), 99))
    with pytest.warns(UserWarning, match="only what came after 2026-01-01T00:00:07"):
        found = one.compare(result_of([changed]))
    assert found[["seq", "value", "other"]].to_numpy().tolist() == [[9, 9.0, 99.0]]


def test_the_difference_in_words_takes_doubles_and_moves():
    one, clean = result_of(FAULTY), result_of([readings(range(6))])
    assert one.diff(result_of(FAULTY)) == ""
    assert "field 'x'" not in one.diff(clean)
    copies = [result_of([readings([5] * n, marks(n, copy=range(n)))]) for n in (1, 2)]
    assert "reading 5 at 2026-01-01T00:00:05+00:00 is missing in the first" in copies[0].diff(
        copies[1])
    causes = [result_of([readings([5], marks(1, withheld=[n]))]) for n in (1, 2)]
    assert causes[0].diff(causes[1]).endswith(
        "field 'withheld' at 2026-01-01T00:00:05+00:00 (reading 5): 'drift' and 'packet_loss'")
    moved, stayed = result_of(MOVED, (OLD, NEW, BACK)), result_of(MOVED[:2], (OLD,))
    assert "device 'k-1'" in moved.diff(stayed)
    assert fingerprint(moved).rows == 5


def test_frames_with_doubles_differ_by_their_order():
    one = result_of([readings([5, 5], x=floats(1, 2))]).frame()
    assert exact_difference(one, one) == ""
    other = result_of([readings([5, 5], x=floats(1, 3))]).frame()
    assert exact_difference(one, other).endswith("(reading 5): 2.0 and 3.0")
    single = one.iloc[:1]
    assert exact_difference(one, single) == (
        "device 'k-0' has reading 5 twice in the first and once in the second, "
        "at 2026-01-01T00:00:05+00:00")


# -- with faults of the engine --------------------------------------------------------------------


@pytest.fixture(scope="module")
def outage():
    fleet = Fleet("p", seed=1).add("temperature_sensor", count=10).add("smart_lock", count=5)
    return (Scenario("outage", fleet)
            .at("1m").inject("packet_loss", duration="2m", loss=0.3)
            .at("2m").inject("drift", duration="2m", rate_per_sec=0.1)
            .at("3m").inject("duplicate", duration="1m")
            .at("3m").inject("latency_spike", duration="1m", latency_ms=300)
            .at("4m").inject("firmware_update", where="fraction=50%", version="2.0")
            .at("5m").inject("rate", factor=3, duration="1m")
            .at("6m").inject("clock_drift", duration="1m", drift_rate_ms_per_sec=10)
            .lasting("8m"))


def test_what_left_an_outage_is_the_same_on_the_wire_and_in_the_frame(outage):
    result = outage.generate(progress=False)
    sent = [chunk.sent() for chunk in result.capture.chunks()]
    assert digest_of_messages(encoded(sent)) == digest_of(sent)
    frame, wire = result.frame(), result.frame(truth=True, wire=True)
    assert len(frame) == (wire["withheld"] == "").sum() < len(wire) == result.rows
    assert wire["latency"].max() == pytest.approx(0.3)
    assert wire["sub"].max() == 2
    assert wire["copy"].max() == 1
    hit = wire["hit"].astype(str)
    same = wire["temperature"].eq(wire["true_temperature"]) | wire["temperature"].isna()
    assert same[~hit.str.contains("drift")].all()
    assert not same[hit.str.split("+").map(lambda names: "drift" in names)
                    & wire["temperature"].notna()].any()


def test_an_outage_streamed_to_a_file_has_the_frame_of_the_capture(outage, tmp_path):
    kept = outage.generate(progress=False)
    streamed = outage.generate(to=tmp_path / "x.parquet", progress=False)
    assert streamed.digest == kept.digest
    one, other = kept.frame(), streamed.frame()
    assert len(one) == len(other)
    by = ["time", "device_id", "seq", "hit"]
    plain = dict.fromkeys(("device_id", "faults", "hit", "firmware"), object)
    one, other = (table.astype(plain).sort_values(by, kind="stable") for table in (one, other))
    for name in ("time", "device_id", "seq", "temperature", "firmware", "faults", "hit"):
        assert one[name].fillna(-1).tolist() == other[name].fillna(-1).tolist(), name
