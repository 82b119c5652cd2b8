"""Runs on loops of their own, runs together, runs again, runs that are interrupted."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

import iotsim
from iotsim import Fleet, Scenario
from iotsim.errors import BadValue, ConnectError, NameInUse, NoLoop
from iotsim.gateway.run import GatewayRun
from iotsim.own_loop import Once
from iotsim.publishers.memory import messages
from iotsim.rebuilt import digest_of_messages
from iotsim.run_home import RunHome
from iotsim.run_list import Runs
from tests.live import START, generated, meter, replayed, run, sensors, until


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    left = iotsim.runs()
    asyncio.run(left.stop())  # those of other tests have to do without
    assert left == []
    for thread in threading.enumerate():
        if thread.name.startswith("iotsim run"):
            thread.join(5)
            assert not thread.is_alive()


def few(name="plant"):
    return sensors(name, count=5, every="100ms")


def held_up(live, count=20):
    """Block this thread until a run that is on another one has gone on."""
    limit = threading.Event()
    for _ in range(2000):
        if live.snapshot().readings >= count:
            return
        limit.wait(0.01)
    raise AssertionError(live)


# -- on a loop of its own -------------------------------------------------------------------------


def test_a_script_has_the_bytes_of_generate_from_a_run_on_its_own_loop():
    fleet = sensors().add(meter, count=3, every="2s")
    live = fleet.publish_to("memory:apart").start("1m", thread=True, speed=300, start=START)
    assert live.has_own_loop
    assert not live.in_own_thread
    assert asyncio.run(live.ready()) is live
    result = asyncio.run(live.wait())
    assert result.digest == fleet.generate("1m", start=START).digest
    assert digest_of_messages((body, name) for _, body, name in messages("apart")) == result.digest
    assert result.errors == ()
    assert asyncio.run(live.stop()) is result


def test_nothing_that_blocks_the_callers_loop_holds_it_up():
    async def cell():
        live = few().start(thread=True, start=START)
        await live.ready()
        held_up(live)  # nothing of this loop runs meanwhile
        result = await live.stop()
        assert result.rows >= 20
        assert result.digest == generated(few(), result)

    run(cell())


async def listener(dev):
    while True:
        dev.emit(x=1.0)
        await dev.sleep()


def test_everything_can_be_done_to_it_and_seen_of_it_from_outside(tmp_path):
    fleet = few().add(listener, count=2, every="500ms")
    live = fleet.start(thread=True, speed=50, start=START, capture="all")
    assert live.inject("offset", "device_type=temperature_sensor", "5s", by=5).verb == "inject"
    asyncio.run(live.ready())
    live.pause()
    assert live.state == "paused"
    assert live.snapshot().state == "paused"
    live.resume()
    live.set_speed(60)
    assert (live.state, live.snapshot().speed) == ("running", 60)
    live.set("device_type=listener", every="250ms")
    live.add("temperature_sensor", count=2, id="more-{n}")
    live.stop("id=more-1")
    live.suspend("id=more-2")
    live.clear("suspend")
    with pytest.raises(iotsim.IotsimError, match="no selector key called 'nowhere'"):
        live.stop("nowhere=1")
    answers = asyncio.run(live.command("reboot", "device_type=listener", timeout="10s"))
    assert list(answers["status"]) == ["acknowledged"] * 2
    assert live.checkpoint().at_us > 0
    held_up(live, 200)
    assert len(live.frame(wire=True, truth=True)) >= 200
    assert "fault_injected" in set(live.events()["event"])
    assert len(live.commands()) == 2
    assert live.matching("device_type=listener") == 2
    assert len(live.to_scenario().steps) == 7
    assert (live.errors, live.expectations) == ((), ())
    result = asyncio.run(live.stop())
    again = replayed(fleet, result.actions, result.start_us, result.end_us)
    assert again.digest == result.digest
    with pytest.raises(BadValue, match="has ended"):
        live.inject("offset", by=1)
    with pytest.raises(BadValue, match="has ended"):
        asyncio.run(live.command("reboot"))
    assert live.save(tmp_path / "session.iotsim").exists()
    live.pause()  # too late, and no error


def test_what_is_done_in_the_moment_between_connected_and_running_is_done_once():
    async def session():
        live = few().start(speed="max", start=START, duration="10s")
        while live.works.driver is None:
            await asyncio.sleep(0)
        assert live.state == "connecting"
        live.inject("offset", by=1)
        live.add("temperature_sensor")
        return await live.wait()

    result = run(session())
    assert [action.devices for action in result.actions] == [5, 1]
    again = replayed(few(), result.actions, result.start_us, result.end_us)
    assert again.digest == result.digest


def test_the_last_thing_on_its_loop_is_what_was_to_be_done_at_its_end():
    live, said = few().start("1s", thread=True, speed=10), []
    live.at_end(lambda: said.append((live.ended, live.in_own_thread)))
    asyncio.run(live.wait())
    live.at_end(lambda: said.append("late"))
    for thread in threading.enumerate():
        if thread.name == "iotsim run plant":
            thread.join(5)
    assert sorted(map(str, said)) == ["(True, True)", "late"]


def test_a_scenario_runs_on_its_own_loop_too():
    scenario = (Scenario("outage", few()).at("1s").inject("disconnect", duration="2s")
                .expect("devices == 5").lasting("10s"))
    live = scenario.start(thread=True, speed="max", start=START)
    result = asyncio.run(live.wait())
    assert result.digest == scenario.generate(start=START).digest
    assert result.passed
    assert len(result.expectations) == 1


def test_the_same_cell_again_has_the_same_run_and_another_place_is_refused():
    async def cells():
        live = few().start(thread=True)
        assert few().start(thread=True) is live
        assert await asyncio.to_thread(lambda: few().start(thread=True)) is live
        with pytest.raises(NameInUse, match=r"already live, with thread=True, under the name 'pl"):
            few().start()
        here = few().start(replace=True)
        with pytest.raises(NameInUse, match=r"already live, without thread=True, under the name"):
            few().start(thread=True)
        apart = few().start(thread=True, replace=True)
        await asyncio.gather(live.wait(), here.wait())
        assert iotsim.runs() == [apart]
        await apart.stop()

    run(cells())


def test_threads_that_start_at_the_same_moment_start_one_run():
    go, found = threading.Barrier(4), []

    def start():
        go.wait()
        found.append(few().start(thread=True))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert iotsim.runs() == found[:1]
    asyncio.run(iotsim.runs().stop())


def test_who_starts_again_what_is_about_to_end_has_one_that_goes_on():
    async def cells():
        first = few().start()
        await first.ready()
        first.end_soon()
        second = few().start()
        assert second is not first
        await second.ready()
        assert second.state == "running"
        assert first in await asyncio.gather(first.ready())
        await iotsim.runs().stop()

    run(cells())


@pytest.mark.parametrize("thread", [1, "yes", None])
def test_a_thread_is_true_or_false(thread):
    with pytest.raises(BadValue, match="thread="):
        few().start(thread=thread)


def test_without_a_loop_the_error_names_both_ways():
    with pytest.raises(NoLoop, match=r"asyncio\.run\(plant\.run\(\.\.\.\)\)` or `plant\.start\("):
        few().start()


def test_a_run_that_cannot_be_made_leaves_no_thread(monkeypatch):
    def broken(*given):
        raise OSError("no room")

    monkeypatch.setattr("iotsim.run.Works", broken)
    with pytest.raises(OSError, match="no room"):
        few().start(thread=True)


def leaving(dev):
    raise SystemExit(3)


async def quitter(dev):
    dev.emit(x=1.0)
    leaving(dev)


def test_a_device_that_would_end_the_thread_fails_alone():
    live = Fleet("quit", seed=1).add(quitter).add(meter, every="1s").start(
        "5s", thread=True, speed="max", start=START)
    result = asyncio.run(live.wait())
    assert "device 'quitter-0000' failed" in str(result.errors[0])
    assert result.rows == 6


def test_who_waits_elsewhere_for_a_run_whose_loop_is_gone_is_not_left_waiting(monkeypatch):
    monkeypatch.setattr("iotsim.run_home.TURN_S", 0.01)
    left = RunHome()
    left._home = SimpleNamespace(loop=None, closed=False)

    async def wait():
        waiting = asyncio.create_task(left._happened(Once()))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        left._home.closed = True
        await waiting

    run(wait())


EXIT = """
import asyncio, sys
from iotsim import Fleet
fleet = Fleet("plant", seed=1).add("pump", count=3, every="50ms").publish_to("file:out.ndjson")
run = fleet.start(thread=True, to="out.parquet")
asyncio.run(run.ready())
while run.snapshot().readings < 10:
    pass
