"""A scenario over simulated time, as plain JSON: what it will do, or what a script has done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from iotsim.conditions import Expectation
from iotsim.panels.windows import WHERE_CHARS
from iotsim.plotting.canvas import cut
from iotsim.plotting.lanes import LANES_MAX, Row, heights
from iotsim.plotting.scenario import rows_of
from iotsim.plotting.windows import Lane, lanes_in
from iotsim.result import Result
from iotsim.scenario import Scenario
from iotsim.scenario_html import line
from iotsim.units import clock_text

STEPS_SHOWN = 200
PIECES_MAX = 240  # bars, or marks, of one lane
TEXT_CHARS = 160
APART_MAX = 12  # lanes of one fault on one selection each


def planned(scenario: Scenario) -> dict[str, Any]:
    """Return the timeline of a scenario's steps; of a script nobody knows it beforehand."""
    if scenario.script is not None:
        end_us = scenario.end_us()
        return {"end": None if end_us is None else end_us / 1e6, "lanes": [], "steps": [],
                "steps_hidden": 0}
    rows, end_us = rows_of(scenario)
    steps = sorted(scenario.steps, key=lambda step: step.at_us)
    return {"end": end_us / 1e6, "lanes": [_lane(row, end_us / 1e6) for row in rows],
            **_steps([(step.at_us, cut(line(step), TEXT_CHARS)) for step in steps])}


def done(result: Result) -> dict[str, Any]:
    """Return the timeline of what a run did."""
    end_us = max(1, result.end_us - result.start_us)
    acts = [one for one in result.actions if not one.is_pace]
    said = [(one.at_us, cut(one.describe(), TEXT_CHARS)) for one in acts]
    said += [(one.at_us, cut(f"expect {one.title}", TEXT_CHARS)) for one in result.expectations]
    rows = [*_broken(result), *_marked((one.verb, one.at_us) for one in acts
                                       if one.verb != "inject")]
    rows += _marked(("expect", one.at_us) for one in result.expectations)
    return {"end": end_us / 1e6, "lanes": [_lane(row, end_us / 1e6) for row in rows],
            **_steps(sorted(said, key=lambda one: one[0]))}


def _broken(result: Result) -> Iterator[Row]:
    window_us = result.start_us, result.end_us
    lanes = lanes_in(result.history)
    if len(lanes) > APART_MAX:  # of a fault that came often, on others every time
        lanes = _together(lanes, *window_us)
    for lane in lanes[:LANES_MAX]:
        runs = lane.runs(*window_us)
        tall = heights([count for _, _, count in runs], lane.count)
        bars = [((begin - result.start_us) / 1e6, (end - result.start_us) / 1e6, height)
                for (begin, end, _), height in zip(runs, tall, strict=True)]
        who = f"{lane.count:,} device{'' if lane.count == 1 else 's'}"
        yield Row(lane.said() if lane.where else lane.name, who, "", bars, open=lane.open)
    if len(lanes) > LANES_MAX:
        yield Row(f"and {len(lanes) - LANES_MAX:,} more", "", "")


def _together(lanes: Sequence[Lane], since_us: int, until_us: int) -> list[Lane]:
    found: dict[str, Lane] = {}
    for lane in lanes:
        whole = found.setdefault(lane.name, Lane(lane.name, ""))
        if runs := lane.runs(since_us, until_us):
            whole.take(runs, lane.slots)
        whole.open = whole.open or lane.open
    return [lane for lane in found.values() if lane.changes]


def _marked(moments: Iterable[tuple[str, int]]) -> list[Row]:
    rows: dict[str, Row] = {}
    for verb, at_us in moments:
        rows.setdefault(verb, Row(verb, "", "")).marks.append(at_us / 1e6)
    for row in rows.values():
        row.right = f"{len(row.marks):,} times" if len(row.marks) > 1 else ""
    return list(rows.values())


def _lane(row: Row, end_s: float) -> dict[str, Any]:
    name, _, where = row.left.partition(" · ")
    marks = row.marks if len(row.marks) <= PIECES_MAX else sorted(
        {round(mark / end_s * PIECES_MAX) * end_s / PIECES_MAX for mark in row.marks})
    return {"name": name, "where": cut(where, WHERE_CHARS), "right": row.right,
            "fault": bool(row.bars), "bars": [list(bar) for bar in _fewer(row.bars)],
            "marks": marks, "open": row.open}


def _fewer(bars: Sequence[tuple[float, float, float]]) -> Iterator[tuple[float, float, float]]:
    # Bars that begin close to each other are one, so that a lane has a bounded number.
    ordered = sorted(bars)
    each = -(-len(ordered) // PIECES_MAX)
    for i in range(0, len(ordered), max(1, each)):
        mine = ordered[i : i + each]
        yield mine[0][0], max(end for _, end, _ in mine), max(height for _, _, height in mine)


def _steps(said: Sequence[tuple[int, str]]) -> dict[str, Any]:
    shown = said[:STEPS_SHOWN]
    return {"steps": [[at_us / 1e6, clock_text(at_us), text] for at_us, text in shown],
            "steps_hidden": len(said) - len(shown)}


def judged(expectations: Sequence[Expectation]) -> list[list[Any]]:
    """Return what became of expectations: seconds, clock, status, title and what was seen."""
    return [[one.at_us / 1e6, clock_text(one.at_us), one.status, cut(one.title, TEXT_CHARS),
             cut(one.seen, TEXT_CHARS)] for one in expectations[:STEPS_SHOWN]]
