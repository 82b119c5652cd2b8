"""What the reference simulator stored (contract A14) comes in: keys, certificates, sensors."""

import math
import os
import sqlite3
from contextlib import closing
from uuid import UUID, uuid5

import pytest

from iotsim.errors import BadValue, StoreError
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.sensors import sensor_of_spec
from iotsim.gateway.spec import Gateway
from iotsim.gateway.store import Store
from iotsim.gateway.store_import import COLUMNS, import_reference
from tests import in_memory

tmp_path = in_memory.tmp_path  # the fixture

# As contract A14 tells it: what its three migrations leave.
SCHEMA = """
CREATE TABLE schema_migrations (version TEXT PRIMARY KEY, applied_at DATETIME);
CREATE TABLE gateways (
    id INTEGER PRIMARY KEY AUTOINCREMENT, management_gateway_id TEXT UNIQUE, factory_id TEXT,
    factory_key TEXT, model TEXT, firmware_version TEXT DEFAULT '', provisioned INTEGER,
    cert_pem BLOB, private_key_pem BLOB, encryption_key BLOB,
    send_frequency_ms INTEGER DEFAULT 5000, status TEXT DEFAULT 'provisioning', tenant_id TEXT,
    created_at DATETIME);
CREATE TABLE sensors (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    gateway_id INTEGER REFERENCES gateways (id) ON DELETE CASCADE, sensor_id TEXT UNIQUE,
    type TEXT, min_range REAL, max_range REAL, algorithm TEXT, created_at DATETIME);
CREATE INDEX by_gateway ON sensors (gateway_id);
"""
SPACE = UUID("9f5a0a3e-0a53-4b2f-8c4e-0d8f3a1b2c3d")
AES = bytes(range(200, 232))
GO_TIME = "2026-04-12 10:00:00.123456789 +0000 UTC m=+0.123456789"


@pytest.fixture
def theirs(tmp_path):
    path = tmp_path / "simulator ?#%.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
    return path


@pytest.fixture
def ours(tmp_path):
    with Store.open(tmp_path / "gateways.db") as store:
        yield store


def insert(path, table, **row):
    with closing(sqlite3.connect(path)) as connection:
        places = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})",
                           tuple(row.values()))
        connection.commit()


def gateway(path, number, **changes):
    insert(path, "gateways", **{
        "id": number, "management_gateway_id": str(uuid5(SPACE, str(number))),
        "factory_id": f"factory-{number}", "factory_key": "plain-sesame", "model": "m",
        "firmware_version": "1.0", "provisioned": 1, "cert_pem": b"certificate\r\n",
        "private_key_pem": b"plain private key", "encryption_key": AES, "send_frequency_ms": 2000,
        "status": "online", "tenant_id": "tenant-1", "created_at": GO_TIME, **changes})


def sensor(path, gateway_id, type="temperature", low=10, high=30, algorithm="sine_wave"):
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM sensors").fetchone()
    insert(path, "sensors", gateway_id=gateway_id, sensor_id=f"sensor {count}", type=type,
           min_range=low, max_range=high, algorithm=algorithm, created_at=GO_TIME)


def told(table):
    return [tuple(row) for row in table[["name", "status", "intent", "sensors", "outcome",
                                         "problem"]].itertuples(index=False)]


def test_a_gateway_comes_with_all_that_it_needs_to_go_on(theirs, ours):
    gateway(theirs, 7)
    sensor(theirs, 7)
    sensor(theirs, 7, "temperature", -1.5, 2.25, "spike")
    sensor(theirs, 7, "biometric", 55, 100, "constant")
    table = import_reference(theirs, ours, seed=5)
    assert tuple(table.columns) == COLUMNS
    assert told(table) == [("gw-7", "online", "running", 3, "taken", "")]
    (record,) = ours.records()
    assert record == GatewayRecord(
        "gw-7", "factory-7", "plain-sesame", "m", "1.0", 2000, 5,
        ({"name": "temperature", "type": "temperature", "algorithm": "sine_wave", "min": 10.0,
          "max": 30.0},
         {"name": "temperature-2", "type": "temperature", "algorithm": "spike", "min": -1.5,
          "max": 2.25},
         {"name": "biometric", "type": "biometric", "algorithm": "constant", "min": 55.0,
          "max": 100.0}),
        "plain private key", str(uuid5(SPACE, "7")), "tenant-1", "certificate\r\n", AES,
        "online", "running", "2026-04-12T10:00:00.123456Z",
    )
    assert record.provisioned
    assert [sensor_of_spec(spec).unit for spec in record.sensors] == ["°C", "°C", "bpm"]
    assert Gateway(record.name).names() == ["gw-7"]


