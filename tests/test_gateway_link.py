"""A gateway's connection: its durable, deliveries, rights, and what it does when things end."""

import asyncio
import contextlib
import json
import ssl
import stat
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from iotsim.errors import BadValue, ConnectError
from iotsim.gateway.link import PACE, GatewayLink, own_publisher
from iotsim.gateway.record import GatewayRecord
from iotsim.lab.authority import Authority
from iotsim.publishers.backoff import Backoff, Pace
from iotsim.publishers.base import build
from iotsim.publishers.payload import Messages
from iotsim.publishers.pump import Pump
from tests.gateway_link_rig import (
    TENANT,
    Box,
    PlatformServer,
    Told,
    gateway_key,
    linked,
    listening,
)
from tests.publishing import CheckedLedger, in_order_per_device, until
from tests.servers import nats as servers
from tests.servers.notip import key_pem

nats_server = servers.nats_server  # the fixture

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A platform's server that knows a few gateways; tests take them from `spare`."""
    one = PlatformServer(tmp_path_factory.mktemp("platform"))
    one.spare = [one.gateway(f"gw-{n}") for n in range(20)]
    one.start()
    yield one
    one.stop()


@pytest.fixture
def own_server(tmp_path):
    """One that a test may kill."""
    one = PlatformServer(tmp_path)
    one.spare = [one.gateway(f"gw-{n}") for n in range(4)]
    one.start()
    yield one
    one.stop()


@pytest.fixture
def record(server):
    return server.spare.pop()


def telemetry(record, count, first=0, sensors=3):
    names = [f"{record.name}:s-{i % sensors}" for i in range(first, first + count)]
    ids = [f"run/{name}/{i // sensors}/0" for i, name in enumerate(names, first)]
    payloads = [json.dumps({"n": i}).encode() for i in range(first, first + count)]
    subject = f"telemetry.data.{record.tenant_id}.{record.gateway_id}"
    return Messages([subject] * count, payloads, ids, np.zeros(count, np.int64))


class OneGateway:
    """A publisher of one gateway, for a pump."""

    pace = PACE
    per_device = False

    def __init__(self, server, record, box, **options):
        self.nats = server.own(record, **options)
        self.url, self.limits, self.tracing = self.nats.url, self.nats.limits, self.nats.tracing
        self.record, self.box, self.links = record, box, []

    def lanes(self, devices):
        return 1

    def link(self, lane, run_id, verdicts, device=None):
        posts = {self.record.gateway_id: (self.record.tenant_id, self.box)}
        self.links.append(GatewayLink(self.nats, "gw", verdicts, posts))
        return self.links[-1]


# -- the durable ----------------------------------------------------------------------------------


def test_the_durable_is_made_as_the_contract_says(server, record):
    async def work():
        async with linked(server, [record]) as (link, boxes, told):
            await until(lambda: listening(link))
            box = boxes[record.gateway_id]
            assert box.lines == [link.line]
            assert link.line.connected
            found = await server.consumer(record)
        assert box.ends == 1
        assert not link.line.connected
        return found, await server.consumer(record), told.notices

    found, after, notices = asyncio.run(work())
    config = found.config
    assert found.name == config.durable_name == f"gw-{record.gateway_id}"
    assert config.filter_subject == f"command.gw.{record.tenant_id}.{record.gateway_id}"
    assert config.deliver_policy == DeliverPolicy.ALL
    assert config.ack_policy == AckPolicy.EXPLICIT
    assert (config.ack_wait, config.max_deliver) == (30.0, 3)
    assert config.deliver_subject == f"_INBOX.{record.gateway_id}.commands"
    assert found.push_bound
    assert not after.push_bound  # it stays, and nobody listens
    assert notices == []


