"""Who an action concerns, and what it does to the digest (DESIGN.md §3), sentence by sentence."""

import asyncio
import json
from dataclasses import replace
from zipfile import ZipFile

import pandas as pd
import pytest

import iotsim
from iotsim import Fleet, Profile, Scenario
from iotsim.actions import Action, records
from iotsim.errors import BadValue, UnknownName
from iotsim.saved import load
from iotsim.selectors import ids
from iotsim.units import DEFAULT_START
from tests.action_rig import rows

METER = Profile("meter", {"power": {"type": "gaussian", "mean": 400, "stddev": 25}},
                telemetry_interval="5s")


def meters(count=20, seed=3, **options):
    return (Fleet("s", seed=seed).add(METER, count=count, labels={"site": "a"}, **options)
            .add("pump", count=count, labels={"site": "b"}))


def story(fleet=None, lasting="1m"):
    return Scenario("s", meters() if fleet is None else fleet).lasting(lasting)


def silent(where="all", scenario=None):
    """Return who is concerned by a suspend at 30 s, and the action."""
    told = (story() if scenario is None else scenario).at("30s").suspend(where).generate()
    who = {row["id"] for row in rows(told.capture.chunks()) if row["withheld"] == "suspend"}
    action = told.actions[-1]
    assert action.devices == len(who)
    return who, action


EVERYBODY = {f"{name}-{i:04d}" for name in ("meter", "pump") for i in range(20)}


# -- who ------------------------------------------------------------------------------------------


def test_everybody_is_meant_if_nobody_is_named():
    assert silent()[0] == silent("all")[0] == EVERYBODY
    told = story().at("30s").inject("suspend").generate()
    assert told.actions[0].parameters["where"] == "all"


@pytest.mark.parametrize("where", ["", "  ", "site", "site=", "site=a,site=b", "fraction=200%",
                                   "count=-1", None, 5])
def test_what_is_no_selector_is_an_error_at_the_call(where):
    with pytest.raises(BadValue, match="where"):
        story().suspend(where)


@pytest.mark.parametrize("verb", ["inject", "clear", "set", "stop"])
def test_an_empty_selection_selects_nothing_and_says_so_with_every_verb(verb):
    more = {"inject": {"fault": "suspend"}, "set": {"every": "1s"}}.get(verb, {})
    plain = story().generate()
    for where, said in ((ids([]), "matches no device"), ("site=nowhere", "'site=nowhere' matches"),
                        ("count=0", "matches no device"), ("id=nobody", "matches no device")):
        told = getattr(story().at("10s"), verb)(where=where, **more).generate()
        assert told.digest == plain.digest
        assert told.actions[0].devices == 0
        assert said in told.actions[0].note
        assert told.actions[0].note in told.notes


def test_terms_must_all_hold_and_one_value_is_enough():
    assert silent("device_type=pump,site=b")[0] == {n for n in EVERYBODY if "pump" in n}
    assert silent("device_type=pump,site=a")[0] == set()
    assert silent("site=a|b")[0] == EVERYBODY
    assert silent("id=meter-0003|pump-0001,site=b")[0] == {"pump-0001"}
    assert silent(ids(["meter-0003", "pump-0001", "who"]))[0] == {"meter-0003", "pump-0001"}


def test_an_unknown_key_is_an_error_with_did_you_mean():
    with pytest.raises(UnknownName, match="Did you mean 'site'"):
        story().suspend("sitte=a")
    with pytest.raises(UnknownName, match="Did you mean 'fraction'"):
        story().suspend("fractoin=10%")


def test_a_fraction_says_how_many_and_is_stable_when_devices_come_and_go():
    who, action = silent("fraction=30%")
    assert action.note == f"where='fraction=30%' matches {len(who)} of 40 devices"
    assert 4 <= len(who) <= 20
    more, _ = silent("fraction=30%", story().at("10s").add(METER, count=40))
    assert {name for name in more if name in EVERYBODY} == who
    fewer, _ = silent("fraction=30%", story().at("10s").stop("site=b"))
    assert fewer == {name for name in who if "meter" in name}
    assert silent("fraction=20%")[0] <= who
    assert silent("fraction=0%")[0] == set()
    assert silent("fraction=100%")[0] == EVERYBODY


def test_a_count_logs_the_ids_and_takes_the_lowest_hashes_of_those_who_live():
    who, action = silent("count=5")
    assert len(who) == 5
    head, _, names = action.note.rpartition(": ")
    assert head == "where='count=5' matches 5 of 40 devices"
    assert set(names.split(", ")) == who
    assert silent("count=3")[0] < who
    gone = sorted(who)[0]
    others, _ = silent("count=5", story().at("10s").stop(f"id={gone}"))
    assert who - {gone} < others
    assert len(others) == 5
    assert silent("count=500")[0] == EVERYBODY


def test_the_ids_that_a_count_chose_are_in_the_log_the_file_and_the_events_for_people(tmp_path):
    made = (story(meters(600)).at("10s").inject("suspend", "count=12", "5s").at("20s")
            .stop("count=1100").at("25s").suspend("site=a", "1s")).generate()
    few, many, plain = made.actions
    assert len(few.chosen) == few.devices == 12
    assert f"{', '.join(few.chosen[:10])}, …" in few.note
    assert (many.devices, len(many.chosen), plain.chosen) == (1100, 1000, ())
    assert few == replace(few, chosen=())
    told = made.events("action")["metadata"].tolist()
    assert told[0]["ids"] == list(few.chosen)
    assert "ids" not in told[2]
    path = made.save(tmp_path / "a.iotsim")
    saved = load(path).actions
    assert saved[0]["matched"] == {"devices": 12, "ids": list(few.chosen)}
    assert saved[2]["matched"] == {"devices": plain.devices}
    assert iotsim.verify(path)
    with ZipFile(path) as whole, ZipFile(tmp_path / "b.iotsim", "w") as forged:
        for name in whole.namelist():
            forged.writestr(name, whole.read(name) if name != "actions.json" else json.dumps(
                [{**entry, "matched": {"devices": 0, "ids": ["x"]}} for entry in saved]))
    assert iotsim.verify(tmp_path / "b.iotsim")


