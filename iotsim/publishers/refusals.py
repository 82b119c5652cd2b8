"""What a peer does not take: gathered by reason, and how often a message is tried."""

from __future__ import annotations

from iotsim.publishers.base import Verdicts

TRIES_MAX = 8  # of one message that the peer refuses for now, or leaves without an answer


def spent(tries: int) -> bool:
    """Return whether a message was tried often enough."""
    return tries >= TRIES_MAX


def in_the_end(reason: str) -> str:
    """Return why a message is refused that was tried often enough."""
    return f"{reason}, {TRIES_MAX} times"


class Refusals:
    """Refusals of one turn, to be told together: a peer that is full refuses a whole window."""

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, bool], list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def add(self, token: int, reason: str, *, retry: bool = False) -> None:
        """Take one in."""
        self._tokens.setdefault((reason, retry), []).append(token)

    def take(self) -> list[tuple[list[int], str, bool]]:
        """Return tokens, reason and whether to retry, for each reason; then there are none."""
        tokens, self._tokens = self._tokens, {}
        return [(found, reason, retry) for (reason, retry), found in tokens.items()]

    def tell(self, verdicts: Verdicts) -> None:
        """Tell them, in one call for each reason."""
        for tokens, reason, retry in self.take():
            verdicts.refused(tokens, reason, retry=retry)
