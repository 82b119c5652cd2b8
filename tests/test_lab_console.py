"""The lab's console: commands as the management API sends them, acks and telemetry as it reads."""

import asyncio
import base64
import itertools
import json
import os
import re
import uuid

import pandas as pd
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from iotsim.errors import BadValue, NoAnswer, UnknownName
from iotsim.lab.answers import acks_of
from iotsim.lab.console import gateways_of
from iotsim.lab.management import Register
from iotsim.lab.moments import instant_of
from iotsim.lab.telemetry import frame_of
from tests.servers.notip import client_context, connection, notip_lab, onboard

__all__ = ("notip_lab",)

NUMBERS = itertools.count()
NOW = "2026-01-01T00:00:00Z"
WAIT_S = 30


@pytest.fixture
def gateway(notip_lab):
    """A provisioned gateway; `.seal(...)` makes envelopes of it."""
    name = f"c-{next(NUMBERS)}"
    found = notip_lab.run(notip_lab.lab.register(name, "the key"))
    answer = notip_lab.run(onboard(notip_lab.lab, name, "the key"))
    return HandMade(found, base64.b64decode(answer.body["aesKey"]))


class HandMade:
    """A gateway made by hand, over the shared certificate."""

    def __init__(self, registered, key):
        self.id, self.tenant = registered.gateway_id, registered.tenant_id
        self.factory_id, self.key = registered.factory_id, key

    def seal(self, value=21.5, unit="°C", time=NOW, sensor=None, nonce=None, plain=None, **changes):
        plain = json.dumps({"value": value, "unit": unit}) if plain is None else plain
        nonce = nonce or os.urandom(12)
        sealed = AESGCM(self.key).encrypt(nonce, plain.encode(), None)
        return {"gatewayId": self.id, "sensorId": sensor or str(uuid.uuid4()),
                "sensorType": "temperature", "timestamp": time, "keyVersion": 1,
                "encryptedData": b64(sealed[:-16]), "iv": b64(nonce), "authTag": b64(sealed[-16:]),
                **changes}

    @property
    def subject(self):
        return f"telemetry.data.{self.tenant}.{self.id}"


def b64(data):
    return base64.b64encode(data).decode()


def with_simulator(notip_lab, work):
    """Run `await work(connection, streams)` on the lab's loop as CN=simulator."""
    async def main():
        async with connection(notip_lab.lab, client_context(notip_lab.lab)) as link:
            return await work(link, link.jetstream(timeout=20))

    return notip_lab.run(main())


def commands_of(notip_lab, gateway, *sends):
    """What the gateway receives when these are sent."""
    async def work(link, streams):
        sub = await streams.subscribe(f"command.gw.{gateway.tenant}.{gateway.id}",
                                      ordered_consumer=True)
        ids = [await send() for send in sends]
        got = [await sub.next_msg(WAIT_S) for _ in sends]
        await sub.unsubscribe()
        return ids, [message.data for message in got]

    return with_simulator(notip_lab, work)


