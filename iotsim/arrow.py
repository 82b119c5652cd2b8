"""Readings as Arrow tables and Parquet files, written as they come.

They hold the rows and columns of a plain frame: what was withheld is in none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from errno import EISDIR
from importlib import import_module
from os.path import isdir
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from iotsim.capture import common_kind, kind_of
from iotsim.errors import BadValue, IotsimError, MissingExtra, SavedRunError
from iotsim.frames import check_columns, floats_of, objects_of, with_declared
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
        """Return one table of the readings that left."""
        readings = readings.sent()
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
            _causes(readings, "faults"),
            _causes(readings, "hit"),
        ]
        return pa.table(columns, schema=self.schema)

    def _check(self, name: str, column: Column, group: Group) -> None:
        if name in self.labels:
            check_columns(self.groups, [], [name])
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


def _causes(readings: Readings, name: str) -> Any:
    if readings.marks is None:
        return _constant("", len(readings))
    pa = _pyarrow()
    codes, names = getattr(readings.marks, name), readings.marks.names
    return pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int32)), pa.array(list(names), pa.string())
    )


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


def table(
    groups: Sequence[Group], chunks: Iterable[Readings], kinds: Mapping[str, str] | None = None,
    watch: Callable[[Sequence[Readings]], Iterable[Readings]] = iter,
) -> Any:
    """Return readings as one Arrow table; `kinds` are fields that have a column in any case.

    `watch` passes on what it is given, and sees how far it is.
    """
    pa = _pyarrow()
    chunks = [sent for chunk in chunks if len(sent := chunk.sent())]
    found = with_declared(kinds or {}, chunks)
    check_columns(groups, chunks, found)
    tables = Tables(groups, found)
    made = [tables.table(chunk) for chunk in watch(chunks)]
    return pa.concat_tables(made).unify_dictionaries() if made else tables.schema.empty_table()


def write(
    path: str | Path, groups: Sequence[Group], chunks: Iterable[Readings],
    kinds: Mapping[str, str] | None = None,
) -> Path:
    """Write readings to a Parquet file; returns its path."""
    with Writer(path, groups, kinds) as writer:
        for chunk in chunks:
            writer.add(chunk)
    return writer.path


def target(name: str, path: str | Path, example: str) -> Path:
    """Return a path to write to; it ends like `example`, and its folder exists.

    Raises
    ------
    BadValue
        If it cannot be; `name` is what errors call it.
    """
    if not isinstance(path, (str, Path)):
        raise BadValue(name, path, "is no path", f"Write {example!r}.")
    found, suffix = Path(path), Path(example).suffix
    if "\0" in str(found):
        raise BadValue(name, str(path), "holds a null character", f"Write {example!r}.")
    if found.suffix != suffix:
        raise BadValue(name, str(path), f"does not end in {suffix}", f"Write {example!r}.")
    if not isdir(found.parent):  # unlike Path.is_dir, it takes a name that is too long for a no
        raise BadValue(name, str(path), "is in a folder that does not exist", "Make it first.")
    return found


@contextmanager
def named_when_complete(name: str, path: Path) -> Iterator[Path]:
    """Give a path to write to; what is there takes the name of `path` when all went well.

    Parameters
    ----------
    name : str
        What errors call the path.
    path : Path

    Raises
    ------
    BadValue
        If the system cannot write it; nothing is left then.
    """
    part = path.with_name(path.name + ".part")
    try:
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        yield part
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise unwritable(name, path, error) from None


def unwritable(name: str, path: Path, error: OSError) -> BadValue:
    """Return the error for a path that the system could not write."""
    why = (error.strerror or " ".join(str(error).split()))[:120]
    return BadValue(name, str(path), f"cannot be written: {why[:1].lower()}{why[1:]}",
                    "Give a file in a folder that you may write to, with room left.")


class Writer:
    """Writes a Parquet file as readings come, a row group at a time, with flat memory.

    The file takes its name when it is complete; until then it is `<name>.part`.
    """

    def __init__(self, path: str | Path, groups: Sequence[Group],
                 kinds: Mapping[str, str] | None = None) -> None:
        self.path = target("to", path, "x.parquet")
        self._part = self.path.with_name(self.path.name + ".part")
        self._try_out()
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
        readings = readings.sent()
        if not len(readings):
            return
        self._waiting.append(readings)
        self._waiting_rows += len(readings)
        if self._waiting_rows >= ROWS_PER_GROUP:
            self.flush()

    def _try_out(self) -> None:
        # Better now than after hours: what the system refuses to open, it refuses at once.
        try:
            was_there = self._part.exists()
            if self.path.is_dir():
                raise IsADirectoryError(EISDIR, "it is a folder")
            with self._part.open("ab"):
                pass
            if not was_there:
                self._part.unlink()
        except OSError as error:
            raise unwritable("to", self.path, error) from None

    def flush(self) -> None:
        """Write what waits.

        Raises
        ------
        BadValue
            If the system cannot write it.
        """
        try:
            self._flush()
        except OSError as error:
            raise unwritable("to", self.path, error) from None

    def _flush(self) -> None:
        chunks, self._waiting, self._waiting_rows = self._waiting, [], 0
        if self._tables is None:
            kinds = with_declared(self._kinds, chunks)
            check_columns(self._groups, chunks, kinds)
            self._tables = Tables(self._groups, kinds)
            self._file = parquet_module().ParquetWriter(
                self._part, self._tables.schema, compression="zstd",
                write_statistics=["time", "seq"],
            )
        if chunks:
            made = [self._tables.table(chunk) for chunk in chunks]
            joined = _pyarrow().concat_tables(made).unify_dictionaries()
            self._file.write_table(joined, row_group_size=len(joined))
            self.rows += len(joined)

    def close(self) -> None:
        """Write what waits and give the file its name."""
        self.flush()
        try:
            self._file.close()
            self._part.replace(self.path)
        except OSError as error:
            raise unwritable("to", self.path, error) from None

    def abandon(self) -> None:
        """Leave what is written under its temporary name."""
        if self._file is not None:
            with suppress(OSError):
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

    try:
        table = parquet_module().read_table(path)
    except FileNotFoundError:
        raise SavedRunError(path, "the readings of this run were written to it, and it is gone",
                            "Put it back, or run again.") from None
    except (OSError, ValueError, NotImplementedError):
        raise SavedRunError(path, "the readings in it cannot be read",
                            "Put back what the run wrote, or run again.") from None
    return readings_of_table(table, groups, path)
