"""nats-py for those who listen: one connection, and never a word of who we are without TLS.

nats-py goes on in plain text where TLS was asked for and the server does not insist on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from nats.aio.client import Client
from nats.errors import Error

from iotsim.publishers.nats_greeting import read_creds
from iotsim.transport.probing import WrongPeer, found
from iotsim.transport.tls import TLS

CONNECT_S = 4
_NAMES = {"username": "user", "password": "password", "token": "token"}

Told: TypeAlias = "Callable[[Exception], Awaitable[None]]"
Ended: TypeAlias = "Callable[[], Awaitable[None]]"


class CarefulClient(Client):
    """A client that gives up where TLS and the server's wish do not fit."""

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except Error:
            where = self._current_server.uri if self._current_server is not None else None
            if where is None or self._server_info:
                raise
            why = await found("NATS", str(where.hostname), int(where.port or 0))
            raise WrongPeer(why or "it does not speak NATS") from None

    async def _process_info(
        self, info: dict[str, Any], initial_connection: bool = False
    ) -> None:
        if initial_connection and not self.options["tls_handshake_first"]:
            wanted = bool(self.options.get("tls"))
            if wanted and info.get("tls_available"):
                info["tls_required"] = True  # else nats-py does not take the offer
            if wanted and not info.get("tls_required"):
                raise WrongPeer("the server offers no TLS: use the scheme without +tls")
            if info.get("tls_required") and not wanted:
                raise WrongPeer("the server wants TLS: use the scheme with +tls")
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        # Whatever else changes in nats-py: this is where the password goes out.
        writer = getattr(self._transport, "_io_writer", None)
        secure = writer is not None and writer.get_extra_info("ssl_object") is not None
        if self.options.get("tls") and not secure:
            raise WrongPeer("the connection is not secure, though TLS was asked for")
        return super()._connect_command()


def options_of(
    settings: Mapping[str, Any], name: str, complained: Told, ended: Ended
) -> dict[str, Any]:
    """Return what nats-py needs for one connection that is not made again by itself."""
    secure = settings["tls"] is not None
    made: dict[str, Any] = {
        "servers": [f"{'tls' if secure else 'nats'}://{settings['authority']}"],
        "name": name, "allow_reconnect": False, "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0.1,
        "connect_timeout": CONNECT_S, "error_cb": complained, "closed_cb": ended,
        "disconnected_cb": ended,
    }  # fmt: skip
    made |= {their: settings[ours] for ours, their in _NAMES.items() if settings[ours]}
    if settings["creds"]:
        key = "user_credentials" if read_creds(settings["creds"])[0] else "nkeys_seed"
        made[key] = settings["creds"]
    if secure:
        made |= {"tls": TLS(**settings["tls"]).context(), "tls_hostname": settings["host"],
                 "tls_handshake_first": settings["tls_first"]}
    return made