def test_commands_are_spelled_as_the_management_api_does(notip_lab, gateway):
    console = notip_lab.lab.console
    ids, bodies = commands_of(
        notip_lab, gateway,
        lambda: console.config(gateway.id, send_frequency_ms=2000),
        lambda: console.config(gateway.factory_id, status="suspended"),
        lambda: console.config(gateway.id, send_frequency_ms=0, status="online"),
        lambda: console.firmware(gateway.id, "2.0.0", "https://example.org/fw.bin"),
        lambda: console.firmware(gateway.id, ""),
        lambda: console.config(gateway.id, send_frequency_ms=7, camel=True),
        lambda: console.firmware(gateway.id, "2", "https://x.y", camel=True),
        lambda: console.send(gateway.id, b"\xff{"),
    )
    assert ids.pop() == ""
    assert bodies.pop() == b"\xff{"
    assert all(str(uuid.UUID(one)) == one for one in ids)
    found = [json.loads(body) for body in bodies]
    assert [list(one) for one in found[:5]] == [["command_id", "type", "payload", "issued_at"]] * 5
    assert [list(one) for one in found[5:]] == [["commandId", "type", "payload", "issuedAt"]] * 2
    assert [one.get("command_id", one.get("commandId")) for one in found] == ids
    assert [(one["type"], one["payload"]) for one in found] == [
        ("config_update", {"send_frequency_ms": 2000}),
        ("config_update", {"status": "suspended"}),
        ("config_update", {"send_frequency_ms": 0, "status": "online"}),
        ("firmware_push", {"firmware_version": "2.0.0",
                           "download_url": "https://example.org/fw.bin"}),
        ("firmware_push", {"firmware_version": ""}),
        ("config_update", {"sendFrequencyMs": 7}),
        ("firmware_push", {"firmwareVersion": "2", "downloadUrl": "https://x.y"}),
    ]
    for one in found:
        issued = one.get("issued_at", one.get("issuedAt"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", issued)


def test_what_the_management_api_answers_400_to_is_an_error(notip_lab, gateway):
    console = notip_lab.lab.console
    with pytest.raises(BadValue, match="ask for nothing"):
        notip_lab.run(console.config(gateway.id))
    with pytest.raises(BadValue, match="is negative"):
        notip_lab.run(console.config(gateway.id, send_frequency_ms=-1))
    with pytest.raises(UnknownName, match="no gateway called 'nobody'"):
        notip_lab.run(console.config("nobody", status="paused"))


def answering(notip_lab, gateway, *bodies):
    """Publish acks of a gateway."""
    async def work(link, streams):
        for body in bodies:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            await streams.publish(f"command.ack.{gateway.tenant}.{gateway.id}", raw)

    with_simulator(notip_lab, work)


def test_an_answer_comes_back_and_is_applied(notip_lab, gateway):
    console = notip_lab.lab.console
    first = notip_lab.run(console.config(gateway.id, send_frequency_ms=250, status="paused"))
    second = notip_lab.run(console.firmware(gateway.id, "9.9.9"))
    third = notip_lab.run(console.config(gateway.id, send_frequency_ms=1))
    answering(
        notip_lab, gateway,
        {"command_id": first, "status": "ACK", "timestamp": NOW},
        {"command_id": third, "commandId": third, "status": "nack", "message": "too fast",
         "timestamp": NOW},
        {"commandId": second, "status": "ack", "timestamp": "2026-01-01T00:00:00.123456789+02:00"},
    )
    answer = notip_lab.run(console.answer(first))
    assert (answer.status, answer.message, answer.gateway_id) == ("ack", "", gateway.id)
    assert 0 <= answer.latency_s < WAIT_S
    answer = notip_lab.run(console.answer(third))
    assert (answer.status, answer.message) == ("nack", "too fast")
    assert notip_lab.run(console.answer(second, "5s")).status == "ack"
    frame = console.acks()
    assert list(frame) == ["command_id", "gateway_id", "status", "message", "issued_at",
                           "answered_at", "latency"]
    frame = frame.set_index("command_id").loc[[first, second, third]]
    assert list(frame["status"]) == ["ack", "ack", "nack"]
    assert (frame["answered_at"] >= frame["issued_at"]).all()
    assert frame["latency"].between(0, WAIT_S).all()
    row = console.gateways().set_index("gateway_id").loc[gateway.id]
    assert (row["send_frequency_ms"], row["status"], row["firmware"]) == (250, "paused", "9.9.9")


def test_many_answers_come_back(notip_lab, gateway):
    # More than one request for acks holds.
    console, count = notip_lab.lab.console, 600

    async def work(link, streams):
        ids = [str(uuid.uuid4()) for _ in range(count)]
        for one in ids:
            body = {"command_id": one, "status": "ack", "timestamp": NOW}
            await link.publish(f"command.ack.{gateway.tenant}.{gateway.id}",
                               json.dumps(body).encode())
        for one in ids:
            await console.answer(one)

    with_simulator(notip_lab, work)
    frame = console.acks()
    ours = frame[frame["gateway_id"] == gateway.id]
    assert len(ours) == count
    assert ours["issued_at"].isna().all()
    assert ours["latency"].isna().all()


def test_a_silent_gateway_is_an_error_in_the_end(notip_lab, gateway):
    console = notip_lab.lab.console
    command_id = notip_lab.run(console.config(gateway.id, status="paused"))
    with pytest.raises(NoAnswer, match=r"was not answered within 0\.05 s"):
        notip_lab.run(console.answer(command_id, "50ms"))
    with pytest.raises(TimeoutError):
        notip_lab.run(console.answer("never", 0.01))


MALFORMED = {
    "no JSON": b"{",
    "no object": b"[]",
    "no command id": {"status": "ack", "timestamp": NOW},
    "unknown status": {"command_id": "x", "status": "done", "timestamp": NOW},
    "no timestamp": {"command_id": "x", "status": "ack", "timestamp": "soon"},
}


def test_malformed_answers_are_skipped_without_an_ack(notip_lab, gateway):
    console, before = notip_lab.lab.console, dict(notip_lab.lab.console.skipped)
    answering(notip_lab, gateway, *MALFORMED.values(),
              {"command_id": "last", "status": "expired", "timestamp": NOW})
    assert notip_lab.run(console.answer("last")).status == "expired"
    skipped = {name: console.skipped[name] - before.get(name, 0) for name in MALFORMED}
    assert skipped == dict.fromkeys(MALFORMED, 1)

    async def pending(link, streams):
        info = await streams.consumer_info("COMMAND_ACKS", "management-api_command_ack__")
        assert info.config.max_deliver == 3
        return info.num_ack_pending

    assert with_simulator(notip_lab, pending) >= len(MALFORMED)


def publish(notip_lab, *messages):
    """Publish (subject, envelope or bytes, message id), and return what the console sees anew."""
    console = notip_lab.lab.console
    before = len(notip_lab.run(console.telemetry()))
    dropped = console.rejected.copy()

    async def work(link, streams):
        for subject, body, message_id in messages:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Nats-Msg-Id": message_id} if message_id else None
            await link.publish(subject, raw, headers=headers)
        await streams.stream_info("TELEMETRY")  # by when it has them all

    with_simulator(notip_lab, work)
    frame = notip_lab.run(console.telemetry()).iloc[before:].reset_index(drop=True)
    return frame, console.rejected - dropped


def test_telemetry_is_decrypted(notip_lab, gateway):
    sensor = str(uuid.uuid4())
    frame, rejected = publish(
        notip_lab,
        (gateway.subject, gateway.seal(21.5, "°C", "2026-01-01T00:00:00.123456Z", sensor), "run/1"),
        (gateway.subject, gateway.seal(-3, "%", "2026-01-01T02:00:01+02:00", sensor), ""),
    )
    assert not rejected
    assert list(frame) == ["time", "gateway_id", "tenant_id", "sensor_id", "sensor_type", "value",
                           "unit", "key_version", "message_id", "device_id", "seq"]
    assert str(frame["time"].dtype) == "datetime64[us, UTC]"
    assert list(frame["time"]) == [pd.Timestamp("2026-01-01T00:00:00.123456Z"),
                                   pd.Timestamp("2026-01-01T00:00:01Z")]
    assert list(frame["value"]) == [21.5, -3.0]
    assert list(frame["unit"]) == ["°C", "%"]
    assert set(frame["gateway_id"]) == {gateway.id}
    assert set(frame["tenant_id"]) == {gateway.tenant}
    assert set(frame["sensor_id"]) == {sensor}
    assert list(frame["message_id"]) == ["run/1", ""]
    assert list(frame["key_version"]) == [1, 1]


def test_messages_say_which_reading_of_which_device_they_are(notip_lab, gateway):
    sensor, other = str(uuid.uuid4()), str(uuid.uuid4())
    ids = ["a1/gw-7:a/b.c/12/0", "", "a1/gw-7:a/b.c/13.2/1", "run/2", "a1/gw-7:x/-1/0"]
    sensors = [sensor] * 3 + [other] * 2
    publish(notip_lab, *(
        (gateway.subject, gateway.seal(1, "", f"2026-01-01T00:01:0{i}Z", sensors[i]), name)
        for i, name in enumerate(ids)))
    frame = notip_lab.run(notip_lab.lab.console.telemetry()).tail(5)
    assert list(frame["device_id"]) == ["gw-7:a/b.c"] * 3 + [""] * 2
    assert list(frame["seq"].astype(object).where(frame["seq"].notna(), None)) == [
        12, None, 13, None, None]


def test_a_long_stream_is_read_to_its_end(notip_lab, gateway):
    count = 2100
    frame, rejected = publish(notip_lab, *(
        (gateway.subject, gateway.seal(float(n)), "") for n in range(count)))
    assert list(frame["value"]) == [float(n) for n in range(count)]
    assert not rejected


DROPPED = {
    "no JSON": lambda g: (g.subject, b"{"),
    "no object": lambda g: (g.subject, b"7"),
    "the subject has other than four tokens": lambda g: (g.subject + ".x", g.seal()),
    "gatewayId is no UUID": lambda g: (g.subject, g.seal(gatewayId="gw-1")),
    "sensorId is no UUID": lambda g: (g.subject, g.seal(sensorId="temperature")),
    "sensorType is no text": lambda g: (g.subject, g.seal(sensorType="")),
    "iv is no text": lambda g: (g.subject, g.seal(iv=[1])),
    "keyVersion is no integer": lambda g: (
        g.subject, json.dumps(g.seal()).replace('"keyVersion": 1', '"keyVersion": 1.0').encode()),
    "unknown key": lambda g: (g.subject, g.seal(keyVersion=2)),
    "unknown gateway": lambda g: (g.subject, g.seal(gatewayId=str(uuid.uuid4()))),
    "the subject is another gateway's": lambda g: (
        f"telemetry.data.{g.tenant}.{uuid.uuid4()}", g.seal()),
    "timestamp is not of RFC 3339": lambda g: (g.subject, g.seal(time="2026-01-01 00:00:00")),
    "encryptedData is longer than its column": lambda g: (g.subject, g.seal(unit="u" * 200)),
    "iv is no base64": lambda g: (g.subject, g.seal(iv="not base64!")),
    "encryptedData, iv or authTag has a wrong length": lambda g: (  # it looks like hex
        g.subject, g.seal(nonce=base64.b64decode("abcdef0123456789"))),
    "it cannot be decrypted": lambda g: (g.subject, g.seal(authTag=b64(bytes(16)))),
    "value is no number": lambda g: (g.subject, g.seal(value=None)),
    "unit is no text": lambda g: (g.subject, g.seal(unit=7)),
}


@pytest.mark.parametrize("reason", DROPPED)
def test_telemetry_is_dropped_where(reason, notip_lab, gateway):
    frame, rejected = publish(notip_lab, (*DROPPED[reason](gateway), ""),
                              (gateway.subject, gateway.seal(1.0), ""))
    assert list(frame["value"]) == [1.0]
    assert rejected == {reason: 1}


def test_a_repeated_time_of_a_sensor_is_dropped(notip_lab, gateway):
    sensor = str(uuid.uuid4())
    frame, rejected = publish(notip_lab, (gateway.subject, gateway.seal(1.0, sensor=sensor), ""),
                              (gateway.subject, gateway.seal(2.0, sensor=sensor), ""))
    assert list(frame["value"]) == [1.0]
    assert rejected == {"the table has this sensor and time already": 1}


def test_a_decommission_is_an_event_of_the_platform(notip_lab, gateway):
    async def work(link, streams):
        sub = await streams.subscribe("gateway.decommissioned.>", ordered_consumer=True)
        await notip_lab.lab.console.decommission(gateway.id)
        message = await sub.next_msg(WAIT_S)
        await sub.unsubscribe()
        return message.subject, json.loads(message.data)

    subject, body = with_simulator(notip_lab, work)
    assert subject == f"gateway.decommissioned.{gateway.tenant}.{gateway.id}"
    assert list(body) == ["gatewayId", "timestamp"]
    assert body["gatewayId"] == gateway.id
    assert instant_of(body["timestamp"]) is not None
    assert notip_lab.lab.console.keys(gateway.id)


def test_the_status_of_a_gateway_is_told_over_nats(notip_lab, gateway):
    async def work(link, streams):
        async def ask(call, **body):
            raw = json.dumps(body).encode()
            return json.loads((await link.request(f"internal.mgmt.gateway.{call}", raw, 5)).data)

        who = {"gateway_id": gateway.id}
        return [
            await ask("get-status", **who, tenant_id=gateway.tenant),
            await ask("update-status", **who, status="offline", last_seen_at=NOW),
            await ask("get-status", **who, tenant_id=gateway.tenant),
            await ask("update-status", **who, status="paused"),
            await ask("update-status", gateway_id="nobody", status="online"),
        ]

    assert with_simulator(notip_lab, work) == [
        {"gateway_id": gateway.id, "state": "online"},
        {"success": True},
        {"gateway_id": gateway.id, "state": "offline"},
        {"success": False, "error": "INVALID"},
        {"success": False, "error": "INVALID"},
    ]


def test_what_nobody_has_sent_yet_is_an_empty_frame_of_the_same_kind():
    for empty in (frame_of([]), acks_of([]), gateways_of(Register())):
        assert len(empty) == 0
    assert frame_of([])["gateway_id"].dtype != float
    assert str(acks_of([])["issued_at"].dtype) == "datetime64[us, UTC]"


def test_answers_are_read_again_after_the_server_was_killed(notip_lab, gateway):
    lab = notip_lab.lab
    before = notip_lab.run(lab.console.telemetry())

    async def hurt():
        await lab.kill_nats()
        await lab.restart_nats()

    notip_lab.run(hurt())
    answering(notip_lab, gateway, {"command_id": "after", "status": "ack", "timestamp": NOW})
    assert notip_lab.run(lab.console.answer("after")).status == "ack"
    frame, rejected = publish(notip_lab, (gateway.subject, gateway.seal(5.0), ""))
    assert list(frame["value"]) == [5.0]
    assert not rejected
    assert len(notip_lab.run(lab.console.telemetry())) == len(before) + 1
    assert notip_lab.run(onboard(lab, gateway.factory_id, "the key")).status == 409


def test_secrets_are_in_no_repr(notip_lab, gateway):
    lab = notip_lab.lab
    shown = "".join(map(repr, (lab, lab.console, lab.management, lab.register_of_gateways,
                               lab.provisioning, lab.register_of_gateways.get(gateway.id))))
    assert "the key" not in shown
    assert b64(gateway.key) not in shown
    assert gateway.key.hex() not in shown
    assert repr(gateway.key) not in shown


def test_one_lab_waits_for_answers_of_many_at_once(notip_lab, gateway):
    console = notip_lab.lab.console

    async def work(link, streams):
        waits = [asyncio.ensure_future(console.answer("shared")) for _ in range(3)]
        await asyncio.sleep(0)
        await streams.publish(f"command.ack.{gateway.tenant}.{gateway.id}", json.dumps(
            {"command_id": "shared", "status": "ack", "timestamp": NOW}).encode())
        return {(await wait).status for wait in waits}

    assert with_simulator(notip_lab, work) == {"ack"}
