"""The services' own connections to the lab's NATS server, by nats-py."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client

from iotsim.errors import ConnectError, told
from iotsim.lab.authority import Pair
from iotsim.logs import say

CONNECT_S = 10.0
CLOSE_S = 2.0
AGAIN_S = 0.1


class QuietClient(Client):
    """A client of which asyncio does not complain when the server closes a connection of TLS."""

    async def _process_connect_init(self) -> None:
        await super()._process_connect_init()
        # nats-py does not tell its streams that they are over TLS.
        writer = getattr(self._transport, "_io_writer", None)
        protocol: Any = getattr(writer, "_protocol", None)
        if hasattr(protocol, "_over_ssl"):
            protocol._over_ssl = True


def context_of(ca: Path, pair: Pair) -> ssl.SSLContext:
    """Return a client context of TLS 1.3; the platform's certificates name no authority's key."""
    context = ssl.create_default_context(cafile=str(ca))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(pair.cert, pair.key)
    return context


async def connected(
    port: int, name: str, context: ssl.SSLContext, back: Callable[[], None] | None = None
) -> Client:
    """Return a connection of a service that is made again for ever.

    Parameters
    ----------
    port : int
    name : str
        Of the service.
    context : SSLContext
    back : callable, optional
        Called each time the connection has been made again.

    Raises
    ------
    ConnectError
        If there is none within ten seconds.
    """
    async def complain(error: Exception) -> None:
        say(logging.DEBUG, "lab", f"NATS, {name}: {told(error)}", {"service": name})

    async def returned() -> None:
        if back is not None:
            back()

    url = f"tls://127.0.0.1:{port}"
    options: dict[str, Any] = {
        "name": name, "tls": context, "tls_hostname": "127.0.0.1", "error_cb": complain,
        "reconnected_cb": returned, "max_reconnect_attempts": -1, "reconnect_time_wait": AGAIN_S,
        "connect_timeout": 2, "ping_interval": 5, "pending_size": 8 * 1024 * 1024,
    }  # fmt: skip
    try:
        async with asyncio.timeout(CONNECT_S):
            connection = QuietClient()
            await connection.connect(url, **options)
            return connection
    except (OSError, TimeoutError, nats.errors.Error) as error:
        raise ConnectError(url, f"{name}: {told(error)}", verb="use") from None


async def closed(connection: Client | None) -> None:
    """Close a connection, for as long as that may take and no longer."""
    if connection is None:
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            await connection.close()
    except (OSError, TimeoutError, AttributeError, nats.errors.Error):
        pass  # nats-py stumbles over a transport that ended while it connects again
