"""A gateway as people write it: who it is, how often it sends, which sensors it has. Frozen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from iotsim.errors import BadValue
from iotsim.facts import facts_html, table_html
from iotsim.fleet import Fleet
from iotsim.gateway.record import FREQUENCY_MS_MAX, GatewayRecord
from iotsim.gateway.sensors import Sensor, check_gateway_labels, sensor
from iotsim.members import check_count, check_id_template
from iotsim.seeding import check_seed, fresh_seed
from iotsim.transport.discretion import discreet
from iotsim.units import Duration, Instant, duration_text, duration_us

if TYPE_CHECKING:
    from iotsim.result import Result

_FIELDS = ("name", "factory_id", "_factory_key", "model", "firmware", "every_us", "count", "seed",
           "sensors", "labels", "jitter_us")
_NAME = re.compile(r"[\w-]+")
_PLACE = re.compile(r"\{(?:index|n)(?::0\d{1,2}d)?\}")


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Gateway:
    """A NoTIP gateway, or many of a kind: who they are to the factory, and their sensors.

    Readings are keyed by the gateway's and the sensor's name, never by what a platform hands out:
    the same seed gives the same readings, whoever provisions them.

    Parameters
    ----------
    name : str
        Template with `{n}` (from 1) or `{index}` (from 0).
    factory_id, factory_key : str, optional
        Templates, too: the credentials that work once. The name, and nothing, if not given.
    model, firmware : str
    every : duration
        The send frequency: whole milliseconds, at most a day.
    count : int
    seed : int, optional
        Drawn, and shown in the repr, if not given.
    labels : mapping of str to str, optional
        Of all its sensors.
    jitter : duration
        Spread of the published times; the ticks stay.

    Examples
    --------
    >>> gateway = Gateway("gw-{n}", every="5s", count=3, seed=42).sensor("temperature")
    >>> gateway
    <Gateway 'gw-{n}': 3 gateways with 1 sensor every 5s (temperature), seed 42>
    >>> len(gateway.generate("1m").frame())
    36
    """

    name: str
    factory_id: str
    _factory_key: str
    model: str
    firmware: str
    every_us: int
    count: int
    seed: int
    sensors: tuple[Sensor, ...]
    labels: Mapping[str, str]
    jitter_us: int

    @discreet
    def __init__(
        self, name: str, *, factory_id: str | None = None, factory_key: str = "",
        model: str = "iotsim", firmware: str = "1.0.0", every: Duration = "5s", count: int = 1,
        seed: int | None = None, labels: Mapping[str, str] | None = None, jitter: Duration = 0,
    ) -> None:
        number = check_count(count)
        template = _template(name, number)
        if not _NAME.fullmatch(_PLACE.sub("0", template)):
            raise BadValue("name", name, "cannot be a gateway's name",
                           "Give letters, digits, '-' and '_', and {n} or {index}, as in 'gw-{n}'.")
        factory = template if factory_id is None else factory_id
        _check_text("factory_id", factory, empty=False)
        if number > 1 and not _PLACE.search(factory):
            raise BadValue("factory_id", factory, f"gives {number} gateways the same id",
                           "Give text with {n} or {index}, such as 'f-{n}'.")
        _check_text("factory_key", factory_key)
        for what, text in (("model", model), ("firmware", firmware)):
            _check_text(what, text)
        given = {"name": template, "factory_id": factory, "_factory_key": factory_key,
                 "model": model, "firmware": firmware, "every_us": check_every(every),
                 "count": number, "sensors": (), "labels": check_gateway_labels(labels),
                 "jitter_us": duration_us(jitter, "jitter", zero=True),
                 "seed": fresh_seed() if seed is None else check_seed(seed)}
        for key in _FIELDS:
            object.__setattr__(self, key, given[key])

    def sensor(
        self, type: str, name: str | None = None, *, algorithm: str = "uniform_random",
        **parameters: Any,
    ) -> Gateway:
        """Return a gateway with one more sensor.

        Parameters
        ----------
        type : str
            temperature, humidity, pressure, movement or biometric.
        name : str, optional
            The type if not given; the second of a type is "temperature-2".
        algorithm : str
            uniform_random, sine_wave, spike, constant (`min=`, `max=`), or any other signal.
        **parameters
            Of the signal; `resolution=` too.

        Raises
        ------
        IotsimError
            If something of it cannot be.
        """
        taken = tuple(one.name for one in self.sensors)
        made = sensor(type, name, algorithm, taken=taken, labels=self.labels,
                      jitter=self.jitter_us / 1e6, **parameters)
        return self._with(sensors=(*self.sensors, made))

    def many(self, count: int) -> Gateway:
        """Return so many gateways of this kind."""
        number = check_count(count)
        for what, template in (("name", self.name), ("factory_id", self.factory_id)):
            if number > 1 and not _PLACE.search(template):
                raise BadValue("count", number, f"gives {number} gateways the same {what}",
                               f"Put {{n}} into {what}, as in 'gw-{{n}}'.")
        return self._with(count=number)

    @property
    def label(self) -> str:
        """What their fleet is called: the name without its numbers."""
        return _PLACE.sub("", self.name).strip("-_ ") or "gateways"

    def names(self) -> list[str]:
        """Return the name of every gateway."""
        return [_filled(self.name, i) for i in range(self.count)]

    def fleet(self) -> Fleet:
        """Return the gateways as a fleet: each sensor a device, `gw-1:temperature`.

        Raises
        ------
        BadValue
            If there is no sensor.
        """
        if not self.sensors:
            raise BadValue("gateway", self.name, "has no sensor",
                           "Add one: gateway.sensor('temperature').")
        made = Fleet(self.label, seed=self.seed)
        for one in self.sensors:
            made = made.add(one.profile(self.every_us), count=self.count,
                            labels=one.all_labels, id=f"{self.name}:{one.name}")
        return made

    def generate(
        self, duration: Duration, *, start: Instant | None = None, to: str | Path | None = None,
        progress: bool | None = None,
    ) -> Result:
        """Return all readings of a stretch of simulated time; see `Fleet.generate`."""
        return self.fleet().generate(duration, start=start, to=to, progress=progress)

    def records(self) -> list[GatewayRecord]:
        """Return what is known of each gateway before any platform was asked."""
        specs = tuple(one.spec() for one in self.sensors)
        return [
            GatewayRecord(
                name=_filled(self.name, i), factory_id=_filled(self.factory_id, i),
                factory_key=_filled(self._factory_key, i), model=self.model,
                firmware=self.firmware, send_frequency_ms=self.every_us // 1000, seed=self.seed,
                sensors=specs,
            )
            for i in range(self.count)
        ]

    def spec(self) -> dict[str, Any]:
        """Return what determines the readings, as plain JSON values; no secrets."""
        return {"name": self.name, "factory_id": self.factory_id, "model": self.model,
                "firmware": self.firmware, "every": duration_text(self.every_us),
                "count": self.count, "seed": self.seed,
                "sensors": [one.spec() for one in self.sensors]}

    def __hash__(self) -> int:
        return hash((self.name, self.seed, self.count, self.every_us))

    def _with(self, **changes: Any) -> Gateway:
        copy = object.__new__(Gateway)
        for key in _FIELDS:
            object.__setattr__(copy, key, changes.get(key, getattr(self, key)))
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {key: getattr(self, key) for key in _FIELDS}
        return _again, ({**facts, "labels": dict(self.labels)},)

    def _facts(self) -> Iterator[tuple[str, str]]:
        few = len(self.sensors)
        names = ", ".join(one.name for one in self.sensors[:6]) + (", …" if few > 6 else "")
        listed = f" ({names})" if few else ""
        many = f"{self.count:,} gateway{'' if self.count == 1 else 's'}"
        yield "gateways", (f"{many} with {few} sensor{'' if few == 1 else 's'} every "
                           f"{duration_text(self.every_us)}{listed}")
        yield "seed", f"seed {self.seed}"

    def __repr__(self) -> str:
        return f"<Gateway {self.name!r}: {', '.join(text for _, text in self._facts())}>"

    def _repr_html_(self) -> str:
        rows = ((one.name, one.type, one.unit, one.algorithm) for one in self.sensors)
        sensors = table_html(("sensor", "type", "unit", "algorithm"), rows, len(self.sensors),
                             "sensors")
        return facts_html(f"Gateway {self.name}", self._facts(), sensors)


def _template(name: Any, count: int) -> str:
    try:
        return check_id_template(name, "gateway", count, 0)
    except BadValue as error:
        why = error.why.replace("devices", "gateways")
        raise BadValue("name", error.given, why, "Give text such as 'gw-{n}'.") from None


def check_every(every: Duration) -> int:
    """Return a send frequency in microseconds: whole milliseconds, up to a day."""
    every_us = duration_us(every, "every", zero=True)
    if every_us % 1000 or not 0 < every_us <= FREQUENCY_MS_MAX * 1000:
        raise BadValue("every", every, "cannot be a send frequency",
                       "Give whole milliseconds from '1ms' to '24h'.")
    return every_us


def _filled(template: str, index: int) -> str:
    return _PLACE.sub(lambda place: place[0].format(index=index, n=index + 1), template)


def _check_text(what: str, text: Any, *, empty: bool = True) -> None:
    fine = isinstance(text, str) and len(text) <= 256 and text.isprintable() and (empty or text)
    if not fine:
        secret = what == "factory_key"
        raise BadValue(what, type(text) if secret else text, "cannot be used",
                       "Give up to 256 printable characters.")


def _again(facts: dict[str, Any]) -> Gateway:
    copy = object.__new__(Gateway)
    for key, value in {**facts, "labels": MappingProxyType(facts["labels"])}.items():
        object.__setattr__(copy, key, value)
    return copy