def test_commands_from_before_the_first_connection_are_delivered(server, record):
    async def work():
        await server.command(record, {"command_id": "old"}, {"command_id": "older"})
        async with linked(server, [record]) as (link, boxes, _):
            box = boxes[record.gateway_id]
            await until(lambda: len(box.got) == 2)
            await server.command(record, {"command_id": "new"})
            await until(lambda: len(box.got) == 3)
            await until(lambda: listening(link))
            first = box.got[0]
            assert first.subject == f"command.gw.{record.tenant_id}.{record.gateway_id}"
            assert first.deliveries == 1
            assert [d.sequence for d in box.got] == sorted(d.sequence for d in box.got)
            assert abs(first.received_us - time.time() * 1e6) < 60e6
            await link.line.request("$JS.API.STREAM.NAMES", b"")  # the acks went before it
            return box.bodies, await server.consumer(record)

    bodies, info = asyncio.run(work())
    assert [body["command_id"] for body in bodies] == ["old", "older", "new"]
    assert (info.num_ack_pending, info.num_pending) == (0, 0)


def test_what_is_not_acknowledged_comes_again_and_each_verdict_is_heeded(server, record):
    # a: never answered, three times in all · b: nak with a delay, then ack · c: term · d: working
    def do(delivery):
        name, n = json.loads(delivery.payload)["command_id"], delivery.deliveries
        if name == "b":
            delivery.nak(0.05) if n == 1 else delivery.ack()
        elif name == "c":
            delivery.term()
        elif name == "d":
            delivery.ack()

    async def work():
        async with linked(server, [record], ack_wait_s=0.3, do=do) as (link, boxes, _):
            box = boxes[record.gateway_id]
            await until(lambda: listening(link))
            await server.command(record, *({"command_id": name} for name in "abcd"))
            await until(lambda: len(box.got) == 7)
            await asyncio.sleep(0.5)  # nothing more comes
            return [(body["command_id"], d.deliveries)
                    for body, d in zip(box.bodies, box.got, strict=True)]

    got = asyncio.run(work())
    assert [entry for entry in got if entry[0] == "a"] == [("a", 1), ("a", 2), ("a", 3)]
    assert [entry for entry in got if entry[0] != "a"] == [("b", 1), ("c", 1), ("d", 1), ("b", 2)]


def test_work_in_progress_is_not_delivered_again(server, record):
    async def work():
        async with linked(server, [record], ack_wait_s=0.3, do=lambda d: None) as (_, boxes, __):
            box = boxes[record.gateway_id]
            await server.command(record, {"command_id": "slow"})
            await until(lambda: box.got)
            for _ in range(8):
                await asyncio.sleep(0.1)
                box.got[0].in_progress()
            assert len(box.got) == 1
            box.got[0].ack()
            await asyncio.sleep(0.4)
            return len(box.got)

    assert asyncio.run(work()) == 1


def test_a_durable_of_the_reference_simulator_is_taken_over_with_what_it_holds(server, record):
    # As nats.go makes it: a deliver subject of its own choice.
    async def work():
        async with server.client() as (_, stream):
            await stream.add_consumer("COMMANDS", ConsumerConfig(
                durable_name=f"gw-{record.gateway_id}", deliver_subject="_INBOX.Xb3kQ9",
                ack_policy=AckPolicy.EXPLICIT, max_deliver=3, deliver_policy=DeliverPolicy.ALL,
                filter_subject=f"command.gw.{record.tenant_id}.{record.gateway_id}"))
        await server.command(record, {"command_id": "waiting"})
        async with linked(server, [record]) as (link, boxes, told):
            await until(lambda: boxes[record.gateway_id].got)
            await until(lambda: listening(link))
            assert told.notices == []
            return await server.consumer(record)

    info = asyncio.run(work())
    assert info.config.deliver_subject == f"_INBOX.{record.gateway_id}.commands"
    assert info.config.max_deliver == 3


def test_one_that_another_client_uses_is_left_to_it_and_said(server, record):
    async def work():
        async with server.client("simulator") as (other, stream):
            await other.subscribe("_INBOX.theirs")
            await stream.add_consumer("COMMANDS", ConsumerConfig(
                durable_name=f"gw-{record.gateway_id}", deliver_subject="_INBOX.theirs",
                ack_policy=AckPolicy.EXPLICIT,
                filter_subject=f"command.gw.{record.tenant_id}.{record.gateway_id}"))
            async with linked(server, [record]) as (link, _, told):
                await until(lambda: told.notices)
                await link.line.request("$JS.API.STREAM.NAMES", b"")  # the rest goes on
                return told.notices, (await server.consumer(record)).config.deliver_subject

    notices, subject = asyncio.run(work())
    assert notices == [
        f"gateway {record.gateway_id} takes no commands for now: another client takes what "
        f"gw-{record.gateway_id} of COMMANDS delivers. Stop it."]
    assert subject == "_INBOX.theirs"


