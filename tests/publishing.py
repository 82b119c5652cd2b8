"""What the tests of publishers share: blocks of messages and a ledger that checks itself."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from iotsim.errors import ConnectError
from iotsim.publishers import pump as pump_module
from iotsim.publishers.base import UNTRACED, Identity, Limits, Link, Tracing, build
from iotsim.publishers.lane import Lane
from iotsim.publishers.ledger import STATES, Ledger
from iotsim.publishers.payload import Messages
from iotsim.publishers.pump import Pump


class CheckedLedger(Ledger):
    """Asserts the law and its signs at every single move; compares itself with its lanes.

    Within a turn of the loop a lane may be between its stores and the account. So the comparison
    comes at the end of each turn that moved something; what did not agree is in `wrong`.
    """

    def __init__(self):
        super().__init__()
        self.moves = self.compared = 0
        self.seen = set()
        self.lanes = []
        self.wrong = []
        self._due = False

    def offer(self, count, state="queued", reason=""):
        super().offer(count, state, reason)
        self.check()

    def move(self, source, target, count, reason=""):
        assert count >= 0
        super().move(source, target, count, reason)
        if count:
            self.seen.add((source, target))
        self.check()

    def check(self):
        self.moves += 1
        assert self.offered == sum(self.counts[state] for state in STATES), self.counts
        assert min(self.counts.values()) >= 0, self.counts
        if self.lanes and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._compare)

    def _compare(self):
        self._due = False
        self.compared += 1
        held = tuple(map(sum, zip(*(lane.contents for lane in self.lanes), strict=True)))
        counts = self.counts
        said = (counts["queued"], counts["in_flight"], counts["unknown"] - self.given_up)
        if said != held and len(self.wrong) < 10:
            self.wrong.append(f"the account says {said}, the lanes hold {held}")


class SeenLane(Lane):
    """A lane whose ledger looks into it."""

    def __init__(self, index, make_link, settings):
        super().__init__(index, make_link, settings)
        if isinstance(settings.ledger, CheckedLedger):
            settings.ledger.lanes.append(self)


pump_module.Lane = SeenLane  # in every test; only a CheckedLedger makes use of it


def block(count, first=0, devices=10, size=40, topic="devices/{}/telemetry"):
    """Messages of a few devices in turn; ids count per device."""
    names = [f"d-{i % devices}" for i in range(first, first + count)]
    ids = [f"run/{name}/{i // devices}/0" for i, name in enumerate(names, first)]
    payloads = [f"{i}".encode().ljust(size, b".") for i in range(first, first + count)]
    return Messages([topic.format(n) for n in names], payloads, ids, np.zeros(count, np.int64))


def names(count):
    """Devices as `block` has them."""
    return [Identity(f"d-{i}", "meter", {"site": "north"}) for i in range(count)]


def own(device, count, first=0, size=0):
    """Messages of one device."""
    ids = [f"run/{device}/{i}/0" for i in range(first, first + count)]
    payloads = [f"{device} {i}".encode().ljust(size, b".") for i in range(first, first + count)]
    return Messages([f"devices/{device}/telemetry"] * count, payloads, ids, np.zeros(count, int))


def one(topic, payload=b"x", ident="run/odd/0/0"):
    return Messages([topic], [payload], [ident], np.zeros(1, np.int64))


@asynccontextmanager
async def pumping(url, deadline_s=5.0, pump=None, **options):
    """A pump with a checked ledger; leaves no task behind, and says so."""
    carrier = Pump(build(url, **options), ledger=CheckedLedger(), **(pump or {}))
    await carrier.open()
    try:
        yield carrier
    finally:
        await carrier.close(deadline_s)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("iotsim")]
    assert carrier._ledger.wrong == []
    end = carrier.snapshot()
    assert end.balanced
    assert end.queued == end.in_flight == 0


def in_order_per_device(ids):
    """Whether the ids of each device count up."""
    last = {}
    for ident in ids:
        _, device, seq, _ = ident.split("/")
        if int(seq) <= last.get(device, -1):
            return False
        last[device] = int(seq)
    return True


@dataclass
class Gate:
    """A publisher whose links do exactly what a test tells them, and record what they get."""

    count: int = 1
    window: int = 100
    limits: Limits = field(default_factory=Limits)
    url: str = "gate:"
    links: list = field(default_factory=list)
    failures: int = 0  # so many openings fail, the first of a link excepted
    held: asyncio.Event | None = None  # openings wait for it
    opening: int = 0
    opening_most: int = 0
    behave: object = None  # called with (link, tokens, items) at each send
    per_device: bool = False
    pipelines: bool = False
    tracing: Tracing = UNTRACED

    def lanes(self, devices):
        return devices if self.per_device else self.count

    def link(self, lane, run_id, verdicts, device=None):
        self.links.append(GateLink(self, verdicts, device))
        return self.links[-1]


class GateLink(Link):
    def __init__(self, gate, verdicts, device=None):
        self.gate, self.verdicts, self.device = gate, verdicts, device
        self.opened = self.fresh = 0
        self.gone = ()
        self.pipelines = gate.pipelines
        self.sent = []
        self.open_tokens = []
        self.closed = False

    async def open(self):
        if self.opened and self.gate.failures:
            self.gate.failures -= 1
            raise ConnectError("gate:", "closed for now")
        self.gate.opening += 1
        self.gate.opening_most = max(self.gate.opening_most, self.gate.opening)
        try:
            if self.gate.held is not None:
                await self.gate.held.wait()
        finally:
            self.gate.opening -= 1
        self.opened += 1
        self.open_tokens.clear()
        return self.gate.window

    def send(self, tokens, items):
        self.sent += [item[2] for item in items]
        self.open_tokens += tokens
        if self.gate.behave is not None:
            self.gate.behave(self, tokens, items)
        return True

    def passed_over(self, tokens):
        self.gone = (*self.gone, *tokens)

    def acknowledge(self, count=None):
        done = self.open_tokens[:count]
        del self.open_tokens[: len(done)]
        self.verdicts.acknowledged(done)

    def drop(self):
        self.closed = True

    async def close(self):
        self.closed = True


@asynccontextmanager
async def gated(gate, deadline_s=0.6, **options):
    pump = Pump(gate, ledger=CheckedLedger(), **options)
    await pump.open()
    try:
        yield pump
    finally:
        await pump.close(deadline_s)
        assert not [t for t in asyncio.all_tasks() if t.get_name().startswith("iotsim")]
        assert pump._ledger.wrong == []
        assert pump.snapshot().balanced


async def turn():
    """Let the loop do what is due."""
    for _ in range(5):
        await asyncio.sleep(0)


async def until(condition, timeout_s=45):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
