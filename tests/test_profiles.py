"""Profiles: from YAML, by name and in code; and every way in which one can be wrong."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iotsim.errors import BadValue, IotsimError, ProfileError, UnknownName
from iotsim.profiles import Profile, check_topic, topic
from iotsim.signals.base import build
from iotsim.units import duration_us
from tests.signal_rig import SIGNALS

FLOW = {"type": "gaussian", "mean": 12, "stddev": 0.5}
SMALL = "type: pump\ntelemetry_fields:\n  flow: {type: gaussian, mean: 12, stddev: 0.5}\n"
SIGNALS_USED = {"diurnal", "brownian", "gaussian", "markov", "static", "constant", "uniform_random",
                "sine_wave", "spike", "composite", "depends_on"}


def pump(**keys):
    return Profile("pump", {"flow": FLOW}, **keys)


# -- what comes along ----------------------------------------------------------------------------


def test_eight_profiles_come_along():
    assert Profile.names() == ["air_quality", "industrial_valve", "pump", "smart_lock",
                               "smart_meter", "temperature_sensor", "vehicle_tracker", "wearable"]


@pytest.mark.parametrize("name", Profile.names())
def test_a_bundled_profile_survives_every_form_and_needs_no_labels(name):
    profile = Profile.load(name)
    assert profile.type == name
    assert Profile.parse(profile.to_yaml()) == profile
    assert Profile.from_spec(json.loads(json.dumps(profile.spec()))) == profile
    assert pickle.loads(pickle.dumps(profile)) == profile == copy.deepcopy(profile)
    assert hash(Profile.parse(profile.to_yaml())) == hash(profile)
    assert profile.labels_with({}) == dict(profile.labels)
    assert all(field.unit for field in profile.fields
               if field.kind == "float" and field.name != "accuracy")
    assert topic(profile.topic_template, f"{name}-0001", name, profile.labels)


def test_between_them_they_use_every_signal_that_needs_no_file():
    used = set()
    for name in Profile.names():
        for field in Profile.load(name).fields:
            used.add(field.signal.type_name)
            used |= {part["type"] for part in field.signal.spec().get("parts", [])}
    assert used == SIGNALS_USED


def test_the_temperature_sensor_is_the_contracts():
    profile = Profile.load("temperature_sensor")
    assert (profile.protocol, profile.topic_template) == ("mqtt", "devices/{device_id}/telemetry")
    assert profile.interval_us == 5_000_000
    assert dict(profile.labels) == {"category": "environmental", "firmware": "1.2.0"}
    fields = {field.name: field.spec() for field in profile.fields}
    assert fields == {
        "temperature": {"type": "diurnal", "baseline": 22.0, "amplitude": 5.0, "peak_hour": 14,
                        "noise_stddev": 0.3, "resolution": 0.01, "unit": "°C"},
        "humidity": {"type": "brownian", "start": 55.0, "drift": 0, "volatility": 0.5,
                     "mean_reversion": 0.1, "mean": 55.0, "min": 20.0, "max": 95.0,
                     "resolution": 0.1, "unit": "%"},
        "battery": {"type": "brownian", "start": 100.0, "drift": -0.001, "volatility": 0,
                    "mean_reversion": 0, "mean": 0, "min": 0, "max": 100, "resolution": 0.001,
                    "unit": "%"},
    }


@pytest.mark.parametrize("name", Profile.names())
def test_a_bundled_profile_gives_plausible_values_for_a_day(name):
    import numpy as np

    from iotsim.signals.base import Site, Steps
    from tests.signal_rig import START_US, site

    profile = Profile.load(name)
    ticks = min(86_400_000_000 // profile.interval_us, 5000)
    keys = site(["a", "b", "c"]).parents
    time_us = START_US + np.arange(ticks)[:, None] * profile.interval_us + np.zeros(3, np.int64)
    values = {}
    for field in profile.fields:
        source = field.signal.block(Site(keys, field.name, profile.interval_us))
        found = np.array(np.broadcast_to(
            source.step(Steps(0, ticks, slice(0, 3), time_us, values, profile.interval_us)),
            (ticks, 3)))
        values[field.name] = field.resolution.many(found) if field.resolution else found
        if field.kind == "float":
            assert np.isfinite(found).all()
        if field.unit == "%":
            assert found.min() >= 0
            assert found.max() <= 100
        if field.unit in ("W", "A", "V", "kW", "bpm", "km/h", "µg/m³", "m³/h", "rpm"):
            assert found.min() >= 0


# -- in code and from YAML ------------------------------------------------------------------------


def test_code_and_yaml_make_the_same_profile():
    text = """
    type: pump
    protocol: mqtt
    topic_template: "{site}/{device_type}/{device_id}"
    telemetry_interval: 1h30m
    qos: 1
    backpressure: slow_down
    phase: 0s
    jitter: 50ms
    labels: {site: north}
    telemetry_fields:
      flow: {type: gaussian, mean: 12, stddev: 0.5, resolution: 0.1, unit: l/min, shared: site}
    """
    made = Profile(
        "pump", {"flow": {**FLOW, "resolution": 0.1, "unit": "l/min", "shared": "site"}},
        protocol="mqtt", topic_template="{site}/{device_type}/{device_id}",
        telemetry_interval=5400, qos=1, backpressure="slow_down", phase=0, jitter=0.05,
        labels={"site": "north"},
    )
    assert Profile.parse(text) == made
    assert (made.interval_us, made.phase_us, made.jitter_us) == (5_400_000_000, 0, 50_000)
    assert (made.fields[0].shared, made.fields[0].unit) == ("site", "l/min")
    assert Profile.from_spec(made.spec()) == made


def test_what_is_left_out_has_its_default():
    profile = pump()
    assert (profile.interval_us, profile.phase_us, profile.jitter_us) == (5_000_000, None, 0)
    assert profile.protocol == "console"
    assert profile.topic_template == "devices/{device_id}/telemetry"
    assert (profile.qos, profile.backpressure, dict(profile.labels)) == (None, None, {})


def test_profiles_are_equal_by_content():
    assert pump() == pump(telemetry_interval=5)
    assert pump() != pump(telemetry_interval=6)
    assert Profile("p", {"a": FLOW, "b": FLOW}) == Profile("p", {"b": FLOW, "a": FLOW})
    assert Profile("p", {"a": {**FLOW, "mean": 12.0}}) == Profile("p", {"a": FLOW})
    assert len({pump(), pump(), pump(qos=1)}) == 2
    assert pump() != "pump"


def test_a_profile_is_frozen_and_keeps_no_hand_on_what_it_was_given():
    given = {"flow": dict(FLOW)}
    labels = {"site": "north"}
    profile = Profile("pump", given, labels=labels)
    given["flow"]["mean"] = 99
    labels["site"] = "south"
    assert profile == pump(labels={"site": "north"})
    with pytest.raises(AttributeError, match="a Profile is frozen"):
        profile.qos = 1
    with pytest.raises(TypeError):
        profile.labels["site"] = "south"


def test_the_repr_is_one_line_and_the_html_is_escaped():
    profile = Profile("pump", {"<b>flow</b>": {**FLOW, "unit": "<i>"}})
    assert repr(profile) == "<Profile 'pump': 1 field every 5s (<b>flow</b>)>"
    shown = profile._repr_html_()
    assert "<b>flow" not in shown
    assert "<i>" not in shown
    assert "gaussian(mean=12, stddev=0.5)" in shown
    many = Profile("pump", {f"f{i}": FLOW for i in range(500)})
    assert len(repr(many)) < 200
    assert len(many._repr_html_()) < 5000


def test_fields_stand_after_those_they_need():
    later = {"type": "depends_on", "of": {"b": 1}}
    profile = Profile("p", {"c": later, "a": FLOW, "b": {"type": "depends_on", "of": {"a": 2}}})
    assert [field.name for field in profile.fields] == ["a", "b", "c"]


def test_a_label_called_device_type_may_repeat_the_type():
    assert dict(pump(labels={"device_type": "pump"}).labels) == {}


def test_stddev_is_another_spelling_of_the_noise_of_a_day():
    law = {"type": "diurnal", "baseline": 1, "amplitude": 2}
    one, other = {**law, "stddev": 3}, {**law, "noise_stddev": 3}
    assert Profile("p", {"t": one}) == Profile("p", {"t": other})


def test_importing_profiles_does_not_import_pydantic_or_pandas():
    code = ("import sys, iotsim.profiles as p; "
            "print(sorted({'pydantic', 'pandas', 'pyarrow'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- YAML and its traps ---------------------------------------------------------------------------


def yaml_value(text):
    from iotsim.documents import parse

    return parse(f"x: {text}", "t.yaml").value["x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0), ("1E-4", 0.0001), ("+.5", 0.5), ("-5", -5), ("7", 7), ("0", 0),
        ("off", "off"), ("no", "no"), ("yes", "yes"), ("on", "on"), ("y", "y"),
        ("true", True), ("False", False), ("~", None), ("", None), ("null", None),
        ("12:30:45", "12:30:45"), ("2026-01-01", "2026-01-01"), ("1_000", "1_000"),
        ("0x1F", "0x1F"), ('"017"', "017"), ("'1e3'", "1e3"), ('"off"', "off"), ("'~'", "~"),
        ("1.2.0", "1.2.0"), ("99999999999999999999", 1e20), ("[off, 1e3]", ["off", 1000.0]),
        ("{on: off}", {"on": "off"}), ("|\n  12", "12"),
    ],
)
def test_plain_values_mean_what_yaml_1_2_says(text, value):
    found = yaml_value(text)
    assert (found, type(found)) == (value, type(value))


def test_off_is_a_state_and_needs_no_quotes():
    profile = Profile.parse("""
    type: lamp
    telemetry_fields:
      state: {type: markov, states: [on, off], transition_matrix: [[0.9, 0.1], [0.1, 0.9]]}
    """)
    assert profile.fields[0].signal.categories == ("on", "off")
    assert Profile.parse(profile.to_yaml()) == profile


@pytest.mark.parametrize(
    "value",
    ["1e3", "017", "off", "~", "2026-01-01", "1.2", "true", "a: b", "ü", "12:30:45", "1_000", "",
     " x", "#", "line\nbreak", "é\u2028x", "-", "[", "- a", "!x", "&x", "*x", "\t", "0x1F", ".nan"],
)
def test_text_survives_to_yaml_whatever_it_looks_like(value):
    profile = Profile("p", {"t": {"type": "static", "value": value}})
    assert Profile.parse(profile.to_yaml()) == profile


def test_static_null_is_kept():
    text = "type: p\ntelemetry_fields:\n  t: {type: static, value: null}\n"
    profile = Profile.parse(text)
    assert profile.fields[0].kind == "json"
    assert Profile.parse(profile.to_yaml()) == profile
    assert profile.spec()["telemetry_fields"]["t"] == {"type": "static", "value": None}


WRONG_YAML = [
    ("", "t.yaml: this is not a profile. It needs at least the keys type and telemetry_fields."),
    ("- a\n- b", "t.yaml: this is not a profile."),
    ("secret: 1", "t.yaml: this is not a profile."),
    ("a: [1, 2", "t.yaml:2: this is not YAML; look at the indentation"),
    ("type: p\n\ttab: 1", "t.yaml:2: this is not YAML"),
    ("type: p\ntype: q", "t.yaml:2: this key stands here twice."),
    ("type: p\ntelemetry_fields:\n  a: {type: static,\n   value: 1, value: 2}",
     "t.yaml:4: this key stands here twice."),
    ("type: &a p\nlabels: *a", "t.yaml:1: anchors and aliases (& and *) are not read."),
    ("a: *b", "t.yaml:1: anchors and aliases"),
    ("type: !!python/object/apply:os.system ['id']", "t.yaml:1: tags (!) are not read."),
    ("type: !!str p", "t.yaml:1: tags (!) are not read."),
    ("? [a, b]\n: 1", "t.yaml:1: a key must be plain text."),
    ("type: p\n---\ntype: q", "t.yaml:2: a second document starts here."),
    ("type: p\nn: 017", "t.yaml:2: a number with leading zeros is octal to some"),
    ("[" * 500, "t.yaml:1: "),
    ("a: " + "[" * 30 + "]" * 30, "t.yaml:1: the document is too large or too deep"),
    ("[" + "1," * 120_000 + "]", "t.yaml:1: the document is too large or too deep"),
    ("x" * 1_000_001, "t.yaml: the text is over 1 MB"),
    ("a: \x07", "t.yaml"),
    ("%YAML 1.1\n%TAG ! tag:x,2000:\n---\n!foo a: 1", "t.yaml:4: "),
]


@pytest.mark.parametrize(("text", "says"), WRONG_YAML, ids=[says[:60] for _, says in WRONG_YAML])
def test_a_document_that_is_no_profile_is_one_line(text, says):
    with pytest.raises(ProfileError) as caught:
        Profile.parse(text, name="t.yaml")
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_a_bomb_of_aliases_is_refused_at_its_first_anchor():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(ProfileError, match=r"t\.yaml:1: anchors"):
        Profile.parse("\n".join(lines), name="t.yaml")


# -- what is wrong, and where ----------------------------------------------------------------------

HEAD = "type: pump\ntelemetry_fields:\n  flow:\n    type: gaussian\n    mean: 12\n"
FULL = HEAD + "    stddev: 1\n"

WRONG_PROFILE = [
    (HEAD + "    stddev: -1\n",
     "pump.yaml:6: field 'flow': stddev=-1 is out of range. Give a finite number, at least 0."),
    (HEAD + "    stddev: .nan\n", "pump.yaml:6: field 'flow': stddev=nan is not finite."),
    (HEAD + "    stddev: 1e400\n", "pump.yaml:6: field 'flow': stddev=inf is not finite."),
    (HEAD + "    stddev: one\n", "pump.yaml:6: field 'flow': stddev='one' is not a number."),
    (HEAD + "    stddev:\n", "pump.yaml:6: field 'flow': stddev=None is not a number."),
    (HEAD + "    std: 1\n", "pump.yaml:6: field 'flow': no parameter of 'gaussian' called 'std'."),
    (HEAD, "pump.yaml:4: field 'flow': type='gaussian' lacks stddev."),
    (FULL + "    resolution: 0.3\n",
     "pump.yaml:7: field 'flow': resolution=0.3 does not divide 1."),
    (FULL + "    resolution: 0\n", "pump.yaml:7: field 'flow': resolution=0 is out of range."),
    (FULL + "    unit: 5\n", "pump.yaml:7: field 'flow': unit=5 is not text."),
    (FULL + "    shared: [a]\n", "pump.yaml:7: field 'flow': shared=['a'] is not text."),
    (FULL.replace("gaussian", "gausian"), "pump.yaml:4: field 'flow': no signal called 'gausian'. "
                                          "Did you mean 'gaussian'?"),
    (FULL.replace("type: gaussian", "kind: gaussian"),
     "pump.yaml:3: field 'flow': type=None is not the name of a signal."),
    (FULL.replace("type: gaussian", "type: [1]"), "pump.yaml:4: field 'flow': type=[1] is not"),
    (FULL + "telemetry_interval: 0s\n", "pump.yaml:7: telemetry_interval='0s' is zero."),
    (FULL + "telemetry_interval: -1s\n", "pump.yaml:7: telemetry_interval='-1s' is negative."),
    (FULL + "telemetry_interval: soon\n", "pump.yaml:7: telemetry_interval='soon' is not a dur"),
    (FULL + "telemetry_interval: .inf\n", "pump.yaml:7: telemetry_interval=inf is not finite."),
    (FULL + "telemetry_interval:\n", "pump.yaml:7: telemetry_interval=None is not a duration."),
    (FULL + "interval: 5s\n", "pump.yaml:7: no profile key called 'interval'."),
    (FULL + "phase: 5s\n",
     "pump.yaml:7: phase='5000000us' is not shorter than telemetry_interval."),
    (FULL + "jitter: 1m\n", "pump.yaml:7: jitter='60000000us' is not shorter than"),
    (FULL + "jitter: -1s\n", "pump.yaml:7: jitter='-1s' is negative."),
    (FULL + "qos: 3\n", "pump.yaml:7: qos=3 is not one of the choices. Give 0, 1 or 2."),
    (FULL + "qos: true\n", "pump.yaml:7: qos=True is not one of the choices."),
    (FULL + "protocol: smoke\n", "pump.yaml:7: protocol='smoke' is not one of the choices. Give "),
    (FULL + "backpressure: panic\n",
     "pump.yaml:7: backpressure='panic' is not one of the choices."),
    (FULL + "labels: {firmware: 1.2}\n", "pump.yaml:7: firmware=1.2 is not text. Labels are text: "
                                         "put quotes around it."),
    (FULL + "labels: north\n", "pump.yaml:7: labels='north' is not a mapping."),
    (FULL + "labels: {time: x}\n",
     "pump.yaml:7: label='time' is a column that iotsim makes itself."),
    (FULL + "labels: {flow: x}\n", "pump.yaml:3: field='flow' is a label as well, and both"),
    (FULL + "labels: {'': x}\n", "pump.yaml:7: label='' cannot be a name."),
    (FULL + "labels: {device_type: lock}\n", "pump.yaml:7: device_type='lock' contradicts type="),
    (FULL + 'labels: {a: "x\\ny"}\n', "pump.yaml:7: a='x\\ny' cannot be the value of a label."),
    (FULL + "topic_template: a/#\n", "pump.yaml:7: topic_template='a/#' has a wildcard."),
    (FULL + "topic_template: ''\n", "pump.yaml:7: topic_template='' is empty or over 1,024 bytes."),
    (FULL + "topic_template: '{device_id'\n", "pump.yaml:7: topic_template='{device_id' has a"),
    (FULL + "topic_template: 5\n", "pump.yaml:7: topic_template=5 is not text."),
    (FULL + 'topic_template: "a\\0b"\n', "pump.yaml:7: topic_template='a\\x00b' has a control"),
    (FULL.replace("pump", "a b", 1), "pump.yaml:1: type='a b' cannot be the type of a device."),
    (FULL.replace("pump", "a/b", 1), "pump.yaml:1: type='a/b' cannot be the type of a device."),
    (FULL.replace("pump", "7", 1), "pump.yaml:1: type=7 is not text."),
    (FULL.replace("pump", "''", 1), "pump.yaml:1: type='' cannot be the type of a device."),
    (FULL.replace("flow", "seq"), "pump.yaml:3: field='seq' is a column that iotsim makes itself."),
    (FULL.replace("flow", "withheld"), "pump.yaml:3: field='withheld' is a column that iotsim"),
    (FULL.replace("flow", "''"), "pump.yaml:3: field='' cannot be a name."),
    (FULL.replace("flow", "x" * 129), "pump.yaml:3: field='xxx"),
    (FULL.replace("flow", '"a\\nb"'), "pump.yaml:3: field='a\\nb' cannot be a name."),
    (FULL + "  true_flow: {type: static, value: 1}\n",
     "pump.yaml:7: field='true_flow' is the column of the truth of 'flow'."),
    ("type: pump\ntelemetry_fields: {}\n", "pump.yaml:2: telemetry_fields={} is empty."),
    ("type: pump\ntelemetry_fields: [a]\n",
     "pump.yaml:2: telemetry_fields=['a'] is not a mapping."),
    ("type: pump\ntelemetry_fields:\n  flow: 7\n", "pump.yaml:3: field 'flow' is 7. Give a map"),
    ("type: pump\ntelemetry_fields:\n  flow:\n", "pump.yaml:3: field 'flow' is None."),
    (FULL + "  rest:\n    type: depends_on\n    of: {floww: 1}\n",
     "pump.yaml:7: field 'rest': no field called 'floww'. Did you mean 'flow'?"),
    (FULL + "  a: {type: depends_on, of: {b: 1}}\n  b: {type: depends_on, expression: a + flow}\n",
     "pump.yaml:"),
    (FULL + "  a: {type: depends_on, of: {a: 1}}\n",
     "pump.yaml:7: fields depend on each other in a circle: a → a. Break it."),
    (FULL + "  s: {type: static, value: up}\n  a: {type: depends_on, of: {s: 1}}\n",
     "pump.yaml:8: field 'a': 's' is text, not a number. Depend on numbers."),
    (FULL + "  a:\n    type: depends_on\n    expression: __import__('os')\n",
     "pump.yaml:9: field 'a': expression="),
    (FULL + "  a:\n    type: markov\n    states: [x, y]\n    transition_matrix:\n"
            "      - [0.5, 0.4]\n      - [0, 1]\n",
     "pump.yaml:11: field 'a': transition_matrix[0]=[0.5, 0.4] sums to 0.9, not to 1."),
    (FULL + "  a:\n    type: markov\n    states: [x, true]\n    transition_matrix: [[1]]\n",
     "pump.yaml:9: field 'a': states=True is not text. Put quotes around it."),
    (FULL + "  a:\n    type: markov\n    states: [x]\n    transition_matrix: [[1]]\n    per: 1us\n",
     "pump.yaml:11: field 'a': per='1us' is too short for the interval."),
    (FULL + "  a:\n    type: composite\n    parts:\n      - {type: constant, value: 1}\n"
            "      - type: gaussian\n        mean: 0\n        stddev: -2\n",
     "pump.yaml:13: field 'a': parts[1].stddev=-2 is out of range."),
    (FULL + "  a: {type: static, value: up, resolution: 1}\n",
     "pump.yaml:7: field 'a': resolution=1 makes no sense for values of kind text."),
    (FULL + "  a: {type: playback, path: x.csv, column: a}\n", "pump.yaml:7: field 'a': path="),
]


@pytest.mark.parametrize(("text", "says"), WRONG_PROFILE,
                         ids=[says[:70] for _, says in WRONG_PROFILE])
def test_a_wrong_profile_names_file_line_field_and_what_is_allowed(text, says):
    with pytest.raises(ProfileError) as caught:
        Profile.parse(text, name="pump.yaml")
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_in_code_the_error_names_the_profile_and_the_field():
    fields = {"flow": {**FLOW, "stddev": -1}}
    with pytest.raises(ProfileError) as caught:
        Profile("pump", fields)
    assert str(caught.value).startswith("profile 'pump': field 'flow': stddev=-1 is out of range.")


@pytest.mark.parametrize("fields", [None, 3, [], "x", {}, {3: FLOW}, {"a": None}, {"": FLOW}])
def test_fields_in_code_that_are_none_are_one_line(fields):
    with pytest.raises(ProfileError):
        Profile("pump", fields)


# -- files -----------------------------------------------------------------------------------------


def test_a_file_is_found_by_path_or_by_name(tmp_path, monkeypatch):
    path = tmp_path / "pump.yaml"
    path.write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    assert Profile.load(path) == Profile.load(str(path)) == Profile.load("pump.yaml") == pump()
    assert Profile.load("./pump.yaml") == pump()
    assert Profile.load("pump") != pump()  # a name is one that comes along, never a file here


def test_a_byte_order_mark_and_windows_line_ends_are_no_trouble(tmp_path):
    path = tmp_path / "pump.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert Profile.load(path) == pump()


@pytest.mark.parametrize("name", ["temprature_sensor", "", "pumps", "PUMP", "None"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(UnknownName, match="no profile called") as caught:
        Profile.load(name)
    assert "Known: air_quality, industrial_valve" in str(caught.value)
    if name == "temprature_sensor":
        assert "Did you mean 'temperature_sensor'?" in str(caught.value)


@pytest.mark.parametrize("source", [3, None, b"pump", ["pump"]])
def test_a_source_that_is_no_name_is_refused(source):
    with pytest.raises(BadValue, match="is neither a name nor a path"):
        Profile.load(source)


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/hosts", "/etc/shadow", "/etc", "/dev/zero",
                                  "/proc/self/environ", "/bin/ls", "../../../etc/passwd",
                                  "/nowhere/at/all.yaml", "a\0b.yaml", "/etc/debian_version"])
def test_a_path_never_shows_what_is_in_a_file(path):
    with pytest.raises(IotsimError) as caught:
        Profile.load(path if "/" in path else Path(path))
    text = str(caught.value)
    assert "\n" not in text
    file = Path(path)
    content = ""
    if "\0" not in path and file.is_file():
        content = file.read_bytes()[:2000].decode(errors="replace")
    for word in content.replace("\0", " ").replace(":", " ").split():
        if len(word) > 4 and word not in path:
            assert word not in text.replace(path, "")


SECRET = "s3cr3t-t0k3n"


@pytest.mark.parametrize(
    "content",
    [f"{SECRET}", f"{SECRET}: 1", f"a: {SECRET}\na: {SECRET}", f"- {SECRET}", f"a: !{SECRET} x",
     f"a: &{SECRET} x", f"a: *{SECRET}", f"'{SECRET}", f"[{SECRET}", f"{SECRET}:\n\t- x",
     f"type: {SECRET}", f"telemetry_fields: {SECRET}", f"a: 0{SECRET}", f"? {{{SECRET}: 1}}\n: 2",
     f"%{SECRET}", f"a: b\n---\n{SECRET}: 1"],
)
def test_no_error_about_a_foreign_file_repeats_any_of_it(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ProfileError) as caught:
        Profile.load(path)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_binary_and_a_huge_file_are_one_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ProfileError, match="is not UTF-8 text, so it is not a profile"):
        Profile.load(path)
    path.write_bytes(b"a" * 1_000_001)
    with pytest.raises(ProfileError, match="is over 1 MB"):
        Profile.load(path)


def test_a_played_file_is_found_beside_the_profile_and_its_hash_is_kept(tmp_path):
    (tmp_path / "flow.csv").write_text("flow\n1\n2\n")
    path = tmp_path / "pump.yaml"
    path.write_text("type: pump\ntelemetry_fields:\n"
                    "  flow: {type: playback, path: flow.csv, column: flow}\n"
                    "  sum:\n    type: composite\n    parts:\n"
                    "      - {type: playback, path: flow.csv, column: flow}\n")
    profile = Profile.load(path)
    spec = profile.spec()
    assert len(spec["telemetry_fields"]["flow"]["sha256"]) == 64
    assert Profile.from_spec(spec) == profile
    (tmp_path / "flow.csv").write_text("flow\n1\n3\n")
    with pytest.raises(ProfileError, match="its values have changed"):
        Profile.from_spec(spec)


# -- labels and topics ----------------------------------------------------------------------------


def test_labels_of_a_fleet_are_merged_and_checked():
    profile = Profile("pump", {"flow": {**FLOW, "shared": "site"}}, labels={"firmware": "1"},
                      topic_template="{site}/{device_id}")
    assert profile.labels_with({"site": "north", "firmware": "2"}) == {"site": "north",
                                                                       "firmware": "2"}
    with pytest.raises(UnknownName, match="no placeholder called 'site'"):
        profile.labels_with({})
    with pytest.raises(BadValue, match="label='flow' is a field of 'pump' as well"):
        profile.labels_with({"site": "x", "flow": "y"})
    with pytest.raises(BadValue, match="device_type='lock' is not the type"):
        profile.labels_with({"site": "x", "device_type": "lock"})
    with pytest.raises(BadValue, match="site='a/b' cannot be part of a topic"):
        profile.labels_with({"site": "a/b"})


def test_a_shared_field_without_its_label_names_the_group():
    profile = Profile("pump", {"flow": {**FLOW, "shared": "site"}})
    with pytest.raises(BadValue) as caught:
        profile.labels_with({}, group="pumps north")
    assert str(caught.value) == (
        "shared='site' is a label that the devices of 'pumps north' do not have (field 'flow'). "
        "Add them with labels={'site': …}."
    )


@pytest.mark.parametrize(("name", "value"), [("", "x"), ("a\n", "x"), ("a", 3), ("a", "x\n"),
                                             ("seq", "x"), ("a", "x" * 129), (3, "x"), (" a", "x")])
def test_a_label_that_cannot_be_is_refused(name, value):
    with pytest.raises(BadValue):
        pump().labels_with({name: value})


@pytest.mark.parametrize("value", ["a/b", "+", "#", "", "x\ny", "\u202e"])
def test_nothing_that_is_filled_in_can_change_the_levels_of_a_topic(value):
    with pytest.raises(BadValue, match="cannot be part of a topic"):
        topic("{device_id}/x", value, "pump", {})


def test_a_topic_is_filled_in_once():
    assert topic("{a}/{device_id}", "d", "t", {"a": "{device_id}"}) == "{device_id}/d"
    assert check_topic("{x}/y") == "{x}/y"  # labels may come later
    with pytest.raises(UnknownName, match="topic_template: no placeholder called 'sit'"):
        check_topic("{sit}/y", {"site": "a"})


@pytest.mark.parametrize("template", ["a/{}", "{device_id!r}", "{device_id.x}", "{0}", "{a:>5}"])
def test_a_placeholder_is_a_name_and_no_format(template):
    with pytest.raises(UnknownName):
        check_topic(template, {"a": "b"})


def test_a_duration_in_a_profile_is_any_that_units_read():
    from datetime import timedelta

    for minute in ("1m", 60, 60.0, timedelta(minutes=1), "0.5m30s"):
        assert pump(telemetry_interval=minute).interval_us == duration_us("1m")


# -- found from a wheel as well --------------------------------------------------------------------


def test_profiles_are_found_inside_the_package_where_a_wheel_puts_them(tmp_path):
    import shutil

    import iotsim

    package = Path(iotsim.__file__).parent
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, tmp_path / "iotsim", ignore=skip)
    shutil.copytree(package.parent / "profiles", tmp_path / "iotsim" / "_profiles")
    code = ("from iotsim.profiles import Profile; import iotsim; print(iotsim.__file__); "
            "print(len(Profile.names()), Profile.load('pump').type)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, check=True)
    where, found = done.stdout.split("\n")[:2]
    assert where.startswith(str(tmp_path))
    assert found == "8 pump"


# -- anything at all ----

BUNDLED_TEXTS = [path.read_text() for path in sorted(
    (Path(__file__).parent.parent / "profiles").glob("*.yaml"))]
SCRAPS = ["[", "]", "{", "}", ":", "-", "null", "~", "1e3", "-1", ".nan", "true", "[1, 2]",
          "{a: b}", "''", '"', "#", "&a", "*a", "!x", "\n", "  ", "\t", "off",
          "9" * 400, "type: x", "\u2028"]


def _load(value):
    text = ""
    try:
        Profile.parse(value) if isinstance(value, str) else Profile.from_spec(value)
    except IotsimError as error:
        text = str(error)
    assert text.isprintable(), value
    assert len(text) < 1500, value


@settings(max_examples=80, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])
@given(text=st.sampled_from(BUNDLED_TEXTS), data=st.data())
def test_a_profile_with_anything_written_anywhere_is_a_profile_or_one_line(text, data):
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        gone = data.draw(st.sampled_from([0, 0, 1, 5, 30]))
        text = text[:at] + data.draw(st.sampled_from(SCRAPS)) + text[at + gone:]
    _load(text)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
              st.sampled_from(["type", "gaussian", "a", "5s", "Europe/Rome"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3),
                            st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
ODD = [None, True, -1, 0, 10**400, 1e300, float("nan"), float("-inf"), "", "a", "1", "\n", "\ud800",
       "\0", "../x", [], [[]], [None], [1, 2], {}, {"type": "gaussian"}, {"": []}, ["a", "b"],
       [{"type": "composite"}], [[1, 0], [0, 1]], ["a"] * 1000, "x" * 100_000]


@pytest.mark.parametrize("name", SIGNALS)
def test_anything_odd_in_any_parameter_is_a_profile_or_one_line(name):
    kind, parameters = SIGNALS[name]
    known_ones = build(kind, parameters).spec() | parameters
    for key in (*known_ones, "resolution", "unit", "shared", "timezone", "per", "of", "op"):
        for odd in ODD:
            field = {"type": kind, **parameters, key: odd}
            _load({"type": "p", "telemetry_fields": {"a": field, "x": FLOW, "y": FLOW}})


@settings(max_examples=80, deadline=None, derandomize=True)
@given(wrong=st.dictionaries(
    st.sampled_from(["type", "telemetry_fields", "telemetry_interval", "labels", "protocol", "qos",
                     "topic_template", "backpressure", "phase", "jitter"]), JSON, min_size=1))
def test_any_json_under_any_key_is_a_profile_or_one_line(wrong):
    _load({"type": "p", "telemetry_fields": {"a": FLOW}, **wrong})