def test_one_of_another_kind_is_not_deleted(server, record):
    async def work():
        async with server.client() as (_, stream):
            await stream.add_consumer("COMMANDS", ConsumerConfig(
                durable_name=f"gw-{record.gateway_id}", ack_policy=AckPolicy.EXPLICIT,
                filter_subject=f"command.gw.{record.tenant_id}.{record.gateway_id}"))
        async with linked(server, [record]) as (_, __, told):
            await until(lambda: told.notices)
            assert "is of another kind. Delete it" in told.notices[0]
            return (await server.consumer(record)).config.deliver_subject

    assert asyncio.run(work()) is None


def test_without_the_stream_telemetry_flows_and_commands_come_when_it_is_there(
        own_server, monkeypatch):
    monkeypatch.setattr("iotsim.gateway.consumer.LOOKS", Pace(0.1, 0.2, 0.2))
    record, box = own_server.spare[0], Box()
    own_server.admin(lambda _, stream: stream.delete_stream("COMMANDS"))

    async def work():
        async with Pump(OneGateway(own_server, record, box), ledger=CheckedLedger()) as pump:
            await pump.offer(0, telemetry(record, 30))
            assert await pump.drain(10)
            await until(lambda: pump.errors)
            said = pump.errors
            async with own_server.client() as (_, stream):
                await stream.add_stream(name="COMMANDS", subjects=["command.gw.>"])
            await own_server.command(record, {"command_id": "c"})
            await until(lambda: box.got and len(pump.errors) > 1, 15)
            return said, pump.errors, pump.snapshot()

    said, later, account = asyncio.run(work())
    start = f"gateway {record.gateway_id} takes"
    assert said == (f"{start} no commands for now: there is no stream COMMANDS. Create it.",)
    assert later[-1] == f"{start} commands again"
    assert (account.acknowledged, account.reconnects) == (30, 0)


# -- rights ---------------------------------------------------------------------------------------


def test_a_gateways_rights_suffice_for_all_and_for_nobody_elses(server, record):
    other = server.spare.pop()

    async def work():
        async with linked(server, [record]) as (link, boxes, told):
            await until(lambda: listening(link))
            line, own = link.line, f"{record.tenant_id}.{record.gateway_id}"
            answer = json.loads(await line.request(
                f"command.ack.{own}", b"{}", headers={"Nats-Msg-Id": "a-1"}))
            again = json.loads(await line.request(
                f"command.ack.{own}", b"{}", headers={"Nats-Msg-Id": "a-1"}))
            assert (answer["stream"], again["duplicate"]) == ("COMMAND_ACKS", True)
            theirs = f"{other.tenant_id}.{other.gateway_id}"
            for subject in (f"telemetry.data.{theirs}", f"command.ack.{theirs}",
                            f"gateway.decommissioned.{own}", "internal.cost",
                            f"$JS.API.CONSUMER.INFO.COMMANDS.gw-{other.gateway_id}"):
                with pytest.raises(ConnectError, match="the server denies it"):
                    await line.request(subject, b"{}")
            barred = []
            line.listen(f"command.gw.{theirs}", lambda *_: None, lambda: barred.append(1))
            await until(lambda: barred)
            assert line.connected
            await server.command(record, {"command_id": "mine"})
            await until(lambda: boxes[record.gateway_id].got)
            return told

    told = asyncio.run(work())
    assert (told.notices, told.losses) == ([], [])


