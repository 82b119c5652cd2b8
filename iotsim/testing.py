"""Checks for signals of your own: what every signal must keep, held against one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from iotsim.readings import Ints
from iotsim.seeding import device_keys
from iotsim.signals.base import (
    Signal,
    Site,
    Source,
    Steps,
    Tick,
    Values,
    kept,
    resumed,
)

_START_US = 1_767_225_600_000_000
_DTYPES: dict[str, Any] = {
    "float": np.float64, "int": np.int64, "bool": np.bool_, "text": np.int32, "json": np.int32
}
DEVICES, TICKS, KEPT_AT = 40, 30, 12
SOME = np.array([31, 4, 0, 17, 39, 5])


def check_signal(
    signal: Signal,
    *,
    interval_us: int = 5_000_000,
    fields: Mapping[str, Values] | None = None,
    seed: int = 1,
) -> None:
    """Raise AssertionError unless a signal keeps what the engines rely on.

    Values are of its kind and of the right shape; one block of devices gives the bits of every
    device alone; any cut of the devices or the ticks gives the same bits; so does a second time,
    and so do numbers of ticks for each device; some of the devices can go on elsewhere from the
    state that they had (`keep` and `resume`, where it has one).

    Parameters
    ----------
    signal : Signal
    interval_us : int
    fields : mapping of name to array of shape (30, 40), optional
        What the signal depends on; made up if not given.
    seed : int

    Examples
    --------
    >>> from iotsim.signals.gaussian import Gaussian
    >>> check_signal(Gaussian(mean=20, stddev=1))
    """
    rig = _Rig(signal, interval_us, fields, seed)
    whole = rig.values([TICKS], [DEVICES])
    _check_kind(signal, whole)
    cuts = (([TICKS], [DEVICES]), ([1] * TICKS, [DEVICES]), ([7, 1, TICKS - 8], [1, 34, 5]),
            ([TICKS], [1] * DEVICES))
    for ticks, devices in cuts:
        again = rig.values(ticks, devices)
        assert same_bits(whole, again), f"{signal} depends on the cut {ticks} × {devices}"
    assert same_bits(whole, rig.values([7, TICKS - 7], [30, 10], numbered=True)), (
        f"{signal} differs where steps have numbers and elapsed times, shape (ticks, devices)"
    )
    _check_state(signal, rig, whole)
    _check_span(signal)
    for i in (0, 1, DEVICES - 1):
        alone = rig.alone(i)
        column = [rig.shown(value) for value in whole[:, i].tolist()]
        assert list(map(_bits, alone)) == list(map(_bits, column)), (
            f"{signal} gives {alone[:3]}… for device {i} alone and {column[:3]}… in a block"
        )


def same_bits(first: Values, second: Values) -> bool:
    """Return whether two arrays are equal in shape, type and every bit."""
    return (first.dtype == second.dtype and first.shape == second.shape
            and first.tobytes() == second.tobytes())


def _bits(value: Any) -> Any:
    return ("float", value.hex()) if isinstance(value, float) else (type(value).__name__, value)


def _check_kind(signal: Signal, values: Values) -> None:
    wanted = np.dtype(_DTYPES[signal.kind])
    assert values.dtype == wanted, f"{signal} is {signal.kind} but gives {values.dtype}"
    if signal.kind == "float":
        assert not np.isinf(values).any(), f"{signal} gives infinity; null is NaN"
    if signal.kind in ("text", "json"):
        inside = (values >= -1) & (values < len(signal.categories))
        assert inside.all(), f"{signal} gives codes outside its categories"


def _check_state(signal: Signal, rig: _Rig, whole: Values) -> None:
    source = signal.block(rig.site)
    everybody = np.arange(DEVICES)
    before = rig.stretch(source, everybody, 0, KEPT_AT)
    state = kept(source, SOME)
    assert state is None or signal.walks, f"{signal} has a state, so its walks must be true"
    after = rig.stretch(source, everybody, KEPT_AT, TICKS)
    assert same_bits(whole, np.concatenate([before, after])), f"{signal} changes by being kept"
    for time in ("the first", "the second"):
        site = Site(rig.site.parents[SOME], rig.site.field, rig.site.interval_us)
        other = resumed(signal.block(site), state)
        found = rig.stretch(other, SOME, KEPT_AT, TICKS)
        assert same_bits(whole[KEPT_AT:, SOME], found), (
            f"{signal} does not go on where it was kept, {time} time; see keep() and resume()"
        )


def _check_span(signal: Signal) -> None:
    span = signal.span
    assert span is None or -np.inf < span[0] <= span[1] < np.inf, f"{signal} has the span {span}"


class _Rig:
    def __init__(self, signal: Signal, interval_us: int, fields: Mapping[str, Values] | None,
                 seed: int) -> None:
        self.signal = signal
        keys = device_keys(seed, [f"device-{i:04d}" for i in range(DEVICES)])
        self.site = Site(keys, "field", interval_us)
        phases = np.arange(DEVICES, dtype=np.int64) * (interval_us // DEVICES)
        ticks = np.arange(TICKS, dtype=np.int64)[:, None]
        self.numbers = ticks + np.zeros(DEVICES, dtype=np.int64)
        self.time_us = _START_US + ticks * interval_us + phases
        made_up = {
            name: ((ticks * 7 + np.arange(DEVICES) * 3) % 101 - 25) / 4.0 for name in signal.needs
        }
        self.fields = {**made_up, **(fields or {})}

    def values(self, ticks: list[int], devices: list[int], *, numbered: bool = False) -> Values:
        """Return all values, stepped in rectangles of the given sizes."""
        source = self.signal.block(self.site)
        out: Values = np.empty((TICKS, DEVICES), dtype=_DTYPES[self.signal.kind])
        low = 0
        for wide in devices:
            where, first = slice(low, low + wide), 0
            for count in ticks:
                area = (slice(first, first + count), where)
                inputs = {name: values[area] for name, values in self.fields.items()}
                numbers = elapsed = None
                if numbered:
                    numbers = self.numbers[area]
                    elapsed = numbers * self.site.interval_us
                out[area] = self._step(source, Steps(
                    first, count, where, self.time_us[area], inputs, self.site.interval_us,
                    numbers, elapsed,
                ))
                first += count
            low += wide
        return out

    def stretch(self, source: Source, rows: Ints, first: int, last: int) -> Values:
        """Return the values of some ticks of a source of just these devices."""
        inputs = {name: values[first:last, rows] for name, values in self.fields.items()}
        return self._step(source, Steps(
            first, last - first, slice(0, len(rows)), self.time_us[first:last, rows], inputs,
            self.site.interval_us,
        ))

    def _step(self, source: Source, steps: Steps) -> Values:
        found = source.step(steps)
        wanted = np.dtype(_DTYPES[self.signal.kind])
        assert found.dtype == wanted, f"{self.signal} gives {found.dtype}"
        assert all(found is not values for values in steps.fields.values()), (
            f"{self.signal} hands out an array of another field; give a copy"
        )
        return np.array(np.broadcast_to(found, steps.shape))

    def alone(self, i: int) -> list[Any]:
        """Return the values of one device, made one by one."""
        single = self.signal.single(Site(self.site.parents[i : i + 1], "field",
                                         self.site.interval_us))
        return [
            single(Tick(n, int(self.time_us[n, i]),
                        {name: values[n, i].item() for name, values in self.fields.items()}))
            for n in range(TICKS)
        ]

    def shown(self, value: Any) -> Any:
        """Return what a code of the block stands for."""
        if self.signal.kind in ("text", "json"):
            return None if value < 0 else self.signal.categories[value]
        return value
