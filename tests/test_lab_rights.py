"""Who may do what at the lab's NATS server: each gateway what is its own, and nothing else."""

import asyncio
import itertools
import json
import ssl

import nats
import pytest
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

import iotsim.lab
from iotsim.lab.authority import SERVICES
from iotsim.lab.rights import streams
from tests.servers.notip import (
    client_context,
    connection,
    need_nats_server,
    notip_lab,
    onboard,
    own_context,
    rsa_key,
)

__all__ = ("notip_lab",)

NUMBERS = itertools.count()
DENIED_S = 0.3


@pytest.fixture
def gateways(notip_lab, tmp_path):
    """Two provisioned gateways, each with a context of its own certificate."""
    lab, made = notip_lab.lab, []
    for number in range(2):
        name = f"r-{next(NUMBERS)}"
        gateway = notip_lab.run(lab.register(name, "the key"))
        found = notip_lab.run(onboard(lab, name, "the key", rsa_key(number)))
        folder = tmp_path / name
        folder.mkdir()
        made.append((gateway, own_context(lab, folder, found)))
    return made


def own(lab, gateway, context, errors=None, **options):
    """A connection of a gateway, as its client makes it."""
    return connection(lab, context, f"_INBOX.{gateway.gateway_id}", errors, **options)


def durable(gateway, **changes):
    config = ConsumerConfig(
        name=f"gw-{gateway.gateway_id}", durable_name=f"gw-{gateway.gateway_id}",
        filter_subject=f"command.gw.{gateway.tenant_id}.{gateway.gateway_id}",
        deliver_subject=f"_INBOX.{gateway.gateway_id}.commands",
        deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.EXPLICIT, max_deliver=3)
    return config.evolve(**changes)


def test_the_streams_are_those_of_the_platform(notip_lab):
    async def look():
        async with connection(notip_lab.lab, client_context(notip_lab.lab)) as link:
            reply = [await link.request(f"$JS.API.STREAM.INFO.{name}", b"", 5)
                     for name in streams()]
            return [json.loads(one.data)["config"] for one in reply]

    configs = {config["name"]: config for config in notip_lab.run(look())}
    assert {name: (config["subjects"], config["max_age"]) for name, config in configs.items()} == {
        "TELEMETRY": (["telemetry.data.>"], 2592000000000000),
        "COMMANDS": (["command.gw.>"], 75000000000),
        "COMMAND_ACKS": (["command.ack.>"], 300000000000),
        "ALERTS": (["alert.>"], 0),
        "AUDIT_LOG": (["log.audit.>"], 7776000000000000),
        "DECOMMISSION": (["gateway.decommissioned.>"], 86400000000000),
    }
    for config in configs.values():
        assert (config["storage"], config["retention"], config["discard"]) == (
            "file", "limits", "old")
        assert config["num_replicas"] == 1
        assert (config["max_bytes"], config["max_msgs"], config["max_consumers"]) == (-1, -1, -1)
    assert configs["COMMANDS"]["duplicate_window"] == 75_000_000_000
    assert configs["TELEMETRY"]["duplicate_window"] == 120_000_000_000


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_may_do_everything(name, notip_lab):
    async def work():
        errors = []
        context = client_context(notip_lab.lab, *notip_lab.lab.service(name))
        async with connection(notip_lab.lab, context, errors=errors, token="none") as link:
            heard = await link.subscribe("alert.>")
            await link.publish("alert.t.gw_offline", b"{}")
            await heard.next_msg(5)
            return errors

    assert notip_lab.run(work()) == []


def test_only_tls_1_3_and_only_with_a_certificate(notip_lab):
    async def refused(context):
        with pytest.raises((nats.errors.Error, OSError, asyncio.TimeoutError)):
            async with connection(notip_lab.lab, context, connect_timeout=1):
                pass

    old = client_context(notip_lab.lab)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    nobody = ssl.create_default_context(cafile=str(notip_lab.lab.ca_path))
    nobody.verify_flags &= ~ssl.VERIFY_X509_STRICT
    for context in (old, nobody):
        notip_lab.run(refused(context))
    assert "no cipher suite supported" in notip_lab.lab.nats_log()


