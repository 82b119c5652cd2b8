"""The pool of connections behind a link: how it is opened, ended, and what its errors mean."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import Any

import aiohttp

from iotsim.publishers.http import HttpPublisher
from iotsim.transport.addresses import failure_text, redacted

CONNECT_S = 4.0
CLOSE_S = 0.4
BODY_BYTES_MAX = 65_536


def opened(
    publisher: HttpPublisher, headers: dict[str, str]
) -> tuple[aiohttp.ClientSession, set[socket.socket]]:
    """Return a session without connections, and the set of the sockets that it will have."""
    sockets: set[socket.socket] = set()

    def made(info: Any) -> socket.socket:
        for old in [one for one in sockets if one.fileno() < 0]:
            sockets.discard(old)
        fresh = socket.socket(*info[:3])
        sockets.add(fresh)
        return fresh

    connector = aiohttp.TCPConnector(
        limit=publisher.connections, ssl=publisher.context or True, socket_factory=made
    )
    session = aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        skip_auto_headers=("Accept", "Accept-Encoding"),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        # Deadlines of ours bound each request; this one tells what was not even written.
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=min(CONNECT_S, 0.8 * publisher.timeout_s)
        ),
    )
    return session, sockets


async def body_of(answer: aiohttp.ClientResponse, deadline_s: float) -> bytes:
    """Return the beginning of an answer's body; a connection with too much of it is closed."""
    start, content = b"", answer.content
    if content.is_eof():
        start = content.read_nowait(-1)[:1000]
        answer.release()
        return start
    try:
        async with asyncio.timeout(deadline_s):
            size = 0
            while chunk := await content.readany():
                size += len(chunk)
                start = start or chunk[:1000]
                if size > BODY_BYTES_MAX:
                    break
    except (aiohttp.ClientError, OSError):
        pass
    finally:
        answer.release()  # and closed, if it is not at its end
    return start


async def ended(session: aiohttp.ClientSession) -> None:
    """Close a session, within a deadline."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await session.close()
    except TimeoutError:
        pass


def shut(sockets: set[socket.socket]) -> None:
    """End connections at once: a transport waits for ever to write what nobody reads."""
    for one in sockets:
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
    sockets.clear()


def elsewhere(answer: aiohttp.ClientResponse) -> str:
    """Return where a redirect points to, without user and query."""
    place = redacted(answer.headers.get("Location", ""))
    return "".join(c if c.isprintable() else "?" for c in place)[:80] or "no Location"


def why_not(error: BaseException) -> str:
    """Return in a few words why there is no answer; never the URL, which may hold a key."""
    cause = error.__cause__
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return failure_text(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return failure_text(error.os_error)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "the address does not answer"
    if isinstance(error, TimeoutError):
        return "no answer to a request in time"
    if isinstance(cause, ssl.SSLError):
        return failure_text(cause)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection ended without an answer in HTTP"
    if isinstance(error, ConnectionResetError) or getattr(error, "errno", None) == errno.ECONNRESET:
        return "the peer reset the connection"
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        return "what answers there does not speak HTTP"
    if isinstance(error, aiohttp.ClientError) and not isinstance(error, OSError):
        return f"the request could not be made ({type(error).__name__})"  # its text has the URL
    return failure_text(error)
