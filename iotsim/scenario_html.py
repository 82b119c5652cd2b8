"""How a scenario looks in a notebook: its steps in the order of time, escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

from iotsim.actions import Action
from iotsim.director import Step
from iotsim.units import clock_text

ROWS_SHOWN = 12


def steps_html(name: str, facts: str, steps: Sequence[Step]) -> str:
    """Return a title and a table of the first steps."""
    ordered = sorted(steps, key=lambda step: step.at_us)
    rows = "".join(
        f"<tr><td>{clock_text(step.at_us)}</td><td style='text-align:left'>"
        f"{html.escape(line(step))}</td></tr>" for step in ordered[:ROWS_SHOWN])
    more = len(ordered) - ROWS_SHOWN
    rest = f"<p>… and {more:,} more steps</p>" if more > 0 else ""
    return (f"<div><b>Scenario {html.escape(name)}</b>: {html.escape(facts)}<table><tr>"
            f"<th>time</th><th>what</th></tr>{rows}</table>{rest}</div>")


def line(step: Step) -> str:
    """Return what a step does, without its time."""
    if step.condition is not None:
        return f"expect {step.parameters.get('message', step.condition.text)}"
    if step.members is not None:
        return f"add {step.members.type} count={step.members.count}"
    return Action(step.verb, step.at_us, step.parameters).describe()
