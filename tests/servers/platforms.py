"""Platforms that command devices, one per protocol: clients that the library does not use, or uses
otherwise.

    async with MqttPlatform(broker.url) as platform:
        await platform.send("pump-0000", {"command": "reboot", "id": "c-1"})
        await platform.answered(1)      # platform.answers: [(topic, document), …]
"""

import asyncio
import json
import uuid
from urllib.parse import urlsplit

import aio_pika
import aiocoap
import aiocoap.resource
import nats
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from iotsim.broker import free_port
from tests.live import until

TOPIC, ANSWER = "devices/{}/commands", "devices/{}/commands/answers"


class Platform:
    """What all of them share."""

    def __init__(self, url):
        self.url, self.host, self.port = url, urlsplit(url).hostname, urlsplit(url).port
        self.answers = []

    def take(self, topic, body):
        self.answers.append((topic, json.loads(body)))

    def of(self, ident):
        """Return the answers to one command, by device."""
        return {said["device_id"]: said for _, said in self.answers if said["command_id"] == ident}

    async def answered(self, count, timeout_s=45):
        await until(lambda: len(self.answers) >= count, timeout_s)

    async def send(self, device_id, said, **more):
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        await self.publish(TOPIC.format(device_id), body, **more)


class MqttPlatform(Platform):
    async def __aenter__(self):
        self._loop, self._ready = asyncio.get_running_loop(), asyncio.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5,
                                   client_id=f"platform-{uuid.uuid4().hex[:8]}")
        self._client.max_queued_messages_set(0)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda c, *_: c.subscribe([(ANSWER.format("+"), 1),
                                                             ("replies/#", 1)])
        self._client.on_subscribe = lambda *_: self._tell(self._ready.set)
        self._client.on_message = lambda c, u, m: self._tell(self.take, m.topic, m.payload)
        self._client.connect(self.host, self.port)
        self._client.loop_start()
        async with asyncio.timeout(45):
            await self._ready.wait()
        return self

    async def __aexit__(self, *_):
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def _tell(self, what, *given):
        self._loop.call_soon_threadsafe(what, *given)

    async def publish(self, topic, body, reply=None, correlation=None, retain=False):
        properties = Properties(PacketTypes.PUBLISH)
        if reply is not None:
            properties.ResponseTopic = reply
        if correlation is not None:
            properties.CorrelationData = correlation
        self._client.publish(topic, body, 1, retain, properties)


class NatsPlatform(Platform):
    async def __aenter__(self):
        self._client = await nats.connect(self.url, max_reconnect_attempts=-1,
                                          reconnect_time_wait=0.1)
        for subject in (ANSWER.format("*").replace("/", "."), "replies.>"):
            await self._client.subscribe(subject, cb=self._message)
        await self._client.flush()
        return self

    async def __aexit__(self, *_):
        await self._client.close()

    async def _message(self, message):
        self.take(message.subject, message.data)

    async def publish(self, topic, body, reply=None):
        reply = "" if reply is None else reply.replace("/", ".")
        await self._client.publish(topic.replace("/", "."), body, reply=reply)


class AmqpPlatform(Platform):
    async def __aenter__(self):
        self._connection = await aio_pika.connect(self.url)
        channel = await self._connection.channel()
        self._own = channel.default_exchange
        self._exchange = await channel.declare_exchange(
            "iot.commands", aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(self._exchange, ANSWER.format("*").replace("/", "."))
        await queue.consume(self._message, no_ack=True)
        self.replies = await channel.declare_queue(exclusive=True)
        await self.replies.consume(self._message, no_ack=True)
        return self

    async def __aexit__(self, *_):
        await self._connection.close()
        await asyncio.sleep(0)  # its own tasks end one turn later

    async def _message(self, message):
        self.take(message.correlation_id or message.routing_key, message.body)

    async def publish(self, topic, body, reply=None):
        where = None if reply is None else self.replies.name
        message = aio_pika.Message(body, reply_to=where, correlation_id=reply, delivery_mode=2)
        await self._exchange.publish(message, topic.replace("/", "."))


class _Mailbox(aiocoap.resource.ObservableResource, aiocoap.resource.PathCapable):
    """Whatever is put or posted to a path stays there, and is told to those who observe it."""

    def __init__(self, platform):
        super().__init__()
        self._platform, self._held, self._watchers = platform, {}, {}

    async def add_observation(self, request, serverobservation):
        path = "/".join(request.opt.uri_path)
        watching = self._watchers.setdefault(path, set())
        watching.add(serverobservation)
        serverobservation.accept(lambda: watching.discard(serverobservation))

    async def render_get(self, request):
        return aiocoap.Message(payload=self._held.get("/".join(request.opt.uri_path), b""))

    async def render_put(self, request):
        path = "/".join(request.opt.uri_path)
        self.put(path, request.payload)
        if path.endswith("answers"):
            self._platform.take(path, request.payload)
        return aiocoap.Message(code=aiocoap.CHANGED)

    render_post = render_put

    def put(self, path, body):
        self._held[path] = body
        for observation in list(self._watchers.get(path, ())):
            observation.trigger()

    @property
    def watched(self):
        return {path for path, watching in self._watchers.items() if watching}


class CoapPlatform(Platform):
    """The server whose resources devices observe."""

    def __init__(self, port=None):
        super().__init__(f"coap://127.0.0.1:{port or free_port()}")

    async def __aenter__(self):
        self.mailbox = _Mailbox(self)
        site = aiocoap.resource.Site()
        site.add_resource([], self.mailbox)
        self._context = await aiocoap.Context.create_server_context(
            self.mailbox, bind=(self.host, self.port), transports=["udp6"])
        return self

    async def __aexit__(self, *_):
        await self._context.shutdown()

    async def publish(self, topic, body):
        self.mailbox.put(topic, body)
