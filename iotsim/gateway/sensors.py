"""The sensors of NoTIP gateways: their types, their units, and the signals behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from iotsim.errors import BadValue, UnknownName
from iotsim.members import check_labels
from iotsim.profiles import Profile
from iotsim.readings import NOTIP
from iotsim.units import duration_text, duration_us

UNITS = {
    "temperature": "°C",
    "humidity": "%",
    "pressure": "hPa",
    "movement": "m/s",
    "biometric": "bpm",
}
_RANGES = {
    "temperature": (15, 30),
    "humidity": (30, 70),
    "pressure": (980, 1030),
    "movement": (0, 2),
    "biometric": (55, 100),
}
_BOUNDED = ("uniform_random", "sine_wave", "spike", "constant")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NAMED = "Give letters, digits, '_', '-' or '.', such as 'inside'."


@dataclass(frozen=True, slots=True)
class Sensor:
    """One sensor of a gateway: what it measures, and how its values come about.

    Attributes
    ----------
    name : str
        Its own within the gateway; its readings are keyed by it.
    type : str
        temperature, humidity, pressure, movement or biometric.
    algorithm : str
        A signal of the engine.
    parameters : mapping
        Of the signal.
    labels : mapping of str to str
        Of its gateway.
    jitter_us : int
        Spread of the published time.
    """

    name: str
    type: str
    algorithm: str
    parameters: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)
    jitter_us: int = 0

    def __hash__(self) -> int:
        return hash((self.name, self.type, self.algorithm))

    def __reduce__(self) -> tuple[Any, ...]:
        return sensor_of_spec, (self.spec(),)

    @property
    def unit(self) -> str:
        """What its values are in."""
        return UNITS[self.type]

    def spec(self) -> dict[str, Any]:
        """Return the sensor as plain JSON values."""
        found = {"name": self.name, "type": self.type, "algorithm": self.algorithm,
                 **self.parameters}
        if self.labels:
            found["labels"] = dict(self.labels)
        if self.jitter_us:
            found["jitter"] = duration_text(self.jitter_us)
        return found

    @property
    def all_labels(self) -> dict[str, str]:
        """The labels of its device: its own name, too."""
        return {**self.labels, "sensor": self.name}

    def profile(self, every_us: int) -> Profile:
        """Return the sensor as a profile of one field, `value`.

        Parameters
        ----------
        every_us : int
            The send frequency of its gateway, microseconds.
        """
        value = {"type": self.algorithm, **self.parameters, "unit": self.unit}
        return Profile(self.type, {"value": value}, telemetry_interval=duration_text(every_us),
                       protocol=NOTIP, jitter=duration_text(self.jitter_us)
                       if self.jitter_us else 0)


def sensor(
    type: Any, name: Any = None, algorithm: Any = "uniform_random", *, taken: tuple[str, ...] = (),
    labels: Any = None, jitter: Any = 0, **parameters: Any,
) -> Sensor:
    """Return a sensor, with everything checked.

    Parameters
    ----------
    type : str
    name : str, optional
        The type, or the type with a number, if not given.
    algorithm : str
        uniform_random, sine_wave, spike, constant (with `min` and `max`), or any other signal.
    taken : tuple of str
        Names that the gateway's other sensors have.
    labels, jitter
        Of the gateway.
    **parameters
        Of the signal.

    Raises
    ------
    IotsimError
        If the type, the name, the algorithm or a parameter cannot be.

    Examples
    --------
    >>> sensor("temperature", algorithm="constant", min=10, max=30).name
    'temperature'
    """
    if not isinstance(type, str) or type not in UNITS:
        raise UnknownName("sensor type", type, UNITS)
    if not isinstance(algorithm, str):
        raise BadValue("algorithm", algorithm, "is not a name", "Give one such as 'sine_wave'.")
    checked = _name(name, type, taken)
    if algorithm in _BOUNDED and "value" not in parameters:
        low, high = _RANGES[type]
        parameters = {"min": parameters.get("min", low), "max": parameters.get("max", high),
                      **parameters}
        _check_range(parameters["min"], parameters["max"])
    made = Sensor(checked, type, algorithm, MappingProxyType(dict(parameters)),
                  check_gateway_labels(labels), duration_us(jitter, "jitter", zero=True))
    profile = made.profile(1_000_000)
    kind = profile.fields[0].signal.kind
    if kind not in ("float", "int"):
        raise BadValue("algorithm", algorithm, f"gives {kind}, and a gateway sends numbers",
                       "Take one that gives numbers, such as 'sine_wave'.")
    return made


def check_gateway_labels(labels: Any) -> Mapping[str, str]:
    """Return labels that a gateway can have, frozen, or raise BadValue."""
    if labels is None:
        labels = {}
    if not isinstance(labels, Mapping):
        raise BadValue("labels", labels, "are no mapping", "Give {'site': 'north'}.")
    for name in ("sensor", "gateway", "value"):
        if name in labels:
            raise BadValue("label", name, "is a column of every gateway's frame",
                           "Choose another one.")
    return check_labels(labels)


def sensor_of_spec(spec: Mapping[str, Any]) -> Sensor:
    """Return the sensor whose `spec()` this is."""
    given = dict(spec)
    return sensor(given.pop("type"), given.pop("name"),
                  given.pop("algorithm", "uniform_random"), **given)


def _name(name: Any, type: str, taken: tuple[str, ...]) -> str:
    if name is None:
        names = (type, *(f"{type}-{n}" for n in range(2, len(taken) + 3)))
        return next(one for one in names if one not in taken)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadValue("name", name, "cannot be a sensor's name", _NAMED)
    if name in taken:
        raise BadValue("name", name, "is another sensor of this gateway", "Give another one.")
    return name


def _check_range(low: Any, high: Any) -> None:
    for what, value in (("min", low), ("max", high)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or abs(value) > 1e15:
            raise BadValue(what, value, "is not a finite number", "Give one within ±1e15.")
    if not low < high:
        raise BadValue("min", low, f"is not below max={high!r}", "Give min < max.")
