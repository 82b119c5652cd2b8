"""The settled semantics of what is done to a run (DESIGN.md §3), a test for each sentence."""

import json

import numpy as np
import pandas as pd
import pytest

from iotsim import Fleet, Profile, Scenario
from iotsim.errors import BadValue
from iotsim.publishers import memory
from tests.action_rig import Hand, mixed, rows
from tests.fleets import START_US

SECOND = 1_000_000
METER = Profile("meter", {
    "power": {"type": "gaussian", "mean": 400, "stddev": 25},
    "walk": {"type": "brownian", "volatility": 0.5, "mean_reversion": 0.1},
}, telemetry_interval="5s")
ALIGNED = Profile("aligned", {"x": {"type": "gaussian", "mean": 0, "stddev": 1}},
                  telemetry_interval="5s", phase=0)


def meters(profile=METER, count=4, seed=3, **options):
    return Fleet("s", seed=seed).add(profile, count=count, **options)


def story(fleet=None, lasting="1m"):
    return Scenario("s", meters() if fleet is None else fleet).lasting(lasting)


def found(scenario):
    """Every row of a scenario, in words; see `action_rig.rows`."""
    return rows(scenario.generate().capture.chunks())


def seconds(all_rows, name=None):
    return [(row["true_time"] - START_US) / SECOND for row in all_rows
            if name in (None, row["id"])]


def published(all_rows):
    return {(row["id"], row["n"], row["sub"], row["copy"]): (row["time"], row["values"])
            for row in all_rows if not row["withheld"]}


PLAIN = published(found(story()))


# -- grid -----------------------------------------------------------------------------------------


def test_a_device_that_is_added_begins_then_and_is_what_it_would_have_been_from_the_start():
    late = found(story(meters(count=1)).at("20s").add(METER, count=2))
    there = found(story(meters(count=3)))
    added = [row for row in late if row["id"] in ("meter-0001", "meter-0002")]
    before = {(row["id"], row["n"]): row for row in there}
    assert {row["n"] for row in added} == set(range(8))
    for row in added:
        twin = before[row["id"], row["n"]]
        assert row["time"] == twin["time"] + 20 * SECOND
        assert row["values"] == twin["values"]


def test_the_phase_is_within_an_interval_and_zero_aligns():
    first = seconds(found(story(lasting="5s")))
    assert len(first) == 4
    assert all(0 <= second < 5 for second in first)
    assert len(set(first)) == 4
    added = found(story(meters(ALIGNED)).at("7s").add(ALIGNED, count=1))
    assert seconds(added, "aligned-0000") == list(range(0, 60, 5))
    assert seconds(added, "aligned-0004") == list(range(7, 60, 5))


def test_jitter_moves_the_published_time_only():
    fields = {field.name: field.signal for field in METER.fields}
    assert set(fields) == {"power", "walk"}
    shaky = Profile.from_spec({**METER.spec(), "jitter": "4s"}, name="shaky")
    for (place, (time, values)), (_, there) in zip(
            published(found(story(meters(shaky)))).items(), PLAIN.items(), strict=True):
        assert values == there[1], place
        assert 0 <= time - there[0] < 4 * SECOND


def test_ids_are_never_reused():
    made = found(story(meters(ALIGNED)).at("10s").stop("id=aligned-0002|aligned-0003")
                 .at("20s").add(ALIGNED, count=2))
    assert sorted({row["id"] for row in made}) == [f"aligned-{i:04d}" for i in range(6)]
    assert seconds(made, "aligned-0003") == [0, 5]
    with pytest.raises(BadValue, match="'aligned-0003' is taken"):
        story(meters(ALIGNED)).at("10s").stop("all").at("20s").add(
            ALIGNED, id="aligned-0003").generate()