def test_a_gateway_does_its_work_with_its_own_certificate(notip_lab, gateways):
    lab, (gateway, context) = notip_lab.lab, gateways[0]
    where = f"{gateway.tenant_id}.{gateway.gateway_id}"

    async def work():
        errors = []
        async with own(lab, gateway, context, errors) as link:
            js = link.jetstream(timeout=20)
            first = await js.publish(f"telemetry.data.{where}", b"1",
                                     headers={"Nats-Msg-Id": f"{where}/1"})
            again = await js.publish(f"telemetry.data.{where}", b"1",
                                     headers={"Nats-Msg-Id": f"{where}/1"})
            assert (first.stream, first.duplicate, again.duplicate) == ("TELEMETRY", None, True)
            assert await js.find_stream_name_by_subject(f"command.gw.{where}") == "COMMANDS"
            heard = await link.subscribe(f"_INBOX.{gateway.gateway_id}.commands")
            await js.add_consumer("COMMANDS", durable(gateway))
            command_id = await lab.console.config(gateway, status="paused")
            message = await heard.next_msg(5)
            await message.in_progress()
            await message.ack_sync(timeout=20)
            assert json.loads(message.data)["command_id"] == command_id
            info = await js.consumer_info("COMMANDS", f"gw-{gateway.gateway_id}")
            assert (info.num_ack_pending, info.num_pending) == (0, 0)
            await js.publish(f"command.ack.{where}", json.dumps({
                "command_id": command_id, "status": "ack", "timestamp": "2026-01-01T00:00:00Z",
            }).encode())
            await lab.console.answer(command_id)
            assert await js.delete_consumer("COMMANDS", f"gw-{gateway.gateway_id}")
            await link.subscribe(f"command.gw.{where}")  # core, as the shipped defaults allow
            await link.flush(5)
        return errors

    assert notip_lab.run(work()) == []


def forbidden(mine, theirs):
    """Subjects that a gateway may not publish on."""
    for name in ("telemetry.data", "command.ack"):
        yield f"{name}.{theirs.tenant_id}.{theirs.gateway_id}"
        yield f"{name}.other.{mine.gateway_id}"
    yield f"command.gw.{mine.tenant_id}.{mine.gateway_id}"
    yield f"command.gw.{theirs.tenant_id}.{theirs.gateway_id}"
    yield from ("internal.mgmt.factory.validate", "alert.t.gw_offline", "log.audit.t",
                f"gateway.decommissioned.{mine.tenant_id}.{mine.gateway_id}", "hello",
                "_INBOX.hello", f"_INBOX.{theirs.gateway_id}.commands")
    yield f"$JS.ACK.COMMANDS.gw-{theirs.gateway_id}.1.1.1.1.0"
    for call in ("CONSUMER.LIST.COMMANDS", "CONSUMER.CREATE.COMMANDS", "STREAM.INFO.COMMANDS",
                 "STREAM.DELETE.COMMANDS", "STREAM.PURGE.COMMANDS", "STREAM.MSG.GET.COMMANDS",
                 "STREAM.MSG.GET.TELEMETRY", "DIRECT.GET.TELEMETRY", "INFO",
                 f"CONSUMER.DURABLE.CREATE.COMMANDS.gw-{mine.gateway_id}",
                 f"CONSUMER.CREATE.COMMANDS.gw-{mine.gateway_id}",
                 f"CONSUMER.CREATE.COMMANDS.gw-{mine.gateway_id}.command.gw."
                 f"{theirs.tenant_id}.{theirs.gateway_id}",
                 f"CONSUMER.INFO.COMMANDS.gw-{theirs.gateway_id}",
                 f"CONSUMER.DELETE.COMMANDS.gw-{theirs.gateway_id}"):
        yield f"$JS.API.{call}"


def test_a_gateway_may_publish_nowhere_else(notip_lab, gateways):
    lab, (mine, context), (theirs, _) = notip_lab.lab, *gateways
    subjects = list(forbidden(mine, theirs))

    async def work():
        errors = []
        async with connection(lab, client_context(lab)) as listener:
            heard = await listener.subscribe(">")
            await listener.flush(5)
            async with own(lab, mine, context, errors) as link:
                for subject in subjects:
                    await link.publish(subject, b"{}")
                    await link.flush(5)
                await link.publish(f"telemetry.data.{mine.tenant_id}.{mine.gateway_id}", b"last")
                await link.flush(5)
            got = []
            while not got or got[-1][1] != b"last":
                message = await heard.next_msg(5)
                got.append((message.subject, message.data))
        return errors, [subject for subject, _ in got if not subject.startswith("$JS.EVENT.")]

    errors, heard = notip_lab.run(work())
    assert [subject for subject in subjects if not any(
        f'publish to "{subject.lower()}"' in str(error).lower() for error in errors)] == []
    assert not set(heard) & set(subjects)


