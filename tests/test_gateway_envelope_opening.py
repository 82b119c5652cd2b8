"""Envelopes read back: what was received beside what was sent, and what could not be believed."""

import asyncio
import base64
import json
import math
import traceback
from dataclasses import replace
from uuid import UUID

import nats
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsim import Scenario
from iotsim.errors import BadValue
from iotsim.gateway.envelope import NO_NUMBER, EnvelopeEncoder
from iotsim.gateway.opening import frame_of, opened
from iotsim.gateway.record import sensor_id
from iotsim.gateway.spec import Gateway
from tests.publishing import pumping
from tests.servers import nats as servers

nats_server = servers.nats_server  # the fixture
KEY = bytes(range(65, 97))


def gateways(count=3):
    gateway = (Gateway("gw-{n}", factory_key="factory-secret", every="1s", count=count, seed=42)
               .sensor("temperature", algorithm="sine_wave").sensor("humidity")
               .sensor("temperature", "outside", algorithm="constant", value=-2.5))
    records = {
        record.name: replace(
            record, gateway_id=str(UUID(int=n + 1)), tenant_id=str(UUID(int=99)),
            cert_pem="cert", aes_key=bytes([n]) + KEY[1:], status="online")
        for n, record in enumerate(gateway.records())
    }
    return gateway, records


def sent(result, encoder):
    """(messages, what no message could carry) of what left in a run, in blocks as it came."""
    pairs, missing = [], {}
    for readings in result.capture.chunks():
        messages = encoder.encode(readings.sent())
        pairs += zip(messages.ids, messages.payloads, strict=True)
        for reason, count in messages.missing.items():
            missing[reason] = missing.get(reason, 0) + count
    return pairs, missing


def one_envelope(**changes):
    _, records = gateways(1)
    encoder = EnvelopeEncoder("run", records)
    result = gateways(1)[0].generate("1s")
    pairs, _ = sent(result, encoder)
    ident, payload = next(pair for pair in pairs if ":temperature" in pair[0])
    found = json.loads(payload)
    for name, value in changes.items():
        found[name] = value
    return ident, json.dumps({k: v for k, v in found.items() if v is not ...}).encode(), records


# -- joined with what was sent --------------------------------------------------------------------


def test_what_was_received_joins_with_what_was_sent():
    gateway, records = gateways()
    result = gateway.generate("30s")
    pairs, missing = sent(result, EnvelopeEncoder(result.run_id, records))
    table, frame = frame_of(pairs, records), result.frame()
    assert not missing
    assert list(table.columns) == ["time", "device_id", "device_type", "seq", "sub", "copy",
                                   "value", "unit", "gateway_id", "reason"]
    assert len(table) == len(frame) == 3 * 3 * 30
    assert (table["reason"] == "").all()
    both = frame.merge(table, on=["device_id", "seq"], suffixes=("", "_received"))
    assert len(both) == len(frame)
    assert (both["value"] == both["value_received"]).all()
    assert (both["time"] == both["time_received"]).all()
    assert (both["device_type"].astype(str) == both["device_type_received"].astype(str)).all()
    assert table["time"].dtype == frame["time"].dtype
    assert table["seq"].dtype == frame["seq"].dtype
    assert set(table["unit"]) == {"°C", "%"}
    assert table["time"].is_monotonic_increasing


def test_under_faults_every_reading_is_back_or_accounted_for_and_no_key_repeats():
    gateway, records = gateways()
    result = (Scenario("rough", gateway.fleet())
              .at("2s").inject("clock_drift", duration="12s", drift_rate_ms_per_sec=-1000)
              .at("5s").inject("rate", where="device_type=humidity", duration="5s", factor=3)
              .at("5s").inject("duplicate", duration="10s", probability=0.5)
              .at("8s").inject("reorder", duration="8s", probability=0.5)
              .at("10s").inject("data_corruption", where="sensor=outside", duration="15s",
                                corruption_rate=0.7)
              .lasting("30s").generate())
    pairs, missing = sent(result, EnvelopeEncoder(result.run_id, records))
    table = frame_of(pairs, records)
    assert (table["reason"] == "").all()
    frame = result.frame(wire=True)
    frame = frame[frame["withheld"].astype(str) == ""]
    lost = frame["value"].isna()
    assert missing == {NO_NUMBER: int(lost.sum())}
    assert lost.any()
    assert (frame["copy"] > 0).any()
    assert (frame["sub"] > 0).any()
    who = ["device_id", "seq", "sub", "copy"]
    both = frame[~lost].merge(table, on=who, suffixes=("", "_received"))
    assert len(both) == len(table) == len(frame) - lost.sum()
    assert (both["value"] == both["value_received"]).all()
    late_us = (both["time_received"] - both["time"]) // pd.Timedelta(microseconds=1)
    assert late_us.between(0, 200).all()
    assert (late_us > 0).any()  # where the clock stood still
    key = ["device_id", "time"]
    assert not table[table["copy"] == 0].duplicated(key).any()
    copies = table[table["copy"] > 0].merge(table[table["copy"] == 0],
                                            on=["device_id", "seq", "sub"])
    assert len(copies)
    assert (copies["time_x"] == copies["time_y"]).all()
    by_id = dict(pairs)
    for ident, payload in pairs:
        if ident.endswith("/1"):
            assert by_id[ident[:-1] + "0"] == payload


