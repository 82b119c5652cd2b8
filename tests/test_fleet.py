"""A fleet is a frozen value, and its readings are a pure function of it."""

import copy
import html
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import iotsim
from iotsim import Fleet, Profile
from iotsim.errors import BadValue, IotsimError
from iotsim.units import DEFAULT_START, duration_us, instant_us
from tests.fleets import START_US, fleet, profile, rows, simulate

DONE_WHEN = Fleet("p", seed=1).add("temperature_sensor", count=50)
FIELDS = ["temperature", "humidity", "battery"]


async def ticker(dev):
    while True:
        dev.emit(x=dev.draw("x"))
        await dev.sleep("1s")


def readings(frame):
    """A frame without its categories: what must be equal between two fleets."""
    plain = frame.astype({"device_id": object, "device_type": object})
    return plain.drop(columns=["faults", "hit"]).reset_index(drop=True)


# -- pure function ------------------------------------------------------------------------------


def test_fifty_sensors_make_6000_readings_in_ten_minutes_and_the_same_twice():
    one, other = DONE_WHEN.generate("10m"), DONE_WHEN.generate("10m")
    assert len(one.frame()) == one.rows == len(one) == 6000
    assert one.digest == other.digest
    assert one.diff(other) == ""
    pd.testing.assert_frame_equal(one.frame(), other.frame())


def test_another_seed_gives_other_readings():
    other = Fleet("p", seed=2).add("temperature_sensor", count=50).generate("10m")
    assert other.digest != DONE_WHEN.generate("10m").digest


def test_the_name_of_the_fleet_changes_nothing():
    renamed = Fleet("q", seed=1).add("temperature_sensor", count=50)
    assert renamed.generate("1m").digest == DONE_WHEN.generate("1m").digest


def test_adding_a_thousand_devices_changes_no_other_reading():
    few = DONE_WHEN.generate("10m").frame()
    many = DONE_WHEN.add("temperature_sensor", count=900).add("pump", count=100).generate("10m")
    kept = many.frame(device_type="temperature_sensor", fields=FIELDS)
    kept = kept[kept["device_id"].isin(list(few["device_id"].cat.categories))]
    pd.testing.assert_frame_equal(readings(kept), readings(few))


def test_taking_twenty_from_the_end_changes_no_other_reading():
    few = Fleet("p", seed=1).add("temperature_sensor", count=30).generate("10m").frame()
    many = DONE_WHEN.generate("10m").frame()
    kept = many[many["device_id"].isin(list(few["device_id"].cat.categories))]
    pd.testing.assert_frame_equal(readings(kept), readings(few))


def test_the_order_of_add_calls_changes_no_reading():
    one = Fleet("p", seed=1).add("pump", count=30).add("wearable", count=20)
    other = Fleet("p", seed=1).add("wearable", count=20).add("pump", count=30)
    assert one.generate("5m").digest == other.generate("5m").digest


def test_adding_in_two_calls_is_adding_in_one():
    two = Fleet("p", seed=1).add("temperature_sensor", count=20).add(
        "temperature_sensor", count=30)
    assert two.generate("1m").digest == DONE_WHEN.generate("1m").digest


def test_a_longer_run_begins_like_a_shorter_one():
    short, long = DONE_WHEN.generate("1m").frame(), DONE_WHEN.generate("10m").frame()
    pd.testing.assert_frame_equal(readings(long[long["time"] < short["time"].min()
                                                + pd.Timedelta("1m")].head(len(short))),
                                  readings(short))


def test_another_start_moves_draws_not_the_grid():
    there = DONE_WHEN.generate("1m", start="2026-03-01T12:00:00Z")
    here = DONE_WHEN.generate("1m")
    assert there.digest != here.digest
    assert there.frame()["humidity"].tolist() == here.frame()["humidity"].tolist()
    moved = there.frame()["time"] - here.frame()["time"]
    assert (moved == pd.Timestamp("2026-03-01T12:00:00Z") - pd.Timestamp(DEFAULT_START)).all()


