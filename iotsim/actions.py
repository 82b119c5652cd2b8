"""What was done to a run: a log in simulated time.

An action that changes content (inject, clear, stop, set, add, command) is part of the run and of
its replay; pace events (pause, resume, speed) and what was logged are in the log only.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from iotsim.facts import ROWS_SHOWN, facts_html, line, table_html
from iotsim.units import clock_text, duration_text

CHOSEN_MAX = 1000
CHOSEN_SAVED_MAX = 100_000  # ids of all actions of a saved run together
CONTENT = ("add", "clear", "command", "inject", "set", "stop")
PAYLOAD_CHARS_SHOWN = 60
PACE = ("pause", "resume", "speed")


@dataclass(frozen=True, slots=True, repr=False)
class Action:
    """One thing that was done to a run.

    Attributes
    ----------
    verb : str
    at_us : int
        When it took effect, in simulated microseconds since the start of the run.
    parameters : mapping
        Plain JSON values: all that is needed to do it again.
    devices : int or None
        How many devices it concerned.
    note : str
        Says so when nobody matched; how many a fraction or a count chose, and who; else empty.
    members : Members or None
        What `add` added; its spec is in the parameters.
    chosen : tuple of str
        The ids that a `count=` chose, up to 1,000 of them; for people, nothing goes by it.

    Examples
    --------
    >>> Action("inject", 90_000_000, {"fault": "stuck", "where": "site=north"}, devices=12)
    <Action at 00:01:30: inject stuck where=site=north, on 12 devices>
    """

    verb: str
    at_us: int
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    devices: int | None = field(default=None, compare=False)
    note: str = field(default="", compare=False)
    members: Any = field(default=None, compare=False, repr=False)
    chosen: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def at(self) -> float:
        """When it took effect, in simulated seconds since the start of the run."""
        return self.at_us / 1e6

    @property
    def is_pace(self) -> bool:
        """Whether it changed only how fast time went."""
        return self.verb in PACE

    @property
    def is_content(self) -> bool:
        """Whether readings depend on it."""
        ends_the_run = self.verb == "stop" and "where" not in self.parameters
        return self.verb in CONTENT and not ends_the_run

    def __await__(self) -> Generator[Any, None, Action]:
        """Give itself: what was done has been done, whether somebody waits for it or not."""
        yield from ()  # a generator that never gives anything
        return self

    def spec(self) -> dict[str, Any]:
        """Return the action as plain JSON values."""
        return {"verb": self.verb, "at_us": self.at_us, **self.parameters}

    def matched(self) -> dict[str, Any]:
        """Return whom it concerned, as plain JSON: for people, and ignored by a replay."""
        found: dict[str, Any] = {} if self.devices is None else {"devices": self.devices}
        return {**found, "ids": list(self.chosen)} if self.chosen else found

    def describe(self) -> str:
        """Return what was done in one line, without its time."""
        return " ".join([self.verb, *_details(self.parameters)])

    def __repr__(self) -> str:
        plural = "" if self.devices == 1 else "s"
        count = "" if self.devices is None else f", on {self.devices:,} device{plural}"
        return f"<Action at {clock_text(self.at_us)}: {line(self.describe())}{count}>"

    def _repr_html_(self) -> str:
        return Actions((self,))._repr_html_()

    def _row(self) -> tuple[str, ...]:
        count = "" if self.devices is None else f"{self.devices:,}"
        return clock_text(self.at_us), self.describe(), count, self.note

    def __str__(self) -> str:
        tail = f" ({self.note})" if self.note else ""
        return f"{clock_text(self.at_us)} {self.describe()}{tail}"


class Actions(tuple[Action, ...]):
    """What was done to a run, in the order of time: a tuple that is short to look at."""

    __slots__ = ()

    def __repr__(self) -> str:
        if len(self) <= ROWS_SHOWN:
            return super().__repr__()
        return f"<{len(self):,} actions: {self[0]!r}, {self[1]!r}, …>"

    def _repr_html_(self) -> str:
        rows = table_html(("time", "action", "devices", "note"), (one._row() for one in self),
                          len(self), "actions")
        return facts_html(f"{len(self):,} action{'' if len(self) == 1 else 's'}", (), rows)


def records(actions: Iterable[Action]) -> list[dict[str, Any]]:
    """Return the entries of a saved log: each action, and whom it matched."""
    found, left = [], CHOSEN_SAVED_MAX
    for action in actions:
        matched = action.matched()
        if len(action.chosen) > left:
            del matched["ids"]
        left -= len(matched.get("ids", ()))
        found.append({**action.spec(), "matched": matched} if matched else action.spec())
    return found


def _details(parameters: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in parameters.items():
        if value is None or value == {} or (name, value) == ("where", "all"):
            continue
        if name in ("fault", "name", "text"):
            found.append(str(value))
        elif name == "payload":
            found.append(f"payload={_short(value)}")
        elif name.endswith("_us"):
            found.append(f"{name[:-3]}={duration_text(value)}")
        elif name == "members":
            found.append(f"{value['type']} count={value['count']}")
        elif name in ("parameters", "fields"):
            found += [f"{key}={_plain(part)}" for key, part in value.items()]
        elif isinstance(value, Mapping):
            names = value.get("ids", ())
            more = ", …" if len(names) > 3 else ""
            found.append(f"{name}=ids({', '.join(map(str, names[:3]))}{more})")
        else:
            found.append(f"{name}={value}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= PAYLOAD_CHARS_SHOWN else f"{text[:PAYLOAD_CHARS_SHOWN]}…"


def _plain(value: Any) -> str:
    return "|".join(map(str, value)) if isinstance(value, list) else str(value)
