"""What the engine hands on: readings in columns, many rows at a time.

A `Group` is the fixed part of devices that were added together (ids, type, labels). `Readings`
are rows of one group: which device, which grid tick, when, and one `Column` per field. Engine,
capture, digest and publishers all speak this and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["float", "int", "bool", "text", "json"]
Ints: TypeAlias = npt.NDArray[np.int64]

RESERVED = ("time", "device_id", "device_type", "seq", "faults", "hit")
WIRE_COLUMNS = ("sub", "copy", "withheld", "acked", "latency")


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Devices that were added together: one type, one set of labels.

    Attributes
    ----------
    index : int
        Position of the group in its fleet.
    device_type : str
    ids : sequence of str
        One id per device; a row's `device` is an index into it.
    labels : mapping of str to str
        The labels of every device of the group, without `device_type`.
    """

    index: int
    device_type: str
    ids: Sequence[str]
    labels: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """The values of one field, one per row.

    Attributes
    ----------
    kind : {"float", "int", "bool", "text", "json"}
    values : array, shape (rows,)
        float64 (NaN is null), int64, bool, or int32 codes into `categories` (-1 is null).
    categories : tuple
        What the codes of text and json stand for.
    present : bool array or None
        Rows in which the field exists at all; None means in all of them.
    """

    kind: Kind
    values: npt.NDArray[Any]
    categories: tuple[Any, ...] = ()
    present: npt.NDArray[np.bool_] | None = None

    def take(self, rows: Any) -> Column:
        """Return the column of a selection of rows (a slice, a mask or indices)."""
        present = None if self.present is None else self.present[rows]
        return Column(self.kind, self.values[rows], self.categories, present)


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """Rows of one group, in time order per device.

    Attributes
    ----------
    group : Group
    device : int32 array, shape (rows,)
        Index into `group.ids`.
    seq : int64 array, shape (rows,)
        The grid tick n.
    time_us : int64 array, shape (rows,)
        Published time, microseconds since 1970 (UTC).
    columns : mapping of field name to Column
    grid : (ticks, devices) or None
        Set when the rows are a full grid, tick after tick: row = tick · devices + device.
    """

    group: Group
    device: npt.NDArray[np.int32]
    seq: Ints
    time_us: Ints
    columns: Mapping[str, Column]
    grid: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.seq)

    def take(self, rows: Any) -> Readings:
        """Return a selection of the rows (a slice, a mask or indices)."""
        columns = {name: column.take(rows) for name, column in self.columns.items()}
        return Readings(
            self.group, self.device[rows], self.seq[rows], self.time_us[rows], columns
        )

    @property
    def size_bytes(self) -> int:
        """Bytes held by the arrays."""
        total = self.device.nbytes + self.seq.nbytes + self.time_us.nbytes
        return total + sum(column.values.nbytes for column in self.columns.values())