# -- grid ---------------------------------------------------------------------------------------


def test_tick_n_is_at_start_plus_phase_plus_n_intervals_and_phases_come_from_the_seed():
    frame = fleet(200, every="5s").generate("1m").frame()
    elapsed = (frame["time"] - pd.Timestamp(DEFAULT_START)).dt.total_seconds()
    phase = (elapsed - 5 * frame["seq"]).round(6)
    assert phase.groupby(frame["device_id"], observed=True).nunique().eq(1).all()
    first = phase[frame["seq"] == 0]
    assert first.between(0, 5, inclusive="left").all()
    assert first.nunique() == 200
    assert abs(first.mean() - 2.5) < 0.35
    again = fleet(200, seed=2).generate("1m").frame()
    assert not np.array_equal(again["time"], frame["time"])


def test_phase_0_aligns_all_devices():
    frame = fleet(20, phase=0).generate("10s").frame()
    assert sorted(set(frame["time"])) == [pd.Timestamp(DEFAULT_START),
                                          pd.Timestamp("2026-01-01T00:00:05Z")]


def test_jitter_moves_the_published_time_only():
    plain, moved = fleet(50).generate("1m").frame(), fleet(50, jitter="2s").generate("1m").frame()
    one, other = (f.sort_values(["device_id", "seq"]).reset_index(drop=True)
                  for f in (plain, moved))
    assert len(plain) == len(moved)
    shift = (other["time"] - one["time"]).dt.total_seconds()
    assert shift.between(0, 2, inclusive="left").all()
    assert shift.nunique() > 500
    for name in ("device_id", "seq", "power", "drift"):
        assert one[name].tolist() == other[name].tolist()


def test_windows_are_half_open():
    aligned = fleet(1, phase=0)
    assert len(aligned.generate("5s")) == 1
    assert len(aligned.generate("5.000001s")) == 2
    assert len(aligned.generate("1us")) == 1
    late = fleet(1, phase="4999999us")
    assert len(late.generate("4999999us")) == 0
    assert len(late.generate("5s")) == 1


def test_every_changes_the_interval_of_one_add():
    frame = Fleet("p", seed=1).add("pump", count=3, every="500ms").generate("10s").frame()
    assert len(frame) == 60


def test_the_default_start_is_recorded_and_start_sets_it():
    assert DONE_WHEN.generate("1s").start.isoformat() == "2026-01-01T00:00:00+00:00"
    there = DONE_WHEN.generate("1s", start="2030-05-01T01:00:00+01:00")
    assert there.start.isoformat() == "2030-05-01T00:00:00+00:00"
    assert there.start_us == instant_us("2030-05-01")


@given(st.lists(st.integers(1, 60_000_000), max_size=8))
def test_any_split_of_time_gives_the_same_readings(cuts):
    mixed = fleet(7).add(profile("other", every="7.3s", jitter="1s"), count=3).add(ticker)
    whole = rows(simulate(mixed, [60_000_000]))
    assert rows(simulate(mixed, [*sorted(cuts), 60_000_000])) == whole


# -- a frozen value -----------------------------------------------------------------------------


def test_every_verb_returns_a_new_fleet():
    one = Fleet("p", seed=1)
    two = one.add("pump")
    three = two.publish_to("memory:a")
    assert (len(one), len(two), len(three)) == (0, 1, 1)
    assert not two.outlets
    with pytest.raises(AttributeError):
        one.seed = 2


def test_a_fleet_that_is_empty_is_still_true():
    assert Fleet("p", seed=1)
    assert len(Fleet("p", seed=1)) == 0


def test_equal_specs_are_equal_and_others_are_not():
    assert fleet(3) == fleet(3)
    assert fleet(3) != fleet(4)
    assert fleet(3) != fleet(3, seed=2)
    assert copy.copy(fleet(3)) == fleet(3)


