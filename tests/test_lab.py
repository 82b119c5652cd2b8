"""The lab as a whole: it starts in a moment, and leaves nothing behind, however it ends."""

import asyncio
import contextlib
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import iotsim.lab
from iotsim.errors import BadValue, ConnectError, MissingExtra
from iotsim.lab import nats_server
from tests.servers.notip import client_context, connection, need_nats_server, onboard

ROOT = Path(__file__).parent.parent
WAIT_S = 40


@pytest.fixture(autouse=True)
def _nats_server():
    need_nats_server()


def lives(pid):
    """Whether a process runs; one that has ended and that nobody has asked for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def gone(pid, folder):
    """Wait until a lab's server and folder are gone."""
    deadline = time.monotonic() + WAIT_S
    while lives(pid) or folder.exists():
        assert time.monotonic() < deadline, (lives(pid), folder.exists())
        time.sleep(0.02)


def children():
    """The process ids of our own children that run."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for path in tasks for pid in path.read_text().split() if lives(pid)}


def test_it_starts_in_less_than_three_seconds_and_leaves_nothing():
    async def main():
        before = children()
        async with iotsim.lab.notip() as lab:
            began = time.process_time()
            assert lab.running
            pid, folder = lab.nats_pid, lab.dir
            assert pid in children() - before
            assert lab.nats_url.startswith("tls://127.0.0.1:")
            assert lab.provisioning_url.startswith("http://127.0.0.1:")
            for path in (lab.ca_path, lab.simulator_cert, lab.simulator_key):
                assert path.is_relative_to(folder)
            assert repr(lab).startswith("<NotipLab 'notip': tls://127.0.0.1:")
        assert time.process_time() - began < 3
        assert not lab.running
        assert repr(lab) == "<NotipLab 'notip': not running>"
        assert (lives(pid), folder.exists()) == (False, False)
        left = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        assert not left
        assert not children() - before

    began = time.monotonic()
    asyncio.run(main())
    # A generous bound: it takes half a second here, and other tests run beside this one.
    assert time.monotonic() - began < 20


def test_nobody_else_may_look_into_its_folder():
    async def main():
        before = os.umask(0)
        try:
            async with iotsim.lab.notip() as lab:
                assert stat.S_IMODE(lab.dir.stat().st_mode) == 0o700
                return {str(path.relative_to(lab.dir)): stat.S_IMODE(path.stat().st_mode)
                        for path in lab.dir.rglob("*")
                        if path.suffix in (".key", ".crt", ".conf")}
        finally:
            os.umask(before)

    modes = asyncio.run(main())
    assert len(modes) == 15
    assert set(modes.values()) == {0o600}


def test_an_exception_leaves_nothing():
    async def main():
        async with iotsim.lab.notip() as lab:
            found.append((lab.nats_pid, lab.dir))
            raise LookupError

    found = []
    with pytest.raises(LookupError):
        asyncio.run(main())
    gone(*found[0])


def test_a_cancelled_start_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def main(after_s):
        lab = iotsim.lab.notip()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after_s):
                await lab.__aenter__()
        running = lab._dir is not None
        await lab.stop()
        return running

    before = children()
    outcomes = {asyncio.run(main(after_s)) for after_s in (0.0, 0.05, 0.1, 0.2, 0.3)}
    assert False in outcomes
    assert not children() - before
    assert not list(tmp_path.iterdir())


def test_running_a_cell_again_ends_what_it_started_before():
    async def main():
        first = await iotsim.lab.notip().start()
        assert await first.start() is first
        where = first.nats_pid, first.dir
        second = await iotsim.lab.notip().start()
        gone(*where)
        assert second.running
        other = await iotsim.lab.notip(name="other").start()
        assert second.running
        await second.stop()
        await second.stop()
        assert other.running
        last = other.nats_pid, other.dir
        await other.stop()
        gone(*last)

    asyncio.run(main())


FORGETFUL = """
import asyncio, os
import iotsim.lab

async def forgets():
    lab = await iotsim.lab.notip().start()
    return lab.nats_pid, lab.dir

pid, folder = asyncio.run(forgets())
os.kill(pid, 0)

async def again():
    lab = await iotsim.lab.notip().start()
    assert (os.path.exists(f"/proc/{pid}"), folder.exists()) == (False, False)
    await lab.register("f", "k")
    print(lab.nats_pid, lab.dir, flush=True)

asyncio.run(again())
"""


def test_a_lab_of_a_loop_that_has_ended_is_ended_by_the_next_or_with_the_process():
    found = subprocess.run([sys.executable, "-c", FORGETFUL], cwd=ROOT, capture_output=True,
                           text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    pid, folder = found.stdout.split()
    gone(int(pid), Path(folder))


CHILD = """
import asyncio
import iotsim.lab

