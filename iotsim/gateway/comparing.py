"""Envelopes compared with the readings that they were made of; for audits.

An envelope has a nonce of its own: what is sealed twice looks different each time. So what came is
opened, and what was said is compared.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from iotsim.errors import IotsimError
from iotsim.gateway.opening import Opened, opened
from iotsim.gateway.record import GatewayRecord, local_name, sensor_id
from iotsim.gateway.sensors import UNITS
from iotsim.readings import Readings

VALUE = "value"
MOVED_US_MAX = 1000  # a timestamp that its sensor has shown before is moved to the next free µs


class EnvelopeForm:
    """Whether an envelope says what a reading was (a `Form`).

    Parameters
    ----------
    records : mapping of local name to GatewayRecord
        Those that the run had.
    """

    def __init__(self, records: Mapping[str, GatewayRecord]) -> None:
        self._records = records
        self._keys: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"<EnvelopeForm of {len(self._records):,} gateways>"

    def bodies(self, readings: Readings) -> list[bytes]:
        """Return what each reading says: who, when and what."""
        group, values = readings.group, readings.columns[VALUE].values
        heads = [self._head(name, group.device_type) for name in group.ids]
        rows = zip(readings.device.tolist(), values.tolist(), readings.time_us.tolist(),
                   strict=True)
        return [orjson.dumps([*heads[i], float(value), time_us]) for i, value, time_us in rows]

    def same(self, body: bytes, payload: bytes) -> bool:
        """Return whether an envelope says that, sealed by its gateway and unchanged."""
        gateway_id, *_, time_us = orjson.loads(body)
        key = self._key(gateway_id)
        try:
            found = opened(payload, key)
        except IotsimError:
            return False
        moved_us = found.time_us - time_us
        return 0 <= moved_us <= MOVED_US_MAX and body == _body(found, time_us)

    def _head(self, device_id: str, device_type: str) -> list[object]:
        name, sensor = local_name(device_id)
        record = self._records.get(name)
        if record is None or not record.provisioned:
            return ["", "", device_type, "", 1]
        return [record.gateway_id, sensor_id(record.gateway_id, sensor), device_type,
                UNITS.get(device_type, ""), 1]

    def _key(self, gateway_id: str) -> bytes:
        if gateway_id not in self._keys:
            self._keys = {one.gateway_id: one.aes_key for one in self._records.values()}
        return self._keys.get(gateway_id, b"")


def _body(found: Opened, time_us: int) -> bytes:
    return orjson.dumps([found.gateway_id, found.sensor_id, found.sensor_type, found.unit,
                         found.key_version, found.value, time_us])
