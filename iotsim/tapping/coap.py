"""A tap's source for CoAP: a server of aiocoap's, which publishing does not use."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import orjson
from aiocoap import CHANGED, CON, NOT_FOUND, Context, Message  # type: ignore[import-untyped]
from aiocoap.resource import Resource  # type: ignore[import-untyped]

from iotsim.errors import BadValue
from iotsim.publishers.base import Tracing
from iotsim.tapping.settings import Wish, secured, topic_text
from iotsim.tapping.store import Store
from iotsim.transport.addresses import Address, failure_text

TOPIC = "#"
OPTIONS: dict[str, Any] = {"audit_field": "_seq"}
END_S = 0.4
LOOK_S = 0.25
_DROPS = ("/proc/net/udp", "/proc/net/udp6")  # Linux; elsewhere nobody tells


def settings_of(wish: Wish) -> dict[str, Any]:
    """Return what the worker needs, as plain JSON values; raises BadValue.

    The address is where it listens, port 0 for any that is free. The topic is a path, or with
    `/#` at its end all paths below; what does not fit is answered 4.04. The message id is read
    from `audit_field` of the JSON.
    """
    address = Address.parse(wish.url, 5683, port_zero=True)
    allowed = "Give a path such as 'devices/d-1/telemetry', or 'devices/#'."
    topic = topic_text(TOPIC if wish.topic is None else wish.topic, "path", allowed, 1024)
    if "#" in topic and (topic.index("#") < len(topic) - 1 or f"/{topic}"[-2] != "/"):
        raise BadValue("topic", topic, "has its # elsewhere than at the end", allowed)
    field = Tracing.take({"audit_field": wish.options["audit_field"]}).audit_field
    return {
        "url": str(address), "host": address.host, "port": address.port, "topic": topic,
        "audit_field": field, **secured(wish, address, "COAP", (), False, "coaps"),
    }  # fmt: skip


class Source:
    """Serves every path, and hands what arrives to the store."""

    def __init__(self, settings: dict[str, Any], store: Store) -> None:
        self._settings = settings
        self._store = store
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()

    def run(self) -> None:
        """Listen until `close`."""
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    def close(self) -> None:
        """Let `run` return."""
        try:
            self._loop.call_soon_threadsafe(self._over.set)
        except RuntimeError:  # it has returned
            pass

    async def _serve(self) -> None:
        host = self._settings["host"]
        sink = Sink(self._settings, self._store)
        try:
            port = free_udp_port(host, self._settings["port"])
            context = await Context.create_server_context(
                sink,
                bind=(host, port),
                transports=["udp6" if sys.platform == "linux" else "simplesocketserver"],
            )
        except OSError as error:
            self._store.fail(f"cannot listen there: {failure_text(error)}")
            return
        self._store.connected()
        shown = f"[{host}]" if ":" in host else host
        self._store.subscribed(url=f"coap://{shown}:{port}")
        while not self._over.is_set():
            await self._rest()
            count = dropped_datagrams(port)
            if count and sink.unconfirmed:
                self._store.fail(f"the system dropped {count:,} datagrams before they were read: "
                                 "messages that are not confirmable may be missing")
        try:
            async with asyncio.timeout(END_S):
                await context.shutdown()
        except TimeoutError:
            pass

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._over.wait()
        except TimeoutError:
            pass


class Sink(Resource):  # type: ignore[misc]  # it has no types
    """Takes POST and PUT at every path."""

    def __init__(self, settings: dict[str, Any], store: Store) -> None:
        super().__init__()
        self.unconfirmed = 0
        self._field = settings["audit_field"]
        self._below = settings["topic"].endswith("#")
        self._path = settings["topic"].removesuffix("#").strip("/").split("/")
        self._path = [part for part in self._path if part]
        self._store = store

    async def render_post(self, request: Message) -> Message:
        """Keep what was sent."""
        path = list(request.opt.uri_path)
        rest = path[len(self._path):]
        if path[: len(self._path)] != self._path or (rest and not self._below):
            return Message(code=NOT_FOUND)
        self.unconfirmed += request.mtype != CON
        self._store.take(
            "/".join(path).encode("utf-8", "replace"),
            self._ident(request.payload),
            request.payload,
            int(request.mtype == CON),
        )
        return Message(code=CHANGED)

    async def render_put(self, request: Message) -> Message:
        """Keep what was sent."""
        return await self.render_post(request)

    def _ident(self, payload: bytes) -> bytes:
        try:
            found = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return b""
        ident = found.get(self._field, "") if isinstance(found, dict) else ""
        return ident.encode() if isinstance(ident, str) else b""


def free_udp_port(host: str, port: int) -> int:
    """Return the port if it is free, or for 0 one that is; raises OSError.

    aiocoap shares its port with whoever shares it, so that a second server would go unnoticed.
    """
    family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.bind(where)
        return int(probe.getsockname()[1])


def dropped_datagrams(port: int) -> int:
    """Return how many datagrams the system threw away that were sent to a local UDP port."""
    count = 0
    for name in _DROPS:
        try:
            with open(name, encoding="ascii") as table:
                rows = [line.split() for line in table][1:]
        except OSError:
            continue
        count += sum(int(row[-1]) for row in rows if row[1].endswith(f":{port:04X}"))
    return count
