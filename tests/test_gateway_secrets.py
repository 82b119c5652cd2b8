"""No secret of a gateway is in any place where people or programs could come upon it.

One lab, one run, and all that is left of it are searched for every secret in each form that it has
been seen to leak in: as text, raw, base64, hex, as `repr` shows bytes, and as a list of numbers.
"""

import asyncio
import base64
import gc
import io
import logging
import os
import pickle
import secrets
import sqlite3
import stat
import subprocess
import threading
import time
import traceback
import urllib.request
import zipfile
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from IPython.core.ultratb import VerboseTB

import iotsim.lab
from iotsim import Gateway, Platform, metrics
from iotsim.gateway.envelope import EnvelopeEncoder
from iotsim.gateway.store import Store
from tests.live import until
from tests.servers.notip import need_nats_server

REPRS = ("__repr__", "__str__", "_repr_html_", "_repr_markdown_", "_repr_mimebundle_")
SHOWN = {  # whose reprs must have been looked at
    "Gateway", "GatewayRecord", "Platform", "Store", "StoreFile", "Vault", "Enrolment", "Crew",
    "GatewayRun", "GatewayPublisher", "GatewayLink", "HeldTLS", "Worker", "EnvelopeEncoder",
    "Seal", "AnswerBook", "CommandLog", "Decommissions", "PushConsumer", "NatsPublisher",
    "NotipLab", "Register", "Registered", "Console", "Authority", "Result",
}
KINDS = ("factory key", "AES key", "private key", "store key", "simulator key", "authority key")


def of_bytes(key):
    """Every form in which a few bytes have been seen."""
    forms = [key, base64.b64encode(key), base64.urlsafe_b64encode(key), key.hex().encode(),
             key.hex().upper().encode(), key.hex(" ").encode(), repr(key)[2:-1].encode(),
             str(list(key))[1:-1].encode()]
    return [form.rstrip(b"=") for form in forms]


def of_pem(pem):
    """The lines of a private key, and its numbers."""
    lines = [line.encode() for line in pem.split() if len(line) > 24 and "-" not in line]
    numbers = load_pem_private_key(pem.encode(), None).private_numbers()
    for name in ("p", "d", "private_value"):
        if (number := getattr(numbers, name, None)) is not None:
            raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
            lines += [raw, raw.hex().encode(), str(number).encode()]
    return lines


class Search:
    """All places, by name, and what must not be there, by kind."""

    def __init__(self):
        self.forms = {kind: [] for kind in KINDS}
        self.places = {}

    def hide(self, kind, *forms):
        """Remember what a secret looks like."""
        self.forms[kind] += [form.encode() if isinstance(form, str) else form for form in forms]

    def look(self, place, found):
        """Take the content of a place."""
        body = found if isinstance(found, bytes) else str(found).encode(errors="backslashreplace")
        self.places[place] = self.places.get(place, b"") + body + b"\n"

    def file(self, place, path):
        """Take a file; of an archive or a table also what is packed in it."""
        body = Path(path).read_bytes()
        self.look(place, body)
        if body[:4] == b"PAR1":
            table = pq.read_table(io.BytesIO(body))
            self.look(place, f"{table.schema.metadata} {table.schema} {table.to_pylist()}")
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    inner = Path(path).with_name("inner")
                    inner.write_bytes(archive.read(name))
                    self.look(place, name)
                    self.file(place, inner)

    def error(self, place, error):
        """Take an error as it is shown with everything: chain, locals, a notebook's verbose way."""
        assert isinstance(error, BaseException), place
        one = error
        while one is not None:
            self.look(place, f"{one} {one!r} {one.args} {getattr(one, '__dict__', '')}")
            one = one.__cause__ or one.__context__
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        self.look(place, "".join(shown.format()))
        verbose = VerboseTB(theme_name="nocolor", include_vars=True)
        self.look(place, verbose.text(type(error), error, error.__traceback__))

    def frame(self, place, frame):
        """Take a data frame, as text and as CSV."""
        self.look(place, frame.to_string())
        self.look(place, frame.to_csv())
        self.look(place, frame.attrs)

    def found(self):
        """(place, kind) of every secret that is somewhere."""
        return [(place, kind) for place, body in self.places.items()
                for kind, forms in self.forms.items()
                if any(form in body for form in forms)]


def shown_everywhere(search):
    """Look at the repr of every object of ours that there is."""
    seen = set()
    for one in gc.get_objects():
        kind = type(one)
        if not getattr(kind, "__module__", "").startswith("iotsim"):
            continue
        seen.add(kind.__name__)
        for way in REPRS:
            if callable(method := getattr(kind, way, None)):
                with suppress(Exception):  # half built, or of a loop that is closed
                    search.look(f"reprs: {way}", method(one))
    return seen


