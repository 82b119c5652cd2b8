"""Gateways under people and platforms that do everything at the wrong moment, or wrongly."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import iotsim
from iotsim import Gateway, Platform, live_runs
from iotsim.clock import wall_us
from iotsim.errors import BadValue, IotsimError, UnknownName
from iotsim.lab.moments import iso_ms
from tests.live import until
from tests.servers.notip import need_nats_server, notip_lab  # noqa: F401 (a fixture)

ODD = (None, True, -1, 0, 1.5, float("nan"), 10**30, "", "x\r\ny", "\ud800", b"x", [], {},
       object(), "x" * 100_000)
PATHS = ("nats_ca", "nats_cert", "nats_key", "provisioning_ca", "store")
SECRET = "marked-by-this-test"


def gateway(name, **options):
    given = {"factory_key": SECRET, "every": "200ms", "seed": 42, "count": 2, **options}
    made = Gateway(name + "-{n}", factory_id=name + "-{n}", **given)
    return made.sensor("temperature", algorithm="constant", min=1, max=2)


def platform(lab, store, **options):
    given = {"provisioning_url": lab.provisioning_url, "nats_url": lab.nats_url,
             "nats_ca": lab.ca_path, "nats_cert": lab.simulator_cert,
             "nats_key": lab.simulator_key, "own_certificates": True, "store": store}
    return Platform(**{**given, **options})


@pytest.fixture
def started(notip_lab, tmp_path):  # noqa: F811
    """A function that runs a test's coroutine (platform, lab) with gateways registered."""

    def run(main, *names, **options):
        for name in names:
            keys = {f"{name}-{n}": SECRET for n in (1, 2)}
            notip_lab.run(notip_lab.lab.register_many(keys))

        async def whole():
            try:
                async with asyncio.timeout(60):
                    await main(platform(notip_lab.lab, tmp_path / "s.db", **options), notip_lab)
            finally:
                for live in live_runs.runs():
                    await live.stop()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        asyncio.run(whole())

    return run


def one_line(error):
    """Whether an error is one of ours, and says it in a line that people read."""
    text = str(error)
    return isinstance(error, IotsimError) and text.isprintable() and len(text) < 600


async def failure(call):
    """The error of a call, or of the coroutine that it returns; or None."""
    try:
        found = call()
        if asyncio.iscoroutine(found):
            await found
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", PATHS)
def test_a_path_of_a_platform_is_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = {"nats_cert": "nats_key", "nats_key": "nats_cert"}.get(name)
    for odd in ODD[1:]:
        given = {name: odd} | ({other: "a.pem"} if other else {})
        with pytest.raises(BadValue) as caught:
            Platform(provisioning_url="http://h", nats_url="tls://h", **given)
        assert one_line(caught.value)
    assert not list(tmp_path.iterdir())


def test_whatever_is_given_to_a_run_is_taken_or_refused_in_one_line(started):
    async def main(here, _):
        run = await here.start(gateway("odd"))
        for odd in ODD:
            for call in (
                lambda odd=odd: run.degrade(odd, "1s"),
                lambda odd=odd: run.degrade("odd-1", odd, loss=0.5),
                lambda odd=odd: run.degrade("odd-1", "1ms", loss=odd, latency_ms=odd),
                lambda odd=odd: run.disconnect(odd, "1ms"),
                lambda odd=odd: run.outlier(odd, "temperature"),
                lambda odd=odd: run.outlier("odd-1", odd),
                lambda odd=odd: run.attach(odd, "humidity"),
                lambda odd=odd: run.attach("odd-1", odd),
                lambda odd=odd: run.detach("odd-1", odd),
                lambda odd=odd: run.stop_gateway(odd),
                lambda odd=odd: run.start_gateway(odd),
                lambda odd=odd: run.delete_gateway(odd),
                lambda odd=odd: run.enrol(odd),
            ):
                error = await failure(call)
                assert error is None or one_line(error), (odd, error)
        assert run.gateways().state.tolist() == ["running", "running"]

    started(main, "odd")


