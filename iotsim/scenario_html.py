"""How a scenario looks in a notebook: its first steps in the order of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import nsmallest

from iotsim.actions import Action
from iotsim.director import Step
from iotsim.facts import ROWS_SHOWN, facts_html, table_html
from iotsim.units import clock_text


def steps_html(name: str, facts: Iterable[tuple[str, str]], steps: Sequence[Step]) -> str:
    """Return a title, facts and a table of the first steps."""
    first = nsmallest(ROWS_SHOWN, steps, key=lambda step: step.at_us)
    rows = ((clock_text(step.at_us), line(step)) for step in first)
    return facts_html(f"Scenario {name}", facts,
                      table_html(("time", "what"), rows, len(steps), "steps"))


def line(step: Step) -> str:
    """Return what a step does, without its time."""
    if step.condition is not None:
        return f"expect {step.parameters.get('message', step.condition.text)}"
    if step.members is not None:
        return f"add {step.members.type} count={step.members.count}"
    return Action(step.verb, step.at_us, step.parameters).describe()
