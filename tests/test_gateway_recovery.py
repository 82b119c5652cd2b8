"""Outages, kills and recovery: each leaves a clear state and loses nothing acknowledged."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from iotsim.errors import BadValue, ConnectError, UnknownName
from tests.gateway_life_rig import STORE_KEY, Site, readings, row, sees, swift  # noqa: F401
from tests.publishing import until
from tests.servers.notip import notip_lab  # noqa: F401

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def site(notip_lab, swift, tmp_path_factory):  # noqa: F811
    return Site(notip_lab, tmp_path_factory.mktemp("recovery"))


# -- outages --------------------------------------------------------------------------------------


def test_a_restart_of_the_server_is_waited_out_and_nothing_is_lost(site):
    async def main():
        async with site.running(site.gateway()) as run:
            await readings(run, "gw-1:temperature", 3)
            await site.at(site.lab.restart_nats())
            await until(lambda: any("link lost" in note for note in run.notes))
            for name in ("gw-1", "gw-2"):
                await sees(run, name, connected=True, trouble="", state="running")
            await readings(run, "gw-1:temperature", 2)
            return run

    run = asyncio.run(main())
    (ledger,) = run._result.publishers.values()
    assert ledger.reconnects == 2
    assert ledger.acknowledged == ledger.offered, ledger.refusals
    assert run.errors == ()


def test_what_a_stopped_gateway_could_not_send_leaves_when_it_is_started(site):
    async def main():
        async with site.running(site.gateway()) as run:
            await readings(run, "gw-1:temperature", 2)
            await site.at(site.lab.kill_nats())
            await readings(run, "gw-1:temperature", 4)
            await sees(run, "gw-1", connected=False)
            assert row(run, "gw-1").trouble
            await run.stop_gateway("gw-1")  # waits, and gives up
            now = row(run, "gw-1")
            assert now.state == "stopped"
            assert now.queued >= 4
            assert now.trouble == ""
            assert any("gw-1 was stopped before all that it had measured" in note
                       for note in run.notes)
            await site.at(site.lab.restart_nats())
            await sees(run, "gw-2", connected=True)
            assert not row(run, "gw-1").connected
            (before,) = run.snapshot().publishers.values()
            await run.start_gateway("gw-1")
            await sees(run, "gw-1", connected=True)
            # Others come meanwhile: that the queue is empty may never be seen on a slow machine.
            await until(lambda: next(iter(run.snapshot().publishers.values())).acknowledged
                        >= before.offered)
            return run

    run = asyncio.run(main())
    (ledger,) = run._result.publishers.values()
    assert ledger.acknowledged == ledger.offered


def test_a_full_buffer_drops_the_oldest_and_counts_them(site):
    async def main():
        async with site.running(site.gateway(count=1), platform=site.platform(buffer=5)) as run:
            await readings(run, "gw-1:temperature", 2)
            await site.at(site.lab.kill_nats())
            await sees(run, "gw-1", connected=False)
            await readings(run, "gw-1:temperature", 12)
            assert row(run, "gw-1").queued <= 5 + 5
            await site.at(site.lab.restart_nats())
            await sees(run, "gw-1", connected=True)
            await readings(run, "gw-1:temperature", 2)
            return run

    run = asyncio.run(main())
    (ledger,) = run._result.publishers.values()
    assert ledger.dropped >= 5
    assert sum(ledger.drops.values()) == ledger.dropped
    assert ledger.offered == ledger.acknowledged + ledger.dropped
    assert any("dropped" in str(error) for error in run.errors)
    frame = run._result.frame(wire=True)
    lost = frame[~frame.acked.fillna(False)].seq.tolist()
    assert len(lost) == ledger.dropped
    longest = [seq for seq in lost if seq - lost[0] == lost.index(seq)]
    assert len(longest) >= len(lost) / 2  # the oldest of the outage, in one piece


def test_an_expired_certificate_is_named_and_the_others_go_on(site):
    async def main():
        new = site.gateway("brief-{n}", 1)
        site.lab.provisioning.ttl_s, before = 4, site.lab.provisioning.ttl_s
        begun = time.monotonic()
        try:
            async with site.running([site.gateway(count=1), new]) as run:
                await readings(run, "brief-1:temperature", 2)
                await until(lambda: time.monotonic() > begun + 5.5, 10)
                await site.at(site.lab.restart_nats())
                await until(lambda: "its certificate expired on" in row(run, "brief-1").trouble)
                now = row(run, "brief-1")
                assert (now.state, now.connected) == ("running", False)
                assert now.gateway_id in now.trouble
                assert "Provision it anew" in now.trouble
                await sees(run, "gw-1", connected=True, trouble="")
                await readings(run, "gw-1:temperature", 2)
                await readings(run, "brief-1:temperature", 2)
                await run.delete_gateway("brief-1")
                await readings(run, "gw-1:temperature", 2)
        finally:
            site.lab.provisioning.ttl_s = before
        return run

    run = asyncio.run(main())
    (ledger,) = run._result.publishers.values()
    assert ledger.offered == ledger.acknowledged + ledger.dropped + ledger.unknown
    assert any("certificate expired" in note for note in run.notes)


def test_a_revoked_gateway_is_cut_off_named_and_can_be_deleted(site):
    async def main():
        async with site.running(site.gateway("rev-{n}", 2)) as run:
            await readings(run, "rev-1:temperature", 3)
            await site.at(site.console.revoke(row(run, "rev-1").gateway_id))
            await until(lambda: "was revoked" in row(run, "rev-1").trouble)
            assert not row(run, "rev-1").connected
            await readings(run, "rev-2:temperature", 3)
            assert row(run, "rev-2").connected
            await run.delete_gateway("rev-1")
            await sees(run, "rev-1", state="deleted", trouble="", queued=0)
            await readings(run, "rev-2:temperature", 2)
        with pytest.raises(BadValue, match="has ended"):
            await run.delete_gateway("rev-2")
        return run

    run = asyncio.run(main())
    (ledger,) = run._result.publishers.values()
    assert ledger.offered == ledger.acknowledged + ledger.dropped + ledger.unknown
    assert any("If the gateway was revoked, provision it anew" in note for note in run.notes)


def test_when_nobody_is_let_in_start_says_why_and_leaves_nothing(site):
    async def main():
        gateway = site.gateway("out-{n}", 1)
        async with site.running(gateway) as run:
            gateway_id = row(run, "out-1").gateway_id
        await site.at(site.console.revoke(gateway_id))
        with pytest.raises(ConnectError, match=f"gateway {gateway_id}.*revoked, provision it anew"):
            await site.platform().start(gateway)
        assert set(site.platform().gateways().query("gateway == 'out-1'").run) == {""}
        site.platform().forget("out-1")
        assert "out-1" not in set(site.platform().gateways().gateway)

    asyncio.run(main())


# -- recovery -------------------------------------------------------------------------------------


def test_a_recovered_gateway_is_as_it_was(site, tmp_path):
    async def main():
        platform = site.platform(store=tmp_path / "r.db")
        gateway = site.gateway("was-{n}", 3)
        async with site.running(gateway, platform=platform) as run:
            ids = run.gateways().set_index("gateway").gateway_id
            assert (await site.command(ids["was-1"], status="paused")).status == "ack"
            assert (await site.command(ids["was-2"], send_frequency_ms=70)).status == "ack"
            await run.attach("was-2", "humidity", min=30, max=40)
            await run.detach("was-2", "temperature")
            await run.stop_gateway("was-3")
        there = platform.gateways().set_index("gateway")
        assert there.loc["was-1", "status"] == "paused"
        assert (there.loc["was-2", "send_frequency_ms"], there.loc["was-2", "sensors"]) == (70, 1)
        assert there.loc["was-3", "intent"] == "stopped"
        assert set(there.run) == {""}
        async with site.running(recover=True, platform=platform) as run:
            assert await platform.start(recover=True) is run
            assert row(run, "was-1").status == "paused"
            assert row(run, "was-1").connected
            now = row(run, "was-3")
            assert (now.state, now.connected, now.trouble) == ("stopped", False, "")
            assert row(run, "was-2").send_frequency_ms == 70
            await readings(run, "was-2:humidity", 4)
            frame = run.frame()
            assert set(frame.device_id) == {"was-2:humidity"}
            assert frame.value.between(30, 40).all()
            steps = frame.time.diff().dropna().dt.total_seconds().round(3)
            assert set(steps) == {0.07}
            assert set(platform.gateways().run) == {"gateways"}
            await run.start_gateway("was-3")
            await readings(run, "was-3:temperature", 2)
            assert (await site.command(ids["was-1"], status="online")).status == "ack"
            await readings(run, "was-1:temperature", 2)
            assert len(run.commands()) == 1  # what was answered is not done again
            with pytest.raises(BadValue, match="is in the live run 'gateways'"):
                await platform.start(gateway)
            with pytest.raises(BadValue, match="is in the live run 'gateways'"):
                platform.forget("was-1")

    asyncio.run(main())


def test_all_stopped_gateways_can_be_recovered_and_started(site, tmp_path):
    async def main():
        platform = site.platform(store=tmp_path / "s.db")
        async with site.running(site.gateway("idle-{n}", 1), platform=platform) as run:
            await run.stop_gateway("idle-1")
        async with site.running(recover=True, platform=platform) as run:
            assert row(run, "idle-1").state == "stopped"
            assert not row(run, "idle-1").connected
            await run.start_gateway("idle-1")
            await readings(run, "idle-1:temperature", 2)
            await sees(run, "idle-1", connected=True)
        async with site.running(site.gateway("idle-{n}", 1), platform=platform) as run:
            await run.stop_gateway("idle-1")
        async with site.running(site.gateway("idle-{n}", 1), platform=platform) as run:
            assert row(run, "idle-1").state == "running"  # who asks for it anew wants it to run
            await readings(run, "idle-1:temperature", 1)

    asyncio.run(main())


def test_without_recovery_rows_are_listed_and_can_be_forgotten(site, tmp_path):
    async def main():
        platform = site.platform(store=tmp_path / "f.db")
        assert len(platform.gateways()) == 0
        assert not (tmp_path / "f.db").exists()
        async with site.running(site.gateway("row-{n}", 2), platform=platform):
            pass
        async with site.running(site.gateway("row-{n}", 1), platform=platform) as run:
            there = platform.gateways().set_index("gateway")
            assert there.run.to_dict() == {"row-1": "row", "row-2": ""}
            assert there.provisioned.all()
            assert list(run.gateways().gateway) == ["row-1"]
            platform.forget("row-2")
            with pytest.raises(BadValue, match=r"run\.delete_gateway"):
                platform.forget("row-1")
            with pytest.raises(UnknownName):
                platform.forget("row-2")
        platform.forget("row-1")
        assert list(platform.gateways().gateway) == []

    asyncio.run(main())


class Child:
    """A process that runs gateways, and what it was acknowledged."""

    def __init__(self, site, store, gateways):
        lab = site.lab
        options = {"provisioning_url": lab.provisioning_url, "nats_url": lab.nats_url,
                   "nats_ca": str(lab.ca_path), "nats_cert": str(lab.simulator_cert),
                   "nats_key": str(lab.simulator_key), "own_certificates": True,
                   "store": str(store), "store_key": STORE_KEY}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.gateway_run_child", json.dumps([options, gateways])],
            cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True)
        self.run_id, self.acked = "", []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("ready "):
                self.run_id = line.split()[1]
            elif line.endswith("\n"):
                self.acked.append(line.strip())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(10) == -signal.SIGKILL
        self._reader.join(10)
        self.process.stdout.close()


def test_killed_at_any_moment_nothing_acknowledged_and_no_gateway_is_lost(site, tmp_path):
    store = tmp_path / "killed.db"
    platform = site.platform(store=store)
    site.gateway("kil-{n}", 3)
    acked = []

    for moment in (0.0, 0.13):  # seconds after it sends; then a recovered one, too
        child = Child(site, store, [] if acked else [["kil-{n}", 3]])
        try:
            deadline = time.monotonic() + 30
            while len(child.acked) < 12:
                assert time.monotonic() < deadline
                assert child.process.poll() is None
                time.sleep(0.01)
            if not acked:
                for name, config in (("kil-1", {"status": "paused"}),
                                     ("kil-2", {"send_frequency_ms": 90})):
                    one = site.lab.register_of_gateways.get(f"f-{name}")
                    sent = site.thread.run(site.console.config(one.gateway_id, **config))
                    answer = site.thread.run(site.console.answer(sent))
                    assert answer.status == "ack"
            time.sleep(moment)
        finally:
            child.kill()
        acked += child.acked
    assert acked

    async def main():
        received = await site.at(site.console.telemetry())
        counts = received.message_id.value_counts()
        assert counts.max() == 1
        assert set(acked) <= set(counts.index)
        async with site.running(recover=True, platform=platform) as run:
            frame = run.gateways().set_index("gateway")
            assert frame.status.to_dict() == {
                "kil-1": "paused", "kil-2": "online", "kil-3": "online"}
            assert frame.send_frequency_ms.to_dict() == {"kil-1": 50, "kil-2": 90, "kil-3": 50}
            await readings(run, "kil-2:temperature", 3)
            assert "kil-1:temperature" not in set(run.frame().device_id)
            assert run.enrolment.errors == {}

    asyncio.run(main())


# -- decommission ---------------------------------------------------------------------------------


def test_a_decommissioned_gateway_stops_and_strangers_change_nothing(site, tmp_path):
    async def main():
        platform = site.platform(store=tmp_path / "d.db")
        async with site.running(site.gateway("dec-{n}", 3), platform=platform) as run:
            await readings(run, "dec-1:temperature", 2)
            ids = run.gateways().set_index("gateway").gateway_id
            other = "11111111-1111-4111-8111-111111111111"

            async def event(subject):
                await site.console._streams.publish(f"gateway.decommissioned.{subject}", b"{}")

            await site.at(event(f"{other}.{ids['dec-2']}"))  # another tenant's event
            await site.at(event(f"{site.lab.tenant_id}.{other}"))  # nobody here
            await site.at(event("no.uuids"))
            await site.at(site.console.decommission(ids["dec-1"]))
            await site.at(event(f"{site.lab.tenant_id}.{ids['dec-1']}"))  # twice
            await sees(run, "dec-1", state="decommissioned", connected=False)
            await until(lambda: any("dec" in note or "ignored" in note for note in run.notes))
            assert row(run, "dec-2").state == "running"
            assert set(platform.gateways().gateway) == {"dec-2", "dec-3"}
            last = run.frame().query("device_id == 'dec-1:temperature'").seq.max()
            await readings(run, "dec-2:temperature", 3)
            assert run.frame().query("device_id == 'dec-1:temperature'").seq.max() == last
            events = [action for action in run.actions
                      if "decommissioned" in str(dict(action.parameters))]
            assert len(events) == 1
        await site.at(site.console.decommission(ids["dec-2"]))  # while nobody runs
        async with site.running(recover=True, platform=platform) as run:
            await sees(run, "dec-2", state="decommissioned")
            assert list(platform.gateways().gateway) == ["dec-3"]
            await readings(run, "dec-3:temperature", 2)
        return run

    assert asyncio.run(main()).errors == ()


def test_two_runs_hear_of_their_own_and_a_row_that_does_not_run_goes_too(site, tmp_path):
    async def main():
        platform = site.platform(store=tmp_path / "t.db")
        async with site.running(site.gateway("two-{n}", 2), platform=platform) as run:
            ids = run.gateways().set_index("gateway").gateway_id
        one, other = site.gateway("two-{n}", 1), site.gateway("sec-{n}", 1)
        async with (site.running(one, platform=platform) as first,
                    site.running(other, alone=False, platform=platform) as second):
            mine = row(second, "sec-1").gateway_id
            await site.at(site.console.decommission(ids["two-2"]))  # its row alone
            await site.at(site.console.decommission(mine))
            await sees(second, "sec-1", state="decommissioned")
            await until(lambda: set(platform.gateways().gateway) == {"two-1"})
            assert row(first, "two-1").state == "running"
            await site.at(site.console.decommission(ids["two-1"]))
            await sees(first, "two-1", state="decommissioned")
        assert len(platform.gateways()) == 0

    asyncio.run(main())