def test_a_lab_takes_no_tenant_that_would_be_configuration(notip_lab):  # noqa: F811
    for tenant in ('x"\n}', ">", "a.b", "", 5, "x" * 65):
        with pytest.raises(BadValue, match="tenant_id"):
            notip_lab.run(notip_lab.lab.register("t-1", "k", tenant_id=tenant))
        with pytest.raises(BadValue, match="tenant_id"):
            iotsim.lab.notip(tenant_id=tenant)
    for odd in (None, 5, "ab", [1]):
        with pytest.raises(BadValue, match="pairs"):
            notip_lab.run(notip_lab.lab.register_many(odd))
        with pytest.raises(BadValue, match="Gateway"):
            notip_lab.run(notip_lab.lab._start_gateways(odd, {}))
    notip_lab.run(notip_lab.lab.register("t-1", "k"))  # and goes on


def test_a_cell_run_again_at_any_moment_gives_one_run_that_goes_on(started):
    async def main(here, _):
        ours = gateway("again")
        first = await asyncio.gather(*(here.start(ours) for _ in range(4)))
        assert len({id(run) for run in first}) == 1
        stopping = asyncio.create_task(first[0].stop())
        await asyncio.sleep(0)
        second = await asyncio.gather(*(here.start(ours) for _ in range(3)))
        await stopping
        assert len({id(run) for run in second}) == 1
        assert second[0] is not first[0]
        await until(lambda: len(second[0].frame()) >= 4)
        assert second[0].state == "running"

    started(main, "again")


def test_a_start_cancelled_while_it_connects_leaves_nothing_and_loses_nothing(started):
    async def main(here, _):
        ours = gateway("cut")
        for turns in (0, 1, 4, 30):
            task = asyncio.create_task(here.start(ours))
            await until(live_runs.runs)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                assert not live_runs.runs()
        run = await here.start(ours)
        await until(lambda: len(run.frame()) >= 2)

    started(main, "cut")


def hostile():
    """Commands that no platform should send; None of them may stop the gateway."""
    now = iso_ms(wall_us())

    def command(**changes):
        body = {"command_id": "c", "type": "config_update", "issued_at": now,
                "payload": {"send_frequency_ms": 300}, **changes}
        return json.dumps(body).encode()

    return [
        b"", b"\0", b"[]", b"{" * 50_000, b"[" * 900_000, command(command_id="a\r\nPUB x 1\r\ny"),
        command(command_id="x" * 900_000), command(command_id=5), command(command_id="*.>"),
        command(command_id="t", type="a\r\n"), command(command_id="u", type="x" * 60_000),
        command(command_id="v", payload={"status": "a\r\nb"}),
        command(command_id="w", payload={"send_frequency_ms": 10**400}),
        command(command_id="y", payload={"send_frequency_ms": 9.3e12}),
        command(command_id="z", type="firmware_push", payload={"firmware_version": "\u202e<b>\n"}),
        command(issued_at="x" * 60_000), command(command_id="p", payload=[]),
        b"\xff\xfe" + now.encode(),
        b'{"command_id":"\\ud800","type":"config_update","payload":{},"issued_at":"1"}',
    ]


def test_hostile_commands_are_answered_or_put_away_and_the_gateway_goes_on(started):
    async def main(here, there):
        run = await here.start(gateway("hostile"))
        who = run.gateways().gateway_id[0]
        console = there.lab.console
        for raw in hostile():
            await asyncio.to_thread(there.run, console.send(who, raw))
        await until(lambda: sum(run.crew.log.counts()[name] for name in (
            "ack", "nack", "terminated")) >= len(hostile()))
        last = await asyncio.to_thread(there.run, console.config(who, send_frequency_ms=150))
        answer = await asyncio.to_thread(there.run, console.answer(last))
        assert answer.status == "ack"
        # The platform may have the answer before we know that its stream has it.
        await until(lambda: "waiting" not in set(run.commands().status))
        told = run.commands()
        assert set(told.status) <= {"ack", "nack", "terminated"}
        assert told.message.str.len().max() < 600
        assert told.type.astype(str).str.len().max() < 100
        assert not run.errors
        assert run.gateways().send_frequency_ms[0] == 150

    started(main, "hostile")


