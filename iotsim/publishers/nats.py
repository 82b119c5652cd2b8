"""NATS: what may be set, for publishing to subjects (core) and to streams (JetStream)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from iotsim.errors import BadValue, MissingExtra
from iotsim.publishers.base import (
    UNTRACED,
    Identity,
    Limits,
    Link,
    Tracing,
    Verdicts,
    check_options,
    flag,
    text,
    whole,
    with_defaults,
)
from iotsim.publishers.nats_greeting import CREDENTIALS, read_creds
from iotsim.transport.addresses import Address
from iotsim.transport.credentials import Credentials
from iotsim.transport.tls import TLS, TLS_OPTIONS, take_tls

PORT = 4222
DEVICES_PER_LANE = 250_000
LANES_MAX = 4
WINDOW = {"nats": 32_768, "nats+jetstream": 4_000}
_DEFAULTS: dict[str, Any] = {
    "connections": None,
    "keepalive": 10,
    "window": None,
    "client_name": "iotsim",
    "ids": True,
    "tls_first": False,
    "credentials": None,
    "username": None,
    "password": None,
    "token": None,
    "creds": None,
    **TLS_OPTIONS,
}
_OWN: dict[str, dict[str, Any]] = {
    "nats": {"fence": True},
    "nats+jetstream": {"stream": None, "ordered": True, "ack_wait_s": 5.0},
}


@dataclass(frozen=True, slots=True)
class NatsPublisher:
    """A NATS server; devices share a few connections. A topic's "/" are "." in its subject.

    A topic has either "/" or "." between its parts. What would change a subject (blank, "*",
    ">", a "." within a part) is refused, message by message, and never written.

    Attributes
    ----------
    address : Address
        One server: others that it knows of are not used.
    jetstream : bool
        Whether streams acknowledge (`nats+jetstream://`).
    connections : int or None
        None is one for every 250,000 devices, at most 4.
    keepalive : int
        Seconds.
    window : int
        How many messages a connection has in flight; 4,000 with JetStream.
    client_name : str
        Prefix of the names `<prefix>-<run id>-<lane>` that the server shows.
    ids : bool
        Whether messages have their id in the header Nats-Msg-Id; with JetStream they do.
    fence : bool
        Core: whether a message counts as acknowledged when the server has read it, as the answer
        to a PING behind it proves. Otherwise it does when it is handed to the transport.
    stream : str or None
        JetStream: the stream that must take the messages; it must be there.
    ordered : bool
        JetStream: whether a device has one message in flight at a time. Otherwise its messages
        may change places when a stream that is full takes some again; that is counted
        (`overtaken`), and for half a minute devices then go one by one after all.
    ack_wait_s : float
        JetStream: after so many seconds without an answer to the oldest message the connection
        is made anew, and all without an answer are sent again, under the same ids.
    tls_first : bool
        Whether TLS begins before the server's first word.
    tls : TLS or None
        None for plain TCP.
    """

    address: Address
    limits: Limits
    jetstream: bool = False
    connections: int | None = None
    keepalive: int = 10
    window: int = WINDOW["nats"]
    client_name: str = "iotsim"
    ids: bool = True
    fence: bool = True
    stream: str | None = None
    ordered: bool = True
    ack_wait_s: float = 5.0
    tls_first: bool = False
    tls: TLS | None = None
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    tracing: Tracing = UNTRACED
    per_device: ClassVar[bool] = False

    @classmethod
    def build(cls, url: str, **options: Any) -> Self:
        """Return the publisher for a URL and options; see `publishers.base.build`."""
        scheme = url.partition(":")[0].lower()
        family, secure = scheme.removesuffix("+tls"), scheme.endswith("+tls")
        defaults = {**_DEFAULTS, **_OWN[family]}
        check_options(scheme, options, defaults)
        limits, tracing = Limits.take(options), Tracing.take(options)
        given = with_defaults(options, defaults)
        address = address_of(url)
        if given["connections"] is not None:
            whole("connections", given["connections"], 1, 1000)
        window = WINDOW[family] if given["window"] is None else given["window"]
        jetstream = family == "nats+jetstream"
        if jetstream and flag("ids", given["ids"]) is False:
            raise BadValue("ids", False, "would store a message twice that is sent again",
                           "Leave it out.")
        tls = take_tls(given, secure=secure, scheme=f"{family}+tls")
        if flag("tls_first", given["tls_first"]) and tls is None:
            raise BadValue("tls_first", True, "needs TLS", f"Use {family}+tls:// in the URL.")
        if tls is not None:
            tls.context()  # an error now, and not when it connects
        return cls(
            address=address,
            limits=limits,
            jetstream=jetstream,
            connections=given["connections"],
            keepalive=whole("keepalive", given["keepalive"], 2, 3600),
            window=whole("window", window, 1, 1_000_000),
            client_name=_name("client_name", given["client_name"]),
            ids=flag("ids", given["ids"]),
            fence=flag("fence", given.get("fence", True)),
            stream=checked_stream(given.get("stream")),
            ordered=flag("ordered", given.get("ordered", True)),
            ack_wait_s=_seconds("ack_wait_s", given.get("ack_wait_s", 5.0)),
            tls_first=given["tls_first"],
            tls=tls,
            credentials=_credentials(given, address),
            tracing=tracing,
        )

    @property
    def url(self) -> str:
        """The address, without user, password and token."""
        return str(self.address)

    @property
    def context(self) -> ssl.SSLContext | None:
        """A fresh client context, or None for plain TCP."""
        return None if self.tls is None else self.tls.context()

    def lanes(self, devices: int) -> int:
        """Return how many connections so many devices share."""
        if self.connections is not None:
            return self.connections
        return min(max(1, -(-devices // DEVICES_PER_LANE)), LANES_MAX)

    def link(
        self, lane: int, run_id: str, verdicts: Verdicts, device: Identity | None = None
    ) -> Link:
        """Return the link of one lane; raises MissingExtra where credentials need a library."""
        name = f"{self.client_name}-{run_id}-{lane}"
        if self.jetstream:
            from iotsim.publishers.nats_jetstream import JetStreamLink

            return JetStreamLink(self, name, verdicts)
        from iotsim.publishers.nats_session import NatsLink

        return NatsLink(self, name, verdicts)


def address_of(url: str) -> Address:
    """Return the address in a URL; a name without a password in it is a token."""
    address = Address.parse(url, PORT)
    who = address.credentials
    if who.username and not who.password:
        return replace(address, credentials=Credentials(token=who.username))
    return address


def checked_stream(value: Any) -> str | None:
    """Return the name of a stream or None, or raise BadValue."""
    stream = text("stream", value)
    if stream is not None and (
        not stream.isascii() or not stream.isprintable() or not 1 <= len(stream) <= 255
        or any(sign in stream for sign in " .*>/\\")
    ):
        why = "cannot be the name of a stream"
        raise BadValue("stream", stream, why, "Give ASCII without blanks and . * > / \\.")
    return stream


def _credentials(given: dict[str, Any], address: Address) -> Credentials:
    who = Credentials.take(given, address.credentials, "NATS", CREDENTIALS)
    if who.creds:
        read_creds(who.creds)  # an error now, and not when it connects
        try:
            import nkeys  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtra("creds= of NATS", "nkeys", "nats") from None
    return who


def _name(option: str, value: Any) -> str:
    name = text(option, value)
    if not name or not name.isprintable() or len(name) > 64:
        raise BadValue(option, value, "cannot be a name", "Give up to 64 printable letters.")
    return name


def _seconds(option: str, value: Any) -> float:
    allowed = "Give a number of seconds from 0.5 to 3,600."
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.5 <= value <= 3600:
        raise BadValue(option, value, "cannot be used", allowed)
    return float(value)
