"""A platform that commands gateways through a real nats-server, and gateways that have workers.

    def test_it(platform):
        async def work(platform):
            gateway = await platform.gateway()
            await platform.send(gateway, {"status": "paused"})
            assert (await platform.answers(gateway, 1))[0]["status"] == "ack"
        platform.run(work)
"""

import asyncio
import inspect
import json
import os
import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import nats
import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from iotsim.clock import wall_us
from iotsim.errors import ConnectError
from iotsim.gateway.answer_book import AnswerBook
from iotsim.gateway.command_log import CommandLog
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.store import Store
from iotsim.gateway.worker import Worker

TENANT = "5b6d2c1e-6f0e-4d3a-9a57-3f6f6a0a2b11"
STREAMS = {"COMMANDS": ("command.gw.>", 75), "COMMAND_ACKS": ("command.ack.>", 300)}
WAIT_S = 20
KEY = bytes(range(32))  # of the stores of these tests


async def until(met, what="it"):
    """Wait for a condition (a coroutine function, too), and return what it gave."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = met()
        found = await found if inspect.isawaitable(found) else found
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.02)


class Hands:
    """What commands do to a run: noted, in order; `refusing` raise."""

    def __init__(self):
        self.done = []
        self.troubled = set()
        self.refusing = {}
        self.changed = asyncio.Event()

    def _do(self, what, name, value):
        error = self.refusing.get(what)
        if error is not None:
            raise error
        self.done.append((what, name, value))

    def asked(self, name, command_id, kind, fields):
        pass

    def set_frequency(self, name, every_ms):
        self._do("frequency", name, every_ms)

    def set_status(self, name, status):
        self._do("status", name, status)

    def set_firmware(self, name, version):
        self._do("firmware", name, version)

    def trouble(self, name):
        self.troubled.add(name)

    def soothe(self, name):
        self.troubled.discard(name)
        self.changed.set()

    def anomalous(self, name):
        return name in self.troubled

    async def calm(self, name):
        while name in self.troubled:
            self.changed.clear()
            await self.changed.wait()


class Delivery:
    def __init__(self, message, wire):
        self.payload, self.subject = message.data, message.subject
        self.sequence = message.metadata.sequence.stream
        self.deliveries = message.metadata.num_delivered
        self.received_us = wall_us()
        self._message, self._wire = message, wire

    def ack(self):
        self._wire.said.append("ack")
        if not self._wire.deaf:
            self._wire.later(self._message.ack())

    def nak(self, delay_s=None):
        self._wire.said.append("nak")
        self._wire.later(self._message.nak(delay=delay_s))

    def term(self):
        self._wire.said.append("term")
        self._wire.later(self._message.term())

    def in_progress(self):
        self._wire.said.append("in_progress")
        self._wire.later(self._message.in_progress())


class Wire:
    """A gateway's subscription and line, by nats-py; `cut` is what a lost connection does."""

    def __init__(self, link):
        self.link, self.up, self.deaf = link, True, False
        self.said, self.asked = [], []
        self._tasks = set()

    def later(self, work):
        assert self.up, "something was said on a closed line"
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def request(self, subject, payload, *, headers, timeout_s):
        if not self.up:
            raise ConnectError("nats://test", "not connected")
        self.asked.append(payload)
        try:
            reply = await self.link.request(subject, payload, timeout=timeout_s, headers=headers)
        except nats.errors.Error as error:
            raise ConnectError("nats://test", str(error) or type(error).__name__) from None
        return reply.data

    async def quiet(self):
        while self._tasks:
            await asyncio.wait(list(self._tasks))


