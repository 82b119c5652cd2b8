"""Readings through the faults that reach them: what was true becomes what was published.

The faults of values come first, then those of the device, then those of the link; within a layer
they stack in order of injection. A row that a disconnect withheld is nothing but that: what other
faults did to it is undone. A row that it stored keeps its values, and nothing else on the link
reaches it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from iotsim.faults.base import Draft, Span, Window, in_order
from iotsim.faults.cells import restored
from iotsim.profiles import Profile
from iotsim.readings import Ints, Marks, Readings
from iotsim.signals.resolution import Resolution

Bits = npt.NDArray[np.int64]
_ONLY_WHEN_SENT = {"disconnect", "duplicate", "latency_spike", "reorder"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What faults must know of the fields of a profile."""

    interval_us: int = 0
    spans: Mapping[str, Span] = field(default_factory=dict)
    resolutions: Mapping[str, Resolution] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile) -> Facts:
        """Return the facts of a profile."""
        spans = {entry.name: entry.signal.span for entry in profile.fields}
        return cls(
            profile.interval_us,
            {name: span for name, span in spans.items() if span is not None},
            {entry.name: entry.resolution for entry in profile.fields
             if entry.resolution is not None},
        )


def dressed(
    readings: Readings, at_us: Ints, slots: Ints, subs: Ints | None, windows: Sequence[Window],
    facts: Facts,
) -> Readings:
    """Return readings as they were published, with their marks.

    Parameters
    ----------
    readings : Readings
        As they truly were.
    at_us, slots : int64 arrays, shape (rows,)
        When each was taken, and by which device.
    subs : int64 array or None
        The reading within its tick.
    windows : sequence of Window
        In order of injection; those that cannot reach these rows are passed over.
    facts : Facts
    """
    if not len(readings):
        return readings
    first_us, last_us = int(at_us.min()), int(at_us.max())
    near = [window for window in windows if window.reaches(first_us, last_us)]
    if not near and subs is None:
        return readings
    draft = Draft(slots, readings.seq, np.zeros_like(at_us) if subs is None else subs, at_us,
                  readings.time_us, dict(readings.columns), facts.spans, facts.resolutions,
                  facts.interval_us, 0 if readings.grid is None else readings.grid[1])
    names = sorted({window.name for window in near})  # labels must not go by how time was cut
    bits = {name: np.int64(1) << np.int64(i) for i, name in enumerate(names)}
    faults, hit = np.zeros(len(readings), np.int64), np.zeros(len(readings), np.int64)
    touched = subs is not None
    for window in in_order(near):
        active, running = window.active(draft)
        if len(active):
            touched = True
            changed = window.fault.change(draft, active)
            over = window.wear(draft, active)
            if over is not None:
                running &= ~over
            faults[active.rows[running]] |= bits[window.name]
            hit[active.rows[changed]] |= bits[window.name]
    if not touched:
        return readings
    _undo_where_disconnected(draft, readings, hit, bits)
    return _finished(readings, draft, names, faults, hit)


def _undo_where_disconnected(
    draft: Draft, readings: Readings, hit: Bits, bits: Mapping[str, np.int64]
) -> None:
    gone = draft.withheld > 0
    if not gone.any():
        return
    draft.delay_us[gone] = 0
    draft.copies[gone] = 0
    for name in bits.keys() & _ONLY_WHEN_SENT:  # a row that never left was not late, nor twice
        hit[gone] &= ~bits[name]
    if "disconnect" not in draft.causes:
        return
    rows = np.flatnonzero(draft.withheld == draft.causes.index("disconnect"))
    hit[rows] = bits["disconnect"]
    if draft.time_us is not readings.time_us:
        draft.time_us = draft.time_us.copy()
        draft.time_us[rows] = readings.time_us[rows]
    for name, column in readings.columns.items():
        if draft.columns[name] is not column:
            draft.columns[name] = restored(draft.columns[name], column, rows)


def _finished(
    readings: Readings, draft: Draft, names: Sequence[str], faults: Bits, hit: Bits
) -> Readings:
    known = [""]
    words: dict[int, int] = {0: 0}

    def codes(masks: Bits) -> npt.NDArray[np.int16]:
        found, place = np.unique(masks, return_inverse=True)
        made = []
        for mask in found.tolist():
            if mask not in words:
                text = "+".join(name for i, name in enumerate(names) if mask >> i & 1)
                words[mask] = _place(known, text)
            made.append(words[mask])
        return np.array(made, dtype=np.int16)[place.reshape(-1)]

    fault_codes, hit_codes = codes(faults), codes(hit)
    places = [_place(known, cause) for cause in draft.causes]
    withheld = np.array(places, dtype=np.int16)[draft.withheld]
    truth = {name: column for name, column in readings.columns.items()
             if draft.columns[name] is not column}
    shift_us = draft.time_us - readings.time_us
    marks = Marks(
        tuple(known), fault_codes, hit_codes,
        withheld=withheld if withheld.any() else None,
        sub=draft.sub.astype(np.int32) if draft.sub.any() else None,
        delay_us=draft.delay_us if draft.delay_us.any() else None,
        shift_us=shift_us if shift_us.any() else None,
        truth=truth,
    )
    made = Readings(readings.group, readings.device, readings.seq, draft.time_us, draft.columns,
                    readings.grid, marks)
    return _with_copies(made, draft.copies) if draft.copies.any() else made


def _place(known: list[str], text: str) -> int:
    if text not in known:
        known.append(text)
    return known.index(text)


def _with_copies(readings: Readings, copies: npt.NDArray[np.int32]) -> Readings:
    # Each copy stands right after its original; only the copies are of the fault's making.
    rows = np.repeat(np.arange(len(readings)), copies + 1)
    begins = np.cumsum(copies + 1) - (copies + 1)
    number = (np.arange(len(rows)) - np.repeat(begins, copies + 1)).astype(np.int32)
    made = readings.take(rows)
    marks = made.marks
    assert marks is not None
    known = list(marks.names)
    whole, single = _without_duplicate(known, marks.hit)
    hit = np.where(number > 0, whole, single).astype(np.int16)
    copied = Marks(tuple(known), marks.faults, hit, marks.withheld, marks.sub, number,
                   marks.delay_us, marks.shift_us, marks.truth)
    return Readings(made.group, made.device, made.seq, made.time_us, made.columns, None, copied)


def _without_duplicate(
    known: list[str], hit: npt.NDArray[np.int16]
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    places = []
    for text in tuple(known):
        others = [name for name in text.split("+") if name != "duplicate"]
        places.append(_place(known, "+".join(others)))
    return hit, np.array(places, dtype=np.int16)[hit]
