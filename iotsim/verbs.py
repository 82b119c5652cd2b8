"""The verbs that change a run, as people type them: checked, and as plain JSON for the log.

`Fleet`, `Scenario`, `Run` and a script's `ctx` spell them alike; all of them come through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iotsim.commands import NAME_CHARS_MAX, checked_id
from iotsim.commands import plain as json_of
from iotsim.errors import BadValue
from iotsim.faults.base import build, fault_name
from iotsim.members import Members
from iotsim.profiles import Profile
from iotsim.selectors import Where, parse
from iotsim.signals.base import plain
from iotsim.units import Duration, duration_us

REASON_CHARS_MAX = 1000
BACK_PRESSURE = "back-pressure"  # who injects and clears when a lane fills up
# What a platform has silenced, and who was stopped, stay so whatever people clear.
PLATFORM, STOPPED = HOLDERS = ("platform", "stopped")


def inject(
    fault: Any, where: Where = "all", duration: Duration | None = None, reason: str | None = None,
    parameters: Mapping[str, Any] | None = None, by: str | None = None,
) -> dict[str, Any]:
    """Return the parameters of an inject.

    Parameters
    ----------
    fault : str
        Its name, in any case.
    where : selector
    duration : duration, optional
        In simulated time; until it is cleared if not given.
    reason : str, optional
        For people; it stands in the log and in the events.
    parameters : mapping
        Of the fault; `duration_seconds` is what the contract calls the duration.
    by : str, optional
        `BACK_PRESSURE` or a gateway's `PLATFORM`, if nobody here asked for it.

    Raises
    ------
    UnknownName, BadValue
        If the fault, a parameter, the selector or the duration cannot be.

    Examples
    --------
    >>> inject("OFFSET", "site=north", "60s", parameters={"by": 2.5})["duration_us"]
    60000000
    """
    given = dict(parameters or {})
    if (seconds := given.pop("duration_seconds", None)) is not None:
        if duration is not None:
            raise BadValue("duration_seconds", seconds, "is given twice", "Keep duration alone.")
        total_us: int | None = duration_us(seconds, "duration_seconds")
    else:
        total_us = None if duration is None else duration_us(duration, "duration")
    made = build(fault, given)
    if total_us is None:
        total_us = made.duration_default_us
    return _trimmed({
        "fault": made.name, "where": parse(where).spec(), "duration_us": total_us,
        "parameters": made.parameters(), "reason": _reason(reason), "by": _by(by),
    })


def merged(
    given: Mapping[str, Any] | None, named: Mapping[str, Any], name: str = "parameters"
) -> dict[str, Any]:
    """Return what was given in a mapping and by name, each of them once.

    Parameters
    ----------
    given : mapping or None
    named : mapping
    name : str
        What the mapping is called where it was given.

    Raises
    ------
    BadValue
        If the one is no mapping, or something is in both.

    Examples
    --------
    >>> merged({"by": 2}, {"field": "power"})
    {'by': 2, 'field': 'power'}
    """
    if given is not None and not isinstance(given, Mapping):
        raise BadValue(name, given, "is not a mapping", "Give {'name': value}, or name=value.")
    whole = dict(given or {})
    for key, value in named.items():
        if key in whole:
            raise BadValue(key, value, f"is given twice: also in {name}", "Give it once.")
        whole[key] = value
    return whole


def clear(
    fault: Any = None, where: Where = "all", by: str | None = None
) -> dict[str, Any]:
    """Return the parameters of a clear: of one fault, or of all; `by`: of its own alone."""
    name = None if fault is None else fault_name(fault)
    return _trimmed({"fault": name, "where": parse(where).spec(), "by": _by(by)})


def command(
    name: str, where: Where = "all", payload: Any = None, id: Any = None, by: Any = None
) -> dict[str, Any]:
    """Return the parameters of a command.

    Parameters
    ----------
    name : str
        What is to be done; empty for what came from outside and was no command.
    where : selector
    payload : JSON value, optional
        Up to 64 kB.
    id : str, optional
        What it can be called by; a device does nothing twice under one id. Made if not given.
    by : str, optional
        Where it came from, if it was not the run's own.

    Raises
    ------
    BadValue
        If one of them cannot be.

    Examples
    --------
    >>> command("reboot", "site=north")
    {'name': 'reboot', 'where': 'site=north'}
    """
    if not isinstance(name, str) or not (name.isprintable() and len(name) <= NAME_CHARS_MAX):
        raise BadValue("command", name, f"is not printable text of up to {NAME_CHARS_MAX} "
                       "characters", "Give a name such as 'reboot'.")
    if by is not None and (not isinstance(by, str) or len(by) > REASON_CHARS_MAX
                           or not by.isprintable()):
        raise BadValue("by", by, "is not the address of a broker", "Leave it out.")
    given = {"name": name, "where": parse(where).spec(),
             "payload": None if payload is None else json_of("payload", payload),
             "id": None if id is None else checked_id(id), "by": by or None}
    return _trimmed(given)


def stop(where: Where = "all") -> dict[str, Any]:
    """Return the parameters of a stop of devices."""
    return {"where": parse(where).spec()}


def set_(
    where: Where = "all", every: Duration | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the parameters of a set.

    Parameters
    ----------
    where : selector
    every : duration, optional
        The new interval.
    fields : mapping of field name to parameters
        What changes; what is not named stays.

    Raises
    ------
    BadValue
        If nothing is to change, or a value cannot be.
    """
    given = {} if fields is None else fields
    if not isinstance(given, Mapping):
        raise BadValue("fields", fields, "is not a mapping", "Give {'temperature': {'mean': 25}}.")
    for name, parameters in given.items():
        if not isinstance(name, str) or not isinstance(parameters, Mapping) or not parameters:
            raise BadValue(str(name), parameters, "does not say what changes of a field",
                           "Give its parameters, such as temperature={'mean': 25}.")
    if every is None and not given:
        raise BadValue("set", {}, "changes nothing", "Give every='1s', or a field's parameters.")
    return _trimmed({
        "where": parse(where).spec(),
        "every_us": None if every is None else duration_us(every, "every"),
        "fields": {name: _plain(name, parameters) for name, parameters in given.items()},
    })


