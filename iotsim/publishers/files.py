"""`file:out.ndjson`: one payload per line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from iotsim.errors import BadValue
from iotsim.publishers.base import Item, Limits, Link, Verdicts, check_options
from iotsim.publishers.sinks import SinkLink


@dataclass(frozen=True, slots=True)
class FilePublisher:
    """Writes newline-delimited JSON; a run replaces the file, a retry goes on in it."""

    path: str
    limits: Limits

    @classmethod
    def build(cls, url: str, **options: Any) -> Self:
        """Return the publisher for a URL and options; see `publishers.base.build`."""
        check_options("file", options, ())
        rest = url.partition(":")[2]
        path = rest[2:] if rest.startswith("//") else rest
        if not path or "\0" in path or path.endswith("/"):
            raise BadValue("url", url, "names no file", "Give file:out.ndjson.")
        return cls(path, Limits.take(options))

    @property
    def url(self) -> str:
        """The address."""
        return f"file:{self.path}"

    def lanes(self, devices: int) -> int:
        """Return 1."""
        return 1

    def link(self, lane: int, run_id: str, verdicts: Verdicts) -> Link:
        """Return the link; its first opening empties the file."""
        sink = _Lines(Path(self.path))
        return SinkLink(self.url, verdicts, sink.begin, sink.write, sink.end)


class _Lines:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._begun = False

    def begin(self) -> None:
        self.end()
        self._file = self._path.open("ab" if self._begun else "wb")
        self._begun = True

    def write(self, items: Sequence[Item]) -> None:
        if self._file is None:
            raise ValueError("the file is closed")
        self._file.write(b"".join([item[1] + b"\n" for item in items]))
        self._file.flush()

    def end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
