"""What became of messages, by id: acknowledged after how long, refused and why, or unknown.

A run that publishes may settle millions of messages: an id is kept as its hash, 15 bytes with its
verdict and whose it is, and what is too much goes from the oldest on, counted.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from iotsim.publishers.lane_settings import DROPPED
from iotsim.readings import Ints

Mask = npt.NDArray[np.bool_]
Watcher: TypeAlias = Callable[[Sequence[str], str, Sequence[float], int], None]

ENTRIES_MAX = 10_000_000
CHUNK_ENTRIES = 65_536
WAITING_ENTRIES = 1024
ACKNOWLEDGED = "acknowledged"
UNKNOWN = "unknown"  # written, and the link was lost before a verdict
OUTCOMES_MAX = 255


@dataclass(slots=True, eq=False)
class _Chunk:
    # Entries are written once, behind `size`: what was seen of a chunk never changes.
    hashes: Ints
    seconds: npt.NDArray[np.float32]
    outcomes: npt.NDArray[np.uint8]
    publishers: npt.NDArray[np.uint16]
    size: int = 0


class Acks:
    """The verdicts of brokers, by message id.

    Parameters
    ----------
    entries_max : int
        How many are kept, to within a chunk of 65,536; the oldest go first.

    Attributes
    ----------
    evicted : int
        How many went.
    watchers : list of callable (ids, outcome, seconds, publisher)
        Told of every batch.

    Examples
    --------
    >>> acks = Acks()
    >>> acks.add(["run/a/0/0", "run/a/1/0"], "acknowledged", [0.25, 0.5])
    >>> acked, seconds = acks.lookup(["run/a/1/0", "run/a/2/0"])
    >>> acked.tolist(), seconds.tolist()
    ([True, None], [0.5, nan])
    """

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self.evicted = 0
        self.watchers: list[Watcher] = []
        self._entries_max = entries_max
        self._chunk_entries = max(1, min(CHUNK_ENTRIES, entries_max))
        self._chunks: deque[_Chunk] = deque()
        self._size = 0
        self._outcomes = {ACKNOWLEDGED: 0, UNKNOWN: 1}
        self._waiting: tuple[list[str], list[float], bytearray, array[int]] = _nothing()
        self._lock = threading.Lock()  # the loop adds while a frame is made in another thread

    def __len__(self) -> int:
        return self._size + len(self._waiting[0])

    def add(
        self, ids: Sequence[str], outcome: str, seconds: Sequence[float], publisher: int = 0
    ) -> None:
        """Take the verdict of a batch of messages; what a `Pump` tells as `settled`.

        Parameters
        ----------
        ids : sequence of str
        outcome : str
            "acknowledged", "unknown" (so far: the link was lost), "dropped" (from a full queue),
            or why they were refused.
        seconds : sequence of float
            From hand-over to acknowledgement, one per id; empty for other outcomes.
        publisher : int
            The number of the pump, where a run has several.
        """
        for watcher in self.watchers:
            watcher(ids, outcome, seconds, publisher)
        if outcome == DROPPED:  # by our own queue: no broker has said anything
            return
        acked = outcome == ACKNOWLEDGED
        with self._lock:
            names, taken, verdicts, whose = self._waiting
            names.extend(ids)
            taken.extend(seconds if acked else repeat(math.nan, len(ids)))
            verdicts.extend(bytes((self._code(outcome),)) * len(ids))
            whose.extend(repeat(publisher, len(ids)))
            if len(names) >= min(WAITING_ENTRIES, self._chunk_entries):
                self._store()

    def lookup(
        self, ids: Iterable[str]
    ) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
        """Return what is known of messages: (acked, seconds), one entry per id.

        A message that several brokers got counts as acknowledged if one of them did.

        Returns
        -------
        acked : object array
            True, False (refused) or None (unknown: under way, lost, evicted, never sent).
        seconds : float array
            NaN unless it was acknowledged.
        """
        hashes, taken, codes, _ = self._entries()
        wanted = np.fromiter(map(hash, ids), np.int64)
        acked = np.full(len(wanted), None, dtype=object)
        seconds = np.full(len(wanted), np.nan)
        for verdict in (False, True):
            entries = np.flatnonzero(codes == 0 if verdict else codes > 1)
            found, place = _find(hashes[entries], wanted)
            acked[found] = verdict
            seconds[found] = taken[entries[place]] if verdict else np.nan
        return acked, seconds

    def verdicts(self, hashes: Ints, publisher: int) -> tuple[Mask, Mask, npt.NDArray[np.uint8]]:
        """Return what one publisher's broker said of messages, by the hash of their ids.

        Returns
        -------
        acknowledged, unknown : bool arrays
            `unknown`: at some time there was no verdict, because the link was lost.
        refused : uint8 array
            The number of the reason in `reasons`, if it was refused; else 0.
        """
        known, _, codes, publishers = self._entries()
        mine = publishers == publisher
        found = []
        for kind in (codes == 0, codes == 1, codes > 1):
            entries = np.flatnonzero(kind & mine)
            there, place = _find(known[entries], hashes)
            code = np.zeros(len(hashes), dtype=np.uint8)
            code[there] = codes[entries[place]]
            mask = np.zeros(len(hashes), dtype=np.bool_)
            mask[there] = True
            found.append((mask, code))
        return found[0][0], found[1][0], found[2][1]

    @property
    def reasons(self) -> list[str]:
        """Why messages were refused, by the numbers that `verdicts` gives; "" for those below 2."""
        return ["", "", *list(self._outcomes)[2:]]

    def _code(self, outcome: str) -> int:
        if outcome not in self._outcomes and len(self._outcomes) >= OUTCOMES_MAX:
            outcome = "refused: for one of many reasons"
        return self._outcomes.setdefault(outcome, len(self._outcomes))

    def _store(self) -> None:
        # Batches may be of a few messages each: numpy is worth its price for many at once.
        names, taken, verdicts, publishers = self._waiting
        self._waiting = _nothing()
        hashes = np.fromiter(map(hash, names), np.int64, len(names))
        outcomes = np.frombuffer(verdicts, np.uint8)
        whose = np.array(publishers, np.uint16)
        begin = 0
        while begin < len(names):
            chunk = self._open()
            end = min(len(names), begin + self._chunk_entries - chunk.size)
            rows = slice(chunk.size, chunk.size + end - begin)
            chunk.hashes[rows] = hashes[begin:end]
            chunk.seconds[rows] = taken[begin:end]
            chunk.outcomes[rows] = outcomes[begin:end]
            chunk.publishers[rows] = whose[begin:end]
            chunk.size = rows.stop
            self._size += end - begin
            begin = end

    def _open(self) -> _Chunk:
        # The chunk to write to; the oldest one goes if this one would be too many.
        if not self._chunks or self._chunks[-1].size == self._chunk_entries:
            if self._size + self._chunk_entries > self._entries_max and self._chunks:
                gone = self._chunks.popleft()
                self._size -= gone.size
                self.evicted += gone.size
            rows = self._chunk_entries
            self._chunks.append(_Chunk(
                np.empty(rows, np.int64), np.empty(rows, np.float32), np.empty(rows, np.uint8),
                np.empty(rows, np.uint16)))
        return self._chunks[-1]

    def _entries(
        self,
    ) -> tuple[Ints, npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
        with self._lock:
            self._store()
            held = [(chunk, chunk.size) for chunk in self._chunks]

        def whole(name: str, kind: Any) -> Any:
            parts = [getattr(chunk, name)[:size] for chunk, size in held]
            return np.concatenate([np.empty(0, kind), *parts])

        return (whole("hashes", np.int64), whole("seconds", np.float32),
                whole("outcomes", np.uint8), whole("publishers", np.uint16))


def _nothing() -> tuple[list[str], list[float], bytearray, array[int]]:
    return [], [], bytearray(), array("H")


def _find(known: Ints, wanted: Ints) -> tuple[Ints, Ints]:
    # Which of the wanted are known, and where each was known first. Searching in order is ten
    # times as fast: neighbours share their memory.
    if not len(known):
        none = np.empty(0, dtype=np.int64)
        return none, none
    order = np.argsort(known, kind="stable")
    ordered = known[order]
    turn = np.argsort(wanted)
    place = np.empty(len(wanted), dtype=np.int64)
    place[turn] = np.minimum(np.searchsorted(ordered, wanted[turn]), len(known) - 1)
    found = np.flatnonzero(ordered[place] == wanted)
    return found, order[place[found]]