def _plain(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    # The log holds values of its own: what the caller does to his does not change the past.
    import orjson

    made: dict[str, Any] = plain(parameters)
    try:
        orjson.dumps(made)
    except (TypeError, ValueError):
        raise BadValue(name, parameters, "holds what JSON cannot", "Give plain values.") from None
    return made


def log(text: Any) -> dict[str, Any]:
    """Return the parameters of a line in the log."""
    told = str(text)[:REASON_CHARS_MAX]
    return {"text": told.encode("utf-8", "replace").decode()}  # panels cannot send half an emoji


def changed(profile: Profile, every_us: int | None, fields: Mapping[str, Any]) -> Profile:
    """Return a profile with another interval, and with other parameters of some of its fields.

    Fields that the profile does not have are left out: a selection may hold several types.

    Raises
    ------
    IotsimError
        If a parameter cannot be.
    """
    spec = profile.spec()
    if every_us is not None:
        spec["telemetry_interval"] = f"{every_us}us"
        if profile.phase_us is not None:
            spec["phase"] = 0
    for name, parameters in fields.items():
        if name in spec["telemetry_fields"]:
            before = spec["telemetry_fields"][name]
            other = parameters.get("type", before["type"]) != before["type"]
            kept = {k: v for k, v in before.items() if k in ("resolution", "unit", "shared")}
            spec["telemetry_fields"][name] = {**(kept if other else before), **parameters}
    return Profile.from_spec(spec, name=f"set of {profile.type!r}")


def added(members: Members) -> dict[str, Any]:
    """Return the parameters of an add."""
    return {"members": members.spec()}


def _by(by: Any) -> str | None:
    known = (BACK_PRESSURE, *HOLDERS)
    if by is not None and by not in known:
        raise BadValue("by", by, "is nobody who injects by itself",
                       f"It is one of: {', '.join(known)}.")
    return str(by) if by else None


def may_clear(by: str, owner: str) -> bool:
    """Return whether who asks may end what an owner has injected; empty: anybody.

    Examples
    --------
    >>> may_clear("", BACK_PRESSURE), may_clear("", PLATFORM), may_clear(PLATFORM, PLATFORM)
    (True, False, True)
    """
    return by == owner if owner in HOLDERS else by in ("", owner)


def _reason(reason: Any) -> str | None:
    if reason is None:
        return None
    if not isinstance(reason, str) or not reason.isprintable() or len(reason) > REASON_CHARS_MAX:
        raise BadValue("reason", reason, f"is not printable text of up to {REASON_CHARS_MAX:,} "
                       "characters", "Give a few words.")
    return reason


def _trimmed(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value not in (None, {})}
