"""What was done to a run: a log in simulated time.

An action that changes content (`stop` today) is part of the run and of its replay; pace events
(`pause`, `resume`, `speed`) are in the log only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from iotsim.units import clock_text

PACE = ("pause", "resume", "speed")


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that was done to a run.

    Attributes
    ----------
    verb : str
    at_us : int
        When it took effect, in simulated microseconds since the start of the run.
    parameters : mapping
    """

    verb: str
    at_us: int
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def at(self) -> float:
        """When it took effect, in simulated seconds since the start of the run."""
        return self.at_us / 1e6

    @property
    def is_pace(self) -> bool:
        """Whether it changed only how fast time went."""
        return self.verb in PACE

    def spec(self) -> dict[str, Any]:
        """Return the action as plain JSON values."""
        return {"verb": self.verb, "at_us": self.at_us, **self.parameters}

    def __str__(self) -> str:
        details = " ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{clock_text(self.at_us)} {self.verb} {details}".rstrip()
