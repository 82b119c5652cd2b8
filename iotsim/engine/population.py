"""Who there is: every device that ever was, which group it is in now, how long it lives.

A device has a number in its fleet, its slot, that it keeps for ever: faults go by slots. Groups
are what devices share (type, labels), and a device may move to another one: a firmware update
changes a label. Who a selector means is decided here, at the moment an action takes effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue
from iotsim.faults.base import NEVER_US, Window
from iotsim.members import Members
from iotsim.profiles import Profile
from iotsim.readings import Group, Ints
from iotsim.seeding import Words, device_keys
from iotsim.selectors import Where, select


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """Devices that change group when a window ends, if nobody cleared it before."""

    at_us: int
    window: Window
    slots: Ints
    group: Group

    def those_left(self) -> Ints:
        """Return the devices that do move."""
        member = self.window.members(self.slots)
        return np.asarray(self.slots[self.window.ends_us[member] == self.at_us])


class Population:
    """Every device of a run, by slot.

    Parameters
    ----------
    seed : int

    Attributes
    ----------
    groups : list of Group
    members : list of Members
        Of each group: where its profile and topic come from.
    ids : list of str
        By slot.
    slots : list of int64 arrays
        Of each group, the slot of each of its devices.
    home : int32 array
        By slot: the index of the group that the device is in now.
    variant : int32 array
        By slot: the index in `profiles` of what it runs now.
    began_us, ended_us : int64 arrays
        By slot; `NEVER_US` while it lives.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.groups: list[Group] = []
        self.members: list[Members] = []
        self.ids: list[str] = []
        self.slots: list[Ints] = []
        self.profiles: list[Profile | None] = []
        self.home = np.empty(0, dtype=np.int32)
        self.variant = np.empty(0, dtype=np.int32)
        self.began_us = np.empty(0, dtype=np.int64)
        self.ended_us = np.empty(0, dtype=np.int64)
        self.moves: list[Move] = []
        self._names: set[str] | None = None
        self._counts: dict[str, Ints] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, members: Members, group: Group, at_us: int) -> Ints:
        """Take devices in; returns their slots."""
        first, count = len(self.ids), len(group)
        slots = np.arange(first, first + count, dtype=np.int64)
        self.ids.extend(group.ids)
        self._put(members, group, slots)
        self.profiles.append(members.profile)
        variant = len(self.profiles) - 1
        self.home = np.append(self.home, np.full(count, group.index, np.int32))
        self.variant = np.append(self.variant, np.full(count, variant, np.int32))
        self.began_us = np.append(self.began_us, np.full(count, at_us, np.int64))
        self.ended_us = np.append(self.ended_us, np.full(count, NEVER_US, np.int64))
        if self._names is not None:
            self._names.update(group.ids)
        return slots

    def _put(self, members: Members, group: Group, slots: Ints) -> None:
        assert group.index == len(self.groups)
        self.groups.append(group)
        self.members.append(members)
        self.slots.append(slots)

    def check_free(self, group: Group) -> None:
        """Raise if an id belongs to a device that is or was."""
        if self._names is None:
            self._names = set(self.ids)
        for name in group.ids:
            if name in self._names:
                raise BadValue("id", name, "is taken by another device of this run",
                               "Give another template, such as id='b-{index:04d}'.")

    def first_index(self, series: str) -> int:
        """Return the index of the next device of a type: ids are never reused."""
        ends = [m.first + m.count for m in self.members if m.series == series]
        return max(ends, default=0)

    def keys(self, slots: Ints) -> Words:
        """Return the keys of devices, shape (slots,)."""
        return device_keys(self.seed, [self.ids[slot] for slot in slots.tolist()])

    def select(self, where: Where, at_us: int) -> tuple[Ints, str]:
        """Return the slots of the living devices that a selector means, ascending, and a note."""
        self.settle(at_us)
        alive = {
            group.index: (self.home[slots] == group.index) & (self.ended_us[slots] > at_us)
            for group, slots in zip(self.groups, self.slots, strict=True)
        }
        found = select(where, self.groups, alive)
        chosen = [slots[found.masks[group.index]]
                  for group, slots in zip(self.groups, self.slots, strict=True)]
        return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *chosen])), found.note

    def alive(self, at_us: int) -> npt.NDArray[np.bool_]:
        """Return by slot who lives at an instant."""
        return np.asarray((self.began_us <= at_us) & (self.ended_us > at_us))

    def occurrences(self, name: str, slots: Ints) -> Ints:
        """Return how many faults of that name each device has had, and count one more."""
        counts = self._counts.get(name, np.empty(0, dtype=np.int64))
        counts = np.append(counts, np.zeros(len(self) - len(counts), dtype=np.int64))
        before = counts[slots].copy()
        counts[slots] += 1
        self._counts[name] = counts
        return before

    def relabelled(self, window: Window, at_us: int, label: str, value: str) -> list[Move]:
        """Make the groups that devices of a window move to when it ends; returns the moves."""
        made = []
        for index in np.unique(self.home[window.slots]).tolist():
            slots = window.slots[self.home[window.slots] == index]
            old = self.groups[index]
            group = Group(len(self.groups), old.device_type,
                          [self.ids[slot] for slot in slots.tolist()],
                          {**old.labels, label: value}, old.protocol)
            self._put(self.members[index], group, slots)
            made.append(Move(at_us, window, slots, group))
        self.moves += made
        self.moves.sort(key=lambda move: move.at_us)
        return made

    def check_moves(self, slots: Ints, label: str) -> None:
        """Raise if another label of these devices is about to change: both would not fit."""
        for move in self.moves:
            other = getattr(move.window.fault, "label", label)
            if other != label and within(move.those_left(), slots).any():
                raise BadValue("label", label, f"cannot change while an update of {other!r} is "
                               "under way on the same devices", "Wait until it has ended.")

    def settle(self, at_us: int) -> None:
        """Let the moves happen that are due by now."""
        while self.moves and self.moves[0].at_us <= at_us:
            move = self.moves.pop(0)
            slots = move.those_left()
            slots = slots[self.ended_us[slots] > move.at_us]
            self.home[slots] = move.group.index

    def by_type(self, at_us: int) -> dict[str, int]:
        """Return how many devices of each type live at an instant."""
        alive = self.alive(at_us)
        counts = np.bincount(self.home[alive], minlength=len(self.groups)).tolist()
        found: dict[str, int] = {}
        for group, count in zip(self.groups, counts, strict=True):
            if count:
                found[group.device_type] = found.get(group.device_type, 0) + count
        return found


def pairs_of(variants: npt.NDArray[np.int32], slots: Ints) -> Sequence[tuple[int, Ints]]:
    """Return slots apart by their variant."""
    found = variants[slots]
    return [(int(variant), slots[found == variant]) for variant in np.unique(found).tolist()]


def within(values: Ints, ascending: Ints) -> npt.NDArray[np.bool_]:
    """Return which values are among others that ascend; quick however many those are."""
    if not len(ascending):
        return np.zeros(len(values), dtype=np.bool_)
    places = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.asarray(ascending[places] == values)
