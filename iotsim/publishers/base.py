"""What every protocol is made of: a publisher, one link per lane, and the link's verdicts.

A `Publisher` is built from a URL and options, opens nothing, and makes one `Link` per lane. The
lane (see `lane`) owns queue, window, in-flight store, retry and reconnection; the link only
knows its protocol and reports to its `Verdicts` what became of each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, cast, get_args

from iotsim.errors import BadValue, UnknownName
from iotsim.registry import PUBLISHERS, resolve
from iotsim.transport.addresses import redacted

Item: TypeAlias = tuple[str, bytes, str, float]  # topic, payload, id, first handed over at (s)
Blame: TypeAlias = Literal["message", "cut", "other"]
Backpressure: TypeAlias = Literal["block", "drop_oldest", "slow_down"]

QUEUE_MESSAGES = 10_000
QUEUE_MESSAGES_MAX = 10_000_000


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a link ended, and whether a message may have been the cause.

    `blame` is "message" if the peer said so, "cut" if it closed without a word, "other" if the
    cause lies elsewhere (a deadline of ours, a broker that shuts down).
    """

    why: str
    blame: Blame = "other"


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a lane: how many messages it queues, and what happens beyond.

    A lane under "slow_down" behaves as under "block"; whoever drives the devices looks at
    `Pump.fill` and lets them publish less before it comes to that.
    """

    queue_messages: int = QUEUE_MESSAGES
    backpressure: Backpressure = "block"

    @classmethod
    def take(cls, options: dict[str, Any]) -> Limits:
        """Return the limits among a publisher's options, and remove them from there."""
        count = options.pop("queue_messages", QUEUE_MESSAGES)
        policy = options.pop("backpressure", "block")
        return cls(
            whole("queue_messages", count, 1, QUEUE_MESSAGES_MAX), checked_backpressure(policy)
        )


@dataclass(frozen=True, slots=True)
class Tracing:
    """What messages carry beside the reading, so that what arrives can be compared.

    Attributes
    ----------
    audit_field : str
        A key of the JSON document that gets the message id, for protocols that have no place
        for it; empty: none.
    stamp : bool
        Whether each message says when it was handed over (wall clock, µs since 1970), in a
        header or user property called "sent".
    """

    audit_field: str = ""
    stamp: bool = False

    @classmethod
    def take(cls, options: dict[str, Any], *, can_stamp: bool = True) -> Tracing:
        """Return the tracing among a publisher's options, and remove it from there.

        Where messages have no place for a stamp, `stamp=True` is a BadValue.
        """
        name = options.pop("audit_field", None)
        stamp = flag("stamp", options.pop("stamp", False))
        if stamp and not can_stamp:
            raise BadValue("stamp", stamp, "has no place in messages of this protocol",
                           "Leave it out: latency then counts from the timestamp.")
        if name is None:
            return cls("", stamp)
        if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= 64:
            raise BadValue("audit_field", name, "cannot be a key", "Give a name such as '_seq'.")
        if name in PAYLOAD_KEYS:
            raise BadValue("audit_field", name, "is a key of every message already",
                           "Give another one, such as '_seq'.")
        return cls(name, stamp)


UNTRACED = Tracing()
PAYLOAD_KEYS = ("device_id", "device_type", "timestamp", "fields", "labels")
COMMON_OPTIONS = ("queue_messages", "backpressure", "audit_field", "stamp")


@dataclass(frozen=True, slots=True)
class Identity:
    """A device that has a session of its own, under its own name."""

    device_id: str
    device_type: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class Verdicts(Protocol):
    """What a link reports to its lane; every call is synchronous, on the lane's loop."""

    def acknowledged(self, tokens: Sequence[int]) -> None:
        """Take what the peer took (or, without acknowledgements, the client)."""

    def refused(self, tokens: Sequence[int], reason: str, *, retry: bool = False) -> None:
        """Take what was not taken; `retry` if the same message may be taken later."""

    def returned(self, tokens: Sequence[int], rest_s: float = 0.0) -> None:
        """Take back what was not taken: it goes out again before everything newer.

        For a link that keeps the messages of one device one after the other: when the first
        must wait (`refused` with `retry`), those behind it come back untried. Also for a link
        that counts tries itself; nothing is handed over for `rest_s`, if the peer asked for it.
        """

    def uncertain(self, tokens: Sequence[int], reason: str = "") -> None:
        """Take back what was written and got no verdict, while the link lives.

        It is unknown until it goes out again, under the same id, before everything newer. With
        a reason it counts as a try, and after 8 of them the message is refused for it; without
        one, the link counts itself.
        """

    def lost(self, loss: Loss) -> None:
        """Take the end of a link that was not asked to end; nothing more comes from it."""

    def ready(self) -> None:
        """Take the news that a link whose `send` returned False has room again."""

    def notice(self, text: str) -> None:
        """Take a line about what the peer does that ends no message."""