def test_rate_inserts_readings_with_a_stream_of_their_own_and_leaves_all_others_as_they_were():
    story_ = story().at("10s").inject("rate", "id=meter-0001", "20s", factor=4)
    made = found(story_)
    between = [row for row in made if row["sub"]]
    assert {row["id"] for row in between} == {"meter-0001"}
    assert {row["sub"] for row in between} == {1, 2, 3}
    assert {row["hit"] for row in between} == {"rate"}
    assert published([row for row in made if not row["sub"]]) == PLAIN
    on_grid = {row["n"]: row for row in made if row["id"] == "meter-0001" and not row["sub"]}
    for row in between:
        tick = on_grid[row["n"]]
        assert row["true_time"] == tick["true_time"] + row["sub"] * 1_250_000
        assert row["values"]["power"] != tick["values"]["power"]
        assert row["values"]["walk"] == tick["values"]["walk"]  # what walks moves on the grid
    powers = [row["values"]["power"] for row in between]
    assert len(set(powers)) == len(powers)
    frame = story_.generate().frame(wire=True)
    shown = frame[frame["sub"] > 0][["seq", "sub"]].to_numpy().tolist()
    assert sorted(map(tuple, shown)) == sorted((row["n"], row["sub"]) for row in between)


def test_the_readings_between_end_with_their_fault_also_within_an_interval():
    made = found(story(meters(ALIGNED, 1)).at("10s").inject("rate", "all", "7s", factor=5))
    assert seconds([row for row in made if row["sub"]]) == [11, 12, 13, 14, 16]
    cleared = found(story(meters(ALIGNED, 1)).at("10s").inject("rate", "all", factor=5)
                    .at("12s").clear("rate"))
    assert seconds([row for row in cleared if row["sub"]]) == [11]


def test_slow_down_publishes_every_second_tick_and_leaves_all_others_as_they_were():
    made = found(story().at("10s").inject("slow_down", "id=meter-0002", "30s"))
    gone = [row for row in made if row["withheld"]]
    assert {(row["id"], row["n"] % 2, row["withheld"]) for row in gone} == {
        ("meter-0002", 1, "slow_down")}
    assert published(made) == {
        place: there for place, there in PLAIN.items()
        if place[:2] not in {(row["id"], row["n"]) for row in gone}}


@pytest.mark.parametrize(("every", "expected"), [
    ("3s", [0, 5, 10, 15, 18, 21, 24, 27]), ("12s", [0, 5, 10, 15, 27]),
    ("1s", [0, 5, 10, 15, *range(17, 30)]), ("5s", [0, 5, 10, 15, 20, 25]),
])
def test_a_new_interval_begins_at_the_last_tick_and_n_counts_on(every, expected):
    made = found(story(meters(ALIGNED, 1), "30s").at("17s").set(every=every))
    assert seconds(made) == expected
    assert [row["n"] for row in made] == list(range(len(expected)))
    plain = found(story(meters(ALIGNED, 1), "5m"))
    assert [row["values"] for row in made] == [row["values"] for row in plain[: len(made)]]


def test_intervals_can_change_again_and_again_and_what_walks_goes_on_with_the_time_that_passed():
    line = Profile("line", {"x": {"type": "brownian", "volatility": 0, "drift": 1, "start": 0}},
                   telemetry_interval="5s", phase=0)
    made = found(story(meters(line, 1), "30s").at("7s").set(every="2s").at("12s").set(every="4s"))
    assert seconds(made) == [0, 5, 7, 9, 11, 15, 19, 23, 27]
    times = np.array(seconds(made))
    moved = np.diff([float.fromhex(row["values"]["x"]) for row in made])
    np.testing.assert_allclose(moved, np.diff(times), rtol=1e-12)


def test_an_interval_set_before_the_first_tick_holds_from_the_first_tick_on():
    made = found(story(lasting="20s").set(every="2s"))
    for name in {row["id"] for row in made}:
        ticks = seconds(made, name)
        assert 0 <= ticks[0] < 2
        np.testing.assert_allclose(np.diff(ticks), 2, atol=1e-9)


