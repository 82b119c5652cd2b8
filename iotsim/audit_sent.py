"""What a run says that it sent, reading by reading: one row per reading and publisher.

The model is the witness: the readings that are held, when they left their device's link, and what
brokers said of each message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from iotsim.destinations import Destination, Form
from iotsim.errors import BadValue
from iotsim.faults.base import NEVER_US
from iotsim.progress import counted
from iotsim.publishers.payload import Encoder, message_ids
from iotsim.readings import Group, Ints, Readings
from iotsim.selectors import Where, select

if TYPE_CHECKING:
    from iotsim.engine.simulation import Simulation
    from iotsim.result import Result

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows of one group that went to one publisher; `destination` is None if to none that counts.

    Attributes
    ----------
    readings : Readings
    destination : Destination or None
    mine, unheard : bool arrays
        Which rows the audit is about, and which it would be if anybody listened.
    first : int
        The row of the first of them.
    """

    readings: Readings
    destination: Destination | None
    mine: Mask
    unheard: Mask
    first: int


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """Every reading that is held, as columns; see `Piece` for what a row is.

    Attributes
    ----------
    pieces : sequence of Piece
    run_id : str
    slot, seq, sub, copy, time_us : int64 arrays
    at_us : int64 array
        When it was taken: what windows of faults go by.
    left_us : int64 array
        When it left its device's link, in simulated time.
    lane : int64 array
        Which publisher, −1 for none.
    withheld : int64 array
        A number into `causes`, 0 if it left.
    faulty : bool array
        Whether any fault was active.
    mine : bool array
    hashes : int64 array
        Of the message ids.
    unheard : int
        How many of those that left nobody listened to.
    """

    pieces: Sequence[Piece]
    run_id: str
    causes: Sequence[str]
    slot: Ints
    seq: Ints
    sub: Ints
    copy: Ints
    time_us: Ints
    at_us: Ints
    left_us: Ints
    lane: Ints
    withheld: Ints
    faulty: Mask
    mine: Mask
    hashes: Ints
    unheard: int

    def __len__(self) -> int:
        return len(self.slot)

    def payloads(
        self, rows: Ints, field: str | None = None
    ) -> Iterator[tuple[Ints, list[bytes], Form | None]]:
        """Yield what some rows (ascending) were as messages, in parts: the rows, their bytes.

        The third is how to compare them with what came, where that is not equal byte for byte.
        """
        encoders: dict[str, Encoder] = {}
        for piece in self.pieces:
            low, high = np.searchsorted(rows, [piece.first, piece.first + len(piece.readings)])
            if low == high:
                continue
            form = None if piece.destination is None else piece.destination.form
            wanted, readings = rows[low:high], piece.readings
            if len(wanted) < len(readings):
                readings = readings.take(wanted - piece.first)
            if form is not None:
                yield wanted, form.bodies(readings), form
                continue
            name = field
            if name is None:
                name = "" if piece.destination is None else piece.destination.audit_field
            if name not in encoders:
                encoders[name] = Encoder(self.run_id, lambda _group, _i: "", name)
            yield wanted, list(encoders[name].encode(readings).payloads), None

    def ids(self, rows: Ints, names: Sequence[str]) -> list[str]:
        """Return the message ids of some rows; `names` are the devices' ids by slot."""
        run = self.run_id
        keys = zip(self.slot[rows].tolist(), self.seq[rows].tolist(), self.sub[rows].tolist(),
                   self.copy[rows].tolist(), strict=True)
        return [f"{run}/{names[i]}/{n}.{j}/{k}" if j else f"{run}/{names[i]}/{n}/{k}"
                for i, n, j, k in keys]


def sent_of(
    result: Result, destinations: Sequence[Destination], where: Where,
    listens: Callable[[str], object] | None = None, siblings: Sequence[Destination] = (),
) -> Sent:
    """Return what a run sent; the audit is about devices whose topics somebody listens to.

    What went to the siblings, others at the same place, is there too, and not what it is about.

    Raises
    ------
    BadValue
        If it holds no readings.
    """
    history = result.history
    chunks = result.capture.chunks()
    if history is None or not chunks:
        raise BadValue("result", result.name, "holds no readings to compare",
                       "Run it with capture='all', or for long enough.")
    deeds = history.deeds
    wanted = select(where, list(result.groups)).masks
    causes: dict[str, int] = {"": 0}
    parts: list[tuple[Ints, ...]] = []
    pieces: list[Piece] = []
    names: dict[int, list[str]] = {}
    heard: dict[tuple[int, int], Mask] = {}
    for chunk in counted(f"audit of {result.name}", chunks):
        whole = deeds.as_left(chunk, result.end_us)
        for readings, destination in _apart(whole, [*destinations, *siblings]):
            chosen = wanted.get(readings.group.index)
            mine = np.zeros(len(readings), dtype=np.bool_)
            unheard = mine
            if destination in destinations and destination is not None and chosen is not None:
                mine = chosen[readings.device]
                if listens is not None:
                    key = destination.number, readings.group.index
                    if key not in heard:
                        heard[key] = _heard(destination, readings.group, history, listens)
                    listened = heard[key][readings.device]
                    mine, unheard = mine & listened, mine & ~listened
            first = pieces[-1].first + len(pieces[-1].readings) if pieces else 0
            pieces.append(Piece(readings, destination, mine, unheard, first))
            lane = -1 if destination is None else destination.number
            slots = history.population.slots[readings.group.index][readings.device]
            at_us = deeds.grids.at_us(readings, slots, _true_us(readings))
            ids = message_ids(readings, _names(readings.group, result.run_id, names))
            parts.append((slots, at_us, np.full(len(readings), lane, np.int64),
                          np.fromiter(map(hash, ids), np.int64, len(ids)),
                          *_marked(readings, causes)))
    return _sent(result.run_id, pieces, list(causes), parts)


