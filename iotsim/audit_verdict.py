"""What an audit found: counts, one line of words, tables, a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from iotsim import audit_tables
from iotsim.audit_tables import Table
from iotsim.facts import facts_html
from iotsim.registry import door

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Audit:
    """What became of the readings of a run; see `Result.audit`.

    Every reading that left its device is received, refused, lost or unknown:
    `sent = received + refused + lost + unknown`.

    Attributes
    ----------
    name : str
        Of the run.
    sent, received : int
        Readings that left their device, and those of them that came, once or more.
    expected : int
        Readings that a simulated fault withheld; they are not among those sent.
    lost_by_simulator : int
        Never handed to the broker: dropped by a full queue, or left when the run ended.
    lost_in_flight : int
        Handed over, and nobody ever said that they arrived.
    lost_by_broker : int
        The broker acknowledged them, and they did not come.
    refused : int
        The broker said that it did not want them.
    unknown : int
        They did not come, but whoever listened was ill, or did not listen yet.
    duplicated : int
        Messages beyond the first of a reading. A `duplicate` fault's copies are readings.
    recovered : int
        Readings whose link was lost before a verdict, and that came.
    corrupted, out_of_order, late : int
        Readings that came with other bytes, after one that had left later, or late.
    unexpected : int
        Messages with this run's id that it never sent, or that a fault withheld.
    foreign : int
        Messages of other runs, or of nobody known.
    unheld : int
        Messages of this run's readings that the capture no longer holds.
    unheard : int
        Readings that left for a topic to which the tap does not listen; not among those sent.
    latency : (float, float, float)
        Median, 99th percentile and maximum, in seconds; NaN if unknown.
    reasons : mapping of str to int
        Why readings were refused.
    drops : mapping of str to int
        Why messages were never sent, as the publishers' accounts say.
    examples : tuple of (topic, id)
        Of unexpected messages.
    clock : str
        What latency counts from: "stamp", "timestamp", or "none".
    ill : str
        Why the tap did not see everything; empty if it did.
    notes : tuple of str
    """

    name: str
    table: Table = field(repr=False)
    sent: int
    received: int
    expected: int
    lost_by_simulator: int
    lost_in_flight: int
    lost_by_broker: int
    refused: int
    unknown: int
    duplicated: int
    recovered: int
    corrupted: int
    out_of_order: int
    late: int
    unexpected: int
    foreign: int
    unheld: int
    unheard: int
    latency: tuple[float, float, float]
    reasons: Mapping[str, int]
    drops: Mapping[str, int]
    examples: tuple[tuple[str, str], ...]
    clock: str
    ill: str
    notes: tuple[str, ...]

    @property
    def lost(self) -> int:
        """Readings that are lost, whoever lost them."""
        return self.lost_by_simulator + self.lost_in_flight + self.lost_by_broker

    @property
    def ok(self) -> bool:
        """Whether everything that left its device arrived: unharmed, in order, and nothing else.

        What a simulated fault withheld was never to arrive; what came twice has arrived. Where
        nothing was to arrive, or the tap did not listen to all of it, nothing is ok: choose what
        is meant with `where=`. Whose a loss is stands in `lost_by_simulator`, `lost_in_flight`
        and `lost_by_broker`.
        """
        faulty = self.unexpected or self.corrupted or self.out_of_order or self.unheard
        return not faulty and self.received == self.sent > 0

    def __bool__(self) -> bool:
        return self.ok

    # -- in words -------------------------------------------------------------------------------

    @property
    def verdict(self) -> str:
        """What became of it all, in one line."""
        tail = "".join(f"; {note}" for note in self.notes)
        count = f"{self.sent:,} sent, {self.received:,} received"
        if self.ok:
            return (f"ok: {count}, 0 lost, {self.duplicated:,} duplicated{self._latency_text()}"
                    f"{tail}")
        if not self.sent and not self.unexpected:
            return f"nothing to compare: {self._nothing()}{tail}"
        own = f"{self.lost_by_simulator:,} lost by the simulator"
        if self.lost_by_simulator and self.drops:
            own += f" ({_listed(self.drops)})"
        said = ", ".join([*self._troubles(), own])
        if self.unknown:
            why = self.ill or "they left before or after it listened"
            return (f"unknown: {self.unknown:,} of {self.sent:,} did not come, and the tap did not "
                    f"see everything ({why}); {said}{tail}")
        return f"{said}: {count}{self._latency_text()}{tail}"

    def _nothing(self) -> str:
        if self.unheard:
            return f"the tap listens to none of the {self.unheard:,} readings that left a device"
        if self.expected:
            return "every reading was withheld by a fault"
        return "no reading has left a device that where= chooses"

    def _troubles(self) -> Iterator[str]:
        if self.unheard:
            yield f"{self.unheard:,} of {self.sent + self.unheard:,} not listened to"
        if self.lost_by_broker:
            yield f"{self.lost_by_broker:,} lost after the broker acknowledged them"
        if self.lost_in_flight:
            yield f"{self.lost_in_flight:,} lost in flight, where nobody acknowledged them"
        if self.refused:
            yield f"{self.refused:,} refused ({_listed(self.reasons)})"
        for count, what in ((self.corrupted, "corrupted"), (self.unexpected, "unexpected"),
                            (self.out_of_order, "out of order"), (self.duplicated, "duplicated")):
            if count:
                yield f"{count:,} {what}"

    def _latency_text(self) -> str:
        p99_s = self.latency[1]
        return "" if np.isnan(p99_s) else f", latency p99 {seconds_text(p99_s)}"

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "verdict", self.verdict
        for name in ("sent", "received", "expected", "lost_by_simulator", "lost_in_flight",
                     "lost_by_broker", "refused", "unknown", "duplicated", "recovered",
                     "corrupted", "out_of_order", "late", "unexpected", "foreign", "unheard"):
            yield name.replace("_", " "), f"{getattr(self, name):,}"
        p50_s, p99_s, max_s = self.latency
        if not np.isnan(p50_s):
            texts = [seconds_text(one) for one in (p50_s, p99_s, max_s)]
            yield f"latency ({self.clock})", f"p50 {texts[0]}, p99 {texts[1]}, max {texts[2]}"

    def __repr__(self) -> str:
        return f"<Audit {self.name!r}: {self.verdict}>"

    def _repr_html_(self) -> str:
        return facts_html(f"Audit {self.name}", self._facts())

    # -- as tables ------------------------------------------------------------------------------

    def frame(self) -> pd.DataFrame:
        """Return what became of each device's readings as a DataFrame, one row per device.

        Columns: device_id, device_type, sent, received, lost_by_simulator, lost_in_flight,
        lost_by_broker, refused, unknown, expected, duplicated, recovered, out_of_order, corrupted,
        late, latency_p50, latency_p99, latency_max (seconds).
        """
        return audit_tables.by_device(self.table)

    def by_fault(self) -> pd.DataFrame:
        """Return the same counts per fault as a DataFrame: one row per window, one for no fault.

        Columns: fault, at, until (NaT: it was never cleared), devices, and those of `frame`. A
        reading in two windows counts in both.
        """
        return audit_tables.by_fault(self.table)

    def readings(self, only: str | None = None) -> pd.DataFrame:
        """Return what became of each reading as a DataFrame.

        Columns: id, device_id, seq, sub, copy, time, left, acked, received, copies, latency
        (seconds), class and whose (of a loss; the fault that withheld it; why it was refused).

        Parameters
        ----------
        only : str, optional
            One class: ok, duplicated, recovered, corrupted, expected, refused, lost, unknown,
            unexpected; or "out_of_order", or "late".

        Raises
        ------
        BadValue
            If there are more than 5,000,000 of them.
        """
        return audit_tables.readings(self.table, only)

    def plot(self, **options: Any) -> Any:
        """Draw latency over time, faults shaded, losses marked; returns the Axes.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw.
        figsize : (float, float), optional
            Width and height in inches.
        """
        return door("plot_audit")(self, **options)


def seconds_text(seconds: float) -> str:
    """Return a latency as people write it.

    Examples
    --------
    >>> seconds_text(0.0142), seconds_text(2.5), seconds_text(0.00042), seconds_text(0.0998)
    ('14 ms', '2.5 s', '0.42 ms', '100 ms')
    """
    milli = seconds * 1e3
    if abs(milli) >= 1000:
        return f"{seconds:.3g} s"
    return f"{milli:.{0 if abs(milli) >= 10 else 1 if abs(milli) >= 1 else 2}f} ms"


def _listed(reasons: Mapping[str, int]) -> str:
    most = sorted(reasons.items(), key=lambda entry: -entry[1])
    shown = [reason if len(most) == 1 else f"{reason} ×{count:,}" for reason, count in most[:3]]
    return "; ".join(shown)

