"""Devices that a person scripts: one coroutine each, with its own time, draws and readings.

    async def meter(dev):
        while True:
            dev.emit(power=dev.draw("power", "gaussian", mean=400, stddev=25))
            await dev.sleep("5s")

The same profile that a block steps for a thousand devices can be followed by one coroutine
(`follow`): the bytes are the same, and a test holds the two together.

A device that is stopped, or that the end of the run finds waiting, gets `asyncio.CancelledError`
where it waits, offline and live. It may clean up; what it still emits is dropped, and whatever it
awaits of simulated time is answered in the same way. Live it may say farewell to the outside world.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from iotsim.engine.columns import column_of
from iotsim.engine.dressing import Facts, dressed
from iotsim.engine.grid import jitter_keys, site_of
from iotsim.engine.inbox import Inbox
from iotsim.engine.kernel import Body, Event, Kernel, Queue, Sleep
from iotsim.errors import BadValue
from iotsim.faults.base import Window
from iotsim.readings import RESERVED, WIRE_COLUMNS, Group, Ints, Readings
from iotsim.seeding import device_key, squares64, stream_key, unit
from iotsim.signals.base import Single, Site, Tick, build
from iotsim.signals.resolution import Resolution
from iotsim.units import Duration, duration_us

if TYPE_CHECKING:
    from iotsim.profiles import Profile

DRAW_VERSION = 1
NAME_CHARS_MAX = 128
NAMES_MAX = 10_000
ROWS_MAX = 5_000_000  # of one type, before they are taken away
_PLAIN = (float, int, bool, str, type(None))
_TAKEN = frozenset((*RESERVED, *WIRE_COLUMNS))
_WALKS = ("brownian", "composite", "markov")
_NO_FACTS = Facts()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT_MAX = 2**63


class Device:
    """One scripted device: what `async def device(dev)` gets.

    Attributes
    ----------
    id : str
    labels : mapping of str to str
    start_us, now_us : int
        When it began and what time it is for it, in microseconds since 1970.
    seed : int
        The seed of the run.
    """

    __slots__ = (
        "_cast", "_counts", "_every_us", "_i", "_inbox", "_key", "_seq", "_singles", "_sleep",
        "body", "id", "now_us", "order", "start_us",
    )

    def __init__(self, cast: Cast, i: int, order: int, start_us: int) -> None:
        self.id = cast.group.ids[i]
        self.order, self.start_us, self.now_us = order, start_us, start_us
        self.body: Body | None = None
        self._cast, self._i, self._seq = cast, i, 0
        self._key: int | None = None
        self._counts: dict[str, int] | None = None
        self._singles: dict[Any, Any] | None = None
        self._sleep: Sleep | None = None
        self._inbox: Inbox | None = None
        self._every_us = cast.interval_us

    def __repr__(self) -> str:
        return f"<Device {self.id!r} at {self.now.isoformat()}>"

    @property
    def name(self) -> str:
        """The id; what the kernel calls a party."""
        return self.id

    @property
    def labels(self) -> Mapping[str, str]:
        """The device's labels."""
        return self._cast.group.labels

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self._cast.seed

    @property
    def now(self) -> datetime:
        """The simulated time of this device."""
        return _EPOCH + timedelta(microseconds=self.now_us)

    @property
    def elapsed(self) -> float:
        """Simulated seconds since the device began."""
        return (self.now_us - self.start_us) / 1e6

    def sleep(self, duration: Duration | None = None) -> Sleep:
        """Wait in simulated time: `await dev.sleep("5s")`.

        Parameters
        ----------
        duration : duration, optional
            From now; one interval of `add(..., every=)` if not given.

        Raises
        ------
        BadValue
            If it is not a duration, or the sleep before was not awaited.
        """
        if duration is None:
            step_us = self._interval_us("dev.sleep() without a duration")
        elif duration.__class__ is str and duration in _SLEEPS:
            step_us = _SLEEPS[duration]
        else:
            step_us = duration_us(duration, "sleep", zero=True)
            if isinstance(duration, str) and len(_SLEEPS) < _SLEEPS_MAX:
                _SLEEPS[duration] = step_us
        sleep = self._sleep
        if sleep is None:
            sleep = self._sleep = Sleep(self.now_us + step_us)
        elif not sleep.awaited:
            raise BadValue("sleep", duration, "follows a sleep that was not awaited",
                           "Write `await dev.sleep(…)`.")
        else:
            sleep.awaited = False
            sleep.until_us = self.now_us + step_us
        return sleep

    def emit(self, **fields: Any) -> None:
        """Publish one reading, now, with these fields.

        Raises
        ------
        BadValue
            If a field has the name of a column of every frame, or a value that is not JSON.
        """
        cast = self._cast
        for name, value in fields.items():
            if name not in cast.names:
                cast.check_name(name)
            if value.__class__ is not float:
                fields[name] = _plain(name, value)
        if len(cast.rows) >= ROWS_MAX:
            raise BadValue("emit", len(cast.rows), "readings and no end: time stands still",
                           "Sleep between readings.")
        cast.rows.append((self._i, self._seq, self.now_us, fields))
        self._seq += 1

    def draw(
        self, name: str, signal: str | None = None, *, resolution: float | None = None,
        **parameters: Any,
    ) -> Any:
        """Return the next value of a named stream of this device.

        Parameters
        ----------
        name : str
            Of the stream; a field's name gives the draws that a profile's field would use.
        signal : str, optional
            Which signal to draw from; a uniform number in [0, 1) if not given.
        resolution : float, optional
            Round to this step.
        **parameters
            Of the signal. Those of a walk (brownian, markov, composite) must stay the same.
        """
        counts = self._counts
        if counts is None:
            counts, self._singles = {}, {}
            self._counts = counts
        n = counts.get(name, 0)
        counts[name] = n + 1
        if signal is None:
            return unit(squares64(n, self._stream(name)))
        single, rounding = self._single(name, signal, resolution, parameters)
        value = single(Tick(n, self.now_us, {}))
        return value if rounding is None else rounding.one(value)

    def silence(self) -> None:
        """Let nothing that it emits from now on count: it was stopped, or the run is over."""
        self._cast = self._cast.nowhere()
        if self._inbox is not None:
            self._inbox.closed = True

    def retire(self) -> None:
        """Note that its code has ended: it answers no command any more."""
        if self._inbox is not None:
            self._inbox.retire()

    def commands(self) -> Inbox:
        """Return the commands that this device is given, from its first call on.

        `async for command in dev.commands()` waits for each; `await dev.commands().get("5s")` for
        the next one, or gives None when none came within 5 s. Offline they come from a scenario or
        a replay; where nobody sends any, a device waits for ever, and holds nobody up.
        """
        if self._inbox is None:
            self._inbox = Inbox(self)
        return self._inbox

    def event(self) -> Event:
        """Return a new event that devices of this run can wait for."""
        return Event(self._cast.kernel)

    def queue(self, size_max: int = 1024) -> Queue:
        """Return a new queue between devices of this run."""
        return Queue(self._cast.kernel, size_max)

    def _stream(self, name: str) -> int:
        assert self._singles is not None
        key = self._singles.get(name)
        if key is None:
            key = self._singles[name] = stream_key(self._device_key(), name, DRAW_VERSION)
        return int(key)

    def _device_key(self) -> int:
        if self._key is None:
            self._key = device_key(self._cast.seed, self.id)
        return self._key

    def _single(
        self, name: str, signal: str, resolution: float | None, parameters: dict[str, Any]
    ) -> tuple[Single, Resolution | None]:
        assert self._singles is not None
        last = self._singles.get((name, signal))
        if last is not None and last[0] == parameters and last[1] == resolution:
            return last[2], last[3]  # nearly always: a draw says the same every time
        interval_us = self._every_us or 0
        if signal in (*_WALKS, "sine_wave"):
            interval_us = interval_us or self._interval_us(f"dev.draw(…, {signal!r})")
            if last is not None and last[0] != parameters and signal in _WALKS:
                raise BadValue("draw", name, f"changes the parameters of its {signal}, which walks",
                               "Keep them, or draw under another name.")
        parents = np.array([self._device_key()], dtype=np.uint64)
        single = last[2] if last is not None and last[0] == parameters else (
            build(signal, parameters).single(Site(parents, name, interval_us)))
        rounding = None if resolution is None else Resolution.of(resolution)
        self._singles[name, signal] = parameters, resolution, single, rounding
        return single, rounding

    def _interval_us(self, what: str) -> int:
        if self._every_us is None:
            raise BadValue("every", None, f"is missing: {what} needs it", "Use add(…, every='5s').")
        return self._every_us


