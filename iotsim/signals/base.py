"""What a signal is: parameters that know how to make values for a block or for one device.

A signal is a frozen dataclass; its fields are its parameters. `block(site)` gives a `Source` for
many devices (numpy in, numpy out), `single(site)` a plain function for one device in Python
floats; both do the same IEEE operations in the same order and give the same bits. Draws have
random access by tick; recursions keep their state in the source and move one tick at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import timedelta
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias
from warnings import warn

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue, UnknownName
from iotsim.readings import Ints, Kind
from iotsim.seeding import Words, combine_many, fnv1a, stream_keys
from iotsim.units import duration_text

Values: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]
Single: TypeAlias = Callable[["Tick"], Any]
Span: TypeAlias = "tuple[float, float] | None"

NUMBER_MAX = 1e100  # no product or sum of a few parameters overflows
NARROW_DEVICES = 32  # below this width a recursion is faster in Python floats
SPAN_STDDEVS = 4.0  # one normal value in 16,000 is farther out


@dataclass(frozen=True, slots=True)
class Site:
    """Where a signal lives: the devices that have it, its field, its grid.

    Attributes
    ----------
    parents : uint64 array, shape (devices,)
        Keys of the devices, or of what they share.
    field : str
        Name of the field; part of every stream's name.
    interval_us : int
        One grid step.
    """

    parents: Words
    field: str
    interval_us: int

    def keys(self, version: int, part: str = "") -> Words:
        """Return the stream keys of the field, or of a named part of it, shape (devices,)."""
        if part:
            return stream_keys(combine_many(self.parents, fnv1a(self.field)), part, version)
        return stream_keys(self.parents, self.field, version)

    def key(self, version: int, part: str = "") -> int:
        """Return the stream key of the first device, as a Python int."""
        return int(self.keys(version, part)[0])

    def child(self, part: str) -> Site:
        """Return the site of a signal inside this one."""
        parents = combine_many(self.parents, fnv1a(self.field))
        return Site(parents, part, self.interval_us)


@dataclass(frozen=True, slots=True)
class Steps:
    """A rectangle of the grid: consecutive ticks of consecutive devices.

    Attributes
    ----------
    first : int
        The first tick n.
    ticks : int
    devices : slice
        Which devices of the site.
    time_us : int64 array, shape (ticks, devices)
    fields : mapping
        Values, shape (ticks, devices), of the fields computed before this one.
    interval_us : int
        One grid step of these ticks.
    numbers : int64 array, shape (ticks, devices), or None
        Each device's own ticks n where they are not `first`, `first + 1`, …: devices whose
        interval was changed have had different numbers of ticks by then.
    elapsed : int64 array, shape (ticks, devices), or None
        Microseconds since each device's first tick where that is not n · interval.
    """

    first: int
    ticks: int
    devices: slice
    time_us: Ints
    fields: Mapping[str, Values]
    interval_us: int = 0
    numbers: Ints | None = None
    elapsed: Ints | None = None

    @property
    def counters(self) -> Words:
        """The ticks n as draw numbers, shape (ticks, 1) or (ticks, devices)."""
        if self.numbers is not None:
            return self.numbers.view(np.uint64)
        return np.arange(self.first, self.first + self.ticks, dtype=np.uint64)[:, None]

    @property
    def elapsed_us(self) -> Ints:
        """Time since the first tick, shape (ticks, 1) or (ticks, devices)."""
        if self.elapsed is not None:
            return self.elapsed
        assert self.interval_us > 0, "these steps do not say how long one is"
        numbers = np.arange(self.first, self.first + self.ticks, dtype=np.int64)[:, None]
        return numbers * self.interval_us

    @property
    def shape(self) -> tuple[int, int]:
        """(ticks, devices)."""
        return self.ticks, self.devices.stop - self.devices.start


@dataclass(slots=True)
class Tick:
    """One grid tick of one device: what `Steps` is to a block."""

    n: int
    time_us: int
    fields: dict[str, Any]


class Source(Protocol):
    """Values of one signal for a block of devices.

    A source with a state also has `keep(rows) -> object` and `resume(kept)`: the state of some of
    its devices, and its way into a source of just these devices (see `kept` and `resumed`); its
    signal `walks`. The state is a copy, made of plain arrays and tuples. The source that resumes
    may be of another interval, or have other parameters: it takes what still has a meaning there.
    """

    def step(self, steps: Steps) -> Values:
        """Return values of shape (ticks, devices), or one that broadcasts to it."""


def kept(source: Source, rows: Ints) -> Any:
    """Return the state of some devices of a source (a copy), or None if it has none."""
    keep = getattr(source, "keep", None)
    return None if keep is None else keep(rows)


def resumed(source: Source, state: Any) -> Source:
    """Return a source that goes on from what `kept` gave for the same devices."""
    resume = getattr(source, "resume", None)
    if resume is not None and state is not None:
        resume(state)
    return source


@dataclass(frozen=True, slots=True)
class Signal:
    """Base of every signal; a subclass is a frozen dataclass of parameters.

    Class attributes
    ----------------
    version : int
        Part of every stream's key; a changed formula gets a new one.
    type_name : str
        The name under which profiles know it; set by `register`.
    aliases : mapping
        Other spellings of parameters that profiles may use.
    """

    version: ClassVar[int] = 1
    type_name: ClassVar[str] = ""
    aliases: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def located(cls, parameters: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        """Return the parameters with relative paths resolved against a folder."""
        return parameters

    @property
    def kind(self) -> Kind:
        """What the values are: float, int, bool, text or json."""
        return "float"

    @property
    def categories(self) -> tuple[Any, ...]:
        """What the codes of a text or json signal stand for."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of the same reading that must be computed before this one."""
        return ()

    @property
    def walks(self) -> bool:
        """Whether values are states that move on the grid only; between ticks they stand."""
        return False

    @property
    def span(self) -> Span:
        """Where the values usually are, (low, high); None where the parameters do not tell."""
        return None

    @property
    def drift_per_s(self) -> float | None:
        """How fast the value moves on its own, per second; None if it does not."""
        return None

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        raise AssertionError(f"{type(self).__name__} lacks block()")

    def single(self, site: Site) -> Single:
        """Return the function for one device: tick -> value."""
        raise AssertionError(f"{type(self).__name__} lacks single()")

    def spec(self) -> dict[str, Any]:
        """Return the signal as plain JSON values: its type and the parameters that were given."""
        given: dict[str, Any] = {"type": self.type_name}
        for entry in fields(self):
            if not entry.init:
                continue
            value = getattr(self, entry.name)
            if entry.default is MISSING or not _same(value, entry.default):
                given[entry.name] = plain(value)
        return given