"""


def test_a_script_that_ends_with_a_live_run_hands_over_what_there_is(tmp_path):
    done = subprocess.run([sys.executable, "-c", EXIT], cwd=tmp_path, capture_output=True,
                          text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    import pandas as pd

    assert len(pd.read_parquet(tmp_path / "out.parquet")) >= 10
    assert len((tmp_path / "out.ndjson").read_text().splitlines()) >= 10


# -- a port where nobody listens ------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "options"), [
    ("mqtt", {}), ("mqtt", {"version": "3.1.1"}), ("amqp", {}), ("nats", {}),
    ("nats+jetstream", {}), ("http", {}), ("coap", {})])
def test_a_wrong_port_is_told_at_once_wherever_one_looks(scheme, options):
    with socket.socket(type=socket.SOCK_DGRAM if scheme == "coap" else socket.SOCK_STREAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"{scheme}://127.0.0.1:{port}"

    async def cells():
        fleet = few("p<b>").publish_to(url, **options)
        for thread in (False, True):
            live = fleet.start(thread=thread)
            with pytest.raises(ConnectError, match="nothing listens there") as caught:
                await live.ready()
            said = str(caught.value)
            assert said.startswith(f"cannot publish to {url}: ")
            assert said in repr(live)
            assert "failed" in repr(live)
            assert said in live._repr_html_()
            assert "p&lt;b&gt;" in live._repr_html_()
            with pytest.raises(BadValue, match="has failed: cannot publish to"):
                live.inject("disconnect")
            assert str((await live.stop()).errors[0]) == said

    run(cells())


def test_a_run_that_is_not_connected_yet_says_how_to_wait():
    async def cell():
        live = few().start()
        assert "await run.ready()" in repr(live)
        assert "await run.ready()" in live._repr_html_()
        await live.ready()
        assert "await" not in repr(live)
        await live.stop()

    run(cell())


# -- together -------------------------------------------------------------------------------------


def test_runs_are_stopped_together_whatever_loop_they_are_on():
    there, over = [], threading.Event()

    async def elsewhere():
        there.append(few("third").start())
        await until(over.is_set)

    async def cell():
        few("first").start()
        few("second").start(thread=True)
        thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
        thread.start()
        await until(lambda: there)
        alive = iotsim.runs()
        assert [live.name for live in alive] == ["first", "second", "third"]
        results = await alive.stop()
        over.set()
        await asyncio.to_thread(thread.join)
        assert [result.name for result in results] == ["first", "second", "third"]
        assert all(live.ended for live in alive)

    run(cell())


def test_the_list_of_runs_says_what_they_are_and_escapes_their_names():
    async def cell():
        live = few("<i>x</i>").start("1s", speed="max", start=START)
        await live.wait()
        return live

    live = run(cell())
    runs = Runs([live])
    assert isinstance(iotsim.runs(), list)
    assert isinstance(iotsim.runs(), Runs)
    assert repr(runs) == "<Runs: '<i>x</i>' stopped 00:00:01, 5 devices, 50 readings>"
    assert repr(Runs([live] * 7)).endswith("50 readings; and 2 more>")
    html = runs._repr_html_()
    assert "<i>" not in html
    for cell in ("&lt;i&gt;x&lt;/i&gt;", "stopped", "00:00:01", "5", "50"):
        assert f">{cell}</td>" in html
    assert repr(Runs()) == "<Runs: none>"
    assert "none" in Runs()._repr_html_()
    assert asyncio.run(Runs().stop()) == []


# -- again ----------------------------------------------------------------------------------------


def test_a_run_that_is_over_begins_again_as_it_was_asked_for():
    async def cells():
        first = few().start("3s", speed="max", start=START)
        with pytest.raises(BadValue, match="is not over"):
            first.again()
        one = await first.wait()
        second = first.again()
        assert second is not first
        assert first.again() is second  # the cell, or the click, twice
        two = await second.wait()
        third = await asyncio.to_thread(second.again)  # as a widget's callback does
        assert third.is_on(asyncio.get_running_loop())
        assert (await third.wait()).digest == two.digest
        assert (one.digest, one.start_us) == (two.digest, two.start_us)
        now = few().start("1s", speed="max")
        began = (await now.wait()).start_us
        assert (await now.again().wait()).start_us > began
        return first

    first = run(cells())
    with pytest.raises(BadValue, match="cannot begin again: its event loop is closed"):
        first.again()


def test_a_run_on_its_own_loop_begins_again_on_a_new_one():
    scenario = Scenario("twice", few()).at("1s").stop("count=2").lasting("5s")
    first = scenario.start(thread=True, speed="max", start=START)
    one = asyncio.run(first.wait())
    second = first.again()
    assert second.has_own_loop
    assert second.loop is not first.loop
    assert asyncio.run(second.wait()).digest == one.digest
    with pytest.raises(BadValue, match=r"await platform\.start"):
        GatewayRun.again(SimpleNamespace(name="gw"))


# -- interrupted ----------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """A function that does what Ctrl-C does, whatever this process was started with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("way", ["run", "wait", "wait for another loop"])
def test_an_interrupt_ends_the_run_that_is_awaited_and_leaves_what_it_has(ctrl_c, way):
    fleet, seen = few().publish_to("memory:cut"), []

    async def cell():
        loop = asyncio.get_running_loop()
        apart = way == "wait for another loop"
        waiting = fleet.run("10m") if way == "run" else fleet.start(thread=apart).wait()
        waited = asyncio.current_task()
        watching = loop.create_task(interrupt(waited))
        try:
            await waiting
        except asyncio.CancelledError as error:
            seen.append(error)
            raise
        finally:
            watching.cancel()

    async def interrupt(waited):
        await until(iotsim.runs)
        live = iotsim.runs()[0]
        seen.append(live)
        await until(lambda: live.snapshot().readings > 10)
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(cell())
    live, error = seen
    note = error.__notes__[0]
    assert len(error.__notes__) == 1
    assert note.startswith("iotsim: run 'plant' was interrupted, and stopped at 00:00:0")
    assert note.endswith("Its result: (await iotsim.runs(ended=True).stop())[0]")
    assert iotsim.runs(ended=True) == [live]
    result = asyncio.run(iotsim.runs(ended=True).stop())[0]
    assert result.errors == ()
    assert result.digest == generated(few(), result)
    ledger = result.publishers["memory:cut"]
    assert ledger.acknowledged == result.rows > 10
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_time_limit_ends_the_waiting_and_not_the_run():
    async def cell():
        live = few().start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await live.wait()
        assert not live.leaving
        assert live in iotsim.runs()
        await live.stop()

    run(cell())


def test_one_interrupted_run_is_kept_and_no_more():
    async def cut(name):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await few(name).run("10m")

    for name in ("one", "two"):
        run(cut(name))
        assert [live.name for live in iotsim.runs(ended=True)] == [name]
