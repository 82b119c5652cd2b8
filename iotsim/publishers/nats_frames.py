"""Messages as publications of NATS, joined in one write.

A line break or a blank in a subject would be a command of its own. What a batch says is looked
at as a whole, at a tenth of the cost; only if something is odd is each message looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from iotsim.clock import stamp_us
from iotsim.publishers.base import Item

ID_HEADER = "Nats-Msg-Id"
STAMP_HEADER = "sent"
SUBJECT_BYTES_MAX = 2048  # a whole command line may have 4,096
ID_BYTES_MAX = 1024
_PRINTABLE = bytes(range(32, 127))
_SAFE = bytes(set(_PRINTABLE) - set(b"*>"))
_ODD = re.compile(r"[\s*>\x00-\x20\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages as one write, and those that cannot be written.

    Attributes
    ----------
    data : bytes
    refused : sequence of (position, reason)
    """

    data: bytes
    refused: Sequence[tuple[int, str]] = ()


class Framer:
    r"""Makes frames of messages.

    Parameters
    ----------
    headers : mapping of str
        What every message has beside its id.
    ids : bool
        Whether each message has its id in the header Nats-Msg-Id.
    stamp : bool
        Whether each says in the header "sent" when it was handed over.

    Examples
    --------
    >>> Framer({}, ids=False).frames([("devices/a/telemetry", b"{}", "run/a/0/0", 0.0)]).data
    b'PUB devices.a.telemetry 2\r\n{}\r\n'
    """

    def __init__(
        self, headers: Mapping[str, str], *, ids: bool = True, stamp: bool = False
    ) -> None:
        self.payload_bytes_max = 1024 * 1024  # headers included, as the server counts
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._ids, self._stamp = ids, stamp
        self._bare = not (ids or stamp or headers)

    def frames(
        self, items: Sequence[Item], inbox: str = "", tokens: Sequence[int] = ()
    ) -> Batch:
        """Return messages as one write; with an inbox, each asks for an answer to its token."""
        topics, payloads, idents, _ = zip(*items, strict=True)
        subjects = joined_subjects(topics, idents)
        most = max(map(len, payloads)) + len(self._fixed) + ID_BYTES_MAX + 256
        if subjects is None or most > self.payload_bytes_max:
            return self._one_by_one(items, inbox, tokens)
        replies = [f"{inbox}{token} " for token in tokens] if inbox else [""] * len(items)
        return Batch(self._joined(subjects, payloads, idents, replies))

    def _joined(
        self,
        subjects: Sequence[str],
        payloads: Sequence[bytes],
        idents: Sequence[str],
        replies: Sequence[str],
    ) -> bytes:
        # Each line lacks its last line end, which the join puts between it and its payload.
        rows = zip(subjects, replies, idents, payloads, strict=True)
        head = self._head()
        if self._ids:
            base = len(head.encode()) + len(ID_HEADER) + 6  # ": " and two line ends
            tail = f"\r\n{head}{ID_HEADER}: "
            lines = [
                f"HPUB {subject} {reply}{(n := base + len(i))} {n + len(p)}{tail}{i}\r\n".encode()
                for subject, reply, i, p in rows
            ]
        elif self._bare:
            lines = [f"PUB {subject} {reply}{len(p)}".encode() for subject, reply, _, p in rows]
        else:
            n = len(head.encode()) + 2
            lines = [
                f"HPUB {subject} {reply}{n} {n + len(p)}\r\n{head}".encode()
                for subject, reply, _, p in rows
            ]
        parts = list(chain.from_iterable(zip(lines, payloads, strict=True)))
        parts.append(b"")
        return b"\r\n".join(parts)

    def _head(self) -> str:
        stamp = f"{STAMP_HEADER}: {stamp_us()}\r\n" if self._stamp else ""
        return f"NATS/1.0\r\n{self._fixed}{stamp}"

    def _one_by_one(self, items: Sequence[Item], inbox: str, tokens: Sequence[int]) -> Batch:
        frames: list[bytes] = []
        refused: list[tuple[int, str]] = []
        for i, item in enumerate(items):
            topic, payload, ident, _ = item
            why = why_not(topic, ident)
            if not why:
                reply = f"{inbox}{tokens[i]} " if inbox else ""
                frame, size = self._one(topic.replace("/", "."), payload, ident, reply)
                if size <= self.payload_bytes_max:
                    frames.append(frame)
                    continue
                why = "larger than the server's max_payload"
            refused.append((i, why))
        return Batch(b"".join(frames), tuple(refused))

    def _one(self, subject: str, payload: bytes, ident: str, reply: str) -> tuple[bytes, int]:
        # As `_joined`, for names of any letters: sizes are counted in bytes.
        if self._bare:
            line = f"PUB {subject} {reply}{len(payload)}\r\n"
            return b"".join((line.encode(), payload, b"\r\n")), len(payload)
        own = f"{ID_HEADER}: {ident}\r\n" if self._ids else ""
        head = f"{self._head()}{own}\r\n".encode()
        total = len(head) + len(payload)
        line = f"HPUB {subject} {reply}{len(head)} {total}\r\n"
        return b"".join((line.encode(), head, payload, b"\r\n")), total


def joined_subjects(topics: Sequence[str], idents: Sequence[str]) -> list[str] | None:
    """Return the subjects of topics, or None if one of them or of the ids is odd.

    Examples
    --------
    >>> joined_subjects(["devices/a/telemetry"], ["run/a/0/0"])
    ['devices.a.telemetry']
    >>> joined_subjects(["devices/a.b/telemetry"], ["run/a.b/0/0"])
    """
    names, ids, blanks = " ".join(topics), " ".join(idents), len(topics) - 1
    if not (names.isascii() and ids.isascii()) or "." in ids or ("." in names and "/" in names):
        return None
    if names.count(" ") != blanks or ids.count(" ") != blanks:
        return None
    if names.encode().translate(None, _SAFE) or ids.encode().translate(None, _PRINTABLE):
        return None
    names = f" {names} ".replace("/", ".")
    if "  " in names or " ." in names or ". " in names or ".." in names:
        return None
    subjects = names[1:-1].split(" ")
    if max(map(len, subjects)) > SUBJECT_BYTES_MAX or max(map(len, idents)) > ID_BYTES_MAX:
        return None
    return subjects


def why_not(topic: str, ident: str) -> str:
    """Return why a message with this topic and id cannot be published, or nothing.

    Examples
    --------
    >>> why_not("devices/a/telemetry", "run/a/0/0")
    ''
    >>> why_not("devices/a.b/telemetry", "run/a.b/0/0")
    "a '.' in a part of the topic: it would be two parts of the subject"
    """
    subject = topic.replace("/", ".")
    if not topic:
        return "empty topic"
    if _ODD.search(topic):
        return "blank, wildcard, control character or lone surrogate in the topic"
    if not all(subject.split(".")):
        return "empty part in the topic"
    device = ident.partition("/")[2].rsplit("/", 2)[0]
    if "." in topic and ("/" in topic or ("." in device and device in topic)):
        return "a '.' in a part of the topic: it would be two parts of the subject"
    if len(subject.encode()) > SUBJECT_BYTES_MAX:
        return f"topic over {SUBJECT_BYTES_MAX:,} bytes"
    if not ident.isprintable() or len(ident.encode()) > ID_BYTES_MAX:
        return "message id cannot be a header"
    return ""
