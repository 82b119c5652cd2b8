"""Gateways of the reference simulator, taken over from its own SQLite file."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from iotsim.errors import BadValue, IotsimError, StoreError
from iotsim.gateway.commands import STATUSES
from iotsim.gateway.record import FREQUENCY_MS_MAX, GatewayRecord, Intent, Status
from iotsim.gateway.sensors import Sensor, sensor
from iotsim.gateway.store import Store
from iotsim.gateway.store_file import failure, real_path
from iotsim.gateway.store_values import AES_KEY_BYTES
from iotsim.transport.discretion import discreet
from iotsim.units import instant_text, instant_us

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "name", "gateway_id", "factory_id", "status", "intent", "sensors", "outcome",
           "problem")
_GATEWAY = ("id", "management_gateway_id", "factory_id", "factory_key", "model",
            "firmware_version", "provisioned", "cert_pem", "private_key_pem", "encryption_key",
            "send_frequency_ms", "status", "tenant_id", "created_at")
_SENSOR = ("gateway_id", "type", "min_range", "max_range", "algorithm")
_ALGORITHMS = ("uniform_random", "sine_wave", "spike", "constant")
_DEFAULT_MS = 5000
_NAME = re.compile(r"[\w-]+")
_TEMPLATE = "Give text with {id}, {factory_id} or {gateway_id}, such as 'gw-{id}'."
# As Go prints a time: a zone as a number, then as a name, then what its own clock said.
_GO_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\s*(Z|[+-]\d\d:?\d\d)?"
    r"(?: [A-Z+-][A-Za-z0-9+-]*)?(?: m=[+-][0-9.]+)?"
)

Row = Mapping[str, Any]


@discreet
def import_reference(
    path: str | PathLike[str], store: Store, *, name: str = "gw-{id}", seed: int = 0
) -> pd.DataFrame:
    """Take over the gateways of a reference simulator, with keys, certificates and sensors.

    Its file is only read. A gateway that is in the store already stays as it is there, so that a
    second import does nothing. What it had paused stays paused; what was offline is stopped. The
    ids of sensors are new: here they follow from the gateway's id and the sensor's name.

    Parameters
    ----------
    path : str or path
        What `SQLITE_PATH` was.
    store : Store
    name : str
        What each gateway is called here; `{id}` is its number in that file.
    seed : int
        Of all of them.

    Returns
    -------
    DataFrame
        A row for each gateway of that file: id, name, gateway_id, factory_id, status, intent,
        sensors (how many came), outcome (taken, already there, left out), problem (what could
        not be taken over, or was changed).

    Raises
    ------
    StoreError
        If it is no such file.

    Examples
    --------
    >>> with Store.open("gateways.db") as store:                          # doctest: +SKIP
    ...     table = import_reference("simulator.db", store)
    """
    import pandas as pd

    if not isinstance(name, str) or not re.search(r"\{(id|factory_id|gateway_id)\}", name):
        raise BadValue("name", name, "gives all gateways the same name", _TEMPLATE)
    file = real_path(path)
    gateways, sensors = _read(file)
    came: dict[Any, list[Row]] = {}
    for row in sensors:
        came.setdefault(row["gateway_id"], []).append(row)
    told = [_take(store, row, came.get(row["id"], []), name, seed) for row in gateways]
    return pd.DataFrame(told, columns=list(COLUMNS))


def _read(path: str) -> tuple[list[Row], list[Row]]:
    if not Path(path).is_file():
        raise StoreError(path, "is not there, or not a file", "Give the path of a SQLite file.")
    try:
        with closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            gateways = _rows(connection, path, "gateways", _GATEWAY)
            return gateways, _rows(connection, path, "sensors", _SENSOR)
    except sqlite3.Error as error:
        raise failure(path, error) from None


def _rows(
    connection: sqlite3.Connection, path: str, table: str, columns: tuple[str, ...]
) -> list[Row]:
    there = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
    missing = [column for column in columns if column not in there]
    if missing:
        raise StoreError(path, "is not a file of the reference simulator: its table of "
                         f"{table} has no {', '.join(missing)}")
    listed = ", ".join(columns)
    return [dict(row) for row in connection.execute(f"SELECT {listed} FROM {table} ORDER BY id")]


def _take(
    store: Store, row: Row, sensors: list[Row], template: str, seed: int
) -> tuple[Any, ...]:
    problems: list[str] = []
    called = _called(template, row)
    record = GatewayRecord(called, "")
    gateway_id, factory_id = _text(row["management_gateway_id"]), _text(row["factory_id"])
    outcome = "left out"
    try:
        record = _record(row, called, sensors, seed, problems)
        earlier = store.get(called)
        earlier = earlier if earlier is not None and earlier.factory_id == factory_id \
            else store.by_gateway_id(gateway_id)
        if earlier is not None:
            record, outcome, problems = earlier, "already there", []
        else:
            store.add(record)
            outcome = "taken"
    except IotsimError as error:
        problems = [str(error)]
    return (row["id"], record.name, gateway_id, factory_id, record.status, record.intent,
            len(record.sensors), outcome, "; ".join(problems))


def _called(template: str, row: Row) -> str:
    found = template
    for place, column in (("{id}", "id"), ("{factory_id}", "factory_id"),
                          ("{gateway_id}", "management_gateway_id")):
        found = found.replace(place, _text(row[column]))
    return found


def _record(
    row: Row, name: str, sensors: list[Row], seed: int, problems: list[str]
) -> GatewayRecord:
    if not _NAME.fullmatch(name):
        raise BadValue("name", name, "cannot be a gateway's name",
                       "Give another template, such as name='gw-{id}'.")
    gateway_id = _text(row["management_gateway_id"])
    try:
        UUID(gateway_id)
    except ValueError:
        raise BadValue("management_gateway_id", gateway_id, "is no UUID") from None
    status, intent = _state(_text(row["status"]), bool(row["provisioned"]), problems)
    key = row["encryption_key"]
    if not isinstance(key, bytes) or len(key) != AES_KEY_BYTES:
        problems.append("it has no AES key of 32 bytes, so it cannot publish")
        key = b""
    problems += [f"it has no {column}" for column in ("cert_pem", "private_key_pem")
                 if not row[column]]
    every_ms = row["send_frequency_ms"]
    if type(every_ms) is not int or not 1 <= every_ms <= FREQUENCY_MS_MAX:
        problems.append(f"send_frequency_ms={every_ms} cannot be: it is {_DEFAULT_MS} now")
        every_ms = _DEFAULT_MS
    return GatewayRecord(
        name=name, factory_id=_text(row["factory_id"]), factory_key=_text(row["factory_key"]),
        model=_text(row["model"]), firmware=_text(row["firmware_version"]),
        send_frequency_ms=every_ms, seed=seed, sensors=_specs(sensors, problems),
        private_key_pem=_text(row["private_key_pem"]), gateway_id=gateway_id,
        tenant_id=_text(row["tenant_id"]), cert_pem=_text(row["cert_pem"]), aes_key=key,
        status=status, intent=intent, created_at=_instant(row["created_at"], problems),
    )


def _state(stored: str, provisioned: bool, problems: list[str]) -> tuple[Status, Intent]:
    if stored == "provisioning" and not provisioned:
        return "provisioning", "running"
    meant = STATUSES.get(stored.strip().lower())
    if meant == "offline":  # what its stop wrote; the platform did not ask for it
        return "online", "stopped"
    if meant is None and stored != "provisioning":
        problems.append(f"status={stored[:40]!r} is unknown: it is online now, as it was there")
    return meant or "online", "running"


def _specs(rows: list[Row], problems: list[str]) -> tuple[Mapping[str, Any], ...]:
    made: list[Sensor] = []
    for row in rows:
        algorithm = _text(row["algorithm"])
        try:
            made.append(sensor(
                row["type"], algorithm=algorithm if algorithm in _ALGORITHMS else _ALGORITHMS[0],
                taken=tuple(one.name for one in made), min=row["min_range"], max=row["max_range"],
            ))
        except IotsimError as error:
            problems.append(f"a sensor was left out: {error}")
            continue
        if algorithm not in _ALGORITHMS:  # there, too, it made no difference
            problems.append(f"algorithm={algorithm[:40]!r} of {made[-1].name} is unknown: it is "
                            "uniform_random now, as it was there")
    return tuple(one.spec() for one in made)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _instant(value: Any, problems: list[str]) -> str:
    """Return a time that Go or SQLite wrote as RFC 3339 in UTC, cut to microseconds."""
    found = _GO_TIME.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        day, hour, fraction, zone = found.groups()
        text = f"{day}T{hour}.{(fraction or '0')[:6].ljust(6, '0')}{zone or 'Z'}"
        try:
            return instant_text(instant_us(text))
        except (BadValue, OverflowError):
            pass
    problems.append("its created_at is no time")
    return ""
