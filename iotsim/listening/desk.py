"""Where what arrives becomes commands of a run, and where answers go out from.

Nothing that arrives can hurt a run: what is no command reaches its device as text, what is too
large or for nobody is counted, what was had before is answered again and not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from iotsim import verbs
from iotsim.actions import Action
from iotsim.commands import BYTES_MAX, OFFLINE, PENDING, STOPPED, Letter, is_deep, message_of
from iotsim.engine.deeds import Deeds
from iotsim.engine.population import Population
from iotsim.errors import IotsimError
from iotsim.listening.base import Ear, Inflow, Listener, Message, Routes
from iotsim.listening.echoes import is_answer

NOTES_MAX = 100
SILENT = (PENDING, OFFLINE, STOPPED)


class Desk:
    """Between one listener and its run.

    Parameters
    ----------
    ear : Ear
    people : Population
        Those who are there from the start.

    Attributes
    ----------
    troubles : mapping of text to how often
    """

    def __init__(self, ear: Ear, people: Population) -> None:
        self.troubles: dict[str, int] = {}
        self._ear, self._routes = ear, Routes(ear, people)
        self._inflow = Inflow(self._take)
        self._listener: Listener = ear.module.Heard(
            ear, self._inflow.post, self._trouble, lambda: list(self._routes.slots))

    async def open(self) -> None:
        """Connect; raises ConnectError. What comes waits until somebody takes it."""
        _ = self._routes.slots  # a device without a topic is an error now
        await self._listener.open()

    def begin(
        self, deeds: Deeds, act: Callable[[str, Mapping[str, Any]], Action],
        ready: Callable[[], bool],
    ) -> None:
        """Hand on what comes to a run.

        Parameters
        ----------
        deeds : Deeds
        act : callable (verb, parameters) -> Action
        ready : callable () -> bool
            Whether the run takes commands: not while history is filled in.
        """
        self._deeds, self._act, self._ready = deeds, act, ready
        self._routes = Routes(self._ear, deeds.population)
        self._inflow.begin()

    def stop(self) -> None:
        """Take nothing any more; what is answered still goes out."""
        self._inflow.close()

    async def close(self) -> None:
        """Let answers go out, and end."""
        self._inflow.close()
        await self._listener.close()

    @property
    def notes(self) -> list[str]:
        """What went wrong, and how often."""
        found = dict(self.troubles)
        if self._inflow.turned_away:
            found["came faster than the run could take them, and were lost"] = (
                self._inflow.turned_away)
        return [f"listen_to({str(self._ear)!r}): {text}" + (f" ×{count:,}" if count > 1 else "")
                for text, count in found.items()]

    def _trouble(self, text: str) -> None:
        if text not in self.troubles and len(self.troubles) >= NOTES_MAX:
            text = "more went wrong"
        self.troubles[text] = self.troubles.get(text, 0) + 1

    # -- what arrives ---------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        try:
            self._sort(message)
        except IotsimError as error:
            self._trouble(str(error))

    def _sort(self, message: Message) -> None:
        slots = self._routes.slots.get(message.topic)
        if slots is None:
            self._trouble("messages for nobody who is here")
            return
        if len(message.body) > BYTES_MAX:
            self._trouble(f"messages over {BYTES_MAX:,} bytes were refused")
            self._refuse(message, slots, "", f"over {BYTES_MAX:,} bytes")
            return
        said = _read(message.body)
        if said is None:
            self._trouble("answers of devices came as if they were commands, and were left alone")
            return
        name, ident, payload, device_id = said
        if device_id is not None and len(slots) > 1:
            slots = [slot for slot in slots if self._deeds.population.ids[slot] == device_id]
        fresh = [slot for slot in slots if not (ident and self._had(message, slot, ident))]
        if not fresh:
            return
        if not self._ready():
            self._trouble("commands came while history was filled in, or at the end")
            self._refuse(message, fresh, ident, "", status="busy")
            return
        who = {"ids": [self._deeds.population.ids[slot] for slot in fresh]}
        try:
            self._act("command", verbs.command(name, who, payload, ident or None, str(self._ear)))
        except IotsimError as error:
            self._trouble(str(error))
            self._refuse(message, fresh, ident, str(error))
            return
        self._reply_to_all(message, self._deeds.mail.book.letters[-1])

    def _had(self, message: Message, slot: int, ident: str) -> bool:
        # A command that comes again is answered again, with what was answered then.
        letter = self._deeds.mail.book.find(slot, ident)
        if letter is None:
            return False
        place = letter.place(slot)
        if letter.codes[place] == PENDING:
            letter.watch(lambda _, at: self._reply(message, letter, at) if at == place else None)
        else:
            self._reply(message, letter, place)
        return True

    # -- what goes out --------------------------------------------------------------------------

    def _reply_to_all(self, message: Message, letter: Letter) -> None:
        letter.watch(lambda _, place: self._reply(message, letter, place))
        for place, code in enumerate(letter.codes.tolist()):
            if code != PENDING:
                self._reply(message, letter, place)

    def _reply(self, message: Message, letter: Letter, place: int) -> None:
        if letter.codes[place] not in SILENT:  # nobody answers for a device that is not there
            slot = int(letter.slots[place])
            self._send(message, slot, letter.body(place, self._deeds.population.ids[slot]))

    def _refuse(
        self, message: Message, slots: list[int], ident: str, why: str, status: str = "fail"
    ) -> None:
        for slot in slots:
            said = {"status": status, "command_id": ident,
                    "device_id": self._deeds.population.ids[slot]}
            self._send(message, slot, {**said, "error": why} if why else said)

    def _send(self, message: Message, slot: int, said: Mapping[str, Any]) -> None:
        topic = self._routes.answer_topic(slot)
        if not self._listener.answer(topic, orjson.dumps(said), message.reply):
            self._trouble("answers found no room on their way out, and were lost")


def _read(body: bytes) -> tuple[str, str, Any, str | None] | None:
    # Name, id, payload, and the device if it says so; what is no command is text without a name.
    # None: an answer, which must not be answered.
    text = body.decode("utf-8", "replace")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", "", text, None
    if isinstance(value, dict) and is_answer(value):
        return None
    found = message_of(value) if isinstance(value, dict) and not is_deep(value) else None
    if found is None:
        return "", "", text, None
    device_id = value.get("device_id")
    return (*found, device_id if isinstance(device_id, str) else None)
