"""What arrived, from wherever it was recorded: a tap, a table of one, or plain messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson

from iotsim.clock import monotonic
from iotsim.errors import BadValue
from iotsim.readings import Ints
from iotsim.taps import Tap

QUIET_S, WAIT_S = 1.0, 120.0


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """Messages in the order in which they arrived.

    Attributes
    ----------
    topics, ids, payloads : sequences
        An id is empty where the message carries none.
    time_us, sent_us : int64 arrays
        Of receipt, and as the message says; wall clock, 0 if nobody knows.
    url : str
        Where it was listened; empty if nobody says.
    ill : str
        Why anything may be missing; empty if nothing is ill.
    away : sequence of (int, int)
        From when until when the tap was cut off (0: it still is); `absence` says so in words.
    known : bool
        Whether anybody says how the tap was.
    since_us, until_us : int
        From when until when somebody listened; 0 if nobody says.
    """

    topics: Sequence[str]
    ids: Sequence[str]
    payloads: Sequence[bytes]
    time_us: Ints
    sent_us: Ints
    url: str = ""
    ill: str = ""
    away: Sequence[tuple[int, int]] = ()
    absence: str = ""
    known: bool = False
    since_us: int = 0
    until_us: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def named(self, field: str) -> Received:
        """Return the messages with the ids that their JSON has under a key, if they lack one."""
        ids = list(self.ids)
        for i, name in enumerate(ids):
            if not name:
                ids[i] = _id_in(self.payloads[i], field)
        return replace(self, ids=ids)


def url_of(source: Any) -> str:
    """Return where it was listened, if a tap or its frame is what there is."""
    return str(_witness(source).get("url", ""))


def _witness(source: Any) -> Mapping[str, Any]:
    # What `Tap.witness` said, now or when the frame was made.
    if isinstance(source, Tap):
        return {**source.witness(), "until_us": source.until_us}
    attrs = getattr(source, "attrs", None)
    found = attrs.get("tap") if isinstance(attrs, dict) else None
    return found if isinstance(found, dict) else {}


def listens_to(source: Any) -> Callable[[str], object] | None:
    """Return what says whether a tap listens to a topic; None: to all that anybody could send.

    Of the bindings of AMQP nothing is known here: such a tap counts as one that listens to all.
    """
    witness = _witness(source)
    if not witness:
        return None
    scheme, topic = witness["url"].partition(":")[0], witness["topic"]
    if scheme in ("mqtt", "mqtts") and not topic.startswith("$"):
        return matcher(topic, "/", "+", "#")
    if scheme.startswith("nats"):
        match = matcher(topic, ".", "*", ">")
        return lambda topic: match(topic.replace("/", "."))
    return None


def matcher(pattern: str, sign: str, one: str, rest: str) -> Callable[[str], object]:
    """Return what matches topics with a pattern: levels between signs, wildcards for one or more.

    Examples
    --------
    >>> match = matcher("devices/+/telemetry", "/", "+", "#")
    >>> [bool(match(topic)) for topic in ("devices/a/telemetry", "devices/a/b/telemetry")]
    [True, False]
    """
    *head, last = pattern.split(sign)
    levels = [f"[^{sign}]*" if level == one else re.escape(level) for level in head]
    if last == rest:
        tail = f"({re.escape(sign)}.*)?" if head else ".*"
    else:
        tail = re.escape(sign) * bool(head) + (f"[^{sign}]*" if last == one else re.escape(last))
    return re.compile(re.escape(sign).join(levels) + tail, re.DOTALL).fullmatch


def settle(source: Any, expected: Ints, field: str | None = None) -> bool:
    """Give messages that are still on their way to a tap the time to arrive.

    Until those that are expected have come, or nothing at all has for a second.

    Parameters
    ----------
    source : Tap or anything
    expected : int64 array
        Hashes of ids; one that is there twice is expected twice.
    field : str, optional
        The key of the JSON documents that holds the id where a message carries none.

    Returns
    -------
    bool
        Whether time was up, and messages still came.
    """
    if not isinstance(source, Tap) or source.until_us:
        return False
    keys, missing = np.unique(expected, return_counts=True)
    limit_s, seen = monotonic() + WAIT_S, 0
    while len(keys):
        records, ill = source.records()
        fresh = [record[2] or (_id_in(record[3], field) if field else "")
                 for record in records[seen:]]
        if ill and not fresh:
            return False
        seen = len(records)
        hashes = np.fromiter(map(hash, fresh), np.int64, len(fresh))
        place = np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)
        np.subtract.at(missing, place[keys[place] == hashes], 1)
        if (missing <= 0).all() or not source.wait(seen + 1, QUIET_S):
            return False
        if monotonic() > limit_s:
            return True
    return False


def received_of(source: Any) -> Received:
    """Return what arrived.

    Parameters
    ----------
    source : Tap, DataFrame of `Tap.frame()`, or iterable of (topic, payload, id)

    Raises
    ------
    BadValue
        If it is none of them.
    """
    if isinstance(source, Tap):
        records, ill = source.records()
        times_us, topics, ids, payloads, _, sent_us = _columns(records, 6)
        found = Received(topics, ids, payloads, _ints(times_us), _ints(sent_us))
        return replace(_testified(found, source), ill=ill)
    if hasattr(source, "columns"):
        return _of_frame(source)
    if isinstance(source, (str, bytes, Mapping)):
        raise _nothing(source)
    try:
        topics, payloads, ids = _columns([tuple(message) for message in source], 3)
        return _checked(topics, ids, payloads)
    except (TypeError, ValueError, IndexError):
        raise _nothing(source) from None


def _nothing(source: Any) -> BadValue:
    return BadValue("tap", type(source).__name__, "is nothing that has received messages",
                    "Give a tap, its frame(), or its messages().")


def _of_frame(frame: Any) -> Received:
    missing = [name for name in ("topic", "id", "payload") if name not in frame.columns]
    if missing:
        raise BadValue("tap", "a DataFrame", f"lacks the column {missing[0]}",
                       "Give tap.frame() as it is.")
    found = _checked(frame["topic"].astype(str).tolist(),
                     frame["id"].tolist(), frame["payload"].tolist())
    found = replace(found, time_us=_us(frame, "time"), sent_us=_us(frame, "sent"))
    return _testified(found, frame)


def _testified(found: Received, source: Any) -> Received:
    witness = _witness(source)
    if not witness:
        return found
    names = ("url", "ill", "away", "absence", "since_us", "until_us")
    return replace(found, known=True, **{name: witness[name] for name in names})


def _checked(topics: Sequence[Any], ids: Sequence[Any], payloads: Sequence[Any]) -> Received:
    ids = ["" if name is None or name != name else name for name in ids]
    for values, kinds, what in (
        (topics, str, "topics that are not text"), (ids, str, "ids that are not text"),
        (payloads, (str, bytes, bytearray, memoryview), "payloads that are not bytes"),
    ):
        if not all(isinstance(value, kinds) for value in values):
            raise BadValue("tap", "a list", f"has {what}", "Give (topic, payload, id).")
    payloads = [one.encode("utf-8", "surrogatepass") if isinstance(one, str) else bytes(one)
                for one in payloads]
    none = np.zeros(len(ids), dtype=np.int64)
    return Received(topics, ids, payloads, none, none)


def _columns(rows: Sequence[Sequence[Any]], count: int) -> list[list[Any]]:
    return [[row[i] for row in rows] for i in range(count)]


def _ints(values: Iterable[int]) -> Ints:
    return np.array(list(values), dtype=np.int64)


def _us(frame: Any, name: str) -> Ints:
    if name not in frame.columns:
        return np.zeros(len(frame), dtype=np.int64)
    if frame[name].dtype.kind != "M":
        raise BadValue("tap", "a DataFrame", f"has a column {name} that is no time",
                       "Give tap.frame() as it is.")
    times = frame[name].dt.tz_localize(None).to_numpy("datetime64[us]")
    return np.where(np.isnat(times), 0, times.view(np.int64))


def _id_in(payload: bytes, field: str) -> str:
    try:
        found = orjson.loads(payload)[field]
    except (ValueError, KeyError, TypeError, IndexError):
        return ""
    return found if isinstance(found, str) else ""