_SLEEPS: dict[str, int] = {}
_SLEEPS_MAX = 1024


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    kind = value.__class__
    if kind is int and not -_INT_MAX <= value < _INT_MAX:
        raise BadValue(name, value, "does not fit 64 bits")
    if kind in _PLAIN and (kind is not str or value.isascii()):
        return value
    import orjson

    try:
        return orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise BadValue(name, value, f"is a {kind}, which JSON cannot hold") from None


def _nobody(party: object, error: BaseException) -> None:
    """Is told of failures of devices that have been ended."""


class _Dropped(list[Any]):
    """Takes anything and keeps none of it; as long as what it was given."""

    def __init__(self) -> None:
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: Any) -> None:
        self._count += 1

    def clear(self) -> None:
        self._count = 0


class Cast:
    """The scripted devices of one group: where their readings gather.

    Parameters
    ----------
    group : Group
    seed : int
    kernel : Kernel
    interval_us : int, optional
        From `add(..., every=)`.
    slots : int64 array, ascending, optional
        The devices' numbers in the fleet; from 0 if not given.
    """

    def __init__(
        self, group: Group, seed: int, kernel: Kernel, interval_us: int | None,
        slots: Ints | None = None,
    ) -> None:
        self.group, self.seed, self.kernel, self.interval_us = group, seed, kernel, interval_us
        self.slots = np.arange(len(group), dtype=np.int64) if slots is None else slots
        self.windows: list[Window] = []
        self.names: set[str] = set()
        self.rows: list[tuple[int, int, int, dict[str, Any]]] = []
        self._nowhere: Cast | None = None

    def check_name(self, name: str) -> None:
        """Raise if a field cannot have this name; remember it if it can."""
        if name in _TAKEN or name in self.group.labels:
            raise BadValue("field", name, "is the name of a column of every frame")
        if not name or not name.isprintable() or len(name) > NAME_CHARS_MAX:
            raise BadValue("field", name, f"is not 1 to {NAME_CHARS_MAX} printable characters")
        if len(self.names) < NAMES_MAX:
            self.names.add(name)

    def flush(self) -> Readings | None:
        """Return what was emitted since the last call, or None."""
        if not self.rows:
            return None
        rows, self.rows = self.rows, []
        names = list(dict.fromkeys(name for row in rows for name in row[3]))
        time_us = np.fromiter((row[2] for row in rows), dtype=np.int64, count=len(rows))
        made = Readings(
            group=self.group,
            device=np.fromiter((row[0] for row in rows), dtype=np.int32, count=len(rows)),
            seq=np.fromiter((row[1] for row in rows), dtype=np.int64, count=len(rows)),
            time_us=time_us,
            columns={name: column_of([row[3] for row in rows], name) for name in names},
        )
        if not self.windows:
            return made
        return dressed(made, time_us, self.slots[made.device], None, self.windows, _NO_FACTS)

    def nowhere(self) -> Cast:
        """Return a cast for devices that have been ended: what they emit is dropped."""
        if self._nowhere is None:
            # With a kernel of its own: whoever will not end keeps nothing of the run.
            self._nowhere = Cast(self.group, self.seed, Kernel(_nobody), self.interval_us,
                                 self.slots)
            self._nowhere.rows = _Dropped()
        self._nowhere.rows.clear()
        return self._nowhere

    def like(self, group: Group, slots: Ints) -> Cast:
        """Return an empty cast for devices that move to another group."""
        made = Cast(group, self.seed, self.kernel, self.interval_us, slots)
        made.names, made.windows = set(self.names), list(self.windows)
        return made

    def adopt(self, other: Cast, order: int) -> None:
        """Take over a device from another cast; what it has emitted stays where it was."""
        device = other.kernel.party(order)
        if device is not None:
            device._cast = self
            device._i = int(np.searchsorted(self.slots, order))

    def set_interval(self, order: int, interval_us: int) -> None:
        """Give a device another interval, from its next sleep on."""
        device = self.kernel.party(order)
        if device is not None:
            device._every_us = interval_us


async def follow(dev: Device, profile: Profile) -> None:
    """Be one device of a profile: the readings that a block gives it, tick by tick."""
    cast = dev._cast
    key = np.array([dev._device_key()], dtype=np.uint64)
    singles = [
        (field, field.signal.single(site_of(field, profile, cast.group, cast.seed, key)))
        for field in profile.fields
    ]
    jitter_key = int(jitter_keys(key)[0])
    n = 0
    while True:
        values: dict[str, Any] = {}
        tick = Tick(n, dev.now_us, values)
        for field, single in singles:
            value = single(tick)
            if field.kind == "float":
                value = value + 0.0 if field.resolution is None else field.resolution.one(value)
            values[field.name] = value
        shift_us = 0
        if profile.jitter_us:
            shift_us = math.floor(unit(squares64(n, jitter_key)) * float(profile.jitter_us))
            shift_us = min(shift_us, profile.jitter_us - 1)
        dev._cast.rows.append((dev._i, n, dev.now_us + shift_us, values))
        n += 1
        await Sleep(dev.start_us + n * profile.interval_us)
