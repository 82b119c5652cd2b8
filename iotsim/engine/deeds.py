"""What is done to a simulation: actions, resolved to devices at the moment they take effect.

A fault is a window over devices: readings go by it when their time comes, so nothing has to happen
at its beginning or its end. A set, a stop and the end of a firmware update change how devices step:
blocks split there, scripted devices are told.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from iotsim.actions import CHOSEN_MAX, CONTENT, Action
from iotsim.engine.block import Block, Split
from iotsim.engine.departures import Grids, departures, holds
from iotsim.engine.inbox import Mail
from iotsim.engine.kernel import Kernel
from iotsim.engine.live import LiveKernel
from iotsim.engine.population import Move, Population, pairs_of, within
from iotsim.errors import BadValue, UnknownName
from iotsim.faults.base import NEVER_US, Fault, Window, build, window_keys
from iotsim.faults.fitting import battery_drift_per_s, check_fits
from iotsim.members import Members, check_columns, check_fields, check_labels
from iotsim.profiles import Profile
from iotsim.readings import Group, Ints, Readings
from iotsim.selectors import parse
from iotsim.verbs import changed, may_clear

if TYPE_CHECKING:
    from iotsim.engine.device import Cast
    from iotsim.engine.simulation import Simulation

WINDOWS_MAX = 100_000


class Deeds:
    """Does actions to a simulation, and remembers them by device.

    Parameters
    ----------
    simulation : Simulation

    Attributes
    ----------
    windows : list of Window
        Every fault, in order of injection.
    done : list of Action
        Every action that changes content.
    holding : list of Window
        Those because of which readings may leave later.
    grids : Grids
    mail : Mail
        The commands, and what devices answered.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.windows: list[Window] = []
        self.done: list[Action] = []
        self.holding: list[Window] = []
        self.grids = Grids(simulation.population)
        self.mail = Mail(self)
        self._scripts: list[tuple[int, int, Callable[[], None]]] = []
        self._told = 0
        self._variants: dict[tuple[int, int | None, str], int] = {}
        self._known: dict[Any, int] = {}  # profiles by what they say, up to `_seen`
        self._seen = 0

    def act(self, action: Action) -> Action:
        """Do an action; see `Simulation.act`."""
        given = action.parameters
        people, at_us = self._simulation.population, self._simulation.start_us + action.at_us
        chosen: tuple[str, ...] = ()
        if action.verb == "add":
            count, note = self._add(action.members, at_us), ""
        else:
            where = given.get("where", "all")
            picks = self.mail if action.verb == "command" else people
            slots, note = picks.select(where, at_us)
            if parse(where).count is not None:
                chosen = tuple(people.ids[slot] for slot in slots[:CHOSEN_MAX].tolist())
            count = self._verb(action, slots, at_us)
        done = replace(action, devices=count, note=note, chosen=chosen)
        self.done.append(done)
        return done

    def _verb(self, action: Action, slots: Ints, at_us: int) -> int:
        given = action.parameters
        if action.verb == "inject":
            end_us = at_us + given["duration_us"] if "duration_us" in given else NEVER_US
            fault = build(given["fault"], given.get("parameters", {}))
            return self._inject(fault, slots, at_us, end_us, given.get("by", ""))
        if action.verb == "clear":
            return self._clear(given.get("fault"), slots, at_us, given.get("by", ""))
        if action.verb == "set":
            return self._set(given.get("every_us"), given.get("fields", {}), slots, at_us)
        if action.verb == "stop":
            return self._stop(slots, at_us)
        if action.verb == "command":
            return self.mail.deliver(action, slots, at_us)
        raise UnknownName("action", action.verb, CONTENT)

    # -- faults ---------------------------------------------------------------------------------

    def _inject(self, fault: Fault, slots: Ints, at_us: int, end_us: int, by: str) -> int:
        if len(self.windows) >= WINDOWS_MAX:
            raise BadValue("fault", fault.name, f"would be the {WINDOWS_MAX:,}th of this run",
                           "Use fewer, longer ones.")
        memory: dict[Any, Any] = {}
        slots = self._fitting(fault, slots, memory)
        if not len(slots):
            return 0
        people = self._simulation.population
        if fault.name == "firmware_update":
            self._check_update(fault, slots)
        keys = window_keys(people.keys(slots), fault.name, people.occurrences(fault.name, slots))
        window = Window(fault, len(self.windows), at_us, end_us, slots,
                        np.full(len(slots), end_us, dtype=np.int64), keys, memory, by)
        self.windows.append(window)
        if holds(window):
            self.holding.append(window)
        holders: list[Block | Cast] = [*self._simulation.blocks_of(slots),
                                       *self._simulation.casts]
        for holder in holders:
            if (window.members(holder.slots) >= 0).any():
                holder.windows.append(window)
        if self._simulation.witness is not None:
            self._simulation.witness.injected(window)
        if fault.name == "firmware_update" and end_us < NEVER_US:
            label, version = str(getattr(fault, "label", "")), str(getattr(fault, "version", ""))
            for move in people.relabelled(window, end_us, label, version):
                self._move_later(move)
        return len(slots)

    def _fitting(self, fault: Fault, slots: Ints, memory: dict[Any, Any]) -> Ints:
        # Who can have the fault at all: those with the field, those with a grid.
        if fault.name == "battery_drain":
            return self._with_battery(fault, slots, memory)
        if fault.name != "rate" and not fault.named:
            return slots
        people = self._simulation.population
        parts = pairs_of(people.variant, slots)
        if len(slots):
            check_fits(fault, [people.profiles[variant] for variant, _ in parts])
        fits = [part for variant, part in parts if _fits(fault, people.profiles[variant])]
        return np.sort(np.concatenate([slots[:0], *fits]))

    def _check_update(self, fault: Fault, slots: Ints) -> None:
        # All that could go wrong when labels change, before anything has changed.
        people = self._simulation.population
        label, version = str(getattr(fault, "label", "")), str(getattr(fault, "version", ""))
        people.check_moves(slots, label)
        fields = {field.name: member.type for member in people.members
                  if member.profile is not None for field in member.profile.fields}
        if label in fields:
            raise BadValue("label", label, f"is a field of {fields[label]!r}",
                           "Both are columns of the same table: choose another label.")
        for index in np.unique(people.home[slots]).tolist():
            mine = slots[people.home[slots] == index]
            group = people.groups[index]
            labels = check_labels({**group.labels, label: version})
            names = [people.ids[slot] for slot in mine[:1].tolist()]
            changed_group = Group(len(people.groups), group.device_type, names, labels,
                                  group.protocol)
            if self._simulation.witness is not None:
                self._simulation.witness.check(people.members[index], changed_group, mine)

    def _with_battery(self, fault: Fault, slots: Ints, memory: dict[Any, Any]) -> Ints:
        people = self._simulation.population
        fits, drifts = [], []
        parts = pairs_of(people.variant, slots)
        if len(slots):
            check_fits(fault, [people.profiles[variant] for variant, _ in parts])
        for variant, part in parts:
            drift_per_s = battery_drift_per_s(people.profiles[variant])
            if drift_per_s is not None:
                fits.append(part)
                drifts.append(np.full(len(part), drift_per_s))
        chosen = np.concatenate([slots[:0], *fits])
        order = np.argsort(chosen)
        memory["drift_per_s"] = np.concatenate([np.empty(0), *drifts])[order]
        return np.asarray(chosen[order])

    def _clear(self, name: str | None, slots: Ints, at_us: int, by: str) -> int:
        touched = slots[:0]
        for window in self.windows:
            named = name is None or window.name == name
            open_us = min(window.end_us, window.over_us)  # a session has thousands that are over
            if named and may_clear(by, window.by) and open_us > at_us:
                ended = window.clear(slots, at_us)
                if len(ended):
                    if self._simulation.witness is not None:
                        self._simulation.witness.cleared(window, ended, at_us)
                    touched = np.union1d(touched, ended)
        return len(touched)

    def active(self, at_us: int) -> dict[str, int]:
        """Return on how many living devices each fault is active at an instant."""
        people = self._simulation.population
        found: dict[str, list[Ints]] = {}
        for window in self.windows:
            if window.begin_us <= at_us < min(window.end_us, window.over_us):
                slots = window.slots[window.ends_us > at_us]
                slots = slots[people.ended_us[slots] > at_us]
                if len(slots):
                    found.setdefault(window.name, []).append(slots)
        return {name: _count(parts, len(people)) for name, parts in found.items()}

    @property
    def simulation(self) -> Simulation:
        """The simulation that is acted on."""
        return self._simulation

    @property
    def population(self) -> Population:
        """Who there is."""
        return self._simulation.population

    @property
    def kernel(self) -> Kernel:
        """Who steps scripted devices."""
        return self._simulation.kernel

    @property
    def start_us(self) -> int:
        """Where the run began, microseconds since 1970."""
        return self._simulation.start_us

    def reached_us(self, now_us: int) -> int:
        """Return what every device has come to, at most now."""
        begun = [block.time_us for block in self._simulation.blocks]
        kernel = self._simulation.kernel
        if self._simulation.casts and isinstance(kernel, LiveKernel):
            begun.append(kernel.begun_us)
        return min(now_us, *begun) if begun else now_us

    def as_left(self, readings: Readings, end_us: int) -> Readings:
        """Return readings as they had left by the end.

        What a device still stores then, or stored when it was stopped, was withheld.
        """
        marks = readings.marks
        if marks is None or marks.delay_us is None:
            return readings
        people = self._simulation.population
        slots = people.slots[readings.group.index][readings.device]
        time_us, leave_us, stored = departures(readings, slots, self.holding, self.grids)
        delay_us = np.where(leave_us == NEVER_US, NEVER_US, leave_us - time_us)
        names, withheld = marks.names, marks.withheld
        stored &= (leave_us > end_us) | (leave_us >= people.ended_us[slots])
        if stored.any():
            names = names if "disconnect" in names else (*names, "disconnect")
            withheld = np.zeros(len(readings), np.int16) if withheld is None else withheld.copy()
            withheld[stored] = names.index("disconnect")
        return replace(readings, marks=replace(marks, names=names, withheld=withheld,
                                               delay_us=delay_us))

    # -- devices --------------------------------------------------------------------------------

    def _add(self, members: Members, at_us: int) -> int:
        people = self._simulation.population
        group = members.group(len(people.groups))
        people.check_free(group)
        check_columns(people.members, members)
        if self._simulation.witness is not None:
            self._simulation.witness.check(members, group, None)
        self._simulation.take_in(members, group, at_us)
        return len(group)

    def _stop(self, slots: Ints, at_us: int) -> int:
        people = self._simulation.population
        people.ended_us[slots] = at_us
        if self._simulation.witness is not None:
            self._simulation.witness.stopped(slots, at_us)
        self._split(Split(at_us, lambda: slots, ends=True))
        self._tell_scripts(slots, at_us, lambda cast, order: cast.kernel.remove(order))
        if self._simulation.casts:
            self.later(at_us, partial(self.mail.stopped, slots))
        return len(slots)

    def _set(
        self, every_us: int | None, fields: Mapping[str, Any], slots: Ints, at_us: int
    ) -> int:
        people = self._simulation.population
        made: list[tuple[Ints, int]] = []
        known: set[str] = set()
        scripted = slots[:0]
        for variant, part in pairs_of(people.variant, slots):
            profile = people.profiles[variant]
            if profile is None:
                scripted = np.append(scripted, part)
                continue
            known |= {field.name for field in profile.fields}
            if every_us is not None or fields.keys() & {field.name for field in profile.fields}:
                other = self._changed(variant, every_us, fields)
                made.append((part, other))
                for index in np.unique(people.home[part]).tolist():
                    check_fields(self._profile(other), people.groups[index].labels)
        for name in fields:
            if len(slots) and name not in known:
                raise UnknownName("field of the selected devices", name, known)
        for part, variant in made:
            if every_us is not None:
                self.grids.changes.append((at_us, part, every_us))
            people.variant[part] = variant
            self._split(Split(at_us, partial(_those, part), self._profile(variant)))
        if every_us is not None:
            interval_us = every_us
            self._tell_scripts(scripted, at_us,
                               lambda cast, order: cast.set_interval(order, interval_us))
        told = len(scripted) if every_us is not None else 0
        return sum(len(part) for part, _ in made) + told

    def _changed(self, variant: int, every_us: int | None, fields: Mapping[str, Any]) -> int:
        # Devices that are told the same are of one profile afterwards, and can step together.
        key = variant, every_us, repr(fields)
        if key not in self._variants:
            made = changed(self._profile(variant), every_us, fields)
            profiles = self._simulation.population.profiles
            for i in range(self._seen, len(profiles)):
                self._known.setdefault(_content(profiles[i]), i)
            self._variants[key] = self._known.setdefault(_content(made), len(profiles))
            if self._variants[key] == len(profiles):
                profiles.append(made)
            self._seen = len(profiles)
        return self._variants[key]

    def _profile(self, variant: int) -> Profile:
        profile = self._simulation.population.profiles[variant]
        assert profile is not None, "a scripted device has none"
        return profile

    def _move_later(self, move: Move) -> None:
        simulation = self._simulation
        if simulation.witness is not None:
            member = simulation.population.members[move.group.index]
            simulation.witness.joined(member, move.group, move.slots)
        self._split(Split(move.at_us, move.those_left, group=move.group,
                          slots_of_group=move.slots), move.slots)
        self._tell_scripts(
            move.slots, move.at_us,
            lambda cast, order: self._simulation_cast(cast, move, order),
        )

    def _simulation_cast(self, cast: Cast, move: Move, order: int) -> None:
        if order in move.those_left():
            target = next((one for one in self._simulation.casts if one.group is move.group), None)
            if target is None:
                target = cast.like(move.group, move.slots)
                self._simulation.casts.append(target)
            target.adopt(cast, order)

    def _split(self, split: Split, slots: Ints | None = None) -> None:
        whose = split.slots() if slots is None else slots
        for block in self._simulation.blocks_of(whose):
            block.split_later(split)

    # -- scripted devices -----------------------------------------------------------------------

    def _tell_scripts(
        self, slots: Ints, at_us: int, tell: Callable[[Cast, int], None]
    ) -> None:
        for cast in self._simulation.casts:
            mine = cast.slots[within(cast.slots, slots)].tolist()
            if mine:
                self.later(at_us, _teller(cast, mine, tell))

    def later(self, at_us: int, do: Callable[[], None]) -> None:
        """Do something to scripted devices when all have come to an instant."""
        self._told += 1
        insort(self._scripts, (at_us, self._told, do), key=lambda entry: entry[:2])

    @property
    def next_script_us(self) -> int:
        """When something is to be done to scripted devices next."""
        return self._scripts[0][0] if self._scripts else NEVER_US

    def script_times(self, until_us: int) -> list[int]:
        """Return when, before an instant, something is to be done to scripted devices."""
        return sorted({at_us for at_us, _, _ in self._scripts if at_us < until_us})

    def do_scripts(self, at_us: int) -> None:
        """Do what is to be done to scripted devices by an instant that all have come to."""
        while self._scripts and self._scripts[0][0] <= at_us:
            self._scripts.pop(0)[2]()


def _fits(fault: Fault, profile: Profile | None) -> bool:
    if profile is None:
        return fault.name != "rate"
    return not fault.named or not {f.name for f in profile.fields}.isdisjoint(fault.named)


def _content(profile: Profile | None) -> Any:
    # As it is written: equal profiles may still show a JSON value in another order of its keys.
    return None if profile is None else repr(profile.spec())


def _count(parts: list[Ints], devices: int) -> int:
    if len(parts) == 1:
        return len(parts[0])
    those = np.zeros(devices, dtype=np.bool_)
    for slots in parts:
        those[slots] = True
    return int(those.sum())


def _those(slots: Ints) -> Ints:
    return slots


def _teller(
    cast: Cast, orders: list[int], tell: Callable[[Cast, int], None]
) -> Callable[[], None]:
    def told() -> None:
        for order in orders:
            tell(cast, order)

    return told
