"""What an audit found as tables: per reading, per device, per window of a fault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iotsim.audit_match import (
    BROKERS,
    CLASSES,
    CORRUPTED,
    IN_FLIGHT,
    REFUSED,
    SIMULATORS,
    UNKNOWN,
    WHOSE,
    Evidence,
    Joined,
)
from iotsim.audit_sent import Sent
from iotsim.errors import BadValue, UnknownName
from iotsim.faults.base import NEVER_US, Window
from iotsim.readings import Ints

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.engine.simulation import Simulation

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]

ROWS_MAX = 5_000_000
COUNTS = ("sent", "received", "lost_by_simulator", "lost_in_flight", "lost_by_broker", "refused",
          "unknown", "expected", "duplicated", "recovered", "out_of_order", "corrupted", "late")
QUANTILES = {"latency_p50": 0.5, "latency_p99": 0.99, "latency_max": 1.0}
ALSO = ("out_of_order", "late")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What became of each reading, as columns.

    Attributes
    ----------
    slot, seq, sub, copy, time_us, at_us, left_us : int64 arrays
        As in `audit_sent.Sent`.
    received_us : int64 array
        When the first of it came (wall clock), 0 if none did or nobody knows.
    extra : int64 array
        How many came beyond the first.
    latency_s : float array
    code, whose : uint8 arrays
        Numbers into `CLASSES` and `WHOSE`.
    withheld, refused : int64 arrays
        Numbers into `causes` and `reasons`, 0 if it was not.
    acknowledged, undecided, came, faulty, overtaken, late : bool arrays
    """

    run_id: str
    history: Simulation
    sent: Sent
    causes: Sequence[str]
    reasons: Sequence[str]
    rows: Ints
    slot: Ints
    seq: Ints
    sub: Ints
    copy: Ints
    time_us: Ints
    at_us: Ints
    left_us: Ints
    received_us: Ints
    extra: Ints
    latency_s: Floats
    code: Codes
    whose: Codes
    withheld: Ints
    refused: Codes
    acknowledged: Mask
    undecided: Mask
    came: Mask
    faulty: Mask
    overtaken: Mask
    late: Mask

    @classmethod
    def of(
        cls, sent: Sent, rows: Ints, history: Simulation, *, found: Joined, evidence: Evidence,
        reasons: Sequence[str], **columns: Any,
    ) -> Table:
        """Return the table of some rows; `columns` are those that `sent` does not have."""
        names = ("slot", "seq", "sub", "copy", "time_us", "at_us", "left_us", "withheld", "faulty")
        whole = {
            **{name: getattr(sent, name) for name in names}, **columns,
            "acknowledged": evidence.acknowledged, "undecided": evidence.undecided,
            "came": found.arrival_of >= 0, "extra": np.maximum(found.copies - 1, 0),
        }
        return cls(sent.run_id, history, sent, sent.causes, reasons, rows,
                   **{name: column[rows] for name, column in whole.items()})

    def __len__(self) -> int:
        return len(self.rows)

    def flags(self) -> dict[str, Mask | Ints]:
        """Return for each of `COUNTS` what each row adds to it."""
        left = self.withheld == 0
        return {
            "sent": left,
            "received": self.came & left,
            "lost_by_simulator": self.whose == SIMULATORS,
            "lost_in_flight": self.whose == IN_FLIGHT,
            "lost_by_broker": self.whose == BROKERS,
            "refused": self.code == REFUSED,
            "unknown": self.code == UNKNOWN,
            "expected": ~left,
            "duplicated": self.extra,
            "recovered": self.came & left & self.undecided,
            "out_of_order": self.overtaken,
            "corrupted": self.code == CORRUPTED,
            "late": self.late & left,
        }

    def totals(self) -> dict[str, int]:
        """Return every count over all rows."""
        return {name: int(values.sum()) for name, values in self.flags().items()}

    def refusals(self) -> dict[str, int]:
        """Return why readings were refused, and how many."""
        counts = np.bincount(self.refused[self.code == REFUSED], minlength=len(self.reasons))
        return {_reason(self.reasons[i]): int(counts[i]) for i in np.flatnonzero(counts).tolist()}

    @property
    def names(self) -> list[str]:
        """The devices' ids, by slot."""
        return self.history.population.ids

    def windows(self) -> Iterator[tuple[Window, Ints]]:
        """Yield every window of a fault, with its rows."""
        order = np.argsort(self.at_us, kind="stable")
        at_us = self.at_us[order]
        for window in self.history.deeds.windows:
            end_us = int(window.ends_us.max(initial=window.begin_us))
            low, high = np.searchsorted(at_us, [window.begin_us, end_us]).tolist()
            rows = order[low:high]
            place = window.members(self.slot[rows])
            inside = (place >= 0) & (self.at_us[rows] < window.ends_us[place])
            yield window, np.asarray(rows[inside])


def by_device(table: Table) -> pd.DataFrame:
    """Return the counts per device; see `Audit.frame`."""
    import pandas as pd

    slots, place = np.unique(table.slot, return_inverse=True)
    place = place.reshape(-1)
    names = table.names
    types = _types(table.history)
    data: dict[str, Any] = {
        "device_id": [names[slot] for slot in slots.tolist()],
        "device_type": pd.Categorical([types[slot] for slot in slots.tolist()]),
    }
    for name, values in table.flags().items():
        counted = np.bincount(place, weights=values.astype(np.float64), minlength=len(slots))
        data[name] = counted.astype(np.int64)
    return pd.DataFrame({**data, **quantiles(place, table.latency_s, len(slots))})


