"""Running a saved run again and comparing every byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from iotsim import arrow, verbs
from iotsim.actions import Action
from iotsim.comparison import compare, exact_difference, fingerprint, json_texts
from iotsim.errors import IotsimError, MissingExtra, SavedRunError, shown
from iotsim.facts import facts_html, line
from iotsim.fleet import Fleet
from iotsim.members import (
    COUNT_MAX,
    Members,
    Script,
    check_count,
    check_id_template,
    check_labels,
    script_hash,
)
from iotsim.profiles import Profile
from iotsim.replaying import Bounds, run_again
from iotsim.saved import DAMAGE, SavedRun, load, readings_table, versions
from iotsim.units import DURATION_US_MAX, duration_us

if TYPE_CHECKING:
    from iotsim.result import Result


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether a saved run gave the same bytes again.

    Attributes
    ----------
    ok : bool
    difference : str
        In words: device, field and stretch of time; with stored readings the exact time and both
        values. Empty if `ok`.
    digest, expected : str
        What came out now, and what was saved.
    """

    ok: bool
    difference: str
    digest: str
    expected: str

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        if self.ok:
            return f"<Verification: identical, digest {self.digest[:12]}…>"
        return f"<Verification: different: {line(self.difference)}>"

    def _repr_html_(self) -> str:
        said = "identical" if self.ok else f"different: {self.difference}"
        saved = [] if self.digest == self.expected else [("saved digest", self.expected)]
        return facts_html("Verification", [("verdict", said), ("digest", self.digest), *saved])


def verify(
    path: str | Path,
    *,
    devices: Mapping[str, Script] | None = None,
    against: str | Path | None = None,
) -> Verification:
    """Run a saved run again, offline, and say whether every byte is the same.

    Parameters
    ----------
    path : str or Path
        Of a file that `Result.save` wrote.
    devices : mapping of name to coroutine function, optional
        The code of scripted devices; a saved run holds no code.
    against : path, optional
        A Parquet file of the readings, to name the exact time and values that differ.

    Raises
    ------
    SavedRunError
        If the file cannot be read, or names scripted devices that were not given.
    """
    saved = load(path)
    bounds = Bounds(saved)
    fleet = fleet_of(saved, devices or {})
    mark = saved.fingerprint
    actions = actions_of(saved, devices or {})
    if not actions:
        _check_window(saved, fleet)
    if mark.end_us <= mark.start_us:
        raise SavedRunError(path, "it holds no time to run again")
    result = run_again(saved, fleet, actions, bounds)
    found = compare(mark, fingerprint(result))
    notes = [*_code_notes(saved, fleet), *_version_notes(saved)]
    if against is not None or (found and saved.has_readings):
        found = _exact(saved, result, against) or found
    text = "; ".join([found, *notes]) if found else ""
    return Verification(not found, text, result.digest, mark.digest)


