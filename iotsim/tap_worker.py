"""The process behind a tap: paho, a bounded store, and a heartbeat.

Settings come as one JSON line on the standard input (so that no password stands in a command
line), then commands: `fetch <first> <last>`. On the standard output go JSON lines: the state
whenever it changes and at least twice a second, and before each answer its size. The process
ends when its standard input does, so it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from typing import Any, BinaryIO

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from iotsim.clock import monotonic, wall_us
from iotsim.seeding import fresh_seed
from iotsim.transport.addresses import failure_text, tls_context

RECORD = struct.Struct("<qBHHI")  # receipt µs; qos, retain, dup; sizes of topic, id, payload
STATE_S = 0.02
HEARTBEAT_S = 0.5
SESSION_EXPIRY_S = 300
CONNECT_S = 5.0


class Worker:
    """Subscribes, stores what arrives, and says how it is."""

    def __init__(self, settings: dict[str, Any], out: BinaryIO) -> None:
        self._settings = settings
        self._out = out
        self._lock = threading.Lock()
        self._records: list[bytes] = []
        self._capacity = int(settings["capacity"])
        self._anchor_us = wall_us() - round(monotonic() * 1e6)
        self._changed = threading.Event()
        self._state: dict[str, Any] = {
            "dropped": 0, "connected": False, "subscribed": False, "losses": 0, "faults": 0,
            "problem": "",
        }  # fmt: skip
        self._client = self._made()
        self._network = threading.Thread(target=self._run, name="iotsim tap network", daemon=True)

    def serve(self, commands: BinaryIO) -> None:
        """Work until the parent closes our standard input."""
        self._network.start()
        threading.Thread(target=self._report, name="iotsim tap state", daemon=True).start()
        for line in commands:
            _, first, last = line.split()
            body = b"".join(self._records[int(first) : int(last)])
            self._say({"answer": len(body)}, body)
        modern = self._settings["version"] == "5"
        self._client.disconnect(properties=_expiry(PacketTypes.DISCONNECT, 0) if modern else None)
        self._network.join(0.5)

    # -- what paho calls, on its thread ---------------------------------------------------------

    def _made(self) -> paho.Client:
        settings = self._settings
        version = paho.MQTTv5 if settings["version"] == "5" else paho.MQTTv311
        name = f"iotsim-tap-{os.getpid()}-{fresh_seed():x}"
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=name,
            protocol=version,
            clean_session=None if version == paho.MQTTv5 else True,
        )
        client.suppress_exceptions = True
        client.connect_timeout = CONNECT_S
        client.reconnect_delay_set(1, 2)
        if settings["username"] or settings["password"]:
            client.username_pw_set(settings["username"], settings["password"] or None)
        if settings["tls"]:
            client.tls_set_context(tls_context(settings["ca"], settings["verify"]))
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_subscribe = self._subscribed
        client.on_message = self._message
        return client

    def _run(self) -> None:
        settings = self._settings
        try:
            extra: dict[str, Any] = {}
            if settings["version"] == "5":
                extra["properties"] = _expiry(PacketTypes.CONNECT, SESSION_EXPIRY_S)
                extra["clean_start"] = paho.MQTT_CLEAN_START_FIRST_ONLY
            self._client.connect(settings["host"], settings["port"], 10, **extra)
            self._client.loop_forever()
        except Exception as error:  # whatever it was, the parent must hear of it
            self._tell(problem=failure_text(error), connected=False)

    def _connected(self, client: paho.Client, _u: Any, _f: Any, code: Any, _p: Any) -> None:
        if code.is_failure:
            self._tell(problem=f"the broker refused us: {code}")
            return
        topic, qos = self._settings["topic"], self._settings["qos"]
        if self._settings["version"] == "5":
            client.subscribe(topic, options=SubscribeOptions(qos, retainAsPublished=True))
        else:
            client.subscribe(topic, qos)
        self._tell(connected=True)

    def _subscribed(self, _c: Any, _u: Any, _mid: Any, codes: Any, _p: Any) -> None:
        refused = [str(code) for code in codes if code.is_failure]
        if refused:
            self._tell(problem=f"the broker refused the subscription: {refused[0]}")
        else:
            self._tell(subscribed=True)

    def _disconnected(self, _c: Any, _u: Any, _f: Any, _code: Any, _p: Any) -> None:
        losses = self._state["losses"] + self._state["connected"]
        self._tell(connected=False, losses=losses)

    def _message(self, _client: Any, _user: Any, message: paho.MQTTMessage) -> None:
        try:
            if len(self._records) >= self._capacity:
                self._state["dropped"] += 1
            else:
                self._records.append(self._record(message))
        except Exception as error:  # an exception would end paho's thread
            self._state["faults"] += 1
            self._state["problem"] = f"a message could not be stored: {error}"
        self._changed.set()

    def _record(self, message: paho.MQTTMessage) -> bytes:
        now_us = self._anchor_us + round(monotonic() * 1e6)
        topic = message._topic  # its bytes: decoding may fail
        ident = b""
        properties = message.properties
        for name, value in getattr(properties, "UserProperty", ()) if properties else ():
            if name == "id":
                ident = value.encode("utf-8", "surrogateescape")
        payload = message.payload
        flags = message.qos | message.retain << 2 | message.dup << 3
        head = RECORD.pack(now_us, flags, len(topic), len(ident), len(payload))
        return b"".join((head, topic, ident, payload))

    # -- what the parent hears --------------------------------------------------------------------

    def _tell(self, **facts: Any) -> None:
        self._state.update(facts)
        self._changed.set()

    def _report(self) -> None:
        pace = threading.Event()
        while True:
            self._changed.wait(HEARTBEAT_S)
            self._changed.clear()
            if not self._network.is_alive() and not self._state["problem"]:
                self._state["problem"] = "paho's thread ended"
            self._say({**self._state, "count": len(self._records)})
            pace.wait(STATE_S)

    def _say(self, facts: dict[str, Any], body: bytes = b"") -> None:
        with self._lock:
            self._out.write(json.dumps(facts).encode() + b"\n" + body)
            self._out.flush()


def _expiry(packet: int, seconds: int) -> Properties:
    # How long the broker keeps our session: over a reconnect, but not after the end.
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = seconds
    return properties


def main() -> None:
    """Serve one tap."""
    settings = json.loads(sys.stdin.buffer.readline() or b"null")
    if settings is None:
        return
    try:
        Worker(settings, sys.stdout.buffer).serve(sys.stdin.buffer)
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    finally:
        os._exit(0)  # threads of paho's and a parent that is gone must not hold us


if __name__ == "__main__":
    main()
