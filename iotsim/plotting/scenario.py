"""A scenario as a timeline, before it is run: faults as bars, everything else as marks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iotsim.errors import BadValue, IotsimError
from iotsim.plotting.canvas import GREY, cut, dress_clock, headline
from iotsim.plotting.lanes import LANES_MAX, RIGHT_CHARS_MAX, Row, draw_lanes, lanes_axes
from iotsim.plotting.windows import color_of, where_text
from iotsim.scenario_checks import crowd
from iotsim.scenario_html import line
from iotsim.selectors import select
from iotsim.units import instant_text

if TYPE_CHECKING:
    from iotsim.director import Step
    from iotsim.scenario import Scenario

COUNTED_MAX = 200_000  # devices: whom a selector means is not looked up among more


@dataclass(slots=True)
class _Fault:
    # Nobody knows yet whom a clear that means others will leave.
    name: str
    where: Any
    begin_us: int
    end_us: int | None


def plot_scenario(
    scenario: Scenario, *, ax: Any = None, figsize: tuple[float, float] | None = None
) -> Any:
    """Draw what a scenario will do, over simulated time; see `Scenario.plot`.

    Returns
    -------
    Axes

    Raises
    ------
    BadValue
        If it is a script.
    MissingExtra
        If matplotlib is not installed.
    """
    if scenario.script is not None:
        raise BadValue("scenario", scenario.name, "is a script: what it does shows when it runs",
                       "Draw what came of it: scenario.generate().plot.faults().")
    rows, end_us = rows_of(scenario)
    place = lanes_axes(len(rows), figsize) if ax is None else ax
    draw_lanes(place, rows)
    since = "the start" if scenario.start_us is None else (
        f"{instant_text(scenario.start_us)} (UTC)")
    dress_clock(place, end_us, f"simulated time since {since}")
    place.grid(visible=False, axis="y")
    place.spines["left"].set_visible(False)
    facts = " ".join(text for _, text in scenario._facts())
    place.set_title(headline(f"{cut(scenario.name, 40)} · {facts}"), loc="left", fontsize="medium")
    return place


def rows_of(scenario: Scenario) -> tuple[list[Row], int]:
    """Return the lanes of a scenario's steps, and where they end in microseconds."""
    steps = sorted(scenario.steps, key=lambda step: step.at_us)
    last_us = max([step.at_us for step in steps], default=0)
    end_us = scenario.end_us() or max(last_us + last_us // 4, 1_000_000)
    rows = [*_fault_rows(scenario, _faults(steps), end_us), *_other_rows(steps)]
    rest = len(rows) - LANES_MAX
    return [*rows[:LANES_MAX], *([Row(f"and {rest:,} more", "", GREY)] if rest > 0 else [])], end_us


def _faults(steps: Sequence[Step]) -> list[_Fault]:
    found: list[_Fault] = []
    for step in steps:
        given = step.parameters
        if step.verb == "inject":
            length_us = given.get("duration_us")
            found.append(_Fault(given["fault"], given["where"], step.at_us,
                                None if length_us is None else step.at_us + length_us))
        elif step.verb in ("clear", "stop"):
            name, where = given.get("fault"), given["where"]
            for one in found:
                if name in (None, one.name) and where in ("all", one.where):
                    ended_us = step.at_us if one.end_us is None else min(one.end_us, step.at_us)
                    one.end_us = max(ended_us, one.begin_us)
    return found


def _fault_rows(scenario: Scenario, faults: Sequence[_Fault], end_us: int) -> Iterator[Row]:
    colors = color_of([one.name for one in faults])
    lanes: dict[tuple[str, str], list[_Fault]] = {}
    for one in faults:
        lanes.setdefault((one.name, repr(one.where)), []).append(one)
    count = _counter(scenario) if lanes else None
    for (name, _), mine in lanes.items():
        ends_us = [end_us if one.end_us is None else min(one.end_us, end_us) for one in mine]
        bars = [(one.begin_us / 1e6, until_us / 1e6, 1.0)
                for one, until_us in zip(mine, ends_us, strict=True)]
        is_open = any(one.end_us is None or one.end_us > end_us for one in mine)
        words = [count(mine[0].where) if count is not None else "",
                 f"{len(mine):,} times" if len(mine) > 1 else "", "not ended" if is_open else ""]
        yield Row(f"{name} · {where_text(mine[0].where)}", ", ".join(filter(None, words)),
                  colors[name], bars, open=is_open)


def _counter(scenario: Scenario) -> Any:
    # Whom a selector would mean if all who are ever there were there.
    fleet = crowd(scenario.fleet, scenario.steps)
    few = len(fleet) <= COUNTED_MAX
    groups = [member.group(i) for i, member in enumerate(fleet.members)] if few else []
    known: dict[str, str] = {}

    def count(where: Any) -> str:
        key = where_text(where)
        if key == "all" or not few:
            return f"{len(fleet):,} devices" if key == "all" else ""
        if repr(where) not in known:
            try:
                found = select(where, groups).count
                said = f"{found:,} device{'' if found == 1 else 's'}"
            except IotsimError:  # a label that comes with a firmware update
                said = ""
            known[repr(where)] = said
        return known[repr(where)]

    return count


def _other_rows(steps: Sequence[Step]) -> Iterator[Row]:
    verbs: dict[str, list[Step]] = {}
    for step in steps:
        if step.verb != "inject":
            verbs.setdefault(step.verb, []).append(step)
    for verb, mine in verbs.items():
        first = line(mine[0]).removeprefix(f"{verb} ")
        more = f" (and {len(mine) - 1:,} more)" if len(mine) > 1 else ""
        yield Row(verb, f"{cut(first, RIGHT_CHARS_MAX - len(more))}{more}", GREY,
                  marks=[step.at_us / 1e6 for step in mine])
