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
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, TypeAlias
from warnings import warn

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue, UnknownName
from iotsim.readings import Ints, Kind
from iotsim.seeding import Words, combine_many, fnv1a, stream_keys

Values: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]
Single: TypeAlias = Callable[["Tick"], Any]

NARROW_DEVICES = 32  # below this width a recursion is faster in Python floats


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
    """

    first: int
    ticks: int
    devices: slice
    time_us: Ints
    fields: Mapping[str, Values]

    @property
    def counters(self) -> Words:
        """The ticks as draw numbers, shape (ticks, 1)."""
        return np.arange(self.first, self.first + self.ticks, dtype=np.uint64)[:, None]

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
    """Values of one signal for a block of devices."""

    def step(self, steps: Steps) -> Values:
        """Return values of shape (ticks, devices), or one that broadcasts to it."""


@dataclass(frozen=True, slots=True)
class Signal:
    """Base of every signal; a subclass is a frozen dataclass of parameters.

    Class attributes
    ----------------
    version : int
        Part of every stream's key; a changed formula gets a new one.
    kind : str
        What the values are: float, int, bool, text or json.
    """

    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "float"

    @property
    def categories(self) -> tuple[Any, ...]:
        """What the codes of a text or json signal stand for."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of the same reading that must be computed before this one."""
        return ()

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        raise AssertionError(f"{type(self).__name__} lacks block()")

    def single(self, site: Site) -> Single:
        """Return the function for one device: tick -> value."""
        raise AssertionError(f"{type(self).__name__} lacks single()")


_REGISTRY: dict[str, type[Signal]] = {}
_BUILT_IN = (
    "constant",
    "composite",
    "dependent",
    "diurnal",
    "brownian",
    "gaussian",
    "markov",
    "playback",
    "sine",
    "spike",
    "uniform",
)


def register(name: str) -> Callable[[type[Signal]], type[Signal]]:
    """Give a signal class the name that profiles use for it."""

    def put(cls: type[Signal]) -> type[Signal]:
        _REGISTRY[name] = cls
        return cls

    return put


def known() -> dict[str, type[Signal]]:
    """Return every signal by name: the built-in ones and those of installed packages."""
    if not known.loaded:  # type: ignore[attr-defined]
        known.loaded = True  # type: ignore[attr-defined]
        _load()
    return _REGISTRY


known.loaded = False  # type: ignore[attr-defined]


def _load() -> None:
    from importlib import import_module

    for module in _BUILT_IN:
        import_module(f"iotsim.signals.{module}")
    for entry in entry_points(group="iotsim.signals"):
        try:
            _REGISTRY.setdefault(entry.name, entry.load())
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
    allowed = {entry.name: entry for entry in fields(cls)}
    for name in parameters:
        if name not in allowed:
            raise UnknownName(f"parameter of {type_name!r}", name, allowed)
    for name, entry in allowed.items():
        required = entry.default is MISSING and entry.default_factory is MISSING
        if required and name not in parameters:
            listed = ", ".join(sorted(allowed))
            raise BadValue(name, None, f"is missing; {type_name!r} needs it", f"Known: {listed}.")
    return cls(**parameters)


def number(name: str, value: Any, *, least: float | None = None, above: float | None = None,
           most: float | None = None) -> float:
    """Return a parameter as a finite float within its bounds."""
    bounds = [f"at least {least:g}" if least is not None else "",
              f"above {above:g}" if above is not None else "",
              f"at most {most:g}" if most is not None else ""]
    allowed = "Give a finite number" + "".join(f", {b}" for b in bounds if b) + "."
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
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
    return result
