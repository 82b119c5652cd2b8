"""A tap's source for HTTP: it is itself the endpoint that readings are POSTed to."""

from __future__ import annotations

import asyncio
import hmac
import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from aiohttp import web

from iotsim.errors import BadValue
from iotsim.publishers.base import whole
from iotsim.tapping.settings import Wish, secured
from iotsim.tapping.store import DUP, Store
from iotsim.transport.addresses import Address

OPTIONS = {"status": 204}
EVERY_TOPIC = "*"
BODY_BYTES_MAX = 64 << 20
_JSON = json.JSONDecoder()


def settings_of(wish: Wish) -> dict[str, Any]:
    """Return what the worker needs, as plain JSON values; raises BadValue."""
    address = Address.parse(wish.url, 80, path=True, port_zero=True)
    if address.query:
        raise BadValue("url", str(address), "has a query", "Leave it out: senders add ?topic=.")
    if wish.topic is not None:
        raise BadValue("topic", wish.topic, "has no meaning for an endpoint",
                       "Leave it out: it takes what is sent to it.")
    return {
        "url": str(address), "host": address.host, "port": address.port, "topic": EVERY_TOPIC,
        "path": address.path or "/", "status": whole("status", wish.options["status"], 200, 299),
        **secured(wish, address, "HTTP", ("username", "password", "token"), False, "https"),
    }  # fmt: skip


class Source:
    """Listens, answers, and hands what is POSTed to the store."""

    def __init__(self, settings: dict[str, Any], store: Store) -> None:
        self._settings = settings
        self._store = store
        self._known: set[bytes] = set()  # keys and ids, to tell what comes again
        self._over: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wanted = _wanted(settings)
        self._path = unquote(settings["path"])

    def run(self) -> None:
        """Listen until `close`."""
        asyncio.run(self._serve())

    def close(self) -> None:
        """Let `run` return, from another thread."""
        loop, over = self._loop, self._over
        if loop is not None and over is not None and not loop.is_closed():
            loop.call_soon_threadsafe(over.set)

    async def _serve(self) -> None:
        settings = self._settings
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, settings["host"], settings["port"], backlog=1024)
            await site.start()
            host, port = runner.addresses[0][:2]
            shown = f"[{settings['host']}]" if ":" in settings["host"] else settings["host"]
            self._store.connected()
            path = settings["path"] if settings["path"] != "/" else ""
            self._store.subscribed(url=f"http://{shown or host}:{port}{path}")
            await self._over.wait()
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._wanted and not hmac.compare_digest(self._wanted, _raw(request, "Authorization")):
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
        path, here = unquote(request.rel_url.raw_path), self._path
        below = here.rstrip("/") + "/"
        if path != here and not path.startswith(below):
            return web.Response(status=404)
        if request.method != "POST":
            return web.Response(status=200 if request.method == "HEAD" else 405)
        body = await _read(request)
        if body is None:
            return web.Response(status=413)
        topic = _topic(request, path[len(below):])
        if not self._keep(request, topic, body):
            return web.Response(status=400, text="no JSON array of documents")
        return web.Response(status=self._settings["status"])

    def _keep(self, request: web.BaseRequest, topic: bytes, body: bytes) -> bool:
        headers = request.headers
        key = unquote_to_bytes(headers.get("Idempotency-Key", ""))
        sent = _raw(request, "Sent")
        field = headers.get("Iotsim-Id-Field")
        if field is None:
            self._take(topic, key, body, sent)
            return True
        ndjson = headers.get("Content-Type", "").startswith("application/x-ndjson")
        try:
            found = list(_lines(body) if ndjson else _documents(body))
        except (ValueError, IndexError, RecursionError):
            return False
        name = unquote(field)
        for document, raw in found:
            ident = document.get(name, "") if isinstance(document, dict) else ""
            self._take(topic, str(ident).encode("utf-8", "replace"), raw, sent)
        return True

    def _take(self, topic: bytes, ident: bytes, body: bytes, sent: bytes) -> None:
        again = bool(ident) and ident in self._known
        if ident and len(self._known) < self._settings["capacity"]:
            self._known.add(ident)
        self._store.take(topic, ident, body, DUP if again else 0, sent)


def _wanted(settings: dict[str, Any]) -> bytes:
    if settings["token"]:
        return f"Bearer {settings['token']}".encode()
    if settings["username"] or settings["password"]:
        pair = f"{settings['username']}:{settings['password']}".encode()
        return b"Basic " + b64encode(pair)
    return b""


def _raw(request: web.BaseRequest, name: str) -> bytes:
    return request.headers.get(name, "").encode("utf-8", "surrogateescape")


def _topic(request: web.BaseRequest, rest: str) -> bytes:
    header = request.headers.get("Iotsim-Topic")
    if header is not None:
        return unquote_to_bytes(header)
    for part in request.rel_url.raw_query_string.split("&"):
        name, _, value = part.partition("=")
        if name == "topic":
            return unquote_to_bytes(value.replace("+", " "))
    return rest.encode("utf-8", "surrogateescape")


async def _read(request: web.BaseRequest) -> bytes | None:
    # The body, or None if it is too large.
    parts: list[bytes] = []
    size = 0
    while chunk := await request.content.readany():
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            return None
        parts.append(chunk)
    return b"".join(parts)


def _lines(body: bytes) -> Iterator[tuple[Any, bytes]]:
    for line in body.splitlines():
        if line.strip():
            yield json.loads(line), line


def _documents(body: bytes) -> Iterator[tuple[Any, bytes]]:
    # The documents of a JSON array with the very bytes that each had.
    text = body.decode().strip()
    if text[:1] != "[" or text[-1:] != "]":
        raise ValueError("no array")
    position = _past_blanks(text, 1)
    while text[position] != "]":
        document, end = _JSON.raw_decode(text, position)
        yield document, text[position:end].encode()
        position = _past_blanks(text, end)
        if text[position] == ",":
            position = _past_blanks(text, position + 1)
        elif text[position] != "]" or position != len(text) - 1:
            raise ValueError("no comma")


def _past_blanks(text: str, position: int) -> int:
    while text[position] in " \t\r\n":
        position += 1
    return position