class Watched(threading.Thread):
    """What the system tells everybody of our children, while there are some."""

    def __init__(self, search):
        super().__init__(daemon=True)
        self.search, self.over, self.seen = search, threading.Event(), set()

    def run(self):
        while not self.over.wait(0.03):
            for pids in Path("/proc/self/task").glob("*/children"):
                for pid in self._read(pids).split():
                    self._child(Path("/proc") / pid.decode())

    def _child(self, folder):
        line = self._read(folder / "cmdline")
        environment = self._read(folder / "environ")
        if not environment or (folder, line) in self.seen:  # not begun yet
            return
        self.seen.add((folder, line))
        self.search.look("children: command line", line)
        self.search.look("children: environment", environment)

    @staticmethod
    def _read(path):
        try:
            return path.read_bytes()
        except OSError:
            return b""

    def programs(self):
        """The programs that were seen."""
        return b" ".join(line for _, line in self.seen)


async def raised(what):
    """The error of a coroutine or of a function."""
    try:
        if callable(what):
            what()
        else:
            await what
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next  # our own frames have to know the secrets
        return error.with_traceback(trace)
    return None


async def lived(search, lab, run):
    """Look at everything that there is while a run goes on."""
    first = run.gateways().gateway[0]
    await until(lambda: len(run.frame()) >= 6)
    for change in ({"send_frequency_ms": 100}, {"status": "hacked"}):
        command = await lab.console.config(run.gateways().gateway_id[0], **change)
        await lab.console.answer(command)
    run.degrade(first, "1s", loss=0.5)
    run.outlier(first, "temperature")
    await run.attach(first, "humidity")
    await asyncio.to_thread(run.snapshot)
    for name in ("gateways", "commands", "frame", "events"):
        search.frame(f"run.{name}()", getattr(run, name)())
    for name in ("gateways", "acks"):
        search.frame(f"console.{name}()", getattr(lab.console, name)())
    search.frame("console.telemetry()", await lab.console.telemetry())
    search.frame("enrolment.table()", run.enrolment.table())
    search.look("run: notes, errors, actions", (run.notes, run.errors, run.actions))
    search.look("snapshot", run.snapshot())
    search.look("tasks", [(repr(task), task.get_coro()) for task in asyncio.all_tasks()])
    for task in asyncio.all_tasks():
        text = io.StringIO()
        task.print_stack(file=text)
        search.look("tasks", text.getvalue())
    search.look("nats-server's log", lab.nats_log())
    with metrics.serve(port=0) as server:
        await run.stop_gateway(run.gateways().gateway[1])
        await run.start_gateway(run.gateways().gateway[1])
        search.look("metrics", await asyncio.to_thread(
            lambda: urllib.request.urlopen(server.url, timeout=10).read()))


def left(search, result, folder):
    """Look at everything that a run leaves."""
    for name in ("frame", "events", "commands"):
        search.frame(f"result.{name}()", getattr(result, name)())
    search.file("saved run", result.save(folder / "a.iotsim", readings=True))
    search.file("Parquet", result.to_parquet(folder / "a.parquet"))
    search.look("scenario code", result.to_scenario().code())
    search.look("result", [repr(getattr(result, name)) for name in (
        "notes", "errors", "actions", "publishers", "destinations", "history")])
    for one in (result, result.fleet, result.fleet.outlets, result.frame(), result.publishers):
        with suppress(TypeError, AttributeError):  # cannot be pickled: as good
            search.look("pickles", pickle.dumps(one))


