"""Telemetry as the data consumer, the data API and the SDK read it, with code of its own."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import nats
import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from iotsim.errors import ConnectError, told
from iotsim.lab.management import Register, Registered
from iotsim.lab.moments import instant_of
from iotsim.lab.rights import TELEMETRY

if TYPE_CHECKING:
    import pandas as pd

ROWS_MAX = 2_000_000
BATCH = 1000
CHUNK = 100
FETCH_S = 5.0
COLUMN_CHARS_MAX = 255  # of the table that the data API makes for itself
TEXTS = ("gatewayId", "sensorId", "sensorType", "timestamp")
BLOBS = ("encryptedData", "iv", "authTag")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_ID = re.compile(r"[^/]+/(.+)/(\d{1,18})(?:\.\d+)?/\d+", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Row(NamedTuple):
    """One reading, decrypted."""

    time_us: int
    gateway_id: str
    tenant_id: str
    sensor_id: str
    sensor_type: str
    value: float
    unit: str
    key_version: int
    message_id: str


class Dropped(Exception):
    """A message that one of the platform's services would have dropped, and why."""


class TelemetryDesk:
    """Reads the TELEMETRY stream on demand, each message once.

    Attributes
    ----------
    rejected : Counter
        Messages that were dropped, by reason.
    """

    def __init__(self, register: Register, connection: Client) -> None:
        self.rejected: Counter[str] = Counter()
        self._register, self._connection = register, connection
        self._rows: deque[Row] = deque(maxlen=ROWS_MAX)
        self._seen: set[tuple[str, int]] = set()
        self._next = 1
        self._reading = asyncio.Lock()

    def keys(self, gateway: Registered) -> list[dict[str, Any]]:
        """Return the keys of a gateway."""
        if not gateway.aes_key:
            return []
        material = base64.b64encode(gateway.aes_key).decode("ascii")
        return [{"gateway_id": gateway.gateway_id, "key_material": material,
                 "key_version": gateway.key_version}]

    async def frame(self) -> pd.DataFrame:
        """Read what is new, and return everything."""
        async with self._reading:
            try:
                await self._read()
            except (OSError, TimeoutError, nats.errors.Error) as error:
                why = f"the telemetry cannot be read ({told(error)})"
                raise ConnectError("the lab's NATS server", why, verb="use") from None
        return frame_of(list(self._rows))

    async def _read(self) -> None:
        streams = self._connection.jetstream(timeout=FETCH_S)
        state = (await streams.stream_info(TELEMETRY)).state
        if state.last_seq < self._next or not state.messages:
            return
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._next,
            ack_policy=AckPolicy.NONE, filter_subject="telemetry.data.>", inactive_threshold=30,
        )  # fmt: skip
        name = (await streams.add_consumer(TELEMETRY, config)).name
        inbox = self._connection.new_inbox()
        messages: asyncio.Queue[Msg] = asyncio.Queue()
        sub = await self._connection.subscribe(inbox, cb=messages.put)
        try:
            while self._next <= state.last_seq:
                count = min(BATCH, state.last_seq - self._next + 1)
                request = {"batch": count, "expires": int(FETCH_S * 1e9)}
                await self._connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{TELEMETRY}.{name}",
                                               json.dumps(request).encode(), reply=inbox)
                if not await self._took(messages, count):
                    break  # somebody has removed some of it
        finally:
            await sub.unsubscribe()

    async def _took(self, messages: asyncio.Queue[Msg], count: int) -> bool:
        for number in range(count):
            async with asyncio.timeout(FETCH_S + 1):
                message = await messages.get()
            if message.headers and "Status" in message.headers:
                return False
            # $JS.ACK.<stream>.<consumer>.<delivered>.<its number in the stream>.…
            self._next = int(message.reply.split(".")[5]) + 1
            try:
                row = self._row_of(message.subject, message.data, message.headers or {})
            except Dropped as dropped:
                self.rejected[str(dropped)] += 1
            else:
                self._rows.append(row)
            if number % CHUNK == 0:
                await asyncio.sleep(0)  # others live on this loop, too
        return True

    def _row_of(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Row:
        tokens = subject.split(".")
        if len(tokens) != 4:
            raise Dropped("the subject has other than four tokens")
        envelope = checked(data)
        gateway_id = envelope["gatewayId"]
        gateway = self._register.find(gateway_id)
        if gateway is None or gateway.gateway_id != gateway_id:
            raise Dropped("unknown gateway")
        if tokens[2:] != [gateway.tenant_id, gateway_id]:
            raise Dropped("the subject is another gateway's")
        if envelope["keyVersion"] != gateway.key_version or not gateway.aes_key:
            raise Dropped("unknown key")
        value, unit = opened(envelope, gateway.aes_key)
        time_us = instant_of(envelope["timestamp"])
        if time_us is None:
            raise Dropped("timestamp is not of RFC 3339")
        reading = envelope["sensorId"], time_us
        if reading in self._seen:
            raise Dropped("the table has this sensor and time already")
        if len(self._seen) >= ROWS_MAX:
            self._seen.clear()
        self._seen.add(reading)
        return Row(time_us, gateway_id, gateway.tenant_id, envelope["sensorId"],
                   envelope["sensorType"], value, unit, envelope["keyVersion"],
                   headers.get("Nats-Msg-Id", ""))


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Return readings as a frame, in the order in which they came."""
    import pandas as pd

    from iotsim.lab.columns import text_column, time_column

    made = dict(zip(Row._fields, zip(*rows, strict=True), strict=True)) if rows else {}
    kinds = {"value": "float64", "key_version": "int64"}
    columns: dict[str, Any] = {"time": time_column(made.pop("time_us", ()))}
    for name in Row._fields[1:]:
        values = made.get(name, ())
        columns[name] = (pd.Series(list(values), dtype=kinds[name]) if name in kinds
                         else text_column(values))
    devices, ticks = identities(rows)
    whole = "int64" if None not in ticks else "Int64"
    return pd.DataFrame({**columns, "device_id": text_column(devices),
                         "seq": pd.Series(ticks, dtype=whole)})


def identities(rows: Sequence[Row]) -> tuple[list[str], list[int | None]]:
    """Return device and tick of readings, as the simulator's frames call them.

    They are in its message ids, `run/device/seq/copy`. Of a message without one, the device is
    that of its sensor's other messages, else empty; the tick is None.
    """
    found = [_ID.fullmatch(row.message_id) for row in rows]
    names = {row.sensor_id: one[1] for row, one in zip(rows, found, strict=True) if one}
    devices = [one[1] if one else names.get(row.sensor_id, "")
               for row, one in zip(rows, found, strict=True)]
    return devices, [int(one[2]) if one else None for one in found]


def checked(data: bytes) -> dict[str, Any]:
    """Return an envelope if the data consumer and the data API would take it.

    Raises
    ------
    Dropped
        If one of them would not.
    """
    try:
        envelope = orjson.loads(data)
    except ValueError:
        raise Dropped("no JSON") from None
    if not isinstance(envelope, dict):
        raise Dropped("no object")
    for name in (*TEXTS, *BLOBS):
        if not isinstance(envelope.get(name), str) or not envelope[name]:
            raise Dropped(f"{name} is no text")
    if type(envelope.get("keyVersion")) is not int:
        raise Dropped("keyVersion is no integer")
    for name in ("gatewayId", "sensorId"):
        if not _UUID.fullmatch(envelope[name]):
            raise Dropped(f"{name} is no UUID")
    if len(envelope["encryptedData"]) > COLUMN_CHARS_MAX:
        raise Dropped("encryptedData is longer than its column")
    return envelope


def opened(envelope: Mapping[str, Any], key: bytes) -> tuple[float, str]:
    """Return value and unit of an envelope, by way of the data API's converter and the SDK.

    Raises
    ------
    Dropped
        If they would not come to the plaintext.
    """
    sealed, nonce, tag = (_converted(name, envelope[name]) for name in BLOBS)
    if len(sealed) < 8 or len(nonce) != 12 or len(tag) != 16:
        raise Dropped("encryptedData, iv or authTag has a wrong length")
    try:
        plain = orjson.loads(AESGCM(key).decrypt(nonce, sealed + tag, None))
    except (InvalidTag, ValueError):
        raise Dropped("it cannot be decrypted") from None
    value = plain.get("value") if isinstance(plain, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Dropped("value is no number")
    if not isinstance(plain.get("unit"), str):
        raise Dropped("unit is no text")
    return float(value), plain["unit"]


def _converted(name: str, text: str) -> bytes:
    # The data API takes what could be hex for hex.
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise Dropped(f"{name} is no base64") from None
