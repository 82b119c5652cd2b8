"""The store of gateways: what is saved is there again, whoever killed whom in between."""

import gc
import os
import random
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace

import pytest

from iotsim.errors import BadValue, StoreError, UnknownName
from iotsim.gateway import store_file, store_rows
from iotsim.gateway.commands import Answer
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.store import Store, StoreSnapshot
from iotsim.gateway.store_rows import ANSWERS_MAX
from iotsim.gateway.store_schema import MIGRATIONS, migrate

SENSORS = (
    {"name": "temperature", "type": "temperature", "algorithm": "sine_wave", "min": 10,
     "max": 30.5},
    {"name": "pulse", "type": "biometric", "algorithm": "playback", "rows": [1, None, {"a": True}]},
)
HOSTILE = {
    "quotes": "'; DROP TABLE gateways; --\"`", "NUL": "a\x00b", "NUL before": "a", "emoji": "🛰️ gw",
    "long": "x" * 10_000, "newline": "a\nb", "percent": "%_{}", "right to left": "\u202egw",
    "spaces": "  a  ", "case": "A",
}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "gateways.db")


def record(name="gw-1", **changes):
    base = GatewayRecord(
        name, f"factory of {name}", "sesame", "model x", "1.2.3", 2000, 2**63 - 1, SENSORS,
        "-----BEGIN RSA PRIVATE KEY-----\n…\n", f"id of {name}", "tenant-1", "certificate\r\n",
        bytes(range(32)), "online", "running", "2026-01-01T00:00:00.000000Z",
    )
    return replace(base, **changes)


# -- records --------------------------------------------------------------------------------------


def test_what_is_saved_is_there_when_the_store_is_opened_again(path):
    bare = GatewayRecord("gw-2", "f-2")
    with Store.open(path) as store:
        store.save(record())
        store.save(bare)
    with Store.open(path) as store:
        assert store.records() == [record(), bare]
        assert store.get("gw-1") == record()
        assert store.by_gateway_id("id of gw-1") == record()
        assert store.names() == ["gw-1", "gw-2"]


def test_what_is_not_there_is_none(path):
    with Store.open(path) as store:
        store.save(GatewayRecord("gw-1", "f-1"))
        assert store.get("gw-2") is None
        assert store.by_gateway_id("gw-2") is None
        assert store.by_gateway_id("") is None
        assert store.delete("gw-2") is False
        assert store.answered("gw-2", "c-1") is None


def test_saving_again_replaces_every_field_and_keeps_the_answers(path):
    with Store.open(path) as store:
        store.save(record())
        store.remember("gw-1", "c-1", "ack")
        second = GatewayRecord("gw-1", "f-9", sensors=SENSORS[1:], status="paused")
        store.save(second)
        assert store.records() == [second]
        assert store.answered("gw-1", "c-1") == Answer("c-1", "ack")


def test_a_gateway_is_added_once(path):
    with Store.open(path) as store:
        store.add(record())
        with pytest.raises(BadValue, match="'gw-1' is in the store already"):
            store.add(record("gw-2"), record(factory_key="other"))
        assert store.records() == [record()]


def test_an_update_changes_the_fields_that_it_names(path):
    with Store.open(path) as store:
        store.save(record(), record("gw-2"))
        changed = store.update("gw-1", status="paused", intent="stopped", aes_key=bytes(32),
                               sensors=SENSORS[:1])
        expected = record(status="paused", intent="stopped", aes_key=bytes(32), sensors=SENSORS[:1])
        assert changed == expected
        assert store.records() == [expected, record("gw-2")]
        assert store.update("gw-1") == expected


def test_a_gateway_goes_with_its_sensors_and_its_answers(path):
    with Store.open(path) as store:
        store.save(record())
        store.remember("gw-1", "c-1", "ack")
        assert store.snapshot() == StoreSnapshot(1, 2, 1, 0)
        assert store.delete("gw-1") is True
        assert store.snapshot() == StoreSnapshot(0, 0, 0, 0)
        store.save(record())
        assert store.answered("gw-1", "c-1") is None


def test_hostile_names_are_names(path):
    with Store.open(path) as store:
        saved = [
            record(name, factory_id=f"f{name}", gateway_id=f"g{name}",
                   sensors=({"name": name, "type": name, name: [name, "\ud800"]},))
            for name in HOSTILE.values()
        ]
        store.save(*saved)
        for one in saved:
            store.remember(one.name, one.name, "nack", one.name, one.name)
    with Store.open(path) as store:
        assert store.records() == saved
        for one in saved:
            assert store.get(one.name) == one
            assert store.by_gateway_id(one.gateway_id) == one
            said = Answer(one.name, "nack", one.name, one.name)
            assert store.answered(one.name, one.name) == said
        assert all(store.delete(one.name) for one in saved)
        assert store.snapshot() == StoreSnapshot(0, 0, 0, 0)


