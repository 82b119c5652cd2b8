"""Checks for signals of your own: what every signal must keep, held against one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from iotsim.seeding import device_keys
from iotsim.signals.base import Signal, Site, Steps, Tick, Values

_START_US = 1_767_225_600_000_000
_DTYPES: dict[str, Any] = {
    "float": np.float64, "int": np.int64, "bool": np.bool_, "text": np.int32, "json": np.int32
}
DEVICES, TICKS = 40, 30


def check_signal(
    signal: Signal,
    *,
    interval_us: int = 5_000_000,
    fields: Mapping[str, Values] | None = None,
    seed: int = 1,
) -> None:
    """Raise AssertionError unless a signal keeps what the engines rely on.

    Values are of its kind and of the right shape; one block of devices gives the bits of every
    device alone; any cut of the devices or the ticks gives the same bits; and so does a second
    time.

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


class _Rig:
    def __init__(self, signal: Signal, interval_us: int, fields: Mapping[str, Values] | None,
                 seed: int) -> None:
        self.signal = signal
        keys = device_keys(seed, [f"device-{i:04d}" for i in range(DEVICES)])
        self.site = Site(keys, "field", interval_us)
        phases = np.arange(DEVICES, dtype=np.int64) * (interval_us // DEVICES)
        ticks = np.arange(TICKS, dtype=np.int64)[:, None]
        self.time_us = _START_US + ticks * interval_us + phases
        made_up = {
            name: ((ticks * 7 + np.arange(DEVICES) * 3) % 101 - 25) / 4.0 for name in signal.needs
        }
        self.fields = {**made_up, **(fields or {})}

    def values(self, ticks: list[int], devices: list[int]) -> Values:
        """Return all values, stepped in rectangles of the given sizes."""
        source = self.signal.block(self.site)
        out: Values = np.empty((TICKS, DEVICES), dtype=_DTYPES[self.signal.kind])
        low = 0
        for wide in devices:
            where, first = slice(low, low + wide), 0
            for count in ticks:
                area = (slice(first, first + count), where)
                inputs = {name: values[area] for name, values in self.fields.items()}
                steps = Steps(first, count, where, self.time_us[area], inputs)
                found = source.step(steps)
                assert found.dtype == out.dtype, f"{self.signal} gives {found.dtype}"
                assert all(found is not values for values in inputs.values()), (
                    f"{self.signal} hands out an array of another field; give a copy"
                )
                out[area] = np.broadcast_to(found, steps.shape)
                first += count
            low += wide
        return out

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
