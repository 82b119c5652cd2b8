"""Fields of a profile: a signal with a name, a resolution and a unit, in the order they need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np

from iotsim.documents import Document
from iotsim.errors import BadValue, IotsimError, ProfileError, UnknownName, shown
from iotsim.readings import Kind
from iotsim.signals.base import Signal, Site, build, known
from iotsim.signals.resolution import Resolution

_COMMON = ("type", "resolution", "unit", "shared")


@dataclass(frozen=True, slots=True)
class Field:
    """One measured quantity of a device.

    Attributes
    ----------
    name : str
    signal : Signal
    resolution : Resolution or None
        What values are rounded to before they are published.
    unit : str or None
        Documentation for people; nothing is converted.
    shared : str or None
        A label: devices with the same value of it share the field's stream.
    """

    name: str
    signal: Signal
    resolution: Resolution | None = None
    unit: str | None = None
    shared: str | None = None

    @property
    def kind(self) -> Kind:
        """What the values are: float, int, bool, text or json."""
        return self.signal.kind

    def spec(self) -> dict[str, Any]:
        """Return the field as plain JSON values, as a profile spells it."""
        found = self.signal.spec()
        if self.resolution is not None:
            found["resolution"] = self.resolution.step / self.resolution.per_unit
        for name in ("unit", "shared"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        return found


def make(
    name: str, given: Mapping[str, Any], interval_us: int, document: Document, folder: Path
) -> Field:
    """Return one field from what a profile says about it, or raise with file and line."""
    place = ("telemetry_fields", name)
    try:
        found = _build_field(name, given, folder)
        # Some parameters can only be judged against the interval: have one device made.
        found.signal.block(Site(np.zeros(1, dtype=np.uint64), name, interval_us))
        return found
    except IotsimError as error:
        inner = error.name if isinstance(error, (BadValue, UnknownName)) else ""
        if isinstance(error, UnknownName) and error.kind == "signal":
            inner = "type"
        steps = tuple(int(step) if step.isdigit() else step
                      for step in re.findall(r"[^.\[\]]+", str(inner)))
        raise ProfileError(document.where((*place, *steps)),
                           f"field {shown(name)}: {error}") from error


def _build_field(name: str, given: Mapping[str, Any], folder: Path) -> Field:
    type_name = given.get("type")
    if not isinstance(type_name, str):
        raise BadValue("type", type_name, "is not the name of a signal",
                       f"Give one of: {', '.join(sorted(known()))}.")
    parameters = {key: value for key, value in given.items() if key not in _COMMON}
    signals = known()
    if type_name in signals:
        parameters = dict(signals[type_name].located(parameters, folder))
    signal = build(type_name, parameters)
    resolution = given.get("resolution")
    if resolution is not None and signal.kind != "float":
        raise BadValue("resolution", resolution, f"makes no sense for values of kind {signal.kind}",
                       "Leave it out.")
    for key in ("unit", "shared"):
        text = given.get(key)
        if text is not None and not (isinstance(text, str) and text and text.isprintable()):
            raise BadValue(key, text, "is not text", "Give printable text, in quotes if needed.")
    return Field(name, signal, None if resolution is None else Resolution.of(resolution),
                 given.get("unit"), given.get("shared"))


def ordered(found: Mapping[str, Field], document: Document) -> tuple[Field, ...]:
    """Return fields so that each stands after those it needs, else as they were given."""
    for name, field in found.items():
        place = document.where(("telemetry_fields", name))
        for need in field.signal.needs:
            if need not in found:
                raise ProfileError(place, f"field {shown(name)}: "
                                          f"{UnknownName('field', need, found)}")
            if found[need].kind in ("text", "json"):
                raise ProfileError(place, f"field {shown(name)}: {shown(need)} is "
                                          f"{found[need].kind}, not a number. Depend on numbers.")
    sorter = TopologicalSorter({name: field.signal.needs for name, field in found.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = [str(name) for name in error.args[1]]
        where = document.where(("telemetry_fields", circle[0]))
        raise ProfileError(where, f"fields depend on each other in a circle: "
                                  f"{' → '.join(circle)}. Break it.") from None
    placed: dict[str, Field] = {}
    while sorter.is_active():
        ready = set(sorter.get_ready())
        placed.update((name, field) for name, field in found.items() if name in ready)
        sorter.done(*ready)
    return tuple(placed.values())
