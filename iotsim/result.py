"""What a run leaves: readings, a digest, errors. Frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iotsim import arrow, frames
from iotsim.acks import Acks
from iotsim.actions import Action, Actions
from iotsim.capture import Capture
from iotsim.digest import Digest
from iotsim.errors import BadValue, IotsimError, RunFailed, UnknownName
from iotsim.facts import facts_html as facts_html
from iotsim.pictures import Pictures
from iotsim.progress import counted, one_each
from iotsim.readings import Group, Readings
from iotsim.registry import door
from iotsim.result_facts import called, facts_of, in_words
from iotsim.selectors import Where
from iotsim.units import Duration, duration_us
from iotsim.verdict import VALID

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.audit_verdict import Audit
    from iotsim.checkpoints import Checkpoint
    from iotsim.conditions import Expectation
    from iotsim.destinations import Destination
    from iotsim.engine.simulation import Simulation
    from iotsim.fleet import Fleet
    from iotsim.publishers.ledger import LedgerSnapshot
    from iotsim.scenario import Scenario


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Result:
    """What a run leaves.

    Attributes
    ----------
    fleet : Fleet
        What was run.
    start_us, end_us : int
        The window [start, end) of simulated time, microseconds since 1970.
    errors : tuple of IotsimError
        What went wrong: devices that failed, publishers that lost their broker.
    actions : tuple of Action
        What was done to the run.
    publishers : mapping of str to ledger
        What became of the messages, per publisher.
    path : Path or None
        Where the readings were streamed to.
    notes : tuple of str
        What a reader should know: selectors that matched nobody, or whom they chose.
    acks : Acks or None
        What brokers said of each message; None if nothing was published.
    run_id : str
        First part of the ids of its messages.
    expectations : tuple of Expectation
        What a scenario expected, and whether it was so.
    scenario : str
        The scenario's name; empty if it was none.
    quality : str
        "valid", or who was the bottleneck, from when to when, and why; see `iotsim.quality`.
    destinations : tuple of Destination
        Where its messages went: who published to which publisher.
    paces : tuple of (simulated µs, wall clock µs, speed)
        From when on simulated time went how fast.
    """

    fleet: Fleet
    start_us: int
    end_us: int
    groups: tuple[Group, ...] = field(repr=False)
    capture: Capture = field(repr=False)
    digests: Digest = field(repr=False)
    errors: tuple[IotsimError, ...] = ()
    actions: tuple[Action, ...] = ()
    publishers: Mapping[str, LedgerSnapshot] = field(default_factory=dict)
    path: Path | None = None
    notes: tuple[str, ...] = ()
    acks: Acks | None = field(default=None, repr=False)
    run_id: str = ""
    expectations: tuple[Expectation, ...] = ()
    history: Simulation | None = field(default=None, repr=False)
    checkpoints: tuple[Checkpoint, ...] = field(default=(), repr=False)
    scenario: str = ""
    quality: str = VALID
    destinations: tuple[Destination, ...] = field(default=(), repr=False)
    paces: tuple[tuple[int, int, float], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "actions", Actions(self.actions))

    @property
    def name(self) -> str:
        """The scenario's name, or the fleet's if it was none."""
        return self.scenario or self.fleet.name

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong, and nothing that was expected failed.

        What was not evaluated has not failed: `expectations` says which.
        """
        return not self.errors and not self._failed()

    @property
    def digest(self) -> str:
        """One hex string over every reading: equal digests, equal readings."""
        return self.digests.hexdigest()

    @property
    def start(self) -> datetime:
        """Where the run began (UTC)."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.start_us)

    @property
    def duration(self) -> timedelta:
        """How long it was, in simulated time."""
        return timedelta(microseconds=self.end_us - self.start_us)

    @property
    def rows(self) -> int:
        """How many readings were made, kept or not."""
        return self.digests.rows

    def __len__(self) -> int:
        return self.rows

    def frame(
        self,
        *,
        device_type: str | None = None,
        fields: Iterable[str] | str | None = None,
        last: Duration | None = None,
        tidy: bool = False,
        truth: bool = False,
        wire: bool = False,
    ) -> pd.DataFrame:
        """Return the readings that left their device as a DataFrame, by time, then device.

        `faults` is what was active in a row, `hit` what changed it.

        Parameters
        ----------
        device_type : str, optional
            Only devices of this type.
        fields : str or iterable of str, optional
            Only these fields.
        last : duration, optional
            Only the last stretch of simulated time.
        tidy : bool
            Long form: one row per reading and field.
        truth : bool
            Also `true_time` and `true_<field>`: what they were without the faults.
        wire : bool
            Also the readings that never left, with `withheld` saying why, and `sub` and `copy`
            (which of a tick's readings, which copy), `acked` (what a broker said; null if nothing
            is known) and `latency` in seconds, simulated delay and real acknowledgement together.

        Raises
        ------
        UnknownName
            If no device is of that type, or no reading has that field.
        BadValue
            If `truth` or `wire` are asked of readings that were only streamed to a file.
        """
        for name, asked in (("truth", truth), ("wire", wire)):
            if asked and self._in_file:
                raise BadValue(name, True, f"is not in {self.path}: it has the readings as they "
                               "left", "Run again without to=, or for a shorter time.")
        groups, chunks = self._left(device_type, last)
        declared = self._declared(device_type)
        return frames.frame(groups, chunks, declared=declared, fields=fields, tidy=tidy,
                            truth=truth, wire=wire, acks=self.acks, run_id=self.run_id,
                            watch=partial(counted, f"frame of {self.name}", size=one_each))

    def compare(self, other: Result) -> pd.DataFrame:
        """Return what differs from another run as a DataFrame, a row per field that does.

        Columns: time, device_id, seq, field, value (here), other (there) and side. A reading that
        only one of them has is one row with the field "" and the side "first" (this one) or
        "second"; otherwise the side is "both". Faults and hits are not compared. Where one of
        them holds only its last stretch, that stretch is compared, and a warning says so.

        Raises
        ------
        BadValue
            If they do not begin at the same time.
        """
        from iotsim.comparison import differences

        return differences(self, other)

    def events(
        self, event: Iterable[str] | str | None = None,
        device_id: Iterable[str] | str | None = None,
    ) -> pd.DataFrame:
        """Return what happened as a DataFrame, in order of time.

        Columns: time, device_id (null for the run), event, message, metadata. An event is one of
        spawned, connected, disconnected, fault_injected, fault_cleared, action, error, stopped.
        Rows of one cause share their metadata.

        Parameters
        ----------
        event, device_id : str or iterable of str, optional
            Only these events; only these devices; the name of a gateway means its sensors.

        Raises
        ------
        UnknownName
            If there is no such event, or no such device.
        BadValue
            If there are more than 5,000,000 of them.
        """
        from iotsim.events import events

        return events(self, event, device_id)

    def audit(
        self, tap: Any, *, where: Where = "all", publisher: str | None = None,
        audit_field: str | None = None, clock: str | None = None, late: Duration = "1s",
    ) -> Audit:
        """Compare what left the devices with what arrived, reading by reading.

        Parameters
        ----------
        tap : Tap, DataFrame or iterable of (topic, payload, id)
            What was received: a tap, open or closed, its `frame()`, or its `messages()`.
        where : selector
            Only these devices.
        publisher, audit_field, clock, late
            See `iotsim.audit.audit`: where the tap listens elsewhere than the run published to,
            messages hold their id in a key, latency counts from something else.
        """
        from iotsim.audit import audit

        return audit(self, tap, where=where, publisher=publisher, audit_field=audit_field,
                     clock=clock, late=late)

    def commands(self) -> pd.DataFrame:
        """Return every command and what each device answered; see `iotsim.commands.table`."""
        from iotsim.commands import table

        deeds = None if self.history is None else self.history.deeds
        return table([]) if deeds is None else table(deeds.mail.book.letters, deeds.population)

    def to_scenario(self) -> Scenario:
        """Return what was done as a scenario that does it again at the same simulated times.

        Its `generate()` gives the same digest; `code()` is its source.
        """
        from iotsim.scenario_code import scenario_of

        return scenario_of(self.fleet, self.actions, self.start_us, self.end_us, self.name,
                           self.expectations)

    def branch(self, at: Duration) -> Scenario:
        """Return a scenario that did the same up to a moment, for another future.

        It stands at that moment: a verb happens there, `wait` goes on from there. `at` counts from
        the start of the run, as ever, and does not go back beyond the moment. `generate()` goes on
        from the nearest checkpoint before it, if there is one.

        Parameters
        ----------
        at : duration
            Since the start, within the run.

        Raises
        ------
        BadValue
            If the moment is not within the run.

        Examples
        --------
        >>> from iotsim import Fleet
        >>> result = Fleet("plant", seed=42).add("pump", count=2).generate("10m")
        >>> faster = result.branch("5m").set(rpm={"mean": 1500}).generate()
        >>> sorted(result.compare(faster)["field"].unique())
        ['flow', 'power', 'rpm']
        """
        from iotsim.checkpoints import branch

        return branch(self, at)

    def to_arrow(self) -> Any:
        """Return the readings as a pyarrow Table."""
        return arrow.table(self.groups, self._held(None, None)[1], self._declared(),
                           partial(counted, f"table of {self.name}"))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def to_parquet(self, path: str | Path) -> Path:
        """Write the readings to a Parquet file; returns its path."""
        chunks = counted(f"writing {self.name}", self._held(None, None)[1])
        return arrow.write(path, self.groups, chunks, self._declared())

    @property
    def plot(self) -> Pictures:
        """Draws with matplotlib: `plot(fields)` the readings, `plot.heatmap()`, `plot.faults()`."""
        return Pictures(self)

    def panel(self) -> Any:
        """Return the widget that looks back through this result, moment by moment."""
        return door("panel_result")(self)

    def diff(self, other: Result) -> str:
        """Return in words how another result differs; empty if it does not."""
        from iotsim.comparison import difference

        return difference(self, other)

    def save(self, path: str | Path, *, readings: bool = False) -> Path:
        """Save what is needed to run it again and to prove that the bytes are the same.

        Parameters
        ----------
        path : str or Path
        readings : bool
            Also store the readings, so that `verify` can name exact times and values.
        """
        from iotsim.saved import save

        return save(self, path, readings=readings)

    def raise_for_errors(self) -> Result:
        """Return this result, or raise RunFailed if it has not `passed`.

        Raises
        ------
        RunFailed
            If anything went wrong, or an expectation failed; `errors` and `failed` hold them.
        """
        if not self.passed:
            raise RunFailed(self.name, self.errors, self._failed())
        return self

    def _failed(self) -> list[Expectation]:
        return [one for one in self.expectations if one.status == "failed"]

    def _declared(self, device_type: str | None = None) -> dict[str, str]:
        from iotsim.offline import kinds_of

        return kinds_of(self.fleet, device_type, self.history)

    @property
    def _in_file(self) -> bool:
        return self.path is not None and not self.capture.rows

    def _held(
        self, device_type: str | None, last: Duration | None
    ) -> tuple[list[Group], list[Readings]]:
        groups, chunks = list(self.groups), self.capture.chunks()
        if self._in_file and self.path is not None:
            chunks = arrow.read(self.path, self.groups)
        if device_type is not None:
            types = {group.device_type for group in groups}
            if device_type not in types:
                raise UnknownName("device type", device_type, types)
            groups = [group for group in groups if group.device_type == device_type]
            kept = {group.index for group in groups}
            chunks = [chunk for chunk in chunks if chunk.group.index in kept]
        if last is not None:
            since_us = self.end_us - duration_us(last, "last")
            chunks = [chunk.take(chunk.time_us >= since_us) for chunk in chunks]
        return groups, chunks

    def _left(
        self, device_type: str | None, last: Duration | None
    ) -> tuple[list[Group], list[Readings]]:
        # As they had left by the end; those that had not are still among them.
        groups, chunks = self._held(device_type, last)
        if self.history is not None:
            deeds = self.history.deeds
            chunks = [deeds.as_left(chunk, self.end_us) for chunk in chunks]
        return groups, chunks

    def _count(self) -> int:
        # A device that got other labels is in two groups.
        if self.history is not None:
            return len(self.history.population)
        return sum(len(group) for group in self.groups)

    def __repr__(self) -> str:
        return f"<Result {called(self)}: {in_words(self)}>"

    def _repr_html_(self) -> str:
        on = f" on fleet {self.fleet.name}" if self.name != self.fleet.name else ""
        return facts_html(f"Result {self.name}{on}", facts_of(self))
