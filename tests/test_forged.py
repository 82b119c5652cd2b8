"""Saved runs that somebody forged: refused in one line, and never computed for ages."""

import json
import math

import pytest

import iotsim
from iotsim import Fleet, Profile, Scenario, replaying
from iotsim.errors import SavedRunError
from iotsim.members import members_of
from tests.test_saved import rewritten

LATER_US = 30 * 365 * 86_400_000_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    sensors = Fleet("p", seed=1).add("temperature_sensor", count=3, labels={"site": "north"})
    result = Scenario("s", sensors).at(5).inject("offset", by=1, duration=10).lasting(60).generate()
    return result.save(tmp_path_factory.mktemp("forged") / "run.iotsim")


def forged(path, actions, **changes):
    def change(members):
        members["actions.json"] = json.dumps(actions).encode()
        manifest = json.loads(members["manifest.json"])
        manifest["end_us"] += changes.get("longer_us", 0)
        members["manifest.json"] = json.dumps(manifest).encode()

    return rewritten(path, change, "forged.iotsim")


def added(every="5s", **changes):
    profile = Profile("q", {"a": {"type": "constant", "value": 1}}, telemetry_interval=every)
    spec = members_of(profile, count=1, labels=None, every=None, id=None, first=lambda _: 0).spec()
    return {"verb": "add", "at_us": 5, "members": {**spec, **changes}}


def inject(fault="offset", **more):
    parameters = more.pop("parameters", {"by": 1})
    return {"verb": "inject", "at_us": 5, "fault": fault, "where": "all", "parameters": parameters,
            **more}


def done(verb, **more):
    return {"verb": verb, "at_us": 5, "where": "all", **more}


