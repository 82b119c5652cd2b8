"""What a panel offers to choose from: faults and their parameters, profiles, paces.

Parameters of a fault come to the browser as names, defaults and a word on each; what is typed
there comes back as text, and `value_of` makes of it what Python would.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from functools import cache
from importlib import import_module
from typing import Any

from iotsim.errors import BadValue
from iotsim.faults.base import FAULTS, Fault
from iotsim.profiles import Profile

SPEEDS = ("1", "10", "60", "600", "max")
FIRST = "disconnect"  # chosen when a panel opens
HIDDEN = ("suspend", "slow_down")  # verbs of their own, or back-pressure's


@cache
def faults() -> list[dict[str, Any]]:
    """Return every fault that people inject: name, layer, what it does, parameters."""
    found = []
    for name, target in FAULTS.items():
        if name in HIDDEN:
            continue
        module, _, attribute = target.partition(":")
        cls: type[Fault] = getattr(import_module(module), attribute)
        found.append({"name": name, "layer": cls.layer, "does": _first_line(cls),
                      "parameters": _parameters(cls)})
    return sorted(found, key=lambda one: (one["name"] != FIRST, str(one["name"])))


def _first_line(cls: type[Fault]) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _parameters(cls: type[Fault]) -> list[dict[str, Any]]:
    found = []
    for entry in fields(cls):
        if not entry.init:
            continue
        required = entry.default is MISSING and entry.default_factory is MISSING
        default = None if entry.default is MISSING else entry.default
        found.append({"name": entry.name, "required": required, "default": _shown(default)})
    return found


def _shown(default: Any) -> str:
    if default is None or default == ():
        return ""
    return default if isinstance(default, str) else json.dumps(default)


def profiles() -> list[str]:
    """Return the names of the profiles that devices can be added of."""
    return list(Profile.names())


def labels_of(text: str) -> dict[str, str]:
    """Return the labels that somebody typed.

    Raises
    ------
    BadValue
        If a part is not `name=value`.

    Examples
    --------
    >>> labels_of("site=north, rack = 7")
    {'site': 'north', 'rack': '7'}
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise BadValue("labels", part, "is not a label", "Write site=north,rack=7.")
        found[name.strip()] = value.strip()
    return found


def value_of(text: str) -> Any:
    """Return what somebody typed: a number, a list, true or false, or the text itself.

    Examples
    --------
    >>> value_of("2.5"), value_of("60s"), value_of("rpm, flow"), value_of("true")
    (2.5, '60s', ['rpm', 'flow'], True)
    """
    text = text.strip()
    try:
        value = json.loads(text)
    except ValueError:
        parts = [part.strip() for part in text.split(",")]
        return parts if len(parts) > 1 and all(parts) else text
    return value if isinstance(value, (int, float, bool)) else text
