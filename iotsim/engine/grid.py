"""A device's grid and the streams it owns: what both engines must agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from iotsim.profiles import Field, Profile
from iotsim.readings import Group, Ints, gateways_of
from iotsim.seeding import Words, device_keys, draws, scaled, shared_key, stream_keys
from iotsim.signals.base import Site

Ints32: TypeAlias = npt.NDArray[np.int32]

PHASE_VERSION = JITTER_VERSION = 1
PHASE, JITTER = "\0phase", "\0jitter"  # names that no field can have


def phases_us(phase_us: int | None, interval_us: int, keys: Words) -> Ints:
    """Return each device's offset on the grid, in [0, interval), shape (devices,).

    Parameters
    ----------
    phase_us : int or None
        The same for all devices, or from each device's own stream.
    interval_us : int
    keys : uint64 array, shape (devices,)
    """
    if phase_us is not None:
        return np.full(len(keys), phase_us, dtype=np.int64)
    words = draws(stream_keys(keys, PHASE, PHASE_VERSION), np.zeros(1, dtype=np.uint64))
    return scaled(words, interval_us)


def grid_keys(seed: int, group: Group, members: Ints32, keys: Words) -> Words:
    """Return what the phases of devices are drawn by, shape (members,).

    The sensors of one gateway share its tick.

    Parameters
    ----------
    seed : int
    group : Group
    members : int32 array
        Which devices of the group.
    keys : uint64 array, shape (members,)
        The devices' own.
    """
    gateways = gateways_of(group)
    return keys if gateways is None else device_keys(seed, [gateways[i] for i in members.tolist()])


def jitter_keys(keys: Words) -> Words:
    """Return the keys of the streams that move published times, shape (devices,)."""
    return stream_keys(keys, JITTER, JITTER_VERSION)


def site_of(field: Field, profile: Profile, group: Group, seed: int, keys: Words) -> Site:
    """Return where a field lives: keyed by its devices, or by a shared label's value."""
    if field.shared is not None:
        value = group.labels[field.shared]
        keys = np.full(len(keys), shared_key(seed, field.shared, value), dtype=np.uint64)
    return Site(keys, field.name, profile.interval_us)


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where the grid of devices begins whose interval was changed, shape (devices,) each.

    Attributes
    ----------
    numbers : int64 array
        The tick n at which it begins.
    elapsed_us : int64 array
        The time since the device's first tick there.
    last_us : int64 array
        When the tick before it was: the new interval goes from there.
    """

    numbers: Ints
    elapsed_us: Ints
    last_us: Ints

    def take(self, rows: Ints) -> Origin:
        """Return the origin of some of the devices."""
        return Origin(self.numbers[rows], self.elapsed_us[rows], self.last_us[rows])

    @classmethod
    def joined(cls, origins: Sequence[Origin]) -> Origin:
        """Return the origin of the devices of several."""
        return cls(np.concatenate([one.numbers for one in origins]),
                   np.concatenate([one.elapsed_us for one in origins]),
                   np.concatenate([one.last_us for one in origins]))


def new_grid(
    at_us: int, first_us: Ints, old_us: int, interval_us: int, origin: Origin | None
) -> tuple[Ints, Origin]:
    """Return the phases and the origin of a grid that begins at an instant.

    The next tick is at the last one plus the new interval, or as many of them as it takes.

    Parameters
    ----------
    at_us : int
        Where the new grid begins.
    first_us : int64 array, shape (devices,)
        When the first tick of each device on the old one is, or was.
    old_us, interval_us : int
        The intervals; they may be equal.
    origin : Origin or None
        Of the old grid.
    """
    ticks = (at_us - 1 - first_us) // old_us  # −1 before the first
    last_us = first_us + ticks * old_us
    numbers, elapsed_us = ticks + 1, ticks * old_us
    if origin is not None:
        # A grid that has had no tick yet goes on from the last one of the grid before.
        since_us = np.where(ticks < 0, origin.last_us - first_us, elapsed_us)
        last_us = np.where(ticks < 0, origin.last_us, last_us)
        numbers, elapsed_us = numbers + origin.numbers, since_us + origin.elapsed_us
    next_us = last_us + interval_us * -(-(at_us - last_us) // interval_us)
    return next_us - at_us, Origin(numbers, elapsed_us + (next_us - last_us), last_us)
