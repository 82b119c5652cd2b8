"""Sent against received: what became of every reading, and whose a loss is.

The run's model says what left each device and when, the acknowledgements say what the broker took,
and an independent subscriber says what arrived. A reading that a simulated fault withheld is
expected to be missing; one that the broker acknowledged and nobody received is the broker's loss.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from iotsim.audit_doubt import doubts
from iotsim.audit_match import (
    UNEXPECTED,
    Evidence,
    Joined,
    joined,
    judged,
    overtaken,
)
from iotsim.audit_received import Received, listens_to, received_of, settle, url_of
from iotsim.audit_sent import Sent, departure_order, sent_of, topics_of, wall_us_of
from iotsim.audit_tables import Table
from iotsim.audit_verdict import Audit
from iotsim.destinations import Destination
from iotsim.errors import BadValue
from iotsim.faults.base import NEVER_US
from iotsim.links import STORED
from iotsim.publishers.base import choice, text
from iotsim.readings import Ints
from iotsim.result import Result
from iotsim.selectors import Where
from iotsim.units import Duration, duration_us

EXAMPLES_MAX = 5
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def audit(
    result: Result, source: Any, *, where: Where = "all", publisher: str | None = None,
    audit_field: str | None = None, clock: str | None = None, late: Duration = "1s",
) -> Audit:
    """Return what became of every reading of a run.

    Parameters
    ----------
    result : Result
        Of a live run.
    source : Tap, DataFrame or iterable of (topic, payload, id)
        What was received: a tap, open or closed, its `frame()`, or its `messages()`.
    where : selector
        Only these devices.
    publisher : str, optional
        Which publisher's messages are compared, as `Result.publishers` calls it; those with the
        tap's host and port if not given. Of several with one URL, the URL means all of them, and
        "URL (1)" the first. Whose a message with one id is, its topic says.
    audit_field : str, optional
        The key of the JSON documents that holds the id, where a message carries none; what the
        publisher was given as `audit_field=` if left out.
    clock : {"stamp", "timestamp"}, optional
        What latency counts from: the message's own stamp (`publish_to(…, stamp=True)`), or the
        instant at which it left its device's link; stamps if all messages have one.
    late : duration
        How late a reading has to come to be called late.

    Raises
    ------
    BadValue
        If the run published nothing, holds no readings, or not to where the tap listens.
    """
    if clock is not None:
        choice("clock", clock, ("stamp", "timestamp"))
    text("audit_field", audit_field)
    late_us = duration_us(late, "late")
    destinations = _chosen(result, publisher, url_of(source))
    siblings = _siblings(result, destinations)
    sent = sent_of(result, destinations, where, listens_to(source), siblings)
    verdicts = _verdicts(result, sent, destinations)
    key = audit_field or next((one.audit_field for one in destinations if one.audit_field), None)
    moving = settle(source, sent.hashes[sent.mine & verdicts[0]], key)
    bare = received_of(source)
    received = bare.named(key) if key and not all(bare.ids) else bare
    # A key that no message has is in no payload of ours either.
    field = audit_field if received.ids != bare.ids else None
    keys, by_payload = _keys(sent, received, field)
    several = len(destinations) + len(siblings) > 1
    found = _found(result, sent, received, keys, several=several)
    left_us = wall_us_of(np.minimum(sent.left_us, NEVER_US), result.paces)
    unwatched, ill = doubts(received, sent, left_us, found, acknowledged=verdicts[0],
                            undecided=verdicts[1], moving=moving)
    evidence = Evidence(
        sent.withheld > 0, verdicts[0], verdicts[1], verdicts[2] > 0,
        _flags(sent, destinations), _corrupted(sent, received, found, field),
        unwatched,
        bool(result.acks is not None and result.acks.evicted),
    )
    came = found.arrival_of >= 0
    code, whose = judged(came, found.copies > 1, evidence)
    latency_s, clock_name = _latency(received, found, left_us, clock)
    assert result.history is not None, "see sent_of"
    rows = np.flatnonzero(sent.mine)
    table = Table.of(
        sent, rows, result.history,
        code=code, whose=whose, evidence=evidence, refused=verdicts[2],
        reasons=[] if result.acks is None else result.acks.reasons,
        found=found, latency_s=latency_s,
        received_us=_at(received.time_us, found.arrival_of),
        overtaken=overtaken(departure_order(sent), sent.slot * 65536 + sent.lane,
                            np.where(sent.mine, found.arrival_of, -1)),
        late=latency_s * 1e6 > late_us,
    )
    strange = _strange(result, sent, received, found)
    totals = table.totals()
    return Audit(
        name=result.name, table=table, **totals,
        unexpected=len(strange.unexpected) + int((table.code == UNEXPECTED).sum()),
        foreign=strange.foreign, unheld=strange.unheld, unheard=sent.unheard,
        latency=_quantiles(table.latency_s), reasons=table.refusals(),
        drops=_drops(result, destinations),
        examples=tuple((received.topics[i], received.ids[i])
                       for i in strange.unexpected[:EXAMPLES_MAX]),
        clock=clock_name, ill=received.ill or ill,
        notes=_notes(result, clock_name, strange, totals,
                     by_payload=by_payload, empty=not len(received),
                     trusted=received.known or not totals["lost_by_broker"]),
    )


def _found(
    result: Result, sent: Sent, received: Received, keys: Ints, *, several: bool
) -> Joined:
    if not several:
        return joined(sent.hashes, keys)
    return joined(*_by_topic(sent.hashes, topics_of(sent, result), keys, received.topics))


# -- who and where ------------------------------------------------------------------------------


def _chosen(result: Result, publisher: str | None, url: str) -> list[Destination]:
    known = list(result.destinations)
    urls = [one.url for one in known]
    listed = ", ".join(f"{one.name} (1)" if one.name == one.url and urls.count(one.url) > 1
                       else one.name for one in known)
    if not known:
        raise BadValue("result", result.name, "published nothing",
                       "Audit a live run of a fleet with publish_to(…).")
    if publisher is not None:
        bare = re.sub(r"//.*@", "//", str(publisher))  # as it was given to publish_to
        found = [one for one in known if bare == one.url]
        found = found or [one for one in known if bare in (one.name, f"{one.name} (1)")][:1]
        if not found:
            raise BadValue("publisher", bare, "is none of this run's", f"Known: {listed}.")
        return found
    if not url:
        if len({one.url for one in known}) > 1:
            raise BadValue("publisher", None, "must say which messages these are",
                           f"Give one of: {listed}.")
        return known
    found = [one for one in known if _place(one.url) == _place(url)]
    if not found:
        raise BadValue("tap", url, "listens where this run did not publish to",
                       f"Give publisher=, one of: {listed}.")
    return found


def _place(url: str) -> tuple[str, int | None]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return "loopback" if host in _LOOPBACK else host, parts.port


def _siblings(result: Result, chosen: Sequence[Destination]) -> list[Destination]:
    return [one for one in result.destinations if one not in chosen
            and any(_together(one, other) for other in chosen)]


def _together(one: Destination, other: Destination) -> bool:
    # Whether a subscriber to one may hear what goes to the other.
    place = _place(one.url)
    return one.url == other.url or (bool(place[0]) and place == _place(other.url))


# -- what is known ------------------------------------------------------------------------------


def _verdicts(
    result: Result, sent: Sent, destinations: Sequence[Destination]
) -> tuple[Any, Any, Any]:
    acked = np.zeros(len(sent), dtype=np.bool_)
    undecided, refused = acked.copy(), np.zeros(len(sent), dtype=np.uint8)
    for one in destinations:
        rows = np.flatnonzero(sent.lane == one.number)
        if result.acks is not None and len(rows):
            acked[rows], undecided[rows], refused[rows] = result.acks.verdicts(
                sent.hashes[rows], one.number)
    return acked, undecided, refused


def _flags(sent: Sent, destinations: Sequence[Destination]) -> Any:
    return np.isin(sent.lane, [one.number for one in destinations if one.confirms])


def _keys(sent: Sent, received: Received, field_name: str | None) -> tuple[Ints, bool]:
    # The hash of each message's id, and whether any is found, or all are sought, without one.
    # Then a payload stands for its reading: it names its device and its time; one that is none of
    # this run's gets 0.
    keys = _hashes(received.ids)
    bare = np.flatnonzero([not name for name in received.ids])
    if len(bare):
        bodies = np.empty(len(sent), dtype=np.int64)
        for rows, payloads, _ in sent.payloads(np.arange(len(sent)), field_name):
            bodies[rows] = _hashes(payloads)
        came = _hashes([received.payloads[i] for i in bare.tolist()])
        # Copies that a fault made are alike: those of which one came by its id come last.
        free = np.flatnonzero(~np.isin(sent.hashes, np.delete(keys, bare)))
        for rows in (np.arange(len(sent)), free):
            row_of = joined(bodies[rows], came).row_of
            found = row_of >= 0
            keys[bare[found]] = sent.hashes[rows[row_of[found]]]
    return keys, len(bare) > 0 and (len(bare) == len(keys) or bool(keys[bare].any()))


def _by_topic(
    sent: Ints, sent_topics: Sequence[str], received: Ints, topics: Sequence[str]
) -> tuple[Ints, Ints]:
    # Readings that went to one broker twice under one id: each copy belongs to who sent it under
    # its topic. One that came under a topic of nobody's is anybody's.
    ours, theirs = _paired(sent, sent_topics), _paired(received, topics)
    strange = np.flatnonzero(~np.isin(theirs, ours))
    row_of = joined(sent, received[strange]).row_of
    theirs[strange] = np.where(row_of >= 0, ours[row_of], 0)
    return ours, theirs


def _paired(keys: Ints, topics: Sequence[str]) -> Ints:
    plain = {one: one.replace("/", ".") for one in set(topics)}  # as NATS and AMQP have them
    return _hashes(list(zip(keys.tolist(), map(plain.__getitem__, topics), strict=True)))


def _hashes(values: Sequence[Any]) -> Ints:
    return np.fromiter(map(hash, values), np.int64, len(values))


def _corrupted(sent: Sent, received: Received, found: Joined, field_name: str | None) -> Any:
    wrong = np.zeros(len(sent), dtype=np.bool_)
    arrivals = np.flatnonzero((found.row_of >= 0) & sent.mine[found.row_of])
    arrivals = arrivals[np.argsort(found.row_of[arrivals], kind="stable")]
    row_of, payloads = found.row_of[arrivals], received.payloads
    once = row_of[np.diff(row_of, prepend=-1) > 0]
    for rows, bodies, form in sent.payloads(once, field_name):
        low, high = np.searchsorted(row_of, [rows[0], rows[-1] + 1])
        place = np.searchsorted(rows, row_of[low:high]).tolist()
        same = bytes.__eq__ if form is None else form.same
        differs = [not same(bodies[k], payloads[i])
                   for i, k in zip(arrivals[low:high].tolist(), place, strict=True)]
        if any(differs):
            wrong[row_of[low:high][differs]] = True
    return wrong


def _at(values: Ints, place: Ints) -> Ints:
    return np.where(place >= 0, values[place], 0) if len(values) else np.zeros_like(place)


def _latency(
    received: Received, found: Joined, left_us: Any, clock: str | None
) -> tuple[Any, str]:
    seconds = np.full(len(left_us), np.nan)
    rows = np.flatnonzero(found.arrival_of >= 0)
    at = found.arrival_of[rows]
    if not len(rows) or not received.time_us.any():
        return seconds, "none"
    stamped = received.sent_us[at] > 0
    if clock is None:
        clock = "stamp" if stamped.all() else "timestamp"
    if clock == "stamp":
        since_us = np.where(stamped, received.sent_us[at].astype(np.float64), np.nan)
    else:
        since_us = left_us[rows]
    seconds[rows] = (received.time_us[at] - since_us) / 1e6
    return seconds, "none" if np.isnan(seconds).all() else clock


# -- what nobody sent ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Strange:
    unexpected: list[int]
    foreign: int
    unheld: int


def _strange(result: Result, sent: Sent, received: Received, found: Joined) -> _Strange:
    unexpected: list[int] = []
    foreign = unheld = 0
    evicted = bool(result.capture.evicted_rows)
    held = _first_held(result, sent) if evicted else {}
    for i in np.flatnonzero(found.row_of < 0).tolist():
        name = received.ids[i]
        run, _, rest = name.partition("/")
        if run != result.run_id and (name or not evicted):
            foreign += 1
        elif evicted and (not name or _is_older(rest, held)):
            unheld += 1
        else:
            unexpected.append(i)
    return _Strange(unexpected, foreign, unheld)


def _first_held(result: Result, sent: Sent) -> dict[str, int]:
    # The first tick that is still held, by device; those of whom nothing is: none.
    assert result.history is not None, "see sent_of"
    first = np.full(len(result.history.population), 2**62, dtype=np.int64)
    np.minimum.at(first, sent.slot, sent.seq)
    return dict(zip(result.history.population.ids, first.tolist(), strict=True))


def _is_older(rest: str, held: Mapping[str, int]) -> bool:
    parts = rest.rsplit("/", 2)
    tick = parts[1].partition(".")[0] if len(parts) == 3 else ""
    return parts[0] in held and tick.isdigit() and int(tick) <= held[parts[0]]


def _quantiles(latency_s: Any) -> tuple[float, float, float]:
    seconds = latency_s[~np.isnan(latency_s)]
    if not len(seconds):
        return np.nan, np.nan, np.nan
    p50_s, p99_s = np.quantile(seconds, (0.5, 0.99)).tolist()
    return p50_s, p99_s, float(seconds.max())


def _drops(result: Result, destinations: Sequence[Destination]) -> dict[str, int]:
    drops: dict[str, int] = {}
    for one in destinations:
        for reason, count in result.publishers[one.name].drops.items():
            if reason != STORED:  # what a fault kept was never to be sent
                drops[reason] = drops.get(reason, 0) + count
    return drops


def _notes(
    result: Result, clock: str, strange: _Strange, totals: Mapping[str, int], *,
    by_payload: bool, empty: bool, trusted: bool,
) -> tuple[str, ...]:
    withheld = totals["expected"]
    found = [] if trusted else ["the tap's health is not known"]
    if empty and not trusted:
        found.append("nothing was given")
    if result.capture.evicted_rows:
        found.append(f"of the {result.capture.rows:,} readings that are held (see capture=)")
    if by_payload:
        found.append("messages carry no ids: matched by their payload")
    if withheld:
        found.append(f"{withheld:,} withheld by faults")
    if strange.foreign:
        found.append(f"{strange.foreign:,} of other runs or senders")
    virtual = bool(result.paces) and all(not 0 < pace[2] < np.inf for pace in result.paces)
    if clock == "none" and virtual:
        found.append("no latency: at speed 'max' a timestamp is no time of day")
    return tuple(found)
