"""An HTTP endpoint on a free loopback port that answers as a script says, and can be killed.

    with Endpoint(lambda got: Reply(503) if got.number < 3 else Reply()) as endpoint:
        endpoint.url                 # where to POST to
        endpoint.got                 # every POST that was read, answered or not
        endpoint.taken               # those that it took: 2xx, or cut after taking them
"""

import asyncio
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import pytest
from aiohttp import web

START_S = 45


@dataclass(frozen=True)
class Reply:
    """What one request gets; `cut` ends the connection instead: before or after taking it."""

    status: int = 204
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    delay_s: float = 0.0
    cut: str = ""
    drip_s: float = 0.0  # between the bytes of the body


@dataclass(eq=False)
class Got:
    """A POST: `number` counts them from 0, `seen` those with its key before."""

    number: int
    seen: int
    path: str
    query: str
    headers: dict
    body: bytes
    status: int = 0
    taken: bool = False

    @property
    def key(self):
        return self.headers.get("Idempotency-Key", "")

    @property
    def topic(self):
        return dict(parse_qsl(self.query, keep_blank_values=True)).get("topic")


class Endpoint:
    """Runs on a thread of its own; `probe` answers whatever is no POST."""

    def __init__(
        self,
        script: Callable[[Got], Reply] = lambda got: Reply(),
        probe: Reply = Reply(200),
        certificate=None,
        ca=None,
        path="/in",
    ):
        self.script, self.probe, self.path = script, probe, path
        self.got: list[Got] = []
        self.probes = self.connections = self.running_most = 0
        self.port = 0
        self.news = threading.Condition()
        self._counts = {}
        self._running = 0
        self._site = self._runner = None
        self._context = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate.cert, certificate.key)
            if ca is not None:
                self._context.verify_mode = ssl.CERT_REQUIRED
                self._context.load_verify_locations(ca)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint")

    def __enter__(self):
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()
        self._do(self._let_end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self):
        scheme, host = ("https", "localhost") if self._context else ("http", "127.0.0.1")
        return f"{scheme}://{host}:{self.port}{self.path}"

    @property
    def taken(self):
        return [one for one in self.got if one.taken]

    def start(self):
        """Listen, on the same port as before."""
        self._do(self._listen())

    def kill(self):
        """Reset all connections and listen no more."""
        self._do(self._end())

    def freeze(self):
        """Go on accepting connections and reading, but answer nothing from now on."""
        self._thawed.clear()

    def thaw(self):
        self._loop.call_soon_threadsafe(self._thawed.set)

    def wait(self, condition, timeout_s=45):
        with self.news:
            return self.news.wait_for(condition, timeout_s)

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_S)

    async def _listen(self):
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._server = web.Server(self._answer, access_log=None)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, ssl_context=self._context, reuse_address=True
        )
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _end(self):
        if self._runner is None:
            return
        for connection in list(self._server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()
        self._runner = None

    async def _let_end(self):
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _answer(self, request):
        await self._thawed.wait()
        if request.method != "POST":
            self.probes += 1
            return await self._replied(request, self.probe)
        self._running += 1
        self.running_most = max(self.running_most, self._running)
        try:
            got = await self._read(request)
            reply = self.script(got)
            got.status = reply.status
            got.taken = reply.cut == "after" or (not reply.cut and 200 <= reply.status < 300)
            return await self._replied(request, reply)
        finally:
            self._running -= 1
            with self.news:
                self.news.notify_all()

    async def _read(self, request):
        body = await request.content.read()
        key = request.headers.get("Idempotency-Key", "")
        seen = self._counts[key] = self._counts.get(key, -1) + 1
        path, _, query = request.raw_path.partition("?")
        got = Got(len(self.got), seen, path, query, dict(request.headers), body)
        with self.news:
            self.got.append(got)
        return got

    async def _replied(self, request, reply):
        if reply.delay_s:
            await asyncio.sleep(reply.delay_s)
        await self._thawed.wait()
        if reply.cut:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        if not reply.drip_s:
            return web.Response(status=reply.status, headers=reply.headers, body=reply.body)
        answer = web.StreamResponse(status=reply.status, headers=reply.headers)
        answer.content_length = len(reply.body)
        await answer.prepare(request)
        for byte in reply.body:
            await answer.write(bytes([byte]))
            await asyncio.sleep(reply.drip_s)
        return answer


@pytest.fixture
def endpoint():
    """A function that starts an endpoint; all of them end with the test."""
    started = []

    def start(script=lambda got: Reply(), **options):
        made = Endpoint(script, **options)
        started.append(made)
        return made.__enter__()

    yield start
    for one in started:
        one.__exit__()
