"""Every defect of the reference simulator (contracts/notip.md, part C1), and what proves it beaten.

== ============================================= ==================================================
 # defect of the reference                        test
== ============================================= ==================================================
 1 stop, then start: the process dies             test_gateway_life.py::test_a_stopped_gateway_ends_its_connection_and_goes_on_with_a_fresh_one
 2 a frequency that overflows is a panic          test_gateway_defects.py::test_a_frequency_beyond_all_bounds_is_answered_with_nack_and_changes_nothing
 3 a command in flight at the end is a panic      test_gateway_defects.py::test_commands_in_flight_when_a_run_ends_harm_nobody_and_are_answered_by_the_next
 4 no connection after onboarding: row deleted    test_gateway_defects.py::test_a_gateway_that_cannot_connect_keeps_its_row_and_connects_later
 5 onboarding given up too early: key lost        test_gateway_platform.py::test_cancelled_at_any_moment_start_leaves_nothing_behind_and_loses_nothing
 6 acks in one spelling                           test_gateway_commands.py::test_an_answer_has_both_spellings_of_the_id_and_a_time_in_utc
 7 acked before it is done, no ids, no 60 s       test_gateway_kills.py::test_a_command_of_a_killed_process_is_answered_once_by_who_follows
 8 timestamps in the local zone                   test_gateway_defects.py::test_timestamps_end_with_z_whatever_the_zone_of_the_process
 9 a disconnect leaves the session up             test_gateway_defects.py::test_a_disconnect_ends_the_session_and_degradation_is_more_than_loss
10 statuses that nobody knows are acked           test_gateway_defects.py::test_a_status_that_nobody_knows_is_refused_and_suspended_is_paused
11 a deleted sensor goes on                       test_gateway_life.py::test_sensors_come_and_go_while_a_gateway_runs
12 stopped or paused: online but silent for ever  test_gateway_recovery.py::test_a_recovered_gateway_is_as_it_was
13 without recovery rows are ghosts               test_gateway_recovery.py::test_without_recovery_rows_are_listed_and_can_be_forgotten
14 an outlier of twice a maximum below zero       test_gateway_defects.py::test_an_outlier_is_outside_the_range_also_below_zero
15 nothing is validated                           test_gateway_platform.py::test_start_refuses_what_cannot_be_in_one_line
16 all is bound to the tick                       test_gateway_defects.py::test_a_command_is_done_between_two_ticks_of_an_hour
17 one publication at a time, none tried again    test_gateway_recovery.py::test_a_restart_of_the_server_is_waited_out_and_nothing_is_lost
18 metrics that never move                        test_gateway_metrics.py
19 a shutdown that never waits                    no test: there is no HTTP server in front of a gateway here; the end of a run is that of test_gateway_life.py::test_after_the_end_and_before_the_beginning_texts_say_what_to_do
20 decommissions missed, and one listener alone   test_gateway_recovery.py::test_two_runs_hear_of_their_own_and_a_row_that_does_not_run_goes_too
20 the same, while nobody runs                    test_gateway_recovery.py::test_a_decommissioned_gateway_stops_and_strangers_change_nothing
21 secrets in plain text in SQLite                test_gateway_defects.py::test_no_secret_of_a_run_stands_in_the_store_in_plain_text
22 one certificate for all, or none that works    test_gateway_life.py::test_one_certificate_for_all_gives_the_same_life
23 claims of a README                             no test: of its image, its routes and its comments there is nothing here; that "already running" is no error is test_gateway_life.py::test_a_stopped_gateway_ends_its_connection_and_goes_on_with_a_fresh_one
24 unseeded, four generators, silent without      test_gateway_spec.py
   sensors
25 a cancel assigned too late, an unlocked record test_gateway_life.py::test_what_is_done_at_the_same_time_to_one_gateway_is_done_in_turn
== ============================================= ==================================================

The REST interface, its bodies and its user interface (parts of 15, 19, 23, 24) do not exist here:
what they would do is Python, and errors are exceptions with a text.
"""  # noqa: E501

import ast
import asyncio
import re
import time
from pathlib import Path

import pytest

from tests.gateway_life_rig import Site, readings, row, sees, swift  # noqa: F401
from tests.publishing import until
from tests.servers.notip import notip_lab  # noqa: F401

HERE = Path(__file__).parent


def test_each_defect_has_its_row_and_each_named_test_exists():
    numbers = {int(found) for found in re.findall(r"^ ?(\d+) ", __doc__, re.MULTILINE)}
    assert numbers == set(range(1, 26))
    for file, name in re.findall(r"(test_\w+\.py)(?:::(\w+))?", __doc__):
        tree = ast.parse((HERE / file).read_text("utf-8"))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name in there, f"{file} has no {name}"
        assert any(one.startswith("test_") for one in there)


@pytest.fixture(scope="module")
def site(notip_lab, swift, tmp_path_factory):  # noqa: F811
    return Site(notip_lab, tmp_path_factory.mktemp("defects"))


pytestmark = pytest.mark.broker


def test_a_frequency_beyond_all_bounds_is_answered_with_nack_and_changes_nothing(site):
    async def main():
        async with site.running(site.gateway()) as run:
            gateway_id = row(run, "gw-1").gateway_id
            for wrong in (9_300_000_000_000, 2**63, 0, 86_400_001):
                answer = await site.command(gateway_id, send_frequency_ms=wrong)
                assert answer.status == "nack"
                assert answer.message
            assert row(run, "gw-1").send_frequency_ms == 50
            await readings(run, "gw-1:temperature", 2)

    asyncio.run(main())


