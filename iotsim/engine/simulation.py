"""A fleet under one clock: blocks, scripted devices, the readings they make, and what is done.

This is the whole of the model. Offline it is driven window by window; live, a run drives the same
blocks and the same devices at the pace of a clock. Nothing here knows about either. What is done to
it (`act`) takes effect at an instant that nothing has passed, and each block comes to that instant
in its own time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from iotsim.actions import Action
from iotsim.engine.block import Block
from iotsim.engine.deeds import Deeds
from iotsim.engine.device import Cast, Device
from iotsim.engine.grid import phases_us
from iotsim.engine.kernel import Kernel
from iotsim.engine.live import LiveKernel
from iotsim.engine.merging import merged
from iotsim.engine.population import Population
from iotsim.errors import DeviceFailed, IotsimError
from iotsim.faults.base import Window
from iotsim.members import Members
from iotsim.readings import Group, Ints, Readings
from iotsim.seeding import device_keys
from iotsim.units import instant_text

Parts = Callable[[Group], list[npt.NDArray[np.int32]]]


class Witness(Protocol):
    """Somebody who must know what is done to devices: the links between them and the brokers."""

    def check(self, member: Members, group: Group, slots: Ints | None) -> None:
        """Raise if devices cannot begin, or be in another group (then these have slots)."""

    def joined(self, member: Members, group: Group, slots: Ints) -> None:
        """Take note of devices that begin, or are in another group from some time on."""

    def injected(self, window: Window) -> None:
        """Take note of a fault that will reach devices."""

    def cleared(self, window: Window, slots: Ints, at_us: int) -> None:
        """Take note of a fault that ended before its time for some devices."""

    def stopped(self, slots: Ints, at_us: int) -> None:
        """Take note of devices that ended."""


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
    witness : Witness, optional
        Told of everything that is done.

    Attributes
    ----------
    population : Population
    deeds : Deeds
        What was done, resolved to devices.
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
        witness: Witness | None = None,
    ) -> None:
        self.seed, self.start_us = seed, start_us
        self.population = Population(seed)
        self.witness = witness
        self.failures = Failures()
        self.kernel = make_kernel(self.failed)
        self.parts = _by_width if parts is None else parts
        self._part_of: dict[int, npt.NDArray[np.int32]] = {}  # by group: who may step together
        self._crumbled = False  # since blocks were made one
        self.blocks: list[Block] = []
        self._holder = np.empty(0, dtype=np.int64)  # by slot: the last block it came to
        self._by_number: dict[int, Block] = {}
        self._settled = 0
        self.script_rows = 0  # what the last flush gave
        self.casts: list[Cast] = []
        self.deeds = Deeds(self)
        made = groups or [member.group(i) for i, member in enumerate(members)]
        for member, group in zip(members, made, strict=True):
            self.take_in(member, group, start_us)

    @property
    def groups(self) -> list[Group]:
        """All groups there have been."""
        return self.population.groups

    @property
    def rate_hz(self) -> float:
        """Readings per simulated second of the devices that profiles describe."""
        return sum(len(block) * 1e6 / block.profile.interval_us for block in self.blocks)

    def act(self, action: Action) -> Action:
        """Do something to devices; returns the action with how many it concerned.

        Parameters
        ----------
        action : Action
            With an instant that nothing has been computed beyond.

        Raises
        ------
        IotsimError
            If it cannot be done; nothing is then changed.
        """
        return self.deeds.act(action)

    def take_in(self, member: Members, group: Group, at_us: int) -> None:
        """Let devices begin at an instant."""
        slots = self.population.add(member, group, at_us)
        if self.witness is not None:
            self.witness.joined(member, group, slots)
        if member.profile is None:
            self._add_cast(member, group, slots, at_us)
            return
        part_of = self._part_of[group.index] = np.zeros(len(group), dtype=np.int32)
        for i, part in enumerate(self.parts(group)):
            part_of[part] = i
            self.settle_block(Block(group, member.profile, self.seed, at_us, part, slots))

    def settle_block(self, block: Block) -> None:
        """Look after a block from now on."""
        block.forked = self.settle_block
        self.blocks.append(block)
        self._hold(block)

    def _hold(self, block: Block) -> None:
        self._by_number[self._settled] = block
        self._holders[block.slots] = self._settled
        self._settled += 1

    @property
    def _holders(self) -> Ints:
        more = len(self.population) - len(self._holder)
        if more:
            self._holder = np.append(self._holder, np.full(more, -1, dtype=np.int64))
        return self._holder

    def blocks_of(self, slots: Ints) -> list[Block]:
        """Return the blocks that step some devices now; none for scripted ones."""
        numbers = np.unique(self._holders[slots]).tolist()
        found = [self._by_number.get(number) for number in numbers]
        return [block for block in found if block is not None and not block.retired]

    @property
    def settled(self) -> int:
        """How many blocks there have been; grows with every split and merger."""
        return self._settled

    def homes(self, slots: Ints) -> list[tuple[Block | None, npt.NDArray[np.bool_]]]:
        """Return who steps some devices now, and which of them each; None: nobody any more."""
        numbers = self._holders[slots]
        found: list[tuple[Block | None, npt.NDArray[np.bool_]]] = []
        for number in np.unique(numbers).tolist():
            block = self._by_number.get(number)
            found.append((None if block is None or block.retired else block, numbers == number))
        return found

    def drop_retired(self) -> None:
        """Forget blocks that have given way to others; those that are alike become one."""
        if any(block.retired for block in self.blocks):
            self.blocks[:] = [block for block in self.blocks if not block.retired]
            self._crumbled = True
        if self._crumbled:
            before = set(self.blocks)
            self.blocks[:] = merged(self.blocks, self._kind)
            for block in self.blocks:
                if block not in before:
                    self._hold(block)
            held = self._by_number.items()
            self._by_number = {number: block for number, block in held if not block.retired}
            self._crumbled = False

    def _kind(self, block: Block) -> int | None:
        # Of a group that devices moved to nobody knows who may step together.
        part_of = self._part_of.get(block.group.index)
        return None if part_of is None else int(part_of[block._members[0]])

    def _add_cast(self, member: Members, group: Group, slots: Ints, at_us: int) -> None:
        assert member.script is not None
        cast = Cast(group, self.seed, self.kernel, member.interval_us, slots)
        self.casts.append(cast)
        begins = np.full(len(group), at_us, dtype=np.int64)
        if member.interval_us is not None:
            begins += phases_us(None, member.interval_us, device_keys(self.seed, group.ids))
        for i, begin_us in enumerate(begins.tolist()):
            device = Device(cast, i, int(slots[i]), begin_us)
            device.body = member.script(device)
            self.kernel.spawn(device, begin_us)

    def failed(self, device: Device, error: BaseException) -> None:
        """Note that a device raised; the others go on."""
        time = instant_text(device.now_us)
        self.failures.add(DeviceFailed(device.id, time, self.seed, error))

    def advance(self, until_us: int) -> Iterator[Readings]:
        """Yield all readings due before an instant, stepping devices by hand."""
        self.drop_retired()
        for block in self.blocks:  # those that a split makes are appended meanwhile
            yield from block.advance(until_us)
        yield from self.advance_scripts(until_us)

    def advance_scripts(self, until_us: int) -> Iterator[Readings]:
        """Yield the readings of scripted devices due before an instant."""
        if self.casts:
            for at_us in self.deeds.script_times(until_us):
                self.kernel.run_until(at_us)
                self.deeds.do_scripts(at_us)
            self.kernel.run_until(until_us)
            yield from self.flush()

    async def advance_live(self, until_us: int) -> None:
        """Wake scripted devices that are due before an instant, as tasks on the loop."""
        kernel = self.kernel
        assert isinstance(kernel, LiveKernel)
        for at_us in (*self.deeds.script_times(until_us), until_us):
            await kernel.advance(at_us)
            if kernel.next_us is not None and kernel.next_us < at_us:
                return  # some wait for their lane, or something was done: that instant comes first
            if at_us < until_us:
                self.deeds.do_scripts(at_us)

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
