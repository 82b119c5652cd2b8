"""What a request of ours holds, and what is read out of an answer."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from iotsim.clock import stamp_us
from iotsim.publishers.base import Item
from iotsim.publishers.http import HttpPublisher

RETRY_AFTER_S_MAX = 60.0
EXCERPT_CHARS = 80
_ASCII = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"  # what stands for itself in a header; no %, no blank
_SEGMENT = "!$&'()*+,;=:@-._~"


class Requests:
    """Makes the requests of one publisher."""

    def __init__(self, publisher: HttpPublisher) -> None:
        self._publisher = publisher
        self._single = publisher.batch == 1
        self._lines = publisher.body == "ndjson"
        self._query = f"?{publisher.query}" if publisher.query else ""

    @property
    def always(self) -> dict[str, str]:
        """The headers of every request."""
        publisher, who = self._publisher, self._publisher.credentials
        kind = "application/x-ndjson" if self._lines else "application/json"
        headers = {"User-Agent": "iotsim", "Content-Type": kind, **dict(publisher.headers)}
        if who.token:
            headers["Authorization"] = f"Bearer {who.token}"
        elif who.username or who.password:
            pair = f"{who.username}:{who.password}".encode()
            headers["Authorization"] = f"Basic {b64encode(pair).decode()}"
        if not self._single:
            headers["Iotsim-Id-Field"] = escaped(publisher.tracing.audit_field)
        return headers

    def fault(self, item: Item) -> str:
        """Return why a message can be no request; empty if it can."""
        topic, _, ident, _ = item
        try:
            (topic + ident).encode()
        except UnicodeEncodeError:
            return "lone surrogate in the topic or the message id"
        if not ident:
            return "no message id"
        if self._publisher.topic_in is None:
            return ""
        if not topic:
            return "empty topic"
        levels = topic.split("/")
        if self._publisher.topic_in == "path" and any(one in ("", ".", "..") for one in levels):
            return "a level of the topic is empty, '.' or '..': it would change the path"
        return ""

    def target(self, topic: str = "") -> str:
        """Return path and query of a request, as they stand on the wire."""
        publisher = self._publisher
        path, query = publisher.path, self._query
        if topic and publisher.topic_in == "path":
            levels = "/".join(quote(level, safe=_SEGMENT) for level in topic.split("/"))
            path = f"{path.rstrip('/')}/{levels}"
        elif topic and publisher.topic_in == "query":
            query = f"{query}&" if query else "?"
            query += f"topic={quote(topic, safe='/')}"
        return path + query

    def headers(self, items: Sequence[Item]) -> dict[str, str]:
        """Return the headers of one request; its key is the same at every retry."""
        key = items[0][2] if self._single else batch_key([item[2] for item in items])
        headers = {"Idempotency-Key": escaped(key)}
        if self._publisher.topic_in == "header":
            headers["Iotsim-Topic"] = escaped(items[0][0])
        if self._publisher.tracing.stamp:
            headers["Sent"] = str(stamp_us())
        return headers

    def content(self, items: Sequence[Item]) -> bytes:
        """Return the body of one request."""
        if self._lines:
            return b"".join(item[1] + b"\n" for item in items)
        if self._single:
            return items[0][1]
        return b"[%b]" % b",".join([item[1] for item in items])

    def excerpt(self, body: bytes) -> str:
        """Return the beginning of an answer's body on one line, without our secrets."""
        text = " ".join(body.decode("utf-8", "replace").split())
        for secret in self._publisher.secrets:
            text = text.replace(secret, "***")
        text = "".join(c if c.isprintable() else "?" for c in text)
        return text if len(text) <= EXCERPT_CHARS else text[: EXCERPT_CHARS - 1] + "…"


def batch_key(ids: Sequence[str]) -> str:
    """Return a key that only a batch of just these messages has.

    Examples
    --------
    >>> batch_key(["run/a/0/0", "run/b/0/0"])
    'batch-d64aebd17bf95ce83e67d7629ce41e33'
    """
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    return f"batch-{digest[:32]}"


def escaped(text: str) -> str:
    """Return text as it may stand in a header; `%` and what is not visible ASCII as `%XX`.

    Examples
    --------
    >>> escaped("run/pump 1/7/0")
    'run/pump%201/7/0'
    """
    return quote(text, safe=_ASCII)


def retry_after_s(value: str) -> float:
    """Return how long a `Retry-After` asks us to wait, at most 60 s; 0 if it cannot be read.

    Examples
    --------
    >>> retry_after_s("2"), retry_after_s("86400"), retry_after_s("soon")
    (2.0, 60.0, 0.0)
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), RETRY_AFTER_S_MAX)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - stamp_us() / 1e6
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), RETRY_AFTER_S_MAX)
