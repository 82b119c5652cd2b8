"""What happens, for `logging`: nothing is shown unless somebody asks.

The logger is called "iotsim". Lifecycle events are at INFO, troubles at WARNING and ERROR, every
reading at DEBUG. For one JSON object per line::

    handler = logging.StreamHandler()
    handler.setFormatter(iotsim.logs.JsonFormatter())
    logging.getLogger("iotsim").addHandler(handler)
    logging.getLogger("iotsim").setLevel("INFO")
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("iotsim")
LOG.addHandler(logging.NullHandler())
FACTS = "iotsim"  # the attribute of a record that holds what the event is about
VALUE_CHARS_MAX = 10_000


class JsonFormatter(logging.Formatter):
    r"""Formats a record as one JSON object on one line, in ASCII.

    Keys: `time` (UTC), `level`, `logger`, `event`, `message`, and what the event is about, such
    as `run`, `fleet`, `publisher`, `fault`. A record that is not of iotsim has event "".

    Examples
    --------
    >>> record = logging.LogRecord("app", logging.INFO, "", 1, "two\nlines", (), None)
    >>> json.loads(JsonFormatter().format(record))["message"]
    'two\nlines'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        moment = datetime.fromtimestamp(record.created, UTC)
        shown: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "event": "",
            "message": record.getMessage(),
        }
        facts = getattr(record, FACTS, None)
        if isinstance(facts, Mapping):
            shown |= {str(name): plain(value) for name, value in facts.items()}
        if record.exc_info is not None and record.exc_info[1] is not None:
            error = record.exc_info[1]
            shown["error"] = f"{type(error).__name__}: {error}"
        return json.dumps(shown, ensure_ascii=True, allow_nan=False)


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can hold it: NaN is null, what is nothing else is text.

    Examples
    --------
    >>> plain({"a": float("nan"), 1: (2, b"x")})
    {'a': None, '1': [2, "b'x'"]}
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth < 8 and isinstance(value, Mapping):
        return {str(name): plain(part, depth + 1) for name, part in value.items()}
    if depth < 8 and isinstance(value, (list, tuple)):
        return [plain(part, depth + 1) for part in value]
    return str(value)[:VALUE_CHARS_MAX]


def one_line(text: str) -> str:
    r"""Return text with everything escaped that does not print.

    Examples
    --------
    >>> one_line("a\nb")
    'a\\nb'
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def say(level: int, event: str, message: str, facts: Mapping[str, Any]) -> None:
    """Log an event with what it is about."""
    if LOG.isEnabledFor(level):
        extra = {FACTS: {"event": event, **facts}}
        LOG.log(level, "%s", one_line(message), extra=extra, stacklevel=2)
