"""What faults leave on rows survives all that lies behind the engine."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsim import Fleet
from iotsim.capture import Bound, Capture
from iotsim.errors import BadValue
from iotsim.intake import joined
from iotsim.publishers.payload import Encoder
from iotsim.readings import Column, Group, Marks, Readings
from iotsim.rebuilt import digest_of_messages, readings_of_messages
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
