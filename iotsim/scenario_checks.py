"""What the verbs of a scenario must hold, checked when they are written."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from iotsim import verbs
from iotsim.director import Step, declared_fields
from iotsim.errors import BadValue, IotsimError, UnknownName
from iotsim.fleet import Fleet
from iotsim.members import DEFAULT_ID, Members
from iotsim.profiles import Profile
from iotsim.readings import Group
from iotsim.selectors import Selector, Where, parse, select
from iotsim.units import Duration, duration_us

STEPS_MAX = 100_000
_MESSAGE_CHARS_MAX = 500


def merged(given: Mapping[str, Any] | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters that were given in a mapping and by name, each of them once."""
    if given is not None and not isinstance(given, Mapping):
        raise BadValue("parameters", given, "is not a mapping", "Give {'name': value}.")
    whole = dict(given or {})
    for name, value in named.items():
        if name in whole:
            raise BadValue(name, value, "is given twice", "Give it once.")
        whole[name] = value
    return whole


def expect_parameters(message: Any, last: Duration | None) -> dict[str, Any]:
    """Return what an expect says beside its condition."""
    if message is not None and (not isinstance(message, str) or not message.isprintable()
                                or len(message) > _MESSAGE_CHARS_MAX):
        raise BadValue("message", message, "is not printable text of up to "
                       f"{_MESSAGE_CHARS_MAX} characters", "Give a few words.")
    given = {"message": message, "last_us": None if last is None else duration_us(last, "last")}
    return {name: value for name, value in given.items() if value is not None}


def check_where(where: Where, members: Sequence[Members]) -> None:
    """Raise if a selector asks for a label that no device has; nobody is looked for."""
    select(where, [Group(i, member.type, [], member.labels) for i, member in enumerate(members)])


def check_ids(fleet: Fleet, steps: Sequence[Step]) -> None:
    """Raise if two devices would get one id.

    Adds are numbered in the order of time, which need not be the order of the calls.
    """
    members = crowd(fleet, steps).members
    if all(member.id_template == DEFAULT_ID for member in members):
        return
    taken: set[str] = set()
    for i, member in enumerate(members):
        names = member.group(i).ids
        twice = next((name for name in names if name in taken), None)
        if twice is not None:
            raise BadValue("id", twice, "would be given to two devices",
                           "Give a template with {index}, such as id='b-{index:04d}'.")
        taken.update(names)


def check_fault(given: Mapping[str, Any], members: Sequence[Members]) -> None:
    """Raise if a fault is meant for a field that no device has."""
    named = given.get("parameters", {}).get("field")
    names = [named] if isinstance(named, str) else list(named or ())
    if given["fault"] == "battery_drain" and not names:
        names = ["battery"]
    known = known_fields(members)
    for name in names if known is not None else ():
        if name not in (known or ()):
            raise UnknownName("field", name, known or (), f"inject({given['fault']!r})")


def check_set(given: Mapping[str, Any], members: Sequence[Members], steps: Sequence[Step]) -> None:
    """Raise if no device that may be meant has a field, or takes its parameters."""
    known = known_fields(members)
    for name, parameters in given.get("fields", {}).items():
        if known is not None and name not in known:
            raise UnknownName("field", name, known, "set()")
        if any("type" in step.parameters.get("fields", {}).get(name, {}) for step in steps):
            continue  # its signal was replaced: what it takes is known when it happens
        troubles = [
            _trouble(member.profile, {name: parameters})
            for member in _candidates(members, given["where"])
            if member.profile is not None and name in {f.name for f in member.profile.fields}
        ]
        if troubles and None not in troubles:
            raise next(trouble for trouble in troubles if trouble is not None)


def check_script(script: Any) -> None:
    """Raise if a script is not `async def run(ctx)`."""
    if script is None:
        return
    allowed = "Write it as `async def run(ctx)`."
    if not inspect.iscoroutinefunction(script):
        raise BadValue("script", script, "is not a coroutine function", allowed)
    try:
        inspect.signature(script).bind(None)
    except TypeError:
        raise BadValue("script", script, "does not take one argument", allowed) from None


def check_number(steps: int) -> None:
    """Raise if a scenario would have too many steps."""
    if steps > STEPS_MAX:
        raise BadValue("steps", steps, "are too many", f"A scenario has up to {STEPS_MAX:,}; "
                       "write it as a script instead.")


def crowd(fleet: Fleet, steps: Sequence[Step]) -> Fleet:
    """Return the fleet with all that is added to it, numbered in the order of time."""
    adds = [step for step in steps if step.members is not None]
    if not adds:
        return fleet
    counts: dict[str, int] = {}
    for member in fleet.members:
        counts[member.type] = counts.get(member.type, 0) + member.count
    added = []
    for step in sorted(adds, key=lambda step: step.at_us):
        assert step.members is not None
        first = counts.get(step.members.type, 0)
        added.append(replace(step.members, first=first))
        counts[step.members.type] = first + step.members.count
    return fleet._with(members=(*fleet.members, *added))


def known_fields(members: Sequence[Members]) -> set[str] | None:
    """Return the fields that devices have; None if one of them may emit what it likes."""
    if any(member.profile is None for member in members) or not members:
        return None
    return set(declared_fields(members))


def _candidates(members: Sequence[Members], where: Where) -> list[Members]:
    # Whose type and labels a selector can mean; which of their devices is not looked at.
    terms = tuple(term for term in parse(where).terms if term[0] != "id")
    groups = [Group(i, member.type, [""], member.labels) for i, member in enumerate(members)]
    masks = select(Selector(terms), groups).masks if groups else {}
    return [member for i, member in enumerate(members) if masks[i].any()]


def _trouble(profile: Profile, fields: Mapping[str, Any]) -> IotsimError | None:
    try:
        verbs.changed(profile, None, fields)
    except IotsimError as error:
        return error
    return None