def test_ids_count_on_across_add_calls_and_types_count_apart():
    three = Fleet("p", seed=1).add("pump", count=2).add("wearable").add("pump")
    assert [name for i, m in enumerate(three.members) for name in m.group(i).ids] == [
        "pump-0000", "pump-0001", "wearable-0000", "pump-0002"]


def test_ids_of_ones_own():
    made = Fleet("p", seed=1).add("pump", count=2, id="gw-{n}").add("pump", id="x{index:03d}")
    assert [n for i, m in enumerate(made.members) for n in m.group(i).ids] == [
        "gw-1", "gw-2", "x002"]


@pytest.mark.parametrize("id", [
    "{type:3d}", "{index:0100000d}", "{index:021d}", "{index:4d}", "{index:4}", "{index:x}",
    "{n:0d}", "{index!r}", "{type.__class__}", "x" * 126 + "{index}", "é" * 64 + "{n}",
    "{index:020d}" * 7,
])
def test_a_template_that_gives_no_ids_or_long_ones_is_one_clear_line(id):
    with pytest.raises(BadValue, match=r"^id="):
        Fleet("p", seed=1).add("pump", count=1000, id=id)


def test_an_id_may_have_up_to_20_digits():
    made = Fleet("p", seed=1).add("pump", count=2, id="{type}-{index:020d}")
    assert made.members[0].group(0).ids[1] == "pump-" + "1".rjust(20, "0")


def test_ids_of_two_types_that_meet_in_a_template_are_refused():
    one = Fleet("p", seed=1).add(profile("a1"), count=20, id="{type}{index}")
    with pytest.raises(BadValue, match="'a10' is taken"):
        one.add(profile("a"), count=20, id="{type}{index}")


def test_labels_of_the_call_win_over_those_of_the_profile():
    made = Fleet("p", seed=1).add("pump", labels={"firmware": "9", "site": "north"})
    frame = made.generate("2s").frame()
    assert frame["firmware"].unique().tolist() == ["9"]
    assert frame["site"].unique().tolist() == ["north"]


def test_a_seed_is_drawn_and_shown_if_none_is_given():
    drawn = Fleet("p").add("pump")
    assert f"seed {drawn.seed}" in repr(drawn)
    again = Fleet("p", seed=drawn.seed).add("pump")
    assert again.generate("1m").digest == drawn.generate("1m").digest
    assert Fleet("p").seed != Fleet("p").seed


def test_the_repr_says_what_it_is_on_one_line():
    made = fleet(520).publish_to("memory:a", where="device_type=meter")
    assert repr(made) == ("<Fleet 'p': 520 devices in 1 group, seed 1, → memory:a where "
                          "device_type=meter>")


def test_no_secret_stands_in_a_repr():
    made = fleet(1).publish_to("mqtt://ann:s3cret@localhost")
    for text in (repr(made), str(made.outlets), made._repr_html_(), str(made.spec())):
        assert "s3cret" not in text


def test_html_is_escaped_and_short():
    nasty = Fleet("<b>x</b>", seed=1)
    for i in range(30):
        nasty = nasty.add("pump", labels={"site": f"<script>{i}"})
    made = nasty._repr_html_()
    assert "<script>" not in made
    assert html.escape("<b>x</b>") in made
    assert "… and 18 more groups" in made
    assert len(made) < 5000


def test_a_profile_travels_in_a_pickle_and_a_fleet_of_profiles_by_its_spec():
    made = profile()
    assert pickle.loads(pickle.dumps(made)) == made
    assert Profile.from_spec(fleet(1).spec()["members"][0]["profile"]) == made


def test_the_duration_of_a_result_is_what_was_asked():
    result = fleet(2).generate("1h30m")
    assert result.duration.total_seconds() * 1e6 == duration_us("1h30m")
    assert result.end_us - result.start_us == duration_us("1h30m")
    assert result.start_us == START_US


def test_generate_works_inside_a_running_loop():
    import asyncio

    async def cell():
        return fleet(3).add(ticker).generate("10s").digest

    assert asyncio.run(cell()) == fleet(3).add(ticker).generate("10s").digest