def test_a_gateway_may_listen_nowhere_else(notip_lab, gateways):
    lab, (mine, context), (theirs, their_context) = notip_lab.lab, *gateways
    patterns = [">", "_INBOX.>", f"_INBOX.{theirs.gateway_id}.>",
                f"_INBOX.{theirs.gateway_id}.commands", "command.gw.>",
                f"command.gw.{theirs.tenant_id}.{theirs.gateway_id}",
                f"command.gw.{theirs.tenant_id}.*", "telemetry.data.>", "internal.>", "alert.>",
                "log.>", "gateway.>", "$JS.>",
                f"telemetry.data.{mine.tenant_id}.{mine.gateway_id}"]

    async def work():
        errors, got = [], []

        async def take(message):
            got.append(message.subject)

        async with (own(lab, mine, context, errors) as link,
                    own(lab, theirs, their_context) as other):
            for pattern in patterns:
                await link.subscribe(pattern, cb=take)
                await link.flush(5)
            await lab.console.config(theirs, status="paused")
            await other.jetstream(timeout=20).publish(
                f"telemetry.data.{theirs.tenant_id}.{theirs.gateway_id}", b"secret")
            await link.flush(5)
        return errors, got

    errors, got = notip_lab.run(work())
    assert [pattern for pattern in patterns if not any(
        f'subscription to "{pattern.lower()}"' in str(error).lower() for error in errors)] == []
    assert got == []


def test_a_durable_with_the_filter_of_another_is_refused(notip_lab, gateways):
    # The subject is the gateway's own, the body is not: the server holds one to the other.
    lab, (mine, context), (theirs, _) = notip_lab.lab, *gateways
    other = f"command.gw.{theirs.tenant_id}.{theirs.gateway_id}"

    async def work():
        async with own(lab, mine, context) as link:
            answers = []
            for changes in ({"filter_subject": other}, {"filter_subject": None},
                            {"filter_subject": "command.gw.>"},
                            {"durable_name": f"gw-{theirs.gateway_id}"}):
                config = durable(mine, **changes).as_dict()
                subject = (f"$JS.API.CONSUMER.CREATE.COMMANDS.gw-{mine.gateway_id}."
                           f"command.gw.{mine.tenant_id}.{mine.gateway_id}")
                body = json.dumps({"stream_name": "COMMANDS", "config": config}).encode()
                answers.append(json.loads((await link.request(subject, body, 5)).data))
            return answers

    answers = notip_lab.run(work())
    assert all("error" in answer for answer in answers), answers


def test_a_revoked_gateway_is_cut_off_and_the_others_are_not(notip_lab, gateways):
    lab, (gateway, context), (other, other_context) = notip_lab.lab, *gateways

    async def work():
        gone, stayed = asyncio.Event(), []

        async def disconnected():
            gone.set()

        async def noted():
            stayed.append("cut")

        async with (own(lab, gateway, context, disconnected_cb=disconnected),
                    own(lab, other, other_context, disconnected_cb=noted) as link):
            await lab.console.revoke(gateway)
            async with asyncio.timeout(30):
                await gone.wait()
            await link.jetstream(timeout=20).publish(
                f"telemetry.data.{other.tenant_id}.{other.gateway_id}", b"1")
            assert stayed == []
        with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
            async with own(lab, gateway, context):
                pass

    notip_lab.run(work())
    row = lab.console.gateways().set_index("gateway_id").loc[gateway.gateway_id]
    assert row["revoked"]


def test_registering_others_cuts_nobody_off(notip_lab, gateways):
    lab, (gateway, context) = notip_lab.lab, gateways[0]

    async def work():
        cut = []

        async def noted():
            cut.append(1)

        async with own(lab, gateway, context, disconnected_cb=noted) as link:
            made = await asyncio.gather(*(
                lab.register(f"more-{next(NUMBERS)}", "key") for _ in range(50)))
            await link.flush(5)
        return cut, made

    reloads = lab.nats_log().count("Reloaded server configuration")
    cut, made = notip_lab.run(work())
    assert (cut, len({one.gateway_id for one in made})) == ([1], 50)  # 1: our own close
    # Those that come while a reload goes on share the next one.
    assert 1 <= lab.nats_log().count("Reloaded server configuration") - reloads < 50


def test_on_the_shipped_platform_a_gateways_own_certificate_opens_nothing(tmp_path):
    need_nats_server()

    async def main():
        async with iotsim.lab.notip(gateway_certificates=False) as lab:
            gateway = await lab.register("f-1", "the key")
            found = await onboard(lab, "f-1", "the key")
            with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
                async with own(lab, gateway, own_context(lab, tmp_path, found)):
                    pass
            async with connection(lab, client_context(lab)) as link:
                await link.jetstream(timeout=20).publish(
                    f"telemetry.data.{gateway.tenant_id}.{gateway.gateway_id}", b"1")

    asyncio.run(main())


def test_a_certificate_that_has_run_out_opens_nothing(tmp_path):
    need_nats_server()

    async def main():
        async with iotsim.lab.notip(cert_ttl="1s") as lab:
            gateway = await lab.register("f-1", "the key")
            context = own_context(lab, tmp_path, await onboard(lab, "f-1", "the key"))
            async with asyncio.timeout(30):
                while "expired" not in lab.nats_log():
                    try:
                        async with own(lab, gateway, context, connect_timeout=1):
                            await asyncio.sleep(0.1)
                    except (nats.errors.Error, OSError, ssl.SSLError):
                        pass

    asyncio.run(main())
