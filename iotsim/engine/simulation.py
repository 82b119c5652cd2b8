"""A fleet under one clock: blocks, scripted devices, and the readings they make.

This is the whole of the model. Offline it is driven window by window; live, a run drives the same
blocks and the same devices at the pace of a clock. Nothing here knows about either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iotsim.engine.block import Block
from iotsim.engine.device import Cast, Device
from iotsim.engine.grid import phases_us
from iotsim.engine.kernel import Kernel
from iotsim.errors import DeviceFailed, IotsimError
from iotsim.members import Members
from iotsim.readings import Group, Readings
from iotsim.seeding import device_keys
from iotsim.units import instant_text

Parts = Callable[[Group], list[npt.NDArray[np.int32]]]

BLOCK_DEVICES = 1024  # as wide as a cache likes; more ticks at a time make up for it
FAILURES_KEPT = 1000


def _by_width(group: Group) -> list[npt.NDArray[np.int32]]:
    everyone = np.arange(len(group), dtype=np.int32)
    return [everyone[i : i + BLOCK_DEVICES] for i in range(0, len(group), BLOCK_DEVICES)]


class Failures:
    """What went wrong in a run: bounded, counted."""

    def __init__(self) -> None:
        self.kept: list[IotsimError] = []
        self.count = 0

    def add(self, error: IotsimError) -> None:
        """Keep an error, or only count it when there are too many."""
        self.count += 1
        if len(self.kept) < FAILURES_KEPT:
            self.kept.append(error)


class Simulation:
    """Everything a fleet does from a start on.

    Parameters
    ----------
    members : sequence of Members
    seed : int
    start_us : int
    groups : sequence of Group, optional
        The members' groups, if they have been made already.
    parts : callable (group) -> arrays of device indices, optional
        Which devices form a block; as many as a cache likes if not given.
    make_kernel : callable (on_failure) -> Kernel
        Who steps scripted devices; by hand if not given.
    """

    def __init__(
        self,
        members: Sequence[Members],
        seed: int,
        start_us: int,
        *,
        groups: Sequence[Group] | None = None,
        parts: Parts | None = None,
        make_kernel: Callable[[Callable[[Any, BaseException], None]], Kernel] = Kernel,
    ) -> None:
        self.seed, self.start_us = seed, start_us
        self.groups = list(groups or [member.group(i) for i, member in enumerate(members)])
        self.failures = Failures()
        self.kernel = make_kernel(self.failed)
        self._parts = _by_width if parts is None else parts
        self.blocks: list[Block] = []
        self.script_rows = 0  # what the last flush gave
        self.casts: list[Cast] = []
        order = 0
        for member, group in zip(members, self.groups, strict=True):
            if member.profile is not None:
                self._add_blocks(member, group)
            else:
                self._add_cast(member, group, order)
            order += len(group)

    @property
    def rate_hz(self) -> float:
        """Readings per simulated second of the devices that profiles describe."""
        return sum(len(block) * 1e6 / block.profile.interval_us for block in self.blocks)

    def _add_blocks(self, member: Members, group: Group) -> None:
        assert member.profile is not None
        for part in self._parts(group):
            self.blocks.append(Block(group, member.profile, self.seed, self.start_us, part))

    def _add_cast(self, member: Members, group: Group, order: int) -> None:
        assert member.script is not None
        cast = Cast(group, self.seed, self.kernel, member.interval_us)
        self.casts.append(cast)
        begins = np.full(len(group), self.start_us, dtype=np.int64)
        if member.interval_us is not None:
            begins += phases_us(None, member.interval_us, device_keys(self.seed, group.ids))
        for i, begin_us in enumerate(begins.tolist()):
            device = Device(cast, i, order + i, begin_us)
            device.body = member.script(device)
            self.kernel.spawn(device, begin_us)

    def failed(self, device: Device, error: BaseException) -> None:
        """Note that a device raised; the others go on."""
        time = instant_text(device.now_us)
        self.failures.add(DeviceFailed(device.id, time, self.seed, error))

    def advance(self, until_us: int) -> Iterator[Readings]:
        """Yield all readings due before an instant, stepping devices by hand."""
        for block in self.blocks:
            yield from block.advance(until_us)
        yield from self.advance_scripts(until_us)

    def advance_scripts(self, until_us: int) -> Iterator[Readings]:
        """Yield the readings of scripted devices due before an instant."""
        if self.casts:
            self.kernel.run_until(until_us)
            yield from self.flush()

    def flush(self) -> Iterator[Readings]:
        """Yield what scripted devices have emitted since the last call."""
        self.script_rows = sum(len(cast.rows) for cast in self.casts)
        for cast in self.casts:
            readings = cast.flush()
            if readings is not None:
                yield readings

    def close(self) -> None:
        """End every scripted device where it stands."""
        self.kernel.close()