def test_a_gateway_that_may_not_use_the_api_sends_telemetry_and_says_so(tmp_path):
    server = PlatformServer(tmp_path)
    record, box = server.gateway(listed=False), Box()
    own = f"{record.tenant_id}.{record.gateway_id}"
    server.users.append(
        f'{{user: "CN={record.gateway_id}", permissions: {{publish: "telemetry.data.{own}", '
        f'subscribe: "_INBOX.{record.gateway_id}.>"}}}}')
    server.start()

    async def work():
        async with Pump(OneGateway(server, record, box)) as pump:
            await pump.offer(0, telemetry(record, 9))
            assert await pump.drain(10)
            await until(lambda: pump.errors)
            return pump.errors, pump.snapshot()

    try:
        errors, account = asyncio.run(work())
    finally:
        server.stop()
    assert errors == (f"gateway {record.gateway_id} takes no commands for now: the server "
                      f"denies $JS.API.CONSUMER.*.COMMANDS.gw-{record.gateway_id}. Grant it.",)
    assert account.acknowledged == 9


@pytest.mark.parametrize("memory", [True, False])
def test_a_key_in_memory_leaves_no_file(server, record, memory, monkeypatch, tmp_path):
    modes = []
    if not memory:
        monkeypatch.delattr("os.memfd_create")
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    real = ssl.SSLContext.load_cert_chain

    def load(context, path, *args, **options):
        modes.append(stat.S_IMODE(Path(path).stat().st_mode) if not memory else 0)
        return real(context, path, *args, **options)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    tls = server.own(record).tls
    context = tls.context()
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    broken = replace(tls, key_pem="-----BEGIN NOTHING-----")
    with pytest.raises(BadValue, match="and its key cannot be used"):
        broken.context()
    assert modes == ([0, 0] if memory else [0o600, 0o600])
    assert list(tmp_path.iterdir()) == []
    assert "PRIVATE" not in repr(tls)
    assert "CERTIFICATE" not in repr(tls)


def test_a_platform_without_tls_has_no_certificates(nats_server):
    plain = nats_server(jetstream=True)
    plain.add_stream("COMMANDS", ["command.gw.>"])
    record = GatewayRecord("gw-1", "f-1", gateway_id=str(uuid4()), tenant_id=TENANT)
    publisher = own_publisher(build(plain.jetstream_url), record)
    box = Box()

    async def work():
        link = GatewayLink(publisher, "gw", Told(), {record.gateway_id: (TENANT, box)})
        await link.open()
        await until(lambda: listening(link))
        await link.close()

    asyncio.run(work())
    assert len(box.lines) == box.ends == 1


# -- who is not let in ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["unknown", "expired", "stranger", "untrusted", "no key"])
def test_who_is_not_let_in_is_told_in_one_line(server, case, tmp_path):
    record = server.gateway(listed=case == "expired", age_s=7200 * (case == "expired"))
    publisher = server.own(record)
    if case == "stranger":
        record = _of_another_authority(tmp_path, record)
        publisher = server.own(record)
    if case == "untrusted":
        other = tmp_path / "ca.pem"
        other.write_bytes(_authority(tmp_path).ca_path.read_bytes())
        publisher = own_publisher(_trusting(server.publisher(), str(other)), record)
    if case == "no key":
        publisher = server.own(replace(record, private_key_pem="-----BEGIN NOTHING-----"))
    link = GatewayLink(publisher, "gw", Told(), {record.gateway_id: (TENANT, Box())})

    async def work():
        await link.open()

    with pytest.raises((ConnectError, BadValue)) as caught:
        asyncio.run(work())
    text = str(caught.value)
    parts = {
        "unknown": "authorization violation. Enter its certificate's subject among the users",
        "expired": "its certificate expired on ",
        "stranger": "Is it of the authority that the server trusts",
        "untrusted": "its certificate is not accepted",
        "no key": "cert_pem='…' and its key cannot be used. Provision the gateway anew",
    }
    assert parts[case] in text, text
    assert "\n" not in text
    if case in ("unknown", "expired", "stranger"):
        assert text.startswith(f"cannot connect gateway {record.gateway_id} to tls://"), text
        assert caught.value.lasting
    secret = key_pem(gateway_key()).decode()
    assert not _secrets_in(caught.value, secret)


def _authority(folder):
    other = folder / "other"
    other.mkdir(exist_ok=True)
    return Authority(other)


