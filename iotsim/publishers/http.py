"""HTTP: an endpoint that takes one reading, or a batch of them, per POST."""

from __future__ import annotations

import math
import re
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self
from urllib.parse import quote, unquote_plus

from iotsim.errors import BadValue, MissingExtra
from iotsim.publishers.base import (
    UNTRACED,
    Identity,
    Limits,
    Link,
    Tracing,
    Verdicts,
    check_options,
    choice,
    flag,
    whole,
    with_defaults,
)
from iotsim.transport.addresses import Address
from iotsim.transport.credentials import Credentials
from iotsim.transport.tls import TLS, TLS_OPTIONS, take_tls

BATCH_MAX = 10_000
CONNECTIONS_MAX = 1000
TIMEOUT_S_MAX = 20.0  # beyond, a lane would take the connection for dead
BATCH_ID_FIELD = "_id"
CONNECTIONS, CONNECTIONS_OF_BATCHES = 8, 2  # the fewer, the fuller each batch
LINGER_S, LINGER_S_MAX = 0.1, 5.0
TOPIC_PLACES = ("query", "header", "path")
_HEADERS_BYTES_MAX = 16_384
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_OURS = frozenset({
    "connection", "content-length", "expect", "host", "idempotency-key", "iotsim-id-field",
    "iotsim-topic", "sent", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
_SAFE = "!$&'()*+,;=:@/?%-._~"
_DEFAULTS: dict[str, Any] = {
    "batch": 1,
    "body": "json",
    "connections": None,
    "linger_s": None,
    "headers": None,
    "timeout_s": 10.0,
    "probe": True,
    "credentials": None,
    "username": None,
    "password": None,
    "token": None,
    **TLS_OPTIONS,
}


@dataclass(frozen=True, slots=True)
class HttpPublisher:
    """An HTTP endpoint; readings are POSTed, each with an `Idempotency-Key`.

    Attributes
    ----------
    address : Address
    batch : int
        How many readings a request may hold; 1: the body is one JSON document. A batch gets
        `audit_field="_id"` unless another is given, because it has no other place for ids.
    body : {"json", "ndjson"}
        What a batch is: a JSON array, or one document per line.
    connections : int
        How many requests may run at a time (8, or 2 of batches); those of one device follow
        each other.
    linger_s : float
        How long a batch that is not full waits for more (0.1).
    topic_in : {"query", "header", "path"} or None
        Where the topic stands: `?topic=`, the header `Iotsim-Topic`, or levels after the path.
        None: nowhere, which is the default of batches; else a batch has one topic.
    headers : tuple of (name, value)
        Sent with every request; their values are not shown.
    timeout_s : float
        For one request, from connecting to the end of its answer.
    probe : bool
        Whether a HEAD request finds out if HTTP is spoken there; False: connecting is enough.
    """

    address: Address
    limits: Limits
    batch: int = 1
    body: str = "json"
    connections: int = CONNECTIONS
    linger_s: float = 0.0
    topic_in: str | None = "query"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timeout_s: float = 10.0
    probe: bool = True
    tls: TLS | None = None
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    tracing: Tracing = UNTRACED
    per_device: ClassVar[bool] = False

    @classmethod
    def build(cls, url: str, **options: Any) -> Self:
        """Return the publisher for a URL and options; see `publishers.base.build`."""
        scheme = url.partition(":")[0].lower()
        check_options(scheme, options, (*_DEFAULTS, "topic_in"))
        limits, tracing = Limits.take(options), Tracing.take(options)
        given = with_defaults(options, _DEFAULTS)
        secure = scheme == "https"
        address = Address.parse(url, 443 if secure else 80, path=True)
        tls = take_tls(given, secure=secure, scheme="https")
        if tls is not None:
            tls.context()  # an error now, and not when it connects
        batch = whole("batch", given["batch"], 1, BATCH_MAX)
        body = choice("body", given["body"], ("json", "ndjson"))
        if batch > 1 and not tracing.audit_field:
            tracing = replace(tracing, audit_field=BATCH_ID_FIELD)
        topic_in = options.get("topic_in", "query" if batch == 1 else None)
        if topic_in is not None:
            choice("topic_in", topic_in, TOPIC_PLACES)
        names = ("username", "password", "token")
        who = _usable(Credentials.take(given, address.credentials, "HTTP", names))
        headers = checked_headers(given["headers"])
        if who and any(name.lower() == "authorization" for name, _ in headers):
            raise BadValue("headers", "Authorization", "is given beside credentials",
                           "Give one of the two.")
        connections = given["connections"]
        if connections is None:
            connections = CONNECTIONS if batch == 1 else CONNECTIONS_OF_BATCHES
        return cls(
            address=address,
            limits=limits,
            batch=batch,
            body=body,
            connections=whole("connections", connections, 1, CONNECTIONS_MAX),
            linger_s=_linger(given["linger_s"], batch),
            topic_in=topic_in,
            headers=headers,
            timeout_s=_seconds("timeout_s", given["timeout_s"], 0.05, TIMEOUT_S_MAX),
            probe=flag("probe", given["probe"]),
            tls=tls,
            credentials=who,
            tracing=tracing,
        )

    @property
    def url(self) -> str:
        """The address, without credentials and query."""
        return str(self.address)

    @property
    def context(self) -> ssl.SSLContext | None:
        """A fresh client context, or None for plain TCP."""
        return None if self.tls is None else self.tls.context()

    @property
    def path(self) -> str:
        """The path as it stands on the wire."""
        return quote(self.address.path or "/", safe=_SAFE.replace("?", ""))

    @property
    def query(self) -> str:
        """The query as it stands on the wire; may hold a key."""
        return quote(self.address.query, safe=_SAFE)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that must not stand in what is shown of an answer."""
        who = self.credentials
        parts = [part.partition("=")[2] for part in self.address.query.split("&")]
        basic = b64encode(f"{who.username}:{who.password}".encode()).decode()
        parts += [unquote_plus(part) for part in parts]
        found = {basic, who.password, who.token, *parts, *(value for _, value in self.headers)}
        return tuple(sorted((text for text in found if len(text) > 3), key=len, reverse=True))

    def lanes(self, devices: int) -> int:
        """Return 1: one lane has all the connections."""
        return 1

    def link(
        self, lane: int, run_id: str, verdicts: Verdicts, device: Identity | None = None
    ) -> Link:
        """Return the link of a lane; raises MissingExtra if aiohttp is not installed."""
        try:
            from iotsim.publishers.http_link import HttpLink
        except ModuleNotFoundError:
            raise MissingExtra("publishing over HTTP", "aiohttp", "http") from None
        return HttpLink(self, f"{run_id}/{lane}", verdicts)


def checked_headers(given: Any) -> tuple[tuple[str, str], ...]:
    """Return headers as pairs, or raise without showing a value.

    Examples
    --------
    >>> checked_headers({"X-Site": "north"})
    (('X-Site', 'north'),)
    """
    if given is None:
        return ()
    allowed = "Give a mapping of names to text of visible ASCII and blanks."
    if not isinstance(given, Mapping):
        raise BadValue("headers", type(given), "is no mapping", allowed)
    for name, value in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise BadValue("headers", name, "is no name of a header", allowed)
        if name.lower() in _OURS:
            raise BadValue("headers", name, "is set by HTTP or by iotsim", "Leave it out.")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise BadValue(f"headers[{name!r}]", "…", "cannot be the value of a header", allowed)
    pairs = tuple((name, value.strip()) for name, value in given.items())
    if len({name.lower() for name, _ in pairs}) < len(pairs):
        raise BadValue("headers", [name for name, _ in pairs], "name one header twice", allowed)
    if sum(len(name) + len(value) for name, value in pairs) > _HEADERS_BYTES_MAX:
        raise BadValue("headers", "…", "are over 16,384 bytes", "Give fewer or shorter ones.")
    return pairs


def _usable(who: Credentials) -> Credentials:
    if who.token and (who.username or who.password):
        raise BadValue("token", "…", "is given beside username and password", "Give one of them.")
    if ":" in who.username:
        raise BadValue("username", who.username, "has a colon", "Basic authentication has no way "
                       "to send one.")
    if not (who.token.isascii() and who.token.isprintable() and " " not in who.token):
        raise BadValue("token", "…", "cannot stand in a header", "Give visible ASCII.")
    return who


def _linger(given: Any, batch: int) -> float:
    if batch == 1 and given is not None:
        raise BadValue("linger_s", given, "needs batches", "Give batch=100, say, or leave it out.")
    if batch == 1:
        return 0.0
    return LINGER_S if given is None else _seconds("linger_s", given, 0.0, LINGER_S_MAX)


def _seconds(name: str, given: Any, low: float, high: float) -> float:
    number = not isinstance(given, bool) and isinstance(given, int | float)
    if not number or not math.isfinite(given) or not low <= given <= high:
        raise BadValue(name, given, "cannot be used", f"Give seconds from {low:g} to {high:g}.")
    return float(given)
