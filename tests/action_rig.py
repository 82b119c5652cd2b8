"""What the tests of actions share: a small mixed fleet, any actions on it, and a slow oracle."""

import asyncio
from itertools import pairwise

import numpy as np

import iotsim
from iotsim import Fleet, Profile
from iotsim.actions import Action
from iotsim.digest import Digest
from iotsim.engine.grid import phases_us
from iotsim.engine.simulation import Simulation
from iotsim.errors import IotsimError
from iotsim.faults.base import NEVER_US, build
from iotsim.members import members_of
from iotsim.readings import Group
from iotsim.seeding import device_keys
from iotsim.selectors import select
from iotsim.verbs import added
from tests.fleets import START_US
from tests.live import START, run

SECOND = 1_000_000
END_US = 60 * SECOND

THING = Profile("thing", {
    "power": {"type": "gaussian", "mean": 400, "stddev": 25, "resolution": 0.1},
    "walk": {"type": "brownian", "volatility": 0.5, "mean_reversion": 0.1},
    "state": {"type": "markov", "states": ["on", "off"], "per": "1s",
              "transition_matrix": [[0.9, 0.1], [0.2, 0.8]]},
    "day": {"type": "sine_wave", "min": 7, "max": 13, "period": "40s"},
    "mix": {"type": "composite", "parts": [
        {"type": "brownian", "volatility": 0.2}, {"type": "uniform_random", "min": 0, "max": 1}]},
    "battery": {"type": "brownian", "volatility": 0, "drift": -0.01, "start": 90,
                "min": 0, "max": 100},
}, telemetry_interval="5s", jitter="300ms")
PLAIN = Profile("plain", {"power": {"type": "gaussian", "mean": 10, "stddev": 1}},
                telemetry_interval="3s")


async def walker(dev):
    while True:
        dev.emit(level=dev.draw("level", "brownian", volatility=0.5), power=dev.draw("power"))
        await dev.sleep()


async def free(dev):
    while True:
        dev.emit(count=int(dev.draw("count") * 100))
        await dev.sleep("2500ms")


SCRIPTS = {"walker": walker, "free": free}


def mixed(seed=7, name="mixed"):
    return (Fleet(name, seed=seed)
            .add(THING, count=4, labels={"site": "a"})
            .add(THING, count=2, labels={"site": "b"})
            .add(PLAIN, count=3, labels={"site": "b"})
            .add(walker, count=2, every="4s", labels={"site": "a"})
            .add(free, count=2))


def rows(chunks):
    """Every row in words, in order of device, tick, sub and copy."""
    found = [row for chunk in chunks for row in _rows(chunk)]
    return sorted(found, key=lambda row: (row["id"], row["n"], row["sub"], row["copy"]))


def _rows(chunk):
    mark, names = chunk.marks, list(chunk.columns)
    values = [_cells(chunk.columns[name]) for name in names]
    truth = values if mark is None else [
        _cells(mark.truth.get(name, chunk.columns[name])) for name in names]

    def numbers(array):
        return [0] * len(chunk) if array is None else array.tolist()

    def words(array):
        return [""] * len(chunk) if array is None else [mark.names[i] for i in array.tolist()]

    of = {name: None if mark is None else getattr(mark, name)
          for name in ("faults", "hit", "withheld", "sub", "copy", "delay_us", "shift_us")}
    columns = {"n": chunk.seq.tolist(), "time": chunk.time_us.tolist(),
               **{name: words(of[name]) for name in ("faults", "hit", "withheld")},
               **{name: numbers(of[name]) for name in ("sub", "copy", "delay_us", "shift_us")}}
    for i, device in enumerate(chunk.device.tolist()):
        row = {name: column[i] for name, column in columns.items()}
        yield {**row, "id": chunk.group.ids[device], "labels": dict(chunk.group.labels),
               "true_time": row["time"] - row["shift_us"],
               "values": {name: cell[i] for name, cell in zip(names, values, strict=True)},
               "truth": {name: cell[i] for name, cell in zip(names, truth, strict=True)}}


