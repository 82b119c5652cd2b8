"""What people give a fault: checked at the call, spelled freely, plain JSON afterwards."""

import json
from datetime import timedelta

import pytest

from iotsim.errors import BadValue, UnknownName
from iotsim.faults.base import FAULTS, LAYERS, build, fault_name
from tests.fault_rig import EVERY

SHARES = [("data_corruption", "corruption_rate"), ("dropout", "probability"),
          ("outlier", "probability"), ("packet_loss", "loss"), ("duplicate", "probability"),
          ("reorder", "probability")]
REQUIRED = {"drift": "rate_per_sec", "noise": "stddev", "offset": "by",
            "clock_drift": "drift_rate_ms_per_sec", "firmware_update": "version",
            "latency_spike": "latency_ms", "rate": "factor"}


@pytest.mark.parametrize(("name", "parameters"), EVERY)
def test_the_parameters_are_plain_json_and_make_the_same_fault_again(name, parameters):
    fault = build(name, parameters)
    again = build(name, json.loads(json.dumps(fault.parameters())))
    assert again == fault
    assert hash(again) == hash(fault)
    assert again.parameters() == fault.parameters()


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_its_name_a_layer_and_a_first_line(name):
    fault = build(name, dict(EVERY)[name] if name != "disconnect" else {})
    assert fault.name == name
    assert fault.layer in LAYERS
    first = (type(fault).__doc__ or "").split("\n")[0]
    assert first.endswith(".")
    assert not first.startswith(type(fault).__name__ + "(")  # what dataclass writes by itself


@pytest.mark.parametrize(("name", "entry"), SHARES)
@pytest.mark.parametrize("value", [-0.1, 1.0001, 25, float("nan"), float("inf"), True, "0.5", None])
def test_a_share_is_a_number_from_0_to_1(name, entry, value):
    with pytest.raises(BadValue, match=f"^{entry}=.*at least 0, at most 1"):
        build(name, {entry: value})


@pytest.mark.parametrize(("name", "entry"), SHARES)
@pytest.mark.parametrize("value", [0, 1, 0.25])
def test_the_ends_of_a_share_are_allowed(name, entry, value):
    assert getattr(build(name, {entry: value}), entry) == value


@pytest.mark.parametrize(("name", "given"), [
    ("noise", {"stddev": -1}), ("noise", {"stddev": "2"}), ("noise", {"stddev": True}),
    ("drift", {"rate_per_sec": float("nan")}), ("offset", {"by": float("inf")}),
    ("offset", {"by": None}), ("offset", {"by": 10**400}), ("outlier", {"value": "high"}),
    ("outlier", {"times": 0}), ("outlier", {"times": 2.5}), ("outlier", {"times": True}),
    ("latency_spike", {"latency_ms": 0}), ("latency_spike", {"latency_ms": -5}),
    ("latency_spike", {"latency_ms": 1e99}), ("battery_drain", {"drain_multiplier": 0}),
    ("clock_drift", {"drift_rate_ms_per_sec": 1e7}), ("rate", {"factor": 1}),
    ("rate", {"factor": 1001}), ("rate", {"factor": 2.5}), ("rate", {"factor": "3"}),
    ("rate", {"factor": False}), ("disconnect", {"store_and_forward": "yes"}),
    ("disconnect", {"store_and_forward": 1}), ("firmware_update", {"version": ""}),
    ("firmware_update", {"version": 2}), ("firmware_update", {"version": "x" * 129}),
    ("firmware_update", {"version": "2\n0"}), ("reconnect_storm", {"every": "1s", "down": "1s"}),
    ("reconnect_storm", {"every": "-1s"}), ("reconnect_storm", {"down": 0}),
    ("reorder", {"by": 0}), ("reorder", {"by": "soon"}), ("noise", {"stddev": 1, "ramp": "-5s"}),
    ("packet_loss", {"ramp": True}), ("stuck", {"field": []}), ("stuck", {"field": 3}),
    ("stuck", {"field": ["a", 3]}), ("stuck", {"field": ""}), ("stuck", {"field": b"x"}),
])
def test_a_bad_parameter_is_an_error_of_one_line_that_names_it(name, given):
    with pytest.raises(BadValue) as caught:
        build(name, given)
    text = str(caught.value)
    assert text.startswith(tuple(given))
    assert "\n" not in text
    assert "Give" in text


