"""One number for all readings of a run, whatever order and pieces they came in.

Every reading gives one word per field and one for itself: a bijective mix of device (with its
labels), tick, published time and value. Words are added up modulo 2**64 per device and per field
and stretch of time; sums do not depend on order or on the split into blocks, shards or files. A
flipped bit changes exactly one word, a missing or doubled reading adds or removes words, and
swapped readings change both. The hex digest is two mixed lanes over the devices' sums. A value's
word depends on the value alone, never on the column that carries it; null is no value, like a
field that is absent. Where a row stands within its tick, which copy of a reading it is and why it
never left are part of its word; what was active, what was hit, delays and truth are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import orjson

from iotsim.readings import Column, Group, Marks, Readings
from iotsim.seeding import Words, combine, combine_many, fnv1a, fnv1a_many, mix, mix_many

DIGEST_VERSION = 1
STRETCHES_MAX = 128
STRETCH_US_MIN = 1_000_000
_SEQ, _TIME, _VALUE = (
    np.uint64(0xD1342543DE82EF95),
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xAF251AF3B0F025B5),
)
_LANES = (0x243F6A8885A308D3, 0x13198A2E03707344)
_KINDS = {"float": 1, "int": 2, "bool": 3, "text": 4, "json": 5}
_MASK = 2**64 - 1


@dataclass(slots=True)
class _GroupSums:
    group: Group
    keys: Words
    sums: Words
    rows: npt.NDArray[np.int64]


@dataclass(slots=True)
class Stretches:
    """Sums of words per field and stretch of time; the stretch doubles to stay few."""

    start_us: int
    width_us: int = STRETCH_US_MIN
    sums: dict[str, Words] = field(default_factory=dict)

    def widen(self, last_us: int) -> None:
        """Double the width until an instant falls within the bound."""
        while (last_us - self.start_us) // self.width_us >= STRETCHES_MAX:
            self.width_us *= 2
            for name, words in self.sums.items():
                halved = words[0::2] + words[1::2]
                self.sums[name] = np.concatenate([halved, np.zeros_like(halved)])

    def of(self, name: str) -> Words:
        """Return the sums of a field, shape (stretches,)."""
        if name not in self.sums:
            self.sums[name] = np.zeros(STRETCHES_MAX, dtype=np.uint64)
        return self.sums[name]


class Digest:
    """The running digest of one run.

    Parameters
    ----------
    start_us : int
        Where the run began; only the stretches depend on it.
    """

    def __init__(self, start_us: int) -> None:
        self.stretches = Stretches(start_us)
        self._groups: dict[int, _GroupSums] = {}
        self._version = 0
        self._rows = 0
        self._told = -1, ""

    def add(self, readings: Readings) -> None:
        """Add readings of one group."""
        if not len(readings):
            return
        self._version += 1  # twice: whoever looks meanwhile keeps nothing of it
        group = self._sums_of(readings.group)
        words = readings.time_us.view(np.uint64) * _TIME
        words += _swapped(readings.seq.view(np.uint64) * _SEQ)
        words += group.keys[readings.device]
        if readings.marks is not None:
            _add_marks(words, readings.marks)
        words = mix_many(words)
        pieces = _pieces(self.stretches, readings.time_us)
        total = words
        self._add_stretch("", pieces, words)
        for name, column in readings.columns.items():
            cells = _cells(name, column, words)
            self._add_stretch(name, pieces, cells)
            total = total + cells
        _add_devices(group, readings, total)
        self._rows += len(readings)
        self._version += 1

    def hexdigest(self) -> str:
        """Return 32 hex digits; 32 zeros for no readings."""
        if self._told[0] != (version := self._version):  # a repr shows it: once is enough
            self._told = version, self._hexdigest()
        return self._told[1]

    def _hexdigest(self) -> str:
        keys, sums, rows = self._per_key()
        words = mix_many(sums + rows.view(np.uint64) * _SEQ)
        lanes = [
            int(combine_many(keys ^ np.uint64(lane), words).sum(dtype=np.uint64)) for lane in _LANES
        ]
        return f"{lanes[0]:016x}{lanes[1]:016x}"

    @property
    def rows(self) -> int:
        """How many readings were added."""
        return self._rows

    def devices(self) -> Iterable[tuple[Group, Words, npt.NDArray[np.int64]]]:
        """Yield each group with its devices' sums and numbers of readings."""
        for index in sorted(self._groups):
            group = self._groups[index]
            yield group.group, group.sums, group.rows

    def _per_key(self) -> tuple[Words, Words, npt.NDArray[np.int64]]:
        # A device may have been in several groups, and come back to the labels that it had.
        parts = [(group, group.rows > 0) for group in self._groups.values()]
        none = np.zeros(0, dtype=np.uint64)
        keys = np.concatenate([none, *(group.keys[seen] for group, seen in parts)])
        sums = np.concatenate([none, *(group.sums[seen] for group, seen in parts)])
        rows = np.concatenate([none.view(np.int64), *(group.rows[seen] for group, seen in parts)])
        if len(parts) < 2:
            return keys, sums, rows
        known, place = np.unique(keys, return_inverse=True)
        if len(known) == len(keys):
            return keys, sums, rows
        total, count = np.zeros(len(known), np.uint64), np.zeros(len(known), np.int64)
        np.add.at(total, place, sums)
        np.add.at(count, place, rows)
        return known, total, count

    def _sums_of(self, group: Group) -> _GroupSums:
        if group.index not in self._groups:
            self._groups[group.index] = _GroupSums(
                group,
                device_words(group),
                np.zeros(len(group), dtype=np.uint64),
                np.zeros(len(group), dtype=np.int64),
            )
        return self._groups[group.index]

    def _add_stretch(self, name: str, pieces: _Pieces, words: Words) -> None:
        sums = self.stretches.of(name)
        if pieces.begins is None:
            np.add.at(sums, pieces.places, words)
        elif len(pieces.begins) == 1:
            sums[pieces.places] += words.sum(dtype=np.uint64)
        else:
            sums[pieces.places] += np.add.reduceat(words, pieces.begins)


