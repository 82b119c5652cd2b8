"""AMQP 0-9-1: what may be set; a session of our own over the `pamqp` codec carries it."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self
from urllib.parse import unquote

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
from iotsim.transport.addresses import Address
from iotsim.transport.credentials import Credentials
from iotsim.transport.tls import TLS, TLS_OPTIONS, take_tls

EXCHANGE = "iot.telemetry"
DEVICES_PER_LANE = 50_000  # a connection's channel is one process at the broker
LANES_MAX = 8
WINDOW = 1024  # more is no faster on a broker at its limit, and lies about longer
_NAME = re.compile(r"[a-zA-Z0-9\-_.:@#,/+ ]{0,127}")
_KIND = re.compile(r"topic|direct|fanout|headers|x-[a-z\-]{1,100}")
_NAME_ALLOWED = "Give up to 127 letters, digits, blanks and any of -_.:@#,/+"
_DEFAULTS: dict[str, Any] = {
    "exchange": EXCHANGE,
    "exchange_type": "topic",
    "declare": True,
    "separator": "/",
    "persistent": True,
    "mandatory": None,
    "confirms": True,
    "strict_order": None,
    "heartbeat": 5,
    "connections": None,
    "window": WINDOW,
    "credentials": None,
    "username": None,
    "password": None,
    **TLS_OPTIONS,
}


@dataclass(frozen=True, slots=True)
class AmqpPublisher:
    """An exchange of an AMQP 0-9-1 broker such as RabbitMQ.

    The routing key is the topic as it is: with `topic="devices.{device_id}.telemetry"` a queue
    may be bound with `devices.*.telemetry`. Where topics are written with slashes,
    `separator="."` turns them into dots.

    Attributes
    ----------
    address : Address
    vhost : str
    exchange : str
        "" is the broker's own, which takes the name of a queue as routing key.
    exchange_type : str
        "topic", "direct", "fanout", "headers", or what a plugin offers ("x-...").
    declare : bool
        True: the exchange is made, durable, if it is not there. False: it must be there.
    separator : str
        What a "/" of the topic becomes in the routing key.
    persistent : bool
        Whether messages outlive the broker (where their queue does).
    mandatory : bool
        Whether a message that no queue takes is refused; else it is gone, and acknowledged.
    confirms : bool
        Whether the broker acknowledges each message; else it counts once it is written.
    strict_order : bool
        True (the default with confirms): each device has one message under way, so that none
        overtakes one that a full queue rejected. False: a device's messages follow each other
        at once, which is faster for few devices far away; one by one only after a rejection.
    heartbeat : int
        Seconds of silence after which a connection is dead.
    connections : int or None
        None is one for every 50,000 devices, at most 8.
    window : int
        How many messages of a connection may be under way.
    tls : TLS or None
        None for plain TCP.
    """

    address: Address
    limits: Limits
    vhost: str = "/"
    exchange: str = EXCHANGE
    exchange_type: str = "topic"
    declare: bool = True
    separator: str = "/"
    persistent: bool = True
    mandatory: bool = True
    confirms: bool = True
    strict_order: bool = True
    heartbeat: int = 5
    connections: int | None = None
    window: int = WINDOW
    tls: TLS | None = None
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    tracing: Tracing = UNTRACED
    per_device: ClassVar[bool] = False

    @classmethod
    def build(cls, url: str, **options: Any) -> Self:
        """Return the publisher for a URL and options; see `publishers.base.build`."""
        scheme = url.partition(":")[0].lower()
        check_options(scheme, options, _DEFAULTS)
        limits, tracing = Limits.take(options), Tracing.take(options)
        given = with_defaults(options, _DEFAULTS)
        address, vhost = address_of(url)
        if given["connections"] is not None:
            whole("connections", given["connections"], 1, 1000)
        tls = take_tls(given, secure=scheme == "amqps", scheme="amqps")
        if tls is not None:
            tls.context()  # an error now, and not when it connects
        confirms = flag("confirms", given["confirms"])
        return cls(
            address=address,
            limits=limits,
            vhost=vhost,
            exchange=checked_name("exchange", given["exchange"]),
            exchange_type=checked_kind(given["exchange_type"]),
            declare=flag("declare", given["declare"]),
            separator=_checked_separator(given["separator"]),
            persistent=flag("persistent", given["persistent"]),
            mandatory=_checked_with(confirms, "mandatory", given),
            confirms=confirms,
            strict_order=_checked_with(confirms, "strict_order", given),
            heartbeat=whole("heartbeat", given["heartbeat"], 2, 3600),
            connections=given["connections"],
            window=whole("window", given["window"], 1, 65_535),
            tls=tls,
            credentials=Credentials.take(
                given, address.credentials, "AMQP", ("username", "password")
            ),
            tracing=tracing,
        )

    @property
    def url(self) -> str:
        """The address with the vhost, without user and password."""
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
        """Return the link of one lane; raises MissingExtra if the codec is not installed."""
        try:
            from iotsim.publishers.amqp_link import AmqpLink
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "iotsim":
                raise
            raise MissingExtra("publishing over AMQP", "aio-pika", "amqp") from None
        return AmqpLink(self, f"iotsim-{run_id}-{lane}", verdicts)


def address_of(url: str) -> tuple[Address, str]:
    """Return the address that a URL names, and the vhost: "/" if it names none.

    Raises
    ------
    BadValue
        If one of them cannot be.

    Examples
    --------
    >>> address_of("amqp://broker/plant%2Fnorth")[1]
    'plant/north'
    """
    scheme = url.partition(":")[0].lower()
    address = Address.parse(url, 5671 if scheme == "amqps" else 5672, path=True)
    if address.query:
        raise BadValue("url", str(address), "has a query", "Options are keyword arguments.")
    vhost = unquote(address.path[1:]) or "/"
    return address, checked_name("vhost", vhost)


def checked_name(name: str, value: Any) -> str:
    """Return the name of an exchange, a queue or a vhost, or raise."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadValue(name, value, "is no name in AMQP", _NAME_ALLOWED)
    return value


def checked_kind(value: Any) -> str:
    """Return a type of exchange, or raise."""
    if not isinstance(value, str) or not _KIND.fullmatch(value):
        raise BadValue("exchange_type", value, "is unknown",
                       "Use one of: topic, direct, fanout, headers, or a plugin's x-….")
    return value


def _checked_separator(value: Any) -> str:
    if not text("separator", value) or len(value) > 8 or not value.isprintable():
        raise BadValue("separator", value, "cannot be used",
                       "Give '.', or '/' to leave topics as they are.")
    return str(value)


def _checked_with(confirms: bool, name: str, given: Mapping[str, Any]) -> bool:
    # Both look at what the broker says of a message before it counts as sent.
    if given[name] is None:
        return confirms
    if flag(name, given[name]) and not confirms:
        raise BadValue(name, True, "needs confirms", "Leave one of the two out.")
    return bool(given[name])
