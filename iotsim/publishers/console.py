"""`console:`: one line `[topic] payload` per message on the standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from iotsim.errors import BadValue
from iotsim.publishers.base import (
    UNTRACED,
    Identity,
    Item,
    Limits,
    Link,
    Tracing,
    Verdicts,
    check_options,
)
from iotsim.publishers.sinks import Sink, SinkLink


@dataclass(frozen=True, slots=True)
class ConsolePublisher:
    """Shows every message; for demonstrations, never a substitute for a broker."""

    limits: Limits
    tracing: Tracing = UNTRACED
    per_device: ClassVar[bool] = False

    @classmethod
    def build(cls, url: str, **options: Any) -> Self:
        """Return the publisher for a URL and options; see `publishers.base.build`."""
        check_options("console", options, ())
        if url.partition(":")[2].strip("/"):
            raise BadValue("url", url, "has more than a scheme", "Give 'console:'.")
        return cls(Limits.take(options), Tracing.take(options, can_stamp=False))

    @property
    def url(self) -> str:
        """The address."""
        return "console:"

    def lanes(self, devices: int) -> int:
        """Return 1."""
        return 1

    def link(
        self, lane: int, run_id: str, verdicts: Verdicts, device: Identity | None = None
    ) -> Link:
        """Return the link."""
        return SinkLink(self.url, verdicts, _Screen())


class _Screen(Sink):
    def write(self, items: Sequence[Item]) -> None:
        lines = [
            f"[{topic}] {payload.decode('utf-8', 'replace')}\n" for topic, payload, _, _ in items
        ]
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