def test_a_status_that_nobody_knows_is_refused_and_suspended_is_paused(site):
    async def main():
        async with site.running(site.gateway()) as run:
            gateway_id = row(run, "gw-1").gateway_id
            assert (await site.command(gateway_id, status="asleep")).status == "nack"
            assert row(run, "gw-1").status == "online"
            assert (await site.command(gateway_id, status="suspended")).status == "ack"
            assert row(run, "gw-1").status == "paused"
            before = len(run.frame().query("device_id == 'gw-1:temperature'"))
            await readings(run, "gw-2:temperature", 4)
            assert len(run.frame().query("device_id == 'gw-1:temperature'")) <= before + 1

    asyncio.run(main())


def test_commands_in_flight_when_a_run_ends_harm_nobody_and_are_answered_by_the_next(site):
    async def main():
        sent = []
        async with site.running(site.gateway()) as run:
            gateway_id = row(run, "gw-1").gateway_id
            for i in range(30):
                sent.append(await site.at(site.console.config(
                    gateway_id, send_frequency_ms=50 + i % 2)))
            run.end_soon()
        async with site.running(site.gateway()) as run:
            for one in sent:
                assert (await site.at(site.console.answer(one, "35s"))).status == "ack"
        counts = site.console.acks().command_id.value_counts()
        assert all(counts[one] == 1 for one in sent)

    asyncio.run(main())


def test_a_gateway_that_cannot_connect_keeps_its_row_and_connects_later(site):
    async def main():
        gateway = site.gateway("later-{n}", 1)
        with pytest.raises(OSError, match="nothing listens there"):
            await site.platform(nats_url="tls://127.0.0.1:9").start(gateway, progress=False)
        (there,) = site.platform().gateways().query("gateway == 'later-1'").itertuples()
        assert there.provisioned
        assert there.gateway_id
        async with site.running(gateway) as run:
            assert set(run.enrolment.table().status) == {"provisioned before"}
            await readings(run, "later-1:temperature", 1)

    asyncio.run(main())


def test_timestamps_end_with_z_whatever_the_zone_of_the_process(site, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()

    async def main():
        async with site.running(site.gateway(count=1)) as run:
            await readings(run, "gw-1:temperature", 2)
            mine = run.frame()
        frame = await site.at(site.console.telemetry())
        got = frame[frame.message_id.str.startswith(f"{run.id}/")]
        seen = list(zip(got.time, mine.time, strict=False))
        assert seen
        assert all(one == other for one, other in seen)
        assert not site.console.rejected

    try:
        asyncio.run(main())
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_disconnect_ends_the_session_and_degradation_is_more_than_loss(site):
    async def main():
        async with site.running(site.gateway()) as run:
            await readings(run, "gw-1:temperature", 1)
            gateway_id = row(run, "gw-1").gateway_id
            run.disconnect("gw-1", "1s")
            await sees(run, "gw-1", connected=False)
            sent = await site.at(site.console.config(gateway_id, send_frequency_ms=60))
            assert row(run, "gw-2").connected
            await sees(run, "gw-1", connected=True)
            assert (await site.at(site.console.answer(sent))).status == "ack"
            run.degrade("gw-1", "300ms", loss=0.5, latency_ms=20, duplicate=0.5, reorder=0.5)
            await readings(run, "gw-1:temperature", 5)
        assert {"packet_loss", "latency_spike", "duplicate", "reorder"} <= set(
            "+".join(map(str, run._result.frame(wire=True).faults.unique())).split("+"))

    asyncio.run(main())


def test_an_outlier_is_outside_the_range_also_below_zero(site):
    async def main():
        gateway = site.gateway("cold-{n}", 1).sensor("humidity", "below", min=-30, max=-20)
        async with site.running(gateway) as run:
            await readings(run, "cold-1:below", 1)
            run.outlier("cold-1", "below")
            await until(lambda: not run.frame().query(
                "device_id == 'cold-1:below'").value.between(-30, -20).all(), 20)
            frame = run.frame().query("device_id == 'cold-1:below'")
            odd = frame[~frame.value.between(-30, -20)]
            assert len(odd) == 1
            assert set(odd.hit) == {"outlier"}

    asyncio.run(main())


def test_a_command_is_done_between_two_ticks_of_an_hour(site):
    async def main():
        gateway = site.gateway("slow-{n}", 1, every="1h")
        async with site.running(gateway) as run:
            gateway_id = row(run, "slow-1").gateway_id
            assert (await site.command(gateway_id, send_frequency_ms=50)).status == "ack"
            await readings(run, "slow-1:temperature", 2)

    asyncio.run(main())


def test_no_secret_of_a_run_stands_in_the_store_in_plain_text(site, tmp_path):
    async def main():
        path = tmp_path / "secret.db"
        platform = site.platform(store=path)
        async with site.running(site.gateway("mute-{n}", 1), platform=platform) as run:
            record = run.crew.record("mute-1")
            await readings(run, "mute-1:temperature", 1)
            shown = f"{run!r}{run.gateways().to_string()}{run.frame().to_string()}{run.actions}"
        shown += repr(run._result) + platform.gateways().to_string() + repr(record)
        whole = b"".join(one.read_bytes() for one in tmp_path.iterdir())
        body = record.private_key_pem.splitlines()[1]
        assert record.aes_key not in whole
        assert body.encode() not in whole
        for secret in (body, record.aes_key.hex(), repr(record.aes_key)[2:12]):
            assert secret not in shown

    asyncio.run(main())
