"""What is done to one gateway of a live run: stop, start, sensors, its end; who joins."""

import asyncio
import threading

import pytest

from iotsim import Gateway
from iotsim.errors import BadValue, IotsimError, UnknownName
from tests.gateway_life_rig import Site, left_over, readings, row, sees
from tests.publishing import until
from tests.servers.notip import notip_lab  # noqa: F401

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def site(notip_lab, tmp_path_factory):  # noqa: F811
    return Site(notip_lab, tmp_path_factory.mktemp("life"))


def seqs(frame, device):
    return frame[frame.device_id == device].seq.tolist()


def test_a_stopped_gateway_ends_its_connection_and_goes_on_with_a_fresh_one(site):
    async def main():
        async with site.running(site.gateway()) as run:
            await readings(run, "gw-1:temperature", 3)
            await run.stop_gateway("gw-1")
            now = row(run, "gw-1")
            assert (now.state, now.connected, now.queued, now.trouble) == ("stopped", False, 0, "")
            assert row(run, "gw-2").state == "running"
            frame = run.frame(wire=True)
            assert frame[frame.device_id == "gw-1:temperature"].acked.all()
            last = seqs(run.frame(), "gw-1:temperature")[-1]
            waiting = await site.at(site.console.config(now.gateway_id, send_frequency_ms=40))
            await readings(run, "gw-2:temperature", 5)
            assert seqs(run.frame(), "gw-1:temperature")[-1] == last
            assert not len(run.commands())
            await run.stop_gateway("gw-1")  # again is nothing
            await run.start_gateway("gw-1")
            await run.start_gateway("gw-1")
            answer = await site.at(site.console.answer(waiting))
            assert answer.status == "ack"  # it waited on the platform
            await readings(run, "gw-1:temperature", 3)
            now = row(run, "gw-1")
            assert (now.state, now.connected, now.send_frequency_ms) == ("running", True, 40)
            return run

    run = asyncio.run(main())
    assert run.errors == ()
    assert [action.verb for action in run.actions].count("inject") == 1


def test_sensors_come_and_go_while_a_gateway_runs(site):
    async def main():
        async with site.running(site.gateway()) as run:
            await run.attach("gw-1", "humidity", min=20, max=40)
            await readings(run, "gw-1:humidity", 3)
            assert row(run, "gw-1").sensors == 2
            action = await run.detach("gw-1", "humidity")
            assert row(run, "gw-1").sensors == 1
            await readings(run, "gw-1:temperature", 4)
            frame = run.frame()
            ended = frame[frame.device_id == "gw-1:humidity"].time.max()
            assert (ended - frame.time.min()).total_seconds() * 1e6 <= action.at_us + 60_000
            await run.attach("gw-1", "humidity")  # names are never used twice
            await readings(run, "gw-1:humidity-2", 2)
            with pytest.raises(BadValue, match="is another sensor of this gateway"):
                await run.attach("gw-1", "humidity", "humidity")
            with pytest.raises(BadValue, match=r"is none of gateway gw-1.*It has: temperature"):
                await run.detach("gw-1", "humidity")
            with pytest.raises(IotsimError):
                await run.attach("gw-1", "weight")
    asyncio.run(main())


def test_a_sensor_of_a_stopped_gateway_is_silent_until_that_is_started(site):
    async def main():
        async with site.running(site.gateway()) as run:
            await run.stop_gateway("gw-1")
            await run.attach("gw-1", "pressure")
            await readings(run, "gw-2:temperature", 4)
            assert seqs(run.frame(), "gw-1:pressure") == []
            assert not row(run, "gw-1").connected
            assert not row(run, "gw-1").queued
            await run.start_gateway("gw-1")
            await readings(run, "gw-1:pressure", 2)
            await run.detach("gw-1", "temperature")
            await run.detach("gw-1", "pressure")
            await sees(run, "gw-1", sensors=0, connected=True)
            gateway_id = row(run, "gw-1").gateway_id
            assert (await site.command(gateway_id, send_frequency_ms=60)).status == "ack"
            await run.stop_gateway("gw-1")
            await sees(run, "gw-1", connected=False, state="stopped")
            await run.start_gateway("gw-1")
            await sees(run, "gw-1", connected=True)
            await run.attach("gw-1", "movement")
            await readings(run, "gw-1:movement", 2)

    asyncio.run(main())