def test_a_result_shows_itself_and_raises_on_demand():
    result = fleet(2).generate("10s")
    assert repr(result).startswith("<Result 'p': 4 readings of 2 devices over 00:00:10, digest ")
    assert result.digest in result._repr_html_()
    assert result.raise_for_errors() is result


def test_every_profile_that_comes_along_generates():
    everything = Fleet("all", seed=3)
    for name in Profile.names():
        everything = everything.add(name, count=3)
    result = everything.generate("10m")
    assert not result.errors
    assert set(result.frame()["device_type"].unique()) == set(Profile.names())


def test_an_error_of_a_verb_is_an_iotsim_error():
    with pytest.raises(IotsimError):
        iotsim.Fleet("p").add("nonsense")


async def doorbell(dev):
    await dev.sleep("1h")


def test_a_fleet_is_a_value_equal_hashable_and_copied_whole():
    import copy
    import pickle

    def made():
        return (
            Fleet("value", seed=1)
            .add("pump", count=3, labels={"site": "north"})
            .add(doorbell, every="1m")
            .publish_to("memory:x", queue_messages=7)
        )

    fleet = made()
    assert fleet == made()
    assert len({fleet, made(), fleet.add("pump")}) == 2
    for twin in (copy.deepcopy(fleet), pickle.loads(pickle.dumps(fleet))):
        assert twin == fleet
        assert twin.generate("1m").digest == fleet.generate("1m").digest


# -- the code of scripted devices ------------------------------------------------------------------


def code_of(device):
    return Fleet("p", seed=1).add(device, every="1s").spec()["members"][0]["script"]["code"]


def made_by(mean=1, *, spread=2, kept=None, inner=None):
    async def meter(dev, mean=mean, *, spread=spread):
        dev.emit(x=kept, y=inner and inner())

    return meter


def test_defaults_and_what_a_function_closes_over_are_part_of_its_code():
    def one():
        return 1

    def two():
        return 2

    variants = [made_by(), made_by(mean=2), made_by(spread=3), made_by(kept=1), made_by(kept="1"),
                made_by(kept=[1, {"a": 2.0}]), made_by(kept=[1, {"a": 2.5}]), made_by(inner=one),
                made_by(inner=two), made_by(kept=True)]
    assert len({code_of(device) for device in variants}) == len(variants)
    assert [code_of(made_by(kept=[1, {"a": 2.0}])), code_of(made_by(inner=one))] == [
        code_of(variants[5]), code_of(variants[7])]


def test_what_is_neither_plain_nor_a_function_counts_by_its_type_and_loops_end(monkeypatch):
    monkeypatch.setattr("iotsim.members._HASHED_PARTS", 5000)
    assert code_of(made_by(kept=object())) == code_of(made_by(kept=object()))
    loop = []
    loop += [loop] * 50
    assert code_of(made_by(kept=loop))
    assert code_of(made_by(kept=10**5000))


def test_what_a_function_collects_while_it_runs_does_not_make_it_another():
    seen = []

    async def meter(dev):
        seen.append(dev.id)
        dev.emit(x=1)

    made = Fleet("p", seed=1).add(meter)
    before = made.spec()
    made.generate("1s")
    assert seen
    assert made.spec() == before


def test_the_code_of_a_function_is_the_same_in_another_process():
    import os
    import subprocess
    import sys

    text = ("from iotsim.members import script_hash\n"
            "async def meter(dev, words=frozenset('abcdef')):\n"
            "    dev.emit(x=dev.id in {'a', 'b', 'c', 'd', 'e'})\n"
            "print(script_hash(meter))")
    codes = {
        subprocess.run([sys.executable, "-c", text], env={**os.environ, "PYTHONHASHSEED": seed},
                       check=True, capture_output=True, timeout=60).stdout
        for seed in ("1", "2", "3")
    }
    assert len(codes) == 1
