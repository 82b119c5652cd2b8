"""Gateways as a fleet: those that belong together are one group for each of their sensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iotsim.errors import BadValue
from iotsim.fleet import Fleet
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.sensors import Sensor, sensor_of_spec
from iotsim.members import Members, members_of

_NUMBERED = re.compile(r"(.*?)(0|[1-9]\d{0,8}|0\d{1,8})(\D*)", re.DOTALL)


@dataclass(slots=True)
class _Row:
    """Gateways whose names go on from one another, with equal sensors and frequency."""

    template: str
    first: int
    count: int
    sensors: tuple[Sensor, ...]
    every_ms: int

    def members(self) -> Iterator[Members]:
        for one in self.sensors:
            yield members_of(
                one.profile(self.every_ms * 1000), count=self.count, labels=one.all_labels,
                every=None, id=f"{self.template}:{one.name}", first=lambda _: self.first)


def members_of_gateways(records: Sequence[GatewayRecord]) -> list[Members]:
    """Return the sensors of gateways, in as few groups as may be.

    Parameters
    ----------
    records : sequence of GatewayRecord
        With the sensors and the frequency that each has.
    """
    rows: list[_Row] = []
    known: dict[str, Sensor] = {}  # to make one takes a millisecond
    for record in records:
        template, index = _numbered(record.name)
        sensors = tuple(_sensor(spec, known) for spec in record.sensors)
        last = rows[-1] if rows else None
        if (last is not None and last.template == template and "{" in template
                and last.first + last.count == index and last.sensors == sensors
                and last.every_ms == record.send_frequency_ms):
            last.count += 1
        else:
            rows.append(_Row(template, index, 1, sensors, record.send_frequency_ms))
    return [member for row in rows for member in row.members()]


def _sensor(spec: Mapping[str, Any], known: dict[str, Sensor]) -> Sensor:
    key = repr(spec)
    if key not in known:
        known[key] = sensor_of_spec(spec)
    return known[key]


def fleet_of_gateways(label: str, seed: int, records: Sequence[GatewayRecord]) -> Fleet:
    """Return gateways as a fleet: each sensor a device.

    Raises
    ------
    BadValue
        If none of them has a sensor.
    """
    members = members_of_gateways(records)
    if not members:
        raise BadValue("gateways", label, "have no sensor",
                       "Add one: gateway.sensor('temperature').")
    # Names are different in a store; to compare them all at each group would take their square.
    return Fleet(label, seed=seed)._with(members=tuple(members))


def _numbered(name: str) -> tuple[str, int]:
    # The template that a name comes from, and its index: "gw-07" is "gw-{n:02d}" and 6.
    found = _NUMBERED.fullmatch(name)
    if found is None or int(found[2]) < 1:
        return name, 0
    digits = found[2]
    place = f"{{n:0{len(digits)}d}}" if digits[0] == "0" else "{n}"
    return f"{found[1]}{place}{found[3]}", int(digits) - 1
