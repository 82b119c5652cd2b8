"""What is left of actions when devices have gone or changed since."""

import pandas as pd

from iotsim import Fleet, Profile, Scenario, verbs
from iotsim.actions import Action
from iotsim.engine.simulation import Simulation
from iotsim.units import DEFAULT_START
from tests.fleets import START_US, profile

SECOND = 1_000_000


def acted(fleet, *deeds):
    """A simulation that comes to each deed (seconds, verb, parameters) and does it."""
    made = Simulation(fleet.members, fleet.seed, START_US)
    for seconds, verb, parameters in deeds:
        list(made.advance(START_US + seconds * SECOND))
        made.act(Action(verb, seconds * SECOND, parameters))
    return made


def meters(count=10, **options):
    return Fleet("m", seed=3).add(profile(**options), count=count, labels={"firmware": "1"})


def test_a_fault_is_active_on_those_who_live_and_on_nobody_else():
    made = acted(meters(), (1, "inject", verbs.inject("offset", parameters={"by": 1})),
                 (2, "stop", verbs.stop("count=4")), (3, "clear", verbs.clear(None, "count=1")))
    seen = [made.deeds.active(START_US + seconds * SECOND) for seconds in range(4)]
    assert seen == [{}, {"offset": 10}, {"offset": 6}, {"offset": 5}]
    made.act(Action("stop", 4 * SECOND, verbs.stop("all")))
    assert made.deeds.active(START_US + 4 * SECOND) == {}


def test_a_script_sees_no_fault_on_devices_that_were_stopped():
    seen = []

    async def play(ctx):
        ctx.inject("stuck")
        ctx.stop(where="count=4")
        seen.append(ctx.status().value["faults"])
        await ctx.wait("1s")
        ctx.stop(where="all")
        seen.append(ctx.status().value["faults"])

    Scenario("play", meters(), script=play).generate()
    assert seen == [{"stuck": 6}, {}]


def test_an_interval_may_become_shorter_than_the_phase_of_a_profile():
    late = Profile("late", {"x": {"type": "gaussian", "mean": 1, "stddev": 1}},
                   telemetry_interval="10s", phase="7s")
    made = (Scenario("late", Fleet("late", seed=1).add(late)).at("20s").set(every="2s")
            .lasting("26s").generate().frame())
    elapsed = (made["time"] - pd.Timestamp(DEFAULT_START)).dt.total_seconds()
    assert elapsed.tolist() == [7, 17, 21, 23, 25]  # from the last tick on, one interval later
    assert made["seq"].tolist() == [0, 1, 2, 3, 4]


def test_who_was_stopped_during_an_update_never_has_the_new_label():
    update = verbs.inject("firmware_update", "all", "20s", parameters={"version": "2"})
    made = acted(meters(), (10, "inject", update), (15, "stop", verbs.stop("count=4")))
    people, later_us = made.population, START_US + 30 * SECOND
    stopped = people.ended_us <= later_us
    slots, _ = people.select("firmware=2", later_us)
    assert (stopped.sum(), len(slots)) == (4, 6)
    firmware = [people.groups[home].labels["firmware"] for home in people.home.tolist()]
    assert firmware == ["1" if gone else "2" for gone in stopped.tolist()]
    assert people.by_type(later_us) == {"meter": 6}
