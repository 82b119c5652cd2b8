"""Sent joined with received: which message is which reading, and what became of each reading.

Plain arrays in, plain arrays out. A message and a reading belong together when their keys are
equal; where a key was sent several times (to two publishers of one broker), the first of the
arrivals is the first of those sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iotsim.readings import Ints

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]

# What became of a reading; the table has these as its categories.
CLASSES = ("ok", "duplicated", "recovered", "corrupted", "expected", "refused", "lost", "unknown",
           "unexpected")
OK, DUPLICATED, RECOVERED, CORRUPTED, EXPECTED, REFUSED, LOST, UNKNOWN, UNEXPECTED = range(9)
# Whose a loss is.
WHOSE = ("", "never sent", "in flight", "after acknowledgement")
NOBODYS, SIMULATORS, IN_FLIGHT, BROKERS = range(4)


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Arrivals, and the rows that were sent, beside one another.

    Attributes
    ----------
    row_of : int64 array
        By arrival: the row, −1 if none.
    first : bool array
        By arrival: whether it is the first of its row.
    arrival_of : int64 array
        By row: its first arrival, −1 if it never came.
    copies : int64 array
        By row: how many came.
    """

    row_of: Ints
    first: Mask
    arrival_of: Ints
    copies: Ints


def joined(sent: Ints, received: Ints) -> Joined:
    """Join what was sent with what arrived, by key.

    Examples
    --------
    >>> found = joined(np.array([7, 8, 9]), np.array([9, 7, 9, 5]))
    >>> found.row_of.tolist(), found.arrival_of.tolist(), found.copies.tolist()
    ([2, 0, 2, -1], [1, -1, 0], [1, 0, 2])
    """
    row_of = np.full(len(received), -1, dtype=np.int64)
    first = np.zeros(len(received), dtype=np.bool_)
    arrival_of = np.full(len(sent), -1, dtype=np.int64)
    if len(sent) and len(received):
        order = np.argsort(sent, kind="stable")
        starts, sizes = _runs(sent[order])
        keys = sent[order[starts]]
        turn = np.argsort(received, kind="stable")  # equal ones in order of arrival
        place = np.minimum(np.searchsorted(keys, received[turn]), len(keys) - 1)
        known = keys[place] == received[turn]
        turn, place = turn[known], place[known]
        if len(turn):
            begins, counts = _runs(place)
            rank = np.arange(len(place)) - np.repeat(begins, counts)
            row_of[turn] = order[starts[place] + np.minimum(rank, sizes[place] - 1)]
            first[turn] = rank < sizes[place]
    arrivals = np.flatnonzero(first)
    arrival_of[row_of[arrivals]] = arrivals
    copies = np.bincount(row_of[row_of >= 0], minlength=len(sent)).astype(np.int64)
    return Joined(row_of, first, arrival_of, copies)


def _runs(ordered: Ints) -> tuple[Ints, Ints]:
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return starts, np.diff(np.append(starts, len(ordered)))


def overtaken(place: Ints, stream: Ints, arrival_of: Ints) -> Mask:
    """Return which rows came after one of their stream that had left later.

    Parameters
    ----------
    place : int64 array
        By row: its place in the order of leaving, streams one after the other.
    stream : int64 array
        By row: a number that ascends with the places.
    arrival_of : int64 array
        By row: its first arrival, −1 if it never came.

    Examples
    --------
    >>> overtaken(np.arange(4), np.zeros(4, int), np.array([0, 3, 1, -1])).tolist()
    [False, True, False, False]
    """
    late = np.zeros(len(place), dtype=np.bool_)
    came = np.flatnonzero(arrival_of >= 0)
    came = came[np.lexsort((arrival_of[came], stream[came]))]
    late[came] = place[came] < np.maximum.accumulate(place[came])
    return late


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of each row besides that it came.

    Attributes
    ----------
    withheld, acknowledged, undecided, refused : bool arrays
        A fault kept it; the broker took it; its link was lost at some time before a verdict; the
        broker did not want it.
    confirmed : bool array
        Whether the acknowledgement was the broker's.
    corrupted : bool array
        Whether what came differs from what was sent.
    unwatched : bool array
        Whether nobody can say that it did not arrive.
    forgotten : bool
        Whether verdicts fell out of their bound: then none is no sign that it was never sent.
    """

    withheld: Mask
    acknowledged: Mask
    undecided: Mask
    refused: Mask
    confirmed: Mask
    corrupted: Mask
    unwatched: Mask
    forgotten: bool = False


def judged(came: Mask, again: Mask, evidence: Evidence) -> tuple[Codes, Codes]:
    """Return the class of each row, and whose its loss is.

    Parameters
    ----------
    came, again : bool arrays
        Whether it arrived, and more than once.
    evidence : Evidence
    """
    whose = np.full(len(came), SIMULATORS, dtype=np.uint8)
    if evidence.forgotten:
        whose[:] = IN_FLIGHT
    whose[evidence.undecided] = IN_FLIGHT
    whose[evidence.acknowledged] = IN_FLIGHT
    whose[evidence.acknowledged & evidence.confirmed] = BROKERS
    code = np.full(len(came), LOST, dtype=np.uint8)
    code[evidence.refused & ~evidence.acknowledged] = REFUSED
    # What was never sent needs no witness.
    code[evidence.unwatched & (code == LOST) & (whose != SIMULATORS)] = UNKNOWN
    code[came] = OK
    code[came & evidence.undecided] = RECOVERED
    code[again] = DUPLICATED
    code[came & evidence.corrupted] = CORRUPTED
    code[evidence.withheld] = EXPECTED
    code[evidence.withheld & came] = UNEXPECTED
    whose[code != LOST] = NOBODYS
    return code, whose
