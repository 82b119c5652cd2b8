"""Commands by NATS: one subscription for all devices, with a client of its own per connection.

nats-py's own reconnection can hang, and a dead server is not always noticed: each connection is
looked at, and another one made. A topic's "/" are "." in its subject; a reply subject is honoured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import BadSubjectError

from iotsim.listening.base import CONNECT_S, Ear, Message, Note, Take, Talk
from iotsim.listening.steady import Answer, Outflow, Steady, Up, first_of, insist
from iotsim.tapping.nats import settings_of as tap_settings_of
from iotsim.tapping.settings import Wish
from iotsim.transport.addresses import failure_text
from iotsim.transport.nats_client import CarefulClient, options_of
from iotsim.transport.probing import WrongPeer

OPTIONS: dict[str, Any] = {"tls_first": False}
ANY = "*"
LOOK_S = 2.0  # how often it looks whether the server is there, and for how long
LEAVE_S = 0.3
PENDING_MAX = 100_000


def settings_of(wish: Wish) -> dict[str, Any]:
    """Return what a listener needs; raises BadValue."""
    options = {**wish.options, "stream": None, "deliver": "new"}
    return {**tap_settings_of(Wish(wish.url, wish.scheme, None, options)), "separator": "."}


class _Connection:
    """One client with one subscription, from its beginning to its end."""

    def __init__(
        self, ear: Ear, pattern: str, heard: Callable[[Message], Any], note: Note
    ) -> None:
        self._settings, self._pattern, self._heard = ear.settings, pattern, heard
        self._note, self._begun = note, False
        self._broken = asyncio.Event()
        self._said: list[Exception] = []
        self.client: Client = CarefulClient()

    async def __aenter__(self) -> Client:
        try:
            async with asyncio.timeout(CONNECT_S - 1):
                await self.client.connect(pending_size=-1, **options_of(
                    self._settings, "iotsim devices", self._told, self._ended))
                await self.client.subscribe(
                    self._pattern, cb=self._message, pending_msgs_limit=PENDING_MAX,
                    pending_bytes_limit=0)
                for _ in range(2):  # what it says to the first is heard by the second
                    await self.client.flush(4)
            if self._said:  # such as a subscription that is not permitted
                raise self._said[0]
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, Exception) and self._said:  # what it says itself is less
                raise self._said[0] from None
            raise
        self._begun = True
        return self.client

    async def __aexit__(self, *_: object) -> None:
        try:
            async with asyncio.timeout(LEAVE_S):
                await self.client.close()
        except Exception:  # it cannot end: nobody waits for it
            with suppress(Exception):
                self.client._transport._io_writer.transport.abort()  # type: ignore[union-attr]

    async def _ended(self) -> None:
        self._broken.set()

    async def _told(self, error: Exception) -> None:
        if self._begun:
            self._note(words(error))
        elif not self._said:
            self._said.append(error)

    async def lasting(self) -> None:
        """Wait until the connection is gone, or the server does not answer."""
        while not self._broken.is_set():
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._broken.wait()
            except TimeoutError:
                async with asyncio.timeout(LOOK_S):
                    await self.client.flush(int(LOOK_S) + 1)

    async def _message(self, message: Msg) -> None:
        self._heard(Message(message.subject, bytes(message.data), message.reply or None))


class Heard:
    """The devices' side: hands commands on, sends answers.

    Parameters
    ----------
    ear : Ear
    take : callable (Message) -> bool
    note : callable (text)
    topics : callable () -> list of str
        Not needed here: one subscription takes them all in.
    """

    def __init__(
        self, ear: Ear, take: Take, note: Note, topics: Callable[[], list[str]]
    ) -> None:
        self._ear, self._take, self._note = ear, take, note
        self._outflow = Outflow()
        self._steady = Steady(ear.settings["url"], note, self._session, words)

    async def _session(self, up: Up) -> None:
        made = _Connection(self._ear, self._ear.pattern(self._ear.topic, ANY), self._take,
                           self._note)
        async with made as client:

            async def send(batch: Sequence[Answer]) -> None:
                for topic, body, reply in batch:
                    try:
                        await client.publish(reply or topic, body)
                    except BadSubjectError:
                        self._note("somebody wanted an answer where there can be none")
                await client.flush(4)

            up()
            await first_of(made.lasting(), self._outflow.run(send))

    async def open(self) -> None:
        """Connect and subscribe; raises ConnectError."""
        await self._steady.open()

    def answer(self, topic: str, body: bytes, reply: Any) -> bool:
        """Send an answer: where the sender wanted it, else to the device's own subject."""
        return self._outflow.put((topic, body, reply))

    async def close(self) -> None:
        """End."""
        await self._outflow.empty()
        await self._steady.close()


async def converse(ear: Ear, talk: Talk) -> None:
    """Send commands as a platform would, and hear the answers until it is over."""

    async def session(up: Up) -> None:
        made = _Connection(ear, talk.pattern, lambda message: talk.heard(message.body),
                           lambda text: None)
        async with made as client:
            up()
            for place in talk.unanswered():
                talk.sent(place)
                await client.publish(*talk.requests[place])
            await client.flush(4)
            await made.lasting()

    await insist(ear.settings["url"], talk, session, words)


def words(error: BaseException) -> str:
    """Return why there is no connection."""
    if isinstance(error, TimeoutError):
        return "it accepts the connection but does not answer"
    if isinstance(error, WrongPeer):
        return str(error)
    text = failure_text(error).removeprefix("nats: ").strip("'\" ")
    if "nats" in type(error).__module__:
        return f"the server refused us: {text.lower()}"
    return text
