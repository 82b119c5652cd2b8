"""Slow, obvious twins of everything that makes a value: loops, `math` and mpmath.

Written from the papers and the contract, not from the package; nothing of iotsim is imported.
Values agree within the error of the normal table; the package's two engines agree to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import mpmath

M64 = 2**64 - 1


# -- words -------------------------------------------------------------------------------------


def fnv(text: str) -> int:
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def splitmix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def child(key: int, name: int) -> int:
    return splitmix(key ^ splitmix((name + 0x9E3779B97F4A7C15) % 2**64))


def device(seed: int, name: str) -> int:
    return child(splitmix((seed + 0x9E3779B97F4A7C15) % 2**64), fnv(name))


def stream(parent: int, name: str, version: int = 1) -> int:
    return child(child(parent, fnv(name)), version) | 1


def squares(ctr: int, key: int) -> int:
    """Widynski, "Squares", the 64-bit routine, line by line."""
    y = x = ctr * key & M64
    z = y + key & M64
    x = x * x + y & M64
    x = (x >> 32) | (x << 32) & M64
    x = x * x + z & M64
    x = (x >> 32) | (x << 32) & M64
    x = x * x + y & M64
    x = (x >> 32) | (x << 32) & M64
    t = x = x * x + z & M64
    x = (x >> 32) | (x << 32) & M64
    return t ^ ((x * x + y & M64) >> 32)


def unit(word: int) -> float:
    return math.floor(word / 2**11) / 2**53 if word < 2**53 else (word >> 11) / 2**53


@cache
def quantile(p: float) -> float:
    """Return the z that a standard normal value exceeds with probability p, by bisection."""
    low, high = mpmath.mpf(-1), mpmath.mpf(9)
    with mpmath.workdps(30):
        for _ in range(80):
            middle = (low + high) / 2
            if mpmath.ncdf(-middle) > p:
                low = middle
            else:
                high = middle
        return float((low + high) / 2)


def normal(word: int) -> float:
    tail = ((word >> 12) + 0.5) / 2**53
    return -quantile(tail) if word & 1 else quantile(tail)


# -- signals: each yields the values of ticks 0, 1, 2, … of one device ---------------------------


def gaussian(parent: int, field: str, mean: float, stddev: float) -> Iterator[float]:
    key, n = stream(parent, field), 0
    while True:
        yield mean + stddev * normal(squares(n, key))
        n += 1


def uniform(parent: int, field: str, low: float, high: float) -> Iterator[float]:
    key, n = stream(parent, field), 0
    while True:
        yield low + unit(squares(n, key)) * (high - low)
        n += 1


def brownian(parent, field, dt, volatility, start=0.0, drift=0.0, mean_reversion=0.0, mean=None,
             min=-math.inf, max=math.inf):
    key, n, x = stream(parent, field), 0, start
    mean = start if mean is None else mean
    while True:
        z = normal(squares(n, key))
        if mean_reversion == 0:
            x = x + drift * dt + volatility * math.sqrt(dt) * z
        else:
            target = mean + drift / mean_reversion
            spread = volatility * math.sqrt(
                -math.expm1(-2 * mean_reversion * dt) / (2 * mean_reversion)
            )
            x *= math.exp(-mean_reversion * dt)
            x += target * -math.expm1(-mean_reversion * dt) + spread * z
        x = min if x < min else max if x > max else x
        yield x
        n += 1


def diurnal(parent, field, seconds, baseline, amplitude, peak_hour=0.0, noise_stddev=0.0):
    """`seconds`: second of the local day of each tick."""
    key = stream(parent, field)
    for n, second in enumerate(seconds):
        turn = (second / 3600 - peak_hour) / 24
        noise = noise_stddev * normal(squares(n, key)) if noise_stddev else 0.0
        yield baseline + amplitude * math.sin(2 * math.pi * turn + math.pi / 2) + noise


def sine_wave(dt: float, low: float, high: float, period: float) -> Iterator[float]:
    n = 0
    while True:
        yield (low + high) / 2 + (high - low) / 2 * math.sin(2 * math.pi * n * dt / period)
        n += 1


def spike(parent, field, low, high, probability, magnitude):
    key, chance = stream(parent, field), stream(child(parent, fnv(field)), "spike")
    n = 0
    while True:
        c = squares(n, chance)
        if unit(c) < probability:
            reach = magnitude * (high - low)
            yield low - reach if c % 2 else high + reach
        else:
            yield low + unit(squares(n, key)) * (high - low)
        n += 1


def markov(parent, field, states, matrix, initial=None, per_interval=1.0):
    """`per_interval`: interval / per; one transition at each whole number of it that passes."""
    key, done, n = stream(parent, field), 0, 0
    state = states.index(initial) if initial else 0
    while True:
        while done < math.floor((n + 1) * per_interval + 1e-9):
            r, total = unit(squares(done, key)), 0.0
            for column, p in enumerate(matrix[state]):
                total += p
                if total > r:
                    state = column
                    break
            done += 1
        yield states[state]
        n += 1
