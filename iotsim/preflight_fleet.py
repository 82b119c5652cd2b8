"""Whether a fleet's run fits: this machine, and every publisher, before anything begins."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iotsim import live_runs
from iotsim.arrow import target
from iotsim.capture import Bound
from iotsim.clock import Speed, check_speed
from iotsim.errors import BadValue
from iotsim.facts import facts_html, line, table_html
from iotsim.outlets import Route, routes_of
from iotsim.preflight import Finding, Need, file_finding, look, port_finding, size_text
from iotsim.preflight_probe import Burst, Contact, Wish, burst, contacts
from iotsim.preflight_rates import rate_finding, wanted
from iotsim.units import US_PER_SECOND, Duration, duration_us

if TYPE_CHECKING:
    from iotsim.fleet import Fleet
    from iotsim.members import Members

PROTOCOLS = ("mqtt", "amqp", "nats", "http", "coap")  # those that somebody can be asked at
OWN_SHARE = 0.7  # of a core, for making messages; the rest is for brokers and the notebook
OUTAGE_S = 600.0  # how long a broker may be away, for what queues then hold
PAYLOAD_BYTES = 250  # where none could be seen
DEVICE_BYTES = 600
ROW_BYTES = 24  # of the capture, besides 8 for each field
FILE_ROW_BYTES = 12
ACK_BYTES, ACKS_MAX = 15, 10_000_000
QUEUED_BYTES = 300  # besides the payload
CONNECTION_BYTES = 60_000
BASE_BYTES = 60_000_000
TOPICS_MAX = 8


@dataclass(frozen=True, slots=True, repr=False)
class Preflight:
    """What was found before a run.

    Attributes
    ----------
    name : str
        The fleet's.
    findings : tuple of Finding
        `name`, `ok`, `text` of each.
    """

    name: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything fits."""
        return all(finding.ok for finding in self.findings)

    def __bool__(self) -> bool:
        return self.ok

    def _said(self) -> str:
        wrong = [finding for finding in self.findings if not finding.ok]
        if not wrong:
            return f"all {len(self.findings)} fit"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return f"does not fit: {wrong[0].name}: {wrong[0].text}{more}"

    def __repr__(self) -> str:
        return f"<Preflight {self.name!r}: {line(self._said())}>"

    def __str__(self) -> str:
        width = max((len(finding.name) for finding in self.findings), default=0)
        return "\n".join(f"{'ok ' if one.ok else 'NO '} {one.name:<{width}}  {one.text}"
                         for one in self.findings)

    def _repr_html_(self) -> str:
        rows = [("✓" if one.ok else "✗", one.name, one.text) for one in self.findings]
        found = table_html(("", "what", "found"), rows, len(rows), "findings")
        return facts_html(f"Preflight {self.name}", [("verdict", self._said())], found)


@dataclass(frozen=True, slots=True)
class _Plan:
    # What is to fit; times are simulated, rates are real.
    members: Sequence[Members]
    routes: Sequence[Route]
    duration_s: float | None
    speed: float
    bound: Bound
    to: Path | None

    def rate_hz(self, route: Route | None = None) -> float:
        """Return readings a second of real time, of everybody or of a route."""
        found = 0.0
        for i, member in enumerate(self.members):
            if member.interval_us is not None:
                masks = None if route is None else route.masks.get(i)
                count = member.count if route is None else 0 if masks is None else masks.sum()
                found += int(count) * US_PER_SECOND / member.interval_us
        return found * self.speed if found else 0.0

    def rows(self, span_s: float | None = None) -> float:
        """Return the readings of the whole run, or of so many simulated seconds of it."""
        lasts_s = math.inf if self.duration_s is None else self.duration_s
        lasts_s = lasts_s if span_s is None else min(span_s, lasts_s)
        rate_hz = sum(member.count * US_PER_SECOND / member.interval_us
                      for member in self.members if member.interval_us is not None)
        return rate_hz * lasts_s if rate_hz else 0.0

    def row_bytes(self, each: int, fixed: int) -> int:
        fields = [len(member.profile.fields) for member in self.members if member.profile]
        return fixed + each * max(fields, default=3)


def preflight(
    fleet: Fleet, duration: Duration | None, *, speed: Speed, capture: Any, to: str | Path | None,
    connect: bool,
) -> Preflight:
    """Look whether a run would fit; see `Fleet.preflight`."""
    groups = [member.group(i) for i, member in enumerate(fleet.members)]
    routes, notes = routes_of(fleet.outlets, fleet.members, groups)
    plan = _Plan(
        fleet.members, routes, None if duration is None else duration_us(duration) / 1e6,
        check_speed(speed), Bound.of(capture),
        None if to is None else target("to", to, "x.parquet"),
    )
    made = burst(fleet.members, fleet.seed)
    found = [_own(plan, made), _memory(plan, made)]
    found += [finding for finding in look(Need()) if not finding.ok]
    if plan.to is not None:
        found.append(_disk(plan, plan.to))
    found += _sockets(routes)
    found += _publishers(fleet, plan, made) if connect else []
    found += [Finding("publish_to", True, note) for note in notes]
    return Preflight(fleet.name, tuple(found))


def _own(plan: _Plan, made: Burst) -> Finding:
    rate_hz, most_hz = plan.rate_hz(), made.rate_hz
    scripted = sum(member.count for member in plan.members if member.profile is None)
    besides = f"; {scripted:,} scripted devices not counted" if scripted else ""
    if math.isnan(most_hz):
        return Finding("own speed", True, f"could not be tried{besides}")
    text = f"this machine makes about {most_hz:,.0f} messages a second on one core"
    if math.isinf(plan.speed):
        return Finding("own speed", True, f"{text}{besides}")
    text += f"; the fleet wants {wanted(rate_hz)}{besides}"
    if rate_hz <= OWN_SHARE * most_hz:
        return Finding("own speed", True, text)
    return Finding("own speed", False, f"{text}. Use fewer devices, a longer every=, a lower "
                   "speed=, or generate().")