def by_fault(table: Table) -> pd.DataFrame:
    """Return the counts per window of a fault, and without any; see `Audit.by_fault`."""
    import pandas as pd

    flags = table.flags()
    places, parts, heads = [], [], []
    for i, (window, rows) in enumerate(table.windows()):
        until_us = int(window.ends_us.max(initial=window.begin_us))
        heads.append((window.name, window.begin_us, until_us,
                      len(np.unique(table.slot[rows]))))
        places.append(np.full(len(rows), i, dtype=np.int64))
        parts.append(rows)
    free = np.flatnonzero(~table.faulty)
    heads.append(("no fault", NEVER_US, NEVER_US, len(np.unique(table.slot[free]))))
    places.append(np.full(len(free), len(heads) - 1, dtype=np.int64))
    parts.append(free)
    place, rows = np.concatenate(places), np.concatenate(parts)
    names, begins, untils, devices = (list(column) for column in zip(*heads, strict=True))
    data: dict[str, Any] = {"fault": names, "at": _times(np.array(begins, np.int64)),
                            "until": _times(np.array(untils, np.int64)), "devices": devices}
    for name, values in flags.items():
        counted = np.bincount(place, weights=values[rows].astype(np.float64),
                              minlength=len(heads))
        data[name] = counted.astype(np.int64)
    return pd.DataFrame({**data, **quantiles(place, table.latency_s[rows], len(heads))})


def readings(table: Table, only: str | None) -> pd.DataFrame:
    """Return what became of each reading; see `Audit.readings`."""
    import pandas as pd

    rows = _wanted(table, only)
    if len(rows) > ROWS_MAX:
        raise BadValue("readings", f"{len(rows):,}", "are too many for a frame",
                       "Ask for some: readings('lost'), or audit(…, where='id=pump-0001').")
    rows = rows[np.lexsort((table.copy[rows], table.sub[rows], table.seq[rows],
                            table.slot[rows], table.time_us[rows]))]
    acked = np.where(table.acknowledged[rows], 1, np.where(table.refused[rows] > 0, 0, -1))
    return pd.DataFrame({
        "id": table.sent.ids(table.rows[rows], table.names),
        "device_id": pd.Categorical([table.names[slot] for slot in table.slot[rows].tolist()]),
        "seq": table.seq[rows],
        "sub": table.sub[rows],
        "copy": table.copy[rows],
        "time": _times(table.time_us[rows]),
        "left": _times(np.where(table.withheld[rows] == 0, table.left_us[rows], NEVER_US)),
        "acked": pd.arrays.BooleanArray(acked == 1, acked < 0),
        "received": _times(np.where(table.received_us[rows] > 0, table.received_us[rows],
                                    NEVER_US)),
        "copies": table.extra[rows] + table.came[rows],
        "latency": table.latency_s[rows],
        "class": _categorical(table.code[rows], CLASSES),
        "whose": _whose(table, rows),
    })


def quantiles(place: Ints, values: Floats, groups: int) -> Mapping[str, Floats]:
    """Return quantiles of values per group (the nearest of them), NaN where there is none.

    Examples
    --------
    >>> found = quantiles(np.array([0, 0, 1]), np.array([1.0, 3.0, np.nan]), 2)
    >>> {name: column.tolist() for name, column in found.items()}
    {'latency_p50': [1.0, nan], 'latency_p99': [3.0, nan], 'latency_max': [3.0, nan]}
    """
    there = np.flatnonzero(~np.isnan(values))
    place, values = place[there], values[there]
    values = values[np.lexsort((values, place))]
    counts = np.bincount(place, minlength=groups)
    begins = np.cumsum(counts) - counts
    some = np.flatnonzero(counts)
    found = {}
    for name, share in QUANTILES.items():
        column = np.full(groups, np.nan)
        nth = np.ceil(share * counts[some]).astype(np.int64) - 1
        column[some] = values[begins[some] + nth]
        found[name] = column
    return found


def _wanted(table: Table, only: str | None) -> Ints:
    if only is None:
        return np.arange(len(table))
    if only in ALSO:
        return np.flatnonzero(table.flags()[only])
    if only not in CLASSES:
        raise UnknownName("class of readings", only, (*CLASSES, *ALSO))
    return np.flatnonzero(table.code == CLASSES.index(only))


def _whose(table: Table, rows: Ints) -> Any:
    names = list(dict.fromkeys([*WHOSE, *table.causes, *map(_reason, table.reasons)]))
    place = {name: i for i, name in enumerate(names)}
    whose = np.array([place[name] for name in WHOSE])[table.whose[rows]]
    causes = np.array([place[name] for name in table.causes])[table.withheld[rows]]
    found = np.where(table.withheld[rows] > 0, causes, whose)
    if table.reasons:
        reasons = np.array([place[_reason(name)] for name in table.reasons])
        found = np.where(table.code[rows] == REFUSED, reasons[table.refused[rows]], found)
    return _categorical(found, names).remove_unused_categories()


def _categorical(codes: Any, names: Sequence[str]) -> Any:
    import pandas as pd

    categories: Any = list(names)
    return pd.Categorical.from_codes(codes, categories)


def _reason(outcome: str) -> str:
    return outcome.removeprefix("refused: ")


def _types(history: Simulation) -> list[str]:
    types = [""] * len(history.population)
    for group, slots in zip(history.population.groups, history.population.slots, strict=True):
        for slot in slots.tolist():
            types[slot] = group.device_type
    return types


def _times(time_us: Ints) -> Any:
    import pandas as pd

    stamps = np.where(time_us >= NEVER_US, np.datetime64("NaT", "us"),
                      time_us.astype("datetime64[us]"))
    return pd.DatetimeIndex(stamps).tz_localize("UTC")


