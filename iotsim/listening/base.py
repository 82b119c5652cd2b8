"""What `listen_to` says, and what a listener of each protocol is made of.

A listener hands what arrives to a `Take`, takes answers without ever waiting, and connects again by
itself. A platform's side of the same conversation is `converse`: it sends commands as a platform
would, and waits for the answers.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import numpy as np

from iotsim.engine.population import Population
from iotsim.errors import BadValue, IotsimError, MissingExtra, UnknownName
from iotsim.registry import resolve
from iotsim.selectors import Selector, Where, parse, select
from iotsim.tapping.settings import SECURITY_OPTIONS, Wish
from iotsim.topics import check_topic, topic
from iotsim.transport.addresses import redacted
from iotsim.transport.discretion import Hidden

TOPIC = "devices/{device_id}/commands"
ANSWER = "devices/{device_id}/commands/answers"
INFLOW_MAX = 10_000  # messages that wait for the run's loop
OUTFLOW_MAX = 10_000  # answers that wait for a broker
BATCH = 20  # taken in one turn of the loop
CONNECT_S = 8.0
CLOSE_S = 0.5
BACK_OFF_S = (0.2, 5.0)  # before a listener connects again: first, and at most

LISTENERS = {
    "mqtt": "iotsim.listening.mqtt",
    "mqtts": "iotsim.listening.mqtt",
    "nats": "iotsim.listening.nats",
    "nats+tls": "iotsim.listening.nats",
    "amqp": "iotsim.listening.amqp",
    "amqps": "iotsim.listening.amqp",
    "coap": "iotsim.listening.coap",
}
_EXTRAS = {"mqtt": ("paho-mqtt", "mqtt"), "amqp": ("aio-pika", "amqp"),
           "coap": ("aiocoap", "coap"), "nats": ("nats-py", "nats")}
_INSTEAD = {"nats+jetstream": "Use nats:// there: commands go by subjects. ",
            "nats+jetstream+tls": "Use nats+tls:// there: commands go by subjects. "}
_PLACE = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Message:
    """What arrived.

    Attributes
    ----------
    topic : str
    body : bytes
    reply : object
        Where the sender wants its answer, as the protocol has it; None: nowhere of its own.
    """

    topic: str
    body: bytes
    reply: Any = None


Take: TypeAlias = "Callable[[Message], bool]"
Note: TypeAlias = "Callable[[str], None]"


class Listener(Protocol):
    """One subscription of one run."""

    async def open(self) -> None:
        """Connect and subscribe, or raise ConnectError within `CONNECT_S`."""

    def answer(self, topic: str, body: bytes, reply: Any) -> bool:
        """Send an answer, without waiting; False: there is no room for it."""

    async def close(self) -> None:
        """Let answers go out, and end, within `CLOSE_S`."""


@dataclass(frozen=True, slots=True, repr=False)
class Ear:
    """One `listen_to`: where commands come from, for whom, and where answers go.

    Attributes
    ----------
    url : str
        As it was given; never shown as it is.
    topic, answer : str
        Templates, as those of telemetry.
    where : Selector
    options : mapping
    settings : mapping
        All that the listener needs; may hold secrets.
    """

    url: str
    topic: str
    answer: str
    where: Selector
    options: Mapping[str, Any]
    settings: Mapping[str, Any] = field(compare=False)

    def __hash__(self) -> int:
        return hash((self.url, self.topic, self.where))

    def __reduce__(self) -> tuple[Any, ...]:
        return ear_of, (self.url, self.topic, self.answer, self.where, dict(self.options))

    def __str__(self) -> str:
        return redacted(self.url)

    def __repr__(self) -> str:
        return f"<Ear {self}>"

    @property
    def module(self) -> Any:
        """The module of its protocol: `Heard(...)` and `converse(...)`."""
        return _module(self.url.partition(":")[0].lower())

    def filled(self, template: str, device_id: str, device_type: str, labels: Any) -> str:
        """Return a topic of one device, as the protocol writes it."""
        sign = str(self.settings["separator"])
        for value in (device_id, device_type, *labels.values()) if sign != "/" else ():
            if sign in value and value in topic(template, device_id, device_type, labels):
                raise BadValue("topic", template, f"is filled in with {value!r}, which has a "
                               f"{sign!r}", "Listen for other devices, or under another label.")
        return topic(template, device_id, device_type, labels).replace("/", sign)

    def pattern(self, template: str, any_level: str) -> str:
        """Return the subscription that takes in the topics of all devices."""
        sign = str(self.settings["separator"])
        levels = template.replace("/", sign).split(sign)
        return sign.join(any_level if _PLACE.search(level) else level for level in levels)


def _module(scheme: str) -> Any:
    try:
        return resolve(LISTENERS, scheme, "listener")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "iotsim":
            raise
        package, extra = _EXTRAS[LISTENERS[scheme].rpartition(".")[2]]
        raise MissingExtra("listen_to", package, extra) from None


def ear_of(
    url: Any, topic: Any, answer: Any, where: Where, options: Mapping[str, Any]
) -> Ear:
    """Return what one `listen_to` says, checked; nothing is opened.

    Raises
    ------
    IotsimError
        If the scheme, an option, a topic or the selector cannot be.
    """
    scheme = url.partition(":")[0].lower() if isinstance(url, str) else ""
    if scheme not in LISTENERS:
        told = scheme or (type(url) if not isinstance(url, str) else redacted(url))
        raise BadValue("url scheme", told, "is nothing that commands come by",
                       _INSTEAD.get(scheme, "") + f"listen_to speaks: {', '.join(LISTENERS)}.")
    module = _module(scheme)
    defaults = {**SECURITY_OPTIONS, **module.OPTIONS}
    for name in options:
        if name not in defaults:
            raise UnknownName(f"{scheme} option of listen_to", name, defaults)
    wish = Wish(url, scheme, None, {**defaults, **options})
    settings = Hidden({"separator": "/", **module.settings_of(wish)})
    templates = (TOPIC if topic is None else topic, ANSWER if answer is None else answer)
    for template in templates:
        check_topic(template)
    return Ear(url, *templates, parse(where), MappingProxyType(Hidden(options)),
               MappingProxyType(settings))


class Routes:
    """Whose topic is which; found again when devices have joined.

    Parameters
    ----------
    ear : Ear
    people : Population
    """

    def __init__(self, ear: Ear, people: Population) -> None:
        self._ear, self._people = ear, people
        self._groups = 0
        self._slots: dict[str, list[int]] = {}

    @property
    def slots(self) -> Mapping[str, list[int]]:
        """The slots of the devices that listen to each topic.

        Raises
        ------
        IotsimError
            If a device cannot have a topic.
        """
        people = self._people
        if self._groups < len(people.groups):
            self._groups = len(people.groups)
            self._slots.clear()
            masks = select(self._ear.where, people.groups).masks
            for group, slots in zip(people.groups, people.slots, strict=True):
                mine = np.flatnonzero(masks[group.index] & (people.home[slots] == group.index))
                for i in mine.tolist():
                    name = self._ear.filled(self._ear.topic, group.ids[i], group.device_type,
                                            group.labels)
                    self._slots.setdefault(name, []).append(int(slots[i]))
        return self._slots

    def answer_topic(self, slot: int) -> str:
        """Return where a device answers."""
        people = self._people
        group = people.groups[int(people.home[slot])]
        return self._ear.filled(self._ear.answer, people.ids[slot], group.device_type,
                                group.labels)


class Inflow:
    """Carries messages from whatever thread to the run's loop: bounded, in small batches.

    Parameters
    ----------
    take : callable (Message)
        Called on the loop.
    """

    def __init__(self, take: Callable[[Message], None]) -> None:
        self.turned_away = 0
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: deque[Message] = deque()
        self._called, self._closed = True, False  # as if it had been called, until it begins

    def begin(self) -> None:
        """Hand on what has come, and what comes."""
        self._loop.call_soon(self._hand_on)

    def post(self, message: Message) -> bool:
        """Take a message, from any thread; False: too many wait, and it is counted."""
        with self._lock:
            if self._closed or len(self._waiting) >= INFLOW_MAX:
                self.turned_away += 1
                return False
            self._waiting.append(message)
            if self._called:
                return True
            self._called = True
        try:
            self._loop.call_soon_threadsafe(self._hand_on)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _hand_on(self) -> None:
        with self._lock:
            count = min(BATCH, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            self._called = bool(self._waiting)
        if self._called:
            self._loop.call_soon(self._hand_on)
        for message in batch:
            if not self._closed:
                self._take(message)

    def close(self) -> None:
        """Take nothing any more."""
        with self._lock:
            self._closed = True
            self._waiting.clear()


@dataclass(slots=True)
class Talk:
    """A platform's side: what it sends, and who is told what comes back.

    Attributes
    ----------
    requests : sequence of (topic, body)
    answers : sequence of str
        The topics of the answers.
    pattern : str
        One subscription that takes them all in.
    sent : callable (place)
        Told when a request has been handed over.
    heard : callable (body)
    over : asyncio.Event
        Set when nothing more is waited for.
    unanswered : callable () -> list of int
        The places of the requests that have no answer yet.
    trouble : str
        Why nothing can be sent or heard now; empty while it can.
    """

    requests: Sequence[tuple[str, bytes]]
    answers: Sequence[str]
    pattern: str
    sent: Callable[[int], None]
    heard: Callable[[bytes], None]
    over: asyncio.Event
    unanswered: Callable[[], list[int]]
    trouble: str = "no answer in time"


def back_off_s(failures: int) -> float:
    """Return how long a listener waits before it connects again.

    Examples
    --------
    >>> [back_off_s(n) for n in (1, 2, 9)]
    [0.2, 0.4, 5.0]
    """
    first_s, most_s = BACK_OFF_S
    return float(min(most_s, first_s * 2 ** (min(failures, 20) - 1)))


__all__ = ("ANSWER", "TOPIC", "Ear", "Inflow", "IotsimError", "Listener", "Message", "Note",
           "Routes", "Take", "Talk", "back_off_s", "ear_of")
