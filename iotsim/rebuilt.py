"""Readings made again from what somebody received or stored: messages, tables, files.

What an independent subscriber saw has the same digest as the run that sent it, so a whole run can
be compared without trusting the simulator's own books.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from iotsim.digest import Digest
from iotsim.engine.columns import column_of
from iotsim.errors import BadValue, SavedRunError
from iotsim.readings import Column, Group, Ints, Marks, Readings
from iotsim.units import instant_us


def digest_of_messages(messages: Iterable[tuple[bytes, str]]) -> str:
    """Return the digest of received messages.

    Parameters
    ----------
    messages : iterable of (payload, id)
        Payloads as they stood on the wire; ids are `run/device/seq/copy`, or
        `run/device/seq.sub/copy` between two ticks.

    Raises
    ------
    BadValue
        If a payload is not a reading, or an id has no tick.
    """
    digest = Digest(0)
    for readings in readings_of_messages(messages):
        digest.add(readings)
    return digest.hexdigest()


def readings_of_messages(messages: Iterable[tuple[bytes, str]]) -> Iterator[Readings]:
    """Yield the readings that messages hold, one group per device type and set of labels."""
    found: dict[tuple[str, bytes], list[tuple[str, int, dict[str, Any], tuple[int, int, int]]]]
    found = {}
    for payload, message_id in messages:
        try:
            body = orjson.loads(payload)
            labels = {k: v for k, v in body.get("labels", {}).items() if k != "device_type"}
            kind = body["device_type"], orjson.dumps(labels, option=orjson.OPT_SORT_KEYS)
            row = (body["device_id"], instant_us(body["timestamp"]), body["fields"],
                   _place_of(message_id))
        except (KeyError, TypeError, AttributeError, IndexError, ValueError):
            raise BadValue("message", payload, "is not a reading", "") from None
        found.setdefault(kind, []).append(row)
    for index, ((device_type, labels_json), rows) in enumerate(found.items()):
        place: dict[str, int] = {}
        device = [place.setdefault(row[0], len(place)) for row in rows]
        group = Group(index, device_type, list(place), orjson.loads(labels_json))
        names = list(dict.fromkeys(name for row in rows for name in row[2]))
        seq, sub, copy = (np.array([row[3][i] for row in rows], np.int64) for i in range(3))
        yield Readings(
            group=group,
            device=np.array(device, dtype=np.int32),
            seq=seq,
            time_us=np.array([row[1] for row in rows], dtype=np.int64),
            columns={name: column_of([row[2] for row in rows], name) for name in names},
            marks=_marks_of(sub, copy),
        )


def _place_of(message_id: str) -> tuple[int, int, int]:
    _, place, copy = message_id.rsplit("/", 2)
    seq, _, sub = place.partition(".")
    found = int(seq), int(sub or 0), int(copy)
    if not -(2**63) <= found[0] < 2**63 or not all(0 <= part < 2**31 for part in found[1:]):
        raise ValueError(message_id)
    return found


def _marks_of(sub: Ints, copy: Ints) -> Marks | None:
    if not sub.any() and not copy.any():
        return None
    nothing = np.zeros(len(sub), dtype=np.int16)
    return Marks(("",), nothing, nothing, sub=sub.astype(np.int32), copy=copy.astype(np.int32))


def readings_of_table(table: Any, groups: Sequence[Group], source: object) -> list[Readings]:
    """Return the readings that an Arrow table of `arrow.Tables` holds, per batch and group.

    A row is of the group that has its device, type and labels. Its marks say what was active and
    what was hit; which copy it is, delays and truth are not in a table.

    Parameters
    ----------
    table : pyarrow.Table
    groups : sequence of Group
        Of the fleet that made it.
    source : str or Path
        What errors call it.

    Raises
    ------
    SavedRunError
        If the table has other columns, or devices that the fleet does not have.
    """
    offsets = np.cumsum([0, *(len(group) for group in groups)])
    places = _Places.of(groups, offsets.tolist())
    labels = {name for group in groups for name in group.labels}
    known = {"time", "device_id", "device_type", "seq", "faults", "hit", *labels}
    if not {"time", "device_id", "seq"} <= set(table.column_names):
        raise SavedRunError(source, "these are not readings of iotsim", "Give a file of `to=`.")
    fields = [name for name in table.column_names if name not in known]
    made = []
    for batch in table.to_batches():
        codes = places.in_batch(batch, source)
        time_us = batch.column("time").cast("int64").to_numpy()
        seq = batch.column("seq").to_numpy()
        columns = {name: _column(batch.column(name)) for name in fields}
        marks = _causes(batch)
        for group, low in zip(groups, offsets.tolist(), strict=False):
            rows = np.flatnonzero((codes >= low) & (codes < low + len(group)))
            if len(rows):
                whole = Readings(group, (codes - low).astype(np.int32), seq, time_us, columns,
                                 marks=marks)
                made.append(_present(whole.take(rows)))
    return made


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    # Where devices are among those of all groups; an id that several groups have is in `shared`
    # for each of them.
    first: Mapping[str, int]
    shared: Sequence[tuple[Group, Mapping[str, int]]]
    labels: Sequence[str]

    @classmethod
    def of(cls, groups: Sequence[Group], offsets: Sequence[int]) -> _Places:
        first: dict[str, int] = {}
        several: set[str] = set()
        for group, offset in zip(groups, offsets, strict=False):
            for place, name in enumerate(group.ids, offset):
                if first.setdefault(name, place) != place:
                    several.add(name)
        shared = [
            (group, {name: i for i, name in enumerate(group.ids, offset) if name in several})
            for group, offset in zip(groups, offsets, strict=False)
        ] if several else []
        labels = list(dict.fromkeys(name for group in groups for name in group.labels))
        return cls(first, [(group, places) for group, places in shared if places], labels)

    def in_batch(self, batch: Any, source: object) -> Ints:
        ids = batch.column("device_id").dictionary.to_pylist()
        unknown = [name for name in ids if name not in self.first]
        if unknown:
            raise SavedRunError(source, f"it has a device {unknown[0]!r} that the fleet has not")
        which = batch.column("device_id").indices.to_numpy()
        found: Ints = np.array([self.first[name] for name in ids], dtype=np.int64)[which]
        for group, places in reversed(self.shared):  # the first that fits has the last word
            there = np.array([places.get(name, -1) for name in ids], dtype=np.int64)[which]
            found = np.where((there >= 0) & self._fits(batch, group), there, found)
        return found

    def _fits(self, batch: Any, group: Group) -> npt.NDArray[np.bool_]:
        fits = np.ones(len(batch), dtype=np.bool_)
        labels = {name: group.labels.get(name) for name in self.labels}
        for name, value in {"device_type": group.device_type, **labels}.items():
            if name in batch.schema.names:
                codes, words = _words(batch.column(name))
                fits &= np.array([word == value for word in words])[codes]
        return fits


def _words(column: Any) -> tuple[Ints, list[str | None]]:
    # Codes and what they stand for; the last one stands for null.
    codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes, [*column.dictionary.to_pylist(), None]


def _causes(batch: Any) -> Marks | None:
    known = {"": 0}
    found = {}
    for name in ("faults", "hit"):
        found[name] = np.zeros(len(batch), dtype=np.int16)
        if name in batch.schema.names:
            codes, words = _words(batch.column(name))
            place = [known.setdefault(word or "", len(known)) for word in words]
            found[name] = np.array(place, dtype=np.int16)[codes]
    if not any(codes.any() for codes in found.values()):
        return None
    return Marks(tuple(known), found["faults"], found["hit"])


def _column(array: Any) -> Column:
    import pyarrow as pa

    kind = array.type
    if pa.types.is_dictionary(kind):
        codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        return Column("text", codes, tuple(array.dictionary.to_pylist()))
    if pa.types.is_floating(kind):
        return Column("float", array.fill_null(float("nan")).to_numpy(zero_copy_only=False))
    if pa.types.is_string(kind):
        values = [None if text is None else orjson.loads(text) for text in array.to_pylist()]
        return column_of([{"": value} for value in values], "")
    present = None if not array.null_count else ~array.is_null().to_numpy(zero_copy_only=False)
    boolean = pa.types.is_boolean(kind)
    values = array.fill_null(False if boolean else 0).to_numpy(zero_copy_only=False)
    return Column("bool" if boolean else "int", values, present=present)


def _present(readings: Readings) -> Readings:
    # A field that a group never has is a column of nulls in a file of several types.
    columns = {
        name: column
        for name, column in readings.columns.items()
        if not _empty(column)
    }
    return replace(readings, columns=columns)


def _empty(column: Column) -> bool:
    if column.kind == "float":
        return bool(np.isnan(column.values).all())
    if column.kind in ("text", "json"):
        return bool((column.values < 0).all())
    return column.present is not None and not column.present.any()
