"""A device's grid and the streams it owns: what both engines must agree on."""

from __future__ import annotations

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