def topics_of(sent: Sent, result: Result) -> list[str]:
    """Return under which topic each row went; empty for those that went to none that counts."""
    assert result.history is not None, "see sent_of"
    members = result.history.population.members
    known: dict[tuple[int, int], list[str]] = {}
    found: list[str] = []
    for piece in sent.pieces:
        group, where = piece.readings.group, piece.destination
        if where is None:
            found += [""] * len(piece.readings)
            continue
        key = where.number, group.index
        if key not in known:
            known[key] = [where.outlet.topic_of(members[group.index], group, i)
                          for i in range(len(group))]
        found += map(known[key].__getitem__, piece.readings.device.tolist())
    return found


def _heard(
    destination: Destination, group: Group, history: Simulation,
    listens: Callable[[str], object],
) -> Mask:
    member, mask = history.population.members[group.index], destination.masks[group.index]
    found = np.zeros(len(group), dtype=np.bool_)
    for i in np.flatnonzero(mask).tolist():
        found[i] = bool(listens(destination.outlet.topic_of(member, group, i)))
    return found


def _sent(
    run_id: str, pieces: list[Piece], causes: list[str], parts: list[tuple[Ints, ...]]
) -> Sent:
    slot, at_us, lane, hashes, sub, copy, left_us, withheld, faulty = (
        np.concatenate(columns) for columns in zip(*parts, strict=True))
    whole = [piece.readings for piece in pieces]
    unheard = np.concatenate([piece.unheard for piece in pieces]) & (withheld == 0)
    return Sent(
        pieces, run_id, causes, slot, np.concatenate([one.seq for one in whole]), sub, copy,
        np.concatenate([one.time_us for one in whole]), at_us, left_us, lane, withheld,
        faulty.astype(np.bool_), np.concatenate([piece.mine for piece in pieces]), hashes,
        int(unheard.sum()),
    )


def _apart(
    readings: Readings, destinations: Sequence[Destination]
) -> Iterator[tuple[Readings, Destination | None]]:
    # A reading that goes to two publishers is two rows; one that goes to none is one, too: it may
    # arrive all the same, and is then not unexpected.
    here = np.zeros(len(readings), dtype=np.bool_)
    for destination in destinations:
        mask = destination.masks.get(readings.group.index)
        if mask is not None:
            rows = mask[readings.device]
            here |= rows
            if rows.all():
                yield readings, destination
            elif rows.any():
                yield readings.take(rows), destination
    if not here.all():
        yield (readings.take(~here) if here.any() else readings), None


def _names(group: Group, run_id: str, made: dict[int, list[str]]) -> list[str]:
    if group.index not in made:
        made[group.index] = [f"{run_id}/{name}" for name in group.ids]
    return made[group.index]


def _true_us(readings: Readings) -> Ints:
    marks = readings.marks
    if marks is None or marks.shift_us is None:
        return readings.time_us
    return np.asarray(readings.time_us - marks.shift_us)


def _marked(readings: Readings, causes: dict[str, int]) -> tuple[Ints, ...]:
    marks, rows = readings.marks, len(readings)
    left_us, none = _true_us(readings), np.zeros(rows, dtype=np.int64)
    if marks is None:
        return none, none, left_us, none, none
    if marks.delay_us is not None:
        left_us = np.where(marks.delay_us >= NEVER_US // 2, NEVER_US, left_us + marks.delay_us)
    withheld = none
    if marks.withheld is not None:
        codes = [causes.setdefault(name, len(causes)) for name in marks.names]
        withheld = np.array(codes, dtype=np.int64)[marks.withheld]
    return (none if marks.sub is None else marks.sub.astype(np.int64),
            none if marks.copy is None else marks.copy.astype(np.int64),
            left_us, withheld, (marks.faults != 0).astype(np.int64))


def departure_order(sent: Sent) -> Ints:
    """Return for each row its place in the order of leaving, device by device."""
    order = np.lexsort((sent.copy, sent.sub, sent.seq, sent.left_us, sent.lane, sent.slot))
    place = np.empty(len(sent), dtype=np.int64)
    place[order] = np.arange(len(sent))
    return place


def wall_us_of(time_us: Ints, paces: Sequence[tuple[int, int, float]]) -> npt.NDArray[np.float64]:
    """Return when simulated instants were, by the wall clock; NaN where time was virtual.

    Examples
    --------
    >>> wall_us_of(np.array([5, 20, 40]), [(10, 1000, 1.0), (30, 1020, 2.0)]).tolist()
    [nan, 1010.0, 1025.0]
    """
    found = np.full(len(time_us), np.nan)
    if not paces:
        return found
    from_us, wall_us, speed = (np.array(column) for column in zip(*paces, strict=True))
    place = np.searchsorted(from_us, time_us, side="right") - 1
    paced = np.isfinite(speed) & (speed > 0)
    rows = np.flatnonzero((place >= 0) & paced[np.maximum(place, 0)])
    at = place[rows]
    found[rows] = wall_us[at] + (time_us[rows] - from_us[at]) / speed[at]
    return found