def test_where_no_message_id_came_the_record_says_whose_sensor_it_is():
    ident, payload, records = one_envelope()
    table = frame_of([("", payload), (ident, payload)], records)
    assert list(table["device_id"]) == ["gw-1:temperature"] * 2
    assert sorted(table["seq"].isna()) == [False, True]
    assert (table["reason"] == "").all()


def test_nothing_received_is_an_empty_table_of_the_same_columns():
    ident, payload, records = one_envelope()
    empty, full = frame_of([], records.values()), frame_of([(ident, payload)], records.values())
    assert not len(empty)
    assert list(empty.columns) == list(full.columns)
    assert empty["time"].dtype == full["time"].dtype


@pytest.mark.broker
def test_envelopes_of_a_run_arrive_at_a_real_server_once_each(nats_server):
    server = nats_server(jetstream=True)
    server.add_stream("TELEMETRY", ["telemetry.data.>"])
    gateway, records = gateways(20)
    result = gateway.generate("10s")
    encoder = EnvelopeEncoder(result.run_id, records)
    blocks = [encoder.encode(readings) for readings in result.capture.chunks()]

    async def work():
        async with pumping(server.jetstream_url) as pump:
            for messages in [*blocks, *blocks]:  # the second time as after a lost verdict
                await pump.offer(0, messages)
            assert await pump.drain(20), (pump.snapshot(), pump.errors)
            return pump.snapshot()

    async def kept():
        client = await nats.connect(server.url)
        try:
            stream = client.jetstream()
            found = await stream.stream_info("TELEMETRY")
            reader = await stream.pull_subscribe("telemetry.data.*.*", stream="TELEMETRY")
            taken = []
            while len(taken) < found.state.messages:
                taken += await reader.fetch(200, timeout=10)
            return taken
        finally:
            await client.close()

    account, taken = asyncio.run(work()), asyncio.run(kept())
    assert account.acknowledged == 2 * len(taken) == 2 * 20 * 3 * 10
    assert all(len(one.subject.split(".")) == 4 for one in taken)
    by_subject = {f"telemetry.data.{one.tenant_id}.{one.gateway_id}" for one in records.values()}
    assert {one.subject for one in taken} == by_subject
    table = frame_of([(one.headers["Nats-Msg-Id"], one.data) for one in taken], records)
    assert (table["reason"] == "").all()
    both = result.frame().merge(table, on=["device_id", "seq"], suffixes=("", "_received"))
    assert len(both) == len(table) == 600
    assert (both["value"] == both["value_received"]).all()


# -- what cannot be opened ------------------------------------------------------------------------


def flipped(text):
    raw = bytearray(base64.b64decode(text))
    raw[0] ^= 1
    return base64.b64encode(bytes(raw)).decode()


