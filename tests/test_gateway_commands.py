"""A platform's command as text: what is read, what it changes, how the answer looks."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iotsim.errors import BadValue
from iotsim.gateway.commands import (
    BYTES_MAX,
    FREQUENCY_MS_MAX,
    Change,
    Command,
    answer,
    answer_id,
    instant_us,
    plan,
    read,
)

ID = "0b0c7f3a-6f0e-4d3a-9a57-3f6f6a0a2b11"
AT = "2026-01-01T00:00:00.000Z"
AT_US = 1_767_225_600_000_000
SNAKE = {"command_id": ID, "type": "config_update", "payload": {"send_frequency_ms": 100},
         "issued_at": AT}
CAMEL = {"commandId": ID, "type": "config_update", "payload": {"sendFrequencyMs": 100},
         "issuedAt": AT}


def body(**changes):
    said = {**SNAKE, **changes}
    return json.dumps({name: value for name, value in said.items() if value is not ...}).encode()


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [
    SNAKE, CAMEL, {**CAMEL, "issuedAt": None, "issued_at": AT},
    {**SNAKE, "command_id": None, "commandId": ID}, {**SNAKE, "commandId": "another"},
    {**SNAKE, "later": {"x": [1]}, "issuedAt": 7},
], ids=["snake", "camel", "mixed", "null beside the other", "both", "unknown fields"])
def test_both_spellings_are_read_and_snake_case_holds_where_both_stand(said):
    command = read(json.dumps(said).encode())
    assert (command.id, command.kind, command.issued_us) == (ID, "config_update", AT_US)
    assert plan(command) == Change(frequency_ms=100)


@pytest.mark.parametrize("given_id", [ID, ID.upper(), "{" + ID + "}", "c-1", "ünïcode"])
def test_an_id_is_kept_as_it_was_given(given_id):
    command = read(body(command_id=given_id))
    assert command.id == given_id
    said = json.loads(answer(command, "ack", AT_US).wire)
    assert (said["command_id"], said["commandId"]) == (given_id, given_id)


UNREADABLE = {
    "no JSON": b"{", "nothing": b"", "text": b"reboot", "an array": b"[]", "a string": b'"x"',
    "null": b"null", "trailing data": body() + b"{}", "a byte order mark": b"\xef\xbb\xbf" + body(),
    "no UTF-8": body().replace(b"config", b"conf\xff"), "NaN": b'{"command_id": NaN}',
    "Infinity": body().replace(b"100", b"Infinity"),
    "half a surrogate": body().replace(b"config", b"\\ud800"),
    "very deep": body().replace(b"100", b"[" * 20000 + b"]" * 20000),
    "huge": body(note="x" * BYTES_MAX),
    "a number of 5,000 digits": body().replace(b"100", b"9" * 5000),
    "no id": body(command_id=...), "an empty id": body(command_id=""),
    "a number for an id": body(command_id=7), "a long id": body(command_id="x" * 129),
    "an id with a line end": body(command_id="a\r\nPUB x 0"),
    "an id with NUL": body(command_id="\0"),
    "a number for a type": body(type=7), "an object for a type": body(type={}),
    "no time": body(issued_at=...), "a number for a time": body(issued_at=1767225600),
    "no zone": body(issued_at="2026-01-01T00:00:00"), "a date": body(issued_at="2026-01-01"),
    "a blank for a T": body(issued_at="2026-01-01 00:00:00Z"),
    "a 13th month": body(issued_at="2026-13-01T00:00:00Z"),
    "a 30th of February": body(issued_at="2026-02-30T00:00:00Z"),
    "an hour 24": body(issued_at="2026-01-01T24:00:00Z"),
    "a second 61": body(issued_at="2026-01-01T00:00:61Z"),
    "an offset of a day": body(issued_at="2026-01-01T00:00:00+24:00"),
    "other digits": body(issued_at="２026-01-01T00:00:00Z"),
    "a line end after it": body(issued_at=AT + "\n"),
    "week dates": body(issued_at="2026-W01-1T00:00:00Z"),
}


@pytest.mark.parametrize("raw", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_nobody_can_answer_is_refused_in_one_short_line(raw):
    with pytest.raises(BadValue) as error:
        read(raw)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


TIMES = {
    "2026-01-01T00:00:00Z": 0, "2026-01-01T00:00:00.001Z": 1000,
    "2026-01-01T00:00:00.123456789Z": 123456, "2026-01-01T01:00:00+01:00": 0,
    "2025-12-31T23:30:00-00:30": 0, "2026-01-01t00:00:00z": 0, "2025-12-31T23:59:60Z": 0,
}


@pytest.mark.parametrize("text", TIMES)
def test_every_form_of_rfc_3339_is_a_time(text):
    assert instant_us(text) == AT_US + TIMES[text]


@given(st.datetimes(), st.integers(-1439, 1439).map(lambda n: timezone(timedelta(minutes=n))))
def test_a_time_with_an_offset_is_the_same_instant(moment, zone):
    offset = zone.utcoffset(None)
    want = (moment - datetime(1970, 1, 1) - offset) // timedelta(microseconds=1)
    assert instant_us(moment.replace(tzinfo=zone).isoformat()) == want


def test_the_first_and_the_last_time_are_times():
    first, last = instant_us("0001-01-01T00:00:00+23:59"), instant_us("9999-12-31T23:59:60-23:59")
    assert first < 0 < last
    assert Command(ID, "x", first).expired(AT_US)
    assert not Command(ID, "x", last).expired(AT_US)


def test_of_a_key_that_stands_twice_the_last_one_holds():
    raw = body().replace(b'"send_frequency_ms": 100',
                         b'"send_frequency_ms": 0, "send_frequency_ms": 7')
    assert plan(read(raw)) == Change(frequency_ms=7)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8)
KEYS = st.sampled_from(["command_id", "commandId", "type", "payload", "issued_at", "issuedAt"])
INNER = st.dictionaries(
    st.sampled_from(["send_frequency_ms", "sendFrequencyMs", "status", "firmware_version",
                     "firmwareVersion"]), JSON)
KIND = st.sampled_from(["config_update", "firmware_push"])


@given(st.binary() | st.dictionaries(KEYS, JSON).map(lambda said: json.dumps(said).encode()))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
def test_whatever_comes_is_a_command_or_is_refused(raw):
    try:
        command = read(raw)
    except BadValue:
        return
    assert isinstance(plan(command), (Change, str))


@given(KIND, JSON | INNER)
def test_whatever_a_payload_is_there_is_a_valid_change_or_a_short_reason(kind, payload):
    try:
        command = read(body(type=kind, payload=payload))
    except BadValue:
        return  # NaN, half a surrogate
    found = plan(command)
    if isinstance(found, Change):
        assert found.frequency_ms is None or 0 < found.frequency_ms <= FREQUENCY_MS_MAX
        assert found.status in (None, "online", "paused", "offline")
        assert found.firmware is None or found.firmware
        assert type(found.frequency_ms) in (int, type(None))
    said = answer(command, "nack", AT_US, found if isinstance(found, str) else "")
    assert len(said.message) <= 200
    assert said.message.isprintable()


# -- what is to be done: the rows of contract A6 --------------------------------------------------

CONFIG_ROWS = {
    "no payload": (..., "invalid config payload: there is none"),
    "null": (None, Change()),
    "{}": ({}, Change()),
    "an array": ([], "invalid config payload: it must be an object"),
    "text": ("x", "invalid config payload: it must be an object"),
    "a frequency": ({"send_frequency_ms": 250}, Change(frequency_ms=250)),
    "a frequency in camelCase": ({"sendFrequencyMs": 250}, Change(frequency_ms=250)),
    "the least frequency": ({"send_frequency_ms": 1}, Change(frequency_ms=1)),
    "the greatest frequency": ({"send_frequency_ms": 86_400_000}, Change(frequency_ms=86_400_000)),
    "a frequency of null": ({"send_frequency_ms": None}, Change()),
    "0": ({"send_frequency_ms": 0}, "sendFrequencyMs must be > 0"),
    "a negative one": ({"send_frequency_ms": -1}, "sendFrequencyMs must be > 0"),
    "beyond a day": ({"send_frequency_ms": 86_400_001},
                     "sendFrequencyMs must be <= 86400000 (24 h)"),
    "what overflows the reference": ({"send_frequency_ms": 9_300_000_000_000},
                                     "sendFrequencyMs must be <= 86400000 (24 h)"),
    "beyond 64 bits": ({"send_frequency_ms": 10**30},
                       "sendFrequencyMs must be <= 86400000 (24 h)"),
    "a fraction": ({"send_frequency_ms": 1.5},
                   "invalid config payload: sendFrequencyMs must be a whole number"),
    "a float": ({"send_frequency_ms": 5000.0},
                "invalid config payload: sendFrequencyMs must be a whole number"),
    "digits as text": ({"send_frequency_ms": "5000"},
                       "invalid config payload: sendFrequencyMs must be a whole number"),
    "true": ({"send_frequency_ms": True},
             "invalid config payload: sendFrequencyMs must be a whole number"),
    "paused": ({"status": "paused"}, Change(status="paused")),
    "offline": ({"status": "offline"}, Change(status="offline")),
    "online": ({"status": "online"}, Change(status="online")),
    "suspended": ({"status": "suspended"}, Change(status="paused")),
    "SUSPENDED": ({"status": " SUSPENDED "}, Change(status="paused")),
    "active": ({"status": "Active"}, Change(status="online")),
    "resumed": ({"status": "resumed"}, Change(status="online")),
    "a status of null": ({"status": None}, Change()),
    "an unknown status": (
        {"status": "asleep"},
        "unknown status 'asleep': allowed are online (active, resumed, running), "
        "paused (suspended) and offline (stopped, inactive)"),
    "an empty status": (
        {"status": ""},
        "unknown status '': allowed are online (active, resumed, running), "
        "paused (suspended) and offline (stopped, inactive)"),
    "a number for a status": ({"status": 3}, "invalid config payload: status must be text"),
    "both": ({"send_frequency_ms": 9, "status": "paused"}, Change(9, "paused")),
    "a good one and a bad one": ({"send_frequency_ms": 9, "status": 3},
                                 "invalid config payload: status must be text"),
    "a bad one and a good one": ({"send_frequency_ms": 0, "status": "paused"},
                                 "sendFrequencyMs must be > 0"),
    "two bad ones": ({"send_frequency_ms": 0, "status": 3},
                     "sendFrequencyMs must be > 0; invalid config payload: status must be text"),
    "unknown fields": ({"colour": "red"}, Change()),
}


@pytest.mark.parametrize("row", CONFIG_ROWS)
def test_config_update(row):
    payload, want = CONFIG_ROWS[row]
    assert plan(read(body(payload=payload))) == want


FIRMWARE_ROWS = {
    "no payload": (..., "invalid firmware payload: there is none"),
    "null": (None, Change()),
    "{}": ({}, Change()),
    "an array": ([1], "invalid firmware payload: it must be an object"),
    "a version": ({"firmware_version": "2.0.0", "download_url": "http://x/"},
                  Change(firmware="2.0.0")),
    "a version in camelCase": ({"firmwareVersion": "2.0.0"}, Change(firmware="2.0.0")),
    "an empty version": ({"firmware_version": ""}, Change()),
    "a version of null": ({"firmware_version": None}, Change()),
    "a number": ({"firmware_version": 2}, "invalid firmware payload: firmwareVersion must be text"),
    "a long version": ({"firmware_version": "x" * 129},
                       "firmwareVersion must be up to 128 printable characters"),
    "a line end": ({"firmware_version": "2\n"},
                   "firmwareVersion must be up to 128 printable characters"),
}


@pytest.mark.parametrize("row", FIRMWARE_ROWS)
def test_firmware_push(row):
    payload, want = FIRMWARE_ROWS[row]
    assert plan(read(body(type="firmware_push", payload=payload))) == want


@pytest.mark.parametrize("kind", ["reboot", "", "CONFIG_UPDATE", None, ...])
def test_another_type_is_unknown(kind):
    assert plan(read(body(type=kind))) == "unknown command type"


@pytest.mark.parametrize(("age_us", "expired"), [
    (60_000_000, False), (60_000_001, True), (-3_600_000_000, False), (0, False)])
def test_a_command_is_fresh_for_exactly_60_seconds_and_in_the_future(age_us, expired):
    assert read(body()).expired(AT_US + age_us) is expired


# -- answers --------------------------------------------------------------------------------------


def test_an_answer_has_both_spellings_of_the_id_and_a_time_in_utc():
    command = read(body())
    assert json.loads(answer(command, "ack", AT_US + 1_234_567).wire) == {
        "command_id": ID, "commandId": ID, "status": "ack",
        "timestamp": "2026-01-01T00:00:01.234Z"}
    said = json.loads(answer(command, "nack", AT_US, "a\nb" + "x" * 1000).wire)
    assert said["message"] == "a b" + "x" * 196 + "…"
    moment = datetime.fromisoformat(said["timestamp"])
    assert moment == datetime(2026, 1, 1, tzinfo=UTC)


@given(st.text(min_size=1))
def test_the_message_id_of_an_answer_fits_a_header(ident):
    try:
        read(body(command_id=ident))
    except BadValue:
        return
    made = answer_id("gw", ident)
    assert made.isascii()
    assert made.isprintable()
    assert " " not in made
    assert made == answer_id("gw", ident) != answer_id("gx", ident)
