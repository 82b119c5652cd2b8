"""Sent against received: what an independent subscriber saw, beside what the run says it made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from iotsim.errors import IotsimError
from iotsim.publishers.payload import Encoder
from iotsim.rebuilt import digest_of_messages
from iotsim.result import Result


@dataclass(frozen=True, slots=True)
class Audit:
    """What came of the comparison; payloads are compared as bytes.

    Attributes
    ----------
    sent, received : int
        Readings of the run; messages that arrived.
    lost, foreign, doubled : int
        Readings that never arrived; messages that are no reading of the run; arrived again.
    by_type : mapping of device type to count
        Different readings that arrived.
    digest : str or None
        Of what arrived, each message id once; None where messages have no ids (MQTT 3.1.1).
    trouble : str
        Why there is no digest although there should be one.
    """

    sent: int
    received: int
    lost: int
    foreign: int
    doubled: int
    by_type: Mapping[str, int]
    digest: str | None
    trouble: str = ""


def audit(result: Result, messages: Iterable[tuple[bytes, str]], *, has_ids: bool) -> Audit:
    """Compare a run with what arrived.

    Parameters
    ----------
    result : Result
        With all of its readings.
    messages : iterable of (payload, id)
    has_ids : bool
        Whether the protocol carries message ids.
    """
    arrived = list(messages)
    counts = Counter(payload for payload, _ in arrived)
    # A payload names its device and its time, so each stands for one reading.
    kind_of = dict(_sent(result))
    by_type = Counter(kind_of[payload] for payload in counts if payload in kind_of)
    known = sum(by_type.values())
    foreign = sum(count for payload, count in counts.items() if payload not in kind_of)
    digest, trouble = None, ""
    if has_ids:
        try:
            digest = digest_of_messages((payload, name) for name, payload
                                        in {name: payload for payload, name in arrived}.items())
        except IotsimError as error:
            trouble = str(error)
    return Audit(
        sent=result.rows,
        received=len(arrived),
        lost=result.rows - known,
        foreign=foreign,
        doubled=len(arrived) - foreign - known,
        by_type=by_type,
        digest=digest,
        trouble=trouble,
    )


def _sent(result: Result) -> Iterator[tuple[bytes, str]]:
    encoder = Encoder("demo", lambda _group, _i: "")
    for readings in result.capture.chunks():
        kind = readings.group.device_type
        for payload in encoder.encode(readings).payloads:
            yield payload, kind
