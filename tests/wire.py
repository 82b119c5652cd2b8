"""What an independent subscriber saw of runs in which something was broken on purpose.

Every case is a real run against a real mosquitto: a scenario injects one fault into the devices of
the north at 10 s; it ends by itself at 30 s, or is cleared then; the run ends at 40 s. All cases of
a kind run side by side in one loop, once per process, before one tap.
"""

import asyncio
import functools
import json
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from paho.mqtt import publish

import iotsim
from iotsim import Fleet, Profile, Scenario
from iotsim.broker import Broker, find_mosquitto
from iotsim.digest import Digest
from iotsim.faults.base import fault_name
from iotsim.rebuilt import digest_of_messages
from iotsim.units import instant_us
from tests.conftest import lacking
from tests.live import START

START_US = instant_us(START)
BEGIN_S, END_S, LASTS_S = 10, 30, 40
SPEED = 60
NORTH, SOUTH = 4, 2

PROFILE = Profile("rig", {
    "temperature": {"type": "gaussian", "mean": 20, "stddev": 2, "resolution": 0.01},
    "level": {"type": "brownian", "volatility": 0.5, "mean_reversion": 0.1, "resolution": 0.001},
    "count": {"type": "constant", "value": 7},
    "state": {"type": "static", "value": "on"},
    "battery": {"type": "brownian", "start": 80, "drift": -0.01, "volatility": 0, "min": 0,
                "max": 100, "resolution": 0.001},
}, telemetry_interval="1s", labels={"firmware": "1.0.0"})

# Every fault, with parameters that do something to many readings within the window.
CASES = {
    "battery_drain": ("battery_drain", {"drain_multiplier": 50}),
    "clock_drift": ("clock_drift", {"drift_rate_ms_per_sec": 50}),
    "data_corruption": ("data_corruption", {"corruption_rate": 0.5}),
    "disconnect": ("disconnect", {}),
    "drift": ("drift", {"rate_per_sec": 0.25}),
    "dropout": ("dropout", {"probability": 0.5}),
    "dropout of a field": ("dropout", {"field": "temperature"}),
    "duplicate": ("duplicate", {"probability": 0.5}),
    "firmware_update": ("firmware_update", {"version": "2.0.0"}),
    "latency_spike": ("latency_spike", {"latency_ms": 5000}),
    "network_degradation": ("network_degradation", {"packet_loss": 0.5}),
    "noise": ("noise", {"stddev": 2}),
    "offset": ("offset", {"by": -2.5, "field": ["temperature", "count"]}),
    "outlier": ("outlier", {"times": 3}),
    "rate": ("rate", {"factor": 3}),
    "reboot": ("reboot", {}),
    "reconnect_storm": ("reconnect_storm", {"every": "10s", "down": "4s"}),
    "reorder": ("reorder", {"probability": 0.5}),
    "slow_down": ("slow_down", {}),
    "store_and_forward": ("disconnect", {"store_and_forward": True}),
    "stuck": ("stuck", {}),
    "suspend": ("suspend", {}),
}
OFFLINE = ("disconnect", "firmware_update", "reboot", "reconnect_storm", "store_and_forward")
OWN = {"sessions": "per-device"}
LAST = "last/of/all"
SLOW = 20  # the speed at which seconds can be told from a busy machine's moments
SLOWER = 10  # ... and at which devices have time to come back between two losses


ONE_FIELD = Profile("one", {
    "temperature": {"type": "gaussian", "mean": 20, "stddev": 2, "resolution": 0.01},
}, telemetry_interval="1s")
# Cases that need more devices or more time: fault, parameters, seconds, options of the fleet.
SPECIAL = {
    "drift of a minute": (
        "clock_drift", {"drift_rate_ms_per_sec": 50}, 60, {"every": "500ms", "north": 2}),
    "a quarter corrupted": (
        "data_corruption", {"corruption_rate": 0.25}, 60, {"north": 25, "profile": ONE_FIELD}),
    "late by five": ("latency_spike", {"latency_ms": 5000}, 20, {}),
    "nobody late": (None, {}, 20, {}),
}


@dataclass(frozen=True)
class Message:
    """One message as it came: `place` is its place in the order of arrival, `at_s` when."""

    place: int
    at_s: float
    topic: str
    ident: str
    payload: bytes

    @property
    def body(self):
        return json.loads(self.payload, parse_constant=_no_constant)

    @property
    def key(self):
        """Which reading: device, seq, sub and copy."""
        _, device, place, copy = self.ident.split("/")
        seq, _, sub = place.partition(".")
        return device, int(seq), int(sub or 0), int(copy)

    @property
    def stamp_us(self):
        """The published time, since the start."""
        return instant_us(self.body["timestamp"]) - START_US