async def main():
    lab = await iotsim.lab.notip().start()
    print(lab.nats_pid, lab.dir, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_nothing_is_left_of_a_process_that_was_killed():
    with subprocess.Popen([sys.executable, "-c", CHILD], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as child:
        try:
            pid, folder = child.stdout.readline().split()
            assert lives(int(pid))
        finally:
            child.kill()
        said = child.stderr.read()
    gone(int(pid), Path(folder))
    assert said == ""


def test_what_is_stored_and_who_is_known_outlive_the_server():
    async def main():
        async with iotsim.lab.notip() as lab:
            gateway = await lab.register("f-1", "the key")
            url, pid = lab.nats_url, lab.nats_pid
            async with connection(lab, client_context(lab)) as link:
                await link.jetstream(timeout=20).publish("telemetry.data.a.b", b"1")
            await lab.kill_nats()
            assert not lab.running
            assert not lives(pid)
            await lab.register("f-2", "the key")  # while it is down
            await lab.restart_nats()
            assert (lab.nats_url, lab.running) == (url, True)
            assert lab.nats_pid != pid
            async with connection(lab, client_context(lab)) as link:
                state = (await link.jetstream(timeout=20).stream_info("TELEMETRY")).state
                assert state.messages == 1
            for name in ("f-1", "f-2"):
                assert (await onboard(lab, name, "the key")).status == 201
                assert f'"CN={lab.register_of_gateways.get(name).gateway_id}"' in (
                    lab.dir / "nats" / "nats-server.conf").read_text()
            assert lab.register_of_gateways.get(gateway).provisioned

    asyncio.run(main())


def test_a_thousand_gateways_are_registered_in_one_call():
    async def main():
        async with iotsim.lab.notip() as lab:
            made = await lab.register_many([(f"f-{n}", f"key-{n}") for n in range(1000)])
            assert len({one.gateway_id for one in made}) == 1000
            assert [one.factory_id for one in made] == [f"f-{n}" for n in range(1000)]
            assert {one.tenant_id for one in made} == {lab.tenant_id}
            assert lab.nats_log().count("Reloaded server configuration") == 1
            assert "1,000 gateways" in repr(lab)
            other = await lab.register_many({"x": "k"}, tenant_id="t-2", model="M")
            assert (other[0].tenant_id, other[0].model) == ("t-2", "M")
            frame = lab.console.gateways()
            assert (len(frame), frame["provisioned"].any()) == (1001, False)

    asyncio.run(main())


def test_what_cannot_be_registered_changes_nothing():
    async def main():
        async with iotsim.lab.notip() as lab:
            await lab.register("f-1", "the key")
            for pairs, why in (([("new", "k"), ("f-1", "k")], "factory_id='f-1' is registered"),
                               ([("new", "k"), ("new", "k")], "factory_id='new' is registered"),
                               ([("new", "")], "factory_key='' is empty"),
                               ([("", "k")], "factory_id='' is no text")):
                with pytest.raises(BadValue, match=why):
                    await lab.register_many(pairs)
            assert list(lab.console.gateways()["factory_id"]) == ["f-1"]

    asyncio.run(main())


def test_a_lab_that_does_not_run_says_how_to_run_it():
    lab = iotsim.lab.notip()
    with pytest.raises(ConnectError, match=r"async with iotsim\.lab\.notip"):
        _ = lab.nats_url
    with pytest.raises(ConnectError, match="it is not running"):
        _ = lab.console
    with pytest.raises(ConnectError, match="it is not running"):
        asyncio.run(lab.register("f", "k"))


@pytest.mark.parametrize(("options", "text"), [
    ({"cert_ttl": "soon"}, "cert_ttl='soon' is not a duration"),
    ({"request_timeout": 0}, "request_timeout=0 is zero"),
    ({"name": ""}, "name='' is no text"),
])
def test_an_option_that_cannot_be_used_is_told(options, text):
    with pytest.raises(BadValue, match=text):
        iotsim.lab.notip(**options)


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setattr(nats_server.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(BadValue, match="install nats-server"):
        iotsim.lab.notip()
    monkeypatch.setattr(iotsim.lab.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "iotsim\[notip\]"'):
        iotsim.lab.notip()


def test_importing_the_lab_is_cheap():
    code = ("import sys, iotsim.lab; "
            "print([m for m in ('nats', 'aiohttp', 'cryptography', 'pandas', 'numpy', 'asyncio') "
            "if m in sys.modules])")
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                           timeout=60, check=True)
    assert found.stdout.strip() == "[]"