@dataclass(frozen=True, slots=True)
class _Pieces:
    # Rows in stretches: each row's own place, or places and the row where each begins.
    places: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64] | None


def _pieces(stretches: Stretches, time_us: npt.NDArray[np.int64]) -> _Pieces:
    first_us, last_us = int(time_us.min()), int(time_us.max())
    stretches.widen(last_us)
    start_us, width_us = stretches.start_us, stretches.width_us
    low = max(0, (first_us - start_us) // width_us)
    places = np.arange(low, max(0, (last_us - start_us) // width_us) + 1)
    if len(places) == 1:
        return _Pieces(places, np.zeros(1, dtype=np.int64))
    if (time_us[1:] < time_us[:-1]).any():
        return _Pieces(np.maximum((time_us - start_us) // width_us, 0), None)
    edges = np.searchsorted(time_us, start_us + places[1:] * width_us)
    begins = np.concatenate([[0], edges])
    filled = np.append(begins[1:], len(time_us)) > begins
    return _Pieces(places[filled], begins[filled])


def _swapped(words: Words) -> Words:
    # Halves changed over: the top bits of tick and time must not meet in one place.
    return np.asarray((words << np.uint64(32)) | (words >> np.uint64(32)))


def _add_marks(words: Words, marks: Marks) -> None:
    # Mixed, so that no number of copies looks like another tick or time; nothing adds nothing.
    if marks.sub is not None or marks.copy is not None:
        which = np.zeros(len(words), dtype=np.uint64)
        if marks.sub is not None:
            which += marks.sub.astype(np.uint64) << np.uint64(32)
        if marks.copy is not None:
            which += marks.copy.astype(np.uint64)
        words += mix_many(which)
    if marks.withheld is not None:
        causes = [mix(fnv1a(name)) if name else 0 for name in marks.names]
        words += np.array(causes, dtype=np.uint64)[marks.withheld]


def device_words(group: Group) -> Words:
    """Return the words that stand for a group's devices: id, type and labels."""
    labels = orjson.dumps(dict(group.labels), option=orjson.OPT_SORT_KEYS).decode()
    typed = combine(fnv1a(group.device_type), fnv1a(labels))
    return combine_many(typed, fnv1a_many(group.ids))


def _add_devices(group: _GroupSums, readings: Readings, words: Words) -> None:
    if readings.grid is not None:
        ticks, wide = readings.grid
        devices = readings.device[:wide]
        group.sums[devices] += words.reshape(ticks, wide).sum(axis=0, dtype=np.uint64)
        group.rows[devices] += ticks
    else:
        np.add.at(group.sums, readings.device, words)
        np.add.at(group.rows, readings.device, 1)


def _cells(name: str, column: Column, rows: Words) -> Words:
    bits = _bits(column, fnv1a(name))
    bits *= _VALUE
    bits ^= bits >> np.uint64(32)
    bits += rows
    cells = mix_many(bits)
    nulls = _nulls(column)
    if nulls is not None:
        cells[nulls] = 0
    if column.present is not None:
        cells[~column.present] = 0
    return cells


def _bits(column: Column, key: int) -> Words:
    values = column.values
    if column.kind in ("text", "json"):
        known = [_category_bits(value, key) for value in (*column.categories, None)]
        return np.asarray(np.array(known, dtype=np.uint64)[values])
    kind = np.uint64(combine(key, _KINDS[column.kind]))
    if column.kind == "bool":
        return values.astype(np.uint64) ^ kind
    return np.asarray(np.ascontiguousarray(values).view(np.uint64) ^ kind)


def _category_bits(value: object, key: int) -> int:
    # The same bits as in a column of that kind alone: which one it is depends on the split.
    if isinstance(value, str):
        return fnv1a(value) ^ combine(key, _KINDS["text"])
    if isinstance(value, bool):
        return int(value) ^ combine(key, _KINDS["bool"])
    if isinstance(value, int):
        return value & _MASK ^ combine(key, _KINDS["int"])
    if isinstance(value, float):
        return int(np.float64(value).view(np.uint64)) ^ combine(key, _KINDS["float"])
    text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    return fnv1a(text) ^ combine(key, _KINDS["json"])


def _nulls(column: Column) -> npt.NDArray[np.bool_] | None:
    if column.kind == "float":
        mask = np.isnan(column.values)
    elif column.kind in ("text", "json"):
        mask = column.values < 0
    else:
        return None
    return mask if mask.any() else None