def test_times_are_whole_microseconds_on_the_wire_and_in_frames():
    result = story().at("1.234567s").inject("clock_drift", drift_rate_ms_per_sec=0.333).generate()
    assert result.frame()["time"].dtype == pd.DatetimeTZDtype("us", "UTC")

    async def live():
        fleet = meters(count=1).publish_to("memory:digits")
        return await Scenario("s", fleet).lasting("10s").at("1.5s").set(every="1.000001s").run(
            speed="max")

    import asyncio

    asyncio.run(live())
    times = [json.loads(payload)["timestamp"] for _, payload, _ in memory.messages("digits")]
    assert times
    assert all(len(time) == 27 and time.endswith("Z") for time in times)


# -- actions --------------------------------------------------------------------------------------


def test_at_equal_time_actions_come_before_readings():
    at = story(meters(ALIGNED, 1), "20s").at("10s")
    assert seconds(found(at.stop())) == [0, 5]
    assert seconds(found(at.set(every="4s"))) == [0, 5, 13, 17]
    assert seconds(found(at.add(ALIGNED, count=1)), "aligned-0001") == [10, 15]
    hit = [row for row in found(at.inject("offset", by=1)) if row["hit"]]
    assert seconds(hit) == [10, 15]
    cleared = at.inject("offset", by=1).at("15s").clear()
    assert seconds([row for row in found(cleared) if row["hit"]]) == [10]


def test_at_equal_time_actions_go_in_the_order_of_the_log():
    at = story(meters(ALIGNED, 2), "20s").at("10s")
    assert not any(row["faults"] for row in found(at.inject("suspend").clear()))
    assert any(row["faults"] for row in found(at.clear().inject("suspend")))
    assert seconds(found(at.set(every="1s").set(every="4s")), "aligned-0000") == [0, 5, 13, 17]
    joined = found(at.add(ALIGNED, count=1).inject("suspend"))
    assert {row["id"] for row in joined if row["faults"]} == {
        "aligned-0000", "aligned-0001", "aligned-0002"}
    alone = found(at.inject("suspend").add(ALIGNED, count=1))
    assert {row["id"] for row in alone if row["faults"]} == {"aligned-0000", "aligned-0001"}
    stopped = found(at.stop("id=aligned-0000").inject("suspend"))
    assert {row["id"] for row in stopped if row["faults"]} == {"aligned-0001"}


def test_windows_are_half_open():
    made = found(story(meters(ALIGNED, 1), "20s").at("5s").inject("suspend", duration="10s"))
    assert seconds(made) == [0, 5, 10, 15]
    assert [row["faults"] for row in made] == ["", "suspend", "suspend", ""]


def test_what_cannot_be_done_changes_nothing():
    refused = [(10 * SECOND, "inject", {"fault": "offset", "where": "site=b",
                                        "parameters": {"by": 1, "field": ["nothing"]}}),
               (11 * SECOND, "inject", {"fault": "rate", "where": "device_type=walker",
                                        "parameters": {"factor": 2}}),
               (12 * SECOND, "inject", {"fault": "battery_drain", "where": "device_type=plain"}),
               (13 * SECOND, "set", {"where": "all", "fields": {"nothing": {"mean": 1}}}),
               (14 * SECOND, "set", {"where": "all", "every_us": SECOND,
                                     "fields": {"power": {"stddev": -1}}}),
               (15 * SECOND, "stop", {"where": "sight=a"})]
    hand, plain = Hand(mixed(), refused), Hand(mixed(), [])
    assert len(hand.refused) == 6
    assert not hand.done
    assert hand.rows == plain.rows
    assert "thing" not in str(hand.refused[1])


# -- faults and signals ---------------------------------------------------------------------------


def test_stuck_freezes_only_what_is_published():
    made = found(story(meters(count=1)).at("10s").inject("stuck", duration="20s"))
    stuck = [row for row in made if row["faults"]]
    assert len({tuple(row["values"].values()) for row in stuck}) == 1
    assert len({tuple(row["truth"].values()) for row in stuck}) == len(stuck) == 4
    assert [row["hit"] for row in stuck] == ["", "stuck", "stuck", "stuck"]
    assert {row["n"]: row["truth"] for row in made} == {
        n: values for (name, n, *_), (_, values) in PLAIN.items() if name == "meter-0000"}


