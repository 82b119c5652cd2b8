"""What a tap was asked for, and how it becomes the plain values that its process gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from iotsim.errors import BadValue, MissingExtra, UnknownName
from iotsim.publishers.base import choice, whole
from iotsim.registry import TAPS, resolve
from iotsim.transport.addresses import Address
from iotsim.transport.credentials import NAMES, UNSENDABLE, Credentials
from iotsim.transport.discretion import Hidden
from iotsim.transport.tls import TLS_OPTIONS, take_tls

CAPACITY = 1_000_000
SECURITY_OPTIONS: dict[str, Any] = {"credentials": None, **dict.fromkeys(NAMES), **TLS_OPTIONS}
_SECURE_RECEIVERS = ("https", "coaps")
_EXTRAS = {"mqtt": ("paho-mqtt", "mqtt"), "amqp": ("aio-pika", "amqp"),
           "http": ("aiohttp", "http"), "coap": ("aiocoap", "coap"), "nats": ("nats-py", "nats")}


@dataclass(frozen=True, slots=True)
class Wish:
    """What `iotsim.tap` was asked for.

    Attributes
    ----------
    url, scheme : str
    topic : str or None
        None: the protocol's own default.
    options : mapping
        Every option of the protocol, with its default where none was given.
    """

    url: str
    scheme: str
    topic: str | None
    options: Mapping[str, Any]


def settings_of(url: str, topic: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a tap's process, as plain JSON values.

    Raises
    ------
    BadValue, UnknownName
        If the scheme, an option or a value cannot be.
    MissingExtra
        If the protocol's client is not installed.
    """
    scheme = url.partition(":")[0].lower() if isinstance(url, str) else ""
    if scheme in _SECURE_RECEIVERS:
        raise BadValue("url scheme", scheme, "has no tap: it would be the receiving end, which "
                       "has no certificate", f"Use {scheme.removesuffix('s')}:// for tap and run.")
    choice("url scheme", scheme, tuple(TAPS))
    try:
        module = resolve(TAPS, scheme, "tap")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "iotsim":
            raise
        package, extra = _EXTRAS[TAPS[scheme].rpartition(".")[2]]
        raise MissingExtra("a tap", package, extra) from None
    defaults = {"capacity": CAPACITY, **SECURITY_OPTIONS, **module.OPTIONS}
    for name in given:
        if name not in defaults:
            raise UnknownName(f"option of a {scheme} tap", name, defaults)
    options = {**defaults, **given}
    capacity = whole("capacity", options["capacity"], 1, 100_000_000)
    wish = Wish(url, scheme, topic, options)
    return Hidden({"scheme": scheme, "capacity": capacity, **module.settings_of(wish)})


def topic_text(topic: object, what: str, allowed: str, bytes_max: int) -> str:
    """Return a topic if it is text that can stand on a wire; raises BadValue.

    Examples
    --------
    >>> topic_text("devices/#", "topic filter", "Give one such as 'devices/#'.", 65_535)
    'devices/#'
    """
    if not isinstance(topic, str) or not topic or UNSENDABLE.search(topic):
        raise BadValue("topic", topic, f"is no {what}", allowed)
    if len(topic.encode()) > bytes_max:
        raise BadValue("topic", topic, f"is longer than {bytes_max:,} bytes of UTF-8", allowed)
    return topic


def secured(
    wish: Wish, address: Address, prefix: str, allowed: tuple[str, ...], secure: bool, scheme: str
) -> dict[str, Any]:
    """Return who we are and whom we trust, as plain values: the four secrets, and `tls` or None.

    Parameters
    ----------
    wish : Wish
    address : Address
        May have credentials in it.
    prefix : str
        Of the names in the environment.
    allowed : tuple of str
        What the protocol can use of username, password, token and creds.
    secure : bool
        Whether the scheme asks for TLS.
    scheme : str
        The one that does.
    """
    who = Credentials.take(wish.options, address.credentials, prefix, allowed)
    tls = take_tls(wish.options, secure=secure, scheme=scheme)
    if tls is not None:
        tls.context()  # an error now, and not in the process
    return {**asdict(who), "tls": None if tls is None else asdict(tls)}