def _of_another_authority(folder, record):
    cert = _authority(folder).sign_gateway(gateway_key().public_key(), record.gateway_id, TENANT,
                                           3600)
    return replace(record, cert_pem=cert)


def _trusting(publisher, ca):
    return replace(publisher, tls=replace(publisher.tls, ca=ca))


def _secrets_in(error, secret):
    """Which frames of an error, and of those behind it, show a line of a key."""
    mark, found = secret.splitlines()[3], []
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            place = trace.tb_frame.f_code
            if "iotsim" in place.co_filename and "/tests/" not in place.co_filename:
                found += [f"{place.co_name}.{name}" for name, value in
                          trace.tb_frame.f_locals.items() if mark in repr(value)]
            trace = trace.tb_next
        if mark in str(error):
            found.append("text")
        error = error.__context__
    return found


def test_a_gateway_that_is_revoked_while_it_runs_tries_on_slowly(own_server):
    record, box = own_server.spare[0], Box()

    async def work():
        async with Pump(OneGateway(own_server, record, box)) as pump:
            await pump.offer(0, telemetry(record, 3))
            assert await pump.drain(10)
            own_server.users = [user for user in own_server.users
                                if record.gateway_id not in user]
            await asyncio.to_thread(own_server.reload)
            await until(lambda: box.ends, 10)
            await until(lambda: any("cannot connect" in line for line in pump.errors), 15)
            connector = pump._lanes[0]._connector
            await pump.close(1)
            return pump.errors, connector, pump.snapshot()

    errors, connector, account = asyncio.run(work())
    assert errors[0].startswith("link lost: ")
    assert f"cannot connect gateway {record.gateway_id}" in errors[1]
    assert "provision it anew" in errors[1]
    assert connector._hopeless
    assert account.acknowledged == 3


def test_the_pace_of_reconnections_is_that_of_the_contract():
    backoff = Backoff("gw-1", PACE)
    delays = [backoff.delay_s(n) for n in range(1, 500)]
    assert 2 <= min(delays) < 2.1
    assert 3.9 < max(delays) <= 4
    assert 30 <= backoff.delay_s(1, slow=True) <= 60


# -- outages --------------------------------------------------------------------------------------


def test_after_a_restart_of_the_server_commands_come_and_nothing_acknowledged_is_lost(own_server):
    record, box = own_server.spare[0], Box()

    async def work():
        publisher = OneGateway(own_server, record, box)
        async with Pump(publisher, ledger=CheckedLedger()) as pump:
            await until(lambda: listening(publisher.links[0]))
            await pump.offer(0, telemetry(record, 300))
            own_server.kill()
            await until(lambda: box.ends == 1)
            with pytest.raises(ConnectError, match="not connected"):
                await publisher.links[0].line.request("$JS.API.STREAM.NAMES")
            await pump.offer(0, telemetry(record, 300, first=300))
            await asyncio.to_thread(own_server.start)
            await own_server.command(record, {"command_id": "meanwhile"})
            assert await pump.drain(20)
            await until(lambda: box.got)
            assert len(box.lines) == 2
            box.got[0].ack()
            account = pump.snapshot()
        assert box.ends == 2
        async with own_server.client() as (_, stream):
            sub = await stream.subscribe("telemetry.data.>", ordered_consumer=True)
            got = [await sub.next_msg(5) for _ in range(
                (await stream.stream_info("TELEMETRY")).state.messages)]
        return account, [m.headers["Nats-Msg-Id"] for m in got]

    account, ids = asyncio.run(work())
    assert account.acknowledged == 600
    assert account.reconnects == 1
    assert len(ids) == len(set(ids)) == 600
    assert in_order_per_device(ids)


def test_verdicts_on_what_came_by_an_earlier_connection_are_not_written(own_server):
    record = own_server.spare[0]

    async def work():
        async with linked(own_server, [record], do=lambda d: None) as (link, boxes, _):
            box = boxes[record.gateway_id]
            await until(lambda: listening(link))
            await own_server.command(record, {"command_id": "c"})
            await until(lambda: box.got)
            link.drop()
            box.got[0].ack()
            await link.open()
            box.got[0].ack()
            await until(lambda: listening(link))
            return (await own_server.consumer(record)).num_ack_pending

    assert asyncio.run(work()) == 1


