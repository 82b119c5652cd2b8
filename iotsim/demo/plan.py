"""What the demonstration will do: who, how fast, over which broker, and what that needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from iotsim.broker import find_mosquitto
from iotsim.errors import BadValue, IotsimError
from iotsim.fleet import Fleet
from iotsim.preflight import Finding, Need, look
from iotsim.profiles import Profile
from iotsim.units import US_PER_SECOND

BrokerKind: TypeAlias = Literal["auto", "mosquitto", "embedded"]

NAME = "demo"
MIX = (("temperature_sensor", 2), ("smart_lock", 4), ("smart_meter", 4))
PICTURED = ("temperature", "state", "power")
SPEED = 60.0
SECONDS_MIN, SECONDS_MAX = 1.0, 120.0
DEVICES_MAX = 1_000_000
# The subscriber (paho, in Python) is the slowest: what it takes with room to spare on two cores.
RATE_HZ_MAX = 6_500.0
EMBEDDED_RATE_HZ_MAX = 750.0
EMBEDDED_DEVICES_MAX = 100
BYTES_FIXED = 300_000_000  # three processes with numpy, pandas, pyarrow and matplotlib
BYTES_PER_MESSAGE = 2_000  # held twice by the tap, once by the capture, once while it is audited


@dataclass(frozen=True, slots=True)
class Plan:
    """What the demonstration will do.

    Attributes
    ----------
    counts : tuple of (profile name, count)
    seed : int
    seconds : float
        Of real time that the fleet is live.
    speed : float
    embedded : bool
        Whether the broker is the one in pure Python, which speaks MQTT 3.1.1 only.
    wanted_devices : int
        How many were asked for.
    folder : Path
    """

    counts: tuple[tuple[str, int], ...]
    seed: int
    seconds: float
    speed: float
    embedded: bool
    wanted_devices: int
    folder: Path

    @property
    def devices(self) -> int:
        """How many devices take part."""
        return sum(count for _, count in self.counts)

    @property
    def duration_us(self) -> int:
        """Simulated time, microseconds."""
        return round(self.seconds * self.speed * US_PER_SECOND)

    @property
    def rate_hz(self) -> float:
        """Messages per second of real time."""
        return _rate_hz(self.counts) * self.speed

    @property
    def messages(self) -> int:
        """About how many messages there will be."""
        return round(self.rate_hz * self.seconds)

    @property
    def version(self) -> str:
        """The MQTT version that publishers and the tap speak."""
        return "3.1.1" if self.embedded else "5"

    def fleet(self, url: str | None = None) -> Fleet:
        """Return the fleet; with a URL it publishes there, a connection for each device type."""
        fleet = Fleet(NAME, seed=self.seed)
        for name, count in self.counts:
            fleet = fleet.add(name, count=count)
        for name, _ in self.counts if url is not None else ():
            fleet = fleet.publish_to(str(url), where=f"device_type={name}", qos=1,
                                     version=self.version)
        return fleet

    def findings(self) -> list[Finding]:
        """Return what the machine has for it."""
        packages = {"paho": "paho-mqtt", "pyarrow": "pyarrow", "matplotlib": "matplotlib"}
        packages |= {"amqtt": "amqtt"} if self.embedded else {"mqtt5": "mqtt5"}
        found = look(Need(
            connections=len(self.counts) + 2,
            ports=1,
            memory_bytes=BYTES_FIXED + BYTES_PER_MESSAGE * self.messages,
            packages=packages,
        ))
        return [*found, self._pace()]

    def _pace(self) -> Finding:
        limit_hz = _limit_hz(self.embedded)
        text = f"{self.rate_hz:,.0f} messages a second at ×{self.speed:g}"
        if self.rate_hz <= limit_hz:
            return Finding("pace", True, text)
        fitting = int(self.devices * limit_hz / self.rate_hz) // 100 * 100
        return Finding("pace", False, f"{text}; the demo's subscriber takes about "
                       f"{limit_hz:,.0f}. Choose --devices {fitting} or fewer.")


def plan_of(
    *, devices: int, seconds: float, seed: int, folder: Path, broker: BrokerKind = "auto"
) -> Plan:
    """Return the plan for what was asked; a slow broker gets fewer devices.

    Raises
    ------
    BadValue
        If a number is out of range.
    IotsimError
        If mosquitto was asked for and is not there.
    """
    if not 1 <= devices <= DEVICES_MAX:
        raise BadValue("devices", devices, "is out of range", f"Give 1 to {DEVICES_MAX:,}.")
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise BadValue("seconds", seconds, "is out of range",
                       f"Give {SECONDS_MIN:g} to {SECONDS_MAX:g}.")
    there = find_mosquitto() is not None
    if broker == "mosquitto" and not there:
        raise IotsimError("mosquitto is neither on the PATH nor in /usr/sbin. Install it "
                          "(apt-get install mosquitto), or use --broker embedded.")
    embedded = broker == "embedded" or not there
    counts = _counts(min(devices, EMBEDDED_DEVICES_MAX) if embedded else devices)
    return Plan(counts, seed, seconds, _speed(_limit_hz(embedded) / _rate_hz(counts)), embedded,
                devices, folder)


def _counts(devices: int) -> tuple[tuple[str, int], ...]:
    parts = sum(part for _, part in MIX)
    counts = [(name, devices * part // parts) for name, part in MIX]
    name, last = counts[-1]
    counts[-1] = (name, last + devices - sum(count for _, count in counts))
    return tuple((name, count) for name, count in counts if count)


def _rate_hz(counts: tuple[tuple[str, int], ...]) -> float:
    return sum(
        count * US_PER_SECOND / Profile.load(name).interval_us for name, count in counts
    )


def _limit_hz(embedded: bool) -> float:
    return EMBEDDED_RATE_HZ_MAX if embedded else RATE_HZ_MAX


def _speed(most: float) -> float:
    # ×60, or the largest whole pace that the subscriber can follow; never below real time.
    return min(SPEED, max(1.0, float(int(most))))
