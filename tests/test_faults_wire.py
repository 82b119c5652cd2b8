"""Every fault as an MQTT subscriber sees it: what arrives, its labels, its end, and the others."""

import pytest

from iotsim.faults.base import FAULTS, fault_name
from tests import wire
from tests.wire import CASES, NORTHERN, SOUTHERN, in_window, is_north

pytestmark = pytest.mark.broker
ENDS = [(case, name) for case in CASES for name in (case, f"{case}, cleared")]
every_case = pytest.mark.parametrize("case", CASES)
however_it_ends = pytest.mark.parametrize(("case", "name"), ENDS, ids=[name for _, name in ENDS])


def grid(messages):
    """Bytes by reading, without those between ticks and without copies."""
    return {message.key: message.payload for message in messages if message.key[2:] == (0, 0)}


def test_every_fault_is_a_case():
    assert {fault_name(fault) for fault, _ in CASES.values()} == set(FAULTS)


@however_it_ends
def test_what_arrives_is_what_left_byte_for_byte(case, name):
    seen = wire.everything()[name]
    assert sorted(message.key for message in seen.messages) == sorted(seen.left)
    assert seen.digest_of_messages() == seen.digest_of_left()
    assert seen.result.errors == ()
    for key, message in seen.by_key.items():
        row, body = seen.left[key], message.body
        assert message.stamp_us == row["time_us"]
        assert body["labels"]["site"] == row["site"]
        for field in ("temperature", "level", "battery"):
            value = body["fields"][field]
            assert value == row[field] or (value is None and row[field] != row[field])


@however_it_ends
def test_the_run_has_the_bytes_of_the_same_scenario_offline(case, name):
    seen = wire.everything()[name]
    assert seen.offline.digest == seen.result.digest


@however_it_ends
def test_a_row_is_labelled_active_in_the_window_and_hit_where_the_wire_differs(case, name):
    seen, calm = wire.everything()[name], wire.everything()["calm"]
    fault = fault_name(CASES[case][0])
    for key, row in seen.rows.items():
        assert row["faults"] == (fault if in_window(row) else ""), row
        message, before = seen.by_key.get(key), calm.by_key.get(key)
        late = seen.delays_s[key] > 0
        firmware = fault == "firmware_update" and not in_window(row)  # a label is no reading
        differs = message is None or before is None or message.payload != before.payload
        assert row["hit"] == (fault if (differs and not firmware) or late else ""), row
        assert row["withheld"] == ("" if message is not None else fault)
    hit = {key[0] for key, row in seen.rows.items() if row["hit"]}
    assert hit == set(NORTHERN)


@however_it_ends
def test_the_truth_beside_a_row_is_what_a_calm_day_has(case, name):
    seen, calm = wire.everything()[name], wire.everything()["calm"]
    for key, row in calm.rows.items():
        found = seen.rows[key]
        assert found["true_us"] == row["time_us"]
        for field in ("temperature", "level", "battery", "count", "state"):
            assert found[f"true_{field}"] == row[field]


@however_it_ends
def test_after_its_end_bytes_are_those_of_a_calm_day(case, name):
    seen, calm = wire.everything()[name], wire.everything()["calm"]
    after = {key: message for key, message in calm.by_key.items()
             if message.stamp_us >= wire.END_S * 1e6}
    assert len(after) == 10 * (wire.NORTH + wire.SOUTH)
    updated, drained = name == "firmware_update", case == "battery_drain"
    for key, message in after.items():
        found, before = seen.by_key[key].body, message.body
        if is_north(key[0]) and updated:
            before["labels"]["firmware"] = "2.0.0"
        elif is_north(key[0]) and drained:  # it does not recharge
            lost = before["fields"].pop("battery") - found["fields"].pop("battery")
            assert lost == pytest.approx(49 * 0.01 * 20, abs=0.01)
        else:
            assert seen.by_key[key].payload == message.payload
        assert found == before
    beyond = [key for key, row in seen.rows.items()
              if row["true_us"] >= wire.END_S * 1e6 and key not in after]
    assert beyond == []


@however_it_ends
def test_the_bytes_of_all_other_devices_are_unchanged(case, name):
    seen, calm = wire.everything()[name], wire.everything()["calm"]
    for device in SOUTHERN:
        theirs = [(message.key, message.payload) for message in seen.of(device)]
        assert len(theirs) == wire.LASTS_S
        assert theirs == [(message.key, message.payload) for message in calm.of(device)]
    before, now = calm.digest_of_devices(), seen.digest_of_devices()
    changed = {device for device in before if before[device] != now[device]}
    delayed = fault_name(CASES[case][0]) in ("latency_spike", "reorder")
    nothing_lost = delayed or case == "store_and_forward"
    assert changed == (set() if nothing_lost else set(NORTHERN))


@every_case
def test_before_it_begins_bytes_are_those_of_a_calm_day(case):
    seen, calm = wire.everything()[case], wire.everything()["calm"]
    early = {key: message for key, message in calm.by_key.items()
             if message.stamp_us < wire.BEGIN_S * 1e6}
    assert {key: seen.by_key[key].payload for key in early} == grid(early.values())