def _no_constant(name):
    raise AssertionError(f"{name} is no JSON")


@dataclass(frozen=True)
class Seen:
    """One run: what was done, what it left, and what arrived."""

    scenario: Scenario
    result: iotsim.Result
    messages: list[Message]
    wills: list[Message] = field(default_factory=list)
    anchor_s: float = 0.0  # when simulated time began
    connects: Counter = field(default_factory=Counter)  # by client id, as the broker counts them

    @functools.cached_property
    def by_key(self):
        return {message.key: message for message in self.messages}

    @functools.cached_property
    def rows(self):
        """Every row of the model by key, as a dict: the frame with the truth and the wire."""
        frame = self.result.frame(truth=True, wire=True)
        frame["time_us"] = frame["time"].astype("int64") - START_US
        frame["true_us"] = frame["true_time"].astype("int64") - START_US
        rows = frame.to_dict("records")
        found = {(row["device_id"], row["seq"], row["sub"], row["copy"]): row for row in rows}
        assert len(found) == len(rows)
        return found

    @functools.cached_property
    def offline(self):
        """What the same scenario gives offline."""
        return self.scenario.generate(start=START)

    @functools.cached_property
    def delays_s(self):
        """How late the link of its device let each row go, in simulated time."""
        frame = self.offline.frame(wire=True)
        keys = zip(frame["device_id"], frame["seq"], frame["sub"], frame["copy"], strict=True)
        return dict(zip(keys, frame["latency"], strict=True))

    @functools.cached_property
    def left(self):
        """The rows that left the links of their devices."""
        return {key: row for key, row in self.rows.items() if not row["withheld"]}

    def of(self, device):
        """What came from a device, in order of arrival."""
        return [message for message in self.messages if message.key[0] == device]

    def digest_of_devices(self):
        """One word per device over all that it measured."""
        found = {}
        for group, sums, counts in self.result.digests.devices():
            words = zip(sums.tolist(), counts.tolist(), strict=True)
            found.update(zip(group.ids, words, strict=True))
        return found

    def digest_of_left(self):
        """The digest of the rows that left."""
        digest = Digest(self.result.start_us)
        deeds = self.result.history.deeds
        for chunk in self.result.capture.chunks():
            digest.add(deeds.as_left(chunk, self.result.end_us).sent())
        return digest.hexdigest()

    def digest_of_messages(self):
        return digest_of_messages((one.payload, one.ident) for one in self.messages)


def in_window(row):
    """Whether the fault was active when a row was taken."""
    return is_north(row["device_id"]) and BEGIN_S * 1e6 <= row["true_us"] < END_S * 1e6


def is_north(device):
    return device.startswith("north")


NORTHERN = tuple(f"north-{i}" for i in range(NORTH))
SOUTHERN = tuple(f"south-{NORTH + i}" for i in range(SOUTH))  # indices go on


def fleet(name, url, *, every="1s", north=NORTH, south=SOUTH, profile=PROFILE, **options):
    """Devices of the north, whom the faults befall, and of the south, whom they do not."""
    wanted = {"connections": 1} if "sessions" not in options else {
        "client_id": f"{name}-{{device_id}}", "will": f"will/{name}/{{device_id}}"}
    return (Fleet(name, seed=42)
            .add(profile, count=north, every=every, labels={"site": "north"}, id="north-{index}")
            .add(profile, count=south, every=every, labels={"site": "south"}, id="south-{index}")
            .publish_to(url, topic=f"wire/{name}/{{device_id}}", **{**wanted, **options}))


def within_four_sigma(count, total, share):
    """Whether so many of so many are what independent draws of that chance give."""
    return abs(count - total * share) <= 4 * math.sqrt(total * share * (1 - share))


def scenario_of(name, url, case=None, *, clears=False, **options):
    """The scenario of a case: its fault ends by itself, or is cleared; None is a calm day."""
    made = Scenario(name, fleet(name, url, **options)).lasting(LASTS_S)
    if case is None:
        return made
    fault, parameters = CASES[case]
    made = made.at(BEGIN_S)
    if not clears:
        return made.inject(fault, where="site=north", duration=END_S - BEGIN_S, **parameters)
    lasts = "1h" if fault in ("reboot", "firmware_update") else None
    made = made.inject(fault, where="site=north", duration=lasts, **parameters)
    return made.at(END_S).clear(fault_name(fault), where="site=north")


def _connects(broker):
    """How often each client has connected."""
    return Counter(re.findall(r"New client connected from \S+ as (.*) \(p\d", broker.log()))


