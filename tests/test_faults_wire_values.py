"""What each fault of values and of the device does, in the payloads that a subscriber got."""

import statistics

import pytest

from tests import wire
from tests.wire import BEGIN_S, END_S, NORTHERN, in_window, is_north, within_four_sigma

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


def pairs(case, device=None):
    """(what arrived, what would have) for all readings on the grid in the window, in order."""
    seen, calm = wire.everything()[case], wire.everything()["calm"]
    found = []
    for key in sorted(calm.by_key):
        row = seen.rows[key]
        if in_window(row) and (device is None or key[0] == device):
            found.append((seen.by_key.get(key), calm.by_key[key]))
    assert len(found) == 20 * (wire.NORTH if device is None else 1)
    return found


def fields(case, name, device=None):
    """The field of each pair: (published, true)."""
    return [(one.body["fields"][name], other.body["fields"][name])
            for one, other in pairs(case, device)]


def others_unchanged(case, *changed):
    for one, other in pairs(case):
        left, right = one.body["fields"], other.body["fields"]
        assert {k: v for k, v in left.items() if k not in changed} == {
            k: v for k, v in right.items() if k not in changed}


# -- values ---------------------------------------------------------------------------------------


def test_an_offset_is_in_the_fields_that_were_named_and_in_no_other():
    for value, true in fields("offset", "temperature"):
        assert value == pytest.approx(true - 2.5)
    assert {value for value, _ in fields("offset", "count")} == {4.5}
    others_unchanged("offset", "temperature", "count")


def test_a_drift_grows_with_the_seconds_since_it_began():
    for one, other in pairs("drift"):
        since_s = other.stamp_us / 1e6 - BEGIN_S
        for name, step in (("temperature", 0.01), ("level", 0.001)):
            moved = one.body["fields"][name] - other.body["fields"][name]
            assert moved == pytest.approx(0.25 * since_s, abs=step)


def test_noise_has_the_deviation_that_was_asked_for():
    errors = [value - true for name in ("temperature", "level")
              for value, true in fields("noise", name)]
    assert abs(statistics.mean(errors)) < 4 * 2 / len(errors) ** 0.5
    assert abs(statistics.stdev(errors) - 2) < 4 * 2 / (2 * len(errors)) ** 0.5


def test_an_outlier_hits_the_first_readings_and_lies_far_outside():
    for device in NORTHERN:
        values = fields("outlier", "temperature", device)
        assert [value != true for value, true in values] == [True] * 3 + [False] * 17
        assert all(value > 35 for value, _ in values[:3])


@pytest.mark.parametrize("name", ["temperature", "level", "battery"])
def test_a_stuck_device_repeats_its_first_reading_while_the_truth_goes_on(name):
    for device in NORTHERN:
        values = fields("stuck", name, device)
        assert {value for value, _ in values} == {values[0][1]}
        assert len({true for _, true in values}) > 10


def test_a_stuck_device_still_says_what_time_it_is():
    stamps = [(one.stamp_us, other.stamp_us) for one, other in pairs("stuck")]
    assert all(one == other for one, other in stamps)


def test_a_dropout_keeps_whole_readings_from_the_wire():
    arrived = [one is not None for one, _ in pairs("dropout")]
    assert within_four_sigma(arrived.count(False), len(arrived), 0.5)


def test_a_dropout_of_a_field_is_null_on_the_wire_and_the_rest_is_there():
    assert {value for value, _ in fields("dropout of a field", "temperature")} == {None}
    others_unchanged("dropout of a field", "temperature")


def test_a_battery_that_drains_falls_as_many_times_faster_on_the_wire():
    for one, other in pairs("battery_drain"):
        since_s = other.stamp_us / 1e6 - BEGIN_S
        true = other.body["fields"]["battery"]
        assert one.body["fields"]["battery"] == pytest.approx(
            true - 49 * 0.01 * since_s, abs=0.0011)
    others_unchanged("battery_drain", "battery")
    last, true = fields("battery_drain", "battery", "north-0")[-1]
    assert true - last > 9


