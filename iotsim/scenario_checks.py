"""What the verbs of a scenario must hold, checked when they are written."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from iotsim import verbs
from iotsim.director import Step, declared_fields
from iotsim.errors import BadValue, IotsimError, UnknownName
from iotsim.faults.base import build
from iotsim.faults.fitting import check_fits
from iotsim.fleet import Fleet
from iotsim.members import DEFAULT_ID, Members, protocol_of
from iotsim.profiles import Profile
from iotsim.readings import Group
from iotsim.selectors import Selector, Where, parse, select
from iotsim.units import Duration, duration_text, duration_us

if TYPE_CHECKING:
    from iotsim.checkpoints import Checkpoint

STEPS_MAX = 100_000
_MESSAGE_CHARS_MAX = 500


def expect_parameters(message: Any, last: Duration | None) -> dict[str, Any]:
    """Return what an expect says beside its condition."""
    if message is not None and (not isinstance(message, str) or not message.isprintable()
                                or len(message) > _MESSAGE_CHARS_MAX):
        raise BadValue("message", message, "is not printable text of up to "
                       f"{_MESSAGE_CHARS_MAX} characters", "Give a few words.")
    given = {"message": message, "last_us": None if last is None else duration_us(last, "last")}
    return {name: value for name, value in given.items() if value is not None}


def check_where(where: Where, fleet: Fleet, steps: Sequence[Step]) -> None:
    """Raise if a selector asks for a label that no device has, and that looks like another.

    What looks like none may come with a step that is written later: see `check_selectors`.
    """
    try:
        _ask(where, {*labels_of(fleet), *(name for step in steps for name in labels_by(step))})
    except UnknownName as error:
        if get_close_matches(str(error.name), error.known, n=1):
            raise


def check_selectors(
    name: str, fleet: Fleet, steps: Sequence[Step], origin: Checkpoint | None = None
) -> None:
    """Raise if a selector asks for a label that no device has had by then.

    Parameters
    ----------
    name : str
        Of the scenario.
    fleet : Fleet
    steps : sequence of Step
    origin : Checkpoint, optional
        Where the run goes on from: its devices may have labels by steps that are not here.
    """
    known = labels_of(fleet)
    if origin is not None and origin.simulation is not None:
        known |= {label for group in origin.simulation.groups for label in group.labels}
    asked: set[str] = set()
    for step in sorted(steps, key=lambda step: step.at_us):
        known |= labels_by(step)
        where = step.parameters.get("where")
        if isinstance(where, str) and where not in asked:
            asked.add(where)
            said = f"scenario {name!r}, {step.verb}() at {duration_text(step.at_us)}"
            _ask(where, known, said)


def telling(kept: tuple[Step, ...], step: Step) -> tuple[Step, ...]:
    """Return the steps that the checks of later ones look at, with another if it says news."""
    if step.members is None and not step.parameters.get("fields"):
        labels = labels_by(step)
        if step.verb != "stop" and not labels:
            return kept
        if any(one.verb == step.verb and labels_by(one) == labels for one in kept):
            return kept
    return (*kept, step)


def labels_of(fleet: Fleet) -> set[str]:
    """Return the names of the labels that devices have at the start."""
    known = {name for member in fleet.members for name in member.labels}
    return known | ({"gateway"} if any(m.series != m.type for m in fleet.members) else set())


def labels_by(step: Step) -> set[str]:
    """Return the names of the labels that devices may have because of a step."""
    if step.members is not None:
        return set(step.members.labels)
    given = step.parameters
    if step.verb != "inject" or given["fault"] != "firmware_update":
        return set()
    return {str(getattr(build(given["fault"], given.get("parameters", {})), "label", "firmware"))}


def _ask(where: Where, labels: Iterable[str], said: str = "") -> None:
    try:
        select(where, [Group(0, "", [], dict.fromkeys(labels, ""))])
    except UnknownName as error:
        raise UnknownName(error.kind, error.name, error.known, said) from None


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


def check_fault(
    given: Mapping[str, Any], members: Sequence[Members], steps: Sequence[Step]
) -> None:
    """Raise if a fault is meant for devices of which none can have it."""
    fault = build(given["fault"], given.get("parameters", {}))
    replaced = {name for step in steps for name in step.parameters.get("fields", {})}
    known = known_fields(members)
    for name in fault.named if known is not None and not _is_nobody(given["where"]) else ():
        if name not in (known or ()) and name != "battery":
            raise UnknownName("field", name, known or (), f"inject({fault.name!r})")
    meant = _meant(members, given["where"], steps)
    if meant and not replaced & set(fault.named):
        check_fits(fault, [member.profile for member in meant])


def check_set(given: Mapping[str, Any], members: Sequence[Members], steps: Sequence[Step]) -> None:
    """Raise if no device that is meant has a field, or takes its parameters."""
    known, meant = known_fields(members), _meant(members, given["where"], steps)
    mine = known_fields(meant)
    for name, parameters in given.get("fields", {}).items():
        if known is not None and name not in known and not _is_nobody(given["where"]):
            raise UnknownName("field", name, known, "set()")
        if mine is not None and name not in mine:
            raise UnknownName("field of the selected devices", name, mine, "set()")
        if any("type" in step.parameters.get("fields", {}).get(name, {}) for step in steps):
            continue  # its signal was replaced: what it takes is known when it happens
        troubles = [
            _trouble(member.profile, {name: parameters}) for member in meant
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
        counts[member.series] = counts.get(member.series, 0) + member.count
    added = []
    for step in sorted(adds, key=lambda step: step.at_us):
        assert step.members is not None
        first = counts.get(step.members.series, 0)
        added.append(replace(step.members, first=first))
        counts[step.members.series] = first + step.members.count
    return fleet._with(members=(*fleet.members, *added))


def known_fields(members: Sequence[Members]) -> set[str] | None:
    """Return the fields that devices have; None if one of them may emit what it likes."""
    if any(member.profile is None for member in members) or not members:
        return None
    return set(declared_fields(members))


def _is_nobody(where: Where) -> bool:
    chosen = parse(where)
    return (chosen.fraction == 0 or chosen.count == 0
            or any(not values for _, values in chosen.terms))


def _meant(members: Sequence[Members], where: Where, steps: Sequence[Step]) -> list[Members]:
    # Whose type and labels a selector can mean; which of their devices is not looked at. Nobody
    # where that is not known yet: then it is looked at when it happens.
    if _is_nobody(where):
        return []
    if any(step.verb == "stop" for step in steps):  # those who are left may be others
        return list(members)
    moving = {name for step in steps if step.members is None for name in labels_by(step)}
    terms = tuple(term for term in parse(where).terms
                  if term[0] not in ("id", "gateway", *moving))
    groups = [Group(i, member.type, [member.id_template], member.labels, protocol_of(member))
              for i, member in enumerate(members)]
    try:
        masks = select(Selector(terms), groups).masks
    except UnknownName:
        return []
    return [member for i, member in enumerate(members) if masks[i].any()]


def _trouble(profile: Profile, fields: Mapping[str, Any]) -> IotsimError | None:
    try:
        verbs.changed(profile, None, fields)
    except IotsimError as error:
        return error
    return None