async def _wait_for_the_north(run, broker, name):
    # Time stands still until devices that were down are back: those of a storm are lost again soon.
    while run._works.driver.frontier_us < START_US + (BEGIN_S + 4) * 1_000_000:
        await asyncio.sleep(0.005)
    run.pause()
    while any(_connects(broker)[f"{name}-north-{i}"] < 2 for i in range(NORTH)):
        await asyncio.sleep(0.02)
    run.resume()


async def _ran(scenario, speed, broker=None):
    run = scenario.start(speed=speed, start=START)
    await run.ready()
    clock = run._works.driver.clock
    anchor_s = iotsim.clock.wall_us() / 1e6 - (clock.now_us() - START_US) / 1e6 / clock.speed
    if broker is not None:
        await _wait_for_the_north(run, broker, scenario.fleet.name)
    return await run.wait(), anchor_s


def _all_arrived(tap, port):
    # What is published when the broker has taken everything else comes after all of it.
    publish.single(LAST, qos=1, port=port, hostname="127.0.0.1")
    while (messages := tap.messages())[-1:] == [] or messages[-1][0] != LAST:
        assert tap.wait(len(messages) + 1, 45), tap


def watched(make, *, speed=SPEED, waits=()):
    """Run scenarios side by side against one mosquitto; returns what was seen of each, by name.

    Parameters
    ----------
    make : callable (url) -> mapping of name to Scenario
    speed : float
    waits : collection of names
        Of scenarios that wait, after the first loss, until their devices in the north are back.
    """
    if find_mosquitto() is None:
        lacking("mosquitto is not installed (apt-get install mosquitto)")

    async def all_of(scenarios, broker):
        async with asyncio.timeout(90):
            return await asyncio.gather(*(_ran(one, speed, broker if name in waits else None)
                                          for name, one in scenarios.items()))

    with Broker(embedded=False) as broker, iotsim.tap(broker.url, topic="#", qos=1) as tap:
        scenarios = make(broker.url)
        results = asyncio.run(all_of(scenarios, broker))
        _all_arrived(tap, broker.port)
        assert tap.ok, tap.health
        frame = tap.frame()
        connects = _connects(broker)
    parts = defaultdict(list)
    rows = zip(frame["time"].astype("int64"), frame["topic"], frame["id"], frame["payload"],
               strict=True)
    for place, (at_us, topic, ident, payload) in enumerate(rows):
        kind, name, _ = topic.split("/", 2)
        parts[kind, name].append(Message(place, at_us / 1e6, topic, ident, payload))
    return {
        name: Seen(scenario, result, parts["wire", name], parts["will", name], anchor_s, connects)
        for (name, scenario), (result, anchor_s) in zip(scenarios.items(), results, strict=True)
    }


@functools.cache
def everything():
    """Every case with an end, every case that is cleared, and a calm day, on shared connections."""
    def make(url):
        made = {"calm": scenario_of("calm", url)}
        for number, case in enumerate(CASES):
            made[case] = scenario_of(f"ends-{number}", url, case)
            made[f"{case}, cleared"] = scenario_of(f"clears-{number}", url, case, clears=True)
        return made

    def named(url):
        return {scenario.fleet.name: scenario for scenario in make(url).values()}

    seen = watched(named)
    return dict(zip(make("mqtt://127.0.0.1"), seen.values(), strict=True))


@functools.cache
def own_sessions():
    """The cases that close sessions, with a session for each device."""
    def named(url):
        made = [scenario_of("own-calm", url, **OWN)]
        made += [scenario_of(f"own-{case}", url, case, **OWN) for case in (*OFFLINE, "suspend")]
        made += [scenario_of(f"own-{case}, cleared", url, case, clears=True, **OWN)
                 for case in OFFLINE]
        return {scenario.fleet.name: scenario for scenario in made}

    return watched(named, speed=SLOWER, waits=[
        "own-reconnect_storm", "own-reconnect_storm, cleared"])


@functools.cache
def special():
    """Cases with more devices, or with more time, at a pace that leaves room."""
    def named(url):
        made = {}
        for name, (fault, parameters, lasts_s, options) in SPECIAL.items():
            after_s = BEGIN_S + lasts_s
            one = Scenario(name, fleet(name, url, **options)).lasting(after_s + 5)
            if fault is not None:
                one = one.at(BEGIN_S).inject(fault, where="site=north", duration=lasts_s,
                                             **parameters)
            made[name] = one
        both = Scenario("both", fleet("both", url)).lasting(LASTS_S).at(BEGIN_S)
        both = both.inject("latency_spike", where="site=north", duration=20, latency_ms=8000)
        both = both.inject("offset", where="site=north", by=1)
        made["both"] = both.at(15).clear("offset").at(25).clear("latency_spike")
        return made

    return watched(named, speed=SLOW)
