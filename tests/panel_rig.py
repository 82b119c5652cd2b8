"""Panels without a browser: what goes out through their comm, and what comes in on other threads.

`Wire` stands for the comm of a kernel: it records every message with the thread that sent it, and
keeps the state as a page would have it. `live` runs a fleet with its panel.
"""

import asyncio
import json
import struct
import threading
from contextlib import asynccontextmanager
from typing import ClassVar

import comm
import pytest
from comm.base_comm import BaseComm

from iotsim import Fleet
from iotsim.panels import run_panel
from tests.live import until

COLUMNS = ("time", "q05", "q25", "q50", "q75", "q95", "picked", "offered", "acked", "lost",
           "late_p99", "ack_p50", "ack_p99")


class Wire(BaseComm):
    """One widget's comm; `known` holds them by the widget's id."""

    known: ClassVar[dict] = {}

    def __init__(self, *given, **named):
        self.sent = []  # (kind, keys of the state, thread)
        self.state = {}  # as a page has it
        self.lost = 0  # so many of the next messages do not arrive
        super().__init__(*given, **named)
        Wire.known[self.comm_id] = self

    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **more):
        content = json.loads(json.dumps(data or {}, allow_nan=False))  # as a session packs it
        state = content.get("state", {})
        self.sent.append((msg_type, tuple(sorted({**state, **{
            path[0]: None for path in content.get("buffer_paths", ())}})), threading.get_ident()))
        if self.lost:
            self.lost -= 1
            return
        self.state.update(state)
        for path, buffer in zip(content.get("buffer_paths", ()), buffers or (), strict=True):
            self.state[path[0]] = bytes(buffer)

    @property
    def updates(self):
        """The messages that brought a state, beyond the first."""
        return [one for one in self.sent if one[0] == "comm_msg"]

    def bring(self, content):
        """Let a message come in, on this thread."""
        self.handle_msg({"content": {"data": {"method": "custom", "content": content}},
                         "buffers": []})

    def reload(self):
        """Ask for the state, as a page does that is loaded again; return what comes."""
        self.state = {}
        self.handle_msg({"content": {"data": {"method": "request_state"}}})
        return self.state


@pytest.fixture
def wires(monkeypatch):
    """Comms that are looked at, for all widgets made meanwhile."""
    monkeypatch.setattr(comm, "create_comm", Wire)
    monkeypatch.setattr(Wire, "known", {})
    return Wire.known


def plant(name="plant", north=40, south=10, **options):
    return (Fleet(name, seed=42)
            .add("temperature_sensor", count=north, labels={"site": "north"}, every="1s")
            .add("pump", count=south, labels={"site": "south"}, every="1s"))


class Stage:
    """A live run, its panel, and the panel's comm."""

    def __init__(self, run, panel):
        self.run, self.panel, self.wire = run, panel, Wire.known[panel.comm.comm_id]

    @property
    def facts(self):
        """What the page says of the run."""
        return self.wire.state["facts"]

    async def ask(self, **message):
        """Let a message come from another thread with another loop; wait until it is answered."""
        number = self.panel.looks
        await abroad(lambda: self.wire.bring(message))
        await until(lambda: self.panel.looks > number)
        await settled(self.panel)

    async def said(self, **message):
        """Ask, and return what the panel says then."""
        before = self.facts["said"].get("number", 0)
        await self.ask(**message)
        await until(lambda: self.facts["said"].get("number", 0) > before)
        return self.facts["said"]

    async def ticks(self, count):
        """Wait until the panel has looked so many times more."""
        number = self.panel.looks + count
        await until(lambda: self.panel.looks >= number)

    def lines(self):
        """Return the lines that the page has, as rows of values by name."""
        raw = self.wire.state["lines"]
        values = struct.unpack(f"<{len(raw) // 4}f", raw)
        width = len(COLUMNS)
        assert self.facts["series"]["columns"] == list(COLUMNS)
        rows = [dict(zip(COLUMNS, values[i : i + width], strict=True))
                for i in range(0, len(values), width)]
        for row in rows:
            row["time"] += self.facts["series"]["t0"]
        return rows

    def cells(self):
        """Return state, value and lateness of the cells that the page has."""
        raw, count = self.wire.state["cells"], self.facts["map"]["cells"]
        assert len(raw) == 3 * count
        return [list(raw[k * count : (k + 1) * count]) for k in range(3)]


async def settled(panel):
    """Wait until what the panel's last message asked for is done."""
    await until(lambda: not panel._tasks)


async def abroad(act):
    """Do something on another thread, in another event loop."""
    async def there():
        act()

    thread = threading.Thread(target=lambda: asyncio.run(there()))
    thread.start()
    await until(lambda: not thread.is_alive())
    thread.join()


@asynccontextmanager
async def on_stage(run, rate_hz=10):
    """A run that is ready with its panel; both end with it."""
    await run.ready()
    stage = Stage(run, run.panel(rate_hz))
    try:
        yield stage
    finally:
        await run.stop()
        if stage.facts["id"] != run.id:  # another was started in the panel
            await stage.panel.run.stop()
        stage.panel.close()


def live(work, fleet=None, *, speed=20, rate_hz=10, **options):
    """Run a fleet, have its panel, do something with the two; everything ends with it."""
    async def main():
        run = (plant() if fleet is None else fleet).start(speed=speed, **options)
        async with on_stage(run, rate_hz) as stage:
            return await work(stage)

    try:
        return asyncio.run(main())
    finally:
        run_panel._ENDED.clear()