def test_what_was_plain_there_is_encrypted_here_and_theirs_is_only_read(theirs, ours, tmp_path):
    gateway(theirs, 1)
    before = theirs.read_bytes(), sorted(os.listdir(tmp_path))
    import_reference(theirs, ours)
    assert (theirs.read_bytes(), sorted(os.listdir(tmp_path))) == before
    for file in tmp_path.glob("gateways.db*"):
        for secret in (b"plain-sesame", b"plain private key", AES):
            assert secret not in file.read_bytes()


@pytest.mark.parametrize(("stored", "status", "intent"), [
    ("online", "online", "running"), ("paused", "paused", "running"),
    ("suspended", "paused", "running"), ("offline", "online", "stopped"),
    ("provisioning", "online", "running"), (b"paused", "paused", "running"),
])
def test_what_was_paused_stays_paused_and_what_was_offline_is_stopped(
    theirs, ours, stored, status, intent
):
    gateway(theirs, 1, status=stored)
    assert told(import_reference(theirs, ours)) == [("gw-1", status, intent, 0, "taken", "")]
    assert (ours.get("gw-1").status, ours.get("gw-1").intent) == (status, intent)


def test_a_status_that_nobody_knows_was_online_there_and_is_here(theirs, ours):
    gateway(theirs, 1, status="asleep")
    (row,) = told(import_reference(theirs, ours))
    assert row[1:3] == ("online", "running")
    assert row[-1] == "status='asleep' is unknown: it is online now, as it was there"


def test_a_gateway_that_was_not_provisioned_yet_is_not_here_either(theirs, ours):
    gateway(theirs, 1, status="provisioning", provisioned=0, encryption_key=None, cert_pem=None)
    (row,) = told(import_reference(theirs, ours))
    assert row[:5] == ("gw-1", "provisioning", "running", 0, "taken")
    assert not ours.get("gw-1").provisioned


@pytest.mark.parametrize(("stored", "expected"), [
    (GO_TIME, "2026-04-12T10:00:00.123456Z"),
    ("2026-04-12 10:00:00.123456789 +0000 UTC", "2026-04-12T10:00:00.123456Z"),
    ("2026-04-12 12:00:00.5 +0200 CEST m=+3600.000000001", "2026-04-12T10:00:00.500000Z"),
    ("2026-04-12 06:30:00 -0330 -0330 m=-1.5", "2026-04-12T10:00:00.000000Z"),
    ("2026-04-12 13:00:00 +0300 +03", "2026-04-12T10:00:00.000000Z"),
    ("2026-04-12 10:00:00", "2026-04-12T10:00:00.000000Z"),
    ("2026-04-12T10:00:00Z", "2026-04-12T10:00:00.000000Z"),
    ("2026-04-12T10:00:00.123+00:00", "2026-04-12T10:00:00.123000Z"),
])
def test_a_time_as_go_prints_it_is_a_time(theirs, ours, stored, expected):
    gateway(theirs, 1, created_at=stored)
    assert told(import_reference(theirs, ours))[0][-1] == ""
    assert ours.get("gw-1").created_at == expected


@pytest.mark.parametrize("stored", [None, "", "soon", 5, "2026-13-12 10:00:00 +0000 UTC",
                                    "0000-01-01 00:00:00 +0000 UTC", b"\xff", "2026-04-12"])
def test_what_is_no_time_is_said_and_keeps_nobody_out(theirs, ours, stored):
    gateway(theirs, 1, created_at=stored)
    assert told(import_reference(theirs, ours))[0][-2:] == ("taken", "its created_at is no time")
    assert ours.get("gw-1").created_at == ""


def test_a_sensor_that_cannot_be_is_left_out_and_its_gateway_is_not(theirs, ours):
    gateway(theirs, 1)
    sensor(theirs, 1, "temperature", 30, 10)
    sensor(theirs, 1, "temperature", None, 10)
    sensor(theirs, 1, "temperature", 0, math.inf)
    sensor(theirs, 1, "radiation")
    sensor(theirs, 1, None)
    sensor(theirs, 1, "humidity", 10, 90, "chaos")
    (row,) = told(import_reference(theirs, ours))
    assert row[3:5] == (1, "taken")
    problems = row[-1].split("; ")
    assert sum(problem.startswith("a sensor was left out: ") for problem in problems) == 5
    assert problems[-1] == ("algorithm='chaos' of humidity is unknown: it is uniform_random now, "
                            "as it was there")
    (spec,) = ours.get("gw-1").sensors
    assert spec == {"name": "humidity", "type": "humidity", "algorithm": "uniform_random",
                    "min": 10.0, "max": 90.0}