async def provoked(search, lab, gateway, store_key, folder):
    """Look at the errors of all that can go wrong."""
    fine = {"provisioning_url": lab.provisioning_url, "nats_url": lab.nats_url,
            "nats_ca": lab.ca_path, "nats_cert": lab.simulator_cert,
            "nats_key": lab.simulator_key, "own_certificates": True}
    kept = folder / "provoked.db"

    async def start(given, **options):
        options = {**fine, "store": kept, "store_key": store_key, **options}
        return await Platform(**options).start(given)

    other = secrets.token_hex(32)
    search.hide("store key", *of_bytes(bytes.fromhex(other)), other)
    used, unknown = gateway("gw-{n}", "f-{n}"), gateway("nobody-{n}", "nobody-{n}")
    for what, error in (
        ("used up", await raised(start(used))),
        ("unknown", await raised(start(unknown))),
        ("no service", await raised(start(unknown, provisioning_url="http://127.0.0.1:1"))),
        ("no TLS there", await raised(start(
            unknown, provisioning_url=lab.provisioning_url.replace("http:", "https:")))),
        ("no service's path", await raised(start(
            unknown, provisioning_url=lab.provisioning_url + "/nowhere"))),
        ("wrong store key", await raised(start(used, store_key=other))),
        ("no store key", await raised(start(used, store_key=other[:50]))),
        ("two of a name", await raised(start([used, used]))),
        ("lab", await raised(lab.start(gateway("new-{n}", "new-{n}"), speed=2))),
        ("lab twice", await raised(lab.register_many(
            [(one.factory_id, one.factory_key) for one in used.records()]))),
        ("count", await raised(lambda: used.many(-1))),
    ):
        search.error(f"error: {what}", error)
    ours = folder / "ours.db"
    await lab.register_many(
        {one.factory_id: one.factory_key for one in gateway("late-{n}", "late-{n}").records()})
    late = gateway("late-{n}", "late-{n}")
    ready = {"store": ours, "own_certificates": True}
    for what, options in (
        ("no NATS", {"nats_url": "tls://127.0.0.1:1"}),
        ("no authority", {"nats_ca": lab.simulator_cert}),
        ("no file", {"nats_ca": folder / "missing.crt"}),
        ("not secure", {"nats_url": lab.nats_url.replace("tls:", "nats:"), "nats_ca": None,
                        "nats_cert": None, "nats_key": None, "own_certificates": None}),
    ):
        search.error(f"error: {what}", await raised(start(late, **{**ready, **options})))
    with Store.open(ours, key=store_key) as store:
        records = store.records()
        assert all(record.provisioned for record in records)  # nothing of it was for nothing
        search.error("error: store", await raised(lambda: store.update("late-1", aes_key=b"1")))
        search.error("error: store", await raised(lambda: store.add(*records)))
        short = {"late-1": replace(records[0], aes_key=records[0].aes_key[:31])}
        search.error("error: encoder", await raised(
            lambda: EnvelopeEncoder("r", short)._seal_of(short["late-1"])))
        hidden(search, records)
    with closing(sqlite3.connect(ours)) as connection:
        connection.execute("UPDATE gateways SET aes_key = private_key_pem")
        connection.commit()
    search.error("error: damaged", await raised(start(late, **ready, recover=True)))
    return records


def hidden(search, records):
    """Remember the secrets of gateways."""
    for record in records:
        if record.aes_key:
            search.hide("AES key", *of_bytes(record.aes_key))
        if record.private_key_pem:
            search.hide("private key", *of_pem(record.private_key_pem))


def private(folder):
    """What somebody else may look into of a lab: its folder, keys, stores, configuration."""
    files = [path for path in folder.rglob("*") if path.suffix in (
        ".key", ".conf", ".db", ".db-wal", ".db-shm")]
    assert len(files) >= 10
    return [path for path in (folder, *files) if stat.S_IMODE(path.stat().st_mode) & 0o077]


class Logs(logging.Handler):
    """Everything that anybody logs at any level, as text with its arguments."""

    def __init__(self, search):
        super().__init__(logging.DEBUG)
        self.search, self.names = search, set()

    def emit(self, record):
        self.names.add(record.name.partition(".")[0])
        self.search.look("logs", f"{self.format(record)} {vars(record)}")


