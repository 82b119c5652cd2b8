"""What a worker needs of others: deliveries, a line for its answers, hands in the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Delivery(Protocol):
    """A message of a stream, delivered to a gateway."""

    payload: bytes
    subject: str
    sequence: int
    deliveries: int
    received_us: int

    def ack(self) -> None:
        """Say that it is done."""

    def nak(self, delay_s: float | None = None) -> None:
        """Have it delivered again, after a while."""

    def term(self) -> None:
        """Have it never delivered again."""

    def in_progress(self) -> None:
        """Say that it is being worked on."""


class Line(Protocol):
    """A connection on which a gateway can ask."""

    async def request(
        self, subject: str, payload: bytes, *, headers: Mapping[str, str], timeout_s: float
    ) -> bytes:
        """Send a message and return the answer."""


class Hands(Protocol):
    """What commands do to a run. Each raises an IotsimError if it cannot be."""

    def asked(self, name: str, command_id: str, kind: str, fields: Mapping[str, Any]) -> None:
        """Learn which command asks for what is done next; raises nothing."""

    def set_frequency(self, name: str, every_ms: int) -> None:
        """Let all sensors of a gateway send so often."""

    def set_status(self, name: str, status: str) -> None:
        """Let a gateway be online, paused or offline."""

    def set_firmware(self, name: str, version: str) -> None:
        """Let a gateway have another firmware."""

    def anomalous(self, name: str) -> bool:
        """Return whether a gateway is degraded or disconnected now."""

    async def calm(self, name: str) -> None:
        """Return when it is not any more."""


class Post(Protocol):
    """Whom a gateway's link tells; called on the loop of the run, and quick."""

    def connected(self, line: Line) -> None:
        """Learn that there is a connection."""

    def disconnected(self) -> None:
        """Learn that there is none any more."""

    def delivered(self, delivery: Delivery) -> None:
        """Take a message."""
