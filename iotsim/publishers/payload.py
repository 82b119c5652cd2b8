"""Readings as they stand on the wire: one JSON document per reading.

The keys are device_id, device_type, timestamp, fields (sorted), labels (sorted, with
device_type). Numbers are what orjson writes for them; NaN is null. A block is encoded column by
column: what does not change between the readings of a device is prepared once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import numpy.typing as npt
import orjson

from iotsim.readings import Column, Group, Ints, Readings
from iotsim.units import US_PER_SECOND, instant_text

FEW = 16  # rows, for which numpy takes longer than a plain loop
_PLACES = 10 ** np.arange(5, -1, -1, dtype=np.int64)
_AFTER_DIGITS = np.frombuffer(b'Z"', dtype=np.uint8)

TopicOf = Callable[[Group, int], str]


@dataclass(frozen=True, slots=True, eq=False)
class Messages:
    """A block of messages in the order they must leave, ready for any transport.

    Attributes
    ----------
    topics, payloads, ids : sequences of equal length
        Where to, what, and the identity that survives every retry: `run/device/seq/copy`, or
        `run/device/seq.sub/copy` between two ticks.
    time_us : int64 array
        The simulated time of each message.
    missing : mapping of reason to count
        Readings that no message can carry, such as those that are no number: not among the rows.
    kept : bool array or None
        Of the rows that were encoded, those that have a message; None: all.
    """

    topics: Sequence[str]
    payloads: Sequence[bytes]
    ids: Sequence[str]
    time_us: Ints
    missing: Mapping[str, int] = field(default_factory=dict)
    kept: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.payloads)

    def take(self, rows: Sequence[int]) -> Messages:
        """Return a selection of the messages; what is missing is not told again."""
        return Messages([self.topics[i] for i in rows], [self.payloads[i] for i in rows],
                        [self.ids[i] for i in rows], self.time_us[rows])


class Encoder:
    """Encodes readings of any group for one run.

    Parameters
    ----------
    run_id : str
        First part of every message id.
    topic_of : callable (group, device index) -> str
    audit_field : str
        A last key of every document, with the message id; empty: none.
    """

    def __init__(self, run_id: str, topic_of: TopicOf, audit_field: str = "") -> None:
        self.run_id = run_id
        self._audit_key = b',' + orjson.dumps(audit_field) + b':"' if audit_field else b""
        self._topic_of = topic_of
        self._parts: dict[int, tuple[list[str], list[bytes], bytes, list[str]]] = {}
        self._second = (-1, b"")

    def prepare(self, group: Group) -> None:
        """Make what does not change between a group's readings, ahead of the first."""
        self._fixed(group)

    def encode(self, readings: Readings) -> Messages:
        """Return one message per row, in row order; what was withheld is not for here."""
        topics, heads, tail, names = self._fixed(readings.group)
        rows = readings.device.tolist()
        ids = message_ids(readings, names)
        parts = [
            [heads[i] for i in rows],
            *self._times(readings.time_us),
            *_field_parts(readings),
            repeat(tail) if not self._audit_key else self._audited(tail, ids),
        ]
        payloads = list(map(b"".join, zip(*parts, strict=False)))
        return Messages([topics[i] for i in rows], payloads, ids, readings.time_us)

    def _fixed(self, group: Group) -> tuple[list[str], list[bytes], bytes, list[str]]:
        if group.index not in self._parts:
            kind = orjson.dumps(group.device_type)
            labels = dict(sorted({**group.labels, "device_type": group.device_type}.items()))
            heads = [
                b'{"device_id":%b,"device_type":%b,"timestamp":"' % (orjson.dumps(name), kind)
                for name in group.ids
            ]
            topics = [self._topic_of(group, i) for i in range(len(group))]
            names = [f"{self.run_id}/{name}" for name in group.ids]
            tail = b',"labels":' + orjson.dumps(labels) + b"}"
            self._parts[group.index] = (topics, heads, tail, names)
        return self._parts[group.index]

    def _audited(self, tail: bytes, ids: Sequence[str]) -> list[bytes]:
        key = tail[:-1] + self._audit_key
        return [b'%b%b"}' % (key, orjson.dumps(ident)[1:-1]) for ident in ids]

    def _times(self, time_us: Ints) -> list[Sequence[bytes] | repeat[bytes]]:
        # Most blocks lie within one second: its text is made once, and the digits all at once.
        seconds, micros = np.divmod(time_us, US_PER_SECOND)
        if len(micros) < FEW:
            pairs = zip(seconds.tolist(), micros.tolist(), strict=True)
            return [[b'%b%06dZ"' % (self._second_text(second), micro) for second, micro in pairs]]
        digits = np.empty((len(micros), 8), dtype=np.uint8)
        digits[:, :6] = micros[:, None] // _PLACES % 10 + ord("0")
        digits[:, 6:] = _AFTER_DIGITS
        ends = digits.view("V8").ravel().tolist()
        if (seconds == seconds[0]).all():
            return [repeat(self._second_text(int(seconds[0]))), ends]
        return [[self._second_text(second) for second in seconds.tolist()], ends]

    def _second_text(self, second: int) -> bytes:
        if second != self._second[0]:
            self._second = (second, instant_text(second * US_PER_SECOND)[:20].encode())
        return self._second[1]