def _cells(column):
    if column.kind in ("text", "json"):
        known = [*column.categories, None]
        made = [known[code] for code in column.values.tolist()]
    else:
        made = column.values.tolist()
    made = [value.hex() if isinstance(value, float) else value for value in made]
    if column.present is None:
        return made
    return [value if there else "absent"
            for value, there in zip(made, column.present.tolist(), strict=True)]


class Hand:
    """A simulation to which things are done by hand; what cannot be done is passed over.

    Parameters
    ----------
    plan : list of (at_us, verb, parameters)
        In order of time; `add` has the arguments of `Fleet.add`.
    cuts : iterable of int
        Where else to stop on the way.
    """

    def __init__(self, fleet, plan, end_us=END_US, cuts=(), skip=()):
        self.simulation = Simulation(fleet.members, fleet.seed, START_US)
        self.chunks, self.done, self.refused, self.digest = [], [], [], Digest(START_US)
        stops = [(at_us, i, what) for i, (at_us, *what) in enumerate(plan)]
        stops += [(cut, -1, None) for cut in cuts]
        for at_us, _, what in sorted(stops, key=lambda stop: stop[:2]):
            self._to(at_us)
            if what is not None and what[0] not in skip:
                self._do(at_us, *what)
        self._to(end_us)
        self.simulation.close()
        assert not self.simulation.failures.kept, self.simulation.failures.kept

    def _to(self, at_us):
        for chunk in self.simulation.advance(START_US + at_us):
            self.digest.add(chunk)
            self.chunks.append(chunk)

    def _do(self, at_us, verb, parameters):
        members = None
        try:
            if verb == "add":
                members = members_of(**{"count": 1, "labels": None, "every": None, "id": None,
                                        **parameters},
                                     first=self.simulation.population.first_index)
                parameters = added(members)
            self.done.append(self.simulation.act(Action(verb, at_us, parameters, members=members)))
        except IotsimError as error:
            self.refused.append(error)

    @property
    def rows(self):
        return rows(self.chunks)