TAMPERED = {
    "no key": ({"gatewayId": str(UUID(int=77))}, "no key of its gateway is known"),
    "another sensor": ({"sensorId": str(UUID(int=78))}, "its message id names another sensor"),
    "hex digits": ({"iv": "00" * 12}, "iv has 18 bytes, not 12"),
    "short nonce": ({"iv": "AAAA"}, "iv has 3 bytes, not 12"),
    "no padding": ({"authTag": "A" * 22}, "authTag is no padded base64"),
    "url-safe base64": ({"iv": "-_" * 8}, "iv is no padded base64"),
    "empty": ({"encryptedData": ""}, "encryptedData is missing, empty or no text"),
    "absent": ({"sensorType": ...}, "sensorType is missing, empty or no text"),
    "number": ({"timestamp": 5}, "timestamp is missing, empty or no text"),
    "version 1.0": ({"keyVersion": 1.0}, "keyVersion is missing or no integer"),
    "version true": ({"keyVersion": True}, "keyVersion is missing or no integer"),
    "month 13": ({"timestamp": "2026-13-01T00:00:00Z"}, "timestamp is no RFC 3339"),
    "no zone": ({"timestamp": "2026-01-01T00:00:00"}, "timestamp is no RFC 3339"),
    "blank": ({"timestamp": "2026-01-01 00:00:00Z"}, "timestamp is no RFC 3339"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_envelope_is_kept_with_a_reason(case):
    changes, reason = TAMPERED[case]
    ident, payload, records = one_envelope(**changes)
    table = frame_of([(ident, payload)], records)
    assert list(table["reason"]) == [reason]
    assert list(table["device_id"]) == ["gw-1:temperature"]
    assert list(table["seq"]) == [0]


@pytest.mark.parametrize("name", ["encryptedData", "iv", "authTag"])
def test_one_flipped_bit_is_found(name):
    ident, payload, records = one_envelope()
    found = json.loads(payload)
    found[name] = flipped(found[name])
    changed = json.dumps(found).encode()
    table = frame_of([(ident, payload), (ident, changed)], records)
    assert sorted(table["reason"]) == [
        "", "its tag does not fit: it was changed, or has another key"]
    assert table["value"].isna().sum() == 1
    with pytest.raises(BadValue, match="its tag does not fit"):
        opened(changed, records["gw-1"].aes_key)


def test_another_gateways_key_opens_nothing_and_a_foreign_id_is_not_believed():
    ident, payload, records = one_envelope()
    wrong = {"gw-1": replace(records["gw-1"], aes_key=b"w" * 32)}
    assert "tag does not fit" in frame_of([(ident, payload)], wrong)["reason"].iloc[0]
    table = frame_of([("run/gw-2:temperature/0/0", payload)], records)
    assert list(table["reason"]) == ["its message id names another gateway"]


@given(st.one_of(st.binary(max_size=80), st.text(max_size=40).map(str.encode),
                 st.just(b"[" * 100_000), st.just(b'{"gatewayId":"\\ud800"}')))
def test_any_bytes_are_a_row_never_an_exception(payload):
    _, records = gateways(1)
    table = frame_of([("run/gw-1:temperature/5/0", payload), ("x", payload)], records)
    assert len(table) == 2
    assert (table["reason"] != "").all()
    with pytest.raises(BadValue):
        opened(payload, KEY)


@pytest.mark.parametrize("ident", ["", "x", "run/gw-1:temperature/a/0", "run/gw-1:temperature/1/b",
                                   "run/gw-1:temperature/1.2.3/0", "run/x/1/0.5", "/" * 50,
                                   "run/gw-1:temperature/" + "9" * 40 + "/0"])
def test_an_odd_message_id_is_no_identity(ident):
    _, payload, records = one_envelope()
    table = frame_of([(ident, payload)], records)
    assert list(table["reason"]) == [""]
    assert list(table["device_id"]) == ["gw-1:temperature"]
    assert table["seq"].isna().all()


# -- one envelope ---------------------------------------------------------------------------------


def test_an_envelope_of_the_reference_opens_too():
    # Go in a zone of its own: nine digits less the trailing zeros, an offset.
    _, payload, records = one_envelope(timestamp="2026-01-01T01:00:00.12345678+01:00")
    found = opened(payload, records["gw-1"].aes_key)
    assert found.time_us == 1_767_225_600_123_456
    assert found.gateway_id == records["gw-1"].gateway_id
    assert found.sensor_id == sensor_id(found.gateway_id, "temperature")
    assert (found.sensor_type, found.key_version, found.unit) == ("temperature", 1, "°C")
    assert math.isfinite(found.value)


@pytest.mark.parametrize("plain", [b"", b"null", b"[1]", b'{"value":1}', b'{"value":"1","unit":""}',
                                   b'{"value":true,"unit":""}', b'{"value":NaN,"unit":""}'])
def test_content_that_is_no_reading_is_refused(plain):
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = b"n" * 12
    whole = AESGCM(KEY).encrypt(nonce, plain + b" " * 8, None)
    blobs = {"encryptedData": whole[:-16], "iv": nonce, "authTag": whole[-16:]}
    _, payload, _ = one_envelope(**{k: base64.b64encode(v).decode() for k, v in blobs.items()})
    with pytest.raises(BadValue, match="its content is no reading"):
        opened(payload, KEY)


def test_errors_hold_neither_the_key_nor_what_was_inside():
    ident, payload, records = one_envelope(authTag=base64.b64encode(b"x" * 16).decode())
    for call in (lambda: opened(payload, KEY), lambda: opened(payload, KEY[:20]),
                 lambda: frame_of([(ident, payload)],
                                  {"gw-1": replace(records["gw-1"], aes_key=KEY[:20])})):
        with pytest.raises(BadValue) as caught:
            call()
        known = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        shown = repr(caught.value) + "".join(
            str(frame.locals) for frame in known.stack if frame.filename != __file__)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        for secret in (repr(KEY[:20])[2:-1], KEY.hex(), "factory-secret"):
            assert secret not in shown


def test_a_table_shows_no_key():
    ident, payload, records = one_envelope()
    table = frame_of([(ident, payload)], records)
    text = table.to_csv() + repr(records)
    assert repr(KEY[1:])[2:-1] not in text
    assert np.isfinite(table["value"]).all()
