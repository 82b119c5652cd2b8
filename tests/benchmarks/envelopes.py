"""Encrypted envelopes a second on one core, beside the plain way to write one in Python."""

import base64
import json
import os
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from iotsim.gateway.envelope import EnvelopeEncoder
from iotsim.gateway.record import GatewayRecord, sensor_id
from iotsim.readings import Column, Group, Readings
from tests.benchmarks.measures import START_US, Row, cpu_s

BUDGET_HZ = 150_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def records(count):
    return {
        f"gw-{n}": GatewayRecord(f"gw-{n}", f"f-{n}", gateway_id=str(UUID(int=n + 1)),
                                 tenant_id=str(UUID(int=99)), cert_pem="cert",
                                 aes_key=os.urandom(32))
        for n in range(count)
    }


def blocks(gateways, count):
    group = Group(0, "temperature", [f"gw-{n}:temperature" for n in range(gateways)])
    device = np.arange(gateways, dtype=np.int32)
    phase_us = START_US + np.arange(gateways) * 37
    rng = np.random.default_rng(1)
    return [
        Readings(group, device, np.full(gateways, tick), phase_us + tick * 5_000_000,
                 {"value": Column("float", np.round(20 + rng.standard_normal(gateways), 2))})
        for tick in range(count)
    ]


class Plain:
    """One envelope at a time, the cipher and all that is fixed made once, as one would write it."""

    def __init__(self, known):
        self.known = {
            f"{name}:temperature": (AESGCM(one.aes_key), one.gateway_id,
                                    sensor_id(one.gateway_id, "temperature"))
            for name, one in known.items()
        }

    def encode(self, readings):
        made = []
        rows = zip(readings.device.tolist(), readings.time_us.tolist(),
                   readings.columns["value"].values.tolist(), strict=True)
        for i, time_us, value in rows:
            cipher, gateway, sensor = self.known[readings.group.ids[i]]
            nonce = os.urandom(12)
            plain = json.dumps({"value": value, "unit": "°C"}, ensure_ascii=False,
                               separators=(",", ":")).encode()
            sealed = cipher.encrypt(nonce, plain, None)
            made.append(json.dumps({
                "gatewayId": gateway, "sensorId": sensor, "sensorType": "temperature",
                "timestamp": (EPOCH + timedelta(microseconds=time_us)).isoformat(),
                "keyVersion": 1, "encryptedData": base64.b64encode(sealed[:-16]).decode(),
                "iv": base64.b64encode(nonce).decode(),
                "authTag": base64.b64encode(sealed[-16:]).decode(),
            }, separators=(",", ":")).encode())
        return made


def encoding_s(known, work, **options):
    """The least processor time of encoding some blocks, by an encoder that knows its sensors."""

    def once():
        encoder = EnvelopeEncoder("bench", known, **options)
        encoder.prepare(work[0].group)
        return sum(len(encoder.encode(block)) for block in work)

    seconds, made = cpu_s(once)
    return seconds, made


def sealing(scale):
    """Envelopes of many gateways, and the same by plain Python in the same run."""
    gateways = max(20, int(1000 * scale))
    known, work = records(gateways), blocks(gateways, max(2, int(60 * scale)))
    ours_s, made = encoding_s(known, work)
    derived_s, _ = encoding_s(known, work, replayable=True)
    plain = Plain(known)
    plain_s, _ = cpu_s(lambda: [plain.encode(block) for block in work])
    hz = made / ours_s
    yield Row(
        "encrypted NoTIP envelopes", hz,
        f"{hz:,.0f}/s/core, {ours_s / made * 1e6:.1f} µs each "
        f"({plain_s / ours_s:.1f} × plain Python at {plain_s / made * 1e6:.1f} µs; "
        f"{made / derived_s:,.0f}/s where nonces are derived)",
        f"{BUDGET_HZ:,}/s/core", hz >= BUDGET_HZ,
    )