def test_a_label_of_a_firmware_update_is_no_reserved_column():
    with pytest.raises(BadValue, match=r"^label='seq' is a column of every table"):
        build("firmware_update", {"version": "2", "label": "seq"})


@pytest.mark.parametrize(("name", "entry"), REQUIRED.items())
def test_what_is_required_is_asked_for(name, entry):
    with pytest.raises(BadValue, match=f"^fault='{name}' lacks {entry}. It takes: "):
        build(name, {})


def test_the_others_need_nothing():
    for name in set(FAULTS) - set(REQUIRED):
        assert build(name, {}).parameters() == {}


def test_an_unknown_fault_is_an_error_with_a_guess_and_the_list():
    with pytest.raises(UnknownName, match="Did you mean 'disconnect'\\?") as caught:
        build("diconnect", {})
    assert all(name in str(caught.value) for name in FAULTS)
    assert "network_degradation" in str(caught.value)


@pytest.mark.parametrize("name", [None, 3, "", b"drift", ["drift"]])
def test_what_is_no_name_is_an_unknown_fault(name):
    with pytest.raises(UnknownName, match=r"^no fault called "):
        build(name, {})


def test_an_unknown_parameter_is_an_error_that_lists_the_allowed_ones():
    with pytest.raises(UnknownName) as caught:
        build("noise", {"stdev": 1})
    assert str(caught.value) == ("no parameter of noise called 'stdev'. Did you mean 'stddev'? "
                                 "Known: field, probability, ramp, stddev.")
    with pytest.raises(UnknownName, match="Known: none"):
        build("reboot", {"seconds": 3})


@pytest.mark.parametrize("spelling", ["DISCONNECT", "Disconnect", "FAULT_TYPE_DISCONNECT",
                                      "fault_type_disconnect", " disconnect "])
def test_names_are_taken_in_any_case(spelling):
    assert build(spelling, {}).name == "disconnect"


@pytest.mark.parametrize("spelling", ["latency-spike", "Latency Spike", "LATENCY_SPIKE"])
def test_names_are_taken_with_any_separator(spelling):
    assert fault_name(spelling) == "latency_spike"


@pytest.mark.parametrize("entry", ["loss", "packet_loss", "rate"])
def test_network_degradation_is_packet_loss(entry):
    fault = build("NETWORK_DEGRADATION", {entry: 0.3})
    assert fault == build("packet_loss", {"loss": 0.3})
    with pytest.raises(BadValue, match="is given twice"):
        build("network_degradation", {"loss": 0.1, "packet_loss": 0.2})


@pytest.mark.parametrize("field", ["t", ["t"], ("t",), ["t", "t"]])
def test_a_field_is_a_name_or_a_list_and_a_list_in_json(field):
    fault = build("drift", {"rate_per_sec": 1, "field": field})
    assert fault.field == ("t",)
    assert fault.named == ("t",)
    assert fault.parameters() == {"rate_per_sec": 1.0, "field": ["t"]}


def test_a_battery_drain_names_its_field_by_itself():
    assert build("battery_drain", {}).named == ("battery",)
    assert build("drift", {"rate_per_sec": 1}).named == ()


@pytest.mark.parametrize("ramp", ["90s", 90, 90.0, timedelta(seconds=90), "1m30s"])
def test_durations_are_kept_as_text(ramp):
    fault = build("noise", {"stddev": 1, "ramp": ramp})
    assert (fault.ramp, fault.ramp_us) == ("1m30s", 90_000_000)
    assert build("reorder", {"by": ramp}).by == "1m30s"


def test_no_ramp_and_a_ramp_of_nothing_are_the_same():
    assert build("packet_loss", {"ramp": 0}) == build("packet_loss", {})