class Link(Protocol):
    """One connection, opened again after each loss; keeps its session over that.

    Attributes
    ----------
    pipelines : bool
        Whether a device may have several messages in flight, so that one that is refused for now
        may be overtaken; the lane then counts that, and lets devices go one by one for a while.
    """

    pipelines: bool = False

    async def open(self) -> int:
        """Connect, and return how many messages may be in flight.

        Raises
        ------
        ConnectError
            If there is no connection within a deadline of its own.
        """

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        """Hand messages to the client in one write; True if it takes more at once.

        Never waits. A token that was sent before is a replay. Verdicts may come before it
        returns.
        """

    def passed_over(self, tokens: Iterable[int]) -> None:
        """Take that messages which the lane took back will not come again."""
        return

    def drop(self) -> None:
        """End the connection at once; no verdict comes after it."""

    async def close(self) -> None:
        """Say goodbye, flush and end the connection; a deadline of its own bounds it."""


class Publisher(Protocol):
    """A destination: where, how, with which limits. Its repr shows no secret."""

    @property
    def url(self) -> str:
        """The address, without secrets."""

    @property
    def limits(self) -> Limits:
        """What bounds each lane."""

    @property
    def tracing(self) -> Tracing:
        """What messages carry beside the reading."""

    @property
    def per_device(self) -> bool:
        """Whether each device has a connection of its own."""

    def lanes(self, devices: int) -> int:
        """Return how many connections so many devices have, shared or one each; raises BadValue."""

    def link(
        self, lane: int, run_id: str, verdicts: Verdicts, device: Identity | None = None
    ) -> Link:
        """Return the link of one lane, for one device where it has its own; not connected."""


class OwnSessions(Publisher, Protocol):
    """A publisher that may have `per_device`.

    Several devices may share a session, as the sensors of a gateway do: a publisher then has
    `session_of(device_id) -> str`, and its identities are called by that. One whose messages are
    not the usual documents has `encoder(run_id)`. One of whose sessions some may fail at the start,
    and come later, is `tolerant`.
    """

    def check_device(self, device: Identity) -> None:
        """Raise BadValue if a device cannot be who it should be, as without its certificate."""


def session_of(publisher: Publisher, device_id: str) -> str:
    """Return the name of the session that a device publishes over: its own id, or another's."""
    named: Callable[[str], str] | None = getattr(publisher, "session_of", None)
    return device_id if named is None else named(device_id)


def build(url: str, **options: Any) -> Publisher:
    """Return the publisher that a URL and its options stand for; nothing is opened.

    Parameters
    ----------
    url : str
        `mqtt://host:1883`, `amqp://host/vhost`, `nats://host`, `nats+jetstream://host`,
        `http://host/path`, `coap://host`, each with TLS too (`mqtts`, `amqps`, `nats+tls`,
        `nats+jetstream+tls`, `https`, `coaps`), or `memory:name`, `console:`, `file:out.ndjson`.
    **options
        What the protocol offers; every protocol has `queue_messages` and `backpressure`.

    Raises
    ------
    UnknownName
        If the scheme or an option is unknown; the text lists those there are.
    BadValue
        If a value cannot be used.

    Examples
    --------
    >>> build("memory:readings").url
    'memory:readings'
    """
    if not isinstance(url, str) or ":" not in url or redacted(url).startswith("***@"):
        given = redacted(url) if isinstance(url, str) else url
        raise BadValue("url", given, "has no scheme", f"Known: {', '.join(sorted(PUBLISHERS))}.")
    scheme = url.partition(":")[0].lower()
    kind = resolve(PUBLISHERS, scheme, "publisher")
    return cast(Publisher, kind.build(url, **options))


def check_options(scheme: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise if an option is none of those that the scheme knows."""
    allowed = sorted({*known, *COMMON_OPTIONS})
    for name in options:
        if name not in allowed:
            raise UnknownName(f"{scheme} option", name, allowed)


def checked_backpressure(value: Any) -> Backpressure:
    """Return a back-pressure policy, or raise."""
    return cast(Backpressure, choice("backpressure", value, get_args(Backpressure)))


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """Return a value that must be one of a few words, or raise."""
    if value not in allowed:
        raise BadValue(name, value, "is unknown", f"Use one of: {', '.join(allowed)}.")
    return str(value)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number within bounds, or raise."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        allowed = f"Give a whole number from {low:,} to {high:,}."
        raise BadValue(name, value, "cannot be used", allowed)
    return value


def flag(name: str, value: Any) -> bool:
    """Return True or False, or raise."""
    if not isinstance(value, bool):
        raise BadValue(name, value, "is not a yes or no", "Give True or False.")
    return value


def text(name: str, value: Any) -> str | None:
    """Return text or None, or raise without showing what was given."""
    if value is not None and not isinstance(value, str):
        raise BadValue(name, type(value), "is not text", "Give a str.")
    return value


def with_defaults(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults with the given options over them."""
    return {**defaults, **options}
