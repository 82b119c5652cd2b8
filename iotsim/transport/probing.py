"""What speaks at an address where a client library found no sense in the answer."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from iotsim.clock import monotonic

PROBE_S = 1.0  # for the connection and the first words
HELLO = {  # what makes a server of the protocol, or of another one, say something
    "MQTT": bytes.fromhex("100f00044d51545404020005000369737a"),  # CONNECT of MQTT 3.1.1
    "AMQP": b"AMQP\x00\x00\x09\x01",
    "NATS": b"",
}
_BEGINNINGS = {"MQTT": (b"\x20",), "AMQP": (b"AMQP", b"\x01"), "NATS": (b"INFO", b"-ERR")}
_TLS_ALERT = b"\x15\x03"


class WrongPeer(ConnectionError):
    """What answers there is not what was looked for; its text says so."""


def judged(protocol: str, said: bytes) -> str:
    """Return why these are not the first words of a server, empty if they are or there are none.

    Examples
    --------
    >>> judged("MQTT", b"SSH-2.0-OpenSSH_9.2")
    "it does not speak MQTT: it sent b'SSH-2.0-OpenSSH_'"
    """
    if not said or said.startswith(_BEGINNINGS[protocol]):
        return ""
    if said.startswith(_TLS_ALERT):
        return f"it speaks TLS, and this is the scheme of plain {protocol}"
    return f"it does not speak {protocol}: it sent {said[:16]!r}"


def what_speaks(protocol: str, host: str, port: int, limit_s: float = PROBE_S) -> str:
    """Return why it is no server of the protocol, empty if it may be one; blocks for `limit_s`.

    It connects once more, without TLS, and says nothing of who we are.
    """
    until_s, said = monotonic() + limit_s, b""
    with suppress(OSError), socket.create_connection((host, port), limit_s) as peer:
        if HELLO[protocol]:
            peer.sendall(HELLO[protocol])
        while len(said) < 4:
            peer.settimeout(max(0.01, until_s - monotonic()))
            more = peer.recv(64)
            if not more:
                break
            said += more
    return judged(protocol, said)


async def found(protocol: str, host: str, port: int) -> str:
    """Return what `what_speaks` does, without blocking the loop."""
    return await asyncio.to_thread(what_speaks, protocol, host, port)
