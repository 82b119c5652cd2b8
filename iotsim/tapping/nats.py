"""A tap's source for NATS: nats-py, the client that publishing does not use."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, NoRespondersError, SlowConsumerError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError, ServiceUnavailableError

from iotsim.errors import BadValue
from iotsim.publishers.base import choice, flag
from iotsim.publishers.nats import address_of, checked_stream
from iotsim.publishers.nats_frames import ID_HEADER, STAMP_HEADER
from iotsim.publishers.nats_greeting import CREDENTIALS, read_creds
from iotsim.tapping.settings import Wish, secured, topic_text
from iotsim.tapping.store import DUP, Store
from iotsim.transport.addresses import failure_text
from iotsim.transport.nats_client import CONNECT_S, CarefulClient, options_of
from iotsim.transport.probing import WrongPeer

TOPIC, DEVICES = ">", "devices.>"
NOBODYS = (b"_INBOX.", b"$")  # answers, and what servers tell each other
OPTIONS = {"stream": None, "deliver": "new", "tls_first": False}
PING_S = 2  # a server that is silent for two of them is lost
LEAVE_S = 0.3
AGAIN_S = 0.1
PENDING_MAX = 10_000_000
_TOPIC = re.compile(r"[^\s.]+(\.[^\s.]+)*")


def settings_of(wish: Wish) -> dict[str, Any]:
    """Return what the worker needs, as plain JSON values; raises BadValue."""
    address = address_of(wish.url)
    jetstream, secure = "jetstream" in wish.scheme, wish.scheme.endswith("+tls")
    stream = checked_stream(wish.options["stream"])
    if stream is not None and not jetstream:
        raise BadValue("stream", stream, "is nothing that core NATS has",
                       "Use nats+jetstream:// in the URL.")
    allowed = "Give one such as 'devices.>'."
    topic = topic_text(TOPIC if wish.topic is None else wish.topic, "subject", allowed, 1024)
    if not topic.isprintable() or not _TOPIC.fullmatch(topic) or ">" in topic.split(".")[:-1]:
        raise BadValue("topic", topic, "is no subject", allowed)
    secret = secured(wish, address, "NATS", CREDENTIALS, secure, f"{wish.scheme}+tls")
    if secret["creds"]:
        read_creds(secret["creds"])  # an error now, and not in the process
    return {
        "url": str(address), "host": address.host, "port": address.port, "topic": topic,
        "authority": address.authority, "jetstream": jetstream, "stream": stream,
        "deliver": choice("deliver", wish.options["deliver"], ("new", "all")),
        "tls_first": flag("tls_first", wish.options["tls_first"]), **secret,
    }  # fmt: skip


class Source:
    """Subscribes, and hands what arrives to the store.

    Each connection is a client of its own: nats-py's own reconnection can hang. A stream is read
    on from where the last connection ended, so nothing is missed; a core subscription misses what
    was published meanwhile, and says so.
    """

    def __init__(self, settings: dict[str, Any], store: Store) -> None:
        self._settings, self._store = settings, store
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._broken = asyncio.Event()
        self._begun = False
        self._sequence = 0  # of the last message of the stream that was taken
        self._why: Exception | None = None

    def run(self) -> None:
        """Connect, again and again, until `close`."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._stay())

    def close(self) -> None:
        """Say goodbye."""
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:  # it has ended already
            pass

    def _end(self) -> None:
        self._over.set()
        self._broken.set()

    async def _stay(self) -> None:
        while not self._over.is_set():
            client = CarefulClient()
            self._broken.clear()
            try:
                async with asyncio.timeout(CONNECT_S):
                    await self._begin(client)
                await self._broken.wait()
            except Exception as error:
                if not self._begun:
                    self._store.fail(_words(self._why or error))
                    return
                await asyncio.sleep(AGAIN_S)
            finally:
                await self._leave(client)

    async def _leave(self, client: Client) -> None:
        if not self._over.is_set():
            if self._settings["jetstream"]:
                self._store.paused()
            else:
                self._store.lost()
        try:
            async with asyncio.timeout(LEAVE_S):
                await client.close()
        except Exception:  # a client that cannot end is left behind
            pass

    async def _begin(self, client: Client) -> None:
        self._why = None
        await client.connect(
            ping_interval=PING_S, max_outstanding_pings=2,
            **options_of(self._settings, "iotsim tap", self._complained, self._closed))
        settings = self._settings
        self._store.connected()
        if settings["jetstream"]:
            await self._follow(client)
        else:
            await client.subscribe(
                settings["topic"], cb=self._message,
                pending_msgs_limit=PENDING_MAX, pending_bytes_limit=0,
            )
            await client.flush(CONNECT_S)
        if self._why is not None:
            raise self._why
        self._begun = True
        self._store.subscribed()

    async def _follow(self, client: Client) -> None:
        settings = self._settings
        policy = DeliverPolicy.NEW if settings["deliver"] == "new" else DeliverPolicy.ALL
        config = ConsumerConfig(deliver_policy=policy)
        if self._begun:
            # Also where nothing was taken yet: "new" would begin after what we missed.
            config.deliver_policy = DeliverPolicy.BY_START_SEQUENCE
            config.opt_start_seq = self._sequence + 1
        streams = client.jetstream(timeout=CONNECT_S)
        stream = settings["stream"]
        if stream is None:
            stream = await self._only_stream(streams)
        elif not self._begun:
            await streams.stream_info(stream)
        if not self._begun and policy == DeliverPolicy.NEW:
            self._sequence = (await streams.stream_info(stream)).state.last_seq
        await streams.subscribe(
            settings["topic"], stream=stream, cb=self._message, ordered_consumer=True,
            config=config, pending_msgs_limit=PENDING_MAX, pending_bytes_limit=0,
        )

    async def _only_stream(self, streams: JetStreamContext) -> str:
        # The one that takes the topic; by default the only one, or else the devices'.
        topic = self._settings["topic"]
        if topic == TOPIC:
            found = [one.config for one in await streams.streams_info()]
            names = [str(one.name) for one in found
                     if not all(subject.startswith("$") for subject in one.subjects or ())]
            if len(names) == 1:
                return names[0]
            if not any("devices" in str(one.subjects) for one in found) and names:
                raise ConnectionError(f"it has several streams, give stream=: {', '.join(names)}")
            topic = DEVICES
        return await streams.find_stream_name_by_subject(topic)

    # -- what nats-py calls, on our loop ----------------------------------------------------------

    async def _complained(self, error: Exception) -> None:
        self._why = self._why or error
        if isinstance(error, SlowConsumerError):
            self._store.fail("nats-py dropped messages that came faster than it reads")
        elif self._begun and "permissions" in str(error).lower():
            self._store.fail(_words(error))

    async def _closed(self) -> None:
        self._broken.set()

    async def _message(self, message: Msg) -> None:
        subject = message.subject.encode("utf-8", "surrogateescape")
        headers = message.headers or {}
        flags = 0
        if not self._settings["jetstream"]:
            # A stream's delivery to somebody else shows the subject of the message.
            others = subject.startswith(NOBODYS) or message.reply.startswith("$JS.ACK.")
            if others and self._settings["topic"] == TOPIC:
                return
        else:
            about = message.metadata
            self._sequence = about.sequence.stream
            flags = DUP if about.num_delivered > 1 else 0
        self._store.take(
            subject,
            headers.get(ID_HEADER, "").encode("utf-8", "surrogateescape"),
            bytes(message.data),
            flags,
            headers.get(STAMP_HEADER, "").encode("utf-8", "surrogateescape"),
        )


def _words(error: BaseException) -> str:
    if isinstance(error, NotFoundError):
        return "there is no such stream, or none for this subject"
    if isinstance(error, (ServiceUnavailableError, NoRespondersError)):
        return "JetStream is not enabled there"
    if isinstance(error, TimeoutError):
        return "it accepts the connection but does not answer"
    if isinstance(error, WrongPeer):
        return str(error)
    text = failure_text(error).removeprefix("nats: ").strip("'\" ")
    return f"the server refused us: {text.lower()}" if isinstance(error, Error) else text
