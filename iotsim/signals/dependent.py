"""A field computed from other fields of the same reading."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iotsim.errors import BadValue, UnknownName
from iotsim.normals import normal, normal_many
from iotsim.seeding import Words, draws, squares64
from iotsim.signals.base import Floats, Signal, Single, Site, Source, Steps, Tick, number, register
from iotsim.signals.expression import Expression, parse

TERMS_MAX = 64


@register("depends_on")
@dataclass(frozen=True, slots=True)
class Dependent(Signal):
    """A value computed from other fields of the same reading, as published, plus noise.

    Either linear, offset + Σ coefficient · field, or an expression. Null in any field that counts,
    a division by zero and an overflow give null.

    Parameters
    ----------
    of : mapping of field name to float, optional
        Coefficients: `{temperature: -0.8, pressure: 0.1}`.
    offset : float
        Only with `of`.
    expression : str, optional
        Instead of `of`: `"min(100, 2 * temperature + where(battery < 20, 5, 0))"`.
    noise_stddev : float
        Standard deviation of white noise on top; ≥ 0.
    """

    of: Any = None
    offset: Any = 0.0
    expression: Any = None
    noise_stddev: Any = 0.0
    law: Expression = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        number("noise_stddev", self.noise_stddev, least=0)
        number("offset", self.offset)
        if (self.of is None) == (self.expression is None):
            given = None if self.of is None else self.of
            why = "stands beside expression" if given else "is missing, and expression too"
            raise BadValue("of", given, why, "Give one of them.")
        if self.expression is not None and self.offset:
            raise BadValue("offset", self.offset, "belongs to of", "Add it in the expression.")
        law = _linear(self.of, self.offset) if self.expression is None else parse(self.expression)
        object.__setattr__(self, "law", law)
        if self.of is not None:
            object.__setattr__(self, "of", dict(self.of))

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields it reads."""
        return self.law.names

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        return _Dependent(self.law, float(self.noise_stddev), site.keys(self.version))

    def single(self, site: Site) -> Single:
        """Return the function for one device."""
        law, noise, key = self.law, float(self.noise_stddev), site.key(self.version)

        def value(tick: Tick) -> float:
            for name in law.names:
                if name not in tick.fields:
                    raise UnknownName("field", name, tick.fields, "depends_on")
            x = float(law.one({name: float(tick.fields[name]) for name in law.names}))
            if noise:
                x = x + noise * normal(squares64(tick.n, key))
            return x if math.isfinite(x) else math.nan

        return value


def _linear(of: Any, offset: Any) -> Expression:
    allowed = f"Give 1 to {TERMS_MAX} fields with their coefficients: {{temperature: -0.8}}."
    if not isinstance(of, Mapping) or not 1 <= len(of) <= TERMS_MAX:
        raise BadValue("of", of, "is not a mapping of fields", allowed)
    # In order of name: the order in a file must not change the rounding of a sum.
    terms = [(str(name), number(f"of.{name}", of[name])) for name in sorted(of, key=str)]
    first = float(offset)

    def total(fields: Mapping[str, Any]) -> Any:
        found: Any = first
        for name, coefficient in terms:
            found = found + coefficient * fields[name]
        return found

    return Expression(tuple(name for name, _ in terms), total, total)


@dataclass(slots=True)
class _Dependent:
    law: Expression
    noise: float
    keys: Words

    def step(self, steps: Steps) -> Floats:
        fields = {
            name: np.asarray(steps.fields[name], dtype=np.float64) for name in self.law.names
        }
        with np.errstate(all="ignore"):
            found = self.law.many(fields)
            values = np.array(np.broadcast_to(found, steps.shape), dtype=np.float64)
            if self.noise:
                noise = normal_many(draws(self.keys[steps.devices], steps.counters))
                noise *= self.noise
                values += noise
        values[~np.isfinite(values)] = np.nan
        return values
