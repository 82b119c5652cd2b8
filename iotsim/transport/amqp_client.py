"""aio-pika for those who listen: one connection that prints nothing, and why there is none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import aio_pika
import aiormq
from aio_pika.abc import AbstractConnection

from iotsim.transport.addresses import failure_text
from iotsim.transport.probing import WrongPeer, found
from iotsim.transport.tls import TLS

CONNECT_S = 4.0
HEARTBEAT_S = 2
# What it says of failed connections is raised, too, and would stand on the terminal of who logs
# nothing; where somebody does, it still arrives.
logging.getLogger("aiormq").addHandler(logging.NullHandler())
logging.getLogger("aio_pika").addHandler(logging.NullHandler())


class _Connection(aio_pika.Connection):
    """A connection that somebody closes: aio-pika's begins a task where nothing runs any more."""

    def __del__(self) -> None:
        """Do nothing."""


async def connected(settings: Mapping[str, Any], name: str) -> AbstractConnection:
    """Return a connection; raises OSError, TimeoutError or what aiormq has."""
    tls = None if settings["tls"] is None else TLS(**settings["tls"])
    ways, user = ["plain"], settings["username"]
    if not user and tls is not None and tls.cert is not None:
        ways = ["external", "plain"]
    for way in ways:
        try:
            async with asyncio.timeout(CONNECT_S):
                connection: AbstractConnection = await aio_pika.connect(
                    host=settings["host"], port=settings["port"],
                    virtualhost=settings["vhost"], login=user or "guest",
                    password=settings["password"] if user else "guest", ssl=tls is not None,
                    ssl_context=None if tls is None else tls.context(), heartbeat=HEARTBEAT_S,
                    auth=way, name=name, connection_class=_Connection,
                )  # fmt: skip
                return connection
        except (aiormq.exceptions.AuthenticationError, NotImplementedError):
            if way == ways[-1]:
                raise
        except (aiormq.AMQPError, OSError, TimeoutError, ValueError) as error:
            if tls is None and not isinstance(error.__cause__, OSError):
                why = await found("AMQP", settings["host"], settings["port"])
                if why:
                    raise WrongPeer(why) from None
            raise
    raise AssertionError("one of the ways returns or raises")


def words(error: BaseException) -> str:
    """Return why there is no connection."""
    if isinstance(error, WrongPeer):
        return str(error)
    if isinstance(error, TimeoutError):
        return "it accepts the connection but does not answer"
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, OSError) and "ACCESS_REFUSED" not in text:
        # aiormq's connection errors are some.
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        return failure_text(cause).rstrip(".")
    if "Connection.OpenOk" in text:  # aiormq does not pass on what the broker said
        return "the broker refused us: is there such a vhost, and may we use it?"
    return f"the broker refused us: {text}"
