"""What the tests of publishers share: blocks of messages and a ledger that checks itself."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np

from iotsim.publishers.base import build
from iotsim.publishers.ledger import STATES, Ledger
from iotsim.publishers.payload import Messages
from iotsim.publishers.pump import Pump


class CheckedLedger(Ledger):
    """Asserts the law and its signs at every single move."""

    def __init__(self):
        super().__init__()
        self.moves = 0
        self.seen = set()

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


def block(count, first=0, devices=10, size=40, topic="devices/{}/telemetry"):
    """Messages of a few devices in turn; ids count per device."""
    names = [f"d-{i % devices}" for i in range(first, first + count)]
    ids = [f"run/{name}/{i // devices}/0" for i, name in enumerate(names, first)]
    payloads = [f"{i}".encode().ljust(size, b".") for i in range(first, first + count)]
    return Messages([topic.format(n) for n in names], payloads, ids, np.zeros(count, np.int64))


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
