"""A mean-reverting walk, stepped by its exact transition.

dX = drift·dt + θ (mean − X) dt + σ dW has, over a step of length dt, the law
X' = m + (X − m)·e^(−θ dt) + σ·√((1 − e^(−2θ dt)) / 2θ)·N with m = mean + drift/θ (Gillespie 1996,
"Exact numerical simulation of the Ornstein–Uhlenbeck process"); for θ = 0 it is a walk with
drift. Long intervals are as right as short ones, unlike the Euler step that the reference uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from iotsim.errors import BadValue
from iotsim.normals import normal, normal_many
from iotsim.readings import Ints
from iotsim.seeding import Words, draws, squares64
from iotsim.signals.base import (
    NARROW_DEVICES,
    SPAN_STDDEVS,
    Floats,
    Signal,
    Single,
    Site,
    Source,
    Span,
    Steps,
    Tick,
    finite_span,
    number,
    register,
)


@dataclass(frozen=True, slots=True)
class Transition:
    """One exact step: x' = keep · x + (shift + spread · N), then the clamp."""

    keep: float
    shift: float
    spread: float
    low: float
    high: float


@register("brownian")
@dataclass(frozen=True, slots=True)
class Brownian(Signal):
    """A random walk that drifts, or returns to its mean, within optional bounds.

    Parameters
    ----------
    volatility : float
        σ, in the unit of the field per √second; ≥ 0.
    start : float
        Value one interval before the first reading.
    drift : float
        In the unit of the field per second.
    mean_reversion : float
        θ, per second; ≥ 0.
    mean : float, optional
        Where it returns to; the start value if not given.
    min, max : float, optional
        Bounds; either may be given alone.
    """

    volatility: Any
    start: Any = 0.0
    drift: Any = 0.0
    mean_reversion: Any = 0.0
    mean: Any = None
    min: Any = None
    max: Any = None

    def __post_init__(self) -> None:
        number("volatility", self.volatility, least=0)
        number("start", self.start)
        number("drift", self.drift)
        number("mean_reversion", self.mean_reversion, least=0)
        for name in ("mean", "min", "max"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name))
        if self.min is not None and self.max is not None and self.min >= self.max:
            raise BadValue("min", self.min, f"is not below max={self.max!r}", "Swap them.")

    @property
    def walks(self) -> bool:
        """Yes: its state moves on the grid only."""
        return True

    @property
    def span(self) -> Span:
        """The bounds; where one is missing, four stationary standard deviations from the mean."""
        theta, low, high = float(self.mean_reversion), self.min, self.max
        if theta:
            middle = float(self.start if self.mean is None else self.mean)
            middle += float(self.drift) / theta
            reach = SPAN_STDDEVS * float(self.volatility) / math.sqrt(2 * theta)
            ends = np.clip([middle - reach, middle + reach], self.min, self.max).tolist()
            low, high = (ends[0] if low is None else low), (ends[1] if high is None else high)
        return None if low is None or high is None else finite_span(float(low), float(high))

    @property
    def drift_per_s(self) -> float | None:
        """The drift, if there is one."""
        return float(self.drift) or None

    def transition(self, interval_us: int) -> Transition:
        """Return the step over one interval; its coefficients are computed in decimal, once."""
        with localcontext() as context:
            context.prec = 40
            dt = Decimal(interval_us) / 1_000_000
            theta, sigma = _exact(self.mean_reversion), _exact(self.volatility)
            # 1 − e^(−θ dt) loses as many digits as θ dt has zeros.
            zeros = -(theta * dt).adjusted() if theta else 0
            context.prec = 40 if zeros <= 10 else 40 + 2 * zeros
            drift = _exact(self.drift)
            if theta == 0:
                keep, shift, spread = Decimal(1), drift * dt, sigma * dt.sqrt()
            else:
                keep = (-theta * dt).exp()
                mean = _exact(self.start if self.mean is None else self.mean)
                shift = (mean + drift / theta) * (1 - keep)
                spread = sigma * ((1 - keep * keep) / (2 * theta)).sqrt()
        # + 0.0 makes −0 a 0: which of the two np.maximum returns depends on the processor.
        low = -np.inf if self.min is None else float(self.min) + 0.0
        high = np.inf if self.max is None else float(self.max) + 0.0
        return Transition(float(keep), float(shift) + 0.0, float(spread), low, high)

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        state = np.full(len(site.parents), float(self.start) + 0.0)
        return _Brownian(self.transition(site.interval_us), site.keys(self.version), state)

    def single(self, site: Site) -> Single:
        """Return the function for one device."""
        step, key = self.transition(site.interval_us), site.key(self.version)
        keep, shift, spread, low, high = step.keep, step.shift, step.spread, step.low, step.high
        x = float(self.start) + 0.0

        def value(tick: Tick) -> float:
            nonlocal x
            push = spread * normal(squares64(tick.n, key)) + shift if spread else shift
            x = keep * x + push
            x = low if x < low else high if x > high else x
            return x

        return value


def _exact(value: Any) -> Decimal:
    return Decimal(float(value))


@dataclass(slots=True)
class _Brownian:
    step_law: Transition
    keys: Words
    state: Floats

    def step(self, steps: Steps) -> Floats:
        law = self.step_law
        if law.spread:
            values = normal_many(draws(self.keys[steps.devices], steps.counters))
            values *= law.spread
            values += law.shift
        else:
            values = np.full(steps.shape, law.shift)
        walk = _walk_narrow if steps.shape[1] < NARROW_DEVICES else _walk
        walk(law, values, self.state[steps.devices])
        return values

    def keep(self, rows: Ints) -> Floats:
        return self.state[rows]  # indices, not a slice: a copy

    def resume(self, kept: Floats) -> None:
        self.state[:] = kept


def _walk(law: Transition, pushes: Floats, state: Floats) -> None:
    # pushes[t] becomes the value at t; state ends as the last row.
    before = state
    kept = np.empty_like(state)
    for row in pushes:
        np.multiply(before, law.keep, out=kept)
        row += kept
        if law.low > -np.inf:
            np.maximum(row, law.low, out=row)
        if law.high < np.inf:
            np.minimum(row, law.high, out=row)
        before = row
    state[:] = before


def _walk_narrow(law: Transition, pushes: Floats, state: Floats) -> None:
    keep, low, high = law.keep, law.low, law.high
    for i, x in enumerate(state.tolist()):
        column = pushes[:, i].tolist()
        for t, push in enumerate(column):
            x = keep * x + push
            x = low if x < low else high if x > high else x
            column[t] = x
        pushes[:, i] = column
        state[i] = x