def test_a_paused_gateway_stays_paused_over_stop_and_start(site):
    async def main():
        async with site.running(site.gateway()) as run:
            gateway_id = row(run, "gw-1").gateway_id
            assert (await site.command(gateway_id, status="paused")).status == "ack"
            await run.stop_gateway("gw-1")
            await run.start_gateway("gw-1")
            await sees(run, "gw-1", connected=True, state="running", status="paused")
            await run.attach("gw-1", "movement")
            before = len(run.frame().query("device_id.str.startswith('gw-1:')"))
            await readings(run, "gw-2:temperature", 5)
            assert len(run.frame().query("device_id.str.startswith('gw-1:')")) == before
            assert (await site.command(gateway_id, status="online")).status == "ack"
            await readings(run, "gw-1:movement", 2)

    asyncio.run(main())


def test_a_deleted_gateway_is_gone_with_its_row_and_the_others_go_on(site):
    async def main():
        async with site.running(site.gateway("del-{n}", 3)) as run:
            await readings(run, "del-1:temperature", 3)
            await run.stop_gateway("del-2")
            await run.delete_gateway("del-2")  # also one that is stopped
            await run.delete_gateway("del-1")
            await sees(run, "del-1", state="deleted", connected=False)
            await sees(run, "del-2", state="deleted", connected=False)
            names = set(site.platform().gateways().gateway)
            assert "del-3" in names
            assert not {"del-1", "del-2"} & names
            await readings(run, "del-3:temperature", 3)
            frame = run.frame(wire=True)
            mine = frame[frame.device_id == "del-1:temperature"]
            assert mine.acked.all()  # what it had measured has left
            for wrong in (run.stop_gateway, run.start_gateway, run.delete_gateway):
                with pytest.raises(BadValue, match=r"no longer there.*It was deleted"):
                    await wrong("del-1")
            with pytest.raises(UnknownName, match="del-3"):
                await run.stop_gateway("del-33")
            return run

    assert asyncio.run(main()).errors == ()


def test_gateways_join_a_run_and_those_that_cannot_are_named(site):
    async def main():
        async with site.running(site.gateway()) as run:
            more = site.gateway("more-{n}", 2)
            enrolment = await run.enrol(more, count=3)  # the third is not registered
            assert [one.name for one in enrolment.records] == ["more-1", "more-2"]
            await sees(run, "more-2", connected=True, status="online", state="running")
            await readings(run, "more-2:temperature", 2)
            assert list(run.enrolment.errors) == ["more-3"]
            table = run.enrolment.table().set_index("name").status
            assert table["more-3"] == "failed"
            assert table["more-1"] == "provisioned"
            assert any("more-3" in str(error) or "401" in str(error) for error in run.errors)
            gateway_id = row(run, "more-1").gateway_id
            assert (await site.command(gateway_id, send_frequency_ms=100)).status == "ack"
            with pytest.raises(BadValue, match="is in this run already"):
                await run.enrol(site.gateway(count=1))
            with pytest.raises(BadValue, match="is not the run's, 42"):
                await run.enrol(Gateway("x", seed=7).sensor("humidity"))
            return run

    asyncio.run(main())


