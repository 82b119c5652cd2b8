"""Blocks and devices: many at once or one by one, the same bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsim import Fleet, Profile
from iotsim.engine import simulation as engine
from iotsim.engine.block import Block
from iotsim.engine.device import Cast, Device, follow
from iotsim.engine.grid import phases_us
from iotsim.engine.kernel import Kernel
from iotsim.seeding import device_keys
from tests.fleets import START_US, cells_of, digest_of, profile, rows, simulate

NINETY_TICKS = 90


def in_blocks(fleet, until_us):
    return simulate(fleet, [until_us])


def one_by_one(fleet, until_us):
    """The same devices, each followed by a coroutine of its own."""
    failures = []
    kernel = Kernel(lambda device, error: failures.append((device.id, error)))
    casts, order = [], 0
    for i, member in enumerate(fleet.members):
        group, made = member.group(i), member.profile
        cast = Cast(group, fleet.seed, kernel, made.interval_us)
        casts.append(cast)
        keys = device_keys(fleet.seed, group.ids)
        for j, phase in enumerate(phases_us(made.phase_us, made.interval_us, keys).tolist()):
            device = Device(cast, j, order, START_US + phase)
            device.body = follow(device, made)
            kernel.spawn(device, START_US + phase)
            order += 1
    kernel.run_until(START_US + until_us)
    kernel.close()
    assert not failures, failures
    return [found for found in (cast.flush() for cast in casts) if found is not None]


@pytest.mark.parametrize("name", Profile.names())
def test_a_profile_stepped_one_by_one_and_in_blocks_gives_the_same_bytes(name):
    fleet = Fleet("p", seed=11).add(name, count=40, labels={"site": "north"})
    until_us = NINETY_TICKS * fleet.members[0].profile.interval_us
    blocks, devices = in_blocks(fleet, until_us), one_by_one(fleet, until_us)
    assert rows(blocks) == rows(devices)
    assert digest_of(blocks) == digest_of(devices)


@pytest.mark.parametrize("options", [{"jitter": "4s"}, {"phase": 0}, {"phase": "1us"}, {}])
def test_phase_and_jitter_are_the_same_in_both_engines(options):
    fleet = Fleet("p", seed=5).add(profile(**options), count=30)
    assert rows(in_blocks(fleet, 300_000_000)) == rows(one_by_one(fleet, 300_000_000))


def test_shared_streams_are_the_same_in_both_engines_and_for_all_who_share():
    made = Profile("room", {
        "weather": {"type": "brownian", "volatility": 1, "shared": "site"},
        "own": {"type": "gaussian", "mean": 0, "stddev": 1},
    }, phase=0)
    fleet = (Fleet("p", seed=5).add(made, count=4, labels={"site": "a"})
             .add(made, count=4, labels={"site": "b"}))
    assert rows(in_blocks(fleet, 60_000_000)) == rows(one_by_one(fleet, 60_000_000))
    frame = fleet.generate("1m").frame()
    per_tick = frame.groupby(["seq", "site"], observed=True)
    assert (per_tick["weather"].nunique() == 1).all()
    assert (per_tick["own"].nunique() == 4).all()
    assert frame.groupby("seq")["weather"].nunique().eq(2).all()


# A device that a person scripts, and the profile that says the same.
TWIN = Profile("twin", {
    "power": {"type": "gaussian", "mean": 400, "stddev": 25, "resolution": 0.1},
    "level": {"type": "brownian", "volatility": 0.5, "mean_reversion": 0.1, "start": 50},
    "state": {"type": "markov", "states": ["on", "off"],
              "transition_matrix": [[0.9, 0.1], [0.3, 0.7]]},
}, telemetry_interval="5s", topic_template="devices/{device_id}/telemetry")


async def twin(dev):
    while True:
        dev.emit(
            power=dev.draw("power", "gaussian", mean=400, stddev=25, resolution=0.1),
            level=dev.draw("level", "brownian", volatility=0.5, mean_reversion=0.1, start=50),
            state=dev.draw("state", "markov", states=["on", "off"],
                           transition_matrix=[[0.9, 0.1], [0.3, 0.7]]),
        )
        await dev.sleep("5s")


def test_a_scripted_device_and_its_declarative_twin_give_the_same_bytes():
    declared = Fleet("p", seed=9).add(TWIN, count=25)
    scripted = Fleet("p", seed=9).add(twin, count=25, every="5s")
    one, other = declared.generate("10m"), scripted.generate("10m")
    assert one.diff(other) == ""
    assert one.digest == other.digest
    assert [cells_of(c.columns["power"]) for c in other.capture.chunks()]


@settings(max_examples=15)
@given(st.lists(st.integers(1, 100_000_000), max_size=10))
def test_any_windows_give_the_same_bytes_in_blocks(cuts):
    fleet = Fleet("p", seed=2).add(profile(jitter="3s"), count=37).add("pump", count=3)
    whole = simulate(fleet, [100_000_000])
    cut = simulate(fleet, [*sorted(cuts), 100_000_000])
    assert rows(cut) == rows(whole)
    assert digest_of(cut) == digest_of(whole)


@pytest.mark.parametrize("wide", [1, 7, 33, 1024])
def test_the_split_into_blocks_changes_nothing(wide, monkeypatch):
    fleet = Fleet("p", seed=2).add("temperature_sensor", count=70)
    whole = digest_of(in_blocks(fleet, 300_000_000))
    monkeypatch.setattr(engine, "BLOCK_DEVICES", wide)
    assert digest_of(in_blocks(fleet, 300_000_000)) == whole


@pytest.mark.parametrize("name", Profile.names())
def test_shards_add_up_to_the_whole(name):
    fleet = Fleet("p", seed=4).add(name, count=30)
    member = fleet.members[0]
    group = member.group(0)
    shards = np.array_split(np.random.default_rng(0).permutation(30).astype(np.int32), 4)
    until_us = START_US + 50 * member.profile.interval_us
    made = [
        chunk
        for shard in shards
        for chunk in Block(group, member.profile, 4, START_US, np.sort(shard)).advance(until_us)
    ]
    whole = in_blocks(fleet, 50 * member.profile.interval_us)
    assert rows(made) == rows(whole)
    assert digest_of(made) == digest_of(whole)


def test_pieces_of_a_block_stay_bounded():
    fleet = Fleet("p", seed=1).add(profile(every="1s"), count=3000)
    for chunk in simulate(fleet, [60_000_000]):
        assert len(chunk) <= 3 * 16_384


def test_seq_counts_from_zero_without_a_gap():
    found = {}
    for device, n, _, _ in rows(simulate(Fleet("p", seed=1).add("pump", count=9), [7_777_777,
                                                                                  60_000_000])):
        found.setdefault(device, []).append(n)
    assert all(ticks == list(range(len(ticks))) for ticks in found.values())


def test_every_value_is_a_multiple_of_its_resolution_and_never_minus_zero():
    made = Profile("z", {"v": {"type": "gaussian", "mean": 0, "stddev": 0.01, "resolution": 0.01}})
    values = Fleet("p", seed=1).add(made, count=50).generate("1m").frame()["v"].to_numpy()
    assert not np.signbit(values[values == 0]).any()
    assert (values == 0).any()
    assert np.array_equal(values, np.rint(values * 100) / 100)
