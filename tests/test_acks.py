"""Verdicts by message id: bounded, exact, from any thread."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsim.acks import Acks


def known(acks, *ids):
    acked, seconds = acks.lookup(ids)
    return list(zip(acked.tolist(), seconds.tolist(), strict=True))


def names(numbers):
    return [f"run/d/{n}/0" for n in numbers]


def test_an_acknowledged_a_refused_and_an_unknown_message():
    acks = Acks()
    acks.add(["a", "b"], "acknowledged", [0.5, 0.25])
    acks.add(["c"], "refused: not authorised", [])
    (a, b, c, d) = known(acks, "a", "b", "c", "d")
    assert (a, b) == ((True, 0.5), (True, 0.25))
    assert c[0] is False
    assert d[0] is None
    assert math.isnan(c[1])
    assert math.isnan(d[1])
    assert len(acks) == 3


@pytest.mark.parametrize("first", ["refused: full", "acknowledged"])
def test_of_several_brokers_one_acknowledgement_is_enough(first):
    acks = Acks()
    for outcome in (first, "refused: quota", "acknowledged"):
        acks.add(["a"], outcome, [0.5] if outcome == "acknowledged" else [])
    assert known(acks, "a") == [(True, 0.5)]


def test_the_first_acknowledgement_counts():
    acks = Acks()
    acks.add(["a"], "acknowledged", [0.5])
    acks.add(["a"], "acknowledged", [0.75])
    assert known(acks, "a") == [(True, 0.5)]


def test_nothing_is_known_of_nothing():
    acks = Acks()
    acks.add([], "acknowledged", [])
    assert known(acks) == []
    assert known(acks, "a")[0][0] is None


def test_what_is_too_much_goes_from_the_oldest_and_is_counted():
    acks = Acks(entries_max=200_000)
    for begin in range(0, 400_000, 1000):
        acks.add(names(range(begin, begin + 1000)), "acknowledged", [0.001] * 1000)
        assert len(acks) <= 200_000
    assert len(acks) + acks.evicted == 400_000
    assert known(acks, *names([0]))[0][0] is None
    assert known(acks, *names([399_999]))[0][0] is True
    oldest = 400_000 - len(acks)
    assert [row[0] for row in known(acks, *names([oldest - 1, oldest]))] == [None, True]


@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=10), st.integers(1, 30))
def test_any_batches_give_what_a_list_of_the_newest_would(batches, limit):
    acks = Acks(entries_max=limit)
    everything = [n for batch in batches for n in batch]
    for batch in batches:
        acks.add(names(batch), "acknowledged", [float(n) for n in batch])
    assert len(acks) + acks.evicted == len(everything)
    newest = everything[len(everything) - len(acks):]
    found = known(acks, *names(range(41)))
    assert [row[0] for row in found] == [True if n in newest else None for n in range(41)]
    assert all(row == (True, float(n)) for n, row in enumerate(found) if row[0])


def test_looking_up_while_another_thread_adds_never_tears():
    acks, begun, done = Acks(), threading.Event(), threading.Event()

    def add():
        for begin in range(0, 100_000, 500):
            acks.add(names(range(begin, begin + 500)), "acknowledged",
                     [float(n) for n in range(begin, begin + 500)])
            begun.set()
        done.set()

    thread = threading.Thread(target=add)
    thread.start()
    assert begun.wait(10)
    wanted = names(range(0, 100_000, 97))
    while True:
        last = done.is_set()
        acked, seconds = acks.lookup(wanted)
        seen = [n for n, verdict in enumerate(acked.tolist()) if verdict]
        assert seen == list(range(len(seen)))
        assert seconds[: len(seen)].tolist() == [97.0 * n for n in seen]
        if last:
            break
    thread.join(10)
    assert len(seen) == len(wanted)


def test_each_publisher_has_verdicts_of_its_own_with_reasons():
    acks = Acks()
    acks.add(["a", "b"], "acknowledged", [0.5, 0.25], publisher=1)
    acks.add(["a"], "refused: quota", [], publisher=2)
    acks.add(["c"], "unknown", [], publisher=1)
    acks.add(["c"], "acknowledged", [1.0], publisher=1)
    acks.add(["d"], "unknown", [], publisher=1)
    hashes = np.array([hash(name) for name in "abcde"])
    acked, unknown, refused = acks.verdicts(hashes, 1)
    assert acked.tolist() == [True, True, True, False, False]
    assert unknown.tolist() == [False, False, True, True, False]
    assert not refused.any()
    acked, unknown, refused = acks.verdicts(hashes, 2)
    assert not acked.any()
    assert not unknown.any()
    assert [acks.reasons[code] for code in refused.tolist()] == ["refused: quota", "", "", "", ""]
    # For a frame, a link that was lost is no verdict.
    assert known(acks, "c", "d")[0] == (True, 1.0)
    assert known(acks, "d")[0][0] is None


def test_more_reasons_than_can_be_told_apart_share_one():
    acks = Acks()
    for n in range(400):
        acks.add([f"m{n}"], f"refused: {n}", [])
    hashes = np.array([hash(f"m{n}") for n in range(400)])
    _, _, refused = acks.verdicts(hashes, 0)
    told = [acks.reasons[code] for code in refused.tolist()]
    assert told[:250] == [f"refused: {n}" for n in range(250)]
    assert told[399] == "refused: for one of many reasons"
