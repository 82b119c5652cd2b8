"""Blocks that were cut into crumbs become few again, and nobody can tell by the readings."""

import numpy as np
import pytest

from iotsim import Fleet, Gateway, Profile
from iotsim.actions import Action
from iotsim.digest import Digest
from iotsim.engine.simulation import Simulation

START_US = 1_767_225_600_000_000
SECOND_US = 1_000_000
WALKING = """
type: walker
telemetry_interval: 1s
jitter: 50ms
telemetry_fields:
  level: {type: brownian, volatility: 1.0}
"""


def alone(group):
    return [np.array([i], dtype=np.int32) for i in range(len(group))]


def sensors(count=40):
    made = Gateway("gw-{n}", factory_id="f-{n}", factory_key="k", every="1s", seed=7, count=count)
    return made.sensor("temperature", algorithm="sine_wave").sensor("humidity").fleet()


def done(simulation, at_us, verb, **parameters):
    simulation.act(Action(verb, at_us, parameters))


def commanded(fleet, parts, step_us, plan):
    """(digest, rows, how many blocks at the end) of a fleet to which a plan is done."""
    simulation = Simulation(fleet.members, fleet.seed, START_US, parts=parts)
    digest, rows, at_us = Digest(START_US), 0, 0
    for due_us, verb, parameters in [*plan, (30 * SECOND_US, "", {})]:
        while at_us < due_us:
            at_us = min(at_us + step_us, due_us)
            for readings in simulation.advance(START_US + at_us):
                digest.add(readings)
                rows += len(readings)
        if verb:
            done(simulation, at_us, verb, **parameters)
    simulation.drop_retired()
    return digest.hexdigest(), rows, len(simulation.blocks)


def one_by_one(count, every_us, *, begin_us=2 * SECOND_US, apart_us=70_001):
    return [(begin_us + i * apart_us, "set", {"where": f"gateway=gw-{i + 1}", "every_us": every_us})
            for i in range(count)]


def faulty(plan):
    return sorted([*plan, (3 * SECOND_US, "inject", {
        "where": "fraction=50%", "fault": "drift", "duration_us": 9 * SECOND_US,
        "parameters": {"rate_per_sec": 0.5}}),
        (5 * SECOND_US, "inject", {"where": "gateway=gw-3|gw-9", "fault": "rate",
                                   "duration_us": 4 * SECOND_US, "parameters": {"factor": 3}}),
        (6 * SECOND_US, "stop", {"where": "gateway=gw-5"})], key=lambda one: one[0])


PLANS = {
    "one after another": one_by_one(40, 900_000),
    "all in one instant": one_by_one(40, 900_000, apart_us=0),
    "longer than it takes to the next": one_by_one(40, 7 * SECOND_US, apart_us=11),
    "there and back": [*one_by_one(40, 300_000), *one_by_one(40, SECOND_US, begin_us=9_000_000)],
    "twice at once": [*one_by_one(20, 400_000, apart_us=0), *one_by_one(20, 700_000, apart_us=0)],
    "before the first reading": one_by_one(40, 450_000, begin_us=0, apart_us=0),
    "with faults on the way": faulty(one_by_one(40, 900_000)),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_devices_that_step_together_again_give_the_readings_of_those_that_never_do(plan):
    apart = commanded(sensors(), alone, 10_000_000, plan)
    assert apart[1] > 400
    for step_us in (10_000_000, 99_991):
        assert commanded(sensors(), None, step_us, plan)[:2] == apart[:2], step_us


def test_after_a_command_to_each_there_are_as_few_blocks_as_before():
    *_, blocks = commanded(sensors(), None, 99_991, PLANS["one after another"])
    assert blocks == 2
    *_, blocks = commanded(sensors(), None, 99_991, PLANS["there and back"])
    assert blocks == 2


def test_devices_of_different_lanes_never_step_together():
    def halves(group):
        return np.array_split(np.arange(len(group), dtype=np.int32), 2)

    *_, blocks = commanded(sensors(), halves, 99_991, PLANS["one after another"])
    assert blocks == 4


def test_what_walks_stays_apart_and_right():
    fleet = Fleet("walkers", seed=3).add(Profile.parse(WALKING), count=12)
    plan = [(2_000_000 + i * 30_000, "set", {"where": f"id={name}", "every_us": 500_000})
            for i, name in enumerate(fleet.members[0].group(0).ids)]
    together, apart = (commanded(fleet, parts, 10_000_000, plan) for parts in (None, alone))
    assert together[:2] == apart[:2]
