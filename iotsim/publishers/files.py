"""`file:out.ndjson`: one payload per line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

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
from iotsim.publishers.sinks import Sharing, Sink, SinkLink


@dataclass(frozen=True, slots=True)
class FilePublisher:
    """Writes newline-delimited JSON; a run replaces the file, a retry goes on in it."""

    path: str
    limits: Limits
    tracing: Tracing = UNTRACED
    per_device: ClassVar[bool] = False

    @classmethod
    def build(cls, url: str, **options: Any) -> Self:
        """Return the publisher for a URL and options; see `publishers.base.build`."""
        check_options("file", options, ())
        rest = url.partition(":")[2]
        path = rest[2:] if rest.startswith("//") else rest
        if not path or "\0" in path or path.endswith("/"):
            raise BadValue("url", url, "names no file", "Give file:out.ndjson.")
        return cls(path, Limits.take(options), Tracing.take(options, can_stamp=False))

    @property
    def url(self) -> str:
        """The address."""
        return f"file:{self.path}"

    def lanes(self, devices: int) -> int:
        """Return 1."""
        return 1

    def link(
        self, lane: int, run_id: str, verdicts: Verdicts, device: Identity | None = None
    ) -> Link:
        """Return the link; the first opening in a run empties the file."""
        name = os.path.realpath(self.path)
        return SinkLink(
            self.url, verdicts, _FILES.sink(name, run_id, partial(_Lines, Path(self.path)))
        )


class _Lines(Sink):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file: BinaryIO | None = None
        self._begun = False

    def begin(self) -> None:
        if self._file is None:
            self._file = self._path.open("ab" if self._begun else "wb")
            self._begun = True

    def write(self, items: Sequence[Item]) -> None:
        if self._file is None:
            raise ValueError("the file is closed")
        try:
            self._file.write(b"".join([item[1] + b"\n" for item in items]))
            self._file.flush()
        except (OSError, ValueError):
            self._abandon()
            raise

    def _abandon(self) -> None:
        # Whoever writes next opens it again, without what is left in this one's buffer.
        try:
            self.end()
        except OSError:
            pass

    def end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


_FILES: Sharing[_Lines] = Sharing()