async def searched_run(search, folder):
    """One lab, one run, all that can go wrong; returns the classes that were shown."""
    marker, store_key = secrets.token_hex(16), secrets.token_bytes(32)
    search.hide("factory key", marker, *of_bytes(marker.encode()))
    search.hide("store key", *of_bytes(store_key))
    text = base64.b64encode(store_key).decode()
    os.environ["IOTSIM_STORE_KEY"] = text

    def gateway(name, factory_id):
        given = {"factory_key": f"{marker}-{{n}}", "every": "200ms", "count": 2, "seed": 42}
        return Gateway(name, factory_id=factory_id, **given).sensor("temperature")

    async with iotsim.lab.notip() as lab:
        run = await lab.start(gateway("gw-{n}", "f-{n}"))
        for path in (lab.dir / "certs").glob("*.key"):
            kind = "simulator key" if path == lab.simulator_key else "authority key"
            search.hide(kind, *of_pem(path.read_text()))
        hidden(search, run.crew.records.values())
        await lived(search, lab, run)
        search.look("spec", (run.fleet.spec(), gateway("gw-{n}", "f-{n}").spec()))
        encoder = run.works.ways[0].encoder
        records = await provoked(search, lab, gateway, text, folder)
        held = EnvelopeEncoder("r", {one.name: one for one in records}), records
        seen = shown_everywhere(search)
        search.look("store", b"".join(path.read_bytes() for path in lab.dir.glob("gateways.db*")))
        assert not private(lab.dir)
        result = await run.stop()
        seen |= shown_everywhere(search)
        search.look("store", b"".join(path.read_bytes() for path in lab.dir.glob("gateways.db*")))
        search.look("store", b"".join(path.read_bytes() for path in folder.glob("*.db*")))
        await asyncio.to_thread(left, search, result, folder)
        del held, encoder
    return seen


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(search, names of classes, names of loggers, command lines of children)."""
    need_nats_server()
    search, logger = Search(), logging.getLogger()
    logs, watched = Logs(search), Watched(search)
    gc.collect()
    gc.freeze()  # what other tests have left is not ours to look at
    ours = logging.getLogger("iotsim")
    levels = {one: one.level for one in (logger, ours, logging.getLogger("asyncio"))}
    for one in levels:
        one.setLevel(logging.DEBUG)
    logger.addHandler(logs)
    watched.start()
    before = os.environ.pop("IOTSIM_STORE_KEY", None)
    try:
        # In debug mode a loop shows what it calls, with all arguments.
        seen = asyncio.run(
            searched_run(search, tmp_path_factory.mktemp("secrets")), debug=True)
    finally:
        os.environ.pop("IOTSIM_STORE_KEY", None)
        if before is not None:
            os.environ["IOTSIM_STORE_KEY"] = before
        watched.over.set()
        watched.join()
        logger.removeHandler(logs)
        for one, level in levels.items():
            one.setLevel(level)
        gc.unfreeze()
    return search, seen, logs.names, watched.programs()


def test_no_secret_is_found_anywhere(searched):
    search, *_ = searched
    assert not search.found()
    assert len(search.places) >= 30
    assert all(search.forms[kind] for kind in KINDS)
    assert not [name for name, body in search.places.items() if not body.strip()]


def test_the_places_were_really_looked_at(searched):
    search, seen, loggers, programs = searched
    assert not SHOWN - seen
    assert {"iotsim", "asyncio"} <= loggers
    assert b"nats-server" in programs
    assert b"key_worker" in programs
    assert b"PATH=" in search.places["children: environment"]
    assert b"store = " in search.places["error: used up"]  # locals are shown


def planted(search, kind, folder):
    """Every place that something is planted in, and what takes the place in."""
    form = search.forms[kind][0]
    text = form.decode("latin-1")

    program = compile("def failed(local):\n raise LookupError", "a.py", "exec")
    failing = {}
    exec(program, failing)
    table = folder / "a.parquet"
    pq.write_table(pa.table({"value": [text] * 100}), table, compression="zstd")
    packed = folder / "a.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", form * 10)
    raw = folder / "a.db-wal"
    raw.write_bytes(b"\0" * 100 + form)
    return {
        "text": lambda one: one.look("text", f"a line with {text} in it"),
        "table": lambda one: one.file("table", table),
        "archive": lambda one: one.file("archive", packed),
        "bytes": lambda one: one.look("bytes", raw.read_bytes()),
        "locals": lambda one: one.error("locals", asyncio.run(
            raised(lambda: failing["failed"](text)))),
        "frame": lambda one: one.frame("frame", pd.DataFrame({"message": [text]})),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_that_is_planted_is_found(searched, kind, tmp_path):
    """The search can fail: in every kind of place, and for every form of the secret."""
    known, *_ = searched
    if kind in ("AES key", "store key"):  # as text: raw bytes are no text
        known.forms[kind].insert(0, known.forms[kind][1])
    for place, plant in planted(known, kind, tmp_path).items():
        search = Search()
        search.forms = known.forms
        plant(search)
        assert (place, kind) in search.found()
    for form in known.forms[kind]:
        search = Search()
        search.forms = known.forms
        search.look("bytes", b"\1" + form + b"\2")
        assert ("bytes", kind) in search.found()


def test_a_childs_environment_is_looked_at(searched, monkeypatch):
    known, *_ = searched
    marker = known.forms["factory key"][0].decode()
    search = Search()
    search.forms = known.forms
    watched = Watched(search)
    watched.start()
    try:
        with subprocess.Popen(["sleep", "30"], env={"LEAK": marker}) as child:
            try:
                deadline = time.monotonic() + 20
                while not search.found() and time.monotonic() < deadline:
                    time.sleep(0.01)
            finally:
                child.kill()
    finally:
        watched.over.set()
        watched.join()
    assert ("children: environment", "factory key") in search.found()
