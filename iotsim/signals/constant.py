"""Values that never change: a number, or any JSON value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from iotsim.errors import BadValue
from iotsim.readings import Kind
from iotsim.signals.base import (
    Floats,
    Signal,
    Single,
    Site,
    Source,
    Span,
    Steps,
    Tick,
    Values,
    number,
    register,
)
from iotsim.signals.uniform import bounds

_JSON_BYTES_MAX = 65_536
_PLAIN_JSON = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


@register("constant")
@dataclass(frozen=True, slots=True)
class Constant(Signal):
    """One number: `value`, or the middle of `min` and `max`.

    Parameters
    ----------
    value : float, optional
    min, max : float, optional
        Instead of `value`.
    """

    value: Any = None
    min: Any = None
    max: Any = None

    def __post_init__(self) -> None:
        _ = self._number

    @property
    def _number(self) -> float:
        if self.value is not None:
            if self.min is not None or self.max is not None:
                raise BadValue("value", self.value, "contradicts min and max", "Give one of both.")
            return number("value", self.value)
        for name in ("min", "max"):
            if getattr(self, name) is None:
                raise BadValue(name, None, "is missing", "Give value, or min and max.")
        low, high = bounds(self.min, self.max)
        return 0.5 * low + 0.5 * high

    @property
    def span(self) -> Span:
        """The bounds, or the value alone."""
        if self.value is None:
            return bounds(self.min, self.max)
        return self._number, self._number

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        return _Same(np.full((1, 1), self._number))

    def single(self, site: Site) -> Single:
        """Return the function for one device."""
        return _always(self._number)


@register("static")
@dataclass(frozen=True, slots=True, eq=False)
class Static(Signal):
    """Any JSON value, always the same; `null` is published as null.

    Parameters
    ----------
    value : number, text, boolean, None, list or dict
    """

    value: Any

    def __post_init__(self) -> None:
        value = self.value.item() if isinstance(self.value, np.generic) else self.value
        if isinstance(value, float) and not math.isfinite(value):
            raise BadValue("value", value, "is not finite", "JSON has no such number.")
        try:
            text = orjson.dumps(value, option=_PLAIN_JSON)
        except TypeError:
            allowed = "Give a number, text, true, false, null, or a list or mapping of such."
            raise BadValue("value", value, "is not a JSON value", allowed) from None
        object.__setattr__(self, "value", orjson.loads(text))  # a copy that nobody else can change
        if len(text) > _JSON_BYTES_MAX:
            raise BadValue("value", value, "is over 65,536 bytes of JSON", "Give less.")
        if self.kind == "int" and not -(2**63) <= value < 2**63:
            raise BadValue("value", value, "is out of range", "Give a whole number of 64 bits.")

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Static) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    @property
    def _text(self) -> bytes:  # 1, 1.0 and true are three values
        return orjson.dumps(self.value, option=orjson.OPT_SORT_KEYS)

    @property
    def kind(self) -> Kind:
        """What the value is: float, int, bool, text or json."""
        names: dict[type, Kind] = {float: "float", int: "int", bool: "bool", str: "text"}
        return names.get(type(self.value), "json")

    @property
    def categories(self) -> tuple[Any, ...]:
        """The value, where codes stand for it; null has the code −1 and no category."""
        coded = self.kind in ("text", "json") and self.value is not None
        return (self.value,) if coded else ()

    @property
    def span(self) -> Span:
        """The value, where it is a number."""
        numeric = self.kind in ("float", "int")
        return (float(self.value), float(self.value)) if numeric else None

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        if self.kind in ("text", "json"):
            code = -1 if self.value is None else 0
            return _Same(np.full((1, 1), code, dtype=np.int32))
        return _Same(np.full((1, 1), self.value))

    def single(self, site: Site) -> Single:
        """Return the function for one device."""
        return _always(self.value)


def _always(value: Any) -> Single:
    def same(tick: Tick) -> Any:
        return value

    return same


@dataclass(slots=True)
class _Same:
    values: Values

    def step(self, steps: Steps) -> Values | Floats:
        return self.values.copy()