def refused(path):
    with pytest.raises(SavedRunError) as caught:
        iotsim.verify(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    assert not text.endswith("..")
    return text


# -- more than it says that it had -------------------------------------------------------------


@pytest.mark.parametrize("actions", [
    [done("set", every_us=1)],
    [done("set", every_us=1000), inject("rate", parameters={"factor": 1000})],
    [inject("rate", parameters={"factor": 1000}), done("set", every_us=1000)],
    [added(every="1us")],
    [added(count=10**7)],
    [added(count=10**7, first=i * 10**7) for i in range(20)],
    [added(count=900_000, every="1ms")],
], ids=range(7))
def test_far_more_than_the_file_says_is_not_computed(saved, actions):
    text = refused(forged(saved, actions))
    assert "this saved run is damaged: doing it again gives" in text
    assert text.endswith(("and it had 36.", "and it had 3."))


@pytest.mark.parametrize("actions", [
    [done("clear")], [done("stop", where="count=1")], [inject("stuck", parameters={})],
    [done("set", every_us=6_000_000)],
])
def test_a_window_of_decades_is_not_computed_whatever_was_done(saved, actions):
    text = refused(forged(saved, actions, longer_us=LATER_US))
    assert "doing it again gives at least" in text


def test_decades_in_which_nobody_is_left_are_soon_over(saved):
    path = forged(saved, [done("stop", where="all")], longer_us=LATER_US)
    assert "differs" in iotsim.verify(path).difference or not iotsim.verify(path).ok


def test_a_few_readings_more_than_it_had_are_a_difference(saved):
    found = iotsim.verify(forged(saved, [inject("rate", parameters={"factor": 1000})]))
    assert "differs with 12 and 11,853 readings" in found.difference


@pytest.mark.parametrize("actions", [
    [done("clear")] * 10_037, [done("set", every_us=5_000_000)] * 20_000,
], ids=range(2))
def test_more_actions_than_readings_could_tell_of_are_refused(saved, actions):
    text = refused(forged(saved, actions))
    assert text.endswith("actions, and 10,036 are as many as can be done again in a run of 36 "
                         "readings.")


def test_what_takes_far_too_long_is_given_up(saved, monkeypatch):
    monkeypatch.setattr(replaying, "PATIENCE_S", 0.05)
    monkeypatch.setattr(replaying, "PER_ACTION_S", 0.0)
    updates = [inject("firmware_update", parameters={"version": str(i)}, duration_us=i + 1)
               for i in range(2000)]
    text = refused(forged(saved, updates))
    assert "far too long for a run of 36 readings, so it was given up" in text


def test_faults_reach_no_more_devices_than_memory_is_made_for(saved, monkeypatch):
    monkeypatch.setattr(replaying, "REACHED_MAX", 10)
    assert "its faults reach devices 12 times" in refused(forged(saved, [inject()] * 9))


async def quick(dev):
    while True:
        dev.emit(v=1.0)
        await dev.sleep()


def test_scripted_devices_that_would_wake_all_the_time_are_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("iotsim.replaying.ROWS_SPARE", 100_000)
    path = Fleet("p", seed=1).add(quick, every="1s").generate("10s").save(tmp_path / "r.iotsim")

    def change(members):
        manifest = json.loads(members["manifest.json"])
        manifest["spec"]["members"][0]["every"] = "1us"
        members["manifest.json"] = json.dumps(manifest).encode()

    with pytest.raises(SavedRunError, match=r"gives over [12]\d\d,\d\d\d readings, and it had 10"):
        iotsim.verify(rewritten(path, change), devices={"quick": quick})


# -- what nobody writes ------------------------------------------------------------------------


@pytest.mark.parametrize("action", [
    {"verb": "explode", "at_us": 5}, {"verb": "explode", "at_us": 5, "where": "all"},
    done("stop", where=5), done("stop", where=None), done("stop", where={"ids": None}),
    done("stop", where={"ids": [[1]]}), done("stop", where={"ids": [5]}), done("stop", where={}),
    done("stop", where={"ids": ["x"], "more": 1}), done("stop", where="count=" + "9" * 5000),
    done("stop", where="shard=0/" + "9" * 30), done("stop", where="x" * 10**5),
    done("stop", where=json.loads("[" * 900 + "]" * 900)), done("stop", where="zz=1"),
    done("clear", boom=1), done("clear", by="somebody"), inject(by=5),
    done("clear", fault="zz"), done("clear", fault=5), {"verb": "clear",
    "at_us": 5}, inject("zz"), inject(where="zz=1"), inject(parameters={"by": 1, "field": "zz"}),
    inject(duration_us="5s 3"), inject(duration_us="5"), inject(duration_us=1.5),
    inject(duration_us=True), inject(duration_us=0), inject(duration_us=-1), inject(reason=5),
    inject(duration_us=10**30), inject(duration_us=None), inject(parameters=[1]),
    inject(parameters={"by": math.nan}), inject(parameters={"by": 10**400}), inject(every_us=5),
    done("set"), done("set", every_us="5"), done("set", every_us=True), done("set", every_us=0),
    done("set", fields=[1]), done("set", fields={"temperature": {}}), done("set", fields={"zz":
    {"mean": 1}}), done("set", fields={"temperature": {"shared": "zz"}}),
    done("set", fields={"temperature": {"type": "composite", "parts": []}}),
    done("set", fields={"temperature": {"type": "composite", "parts": [5]}}),
    done("set", fields={"temperature": {"type": "playback", "path": "/dev/zero", "column": "a"}}),
    done("set", fields={"temperature": {"type": [1]}}), {"verb": "add", "at_us": 5},
    added(count="5"), added(count=0), added(labels={"temperature": "x"}), added(labels=5),
    added(first="x"), added(profile=5), added(id="{type.__class__}"), added(type=5),
    {"verb": "add", "at_us": 5, "members": 5}, {"verb": "pause", "at_us": 10**40},
    {"verb": "pause", "at_us": 10**400}, {"verb": "log", "at_us": 5}, 5, None, [],
    {"verb": ["add"], "at_us": 5}, {"verb": "speed", "at_us": "x", "factor": 1},
    done("clear", at_us=-5), done("clear", at_us=10**12), done("clear", at_us=True),
    done("clear", at_us=5.0), inject("firmware_update", parameters={"version": "2", "label":
    "temperature"}, duration_us=5), inject("battery_drain", parameters={"factor": "x"}),
], ids=lambda action: "")
def test_what_nobody_writes_into_a_log_is_one_clear_line(saved, action):
    refused(forged(saved, [action]))


def test_devices_whose_ids_are_taken_are_refused(saved):
    text = refused(forged(saved, [added(), added()]))
    assert "id='q-0000' is taken by another device of this run" in text


@pytest.mark.parametrize("actions", [{"a": 1}, None, 5, "x"])
def test_a_log_that_is_no_list_is_refused(saved, actions):
    refused(forged(saved, actions))


# -- honest files ------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [
    {"matched": {"devices": 3}}, {"matched": {"devices": 3, "ids": ["a"]}}, {"matched": None},
])
def test_whom_an_action_matched_and_who_did_it_do_not_make_a_file_forged(saved, more):
    logged = {"verb": "inject", "at_us": 5_000_000, "fault": "offset", "where": "all",
              "duration_us": 10_000_000, "parameters": {"by": 1}, "by": "back-pressure"}
    cleared = {"verb": "clear", "at_us": 20_000_000, "where": "all", "by": "back-pressure"}
    assert iotsim.verify(forged(saved, [{**logged, **more}, {**cleared, **more}]))


def test_a_log_with_everything_in_it_verifies(tmp_path):
    fleet = (Fleet("p", seed=3).add("temperature_sensor", count=40, labels={"site": "north"})
             .add(quick, count=3, every="700ms"))
    scenario = (Scenario("s", fleet)
                .at(1).inject("rate", factor=20, where="device_type=temperature_sensor", duration=9)
                .at(2).set("device_type=temperature_sensor", every="300ms")
                .at(3).add("smart_lock", count=7, every="10ms")
                .at(4).inject("duplicate", where="fraction=50%")
                .at(5).clear("duplicate")
                .at(6).inject("firmware_update", version="2", where="count=5", duration=2)
                .at(9).stop("count=4")
                .at(10).set("device_type=quick", every="50ms")
                .lasting(20))
    result = scenario.generate()
    assert len(result.actions) == 8
    assert iotsim.verify(result.save(tmp_path / "r.iotsim"), devices={"quick": quick})


def test_devices_that_never_had_a_reading_do_not_make_a_file_forged(tmp_path):
    fleet = Fleet("p", seed=3).add("temperature_sensor", count=20_000)
    result = Scenario("s", fleet).at(0.001).stop().lasting(0.002).generate()
    assert iotsim.verify(result.save(tmp_path / "r.iotsim"))