def test_questions_end_with_the_connection_with_their_deadline_and_at_once_without_listeners(
        server, record):
    async def work():
        async with linked(server, [record], own=False) as (link, _, __):
            line = link.line
            with pytest.raises(ConnectError, match="nobody answers there"):
                await line.request("nobody.here", b"{}")
            async with server.client() as (other, _):
                async def answer(message):
                    if message.data != b"silence":
                        await message.respond(message.data[::-1])

                await other.subscribe("service.>", cb=answer)
                await other.flush()
                asked = [line.request("service.x", b"%d" % n) for n in range(100, 400)]
                assert await asyncio.gather(*asked) == [str(n)[::-1].encode()
                                                        for n in range(100, 400)]
                with pytest.raises(ConnectError, match=r"no answer in 0\.1 s"):
                    await line.request("service.x", b"silence", timeout_s=0.1)
                assert line.publish("service.x", b"silence")
                waiting = asyncio.create_task(line.request("service.x", b"silence"))
                await asyncio.sleep(0)
                link.drop()
                with pytest.raises(ConnectError, match="the connection was lost"):
                    await waiting
                assert not line.publish("service.x", b"")
            for subject in ("", "a b", "a.*", "a..b", "a\r\nb", "ä"):
                with pytest.raises(BadValue, match="cannot be published to"):
                    line.publish(subject)
            with pytest.raises(BadValue, match="cannot be written"):
                line.publish("a", b"", {"x": "y\r\nz: 1"})

    asyncio.run(work())


# -- one connection for all -----------------------------------------------------------------------


def test_several_gateways_share_one_connection_and_come_and_go(server):
    some = [server.gateway(f"shared-{n}", listed=False) for n in range(40)]

    async def work():
        async with linked(server, some[:39], own=False) as (link, boxes, told):
            await until(lambda: listening(link), 10)
            late = Box()
            link.attach(some[39].gateway_id, some[39].tenant_id, late)
            boxes[some[39].gateway_id] = late
            for record in some:
                await server.command(record, {"command_id": record.name})
            await until(lambda: all(box.got for box in boxes.values()), 10)
            link.detach(some[0].gateway_id)
            assert boxes[some[0].gateway_id].ends == 1
            await server.command(some[0], {"command_id": "kept"})
            await link.line.request("$JS.API.STREAM.NAMES")
            info = await server.consumer(some[0])
            assert (info.num_pending, bool(info.push_bound)) == (1, False)
            assert [box.bodies for box in boxes.values()] == [
                [{"command_id": record.name}] for record in some]
            return told.notices, boxes

    notices, boxes = asyncio.run(work())
    assert notices == []
    assert all(box.ends == 1 for box in boxes.values())


def test_a_post_that_fails_is_said_and_telemetry_goes_on(server, record):
    def fail(delivery):
        raise ValueError("no room")

    async def work():
        async with linked(server, [record], do=fail) as (link, _, told):
            await server.command(record, {"command_id": "c"})
            await until(lambda: told.notices)
            assert link.line.connected
            return told

    assert asyncio.run(work()).notices == ["a post failed: ValueError: no room"]


def test_forged_deliveries_are_not_taken(server, record):
    async def work():
        async with linked(server, [record], own=False) as (link, boxes, _):
            await until(lambda: listening(link))
            inbox = f"_INBOX.{record.gateway_id}.commands"
            async with server.client() as (other, _):
                await other.publish(inbox, b"{}")
                await other.publish(inbox, b"{}", reply="$JS.ACK.COMMANDS.gw-x.1.1.1.1.0")
                await other.publish(inbox, b"{}", reply="$JS.ACK.COMMANDS.gw-x")
                await other.flush()
            await server.command(record, {"command_id": "true"})
            await until(lambda: boxes[record.gateway_id].got)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await asyncio.Event().wait()
            return boxes[record.gateway_id].bodies

    assert asyncio.run(work()) == [{"command_id": "true"}]
