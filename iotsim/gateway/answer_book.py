"""What gateways have answered, so that no command is done twice: written for many at a time.

A transaction waits for the disk, whoever it is for. When a thousand gateways have a command at
once, those that came while one transaction was written share the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from iotsim.errors import StoreError
from iotsim.gateway.commands import Answer

TOGETHER_MAX = 250  # changes in one transaction
TURN = 20  # gateways that go on in one turn of the loop


class Keeper(Protocol):
    """Where answers survive the process: the store."""

    def answered(self, name: str, command_id: str) -> Answer | None:
        """Return what a gateway said to a command, if it did."""

    def apply(self, name: str, changes: Mapping[str, Any], answered: Answer) -> None:
        """Change a gateway's record and remember an answer, in one transaction.

        An answer to the same command that is there already is replaced.
        """

    def apply_all(self, batch: list[tuple[str, Mapping[str, Any], Answer]]) -> None:
        """Do the same for several gateways, all in one transaction."""


@dataclass(slots=True, eq=False)
class _Note:
    name: str
    changes: Mapping[str, Any]
    answer: Answer
    again: bool
    future: asyncio.Future[Answer | None]


class AnswerBook:
    """The answers of the gateways of a run; all of a store's writing is done in one thread.

    Each gateway has one note waiting at most.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._notes: dict[_Note, None] = {}
        self._writing: asyncio.Task[None] | None = None
        self.transactions = 0

    async def remember(
        self, name: str, changes: Mapping[str, Any], answer: Answer, *, again: bool = False
    ) -> Answer | None:
        """Remember an answer and what it changes, unless there is one; return the earlier one.

        Parameters
        ----------
        name : str
            The gateway's local name.
        changes : mapping
            Fields of its record, with their new values.
        answer : Answer
        again : bool
            Whether it replaces an earlier one.
        """
        future: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._notes[_Note(name, changes, answer, again, future)] = None
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="iotsim answer book")
        return await future

    async def _write(self) -> None:
        while self._notes:
            batch = list(islice(self._notes, TOGETHER_MAX))
            for note in batch:
                del self._notes[note]
            try:
                found = await asyncio.to_thread(self._together, batch)
            except BaseException:
                for note in batch:
                    note.future.cancel()
                raise
            for i, (note, outcome) in enumerate(zip(batch, found, strict=True), 1):
                if i % TURN == 0:
                    await asyncio.sleep(0)
                if note.future.done():
                    continue  # who asked has gone
                if isinstance(outcome, Exception):
                    note.future.set_exception(outcome)
                else:
                    note.future.set_result(outcome)

    def _together(self, batch: list[_Note]) -> list[Answer | Exception | None]:
        found: list[Answer | Exception | None] = []
        for note in batch:
            try:
                found.append(None if note.again else self._keeper.answered(
                    note.name, note.answer.command_id))
            except Exception as error:  # of one gateway; the others go on
                found.append(error)
        fresh = [i for i, outcome in enumerate(found) if outcome is None]
        changes = [(batch[i].name, batch[i].changes, batch[i].answer) for i in fresh]
        if not changes:
            return found
        try:
            self._keeper.apply_all(changes)
            self.transactions += 1
        except StoreError as error:  # the file's trouble is everybody's, and to wait for it is slow
            for i in fresh:
                found[i] = error
        except Exception:  # whose fault it is shows when each is tried by itself
            for i, change in zip(fresh, changes, strict=True):
                try:
                    self._keeper.apply(*change)
                    self.transactions += 1
                except Exception as error:
                    found[i] = error
        return found

    async def close(self) -> None:
        """Wait until all of it is written."""
        if self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing])