@pytest.mark.parametrize("changes", [
    {"name": ""}, {"name": "\ud800"}, {"name": 5}, {"factory_id": None}, {"factory_key": "\udfff"},
    {"factory_key": b"bytes"}, {"aes_key": bytes(31)}, {"aes_key": "0" * 32}, {"seed": 2**63},
    {"seed": -1}, {"seed": True}, {"send_frequency_ms": 1.5}, {"status": "suspended"},
    {"intent": ""}, {"created_at": 5}, {"sensors": "temperature"}, {"sensors": ({},)},
    {"sensors": ({"name": "a"},)}, {"sensors": ({"name": "a", "type": 5},)},
    {"sensors": ({"name": "a", "type": "b", "min": float("nan")},)},
    {"sensors": ({"name": "a", "type": "b", 5: 5},)},
    {"sensors": ({"name": "a", "type": "b", "min": 10**5000},)},
    {"sensors": ({"name": "a", "type": "b", "c": {1, 2}},)},
    {"sensors": ({"name": "a", "type": "b"}, {"name": "a", "type": "c"})},
], ids=lambda changes: next(iter(changes)))
def test_what_cannot_be_stored_is_refused_and_changes_nothing(path, changes):
    with Store.open(path) as store:
        store.save(record())
        with pytest.raises(BadValue) as caught:
            store.save(record("gw-2"), replace(record("gw-3"), **changes))
        assert "sesame" not in str(caught.value)
        if "name" not in changes:
            with pytest.raises(BadValue):
                store.update("gw-1", **changes)
            with pytest.raises(BadValue):
                store.apply("gw-1", changes, Answer("c-1", "ack"))
        assert store.records() == [record()]
        assert store.snapshot().answers == 0


def test_a_spec_that_never_ends_is_refused(path):
    endless = {"name": "a", "type": "b"}
    endless["self"] = endless
    with Store.open(path) as store, pytest.raises(BadValue, match="nested deeper than 20"):
        store.save(record(sensors=(endless,)))


@pytest.mark.parametrize("field", ["factory_id", "gateway_id"])
def test_two_gateways_never_share_an_id(path, field):
    with Store.open(path) as store:
        store.save(record(), record("gw-2"))
        shared = getattr(record(), field)
        with pytest.raises(BadValue, match=f"{field}='{shared}' is that of gateway 'gw-1' already"):
            store.update("gw-2", status="paused", **{field: shared})
        with pytest.raises(BadValue):
            store.save(record("gw-3", **{field: shared}))
        assert store.records() == [record(), record("gw-2")]
        store.update("gw-1", **{field: ""})
        store.update("gw-2", **{field: ""})


def test_an_unknown_gateway_or_field_is_named(path):
    with Store.open(path) as store:
        store.save(record())
        with pytest.raises(UnknownName, match=r"no gateway called 'gw-7'\. Did you mean 'gw-1'"):
            store.update("gw-7", status="paused")
        with pytest.raises(UnknownName, match="no field of a gateway called 'state'"):
            store.update("gw-1", state="paused")
        with pytest.raises(BadValue, match="name='gw-2' cannot be changed"):
            store.apply("gw-1", {"name": "gw-2"}, Answer("c-1", "ack"))
        with pytest.raises(UnknownName):
            store.remember("gw-7", "c-1", "ack")


# -- answers --------------------------------------------------------------------------------------


def test_a_change_and_its_answer_are_stored_together(path):
    with Store.open(path) as store:
        store.save(record())
        answer = Answer("c-1", "ack", "as you say", "2026-01-01T00:00:00.000Z")
        store.apply("gw-1", {"send_frequency_ms": 7}, answer)
        with pytest.raises(BadValue):
            store.apply("gw-1", {"send_frequency_ms": 8, "seed": -1}, Answer("c-2", "ack"))
        with pytest.raises(BadValue):
            store.apply("gw-1", {"send_frequency_ms": 9}, Answer("c-3", "done"))
    with Store.open(path) as store:
        assert store.get("gw-1") == record(send_frequency_ms=7)
        assert store.answered("gw-1", "c-1") == answer
        assert store.snapshot().answers == 1


