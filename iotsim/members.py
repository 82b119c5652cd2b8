"""The members of a fleet: what one `add` call put in, and the group of devices it stands for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from types import CodeType, MappingProxyType
from typing import Any, TypeAlias

from iotsim.errors import BadValue, ProfileError, UnknownName, shown
from iotsim.profiles import Profile
from iotsim.readings import RESERVED, WIRE_COLUMNS, Group, sensor_of
from iotsim.topics import check_topic
from iotsim.units import Duration, duration_text, duration_us

Script: TypeAlias = Callable[[Any], Coroutine[Any, Any, None]]

DEFAULT_ID = "{type}-{index:04d}"
COUNT_MAX = 10_000_000
_ID_BYTES_MAX = 128
_DIGITS_MAX = 20
_HASHED_DEPTH, _HASHED_PARTS = 8, 100_000
_PLACES = re.compile(r"\{type\}|\{(?:index|n)(?::0(\d{1,2})d)?\}")


@dataclass(frozen=True, slots=True)
class Members:
    """Devices that one `add` call put into a fleet.

    Attributes
    ----------
    type : str
        Device type: of the profile, or the name of the scripted function.
    profile : Profile or None
        With the interval of `every=` already in it.
    script : callable or None
        `async def device(dev)`.
    count : int
    labels : mapping
        The profile's labels and those of the call.
    interval_us : int or None
        The profile's, or what `every=` gave a scripted device.
    id_template : str
    first : int
        The index of the first device among those of its type.
    code : str
        The hash of the script when it was added; empty for a profile.
    """

    type: str
    profile: Profile | None
    script: Script | None
    count: int
    labels: Mapping[str, str]
    interval_us: int | None
    id_template: str
    first: int
    code: str = ""

    def __hash__(self) -> int:
        return hash((self.type, self.profile, self.count, self.id_template, self.first))

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        return _members_again, ({**facts, "labels": dict(self.labels)},)

    @property
    def series(self) -> str:
        """Who is numbered together: devices of one type; of gateways, one sensor each."""
        return series_of(self.type, protocol_of(self), self.labels, self.id_template)

    def group(self, index: int) -> Group:
        """Return the group of devices, with their ids made."""
        last = self.first + self.count
        if self.id_template == DEFAULT_ID:
            names = [f"{self.type}-{i:04d}" for i in range(self.first, last)]
        else:
            names = [
                self.id_template.format(type=self.type, index=i, n=i + 1)
                for i in range(self.first, last)
            ]
        return Group(index, self.type, names, self.labels, protocol_of(self))

    def spec(self) -> dict[str, Any]:
        """Return the members as plain JSON values, for a saved run."""
        found: dict[str, Any] = {"type": self.type, "count": self.count, "first": self.first,
                                 "labels": dict(self.labels), "id": self.id_template}
        if self.profile is not None:
            found["profile"] = self.profile.spec()
        if self.script is not None:
            found["script"] = {"name": self.type, "code": self.code}
            if self.interval_us is not None:
                found["every"] = duration_text(self.interval_us)
        return found


def series_of(
    type_name: str, protocol: str, labels: Mapping[str, str], template: str | None
) -> str:
    """Return the name of the series that devices are numbered in."""
    sensor = sensor_of(protocol, labels, template or "")
    return str(template) if sensor else type_name


def protocol_of(member: Members) -> str:
    """Return what the profile of members says that they speak; empty if they have none."""
    return "" if member.profile is None else member.profile.protocol


def _members_again(facts: dict[str, Any]) -> Members:
    return Members(**{**facts, "labels": MappingProxyType(facts["labels"])})


def members_of(
    device: Any, *, count: Any, labels: Any, every: Duration | None, id: Any, first: Callable[
        [str], int]
) -> Members:
    """Return the members for the arguments of `add`, checked.

    Parameters
    ----------
    device : str, Profile or coroutine function
    count, labels, every, id
        As people gave them to `add`.
    first : callable (series) -> int
        How many devices of a type, or of gateways, how many of a sensor, there are already.
    """
    profile, script = _kind(device)
    if profile is not None and every is not None:
        profile = Profile.from_spec(
            {**profile.spec(), "telemetry_interval": duration_text(duration_us(every, "every"))},
            name=f"profile {profile.type!r} with every={every!r}",
        )
    interval_us = profile.interval_us if profile is not None else None
    if script is not None and every is not None:
        interval_us = duration_us(every, "every")
    type_name = profile.type if profile is not None else script_name(script)
    checked = check_labels({**(profile.labels if profile is not None else {}), **_mapping(labels)})
    if profile is not None:
        check_fields(profile, checked)
    number = check_count(count)
    spoken = "" if profile is None else profile.protocol
    begin = first(series_of(type_name, spoken, checked, id if isinstance(id, str) else None))
    template = check_id_template(id, type_name, number, begin)
    return Members(type_name, profile, script, number, checked, interval_us, template, begin,
                   "" if script is None else script_hash(script))


def check_columns(there: Sequence[Members], added: Members) -> None:
    """Raise if a label of some devices is a field of others: both are columns of one table."""
    for one, other in (pair for m in there for pair in ((m, added), (added, m))):
        names = {field.name for field in other.profile.fields} if other.profile else set()
        for name in one.labels:
            if name in names:
                raise BadValue("label", name, f"of {one.type!r} is a field of {other.type!r}",
                               "Rename one: both are columns of the same table.")


def _kind(device: Any) -> tuple[Profile | None, Script | None]:
    import inspect

    if isinstance(device, Profile):
        return device, None
    if inspect.iscoroutinefunction(device):
        return None, device
    if isinstance(device, str) or hasattr(device, "__fspath__"):
        return Profile.load(device), None
    allowed = "Give the name of a profile, a path, a Profile, or an `async def device(dev)`."
    why = "is a plain function" if callable(device) else "is not a device"
    raise BadValue("profile", device, why, allowed)


def script_name(script: Script | None) -> str:
    """Return the device type of a scripted function: its name."""
    name = getattr(script, "__name__", "")
    if not name.isidentifier():
        raise BadValue("profile", script, "has no name", "Write it as `async def meter(dev)`.")
    return name


def script_hash(script: Script) -> str:
    """Return a hash of a function: its name, bytecode, defaults and what it closes over.

    Re-running a cell gives the same: line numbers and file names do not count, nor do globals.
    Of values that are neither plain nor functions only the type counts.
    """
    text = repr(_facts(script, _HASHED_DEPTH, iter(range(_HASHED_PARTS))))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def _facts(value: Any, depth: int, budget: Iterator[int]) -> Any:
    code, kind = getattr(value, "__code__", None), type(value).__name__
    if depth == 0 or next(budget, None) is None:
        return kind
    parts: Iterable[Any]
    if isinstance(value, CodeType):
        return _code_facts(value, depth - 1, budget)
    if isinstance(code, CodeType):
        parts = (code, value.__defaults__, value.__kwdefaults__, _cells(value))
    elif isinstance(value, int):
        return kind, f"{value:x}"
    elif value is None or value is ... or isinstance(value, (str, bytes, float, complex)):
        return kind, repr(value)
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = value
    elif isinstance(value, dict):
        parts = value.items()
    else:
        return kind
    found = [_facts(part, depth - 1, budget) for part in islice(parts, _HASHED_PARTS)]
    return kind, sorted(found, key=repr) if isinstance(value, (set, frozenset)) else found


def _cells(function: Any) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            found.append(...)
    return found


def _code_facts(code: CodeType, depth: int, budget: Iterator[int]) -> tuple[Any, ...]:
    constants = [_facts(value, depth, budget) for value in code.co_consts]
    return (code.co_name, code.co_code, constants, code.co_names, code.co_varnames,
            code.co_freevars, code.co_argcount, code.co_kwonlyargcount, code.co_flags)


def check_count(count: Any) -> int:
    """Return a number of devices that can be, or raise BadValue."""
    allowed = f"Give a whole number from 1 to {COUNT_MAX:,}."
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise BadValue("count", count, "is not a whole number", allowed)
    if not 1 <= count.__index__() <= COUNT_MAX:
        raise BadValue("count", count, "is out of range", allowed)
    return int(count.__index__())


def _mapping(labels: Any) -> Mapping[str, Any]:
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise BadValue("labels", labels, "is not a mapping", "Give {'site': 'north'}.")
    return labels


def check_labels(labels: Mapping[Any, Any]) -> Mapping[str, str]:
    """Return labels that devices can have, frozen, or raise BadValue."""
    for name, value in labels.items():
        for what, text in (("label", name), (f"labels[{shown(name)}]", value)):
            if not isinstance(text, str) or not text or not text.isprintable() or len(text) > 128:
                raise BadValue(what, text, "is not 1 to 128 printable characters",
                               "Give {'site': 'north'}.")
        if name in (*RESERVED, *WIRE_COLUMNS, "id", "fraction", "count", "shard"):
            raise BadValue("label", name, "is a reserved name", "Choose another one.")
    return MappingProxyType(dict(labels))


def check_fields(profile: Profile, labels: Mapping[str, str]) -> None:
    """Raise if devices with these labels cannot run a profile."""
    where = f"profile {profile.type!r}"
    for field in profile.fields:
        if field.name in labels:
            raise ProfileError(where, f"{field.name!r} is a field and a label. Rename one.")
        if field.shared is not None and field.shared not in labels:
            known = UnknownName("label", field.shared, labels)
            raise ProfileError(where, f"field {field.name!r} is shared by a label that these "
                                      f"devices lack: {known} Give add(…, labels=…).")
    check_topic(profile.topic_template, labels)


def check_id_template(template: Any, type_name: str, count: int, first: int) -> str:
    """Return a template of ids that can be filled in for these devices, or raise BadValue."""
    if template is None:
        template = DEFAULT_ID
    allowed = "Give text with {index}, {n} or {type}, such as 'gw-{n}'."
    if not isinstance(template, str) or not template.isprintable() or not template:
        raise BadValue("id", template, "is not printable text", allowed)
    fixed = _PLACES.sub("", template)
    if "{" in fixed or "}" in fixed or any(sign in fixed for sign in "/+#*>\\") or " " in fixed:
        raise BadValue("id", template, "has a sign that ids cannot hold", allowed)
    if any(int(match[1] or 0) > _DIGITS_MAX for match in _PLACES.finditer(template)):
        raise BadValue("id", template, f"asks for more than {_DIGITS_MAX} digits",
                       "Write '{index:04d}' for ids such as 0007.")
    last = first + count - 1
    longest = template.format(type=type_name, index=last, n=last + 1)
    if len(longest.encode()) > _ID_BYTES_MAX:
        raise BadValue("id", template, f"gives ids of over {_ID_BYTES_MAX} bytes", allowed)
    if count > 1 and not re.search(r"\{(index|n)", template):
        raise BadValue("id", template, f"gives {count} devices the same id", allowed)
    return template
