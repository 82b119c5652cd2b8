"""Rounding to what a sensor can resolve: rint(x · k) / k, the same bits in both engines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from iotsim.errors import BadValue
from iotsim.signals.base import Floats, number


@dataclass(frozen=True, slots=True)
class Resolution:
    """A step that a whole number of times makes 1, or that is itself a whole number.

    Attributes
    ----------
    per_unit : float
        k, steps in one unit: 1/resolution as a whole number; 1 for steps of 1 and more.
    step : float
        The step where it is a whole number; 1 for finer ones.
    """

    per_unit: float
    step: float

    @classmethod
    def of(cls, value: Any) -> Resolution:
        """Return the resolution for a step such as 0.01, 0.25, 1 or 5.

        Raises
        ------
        BadValue
            If neither the step nor its inverse is a whole number.
        """
        given = number("resolution", value, above=0, most=1e9)
        whole = Fraction(given).limit_denominator(10**9)
        if math.isclose(float(whole), given, rel_tol=1e-12):
            if whole.numerator == 1:
                return cls(float(whole.denominator), 1.0)
            if whole.denominator == 1:
                return cls(1.0, float(whole.numerator))
        allowed = "Give 1/k or a whole number, such as 0.01, 0.25, 1 or 5."
        raise BadValue("resolution", value, "does not divide 1", allowed)

    def many(self, values: Floats) -> Floats:
        """Return values rounded in place; −0 becomes 0, so that it is one value on the wire."""
        if self.step != 1.0:
            values /= self.step
        if self.per_unit != 1.0:
            values *= self.per_unit
        np.rint(values, out=values)
        if self.per_unit != 1.0:
            values /= self.per_unit
        if self.step != 1.0:
            values *= self.step
        values += 0.0
        return values

    def one(self, value: float) -> float:
        """Return `many` of one value."""
        if not math.isfinite(value):
            return value
        if self.step != 1.0:
            value /= self.step
        if self.per_unit != 1.0:
            value *= self.per_unit
        whole = float(round(value)) if abs(value) < 2**52 else value
        if self.per_unit != 1.0:
            whole /= self.per_unit
        if self.step != 1.0:
            whole *= self.step
        return whole + 0.0