@pytest.mark.parametrize("frequency", [0, -5, 2**63 - 1, 1.5, "often", None])
def test_a_frequency_that_cannot_be_is_five_seconds(theirs, ours, frequency):
    gateway(theirs, 1, send_frequency_ms=frequency)
    assert "it is 5000 now" in told(import_reference(theirs, ours))[0][-1]
    assert ours.get("gw-1").send_frequency_ms == 5000


def test_a_gateway_without_its_key_is_taken_and_says_so(theirs, ours):
    gateway(theirs, 1, encryption_key=AES[1:])
    gateway(theirs, 2, encryption_key=None, private_key_pem=None)
    first, second = told(import_reference(theirs, ours))
    assert first[-1] == "it has no AES key of 32 bytes, so it cannot publish"
    assert second[-1].endswith("; it has no private_key_pem")
    assert not any(record.provisioned for record in ours.records())
    assert ours.get("gw-1").private_key_pem == "plain private key"


def test_a_second_import_changes_nothing(theirs, ours):
    gateway(theirs, 1)
    gateway(theirs, 2)
    import_reference(theirs, ours)
    ours.update("gw-1", status="paused")
    before = ours.records()
    again = import_reference(theirs, ours)
    assert told(again) == [("gw-1", "paused", "running", 0, "already there", ""),
                           ("gw-2", "online", "running", 0, "already there", "")]
    assert list(import_reference(theirs, ours, name="other-{id}")["name"]) == ["gw-1", "gw-2"]
    assert ours.records() == before


def test_one_gateway_that_cannot_come_keeps_no_other_out(theirs, ours):
    ours.save(GatewayRecord("gw-1", "mine"))
    for number in range(1, 6):
        gateway(theirs, number)
    with closing(sqlite3.connect(theirs)) as connection:
        connection.execute("UPDATE gateways SET management_gateway_id = 'x' WHERE id = 2")
        connection.execute("UPDATE gateways SET factory_id = 'factory-5' WHERE id = 4")
        connection.commit()
    table = import_reference(theirs, ours)
    assert list(table["outcome"]) == ["left out", "left out", "taken", "taken", "left out"]
    problems = list(table["problem"])
    assert problems[0].startswith("name='gw-1' is in the store already.")
    assert problems[1] == "management_gateway_id='x' is no UUID."
    assert problems[4].startswith("factory_id='factory-5' is that of gateway 'gw-4' already.")
    assert ours.names() == ["gw-1", "gw-3", "gw-4"]
    assert ours.get("gw-1") == GatewayRecord("gw-1", "mine")
    assert "sesame" not in table.to_string()


def test_names_can_be_made_otherwise(theirs, ours):
    gateway(theirs, 1)
    gateway(theirs, 2, factory_id="a:b")
    table = import_reference(theirs, ours, name="{factory_id}-{id}")
    assert ours.names() == ["factory-1-1"]
    assert table["problem"][1].startswith("name='a:b-2' cannot be a gateway's name.")


@pytest.mark.parametrize("name", ["gateway", "{n}", "", 5, None])
def test_a_name_for_all_of_them_is_refused(theirs, ours, name):
    with pytest.raises(BadValue, match="gives all gateways the same name"):
        import_reference(theirs, ours, name=name)


def test_an_empty_file_of_theirs_is_an_empty_table(theirs, ours):
    table = import_reference(theirs, ours)
    assert (len(table), tuple(table.columns)) == (0, COLUMNS)


def test_what_is_no_file_of_theirs_says_so(tmp_path, ours):
    (tmp_path / "notes").write_text("some notes that are longer than the head of a file")
    (tmp_path / "empty").write_text("")
    for path, problem in (
        (tmp_path / "missing", "is not there, or not a file"), (tmp_path, "not a file"),
        (tmp_path / "notes", "is not a SQLite file"),
        (tmp_path / "empty", "its table of gateways has no id, management_gateway_id"),
        (ours.path, "its table of gateways has no management_gateway_id"),
    ):
        with pytest.raises(StoreError, match=problem):
            import_reference(path, ours)
    assert ours.names() == []