def _check_window(saved: SavedRun, fleet: Fleet) -> None:
    # A window that does not fit its number of readings would be computed for ages.
    mark = saved.fingerprint
    span_us = mark.end_us - mark.start_us
    profiled = [member for member in fleet.members if member.profile is not None]
    ticks = [max(0, span_us // (member.interval_us or 1) - 1) for member in profiled]
    least = sum(member.count * n for member, n in zip(profiled, ticks, strict=True))
    if least > mark.rows:
        raise SavedRunError(saved.path, f"this saved run is damaged: its window gives at least "
                            f"{least:,} readings, and it had {mark.rows:,}")
    counts = {name: n for ids, _, rows in mark.groups
              for name, n in zip(ids, rows.tolist(), strict=True)}
    for member, n in zip(profiled, ticks, strict=True):
        for name in member.group(0).ids:
            if not n <= counts.get(name, n) <= n + 3:
                raise SavedRunError(saved.path, f"this saved run is damaged: device {name!r} had "
                                    f"{counts[name]:,} readings, and its window gives about "
                                    f"{n + 1:,}")


def fleet_of(saved: SavedRun, devices: Mapping[str, Script]) -> Fleet:
    """Return the fleet that a saved run was made with."""
    spec = saved.manifest["spec"]
    try:
        fleet = Fleet(spec["name"], seed=spec["seed"])
        members = tuple(_members(saved, entry, devices) for entry in spec["members"])
    except DAMAGE as error:
        raise _damaged(saved, "its spec is damaged", error) from None
    return fleet._with(members=members)


def actions_of(saved: SavedRun, devices: Mapping[str, Script]) -> list[Action]:
    """Return what was done to a saved run and changes its readings, checked again."""
    try:
        made = [_action(saved, entry, devices) for entry in saved.actions]
    except (*DAMAGE, IotsimError) as error:
        raise _damaged(saved, "what was done to it is damaged", error) from None
    return [action for action in made if action.is_content]


def _damaged(saved: SavedRun, what: str, error: BaseException) -> IotsimError:
    if isinstance(error, (SavedRunError, MissingExtra)):
        return error
    why = f" ({str(error).rstrip('.')})" if isinstance(error, (IotsimError, _Odd)) else ""
    return SavedRunError(saved.path, f"{what}{why}")


class _Odd(ValueError):
    """Something in a log that nobody writes there."""


# What each verb has, and what it may have; whom it matched is for people.
_KEYS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    verb: (frozenset(needed), frozenset(("verb", "at_us", "matched", *needed, *more)))
    for verb, needed, more in (
        ("add", ("members",), ()),
        ("clear", ("where",), ("fault", "by")),
        ("command", ("name", "where"), ("payload", "id", "by")),
        ("inject", ("fault", "where"), ("duration_us", "parameters", "reason", "by")),
        ("log", ("text",), ()),
        ("pause", (), ()),
        ("resume", (), ()),
        ("set", ("where",), ("every_us", "fields")),
        ("speed", ("factor",), ()),
        ("stop", (), ("where",)),
    )
}


def _action(
    saved: SavedRun, entry: Mapping[str, Any], devices: Mapping[str, Script]
) -> Action:
    verb, at_us = entry["verb"], entry["at_us"]
    if verb not in _KEYS:
        raise _Odd(f"nothing can be done that is called {shown(verb)}")
    needed, allowed = _KEYS[verb]
    odd = [*(needed - entry.keys()), *(entry.keys() - allowed)]
    if odd:
        raise _Odd(f"{verb} has or lacks {shown(min(odd))}")
    where: Any = _where(entry["where"]) if "where" in entry else None
    if verb == "add":
        members = _members(saved, entry["members"], devices)
        return Action(verb, at_us, verbs.added(members), members=members)
    if verb == "inject":
        parameters = verbs.inject(entry["fault"], where, None, entry.get("reason"),
                                  entry.get("parameters"), entry.get("by"))
        parameters.pop("duration_us", None)
        if "duration_us" in entry:
            parameters["duration_us"] = _duration_us(entry, "duration_us")
        return Action(verb, at_us, parameters)
    if verb == "clear":
        return Action(verb, at_us, verbs.clear(entry.get("fault"), where, entry.get("by")))
    if verb == "command":
        return Action(verb, at_us, verbs.command(entry["name"], where, entry.get("payload"),
                                                 entry.get("id"), entry.get("by")))
    if verb == "set":
        every = f"{_duration_us(entry, 'every_us')}us" if "every_us" in entry else None
        return Action(verb, at_us, verbs.set_(where, every, entry.get("fields")))
    if verb == "stop":
        return Action(verb, at_us, {} if where is None else verbs.stop(where))
    return Action(verb, at_us)  # those change no reading


def _where(where: Any) -> Any:
    # As `Selector.spec` writes it: text, or a list of ids.
    if isinstance(where, dict):
        named = where["ids"]
        if len(where) > 1 or type(named) is not list or not all(type(n) is str for n in named):
            raise _Odd(f"where={shown(where)} is not a selector")
    elif type(where) is not str:
        raise _Odd(f"where={shown(where)} is not a selector")
    return where


def _duration_us(entry: Mapping[str, Any], name: str) -> int:
    given = entry[name]
    if type(given) is not int or not 0 < given <= DURATION_US_MAX:
        raise _Odd(f"{name}={shown(given)} is not a whole number of microseconds that can be")
    return given


def _members(
    saved: SavedRun, entry: Mapping[str, Any], devices: Mapping[str, Script]
) -> Members:
    profile, script, interval_us, code = None, None, None, ""
    if "profile" in entry:
        profile = Profile.from_spec(entry["profile"], name=f"{saved.path}: {entry['type']}")
        interval_us = profile.interval_us
    else:
        name = entry["script"]["name"]
        if name not in devices:
            raise SavedRunError(saved.path, f"it has scripted devices {name!r}, and holds no code",
                                f"Give it: verify(path, devices={{{name!r}: {name}}}).")
        script = devices[name]
        code = script_hash(script)
        interval_us = duration_us(entry["every"]) if "every" in entry else None
    type_name, count, first = entry["type"], check_count(entry["count"]), entry["first"]
    if type(type_name) is not str or type(first) is not int or not 0 <= first <= COUNT_MAX * 100:
        raise ValueError("first")
    template = check_id_template(entry["id"], type_name, count, first)
    return Members(type_name, profile, script, count, check_labels(entry["labels"]), interval_us,
                   template, first, code)


def _code_notes(saved: SavedRun, fleet: Fleet) -> list[str]:
    entries = saved.manifest["spec"]["members"]
    return list(dict.fromkeys(
        f"the code of {member.type!r} is not what was saved"
        for member, entry in zip(fleet.members, entries, strict=True)
        if member.script is not None and member.code != entry["script"].get("code")
    ))


def _version_notes(saved: SavedRun) -> list[str]:
    then, now = saved.manifest["versions"], versions()
    notes = [
        f"{name} was version {then[name]} and is {now[name]}"
        for name in ("iotsim", "digest", "faults", "tzdata")
        if then.get(name, now[name]) != now[name]
    ]
    generators = then.get("generators", {})
    notes += [
        f"generator {name!r} was version {generators[name]} and is {now['generators'].get(name)}"
        for name in generators if generators[name] != now["generators"].get(name)
    ]
    return notes


def _exact(saved: SavedRun, result: Result, against: str | Path | None) -> str:
    # Both sides are Arrow tables first: one way to write lists, nulls and times for both.
    ours = result.to_arrow()
    if against is None:
        source: object = saved.path
        theirs = readings_table(saved)
    else:
        source, theirs = against, _table(against)
    return exact_difference(_frame(theirs, ours, source), _frame(ours, ours, source))


def _table(path: str | Path) -> Any:
    try:
        return arrow.parquet_module().read_table(path)
    except (OSError, ValueError, NotImplementedError):
        raise SavedRunError(path, "this is not a Parquet file of readings") from None


def _frame(table: Any, ours: Any, source: object) -> Any:
    import pyarrow as pa

    names = table.column_names
    if not {"time", "device_id", "seq"} <= set(names) or len(set(names)) != len(names):
        raise SavedRunError(source, "this is not a Parquet file of readings")
    try:
        for name, kind in (("time", pa.timestamp("us", tz="UTC")), ("device_id", pa.string()),
                           ("seq", pa.int64())):
            place = names.index(name)
            table = table.set_column(place, name, table.column(place).cast(kind))
    except (pa.ArrowException, ValueError):
        raise SavedRunError(source, "this is not a Parquet file of readings") from None
    frame = table.to_pandas(integer_object_nulls=True)
    for field in ours.schema:
        if pa.types.is_string(field.type) and field.name in frame and field.name != "device_id":
            values = table.column(field.name).to_pylist()
            frame[field.name] = json_texts(_parsed(value) for value in values)
    return frame


def _parsed(value: Any) -> Any:
    try:
        return orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError:
        return value


__all__ = ("Verification", "actions_of", "fleet_of", "verify")
