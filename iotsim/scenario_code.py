"""A scenario as Python source, and the scenario that a log tells.

The source holds no secrets: where readings go is only named, without what an address hides.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from iotsim.conditions import Expectation, condition_of
from iotsim.director import Step
from iotsim.errors import BadValue, IotsimError
from iotsim.faults.base import REFUSED_ALWAYS
from iotsim.members import DEFAULT_ID, Members, members_of
from iotsim.profiles import Profile
from iotsim.scenario import Scenario
from iotsim.units import duration_text, instant_text

if TYPE_CHECKING:
    from iotsim.actions import Action
    from iotsim.fleet import Fleet

_LINE_CHARS = 96
_CHAIN_MAX = 100  # calls in one expression: Python's own compiler has an end, too
_SET_NAMES = ("self", "where", "every", "fields")
_INJECT_NAMES = ("self", "parameters", *REFUSED_ALWAYS)


def code(scenario: Scenario) -> str:
    """Return Python source that, executed, makes an equal scenario (without outlets)."""
    fleet = scenario.fleet
    steps = sorted(scenario.steps, key=lambda step: step.at_us)
    added = [step.members for step in steps if step.members is not None]
    lines = [*_remarks(scenario, [*fleet.members, *added]), ""]
    lines += _imports([*fleet.members, *added], steps)
    calls = [_add(member) for member in fleet.members]
    lines += ["", *_chain("fleet", f"Fleet({quoted(fleet.name)}, seed={fleet.seed})", calls)]
    calls = [*_steps(_without_by(steps)), *_end(scenario, steps)]
    lines += ["", *_chain("scenario", _opening(scenario), calls)]
    return "\n".join(lines).strip() + "\n"


def scenario_of(
    fleet: Fleet, actions: Iterable[Action], start_us: int, end_us: int, name: str,
    expectations: Sequence[Expectation] = (),
) -> Scenario:
    """Return the scenario that does again what a log says, at exactly the same times.

    Parameters
    ----------
    fleet : Fleet
    actions : iterable of Action
        Pace is left out: it never changed a reading.
    start_us, end_us : int
        Of the run, microseconds since 1970.
    name : str
    expectations : sequence of Expectation
        What was looked at; what was a function is left out.
    """
    steps = [step for action in actions if (step := _step_of(action)) is not None]
    for one in expectations:
        if one.is_text:
            given = {"message": one.message, "last_us": one.last_us}
            said = {key: value for key, value in given.items() if value is not None}
            steps.append(Step(one.at_us, "expect", said, condition=condition_of(one.text)))
    empty = Scenario(name, fleet, start=instant_text(start_us))
    made = empty.lasting(duration_text(end_us - start_us))
    kept = [step for step in steps if step.at_us <= end_us - start_us]
    return made._with(steps=tuple(sorted(kept, key=lambda step: step.at_us)))


def _step_of(action: Action) -> Step | None:
    if action.verb == "add":
        members = action.members
        if members is None:
            members = members_again(action.parameters["members"])
        return Step(action.at_us, "add", members=replace(members, first=0))
    whole = action.verb == "stop" and "where" not in action.parameters  # of the run, not of devices
    if whole or not (action.is_content or action.verb == "log"):
        return None
    given = dict(action.parameters)
    if action.verb == "command":  # now it is the scenario that gives it
        given.pop("by", None)
    return Step(action.at_us, action.verb, given)


def members_again(spec: Mapping[str, Any]) -> Members:
    """Return the members whose `spec()` this is; a scripted device cannot be made again."""
    if "profile" not in spec:
        raise BadValue("members", spec.get("type"), "are scripted devices, whose code is not in "
                       "the log", "Use the result of the same session.")
    profile = Profile.from_spec(spec["profile"], name=f"members {spec['type']!r}")
    return members_of(profile, count=spec["count"], labels=spec["labels"], every=None,
                      id=spec["id"], first=lambda _: int(spec["first"]))


def _remarks(scenario: Scenario, members: Sequence[Members]) -> Iterator[str]:
    yield f"# Scenario {scenario.name!r} of iotsim."
    for name in dict.fromkeys(member.type for member in members if member.script is not None):
        yield f"# {name}: your async def"
    if scenario.script is not None:
        yield f"# {_script_name(scenario)}: your async def"
    for outlet in scenario.fleet.outlets:
        told = "".join(c if c.isprintable() else "?" for c in str(outlet))
        yield f"# It published to {told}: add .publish_to(...) to the fleet."


def _script_name(scenario: Scenario) -> str:
    name = getattr(scenario.script, "__name__", "run")
    return name if name.isidentifier() else "run"


def _imports(members: Sequence[Members], steps: Sequence[Step]) -> list[str]:
    names = {"Fleet", "Scenario"}
    if any(member.profile is not None and _bundled(member.profile) is None for member in members):
        names.add("Profile")
    if any(isinstance(step.parameters.get("where"), Mapping) for step in steps):
        names.add("ids")
    ordered = sorted(names, key=lambda name: (name.islower(), name))
    return [f"from iotsim import {', '.join(ordered)}"]


def _opening(scenario: Scenario) -> str:
    parts = [quoted(scenario.name), "fleet"]
    if scenario.script is not None:
        parts.append(f"script={_script_name(scenario)}")
    if scenario.start_us is not None:
        parts.append(f"start={quoted(instant_text(scenario.start_us))}")
    return f"Scenario({', '.join(parts)})"


def _chain(name: str, opening: str, calls: Sequence[str]) -> list[str]:
    if not calls:
        return [f"{name} = {opening}"]
    lines: list[str] = []
    for i in range(0, len(calls), _CHAIN_MAX):
        lines += [f"{name} = (", f"    {opening if i == 0 else name}"]
        for call in calls[i : i + _CHAIN_MAX]:
            lines += [f"    {line}" for line in call.split("\n")]
        lines.append(")")
    return lines


def _without_by(steps: Sequence[Step]) -> list[Step]:
    # What back-pressure began and ended by itself lasts as long: its clear ends nobody else's.
    made: list[Step] = []
    begun: dict[str, int] = {}  # places, by whom it concerns
    for step in steps:
        given = {name: value for name, value in step.parameters.items() if name != "by"}
        where = f"{step.parameters.get('by')} {literal(given.get('where'))}"
        if "by" in step.parameters and step.verb == "clear":
            if where in begun:
                place = begun.pop(where)
                lasted_us = step.at_us - made[place].at_us
                made[place] = replace(made[place], parameters={
                    **made[place].parameters, "duration_us": lasted_us})
            continue
        if "by" in step.parameters:
            begun[where] = len(made)
        made.append(replace(step, parameters=given))
    return [step for step in made if step.parameters.get("duration_us") != 0]


def _steps(steps: Sequence[Step]) -> Iterator[str]:
    now_us = 0
    for at_us, together in groupby(steps, key=lambda step: step.at_us):
        if at_us != now_us:
            yield f".at({quoted(duration_text(at_us))})"
        now_us = at_us
        for step in together:
            yield _call_of(step)


def _end(scenario: Scenario, steps: Sequence[Step]) -> Iterator[str]:
    if scenario.lasting_us is not None:
        yield f".lasting({quoted(duration_text(scenario.lasting_us))})"
    elif scenario.end_us() is not None:
        bare = scenario._with(waited_us=0).end_us()
        if bare != scenario.end_us():
            yield f'.at("0s").wait({quoted(duration_text(scenario.waited_us))})'


def _call_of(step: Step) -> str:
    if step.condition is not None:
        return _expect(step)
    if step.members is not None:
        return _add(step.members)
    given = step.parameters
    if step.verb == "log":
        return f".log({quoted(given['text'])})"
    if step.verb == "stop":
        return _call("stop", _where(given))
    if step.verb == "clear":
        first = [quoted(given["fault"])] if "fault" in given else []
        return _call("clear", [*first, *_where(given)])
    if step.verb == "set":
        every = [f"every={quoted(duration_text(given['every_us']))}"] if "every_us" in given else []
        return _call("set", [*_where(given), *every,
                             *_named("fields", given.get("fields", {}), _SET_NAMES)])
    if step.verb == "command":
        more = [f"{key}={literal(given[key])}" for key in ("payload", "id") if key in given]
        return _call("command", [quoted(given["name"]), *_where(given), *more])
    parts = [quoted(given["fault"]), *_where(given)]
    if "duration_us" in given:
        parts.append(f"duration={quoted(duration_text(given['duration_us']))}")
    if "reason" in given:
        parts.append(f"reason={quoted(given['reason'])}")
    parts += _named("parameters", given.get("parameters", {}), _INJECT_NAMES)
    return _call("inject", parts)


def _expect(step: Step) -> str:
    assert step.condition is not None
    parts = [quoted(step.condition.text)]
    if "message" in step.parameters:
        parts.append(f"message={quoted(step.parameters['message'])}")
    if "last_us" in step.parameters:
        parts.append(f"last={quoted(duration_text(step.parameters['last_us']))}")
    if step.condition.function is not None:
        return f"# expect({step.condition.text}): a function is not in this source"
    return _call("expect", parts)


def _where(given: Mapping[str, Any]) -> list[str]:
    where = given.get("where", "all")
    if isinstance(where, Mapping):
        return [f"where=ids({literal(where['ids'])})"]
    return [] if where == "all" else [f"where={quoted(where)}"]


def _named(name: str, values: Mapping[str, Any], taken: Sequence[str]) -> list[str]:
    # By name where Python allows it, else all in one mapping.
    if all(key.isidentifier() and not keyword.iskeyword(key) and key not in taken
           for key in values):
        return [f"{key}={literal(value)}" for key, value in values.items()]
    return [f"{name}={literal(values)}"]


def _call(name: str, parts: Sequence[str]) -> str:
    short = f".{name}({', '.join(parts)})"
    if len(short) <= _LINE_CHARS:
        return short
    inner = "".join(f"    {line}\n" for part in parts for line in f"{part},".split("\n"))
    return f".{name}(\n{inner})"


def _add(member: Members) -> str:
    parts: list[str] = []
    own: Mapping[str, str] = {}
    if member.profile is None:
        parts.append(member.type)
        if member.interval_us is not None:
            parts.append(f"every={quoted(duration_text(member.interval_us))}")
    else:
        own = member.profile.labels
        name = _bundled(member.profile)
        if name is None:
            parts.append(f"Profile.from_spec({_table(member.profile.spec())})")
        else:
            parts.append(quoted(name))
            if _known(name) != member.profile:
                parts.append(f"every={quoted(duration_text(member.profile.interval_us))}")
    labels = {key: value for key, value in member.labels.items() if own.get(key) != value}
    parts += [f"count={member.count}"] if member.count != 1 else []
    parts += [f"labels={literal(labels)}"] if labels else []
    parts += [f"id={quoted(member.id_template)}"] if member.id_template != DEFAULT_ID else []
    return _call("add", parts)


def _table(values: Mapping[str, Any]) -> str:
    # A mapping over several lines, one entry each; two levels deep, as profiles are.
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            inner = "".join(f"        {literal(name)}: {literal(part)},\n"
                            for name, part in value.items())
            lines.append(f"    {literal(key)}: {{\n{inner}    }},\n")
        else:
            lines.append(f"    {literal(key)}: {literal(value)},\n")
    return "{\n" + "".join(lines) + "}"


def _bundled(profile: Profile) -> str | None:
    # The name of the profile that came with iotsim if this is it, but for the interval.
    if profile.type not in Profile.names():
        return None
    known = _known(profile.type)
    if known == profile:
        return profile.type
    spec = {**known.spec(), "telemetry_interval": duration_text(profile.interval_us)}
    try:
        return profile.type if Profile.from_spec(spec) == profile else None
    except IotsimError:
        return None


@cache
def _known(name: str) -> Profile:
    # A session that added devices a hundred times asks three hundred times.
    return Profile.load(name)


def literal(value: Any) -> str:
    """Return plain JSON values as Python source, exactly.

    Examples
    --------
    >>> literal({"by": 2.5, "to": float("inf")})
    '{"by": 2.5, "to": float("inf")}'
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({quoted(str(value))})"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{literal(key)}: {literal(part)}" for key, part in value.items())
        return f"{{{inner}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(literal(part) for part in value)}]"
    return quoted(value) if isinstance(value, str) else repr(value)


def quoted(text: str) -> str:
    """Return text as Python source, in double quotes where that is plainer."""
    single = repr(text)
    return single if single[0] == '"' or '"' in text else f'"{single[1:-1]}"'