def message_ids(readings: Readings, names: Sequence[str]) -> list[str]:
    """Return the id of the message of every row.

    Parameters
    ----------
    readings : Readings
    names : sequence of str
        `run/device` of every device of the group.
    """
    rows, ticks = readings.device.tolist(), readings.seq.tolist()
    sub, copy = (None, None) if readings.marks is None else (
        readings.marks.sub, readings.marks.copy)
    if (sub is None or not sub.any()) and (copy is None or not copy.any()):
        if ticks and ticks.count(ticks[0]) == len(ticks):  # as it is in most blocks
            end = f"/{ticks[0]}/0"
            return [names[i] + end for i in rows]
        return [f"{names[i]}/{n}/0" for i, n in zip(rows, ticks, strict=True)]
    subs: Iterable[int] = repeat(0, len(rows)) if sub is None else sub.tolist()
    copies: Iterable[int] = repeat(0, len(rows)) if copy is None else copy.tolist()
    return [
        f"{names[i]}/{n}.{j}/{k}" if j else f"{names[i]}/{n}/{k}"
        for i, n, j, k in zip(rows, ticks, subs, copies, strict=True)
    ]


def _field_parts(readings: Readings) -> list[Sequence[bytes] | repeat[bytes]]:
    names = sorted(readings.columns)
    if any(readings.columns[name].present is not None for name in names):
        return [_sparse_fields(readings, names)]
    parts: list[Sequence[bytes] | repeat[bytes]] = []
    lead = b',"fields":{'
    for name in names:
        parts += [repeat(lead + orjson.dumps(name) + b":"), texts(readings.columns[name])]
        lead = b","
    parts.append(repeat(b"}" if names else lead + b"}"))
    return parts


def _sparse_fields(readings: Readings, names: Sequence[str]) -> list[bytes]:
    # Scripted devices may leave a field out: absent is not null.
    rows: list[list[bytes]] = [[] for _ in range(len(readings))]
    for name in names:
        column = readings.columns[name]
        key = orjson.dumps(name) + b":"
        present = repeat(True) if column.present is None else column.present.tolist()
        for row, there, text in zip(rows, present, texts(column), strict=False):
            if there:
                row.append(key + text)
    return [b',"fields":{' + b",".join(row) + b"}" for row in rows]


def texts(column: Column) -> list[bytes]:
    """Return the JSON text of every value of a column."""
    values = column.values
    if column.kind in ("text", "json"):
        known = [orjson.dumps(value) for value in column.categories] + [b"null"]
        return [known[code] for code in values.tolist()]
    if not len(values):
        return []
    dense = np.ascontiguousarray(values)
    return orjson.dumps(dense, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
