"""Commands by MQTT: one subscription for all devices; paho, on a thread of its own.

A response topic and correlation data of MQTT 5 are honoured. The session outlives a broken
connection by minutes, so that what was sent meanwhile comes with the next one (QoS 1).
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from iotsim.errors import BadValue, ConnectError
from iotsim.listening.base import CONNECT_S, OUTFLOW_MAX, Ear, Message, Note, Take, Talk
from iotsim.publishers.base import choice, whole
from iotsim.seeding import fresh_seed
from iotsim.tapping.settings import Wish, secured
from iotsim.transport.addresses import Address, failure_text
from iotsim.transport.probing import found
from iotsim.transport.tls import TLS

OPTIONS: dict[str, Any] = {"qos": 1, "version": "5"}
ANY = "+"
LOOK_S = 0.005
LINGER_S = 0.3  # for answers to be taken at the end
LEAVE_S = (0.15, 0.05)  # for the goodbye to go out; then for paho's thread to see that it is over
ANSWER_S = 3.5  # for the broker's first words, and for the subscription
SILENT = "it accepts the connection but does not answer"
CUT = "it ended the connection at our first word, as no MQTT broker does"
SESSION_EXPIRY_S = 300
KEEPALIVE_S = 10
TOPIC_BYTES_MAX = 65_535


def settings_of(wish: Wish) -> dict[str, Any]:
    """Return what a listener needs; raises BadValue."""
    address = Address.parse(wish.url, 8883 if wish.scheme == "mqtts" else 1883)
    return {
        "url": str(address), "host": address.host, "port": address.port,
        "version": choice("version", wish.options["version"], ("5", "3.1.1")),
        "qos": whole("qos", wish.options["qos"], 0, 2),
        **secured(wish, address, "MQTT", ("username", "password"), wish.scheme == "mqtts", "mqtts"),
    }  # fmt: skip


class _Session:
    """A paho client with one subscription, and what it tells the loop."""

    def __init__(
        self, ear: Ear, pattern: str, heard: Callable[[Message], Any], note: Note, verb: str,
        queued: int = OUTFLOW_MAX,
    ) -> None:
        self._settings, self._pattern = ear.settings, pattern
        self._heard, self._note, self._verb = heard, note, verb
        self._loop = asyncio.get_running_loop()
        self._subscribed = asyncio.Event()
        self._why = ""
        self._met = False  # whether it has answered as a broker
        self._ending = False
        self._handed = self._published = 0
        self._stopped = asyncio.Event()
        self._client: paho.Client | None = self._made(queued)

    @property
    def modern(self) -> bool:
        """Whether it speaks MQTT 5."""
        return bool(self._settings["version"] == "5")

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._client is not None and self._client.is_connected()

    async def open(self) -> None:
        """Connect and subscribe; raises ConnectError."""
        settings, client = self._settings, self._client
        assert client is not None, "a session is opened before it is closed"
        extra: dict[str, Any] = {}
        if self.modern:
            extra["properties"] = _expiry(PacketTypes.CONNECT, SESSION_EXPIRY_S)
            extra["clean_start"] = paho.MQTT_CLEAN_START_FIRST_ONLY
        try:
            async with asyncio.timeout(CONNECT_S / 2):
                await self._loop.run_in_executor(None, lambda: client.connect(
                    settings["host"], settings["port"], KEEPALIVE_S, **extra))
                client.loop_start()
            async with asyncio.timeout(ANSWER_S):
                await self._subscribed.wait()
        except (OSError, TimeoutError, ValueError) as error:
            self._why = self._why or failure_text(error)
            if client.socket() is not None and isinstance(error, TimeoutError):
                self._why = SILENT
        if self._why:
            await self.close()
            if not self._met and settings["tls"] is None and self._why in (SILENT, CUT):
                self._why = await found("MQTT", settings["host"], settings["port"]) or self._why
            raise ConnectError(settings["url"], self._why, verb=self._verb)

    def publish(self, topic: str, body: bytes, correlation: bytes | None = None) -> bool:
        """Hand a message over, without waiting; False: there is no room, or it is over."""
        if self._client is None:
            return False
        properties = None
        if self.modern and correlation is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = correlation
        qos = min(1, self._settings["qos"])
        try:
            code = self._client.publish(topic, body, qos, properties=properties).rc
        except (ValueError, OSError):  # a response topic that is none
            return False
        taken = code in (paho.MQTT_ERR_SUCCESS, paho.MQTT_ERR_NO_CONN)
        self._handed += taken
        return taken

    async def close(self) -> None:
        """Let what was handed over go out, and end our session at the broker, in any case."""
        client, self._client = self._client, None  # it holds two files as long as somebody holds it
        self._ending = True
        if client is None:
            return
        try:
            async with asyncio.timeout(LINGER_S):
                for _ in range(int(LINGER_S / LOOK_S)):
                    if self._published >= self._handed or not client.is_connected():
                        break
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            pass
        finally:
            self._say_goodbye(client)
        left = self._handed - self._published
        if left:
            self._note(f"answers that the broker had not taken at the end: {left:,}")
        for limit_s in LEAVE_S:
            try:
                async with asyncio.timeout(limit_s):
                    await self._stopped.wait()
                    return
            except TimeoutError:
                _cut(client)

    def _say_goodbye(self, client: paho.Client) -> None:
        client.disconnect(properties=_expiry(PacketTypes.DISCONNECT, 0) if self.modern else None)

        def stop() -> None:
            client.loop_stop()
            self._call(self._stopped.set)

        # Not one of the loop's own threads: its end would wait for them.
        threading.Thread(target=stop, name="iotsim ends a listener", daemon=True).start()

    # -- what paho calls, on its thread -----------------------------------------------------------

    def _made(self, queued: int) -> paho.Client:
        settings = self._settings
        version = paho.MQTTv5 if self.modern else paho.MQTTv311
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"iotsim-devices-{os.getpid()}-{fresh_seed():x}",
            protocol=version,
            clean_session=None if self.modern else True,
        )
        client.suppress_exceptions = True
        client.connect_timeout = CONNECT_S / 2
        client.reconnect_delay_set(1, 2)
        client.max_queued_messages_set(queued)
        if settings["username"] or settings["password"]:
            client.username_pw_set(settings["username"], settings["password"] or None)
        if settings["tls"] is not None:
            client.tls_set_context(TLS(**settings["tls"]).context())
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_subscribe = self._granted
        client.on_message = self._message
        client.on_publish = self._gone
        return client

    def _call(self, what: Callable[..., Any], *given: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *given)
        except RuntimeError:  # the loop is closed
            pass

    def _connected(self, client: paho.Client, _u: Any, _f: Any, code: Any, _p: Any) -> None:
        self._met = True
        if self._ending:  # it was said while paho was connecting again, and was not heard
            self._say_goodbye(client)
        elif code.is_failure:
            self._fail(f"the broker refused us: {code}")
        else:
            client.subscribe(self._pattern, self._settings["qos"])

    def _granted(self, _c: Any, _u: Any, _mid: Any, codes: Any, _p: Any) -> None:
        refused = [str(code) for code in codes if code.is_failure]
        if refused:
            self._fail(f"the broker refused the subscription: {refused[0]}")
        else:
            self._call(self._subscribed.set)

    def _fail(self, why: str) -> None:
        self._why = why
        self._call(self._subscribed.set)
        self._call(self._note, why)

    def _disconnected(self, _c: Any, _u: Any, _f: Any, code: Any, _p: Any) -> None:
        if not self._met and not self._ending:
            self._fail(CUT)
        elif not self._ending and not self._why:
            self._call(self._note, f"the connection was lost ({code})")

    def _gone(self, *_: Any) -> None:
        self._published += 1

    def _message(self, _client: Any, _user: Any, message: paho.MQTTMessage) -> None:
        if message.retain:
            self._call(self._note, "retained messages were left alone: they are of the past")
            return
        properties, reply = message.properties, None
        wanted = getattr(properties, "ResponseTopic", "") if properties else ""
        if wanted and not {"+", "#"} & set(wanted):
            reply = (wanted, getattr(properties, "CorrelationData", None))
        name = message._topic.decode("utf-8", "replace")
        self._heard(Message(name, bytes(message.payload), reply))


def _cut(client: paho.Client) -> None:
    # A broker that stands still takes no goodbye; paho's thread sees that the socket has ended.
    plain = client.socket()
    if isinstance(plain, socket.socket):
        try:
            socket.socket.shutdown(plain, socket.SHUT_RDWR)  # not TLS's own: paho may be in it
        except OSError:
            pass


def _expiry(packet: int, seconds: int) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = seconds
    return properties


class Heard:
    """The devices' side: hands commands on, sends answers.

    Parameters
    ----------
    ear : Ear
    take : callable (Message) -> bool
        From any thread.
    note : callable (text)
    topics : callable () -> list of str
        Not needed here: one subscription takes them all in.
    """

    def __init__(
        self, ear: Ear, take: Take, note: Note, topics: Callable[[], list[str]]
    ) -> None:
        self._session = _Session(ear, ear.pattern(ear.topic, ANY), take, note, "listen to")

    async def open(self) -> None:
        """Connect and subscribe; raises ConnectError."""
        await self._session.open()

    def answer(self, topic: str, body: bytes, reply: Any) -> bool:
        """Send an answer: where the sender wanted it, else to the device's own topic."""
        where, correlation = (topic, None) if reply is None else reply
        if len(where.encode("utf-8", "replace")) > TOPIC_BYTES_MAX:
            raise BadValue("response topic", where[:40], "is too long")
        return self._session.publish(where, body, correlation)

    async def close(self) -> None:
        """End."""
        await self._session.close()


async def converse(ear: Ear, talk: Talk) -> None:
    """Send commands as a platform would, and hear the answers until it is over."""
    loop = asyncio.get_running_loop()

    def heard(message: Message) -> None:
        try:
            loop.call_soon_threadsafe(talk.heard, message.body)
        except RuntimeError:  # the loop is closed
            pass

    def note(text: str) -> None:
        talk.trouble = text

    session = _Session(ear, talk.pattern, heard, note, "send commands to", len(talk.requests) + 1)
    await session.open()
    talk.trouble = ""
    try:
        for place, (topic, body) in enumerate(talk.requests):
            talk.sent(place)
            if not session.publish(topic, body):
                raise ConnectError(ear.settings["url"], "its queue of commands is full",
                                   "Ask fewer devices at a time.", "send commands to")
            if place % 100 == 99:
                await asyncio.sleep(0)
        await talk.over.wait()
    finally:
        trouble = "" if session.connected else talk.trouble  # paho connects again by itself
        await session.close()
        talk.trouble = trouble