def finite_span(low: float, high: float) -> Span:
    """Return the ends, or None where one is beyond any measure."""
    return (low, high) if abs(low) <= NUMBER_MAX and abs(high) <= NUMBER_MAX else None


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def plain(value: Any) -> Any:
    """Return a parameter as the JSON value that means the same."""
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, timedelta):
        return duration_text(value // timedelta(microseconds=1))
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


_REGISTRY: dict[str, type[Signal]] = {}
BUILT_IN = {
    "brownian": "iotsim.signals.brownian",
    "composite": "iotsim.signals.composite",
    "constant": "iotsim.signals.constant",
    "depends_on": "iotsim.signals.dependent",
    "diurnal": "iotsim.signals.diurnal",
    "gaussian": "iotsim.signals.gaussian",
    "markov": "iotsim.signals.markov",
    "playback": "iotsim.signals.playback",
    "sine_wave": "iotsim.signals.sine",
    "spike": "iotsim.signals.spike",
    "static": "iotsim.signals.constant",
    "uniform_random": "iotsim.signals.uniform",
}


def register(name: str) -> Callable[[type[Signal]], type[Signal]]:
    """Give a signal class the name that profiles use for it.

    Raises
    ------
    BadValue
        If the name belongs to a signal that comes with iotsim.
    """

    def put(cls: type[Signal]) -> type[Signal]:
        if name in BUILT_IN and cls.__module__ != BUILT_IN[name]:
            raise BadValue("signal", name, "comes with iotsim", "Choose another name.")
        cls.type_name = name
        _REGISTRY[name] = cls
        return cls

    return put


def known() -> Mapping[str, type[Signal]]:
    """Return every signal by name: the built-in ones and those of installed packages."""
    _load()
    return _REGISTRY


@cache
def _load() -> None:
    for module in BUILT_IN.values():
        import_module(module)
    for entry in entry_points(group="iotsim.signals"):
        try:
            if entry.name not in _REGISTRY:
                register(entry.name)(entry.load())
        except Exception as error:
            warn(f"signal {entry.name!r} could not be loaded: {error}", stacklevel=2)


def build(type_name: str, parameters: Mapping[str, Any]) -> Signal:
    """Return the signal of a name with its parameters checked.

    Raises
    ------
    UnknownName
        If there is no such signal, or it has no such parameter.
    BadValue
        If a parameter is missing or cannot be.
    """
    signals = known()
    if type_name not in signals:
        raise UnknownName("signal", type_name, signals)
    cls = signals[type_name]
    allowed = {entry.name: entry for entry in fields(cls) if entry.init}
    given: dict[str, Any] = {}
    for spelling, value in parameters.items():
        name = cls.aliases.get(spelling, spelling)
        if name not in allowed:
            raise UnknownName(f"parameter of {type_name!r}", name, allowed)
        if name in given:
            raise BadValue(spelling, value, "is given twice", f"Keep {name} alone.")
        given[name] = value
    for name, entry in allowed.items():
        if entry.default is MISSING and entry.default_factory is MISSING and name not in given:
            listed = ", ".join(sorted(allowed))
            raise BadValue("type", type_name, f"lacks {name}", f"Give it; it takes: {listed}.")
    return cls(**given)


def number(name: str, value: Any, *, least: float | None = None, above: float | None = None,
           most: float | None = None) -> float:
    """Return a parameter as a finite float within its bounds."""
    bounds = [f"at least {least:g}" if least is not None else "",
              f"above {above:g}" if above is not None else "",
              f"at most {most:g}" if most is not None else ""]
    allowed = "Give a finite number" + "".join(f", {b}" for b in bounds if b) + "."
    real = isinstance(value, (int, float, np.integer, np.floating))
    if not real or isinstance(value, (bool, np.timedelta64)):  # numpy takes a time for an integer
        raise BadValue(name, value, "is not a number", allowed)
    try:
        result = float(value)
    except OverflowError:
        raise BadValue(name, value, "is out of range", allowed) from None
    if not math.isfinite(result):
        raise BadValue(name, value, "is not finite", allowed)
    too_small = (least is not None and result < least) or (above is not None and result <= above)
    if too_small or (most is not None and result > most):
        raise BadValue(name, value, "is out of range", allowed)
    if abs(result) > NUMBER_MAX:
        raise BadValue(name, value, "is beyond any measure", "Give a number of at most 1e100.")
    return result