def test_what_is_done_at_the_same_time_to_one_gateway_is_done_in_turn(site):
    async def main():
        async with site.running(site.gateway()) as run:
            await asyncio.gather(
                run.stop_gateway("gw-1"), run.start_gateway("gw-1"), run.attach("gw-1", "pressure"),
                run.stop_gateway("gw-1"), run.start_gateway("gw-1"), run.stop_gateway("gw-2"),
                run.attach("gw-1", "movement"))
            await sees(run, "gw-1", state="running", connected=True, sensors=3)
            await sees(run, "gw-2", state="stopped", connected=False)
            await readings(run, "gw-1:movement", 2)
            await readings(run, "gw-1:pressure", 2)

    asyncio.run(main())


def test_another_thread_and_another_loop_may_ask_and_get_what_this_one_gets(site):
    async def main():
        async with site.running(site.gateway()) as run:
            said = {}

            def elsewhere():
                async def there():
                    await run.stop_gateway("gw-1")
                    said["state"] = row(run, "gw-1").state
                    try:
                        await run.stop_gateway("gw-9")
                    except UnknownName as error:
                        said["error"] = str(error)
                    await run.start_gateway("gw-1")
                    await run.attach("gw-1", "humidity")
                asyncio.run(there())

            thread = threading.Thread(target=elsewhere)
            thread.start()
            await until(lambda: not thread.is_alive(), 20)
            assert said["state"] == "stopped"
            assert "gw-9" in said["error"]
            await readings(run, "gw-1:humidity", 2)
            return run

    run = asyncio.run(main())

    async def later():
        with pytest.raises(BadValue, match="has ended"):
            await run.stop_gateway("gw-1")

    asyncio.run(later())  # its loop is closed by now
    assert len(run.gateways()) == 2
    assert len(run.frame())


def test_after_the_end_and_before_the_beginning_texts_say_what_to_do(site):
    async def main():
        platform, more = site.platform(), site.gateway("late", 1)
        starting = asyncio.create_task(platform.start(site.gateway(), progress=False))
        run = await starting
        stopping = asyncio.create_task(run.stop())
        await asyncio.sleep(0)
        for late in (run.stop_gateway("gw-1"), run.attach("gw-1", "humidity"),
                     run.delete_gateway("gw-1"), run.enrol(more)):
            with pytest.raises(BadValue, match=r"has ended.*platform\.start\(\)"):
                await late
        await stopping
        frame = run.gateways()
        assert not frame.connected.any()
        assert set(frame.state) == {"ended"}
        assert left_over() == []

    asyncio.run(main())


@pytest.mark.parametrize("how", [{"connection": "shared", "own_certificates": None},
                                 {"own_certificates": False}])
def test_one_certificate_for_all_gives_the_same_life(site, how):
    async def main():
        platform = site.platform(**how)
        gateway = site.gateway("sh-{n}" if "connection" in how else "oc-{n}", 3)
        first = gateway.names()[0].rpartition("-")[0]
        async with site.running(gateway, platform=platform) as run:
            one, two, three = gateway.names()
            await sees(run, one, connected=True)
            await run.stop_gateway(one)
            await sees(run, one, connected=False, state="stopped", trouble="")
            waiting = await site.at(site.console.config(row(run, one).gateway_id,
                                                        send_frequency_ms=60))
            await readings(run, f"{two}:temperature", 3)
            assert not len(run.commands())
            await run.start_gateway(one)
            assert (await site.at(site.console.answer(waiting))).status == "ack"
            await run.delete_gateway(two)
            await sees(run, two, connected=False, state="deleted")
            await run.enrol(site.gateway(f"{first}x-{{n}}", 1))
            joined = row(run, f"{first}x-1").gateway_id
            assert (await site.command(joined, send_frequency_ms=70)).status == "ack"
            await readings(run, f"{first}x-1:temperature", 2)
            await readings(run, f"{one}:temperature", 2)
            await run.attach(three, "humidity")
            await readings(run, f"{three}:humidity", 2)
            await site.at(site.console.decommission(row(run, three).gateway_id))
            await sees(run, three, connected=False, state="decommissioned")
            return run

    assert asyncio.run(main()).errors == ()