def test_a_reboot_does_not_reset_seq_and_gaps_are_visible():
    frame = story(meters(ALIGNED, 1)).at("10s").inject("reboot").generate().frame()
    assert frame["seq"].tolist() == [0, 1, *range(4, 12)]


@pytest.mark.parametrize(("fault", "given"), [
    ("disconnect", {}), ("packet_loss", {"loss": 1}), ("dropout", {}), ("slow_down", {}),
    ("suspend", {}), ("reboot", {}),
])
def test_a_frame_holds_what_left_and_the_wire_what_did_not(fault, given):
    result = story().at("20s").inject(fault, "id=meter-0000", "20s", **given).generate()
    frame, wire = result.frame(), result.frame(wire=True)
    gone = wire[wire["withheld"] != ""]
    assert set(gone["withheld"]) == {fault}
    assert set(gone["device_id"]) == {"meter-0000"}
    assert len(frame) == len(wire) - len(gone) < len(wire)
    assert set(gone["hit"]) == {fault}


def test_a_duplicate_is_a_second_row():
    result = story(meters(ALIGNED, 1)).at("20s").inject("duplicate", duration="10s").generate()
    frame = result.frame()
    assert frame["seq"].tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 11]
    twins = frame[frame["seq"] == 4]
    assert twins["x"].nunique() == 1
    assert twins["hit"].tolist() == ["", "duplicate"]
    assert result.frame(wire=True)["copy"].tolist() == [0, 0, 0, 0, 0, 1, 0, 1, *[0] * 6]


def test_a_fault_s_draws_go_by_how_many_of_its_name_the_device_has_had_and_by_nothing_else():
    def lost(scenario):
        return {row["n"] for row in found(scenario)
                if row["id"] == "meter-0001" and row["withheld"] == "packet_loss"}

    half = {"fault": "packet_loss", "where": "id=meter-0001", "loss": 0.5}
    alone = lost(story(lasting="10m").at("1m").inject(**half))
    assert 30 < len(alone) < 80
    other_devices = story(lasting="10m").inject("packet_loss", "id=meter-0000").at("1m")
    assert lost(other_devices.inject(**half)) == alone
    other_name = story(lasting="10m").inject("offset", by=1).inject("duplicate").at("1m")
    assert lost(other_name.inject(**half)) == alone
    same_name = story(lasting="10m").inject("packet_loss", "all", "10s", loss=0).at("1m")
    assert lost(same_name.inject(**half)) != alone


# -- labels ---------------------------------------------------------------------------------------


def test_labels_of_a_row_are_categorical_and_joined_by_a_plus():
    made = (story(meters(labels={"site": "n"})).at("10s").inject("offset", by=1, duration="20s")
            .inject("clock_drift", drift_rate_ms_per_sec=5, duration="40s").inject("duplicate"))
    frame = made.generate().frame()
    for name in ("faults", "hit", "site", "device_type", "device_id"):
        assert isinstance(frame[name].dtype, pd.CategoricalDtype), name
    assert set(frame["faults"]) == {"", "clock_drift+duplicate+offset", "clock_drift+duplicate",
                                    "duplicate"}
    assert {"clock_drift+duplicate+offset", "clock_drift+offset", "clock_drift", "duplicate",
            "clock_drift+duplicate", ""} == set(frame["hit"])


@pytest.mark.parametrize("name", ["time", "device_id", "device_type", "seq", "faults", "hit",
                                  "sub", "copy", "withheld", "acked", "latency"])
def test_a_label_or_a_field_with_a_reserved_name_is_an_error(name):
    with pytest.raises(BadValue, match=r"reserved|column"):
        meters(labels={name: "x"})
    with pytest.raises(ValueError, match=r"reserved|column"):
        Profile("p", {name: {"type": "constant", "value": 1}})
    with pytest.raises(BadValue, match="column"):
        story().inject("firmware_update", version="2", label=name)


def test_a_field_of_added_devices_cannot_be_a_label_of_others():
    with pytest.raises(BadValue, match="Rename one"):
        story().add(ALIGNED, labels={"power": "high"}).generate()
