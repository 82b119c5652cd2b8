"""Readings of sensors as encrypted envelopes: what a NoTIP gateway sends.

One JSON object per reading, with the keys in the order and the numbers in the form that a gateway
written in Go gives them. Two things were open, and are settled here.

*The timestamp* has six digits and `Z`, as everywhere in iotsim. The reference trims trailing
zeros and shows up to nine digits; every consumer takes RFC 3339 with any number of digits, and
`Z` is the only zone that all of them take. One form of one length sorts as text, and is read by
parsers that want a fraction.

*One timestamp, one reading.* The platform's key is (time, sensor): two readings of a sensor that
show the same microsecond would lose a whole batch there. A drifting clock, or the readings that
`rate` puts between two ticks, can do that. The reading that is sent later is moved to the first
microsecond after it that the sensor has not shown: in the envelope alone, frame and digest keep
what the device's clock said. A copy that `duplicate` makes is no second reading: the network
brings one envelope twice, so it is the same envelope, byte for byte, under a message id of its
own. That it then meets its own key at the platform is what the fault is for.

The longest plaintext, of the longest number and unit, has 53 bytes: 72 characters of the 255 that
the platform's column takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from iotsim.gateway.go_text import go_float, go_floats, go_string
from iotsim.gateway.instants import Instants
from iotsim.gateway.record import GatewayRecord, local_name, sensor_id
from iotsim.gateway.sealing import Purpose, Seal, sealed, sealed_one
from iotsim.gateway.sensors import UNITS
from iotsim.publishers.payload import FEW, Encoder, Messages, message_ids
from iotsim.readings import Column, Group, Readings
from iotsim.units import US_PER_SECOND

VALUE = "value"
NO_NUMBER = "no finite number: an envelope cannot carry it"
NO_GATEWAY = "its gateway is not provisioned, or is gone"

_AFTER_TIME = b',"keyVersion":1,"encryptedData":"'


class EnvelopeEncoder(Encoder):
    """Encodes readings of sensors for one run; each reading once.

    Parameters
    ----------
    run_id : str
        First part of every message id.
    records : mapping of local name to GatewayRecord
        The gateways; may change while it is used.
    replayable : bool
        For tests: derive each nonce from key, sensor, tick and plaintext, so that the same run
        gives the same bytes. It tells an eavesdropper which envelopes are equal.

    Notes
    -----
    A reading that is no finite number has no envelope, nor has one of a gateway that is not
    provisioned: it is counted in the `missing` of the messages, by reason.
    """

    def __init__(
        self, run_id: str, records: Mapping[str, GatewayRecord], *, replayable: bool = False
    ) -> None:
        super().__init__(run_id, lambda _group, _i: "")
        self.replayable = replayable
        self._records = records
        self._known: dict[int, _Known] = {}
        self._seals: dict[str, tuple[GatewayRecord, Seal]] = {}
        self._instants: dict[str, Instants] = {}  # by device: it outlives a change of group
        # The last of each device, as long as copies follow.
        self._sent: dict[str, tuple[tuple[int, int], bytes]] = {}

    def __repr__(self) -> str:
        mode = ", replayable" if self.replayable else ""
        return f"<EnvelopeEncoder of run {self.run_id!r}{mode}>"

    def prepare(self, group: Group) -> None:
        """Make what does not change between a group's readings, ahead of the first."""
        for sensor in self._known_of(group).sensors:
            self._current(sensor)

    def encode(self, readings: Readings) -> Messages:
        """Return one message per row, in row order, but for rows that have no envelope."""
        known = self._known_of(readings.group)
        copies = None if readings.marks is None else readings.marks.copy
        if len(readings) < FEW or (copies is not None and copies.any()):
            return self._one_by_one(readings, known)
        fitting, missing = self._fitting(readings, known)
        readings = readings if fitting is None else readings.take(fitting)
        sensors = [known.sensors[i] for i in readings.device.tolist()]
        payloads = self._payloads(readings, sensors, known)
        subjects = [sensor.subject for sensor in sensors]
        ids = message_ids(readings, known.names)
        return Messages(subjects, payloads, ids, readings.time_us, missing, fitting)

    # -- what is known of sensors ---------------------------------------------------------------

    def _known_of(self, group: Group) -> _Known:
        known = self._known.get(group.index)
        if known is None:
            sensors = [_Sensor(name, self._instants.setdefault(name, Instants()))
                       for name in group.ids]
            names = [f"{self.run_id}/{name}" for name in group.ids]
            kind = go_string(group.device_type)
            unit = go_string(UNITS.get(group.device_type, ""))
            known = _Known(sensors, names, kind, b',"unit":' + unit + b"}")
            for sensor in sensors:
                sensor.kind = kind
            self._known[group.index] = known
        return known

    def _current(self, sensor: _Sensor) -> bool:
        # Whether the sensor's gateway can send; a record that was replaced is taken over.
        record = self._records.get(sensor.gateway)
        if record is sensor.record:
            return record is not None and record.provisioned
        sensor.record = record
        if record is None or not record.provisioned:
            return False
        sensor.seal = self._seal_of(record)
        uuid = sensor_id(record.gateway_id, sensor.name)
        sensor.uuid = uuid.encode()
        sensor.subject = f"telemetry.data.{record.tenant_id}.{record.gateway_id}"
        sensor.head = b'{"gatewayId":%b,"sensorId":"%b","sensorType":%b,"timestamp":"' % (
            go_string(record.gateway_id), sensor.uuid, sensor.kind)
        return True

    def _seal_of(self, record: GatewayRecord) -> Seal:
        found = self._seals.get(record.name)
        if found is None or found[0].aes_key != record.aes_key:
            found = self._seals[record.name] = (record, Seal(record.aes_key))
        return found[1]

    # -- many rows, column by column ------------------------------------------------------------

    def _fitting(
        self, readings: Readings, known: _Known
    ) -> tuple[npt.NDArray[np.bool_] | None, dict[str, int]]:
        # Which rows have an envelope (None: all), and how many have none, by reason.
        sensors, column = known.sensors, readings.columns[VALUE]
        gone = [i for i in set(readings.device.tolist()) if not self._current(sensors[i])]
        numbers = _numbers(column)
        if not gone and numbers.all():
            return None, {}
        there = ~np.isin(readings.device, gone)
        missing = {NO_GATEWAY: int((~there).sum()), NO_NUMBER: int((there & ~numbers).sum())}
        return there & numbers, {reason: count for reason, count in missing.items() if count}

    def _payloads(
        self, readings: Readings, sensors: Sequence[_Sensor], known: _Known
    ) -> list[bytes]:
        tail, time_us = known.tail, readings.time_us
        plain = [b'{"value":%b%b' % (text, tail) for text in go_floats(readings.columns[VALUE])]
        times = time_us.tolist()
        shown = [sensor.instants.claim(time) for sensor, time in zip(sensors, times, strict=True)]
        if shown != times:
            time_us = np.array(shown, dtype=np.int64)
        purposes: list[Purpose] | None = None
        if self.replayable:
            purposes = [(sensor.uuid, *tick, time, text) for sensor, tick, time, text
                        in zip(sensors, _ticks(readings), shown, plain, strict=True)]
        texts, ivs, tags = sealed([sensor.seal for sensor in sensors], plain, purposes)
        parts: list[Any] = [
            [sensor.head for sensor in sensors], *self._times(time_us),
            repeat(_AFTER_TIME), texts, repeat(b'","iv":"'), ivs, repeat(b'","authTag":"'), tags,
            repeat(b'"}'),
        ]
        return list(map(b"".join, zip(*parts, strict=False)))

    # -- few rows, or copies among them ---------------------------------------------------------

    def _one_by_one(self, readings: Readings, known: _Known) -> Messages:
        column = readings.columns[VALUE]
        missing: dict[str, int] = {}
        kept = np.ones(len(readings), dtype=np.bool_)
        topics, payloads, ids = [], [], []
        rows = zip(readings.device.tolist(), readings.time_us.tolist(), _floats(column),
                   _ticks(readings), _copies(readings), strict=True)
        for row, (i, time_us, value, tick, copy) in enumerate(rows):
            sensor = known.sensors[i]
            reason = "" if self._current(sensor) else NO_GATEWAY
            if not reason and value - value != 0.0:  # NaN, as of an infinite one
                reason = NO_NUMBER
            if reason:
                missing[reason] = missing.get(reason, 0) + 1
                kept[row] = False
                continue
            sub = f".{tick[1]}" if tick[1] else ""
            topics.append(sensor.subject)
            payloads.append(self._payload(sensor, value, tick, time_us, copy, known.tail))
            ids.append(f"{known.names[i]}/{tick[0]}{sub}/{copy or 0}")
        if not missing:
            return Messages(topics, payloads, ids, readings.time_us)
        return Messages(topics, payloads, ids, readings.time_us[kept], missing, kept)

    def _payload(
        self, sensor: _Sensor, value: float, tick: tuple[int, int], time_us: int, copy: int | None,
        tail: bytes,
    ) -> bytes:
        # A copy is None in a block that has no copies: then nothing needs to be remembered.
        if copy:
            before = self._sent.get(sensor.device)
            if before is not None and before[0] == tick:
                return before[1]
        else:
            time_us = sensor.instants.claim(time_us)
        plain = b'{"value":%b%b' % (go_float(value), tail)
        purpose = (sensor.uuid, *tick, time_us, plain) if self.replayable else None
        text, iv, tag = sealed_one(sensor.seal, plain, purpose)
        second, micros = divmod(time_us, US_PER_SECOND)
        payload = b'%b%b%06dZ",%b%b","iv":"%b","authTag":"%b"}' % (
            sensor.head, self._second_text(second), micros, _AFTER_TIME[1:], text, iv, tag)
        if copy is not None:
            self._sent[sensor.device] = (tick, payload)
        return payload


