"""Readings as Arrow tables and Parquet files, written as they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from iotsim.capture import common_kind, field_kinds, kind_of
from iotsim.errors import BadValue, IotsimError, MissingExtra
from iotsim.frames import floats_of, objects_of
from iotsim.readings import Column, Group, Readings

ROWS_PER_GROUP = 1_000_000


def _pyarrow(module: str = "pyarrow") -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtra("writing Arrow or Parquet", "pyarrow", "arrow") from None


def parquet_module() -> Any:
    """Return pyarrow.parquet, or raise MissingExtra."""
    return _pyarrow("pyarrow.parquet")


class Tables:
    """Makes tables of one schema out of readings.

    Parameters
    ----------
    groups : sequence of Group
    kinds : mapping of field name to kind
        The fields that the schema has.
    """

    def __init__(self, groups: Sequence[Group], kinds: Mapping[str, str]) -> None:
        pa = _pyarrow()
        self.groups, self.kinds = groups, dict(kinds)
        self.labels = list(dict.fromkeys(name for group in groups for name in group.labels))
        word = pa.dictionary(pa.int32(), pa.string())
        types = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "text": word,
                 "json": pa.string()}
        self.schema = pa.schema(
            [("time", pa.timestamp("us", tz="UTC")), ("device_id", word), ("device_type", word),
             ("seq", pa.int64())]
            + [(name, word) for name in self.labels]
            + [(name, types[kind]) for name, kind in self.kinds.items()]
            + [("faults", word), ("hit", word)]
        )
        self._ids = {group.index: pa.array(group.ids, pa.string()) for group in groups}

    def table(self, readings: Readings) -> Any:
        """Return one table of the readings."""
        pa, group, rows = _pyarrow(), readings.group, len(readings)
        for name, column in readings.columns.items():
            self._check(name, column, group)
        columns = [
            pa.array(readings.time_us, pa.timestamp("us", tz="UTC")),
            pa.DictionaryArray.from_arrays(pa.array(readings.device), self._ids[group.index]),
            _constant(group.device_type, rows),
            pa.array(readings.seq),
            *(_constant(group.labels.get(name), rows) for name in self.labels),
            *(
                _array(readings.columns.get(name), kind, rows)
                for name, kind in self.kinds.items()
            ),
            _constant("", rows),
            _constant("", rows),
        ]
        return pa.table(columns, schema=self.schema)


    def _check(self, name: str, column: Column, group: Group) -> None:
        if name not in self.kinds:
            raise IotsimError(
                f"device type {group.device_type!r} began to publish {name!r} after the file "
                "was begun. Emit every field (None is allowed) from the first reading on."
            )
        kind, begun = kind_of(column), self.kinds[name]
        if kind is not None and common_kind(kind, begun) != begun:
            raise IotsimError(
                f"device type {group.device_type!r} began to publish {name!r} as {kind} after the "
                f"file was begun with {begun}. Emit one kind of value in it."
            )


def _constant(value: str | None, rows: int) -> Any:
    pa = _pyarrow()
    codes = pa.array(np.zeros(rows, np.int32), mask=np.full(rows, value is None))
    return pa.DictionaryArray.from_arrays(codes, pa.array([value or ""], pa.string()))


def _array(column: Column | None, kind: str, rows: int) -> Any:
    pa = _pyarrow()
    if column is None:
        return _constant(None, rows) if kind == "text" else pa.nulls(rows, _plain_type(kind))
    absent = None if column.present is None else ~column.present
    if kind == "text":
        codes = column.values.astype(np.int32, copy=False)
        missing = codes < 0 if absent is None else (codes < 0) | absent
        return pa.DictionaryArray.from_arrays(
            pa.array(codes, mask=missing), pa.array(list(column.categories), pa.string())
        )
    if kind == "json":
        return pa.array(_json_texts(column), pa.string())
    if kind == "float":
        values = floats_of(column)
        return pa.array(values, mask=np.isnan(values) if absent is None
                        else np.isnan(values) | absent)
    if column.kind == "json":
        return pa.array(objects_of(rows, column), _plain_type(kind))
    return pa.array(column.values, mask=absent)


def _plain_type(kind: str) -> Any:
    pa = _pyarrow()
    return {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "json": pa.string()}[kind]


def _json_texts(column: Column) -> list[str | None]:
    if column.kind in ("text", "json"):
        known = [orjson.dumps(value).decode() for value in column.categories] + [None]
        texts = [known[code] for code in column.values.tolist()]
    else:
        texts = [None if value != value else orjson.dumps(value).decode()
                 for value in column.values.tolist()]
    if column.present is None:
        return texts
    return [text if there else None for text, there in zip(texts, column.present, strict=True)]


def table(groups: Sequence[Group], chunks: Iterable[Readings]) -> Any:
    """Return readings as one Arrow table."""
    pa = _pyarrow()
    chunks = [chunk for chunk in chunks if len(chunk)]
    tables = Tables(groups, field_kinds(chunks))
    made = [tables.table(chunk) for chunk in chunks]
    return pa.concat_tables(made).unify_dictionaries() if made else tables.schema.empty_table()


def write(path: str | Path, groups: Sequence[Group], chunks: Iterable[Readings]) -> Path:
    """Write readings to a Parquet file; returns its path."""
    with Writer(path, groups) as writer:
        for chunk in chunks:
            writer.add(chunk)
    return writer.path


class Writer:
    """Writes a Parquet file as readings come, a row group at a time, with flat memory.

    The file takes its name when it is complete; until then it is `<name>.part`.
    """

    def __init__(self, path: str | Path, groups: Sequence[Group],
                 kinds: Mapping[str, str] | None = None) -> None:
        self.path = Path(path)
        if self.path.suffix != ".parquet":
            raise BadValue("to", str(path), "does not end in .parquet", "Write 'x.parquet'.")
        if not self.path.parent.is_dir():
            raise BadValue("to", str(path), "is in a folder that does not exist", "Make it first.")
        _pyarrow()
        self.rows = 0
        self._groups = groups
        self._kinds = dict(kinds or {})
        self._waiting: list[Readings] = []
        self._waiting_rows = 0
        self._tables: Tables | None = None
        self._file: Any = None

    def add(self, readings: Readings) -> None:
        """Take readings; writes when a row group is full."""
        self._waiting.append(readings)
        self._waiting_rows += len(readings)
        if self._waiting_rows >= ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        chunks, self._waiting, self._waiting_rows = self._waiting, [], 0
        if self._tables is None:
            kinds = dict(self._kinds)
            for name, kind in field_kinds(chunks).items():
                kinds[name] = common_kind(kinds.get(name, kind), kind)
            self._tables = Tables(self._groups, kinds)
            part = self.path.with_name(self.path.name + ".part")
            self._file = parquet_module().ParquetWriter(
                part, self._tables.schema, compression="zstd", write_statistics=["time", "seq"]
            )
        if chunks:
            made = [self._tables.table(chunk) for chunk in chunks]
            joined = _pyarrow().concat_tables(made).unify_dictionaries()
            self._file.write_table(joined, row_group_size=len(joined))
            self.rows += len(joined)

    def close(self) -> None:
        """Write what waits and give the file its name."""
        self.flush()
        self._file.close()
        self.path.with_name(self.path.name + ".part").replace(self.path)

    def abandon(self) -> None:
        """Leave what is written under its temporary name."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def read(path: str | Path, groups: Sequence[Group]) -> list[Readings]:
    """Return the readings of a Parquet file that `Writer` made for these groups."""
    from iotsim.rebuilt import readings_of_table

    table = parquet_module().read_table(path)
    return readings_of_table(table, groups, path)
