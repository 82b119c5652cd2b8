"""Many gateways, each with its own connection; and one that a platform really provisioned."""

import asyncio
import json
from dataclasses import dataclass, field

import pytest

from iotsim.gateway.link import OPENINGS, PACE, GatewayLink, own_publisher, platform_tls
from iotsim.gateway.record import GatewayRecord
from iotsim.publishers.base import UNTRACED, Identity, Limits
from iotsim.publishers.nats import NatsPublisher
from iotsim.publishers.pump import Pump
from iotsim.transport.addresses import Address
from tests import gateway_link_rig as rig
from tests.publishing import CheckedLedger, until
from tests.servers import notip
from tests.test_gateway_link import telemetry

pytestmark = pytest.mark.broker
notip_lab = notip.notip_lab  # the fixture
COUNT = 60


@dataclass
class Gateways:
    """A publisher of gateways with a connection each."""

    nats: NatsPublisher
    records: dict
    boxes: dict
    links: list = field(default_factory=list)
    pace = PACE
    openings = OPENINGS
    per_device = True
    tracing = UNTRACED
    limits = Limits()

    @property
    def url(self):
        return self.nats.url

    def lanes(self, devices):
        return devices

    def link(self, lane, run_id, verdicts, device):
        record = self.records[device.device_id]
        posts = {record.gateway_id: (record.tenant_id, self.boxes[record.name])}
        self.links.append(GatewayLink(own_publisher(self.nats, record), "gw", verdicts, posts))
        return self.links[-1]


def names_of(box):
    return list(dict.fromkeys(body["command_id"] for body in box.bodies))


def test_many_gateways_connect_listen_send_and_come_back(tmp_path):
    server = rig.PlatformServer(tmp_path)
    records = [server.gateway(f"gw-{n}") for n in range(COUNT)]
    server.start()

    async def work():
        many = Gateways(server.publisher(), {r.name: r for r in records},
                        {r.name: rig.Box() for r in records})
        names = [Identity(record.name) for record in records]
        async with Pump(many, names=names, ledger=CheckedLedger()) as pump:
            await until(lambda: all(map(rig.listening, many.links)), 20)
            for lane, record in enumerate(records):
                await pump.offer(lane, telemetry(record, 9))
            await command_all("before")
            await until(lambda: all(box.got for box in many.boxes.values()), 20)
            assert await pump.drain(20)
            server.kill()
            await until(lambda: not pump.connected, 20)
            await asyncio.to_thread(server.start)
            await until(lambda: pump.connected == COUNT, 30)
            await command_all("after")
            await until(lambda: all(len(names_of(box)) == 2 for box in many.boxes.values()), 20)
            return pump.snapshot(), pump.errors, many.boxes

    async def command_all(name):
        async with server.client() as (_, stream):
            await asyncio.gather(*(
                stream.publish(f"command.gw.{r.tenant_id}.{r.gateway_id}",
                               json.dumps({"command_id": f"{name}-{r.name}"}).encode(), timeout=20)
                for r in records))

    try:
        account, errors, boxes = asyncio.run(work())
    finally:
        server.stop()
    assert account.acknowledged == 9 * COUNT
    assert account.reconnects == COUNT
    assert all(line.startswith("link lost: ") for line in errors), errors
    for name, box in boxes.items():
        # A server that is killed may have forgotten an acknowledgement: then it comes again.
        assert set(names_of(box)) == {f"before-{name}", f"after-{name}"}
        assert (len(box.lines), box.ends) == (2, 2)


def test_a_gateway_that_the_lab_provisioned_does_all_it_must_with_its_own_certificate(notip_lab):
    lab = notip_lab.lab
    registered = notip_lab.run(lab.register("f-link", "key"))
    answer = notip_lab.run(notip.onboard(lab, "f-link", "key"))
    record = GatewayRecord(
        "gw-1", "f-link", gateway_id=registered.gateway_id, tenant_id=registered.tenant_id,
        cert_pem=answer.body["certPem"], private_key_pem=notip.key_pem(answer.key).decode())
    nats = NatsPublisher(Address.parse(lab.nats_url, 4222), Limits(), jetstream=True,
                         keepalive=40, tls=platform_tls(str(lab.ca_path)))
    box, told = rig.Box(), rig.Told()
    posts = {record.gateway_id: (record.tenant_id, box)}

    async def work():
        link = GatewayLink(own_publisher(nats, record), "gw-1", told, posts)
        await link.open()
        try:
            await until(lambda: rig.listening(link), 10)
            command_id = await asyncio.to_thread(
                notip_lab.run, lab.console.config(registered, send_frequency_ms=500))
            await until(lambda: box.got, 10)
            assert box.bodies[0]["command_id"] == command_id
            sent = {"command_id": command_id, "commandId": command_id, "status": "ack",
                    "timestamp": "2026-11-22T07:00:00.000Z"}
            stored = await link.line.request(
                f"command.ack.{record.tenant_id}.{record.gateway_id}", json.dumps(sent).encode(),
                headers={"Nats-Msg-Id": f"ack-{command_id}"}, timeout_s=5)
            assert json.loads(stored)["stream"] == "COMMAND_ACKS"
            link.send([1], [(f"telemetry.data.{record.tenant_id}.{record.gateway_id}", b"{}",
                             "run/gw-1:t/0/0", 0.0)])
            await until(lambda: told.acked == [1])
            heard = await asyncio.to_thread(notip_lab.run, lab.console.answer(command_id))
            await asyncio.to_thread(notip_lab.run, lab.console.revoke(registered))
            await until(lambda: box.ends == 1, 10)
            return heard
        finally:
            await link.close()

    heard = asyncio.run(work())
    assert heard.status == "ack"
    assert len(told.losses) == 1
    assert not any("takes no commands" in line for line in told.notices)