def test_a_saved_log_names_no_more_ids_than_a_file_should_hold():
    one = Action("stop", 0, {"where": "count=900"}, 900, chosen=("x",) * 900)
    entries = records([one] * 200)
    assert sum(len(entry["matched"].get("ids", ())) for entry in entries) == 99_900
    assert entries[-1] == {"verb": "stop", "at_us": 0, "where": "count=900",
                           "matched": {"devices": 900}}


def test_selectors_are_resolved_when_the_action_takes_effect():
    joined = story().at("30s").add(METER, count=1, labels={"site": "b"})
    assert "meter-0020" in silent("site=b", joined)[0]
    before = story().at("20s").suspend("site=b", "20s").at("30s").add(METER, labels={"site": "b"})
    made = rows(before.generate().capture.chunks())
    assert not any(row["faults"] for row in made if row["id"] == "meter-0020")


def test_devices_that_are_stopped_are_not_chosen_any_more():
    stopped = story().at("10s").stop("site=b")
    assert silent("all", stopped)[0] == {name for name in EVERYBODY if "meter" in name}
    who, action = silent("site=b", stopped)
    assert not who
    assert "matches no device" in action.note
    again = story().at("10s").stop("site=b").at("20s").stop("site=b").generate()
    assert [action.devices for action in again.actions] == [20, 0]


def test_a_label_that_an_update_changed_is_what_selectors_and_rows_see_from_its_end_on():
    updated = story().inject("firmware_update", "id=pump-0001|pump-0002", "20s", version="9")
    assert silent("firmware=9", updated)[0] == {"pump-0001", "pump-0002"}
    frame = updated.generate().frame()
    mine = frame[frame["device_id"] == "pump-0001"]
    elapsed = (mine["time"] - pd.Timestamp(DEFAULT_START)).dt.total_seconds()
    assert (mine["firmware"] == "9").tolist() == (elapsed >= 20).tolist()
    assert mine["firmware"].nunique() == 1  # it was off until then
    cleared = updated.at("10s").clear("firmware_update", "id=pump-0001")
    assert silent("firmware=9", cleared)[0] == {"pump-0002"}


# -- digest ---------------------------------------------------------------------------------------


PLAIN = story().generate().digest


@pytest.mark.parametrize(("fault", "given", "changes"), [
    ("rate", {"factor": 2}, True),  # sub
    ("duplicate", {}, True),  # copy
    ("disconnect", {}, True), ("suspend", {}, True), ("slow_down", {}, True),  # withheld
    ("offset", {"by": 1}, True), ("clock_drift", {"drift_rate_ms_per_sec": 9}, True),
    ("firmware_update", {"version": "9"}, True),  # labels
    ("latency_spike", {"latency_ms": 100}, False), ("reorder", {}, False),  # when it left: no
    ("disconnect", {"store_and_forward": True}, False),
    ("offset", {"by": 0}, False), ("packet_loss", {"loss": 0}, False),  # hits nobody
])
def test_what_a_fault_changes_of_the_readings_is_in_the_digest(fault, given, changes):
    made = story().at("10s").inject(fault, "site=b", "30s", **given).generate()
    assert (made.digest != PLAIN) == changes


def test_the_cause_is_in_the_digest_and_who_asked_why_is_not():
    one, other = (story().at("10s").inject(fault, "site=b", "30s").generate()
                  for fault in ("suspend", "reboot"))
    assert one.digest != other.digest
    said = story().at("10s").inject("suspend", "site=b", "30s", reason="lunch").log("hello")
    assert said.generate().digest == one.digest
    assert story().log("hello").at("5s").expect("count() > 0").generate().digest == PLAIN


def test_a_set_of_what_is_already_so_keeps_the_digest():
    same = story().at("10s").set("device_type=meter", every="5s").at("12s").set(
        "device_type=meter", power={"mean": 400})
    assert same.generate().digest == PLAIN


def test_a_publisher_is_not_in_the_digest_and_neither_is_pace():
    scenario = story().at("10s").inject("duplicate", "site=a", "20s")
    digest = scenario.generate().digest
    live = asyncio.run(scenario.publish_to("memory:pace").run(speed="max", start=DEFAULT_START))
    paced = asyncio.run(scenario.run(speed=1000, start=DEFAULT_START))
    assert live.digest == paced.digest == digest


def test_digests_of_different_starts_do_not_compare_and_the_difference_says_so():
    one, other = story().generate(), story().generate(start="2026-05-01T00:00:00Z")
    assert one.digest != other.digest
    assert "start" in one.diff(other)


def test_a_saved_run_with_actions_is_verified_and_one_that_was_changed_is_not(tmp_path):
    made = story().at("10s").inject("offset", "site=a", "20s", by=1).at("30s").stop("count=3")
    path = made.generate().save(tmp_path / "a.iotsim")
    assert iotsim.verify(path)
    other = made.at("40s").clear().inject("noise", stddev=1).generate()
    assert made.generate().diff(other)
