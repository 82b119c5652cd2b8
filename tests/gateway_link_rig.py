"""A platform's NATS server as a process, gateways with certificates, and posts that remember.

    server = PlatformServer(folder); server.start()       # the platform's streams are made
    record = server.gateway("gw-1")                       # its own certificate and rights
    async with linked(server, [record]) as (link, posts, told):
        await until(lambda: posts[record.gateway_id].ready)
        await server.command(record, {"command_id": "c-1"})

The rights and the streams are those of `iotsim.lab`, the server can be killed, started again and
given other users.
"""

import asyncio
import json
import shutil
import ssl
from contextlib import asynccontextmanager
from functools import cache
from unittest import mock
from uuid import uuid4

import nats
from cryptography.hazmat.primitives.asymmetric import rsa

from iotsim.clock import stamp_us
from iotsim.gateway.link import GatewayLink, own_publisher, platform_tls
from iotsim.gateway.record import GatewayRecord
from iotsim.lab.authority import Authority
from iotsim.lab.rights import configuration, gateway_user, streams
from iotsim.publishers.base import Limits
from iotsim.publishers.nats import NatsPublisher
from iotsim.transport.addresses import Address
from tests.conftest import lacking
from tests.servers.nats import PLACES, NatsServer
from tests.servers.notip import key_pem

TENANT = "7b1d5f0e-92f1-4a55-8b6b-0a3f7f0f9a01"


@cache
def gateway_key():
    """One RSA key for all gateways: to make one takes long, and a server does not mind."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class PlatformServer(NatsServer):
    """nats-server as the platform configures it, with the platform's streams."""

    def __init__(self, folder):
        super().__init__(jetstream=True)
        if self.program is None:
            lacking("nats-server is not installed (apt-get install nats-server)")
        self.authority = Authority(folder)
        self.users = []
        self.records = {}

    @property
    def nats_url(self):
        return f"tls://127.0.0.1:{self.port}"

    def start(self):
        fresh = not (self.folder / "data").exists()
        super().start()
        if fresh:
            self.admin(self._make_streams)

    async def _make_streams(self, link, _):
        for name, config in streams().items():
            await link.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(config).encode())

    def _conf(self):
        authority = self.authority
        return configuration(self.port, self.folder, authority.ca_path, authority.server,
                             self.users)

    def gateway(self, name="gw-1", tenant=TENANT, listed=True, age_s=0, **changes):
        """A provisioned gateway; `listed`: its certificate may log in after the next reload."""
        gateway_id = str(uuid4())
        then_us = stamp_us() - int(age_s * 1e6)
        with mock.patch("iotsim.lab.authority.stamp_us", return_value=then_us):
            cert = self.authority.sign_gateway(gateway_key().public_key(), gateway_id, tenant,
                                               3600)
        if listed:
            self.users.append(gateway_user(gateway_id, tenant))
        return GatewayRecord(name, f"f-{name}", gateway_id=gateway_id, tenant_id=tenant,
                             cert_pem=cert, private_key_pem=key_pem(gateway_key()).decode(),
                             aes_key=b"k" * 32, **changes)

    def reload(self):
        """Let the server know its users as they are now."""
        self.configure("")

    def publisher(self, **options):
        """The server, with the certificate that gateways may share."""
        mine = self.authority.services["simulator"]
        tls = platform_tls(str(self.authority.ca_path), str(mine.cert), str(mine.key))
        options = {"jetstream": True, "keepalive": 40, "window": 4000, **options}
        return NatsPublisher(Address.parse(self.nats_url, 4222), Limits(), tls=tls, **options)

    def own(self, record, **options):
        return own_publisher(self.publisher(**options), record)

    @asynccontextmanager
    async def client(self, service="management-api"):
        """A nats-py connection of one of the platform's services, and its JetStream."""
        pair = self.authority.services[service]
        context = ssl.create_default_context(cafile=str(self.authority.ca_path))
        context.load_cert_chain(pair.cert, pair.key)
        async with asyncio.timeout(30):
            link = await nats.connect(self.nats_url, tls=context, tls_hostname="127.0.0.1")
        try:
            yield link, link.jetstream()
        finally:
            async with asyncio.timeout(20):
                await link.close()

    def admin(self, work):
        async def main():
            async with asyncio.timeout(45), self.client() as (link, stream):
                return await work(link, stream)

        return asyncio.run(main())

    async def command(self, record, *documents):
        """Publish commands to a gateway as the platform does."""
        subject = f"command.gw.{record.tenant_id}.{record.gateway_id}"
        async with self.client() as (_, stream):
            for document in documents:
                await stream.publish(subject, json.dumps(document).encode())

    async def consumer(self, record):
        """What nats-py reads of a gateway's durable."""
        async with self.client() as (_, stream):
            return await stream.consumer_info("COMMANDS", f"gw-{record.gateway_id}")

    def stop(self):
        super().stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def has_nats_server():
    return shutil.which("nats-server", path=PLACES) is not None


class Told:
    """A lane that only notes (a `Verdicts`)."""

    def __init__(self):
        self.acked, self.refusals, self.notices, self.losses = [], [], [], []

    def acknowledged(self, tokens):
        self.acked += tokens

    def refused(self, tokens, reason, *, retry=False):
        self.refusals.append((list(tokens), reason))

    def returned(self, tokens, rest_s=0.0):
        self.refusals.append((list(tokens), "returned"))

    def uncertain(self, tokens, reason=""):
        self.refusals.append((list(tokens), "uncertain"))

    def lost(self, loss):
        self.losses.append(loss.why)

    def ready(self):
        pass

    def notice(self, text):
        self.notices.append(text)


class Box:
    """A post that notes, and does with each delivery what it is told (by default: ack)."""

    def __init__(self, do=lambda delivery: delivery.ack()):
        self.do = do
        self.lines, self.got, self.ends = [], [], 0

    def connected(self, line):
        self.lines.append(line)

    def disconnected(self):
        self.ends += 1

    def delivered(self, delivery):
        self.got.append(delivery)
        self.do(delivery)

    @property
    def bodies(self):
        return [json.loads(delivery.payload) for delivery in self.got]


@asynccontextmanager
async def linked(server, records, own=True, ack_wait_s=30.0, do=None, **options):
    """A link of gateways that is open, its posts by gateway id, and what its lane was told."""
    told = Told()
    boxes = {record.gateway_id: Box() if do is None else Box(do) for record in records}
    posts = {record.gateway_id: (record.tenant_id, boxes[record.gateway_id])
             for record in records}
    publisher = server.own(records[0], **options) if own else server.publisher(**options)
    link = GatewayLink(publisher, "gw-test", told, posts, ack_wait_s=ack_wait_s)
    try:
        await link.open()
        yield link, boxes, told
    finally:
        await link.close()


def listening(link):
    """Whether all durables of a link are there."""
    return not any(consumer.why_not for consumer in link.consumers.values())
