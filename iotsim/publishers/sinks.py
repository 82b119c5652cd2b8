"""A link to something in this process: a list, the console, a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iotsim.errors import ConnectError
from iotsim.publishers.base import Item, Loss, Verdicts
from iotsim.transport.addresses import failure_text

WINDOW = 8192


def _nothing() -> None:
    return


class SinkLink:
    """Acknowledges what `write` took; an OSError there is a lost link (a `Link`).

    Parameters
    ----------
    url : str
    verdicts : Verdicts
    begin : callable
        Prepares the sink; an OSError there is a ConnectError.
    write : callable (items)
    end : callable
    """

    def __init__(
        self,
        url: str,
        verdicts: Verdicts,
        begin: Callable[[], None],
        write: Callable[[Sequence[Item]], None],
        end: Callable[[], None] = _nothing,
    ) -> None:
        self._url, self._verdicts = url, verdicts
        self._begin, self._write, self._end = begin, write, end

    async def open(self) -> int:
        """Prepare the sink."""
        try:
            self._begin()
        except OSError as error:
            raise ConnectError(self._url, failure_text(error)) from None
        return WINDOW

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        """Write messages and acknowledge them."""
        try:
            self._write(items)
        except (OSError, ValueError) as error:  # ValueError: a stream closed by somebody else
            self._verdicts.lost(Loss(f"writing failed: {failure_text(error)}"))
            return False
        self._verdicts.acknowledged(tokens)
        return True

    def drop(self) -> None:
        """End the sink."""
        try:
            self._end()
        except OSError:  # a full disk, again: the verdicts have said so
            pass

    async def close(self) -> None:
        """End the sink."""
        self.drop()
