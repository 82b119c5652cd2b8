"""What the engine hands on: readings in columns, many rows at a time.

A `Group` is the fixed part of devices that were added together (ids, type, labels). `Readings`
are rows of one group: which device, which grid tick, when, and one `Column` per field. Rows that
faults may have touched carry `Marks`: what was active, what changed them, whether and how late they
left. Engine, capture, digest and publishers all speak this and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["float", "int", "bool", "text", "json"]
Ints: TypeAlias = npt.NDArray[np.int64]

NOTIP = "notip"  # the protocol of gateways' sensors
RESERVED = ("time", "device_id", "device_type", "seq", "faults", "hit")
WIRE_COLUMNS = ("sub", "copy", "withheld", "acked", "latency")


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
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
    protocol : str
        What their profile says that they speak; empty if there is none.
    """

    index: int
    device_type: str
    ids: Sequence[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    protocol: str = ""

    def __len__(self) -> int:
        return len(self.ids)


def sensor_of(protocol: str, labels: Mapping[str, str], name: str) -> str:
    """Return the sensor that a device is, of a gateway; empty if it is none.

    Sensors of gateways are devices that speak NoTIP, with `<gateway>:<sensor>` as their id, or
    template of ids, and a label `sensor` that says the same.

    Examples
    --------
    >>> sensor_of("notip", {"sensor": "temperature"}, "gw-1:temperature")
    'temperature'
    """
    if protocol != NOTIP:
        return ""
    sensor = labels.get("sensor", "")
    return sensor if sensor and name.endswith(f":{sensor}") else ""


def gateways_of(group: Group) -> list[str] | None:
    """Return the name of each device's gateway; None where devices are on their own."""
    sensor = sensor_of(group.protocol, group.labels, group.ids[0]) if len(group) else ""
    return [name[: -len(sensor) - 1] for name in group.ids] if sensor else None


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
class Marks:
    """What faults did to rows, one entry per row; None stands for zeros.

    `faults`, `hit` and `withheld` are codes into `names`; code 0 is the empty text.

    Attributes
    ----------
    names : tuple of str
        `""` first; causes joined by `+`, such as `"drift+packet_loss"`.
    faults : int16 array
        What was active.
    hit : int16 array
        What changed the row: a value, its time, how often or when it left, or that it never did.
    withheld : int16 array or None
        Why the row never left the device's link; 0 if it did.
    sub : int32 array or None
        The reading within tick `seq`: 0 on the grid, from 1 between ticks.
    copy : int32 array or None
        0, or from 1 for the same reading sent again.
    delay_us : int64 array or None
        How much later than its time it left the device's link.
    shift_us : int64 array or None
        How far the published time is from the true one.
    truth : mapping of field name to Column
        The values before the faults, of the fields that any row here was changed in.
    """

    names: tuple[str, ...]
    faults: npt.NDArray[np.int16]
    hit: npt.NDArray[np.int16]
    withheld: npt.NDArray[np.int16] | None = None
    sub: npt.NDArray[np.int32] | None = None
    copy: npt.NDArray[np.int32] | None = None
    delay_us: Ints | None = None
    shift_us: Ints | None = None
    truth: Mapping[str, Column] = field(default_factory=dict)

    def take(self, rows: Any) -> Marks:
        """Return the marks of a selection of rows (a slice, a mask or indices)."""
        def part(array: Any) -> Any:
            return None if array is None else array[rows]

        truth = {name: column.take(rows) for name, column in self.truth.items()}
        return Marks(self.names, self.faults[rows], self.hit[rows], part(self.withheld),
                     part(self.sub), part(self.copy), part(self.delay_us), part(self.shift_us),
                     truth)

    @property
    def size_bytes(self) -> int:
        """Bytes held by the arrays."""
        arrays = (self.faults, self.hit, self.withheld, self.sub, self.copy, self.delay_us,
                  self.shift_us, *(column.values for column in self.truth.values()))
        return sum(array.nbytes for array in arrays if array is not None)


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
    marks : Marks or None
        None: no fault was near, and every row left on time.
    """

    group: Group
    device: npt.NDArray[np.int32]
    seq: Ints
    time_us: Ints
    columns: Mapping[str, Column]
    grid: tuple[int, int] | None = None
    marks: Marks | None = None

    def __len__(self) -> int:
        return len(self.seq)

    def take(self, rows: Any) -> Readings:
        """Return a selection of the rows (a slice, a mask or indices)."""
        columns = {name: column.take(rows) for name, column in self.columns.items()}
        marks = None if self.marks is None else self.marks.take(rows)
        return Readings(
            self.group, self.device[rows], self.seq[rows], self.time_us[rows], columns, None, marks
        )

    def sent(self) -> Readings:
        """Return the rows that left the device's link."""
        if self.marks is None or self.marks.withheld is None or not self.marks.withheld.any():
            return self
        return self.take(self.marks.withheld == 0)

    @property
    def size_bytes(self) -> int:
        """Bytes held by the arrays."""
        total = self.device.nbytes + self.seq.nbytes + self.time_us.nbytes
        total += 0 if self.marks is None else self.marks.size_bytes
        return total + sum(column.values.nbytes for column in self.columns.values())