class _Sensor:
    # What envelopes of one sensor have in common; its secret is in `seal` and `record`.
    __slots__ = ("device", "gateway", "head", "instants", "kind", "name", "record", "seal",
                 "subject", "uuid")

    def __init__(self, device: str, instants: Instants) -> None:
        self.device, self.instants = device, instants
        self.gateway, self.name = local_name(device)
        self.record: GatewayRecord | None = None
        self.seal: Seal
        self.subject = ""
        self.head = self.uuid = self.kind = b""

    def __repr__(self) -> str:
        return f"<sensor {self.device!r}>"


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    sensors: list[_Sensor]
    names: list[str]
    kind: bytes
    tail: bytes


def _numbers(column: Column) -> npt.NDArray[np.bool_]:
    if column.kind not in ("float", "int"):
        return np.zeros(len(column.values), dtype=np.bool_)
    finite = np.isfinite(column.values)
    return np.asarray(finite if column.present is None else finite & column.present)


def _floats(column: Column) -> list[float]:
    # NaN where there is no number.
    if column.kind == "float" and column.present is None:
        return cast(list[float], column.values.tolist())
    numbers = _numbers(column)
    return [float(value) if number else math.nan
            for value, number in zip(column.values.tolist(), numbers.tolist(), strict=True)]


def _ticks(readings: Readings) -> list[tuple[int, int]]:
    sub = None if readings.marks is None else readings.marks.sub
    subs = [0] * len(readings) if sub is None else sub.tolist()
    return list(zip(readings.seq.tolist(), subs, strict=True))


def _copies(readings: Readings) -> list[int] | list[None]:
    copies = None if readings.marks is None else readings.marks.copy
    return [None] * len(readings) if copies is None else copies.tolist()
