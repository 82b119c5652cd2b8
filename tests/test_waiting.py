"""What waits to leave: nothing is lost, nothing leaves early, and many parts become few."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from iotsim.readings import Column, Group, Readings
from iotsim.waiting import PARTS_MAX, Held, Waiting

GROUP = Group(0, "meter", ["a", "b"])


def held(first, leaves):
    rows = len(leaves)
    seq = np.arange(first, first + rows, dtype=np.int64)
    readings = Readings(GROUP, np.zeros(rows, np.int32), seq, seq * 1000,
                        {"power": Column("float", seq * 0.5)})
    return Held(readings, np.array(leaves, dtype=np.int64), np.zeros(rows, np.int64),
                np.ones(rows, np.bool_), first)


def seqs(parts):
    return sorted(int(n) for part in parts for n in part.readings.seq)


@given(st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=5), max_size=150),
       st.integers(0, 100))
def test_who_is_due_comes_and_the_others_stay(pieces, until_us):
    waiting, first, leaves = Waiting(), 0, []
    for piece in pieces:
        waiting.put("x", held(first, piece))
        first += len(piece)
        leaves += piece
    assert waiting.rows == len(leaves)
    assert waiting.next_us == min(leaves, default=2**62)
    due = waiting.due("x", until_us)
    assert seqs(due) == [n for n, at_us in enumerate(leaves) if at_us < until_us]
    assert all((part.leave_us < until_us).all() for part in due)
    assert seqs(waiting.parts()) == [n for n, at_us in enumerate(leaves) if at_us >= until_us]
    assert waiting.rows == sum(at_us >= until_us for at_us in leaves)
    assert ("x" in waiting) == bool(waiting.rows)


def test_many_parts_become_few():
    waiting = Waiting()
    for i in range(5000):
        waiting.put("x", held(i, [10**6]))
    assert len(list(waiting.parts())) <= PARTS_MAX + 1
    assert seqs(waiting.parts()) == list(range(5000))
    assert waiting.due("x", 10**6) == []


def test_the_oldest_goes_first_and_the_rest_in_one():
    waiting = Waiting()
    for i, source in enumerate(("x", "y", "x")):
        waiting.put(source, held(i, [5]))
    assert seqs([waiting.oldest()]) == [0]
    assert [source for source, _ in waiting.clear()] == ["x", "y"]
    assert (waiting.rows, waiting.sources) == (0, [])
