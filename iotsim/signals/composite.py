"""Signals made of signals: added, multiplied, or one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from iotsim.errors import BadValue, UnknownName
from iotsim.readings import Ints
from iotsim.signals.base import (
    Floats,
    Signal,
    Single,
    Site,
    Source,
    Span,
    Steps,
    Tick,
    build,
    finite_span,
    kept,
    known,
    register,
    resumed,
)
from iotsim.units import duration_text, duration_us

OPERATIONS = ("sum", "product", "chain")
PARTS_MAX, DEPTH_MAX = 32, 5


@register("composite")
@dataclass(frozen=True, slots=True)
class Composite(Signal):
    """The sum or the product of its parts, or its parts in turn, again and again.

    Every part advances on every tick, also while it is not its turn.

    Parameters
    ----------
    op : {"sum", "product", "chain"}
    parts : list of dict
        Each `{"type": …}` with its parameters; in a chain also `for`, how long its turn is.
    """

    parts: Any = field(compare=False)
    op: str = "sum"
    signals: tuple[Signal, ...] = field(init=False, repr=False)
    turns_us: tuple[int, ...] = field(init=False, repr=False)  # when each turn ends

    def __post_init__(self) -> None:
        if self.op not in OPERATIONS:
            raise UnknownName("operation", self.op, OPERATIONS, "op")
        allowed = f"Give 1 to {PARTS_MAX} parts such as {{type: gaussian, mean: 0, stddev: 1}}."
        parts = self.parts
        if not isinstance(parts, Sequence) or isinstance(parts, (str, bytes)):
            raise BadValue("parts", parts, "is not a list", allowed)
        if not 1 <= len(parts) <= PARTS_MAX:
            raise BadValue("parts", parts, "is empty or too long", allowed)
        for i, part in enumerate(parts):
            if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
                raise BadValue(f"parts[{i}]", part, "has no type", allowed)
        if _depth(parts) > DEPTH_MAX:
            raise BadValue("parts", "…", f"is over {DEPTH_MAX} levels deep", "Flatten it.")
        built = tuple(_part(i, part, self.op == "chain") for i, part in enumerate(parts))
        object.__setattr__(self, "signals", tuple(signal for signal, _ in built))
        object.__setattr__(self, "turns_us", tuple(accumulate(turn_us for _, turn_us in built)))

    @classmethod
    def located(cls, parameters: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        """Return the parameters with relative paths of the parts resolved."""
        parts = parameters.get("parts")
        if not isinstance(parts, Sequence) or _depth(parts) > DEPTH_MAX:
            return parameters
        found = [
            known()[part["type"]].located(part, folder)
            if isinstance(part, Mapping) and part.get("type") in known() else part
            for part in parts
        ]
        return {**parameters, "parts": found}

    def spec(self) -> dict[str, Any]:
        """Return the signal as plain JSON values."""
        parts = [signal.spec() for signal in self.signals]
        if self.op == "chain":
            for part, begin, end in zip(parts, (0, *self.turns_us), self.turns_us, strict=False):
                part["for"] = duration_text(end - begin)
        return {"type": self.type_name, "op": self.op, "parts": parts}

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that any part needs."""
        return tuple(dict.fromkeys(name for signal in self.signals for name in signal.needs))

    @property
    def walks(self) -> bool:
        """Whether any part does."""
        return any(signal.walks for signal in self.signals)

    @property
    def span(self) -> Span:
        """What the spans of the parts make; None if one has none."""
        spans = [signal.span for signal in self.signals]
        found = [span for span in spans if span is not None]
        if len(found) < len(spans):
            return None
        low, high = found[0]
        for other in found[1:]:
            if self.op == "sum":
                low, high = low + other[0], high + other[1]
            else:
                ends = [low, high, *other] if self.op == "chain" else [
                    a * b for a in (low, high) for b in other
                ]
                low, high = min(ends), max(ends)
        return finite_span(low, high)

    @property
    def drift_per_s(self) -> float | None:
        """The drifts of a sum's parts, added."""
        drifts = [drift for signal in self.signals if (drift := signal.drift_per_s) is not None]
        return sum(drifts) if drifts and self.op == "sum" else None

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        sources = [part.block(site.child(str(i))) for i, part in enumerate(self.signals)]
        return _Composite(self.op, sources, np.array(self.turns_us, dtype=np.int64))

    def single(self, site: Site) -> Single:
        """Return the function for one device."""
        singles = [part.single(site.child(str(i))) for i, part in enumerate(self.signals)]
        op, turns_us, interval_us = self.op, self.turns_us, site.interval_us

        def value(tick: Tick) -> float:
            values = [single(tick) for single in singles]
            if op == "chain":
                return float(values[_turn(tick.n, interval_us, turns_us)])
            total = values[0]
            for part in values[1:]:
                total = total + part if op == "sum" else total * part
            return float(total) if abs(total) < np.inf else np.nan

        return value


def _depth(parts: Any) -> int:
    # Counts level by level, so that no nesting can exhaust the stack.
    level, depth = [parts], 0
    while level and depth <= DEPTH_MAX:
        depth += 1
        level = [
            part["parts"]
            for parts in level if isinstance(parts, Sequence)
            for part in parts if isinstance(part, Mapping) and "parts" in part
        ]
    return depth


def _part(i: int, part: Mapping[str, Any], turns: bool) -> tuple[Signal, int]:
    place = f"parts[{i}]"
    if turns != ("for" in part):
        why = "has no for" if turns else "has a for, which only a chain knows"
        raise BadValue(place, dict(part), why, "Give `for: 10s` in a chain, and only there.")
    parameters = {name: value for name, value in part.items() if name not in ("type", "for")}
    try:
        turn_us = duration_us(part["for"], "for") if turns else 0
        signal = build(part["type"], parameters)
    except BadValue as error:
        raise BadValue(f"{place}.{error.name}", error.given, error.why, error.allowed) from None
    except UnknownName as error:
        raise UnknownName(error.kind, error.name, error.known, place) from None
    if signal.kind != "float":
        raise BadValue(f"{place}.type", part["type"], f"makes {signal.kind}, not numbers",
                       "Use parts that make numbers.")
    return signal, turn_us


def _turn(n: int, interval_us: int, turns_us: Sequence[int]) -> int:
    position = n * interval_us % turns_us[-1]
    return next(i for i, end in enumerate(turns_us) if position < end)


@dataclass(slots=True)
class _Composite:
    op: str
    sources: list[Source]
    turns_us: Ints

    def step(self, steps: Steps) -> Floats:
        parts = [source.step(steps) for source in self.sources]
        total = np.array(np.broadcast_to(parts[0], steps.shape), dtype=np.float64)
        if self.op == "chain":
            position = steps.elapsed_us % self.turns_us[-1]
            turns = np.searchsorted(self.turns_us, position, side="right")
            for i, part in enumerate(parts[1:], start=1):
                np.copyto(total, part, where=turns == i)
            return total
        with np.errstate(over="ignore", invalid="ignore"):
            for part in parts[1:]:
                (np.add if self.op == "sum" else np.multiply)(total, part, out=total)
        total[~np.isfinite(total)] = np.nan
        return total

    def keep(self, rows: Ints) -> tuple[tuple[str, Any], ...] | None:
        states = tuple((type(part).__name__, kept(part, rows)) for part in self.sources)
        return None if all(state is None for _, state in states) else states

    def resume(self, kept: tuple[tuple[str, Any], ...]) -> None:
        for part, (name, state) in zip(self.sources, kept, strict=False):
            if type(part).__name__ == name:  # its parts may have been changed
                resumed(part, state)