class Gateway:
    """One gateway with its worker."""

    def __init__(self, platform, record, ack_wait=30, max_deliver=3, **options):
        self.platform, self.record, self.name = platform, record, record.name
        self.id = record.gateway_id
        self.answers_to, self.heard = f"command.ack.{TENANT}.{self.id}", []
        self.hands, self.log = Hands(), CommandLog()
        self.options, self.ack_wait, self.max_deliver = options, ack_wait, max_deliver
        self.worker = self.wire = self._sub = None

    async def open(self, keeper=None, **options):
        """A worker, and the consumer that delivers to it."""
        book = AnswerBook(keeper) if keeper else self.platform.book
        self.worker = Worker(self.platform.store.get(self.name), self.hands, book, self.log,
                             **{**self.options, **options})
        self.platform.workers.append(self.worker)
        self.wire = Wire(self.platform.link)
        self.worker.connected(self.wire)
        await self._subscribe()

    async def _subscribe(self):
        config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=self.ack_wait,
                                max_deliver=self.max_deliver)

        async def taken(message):
            self.worker.delivered(Delivery(message, self.wire))

        self._sub = await self.platform.js.subscribe(
            f"command.gw.{TENANT}.{self.id}", durable=f"gw-{self.id}", cb=taken, manual_ack=True,
            stream="COMMANDS", config=config)

    async def close(self):
        await self.worker.close()
        await self._leave()

    async def _leave(self):
        await self.wire.quiet()
        await self._sub.unsubscribe()
        await self.platform.link.flush()

        async def free():  # the server takes a moment to see that nobody listens
            return not (await self.consumer()).push_bound

        await until(free, "the end of the subscription")

    async def consumer(self):
        return await self.platform.js.consumer_info("COMMANDS", f"gw-{self.id}")

    async def settled(self):
        """Wait until the stream has heard of everything it delivered."""
        await until(lambda: self.worker.waiting == 0, "the last answer")
        await self.wire.quiet()
        await self.platform.link.flush()

        async def none():
            facts = await self.consumer()
            return facts.num_ack_pending == 0 and facts.num_pending == 0

        await until(none, "the last acknowledgement")


class Platform:
    """What people run: the streams, and a console that sends commands and reads answers."""

    def __init__(self, url, path, key=KEY):
        self.url = url
        self.store = Store.open(path, key=key)
        self.book = AnswerBook(self.store)
        self.workers = []

    def run(self, work):
        """Run `await work(self)`; every worker ends."""

        async def main():
            async with asyncio.timeout(50):
                self.link = await nats.connect(self.url)
                self.js = self.link.jetstream()
                try:
                    return await work(self)
                finally:
                    for worker in self.workers:
                        await worker.close(0.1)
                    await self.link.close()

        try:
            return asyncio.run(main())
        finally:
            self.store.close()

    async def gateway(self, open=True, **options):
        number = len(self.store.names()) + 1
        record = GatewayRecord(
            name=f"gw-{number}", factory_id=f"f-{number}", factory_key="key-secret",
            private_key_pem="pem-secret", aes_key=os.urandom(32), gateway_id=str(uuid4()),
            tenant_id=TENANT, cert_pem="cert", status="online", firmware="1.0.0",
            send_frequency_ms=5000)
        self.store.save(record)
        return await self.take(record, open=open, **options)

    async def take(self, record, open=True, **options):
        """A gateway that is in the store."""
        gateway = Gateway(self, record, **options)

        async def heard(message):
            gateway.heard.append(message.data)

        await self.js.subscribe(gateway.answers_to, stream="COMMAND_ACKS", ordered_consumer=True,
                                cb=heard)
        if open:
            await gateway.open()
        return gateway

    async def send(self, gateway, payload=..., *, kind="config_update", id=None, age_s=0.0, at=None,
                   raw=None):
        """Send a command; returns its id."""
        ident = id or str(uuid4())
        if raw is None:
            raw = self.command(payload, ident, kind=kind, at=at or self.now(age_s))
        await self.js.publish(f"command.gw.{TENANT}.{gateway.id}", raw)
        return ident

    @staticmethod
    def command(payload, id, *, kind="config_update", at=None):
        """The body of a command as the platform writes it."""
        said = {"command_id": id, "type": kind, "issued_at": at or Platform.now()}
        return json.dumps(said if payload is ... else said | {"payload": payload}).encode()

    @staticmethod
    def now(age_s=0.0):
        moment = datetime.now(UTC) - timedelta(seconds=age_s)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"

    async def add_answers(self):
        """Make the stream of answers once more."""
        subjects, age_s = STREAMS["COMMAND_ACKS"]
        await self.js.add_stream(StreamConfig("COMMAND_ACKS", subjects=[subjects], max_age=age_s))

    async def stored(self, gateway):
        """How many answers of a gateway are in their stream."""
        facts = await self.js.stream_info("COMMAND_ACKS", subjects_filter=gateway.answers_to)
        return (facts.state.subjects or {}).get(gateway.answers_to, 0)

    async def answers(self, gateway, count):
        """The answers of a gateway as the platform reads them, as soon as there are so many."""
        await until(lambda: len(gateway.heard) >= count, f"answer {count}")
        assert await self.stored(gateway) == len(gateway.heard) == count
        return [json.loads(data) for data in gateway.heard]


def add_streams(server):
    for name, (subjects, age_s) in STREAMS.items():
        server.add_stream(name, [subjects], max_age=age_s)