def test_a_gateway_deleted_amid_its_commands_leaves_the_others_alone(started):
    async def main(here, there):
        run = await here.start(gateway("gone"))
        who = run.gateways().gateway_id[0]

        async def many():
            await asyncio.gather(*(
                there.lab.console.config(who, send_frequency_ms=100 + i) for i in range(30)))

        await asyncio.to_thread(there.run, many())
        await run.delete_gateway("gone-1")
        with pytest.raises(BadValue, match="deleted"):
            await run.delete_gateway("gone-1")
        assert run.gateways().state.tolist() == ["deleted", "running"]
        done = await asyncio.gather(
            run.stop_gateway("gone-2"), run.start_gateway("gone-2"), run.stop_gateway("gone-2"),
            run.attach("gone-2", "humidity"), run.start_gateway("gone-2"), return_exceptions=True)
        assert not [one for one in done if isinstance(one, Exception)]
        before = len(run.frame())
        await until(lambda: len(run.frame()) >= before + 4)
        assert run.gateways().state.tolist() == ["deleted", "running"]

    started(main, "gone")


def test_threads_that_go_on_while_the_run_stops_are_told_so(started):
    async def main(here, _):
        run = await here.start(gateway("thread"))
        strange, enough = [], threading.Event()

        async def work(name):
            while not enough.is_set():
                for call in (
                    run.gateways, run.commands, lambda: run.degrade(name, "50ms", loss=0.1),
                    lambda: run.outlier(name, "temperature"),
                    lambda: run.stop_gateway(name), lambda: run.start_gateway(name),
                ):
                    error = await failure(call)
                    if error is not None and not one_line(error):
                        strange.append(error)

        threads = [threading.Thread(target=asyncio.run, args=(work(f"thread-{n}"),))
                   for n in (1, 2)]
        for thread in threads:
            thread.start()
        await until(lambda: len(run.actions) >= 20)
        result = await run.stop()
        enough.set()
        for thread in threads:
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive()
        assert not strange
        assert result.actions

    started(main, "thread")


def test_a_full_disk_is_told_and_readings_go_on(started):
    async def main(here, there):
        run = await here.start(gateway("full"))
        with run.crew.store._open_file.writing() as connection:
            pass
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
        error = None
        while error is None and len(run.crew.records["full-1"].sensors) < 500:
            name = f"h{len(run.crew.records['full-1'].sensors)}"
            error = await failure(lambda name=name: run.attach("full-1", "humidity", name))
        assert one_line(error)
        assert "the disk is full" in str(error)
        sensors = run.crew.records["full-1"].sensors
        assert run.crew.store.get("full-1").sensors == sensors
        assert name not in [spec["name"] for spec in sensors]
        connection.execute("PRAGMA max_page_count=1000000")
        before = len(run.frame())
        await until(lambda: len(run.frame()) > before)
        await run.attach("full-1", "pressure")
        who = run.gateways().gateway_id[0]
        asked = await asyncio.to_thread(
            there.run, there.lab.console.config(who, send_frequency_ms=250))
        assert (await asyncio.to_thread(there.run, there.lab.console.answer(asked))).status == "ack"

    started(main, "full")


def test_too_many_gateways_are_refused_before_anybody_is_asked(started):
    async def main(here, _):  # keys are used up by asking
        for count in (10_001, 10**7, 10**9, 10**30):
            with pytest.raises(BadValue, match="count"):
                await here.start(gateway("much"), count=count)
        with pytest.raises((BadValue, UnknownName)):
            Gateway("a-{n}", count=10_000_001)

    started(main)


FORKED = """
import os, sys
from iotsim.gateway import platform
folder = platform._passing()
if os.fork() == 0:
    sys.exit(0)  # what is registered to be done at the end is done
os.wait()
print(folder, folder.is_dir())
"""


def test_the_store_of_a_process_goes_with_it_and_not_with_its_forked_child():
    out = subprocess.run([sys.executable, "-W", "error", "-c", FORKED], capture_output=True,
                         text=True, check=True, timeout=60, cwd=Path(__file__).parent.parent,
                         env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)})
    folder, there = out.stdout.split()
    assert there == "True"
    assert not os.path.exists(folder)
    assert not out.stderr