def test_many_changes_are_stored_together_or_not_at_all(path):
    with Store.open(path) as store:
        store.save(record(), record("gw-2"))
        batch = [(name, {"status": "paused"}, Answer("c-1", "ack")) for name in ("gw-1", "gw-2")]
        with pytest.raises(UnknownName):
            store.apply_all([*batch, ("gw-3", {}, Answer("c-1", "ack"))])
        assert store.records() == [record(), record("gw-2")]
        assert store.snapshot().answers == 0
        store.apply_all(batch)
        assert [one.status for one in store.records()] == ["paused", "paused"]
        assert store.snapshot().answers == 2


def test_an_answer_belongs_to_one_gateway_and_can_be_replaced(path):
    with Store.open(path) as store:
        store.save(record(), record("gw-2"))
        store.remember("gw-1", "c-1", "ack")
        store.remember("gw-1", "c-1", "nack", "could not be done", "later")
        assert store.answered("gw-1", "c-1") == Answer("c-1", "nack", "could not be done", "later")
        assert store.answered("gw-2", "c-1") is None


def test_the_latest_thousand_answers_of_each_gateway_are_kept_and_the_others_counted(path):
    with Store.open(path) as store:
        store.save(record(), record("gw-2"))
        store.remember("gw-2", "c-0", "ack")
        store.apply_all([("gw-1", {}, Answer(f"c-{i}", "ack")) for i in range(ANSWERS_MAX + 30)])
        assert store.snapshot() == StoreSnapshot(2, 4, ANSWERS_MAX + 1, 30)
        assert store.answered("gw-1", "c-29") is None
        assert store.answered("gw-1", "c-30") is not None
        assert store.answered("gw-2", "c-0") is not None


# -- who has it open ------------------------------------------------------------------------------


