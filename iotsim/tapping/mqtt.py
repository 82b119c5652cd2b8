"""A tap's source for MQTT: paho, the client that publishing does not use."""

from __future__ import annotations

import os
import threading
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from iotsim.errors import BadValue
from iotsim.publishers.base import choice, whole
from iotsim.tapping.settings import Wish, secured, topic_text
from iotsim.tapping.store import Store
from iotsim.transport.addresses import Address
from iotsim.transport.probing import what_speaks
from iotsim.transport.tls import TLS

TOPIC = "#"
OPTIONS = {"qos": 2, "version": "5"}
SESSION_EXPIRY_S = 300
CONNECT_S = 4.0
ANSWER_S = 4.0  # for the broker's first words
SILENT = "it accepts the connection but does not answer"
CUT = "it ended the connection at our first word, as no MQTT broker does"
AGAIN_S, AGAIN_MAX_S = 0.1, 0.4
KEEPALIVE_S = 10


def settings_of(wish: Wish) -> dict[str, Any]:
    """Return what the worker needs, as plain JSON values; raises BadValue."""
    address = Address.parse(wish.url, 8883 if wish.scheme == "mqtts" else 1883)
    allowed = "Give one such as 'devices/#'."
    topic = topic_text(TOPIC if wish.topic is None else wish.topic, "topic filter", allowed, 65_535)
    *levels, last = topic.split("/")
    if any("#" in level for level in levels) or ("#" in last and last != "#"):
        raise BadValue("topic", topic, "has a # that is not the whole last level", allowed)
    if any("+" in level and level != "+" for level in (*levels, last)):
        raise BadValue("topic", topic, "has a + that is not a whole level", allowed)
    return {
        "url": str(address), "host": address.host, "port": address.port, "topic": topic,
        "version": choice("version", wish.options["version"], ("5", "3.1.1")),
        "qos": whole("qos", wish.options["qos"], 0, 2),
        **secured(wish, address, "MQTT", ("username", "password"), wish.scheme == "mqtts", "mqtts"),
    }  # fmt: skip


class Source:
    """Subscribes, and hands what arrives to the store."""

    def __init__(self, settings: dict[str, Any], store: Store) -> None:
        self._settings = settings
        self._store = store
        self._met = False  # whether it has answered as a broker
        self._ending = False
        self._client = self._made()

    def run(self) -> None:
        """Connect, and loop until `close`."""
        settings = self._settings
        extra: dict[str, Any] = {}
        if settings["version"] == "5":
            extra["properties"] = _expiry(PacketTypes.CONNECT, SESSION_EXPIRY_S)
            extra["clean_start"] = paho.MQTT_CLEAN_START_FIRST_ONLY
        self._client.connect(settings["host"], settings["port"], KEEPALIVE_S, **extra)
        patience = threading.Timer(ANSWER_S, self._unmet, (SILENT,))
        patience.daemon = True
        patience.start()
        self._client.loop_forever()
        patience.cancel()

    def close(self) -> None:
        """Say goodbye, and end our session at the broker."""
        self._ending = True
        modern = self._settings["version"] == "5"
        self._client.disconnect(properties=_expiry(PacketTypes.DISCONNECT, 0) if modern else None)

    # -- what paho calls, on its thread -----------------------------------------------------------

    def _made(self) -> paho.Client:
        settings = self._settings
        version = paho.MQTTv5 if settings["version"] == "5" else paho.MQTTv311
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"iotsim-tap-{os.getpid()}-{os.urandom(4).hex()}",
            protocol=version,
            clean_session=None if version == paho.MQTTv5 else True,
        )
        client.suppress_exceptions = True
        client.connect_timeout = CONNECT_S
        client.reconnect_delay_set(AGAIN_S, AGAIN_MAX_S)  # type: ignore[arg-type]
        if settings["username"] or settings["password"]:
            client.username_pw_set(settings["username"], settings["password"] or None)
        if settings["tls"] is not None:
            client.tls_set_context(TLS(**settings["tls"]).context())
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_subscribe = self._subscribed
        client.on_message = self._message
        return client

    def _disconnected(self, *_: Any) -> None:
        self._unmet(CUT)
        self._store.lost()

    def _unmet(self, why: str) -> None:
        # Where nobody has answered as a broker: what does speak there?
        if self._met or self._ending:
            return
        settings, self._met = self._settings, True  # it is told once
        if settings["tls"] is None:
            why = what_speaks("MQTT", settings["host"], settings["port"]) or why
        self._store.fail(why)

    def _connected(self, client: paho.Client, _u: Any, _f: Any, code: Any, _p: Any) -> None:
        self._met = True
        if code.is_failure:
            self._store.fail(f"the broker refused us: {code}")
            return
        topic, qos = self._settings["topic"], self._settings["qos"]
        if self._settings["version"] == "5":
            client.subscribe(topic, options=SubscribeOptions(qos, retainAsPublished=True))
        else:
            client.subscribe(topic, qos)
        self._store.connected()

    def _subscribed(self, _c: Any, _u: Any, _mid: Any, codes: Any, _p: Any) -> None:
        refused = [str(code) for code in codes if code.is_failure]
        if refused:
            self._store.fail(f"the broker refused the subscription: {refused[0]}")
        else:
            self._store.subscribed()

    def _message(self, client: Any, _user: Any, message: paho.MQTTMessage) -> None:
        # A message is a sign of life. The answer to a PINGREQ comes behind all that is on its way,
        # which may take a slow machine longer than paho would wait for it.
        client._ping_t = 0
        ident = sent = ""
        properties = message.properties
        if properties is not None:
            for name, value in getattr(properties, "UserProperty", ()):
                if name == "id":
                    ident = value
                elif name == "sent":
                    sent = value
        self._store.take(
            message._topic,  # its bytes: decoding may fail
            ident.encode("utf-8", "surrogateescape"),
            message.payload,
            message.qos | message.retain << 2 | message.dup << 3,
            sent.encode("utf-8", "surrogateescape"),
        )


def _expiry(packet: int, seconds: int) -> Properties:
    # How long the broker keeps our session: over a reconnect, but not after the end.
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = seconds
    return properties