def _memory(plan: _Plan, made: Burst) -> Finding:
    bound = plan.bound
    rows = plan.rows(None if bound.span_us is None else bound.span_us / 1e6)
    rows = rows if bound.rows is None else min(rows, bound.rows)
    row_bytes = plan.row_bytes(8, ROW_BYTES)
    if math.isinf(rows):
        hour = plan.rate_hz() * 3600 * row_bytes
        grows = f"about {size_text(hour)} an hour" if math.isfinite(hour) else "without end"
        return Finding("memory", False, f"the capture grows {grows}, and the run has no end. "
                       "Give a duration, or a bound such as capture='10m'.")
    needed = BASE_BYTES + DEVICE_BYTES * sum(member.count for member in plan.members)
    needed += int(rows) * row_bytes
    for route in plan.routes:
        lanes = _lanes(route)
        needed += lanes * CONNECTION_BYTES + _queued(plan, made, route, lanes)
        needed += int(min(plan.rows(), ACKS_MAX)) * ACK_BYTES
    return look(Need(memory_bytes=needed))[-1]


def _queued(plan: _Plan, made: Burst, route: Route, lanes: int) -> int:
    # What may wait while a broker is away: until queues are full, or it is back.
    capacity = lanes * route.publisher.limits.queue_messages
    away_s = OUTAGE_S if plan.duration_s is None else min(OUTAGE_S, plan.duration_s / plan.speed)
    waiting = min(capacity, plan.rate_hz(route) * away_s) if away_s else capacity
    return int(waiting) * (_payload(made, route) or PAYLOAD_BYTES) + int(waiting) * QUEUED_BYTES


def _payload(made: Burst, route: Route) -> int:
    return max((made.payload_bytes.get(index, 0) for index in route.masks), default=0)


def _disk(plan: _Plan, path: Path) -> Finding:
    folder = next((one for one in (path.absolute().parent, *path.absolute().parents)
                   if one.is_dir()), None)
    if folder is None:
        return Finding("disk", False, f"{path} is in no folder. Give another to=.")
    free = shutil.disk_usage(folder).free
    rows, row_bytes = plan.rows(), plan.row_bytes(FILE_ROW_BYTES, 8)
    if math.isinf(rows):
        hours = free / max(1.0, plan.rate_hz() * row_bytes * 3600)
        return Finding("disk", True, f"{size_text(free)} free, enough for about {hours:,.0f} hours")
    needed = rows * row_bytes
    text = f"{size_text(free)} free, about {size_text(needed)} needed"
    if needed <= free:
        return Finding("disk", True, text)
    return Finding("disk", False, f"{text}. Choose fewer devices, a shorter run, or another to=.")


def _sockets(routes: Sequence[Route]) -> list[Finding]:
    per_peer: Counter[tuple[str, int]] = Counter()
    for route in routes:
        address = getattr(route.publisher, "address", None)
        if address is not None and route.outlet.protocol in PROTOCOLS:
            count = _lanes(route)
            if route.outlet.protocol == "http":
                count *= getattr(route.publisher, "connections", 1)
            per_peer[address.host, address.port] += count
    found = [file_finding(sum(per_peer.values()))]
    return [*found, port_finding(max(per_peer.values()))] if per_peer else found


def _lanes(route: Route) -> int:
    try:
        return route.publisher.lanes(route.devices)
    except BadValue:  # too many: told where the publisher is looked at
        return route.devices


def _publishers(fleet: Fleet, plan: _Plan, made: Burst) -> list[Finding]:
    live = any(run.name == fleet.name for run in live_runs.runs())
    asked: list[Wish] = []
    for route in plan.routes:
        known = any(route.publisher == wish.publisher for wish in asked)
        if route.outlet.protocol not in PROTOCOLS or known:
            continue
        if not (live and route.publisher.per_device):  # its session would be taken over
            names = route.identities or ()
            device = names[0] if route.publisher.per_device and names else None
            asked.append(Wish(route.publisher, device, _topics(plan, route)))
    answers = list(zip(asked, contacts(asked), strict=True)) if asked else []
    found: list[Finding] = []
    for route in plan.routes:
        if route.outlet.protocol not in PROTOCOLS:
            continue
        contact = next((answer for wish, answer in answers
                        if wish.publisher == route.publisher), None)
        found.append(_told(plan, made, route, contact))
    return found


def _topics(plan: _Plan, route: Route) -> list[str]:
    # One of each kind of device, as far as they go.
    found: dict[str, None] = {}
    for index, mask in list(route.masks.items())[:TOPICS_MAX]:
        member = plan.members[index]
        first = int(np.flatnonzero(mask)[0])
        found[route.outlet.topic_of(member, member.group(index), first)] = None
    return list(found)


def _told(plan: _Plan, made: Burst, route: Route, contact: Contact | None) -> Finding:
    publisher = route.publisher
    try:
        lanes = publisher.lanes(route.devices)
    except BadValue as error:
        return Finding(publisher.url, False, str(error))
    if contact is None:
        return Finding(publisher.url, True, "not asked: the fleet is live, and the sessions of its "
                       "devices would be taken over")
    return rate_finding(publisher.url, publisher, route.outlet.protocol, contact,
                        lanes, plan.rate_hz(route), _payload(made, route), made.rate_hz)
