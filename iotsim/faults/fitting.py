"""Which devices can have a fault: one rule for whoever writes it down and whoever does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from iotsim.errors import BadValue, UnknownName
from iotsim.faults.base import Fault

if TYPE_CHECKING:
    from iotsim.profiles import Profile

_NUMBERS = {"float", "int", "json"}


def check_fits(fault: Fault, profiles: Sequence[Profile | None]) -> None:
    """Raise if none of the selected devices can have a fault.

    Parameters
    ----------
    fault : Fault
    profiles : sequence of Profile or None
        Of those devices; None for scripted ones, which may emit any field.

    Raises
    ------
    UnknownName
        If it names a field that none of them has.
    BadValue
        If it changes numbers and that field has none, or if it needs a grid or a battery.
    """
    if fault.name == "battery_drain":
        if all(battery_drift_per_s(profile) is None for profile in profiles):
            raise BadValue("fault", "battery_drain", "needs a field `battery` that drifts, and the "
                           "selected devices have none", "Select devices whose profile has a "
                           "brownian battery with a drift.")
        return
    if fault.name == "rate" and all(profile is None for profile in profiles):
        raise BadValue("fault", fault.name, "needs devices with a grid, and these are scripted",
                       "Use it on devices of a profile.")
    kinds: dict[str, set[str]] = {}
    for profile in profiles:
        if profile is None:
            return
        for field in profile.fields:
            kinds.setdefault(field.name, set()).add(field.kind)
    for name in fault.named:
        if name not in kinds:
            raise UnknownName("field of the selected devices", name, kinds)
        if fault.numeric and not kinds[name] & _NUMBERS:
            raise BadValue("field", name, f"is {' or '.join(sorted(kinds[name]))}, and "
                           f"{fault.name} changes numbers", "Name a field of numbers.")


def battery_drift_per_s(profile: Profile | None) -> float | None:
    """Return how fast the batteries of these devices drain by themselves; None: they have none."""
    for field in profile.fields if profile is not None else ():
        if field.name == "battery":
            return field.signal.drift_per_s
    return None