def test_a_quarter_of_the_values_is_corrupted_and_the_json_never_breaks():
    seen = wire.special()["a quarter corrupted"]
    kinds = {"null": 0, "zero": 0, "spike": 0}
    total = 0
    for key, row in seen.rows.items():
        value = seen.by_key[key].body["fields"]["temperature"]  # parsed: NaN would not be
        inside = is_north(key[0]) and BEGIN_S * 1e6 <= row["true_us"] < (BEGIN_S + 60) * 1e6
        corrupted = value != row["true_temperature"]
        assert corrupted == (row["hit"] == "data_corruption")
        assert inside or not corrupted
        total += inside
        if corrupted:
            kinds["null" if value is None else "spike" if value else "zero"] += 1
    assert total == 25 * 60
    assert within_four_sigma(sum(kinds.values()), total, 0.25)
    for count in kinds.values():
        assert within_four_sigma(count, sum(kinds.values()), 1 / 3)


def test_corruption_hits_every_field_by_itself():
    hits = [sum(one.body["fields"][name] != other.body["fields"][name]
                for name in ("temperature", "level", "count", "battery"))
            for one, other in pairs("data_corruption")]
    assert set(hits) == {0, 1, 2, 3, 4}
    assert within_four_sigma(sum(hits), 4 * len(hits), 0.5)


# -- the device -----------------------------------------------------------------------------------


def test_a_clock_that_gains_50_ms_a_second_is_3_s_ahead_after_a_minute_and_then_right_again():
    seen = wire.special()["drift of a minute"]
    ahead_us = {}
    for key, row in seen.rows.items():
        stamp_us, true_us = seen.by_key[key].stamp_us, row["true_us"]
        since_us = true_us - BEGIN_S * 1_000_000
        drifts = is_north(key[0]) and 0 <= since_us < 60_000_000
        ahead_us[key] = stamp_us - true_us
        assert abs(ahead_us[key] - (0.05 * since_us if drifts else 0)) <= 0.5
        assert bool(ahead_us[key]) == (row["hit"] == "clock_drift")
    assert 2_974_000 < max(ahead_us.values()) < 3_000_000  # two readings a second
    last = [message for device in ("north-0", "north-1") for message in seen.of(device)[-10:]]
    assert {ahead_us[message.key] for message in last} == {0}


def test_a_reboot_is_a_gap_after_which_seq_goes_on_with_the_time():
    seen = wire.everything()["reboot"]
    for device in NORTHERN:
        numbers = [message.key[1] for message in seen.of(device)]
        assert numbers == [*range(BEGIN_S), *range(END_S, wire.LASTS_S)]


def test_a_device_comes_back_from_an_update_with_its_new_version_in_the_payload():
    for name, then in (("firmware_update", "2.0.0"), ("firmware_update, cleared", "1.0.0")):
        seen = wire.everything()[name]
        for device in NORTHERN:
            versions = [message.body["labels"]["firmware"] for message in seen.of(device)]
            assert versions == ["1.0.0"] * BEGIN_S + [then] * 10
        told = {key: row["firmware"] for key, row in seen.left.items()}
        assert told == {one.key: one.body["labels"]["firmware"] for one in seen.messages}


def test_a_device_that_reports_faster_has_readings_between_its_ticks_and_the_same_on_them():
    seen, calm = wire.everything()["rate"], wire.everything()["calm"]
    between = {message.key: message for message in seen.messages if message.key[2]}
    for (device, seq, sub, _), message in between.items():
        assert message.ident.endswith(f"/{device}/{seq}.{sub}/0")
        tick_us = calm.by_key[device, seq, 0, 0].stamp_us
        assert message.stamp_us == tick_us + sub * 1_000_000 // 3
    assert set(between) == {
        (*key[:2], sub, 0) for key, row in calm.rows.items() for sub in (1, 2)
        if in_window(row) and row["true_us"] + sub * 1_000_000 // 3 < END_S * 1e6}
    for device in NORTHERN:
        assert [m.stamp_us for m in seen.of(device)] == sorted(m.stamp_us for m in seen.of(device))
        own = {message.body["fields"]["temperature"] for message in between.values()
               if message.key[0] == device}
        assert len(own) > 20  # draws of their own
    on_grid = {key: message.payload for key, message in seen.by_key.items() if not key[2]}
    assert on_grid == {key: message.payload for key, message in calm.by_key.items()}


def test_a_slowed_device_reports_every_second_reading():
    for one, other in pairs("slow_down"):
        assert (one is None) == (other.key[1] % 2 == 1)


def test_a_suspended_device_says_nothing_and_keeps_its_session():
    assert {one for one, _ in pairs("suspend")} == {None}
    own = wire.own_sessions()["own-suspend"]
    assert own.wills == []
    assert {own.connects[f"own-suspend-{device}"] for device in NORTHERN} == {1}