def test_a_process_may_open_it_again_and_shares_it(path, tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(path)
    first = Store.open(path)
    second = Store.open(link)
    first.save(record())
    assert second.get("gw-1") == record()
    first.close()
    first.close()
    assert (first.closed, second.closed) == (True, False)
    assert repr(first) == f"<Store {path!r}, closed>"
    with pytest.raises(StoreError, match="is closed"):
        first.get("gw-1")
    second.save(record("gw-2"))
    second.close()
    assert path not in store_file._OPEN
    assert not os.path.exists(f"{path}-wal")


def test_a_store_that_nobody_holds_any_more_is_closed(path):
    Store.open(path).save(record())
    gc.collect()
    assert path not in store_file._OPEN


CHILD = """
import sys
from iotsim.gateway.store import Store
from iotsim.errors import StoreError
try:
    store = Store.open(sys.argv[1])
except StoreError as error:
    print(error)
else:
    print("open", flush=True)
    sys.stdin.read()
"""


def child(code, *given):
    return subprocess.Popen([sys.executable, "-c", code, *given], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def killed(process):
    """What it had said that was not read yet."""
    process.kill()
    with process:  # not communicate(): it loses what readline() has taken in beyond its line
        return process.stdout.read()


def test_a_second_process_hears_who_has_it_open_and_may_have_it_afterwards(path):
    store = Store.open(path)
    other = child(CHILD, path)
    said, _ = other.communicate("", timeout=30)
    assert said == (f"{path}: process {os.getpid()} has it open. Two would run the same gateways "
                    "twice: end that one first.\n")
    store.close()
    other = child(CHILD, path)
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match=f"process {other.pid} has it open"):
            Store.open(path)
    finally:
        killed(other)
    Store.open(path).close()


FORKER = """
import os, sys
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.store import Store
store = Store.open(sys.argv[1])
store.save(GatewayRecord("gw-1", "f-1"))
print(os.getpid(), flush=True)
pid = os.fork()
if pid == 0:
    for attempt in (store.records, lambda: Store.open(sys.argv[1]), store.close):
        try:
            attempt()
        except Exception as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
store.save(GatewayRecord("gw-2", "f-2"))
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
"""


def test_a_lock_file_that_leads_elsewhere_is_not_followed(path, tmp_path):
    (tmp_path / "precious").write_text("keep me")
    (tmp_path / "gateways.db.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match="its lock file cannot be written"):
        Store.open(path)
    assert (tmp_path / "precious").read_text() == "keep me"


def test_a_fork_neither_writes_where_its_parent_does_nor_keeps_the_store_from_others(path):
    with child(FORKER, path) as parent:
        pid = parent.stdout.readline().strip()
        assert "this is a fork of that process" in parent.stdout.readline()
        assert f"process {pid} has it open" in parent.stdout.readline()
        parent.wait(timeout=30)
        with Store.open(path) as store:  # the second fork is still there
            assert store.names() == ["gw-1", "gw-2"]
        parent.stdin.close()
        assert parent.stdout.read() == ""


def test_an_interrupted_cell_leaves_nothing_half_done(path, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    with Store.open(path) as store:
        store.save(record())
        with monkeypatch.context() as patch:
            patch.setattr(store_rows, "put_answer", interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.apply("gw-1", {"status": "paused"}, Answer("c-1", "ack"))
        assert store.records() == [record()]
        store.apply("gw-1", {"status": "paused"}, Answer("c-1", "ack"))
        assert store.records() == [record(status="paused")]


def test_a_file_that_is_removed_while_it_is_open_is_noticed(path):
    with Store.open(path) as store:
        store.save(record())
        os.rename(path, f"{path}.away")
        with pytest.raises(StoreError, match="was removed or replaced while it was open"):
            store.save(record("gw-2"))
        with pytest.raises(StoreError, match="was removed or replaced"):
            Store.open(path)
        os.rename(f"{path}.away", path)
        store.save(record("gw-2"))
        assert store.names() == ["gw-1", "gw-2"]


def test_many_threads_write_at_once(path):
    errors = []

    def work(number):
        try:
            with Store.open(path) as mine:
                for i in range(5):
                    name = f"gw-{number}-{i}"
                    mine.save(record(name))
                    mine.apply(name, {"status": "paused"}, Answer("c", "ack"))
                    assert mine.get(name) == record(name, status="paused")
        except Exception as error:
            errors.append(error)

    with Store.open(path) as store:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert store.snapshot() == StoreSnapshot(40, 80, 40, 0)


# -- killed ---------------------------------------------------------------------------------------

SAVER = """
import sys
from iotsim.gateway.commands import Answer
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.store import Store
store = Store.open(sys.argv[1])
for i in range(len(store.names()), 1_000_000):
    name = f"gw-{i}"
    store.save(GatewayRecord(name, name, "k" * 300, private_key_pem="p" * 1700))
    store.update(name, aes_key=bytes(32), gateway_id=name, cert_pem="c" * 1200)
    store.apply(name, {"seed": i}, Answer("c", "ack"))
    print(i, flush=True)
"""


def test_what_was_reported_as_saved_survives_a_kill_at_any_moment(path):
    chance = random.Random(5)
    done = -1
    for _ in range(4):
        saver = child(SAVER, path)
        try:
            for _ in range(chance.randrange(1, 30)):
                done = int(saver.stdout.readline())
        finally:
            rest = killed(saver)
        done = max([done, *map(int, rest.split())])
        with Store.open(path) as store:
            found = store.records()
            assert len(found) in (done + 1, done + 2)
            for i, one in enumerate(found[:done + 1]):
                assert one.provisioned
                assert one.seed == i
                assert store.answered(one.name, "c") == Answer("c", "ack")
            for one in found[done + 1:]:  # begun, and not reported
                assert (one.seed != 0) == (store.answered(one.name, "c") is not None)
                store.delete(one.name)
        with closing(sqlite3.connect(path)) as plain:
            assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


MAKER = """
import sys
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.store import Store
for i in range(1_000_000):
    with Store.open(f"{sys.argv[1]}/{i}.db") as store:
        store.save(GatewayRecord("gw-1", "f-1", "sesame"))
        print(i, flush=True)
"""


def test_a_store_that_was_killed_while_it_was_made_can_be_opened(tmp_path):
    chance = random.Random(7)
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        maker = child(MAKER, str(folder))
        try:
            for _ in range(chance.randrange(1, 20)):
                done = int(maker.stdout.readline())
            for _ in range(chance.randrange(1, 40_000)):
                pass
        finally:
            rest = killed(maker)
        done = max([done, *map(int, rest.split())])
        begun = {int(file.name.split(".")[0]) for file in folder.iterdir()}
        for i in sorted(begun):
            with Store.open(folder / f"{i}.db") as store:
                assert store.names() in ([["gw-1"]] if i <= done else [["gw-1"], []])
                store.save(GatewayRecord("gw-1", "f-1", "sesame"))
            with Store.open(folder / f"{i}.db") as store:
                assert store.get("gw-1").factory_key == "sesame"


# -- files that cannot be -------------------------------------------------------------------------


def test_a_store_is_for_its_owner_alone(path):
    old = os.umask(0)
    try:
        with Store.open(path) as store:
            store.save(record())
            modes = {name: os.stat(os.path.join(os.path.dirname(path), name)).st_mode & 0o777
                     for name in os.listdir(os.path.dirname(path))}
    finally:
        os.umask(old)
    assert modes == {f"gateways.db{end}": 0o600
                     for end in ("", "-wal", "-shm", ".key", ".lock")}


@pytest.mark.parametrize(("given", "problem"), [
    ("", "store='' is not the path of a file"), (None, "store=None is not a path"),
    (":memory:", "store=':memory:' is not the path of a file"),
    ("a\x00b", "is not the path of a file"), (b"gateways.db", "is not the path of a file"),
])
def test_what_is_no_path_is_refused(given, problem):
    with pytest.raises(BadValue, match=problem):
        Store.open(given)


def test_each_place_that_cannot_be_a_store_has_its_own_error(tmp_path):
    (tmp_path / "notes.txt").write_text("not SQLite, but longer than a head")
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for place, problem in (
        (tmp_path, "is a folder"),
        (tmp_path / "notes.txt", "is not a SQLite file"),
        (tmp_path / "pipe", "is not a file"),
        (tmp_path / "missing" / "gateways.db", "its lock file cannot be written: No such file"),
        (tmp_path / "file" / "gateways.db", "Not a directory"),
        ("/proc/version", "is not a SQLite file"),
        ("/proc/gateways.db", "cannot be written"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(StoreError, match=problem) as caught:
            Store.open(place)
        assert str(caught.value).startswith(str(place))
        assert caught.value.__cause__ is caught.value.__context__ is None
    assert sorted(os.listdir(tmp_path)) == ["file", "notes.txt", "pipe"]
    assert store_file._OPEN == {}


def test_a_database_of_another_program_is_left_as_it_is(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE gateways (id)")
        other.commit()
    with open(path, "rb") as file:
        before = file.read()
    with pytest.raises(StoreError, match="is a SQLite file of another program"):
        Store.open(path)
    with open(path, "rb") as file:
        assert file.read() == before


def test_a_store_of_a_newer_iotsim_is_refused(path):
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("INSERT INTO schema_migrations VALUES (99, '')")
        newer.commit()
    with pytest.raises(StoreError, match=r"a newer iotsim made it \(schema 99, known here: 1\)"):
        Store.open(path)


def test_a_migration_is_applied_once_and_whole(path):
    with Store.open(path) as store:
        store.save(record())
    later = (*MIGRATIONS, ("ALTER TABLE gateways ADD COLUMN region TEXT",
                           "UPDATE gateways SET region = 'north'"))
    broken = (*later, ("CREATE TABLE half (id)", "not SQL"))
    with closing(sqlite3.connect(path, isolation_level=None)) as plain:
        with pytest.raises(sqlite3.Error):
            migrate(plain, path, broken)
        migrate(plain, path, later)
        seen = plain.execute("SELECT version FROM schema_migrations").fetchall()
        assert seen == [(1,), (2,)]
        assert plain.execute("SELECT region FROM gateways").fetchall() == [("north",)]
        assert plain.execute("SELECT * FROM sqlite_master WHERE name = 'half'").fetchall() == []


def test_a_damaged_file_says_so(path):
    with Store.open(path) as store:
        store.save(*(record(f"gw-{i}") for i in range(50)))
    with open(path, "r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096 * 4))
    with pytest.raises(StoreError, match="is damaged"):
        Store.open(path)


def test_a_full_disk_keeps_what_was_saved_and_goes_on_when_there_is_room(path):
    with Store.open(path) as store:
        store.save(record())
        connection = store._file._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StoreError, match="the disk is full"):
            store.save(*(record(f"gw-{i}", cert_pem="c" * 9000) for i in range(2, 20)))
        assert store.records() == [record()]
        connection.execute("PRAGMA max_page_count = 100000")
        store.save(record("gw-2"))
        assert store.names() == ["gw-1", "gw-2"]


def test_a_file_that_cannot_grow_keeps_what_was_saved(path):
    code = """
import resource, sys
from iotsim.errors import StoreError
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.store import Store
from tests import in_memory

tmp_path = in_memory.tmp_path  # the fixture
store = Store.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
i = 0
try:
    for i in range(1000):
        store.save(GatewayRecord(f"gw-{i}", f"f-{i}", private_key_pem="p" * 1700))
except StoreError as error:
    assert len(store.names()) == i
    print(i, error)
"""
    limited = child(code, path)
    said, _ = limited.communicate(timeout=30)
    count, _, problem = said.partition(" ")
    assert problem.startswith(path), said
    with Store.open(path) as store:
        assert len(store.records()) == int(count) > 5


def test_another_program_that_writes_makes_it_wait_and_then_say_so(path, monkeypatch):
    monkeypatch.setattr(store_file, "BUSY_S", 0.05)
    with Store.open(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program has it locked"):
            store.save(record())
        other.execute("ROLLBACK")
        store.save(record())
        assert store.names() == ["gw-1"]