class Oracle:
    """Who there was, when each ticked, and which faults were on: by plain loops.

    Parameters
    ----------
    fleet : Fleet
    actions : list of Action
        In order of time; all of them could be done.
    """

    def __init__(self, fleet, actions, end_us=END_US):
        self.devices, self.windows, self.seed, self.end_us = {}, [], fleet.seed, end_us
        for member in fleet.members:
            self._begin(member, 0)
        for action in actions:
            getattr(self, f"_{action.verb}")(action)
        for device in self.devices.values():
            self._tick(device, end_us)

    def _begin(self, member, at_us):
        for name in member.group(0).ids:
            profile = member.profile
            device = {"id": name, "type": member.type, "labels": dict(member.labels),
                      "profile": profile, "ended": NEVER_US, "ticks": [], "dropped": []}
            if profile is not None:
                phase = int(phases_us(profile.phase_us, profile.interval_us,
                                      device_keys(self.seed, [name]))[0])
                device |= {"every": profile.interval_us, "next": at_us + phase}
            self.devices[name] = device

    def _tick(self, device, until_us):
        # Every tick before an instant.
        if device["profile"] is None:
            return
        while device["next"] < min(until_us, device["ended"]):
            device["ticks"].append((device["next"], device["every"]))
            device["next"] += device["every"]

    def labels(self, name, at_us):
        """Return the labels of a device at an instant."""
        found = dict(self.devices[name]["labels"])
        done = [w for w in self.windows if w["name"] == "firmware_update"]
        for w in sorted(done, key=lambda w: w["end"]):
            if w["end"] <= at_us and w["ends"].get(name) == w["end"] < self.devices[name]["ended"]:
                found[w["fault"].label] = w["fault"].version
        return found

    def _who(self, action):
        there = [d for d in self.devices.values() if d["ended"] > action.at_us]
        groups = [Group(i, d["type"], [d["id"]], self.labels(d["id"], action.at_us))
                  for i, d in enumerate(self.devices.values())]
        alive = {i: np.array([d in there]) for i, d in enumerate(self.devices.values())}
        masks = select(action.parameters.get("where", "all"), groups, alive).masks
        return [d for i, d in enumerate(self.devices.values()) if masks[i][0]]

    def _add(self, action):
        self._begin(action.members, action.at_us)

    def _stop(self, action):
        for device in self._who(action):
            device["ended"] = action.at_us
            self._tick(device, action.at_us)

    def _set(self, action):
        every_us = action.parameters.get("every_us")
        for device in self._who(action):
            if device["profile"] is not None and every_us not in (None, device["every"]):
                self._tick(device, action.at_us)
                last = device["next"] - device["every"]
                device["next"] = last + every_us
                while device["next"] < action.at_us:
                    device["next"] += every_us
                device["every"] = every_us
                device["dropped"].append((last, action.at_us))

    def _inject(self, action):
        given = action.parameters
        fault = build(given["fault"], given.get("parameters", {}))
        end_us = action.at_us + given["duration_us"] if "duration_us" in given else NEVER_US
        ends = {d["id"]: end_us for d in self._who(action) if self._can_have(d, fault)}
        self.windows.append({"name": fault.name, "fault": fault, "begin": action.at_us,
                             "end": end_us, "ends": ends})

    def _can_have(self, device, fault):
        if device["profile"] is None:
            return fault.name not in ("rate", "battery_drain")
        fields = {field.name for field in device["profile"].fields}
        named = fault.named if fault.name == "battery_drain" else getattr(fault, "field", None)
        return not named or bool(fields & set(named))

    def _clear(self, action):
        name = action.parameters.get("fault")
        for device in self._who(action):
            for w in self.windows:
                if name in (None, w["name"]) and w["ends"].get(device["id"], 0) > action.at_us:
                    w["ends"][device["id"]] = action.at_us

    def on(self, name, at_us):
        """Return the faults on a device at an instant, in order of injection."""
        return [w for w in self.windows if w["begin"] <= at_us < w["ends"].get(name, -1)]

    def expected(self, name):
        """Return (n, sub) to instant of every reading of a device of a profile."""
        device, found = self.devices[name], {}
        for n, (tick, every) in enumerate(device["ticks"]):
            found[n, 0] = tick
            factor = max((w["fault"].factor for w in self.on(name, tick) if w["name"] == "rate"),
                         default=1)
            for j in range(1, factor):
                at_us = tick + j * every // factor
                rated = [w for w in self.on(name, at_us)
                         if w["name"] == "rate" and w["begin"] <= tick]
                gone = any(last == tick and at_us >= cut for last, cut in device["dropped"])
                if rated and not gone and at_us < min(self.end_us, device["ended"]):
                    found[n, j] = at_us
        return found


# -- live -----------------------------------------------------------------------------------------

GAUGE = Profile("gauge", {
    "power": {"type": "gaussian", "mean": 400, "stddev": 25},
    "walk": {"type": "brownian", "volatility": 0.5},
}, telemetry_interval="1s")


def gauges(name="gauges", count=10, **options):
    return Fleet(name, seed=5).add(GAUGE, count=count, labels={"site": "a"}, **options)


async def until(condition):
    async with asyncio.timeout(45):
        while not condition():
            await asyncio.sleep(0.002)


def beyond(live, seconds):
    """Wait until a run has come so many simulated seconds further."""
    goal_us = live.snapshot().elapsed_us + round(seconds * 1e6)
    return until(lambda: live.snapshot().elapsed_us >= goal_us)


def same_again(result, tmp_path, **devices):
    """Check that the log of a run does it again, three ways, and is in order of time."""
    assert not result.errors, result.errors
    times = [action.at_us for action in result.actions]
    assert all(one <= other for one, other in pairwise(times))
    scenario = result.to_scenario()
    again = scenario.generate()
    assert again.digest == result.digest, result.diff(again)
    if result.rows < 20_000:
        assert rows(again.capture.chunks()) == rows(result.capture.chunks())
    verified = iotsim.verify(result.save(tmp_path / "live.iotsim"), devices=devices)
    assert verified.ok, verified.difference
    return result


async def started(fleet, speed=50, **options):
    live = fleet.start(speed=speed, start=START, capture="all", **options)
    await live.ready()
    return live


def session(fleet, what, tmp_path, speed=50, **devices):
    """Do something to a live run of a fleet, stop it, and check that its log does it again."""

    async def main():
        live = await started(fleet, speed)
        await what(live)
        return await live.stop()

    return same_again(run(main()), tmp_path, **devices)
