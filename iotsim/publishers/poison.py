"""Whether a message of ours ends the connection, or the connection ends by itself.

A peer answers in order, so the oldest message without an answer may have ended the link. It is
sent again alone. Where the peer says that a message was the reason, twice is enough. A bare close
proves little: brokers are killed and links flap. Then it takes five, and before each of the last
two another device's message must have gone through on the same connection; a link that ends
those, too, is what is broken.
"""

from __future__ import annotations

from dataclasses import dataclass

from iotsim.publishers.base import Loss

WORDS_MAX = 2  # of the peer
CUTS_MAX = 5
CUTS_UNPROVED = 3  # from then on another message goes first
PROOFS_MIN = 2


@dataclass(slots=True)
class Suspicion:
    """What is held against one message.

    Attributes
    ----------
    token : int
        Whose; −1: there is no suspicion.
    strikes : int
        How many connections ended when it was the oldest without an answer.
    words : int
        After how many of them the peer said that a message was the reason.
    proofs : int
        After how many of them another message had just been taken.
    """

    token: int = -1
    device: str = ""
    strikes: int = 0
    words: int = 0
    proofs: int = 0
    _probe: int = -1
    _proved: bool = False  # on this connection

    def struck(self, token: int, device: str, loss: Loss, *, alone: bool) -> bool:
        """Take that the link ended while this was the oldest; return whether it is guilty."""
        if token != self.token:
            self.clear()
            self.token, self.device = token, device
        self.strikes += 1
        self.words += loss.blame == "message"
        self.proofs += alone and self._proved
        return alone and (self.words >= WORDS_MAX or (
            self.strikes >= CUTS_MAX and self.proofs >= PROOFS_MIN))

    @property
    def verdict(self) -> str:
        """Why a guilty message is refused."""
        if self.strikes == 2:
            return "ended the connection twice"
        return f"ended the connection {self.strikes} times"

    @property
    def wants_probe(self) -> bool:
        """Whether another device's message should go first."""
        return self.token >= 0 and self.strikes >= CUTS_UNPROVED and not self._proved

    def probe(self, token: int) -> None:
        """Take which message goes first."""
        self._probe = token

    def opened(self) -> None:
        """Begin with a new connection."""
        self._probe, self._proved = -1, False

    def taken(self, tokens: set[int]) -> None:
        """Take what the peer took."""
        if self.token in tokens:
            self.clear()
        elif self._probe in tokens:
            self._proved = True

    def clear(self) -> None:
        """Hold nothing against anybody."""
        self.token, self.device = -1, ""
        self.strikes = self.words = self.proofs = 0
        self.opened()
