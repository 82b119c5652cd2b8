"""Envelopes opened again: what a sensor said, from what a consumer received.

As strict as the strictest of the platform's consumers: every field is there and not empty,
`keyVersion` is an integer, the blobs are padded base64, and the tag fits.
"""

from __future__ import annotations

import math
import re
from binascii import Error as NoBase64
from binascii import a2b_base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import orjson

from iotsim.errors import BadValue, MissingExtra
from iotsim.gateway.record import GatewayRecord, local_name, sensor_id
from iotsim.gateway.sealing import KEY_BYTES, NONCE_BYTES, TAG_BYTES
from iotsim.transport.discretion import discreet

if TYPE_CHECKING:
    import pandas as pd

Decrypt: TypeAlias = Callable[[bytes, bytes], bytes]  # nonce, ciphertext with tag

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII)
_TEXTS = ("gatewayId", "sensorId", "sensorType", "timestamp", "encryptedData", "iv", "authTag")
_NO_TIME = np.iinfo(np.int64).min  # NaT
_SEQ = re.compile(r"(\d{1,18})(?:\.(\d{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Opened:
    """One reading as it was received.

    Attributes
    ----------
    gateway_id, sensor_id, sensor_type : str
    time_us : int
        The envelope's timestamp, µs since 1970 (UTC); what is finer is cut off.
    key_version : int
    value : float
    unit : str
    """

    gateway_id: str
    sensor_id: str
    sensor_type: str
    time_us: int
    key_version: int
    value: float
    unit: str


@discreet
def opened(payload: bytes, key: bytes) -> Opened:
    """Return the reading in an envelope.

    Parameters
    ----------
    payload : bytes
        The message as it came.
    key : bytes
        The gateway's AES key.

    Raises
    ------
    BadValue
        If it is no envelope, or was not sealed with this key, or was changed on its way.
    """
    decrypt = _decrypt_with(key)
    try:
        envelope = _Envelope.of(payload)
        value, unit = envelope.content(decrypt)
    except _Refused as error:
        raise BadValue("payload", payload, f"cannot be opened: {error}",
                       "An envelope is what the gateway's own key sealed, unchanged.") from None
    return Opened(envelope.gateway_id, envelope.sensor_id, envelope.sensor_type, envelope.time_us,
                  envelope.key_version, value, unit)


@discreet
def frame_of(
    messages: Iterable[tuple[str, bytes]],
    records: Iterable[GatewayRecord] | Mapping[str, GatewayRecord],
) -> pd.DataFrame:
    """Return received envelopes as a table that joins with `run.frame()`, every one a row.

    Parameters
    ----------
    messages : iterable of (message id, payload)
        The id is what `Nats-Msg-Id` said; empty where there was none. Of a tap:
        `[(ident, payload) for _, payload, ident in tap.messages()]`.
    records : iterable of GatewayRecord, or mapping to them
        Whose keys open them.

    Returns
    -------
    DataFrame
        time, device_id, device_type, seq, value and unit as in any frame, so that it joins on
        (device_id, seq); sub and copy, where a reading lies between two ticks or came again;
        gateway_id; and `reason`, why a row could not be opened or believed: empty if it could.
        Ordered by time, device, seq, sub and copy; what has no time comes last.
    """
    import pandas as pd

    gateways = records.values() if isinstance(records, Mapping) else records
    known = {record.gateway_id: _Gateway(record) for record in gateways if record.provisioned}
    rows = [_row(ident, payload, known) for ident, payload in messages]
    columns: dict[str, Any] = dict.fromkeys(_COLUMNS, ())
    columns.update(zip(_COLUMNS, zip(*rows, strict=True), strict=bool(rows)))
    time = np.array(columns["time"], dtype=np.int64).view("datetime64[us]")
    table = pd.DataFrame({
        "time": pd.DatetimeIndex(time).tz_localize("UTC"),
        "device_id": pd.Categorical(columns["device_id"]),
        "device_type": pd.Categorical(columns["device_type"]),
        **{name: _whole_numbers(columns[name]) for name in ("seq", "sub", "copy")},
        "value": np.array(columns["value"], dtype=np.float64),
        "unit": pd.Categorical(columns["unit"]),
        "gateway_id": pd.Categorical(columns["gateway_id"]),
        "reason": pd.Categorical(columns["reason"]),
    })
    order = ["time", "device_id", "seq", "sub", "copy"]
    return table.sort_values(order, kind="stable", ignore_index=True)


_COLUMNS = ("time", "device_id", "device_type", "seq", "sub", "copy", "value", "unit",
            "gateway_id", "reason")


class _Refused(Exception):  # why an envelope is none; never leaves this module
    pass


@dataclass(frozen=True, slots=True)
class _Envelope:
    gateway_id: str
    sensor_id: str
    sensor_type: str
    time_us: int
    key_version: int
    nonce: bytes
    whole: bytes  # ciphertext and tag

    @classmethod
    def of(cls, payload: bytes) -> _Envelope:
        try:
            found = orjson.loads(payload)
        except ValueError:
            raise _Refused("it is no JSON") from None
        if not isinstance(found, dict):
            raise _Refused("it is no JSON object")
        for name in _TEXTS:
            if not isinstance(found.get(name), str) or not found[name]:
                raise _Refused(f"{name} is missing, empty or no text")
        version = found.get("keyVersion")
        if type(version) is not int:
            raise _Refused("keyVersion is missing or no integer")
        nonce = _blob(found, "iv", NONCE_BYTES)
        whole = _blob(found, "encryptedData") + _blob(found, "authTag", TAG_BYTES)
        return cls(found["gatewayId"], found["sensorId"], found["sensorType"],
                   _time_us(found["timestamp"]), version, nonce, whole)

    def content(self, decrypt: Decrypt) -> tuple[float, str]:
        from cryptography.exceptions import InvalidTag

        try:
            plain = decrypt(self.nonce, self.whole)
        except InvalidTag:
            raise _Refused("its tag does not fit: it was changed, or has another key") from None
        try:
            found = orjson.loads(plain)
            value, unit = found["value"], found["unit"]
        except (ValueError, TypeError, LookupError):
            raise _Refused("its content is no reading") from None
        number = type(value) in (int, float) and math.isfinite(value)
        if not number or not isinstance(unit, str):
            raise _Refused("its content is no reading")
        return float(value), unit


class _Gateway:
    # One gateway as a reader knows it; the key is inside `decrypt`.
    __slots__ = ("decrypt", "name", "sensors", "uuids")

    def __init__(self, record: GatewayRecord) -> None:
        self.name = record.name
        self.decrypt = _decrypt_with(record.aes_key)
        self.sensors = {sensor_id(record.gateway_id, str(sensor["name"])): str(sensor["name"])
                        for sensor in record.sensors if "name" in sensor}
        self.uuids = {name: uuid for uuid, name in self.sensors.items()}


def _row(ident: str, payload: bytes, known: Mapping[str, _Gateway]) -> tuple[Any, ...]:
    device, seq, sub, copy = _identity(ident)
    try:
        envelope = _Envelope.of(payload)
    except _Refused as error:
        return (_NO_TIME, device, None, seq, sub, copy, math.nan, None, None, str(error))
    gateway = known.get(envelope.gateway_id)
    value, unit, reason = math.nan, None, "no key of its gateway is known"
    if gateway is not None:
        try:
            value, unit = envelope.content(gateway.decrypt)
            reason = _contradiction(device, envelope, gateway)
        except _Refused as error:
            reason = str(error)
        if device is None and envelope.sensor_id in gateway.sensors:
            device = f"{gateway.name}:{gateway.sensors[envelope.sensor_id]}"
    return (envelope.time_us, device, envelope.sensor_type, seq, sub, copy, value, unit,
            envelope.gateway_id, reason)


def _identity(ident: str) -> tuple[str | None, int | None, int | None, int | None]:
    # Device, seq, sub and copy of `run/device/seq/copy` or `run/device/seq.sub/copy`.
    parts = ident.partition("/")[2].rsplit("/", 2)
    tick = _SEQ.fullmatch(parts[1]) if len(parts) == 3 else None
    copy = _SEQ.fullmatch(parts[2]) if len(parts) == 3 else None
    if tick is None or copy is None or copy[2] is not None:
        return None, None, None, None
    return parts[0], int(tick[1]), int(tick[2] or 0), int(copy[1])


def _contradiction(device: str | None, envelope: _Envelope, gateway: _Gateway) -> str:
    if device is None:
        return ""
    name, sensor = local_name(device)
    if name != gateway.name:
        return "its message id names another gateway"
    if sensor not in gateway.uuids:
        gateway.uuids[sensor] = sensor_id(envelope.gateway_id, sensor)
    if gateway.uuids[sensor] != envelope.sensor_id:
        return "its message id names another sensor"
    return ""


def _decrypt_with(key: bytes) -> Decrypt:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise MissingExtra("encrypted telemetry", "cryptography", "notip") from None
    if len(key) != KEY_BYTES:
        raise BadValue("key", f"<{len(key)} bytes>", "is no key of AES-256", "It has 32 bytes.")
    decrypt = AESGCM(key).decrypt
    return lambda nonce, whole: decrypt(nonce, whole, None)


def _blob(found: Mapping[str, Any], name: str, size: int | None = None) -> bytes:
    try:
        blob = a2b_base64(found[name], strict_mode=True)
    except (NoBase64, ValueError):
        raise _Refused(f"{name} is no padded base64") from None
    if size is not None and len(blob) != size:
        raise _Refused(f"{name} has {len(blob)} bytes, not {size}")
    return blob


def _time_us(text: str) -> int:
    parts = _RFC3339.fullmatch(text)
    try:
        if parts is None:
            raise ValueError
        whole = datetime.fromisoformat(parts[1] + parts[3]) - _EPOCH
        return whole // timedelta(microseconds=1) + int((parts[2] or "").ljust(6, "0")[:6])
    except (ValueError, OverflowError):
        raise _Refused("timestamp is no RFC 3339") from None


def _whole_numbers(found: Iterable[int | None]) -> Any:
    import pandas as pd

    numbers = list(found)
    if None in numbers:
        return pd.array(numbers, dtype="Int64")
    return np.array(numbers, dtype=np.int64)
