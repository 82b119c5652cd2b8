"""NoTIP gateways in one process: how long each part takes, and whether the loop stays free."""

import asyncio
import contextlib
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from iotsim import Gateway, Platform
from iotsim.gateway.provisioning import onboard_all
from iotsim.gateway.store import Store
from tests.benchmarks.measures import Row

ROOT = Path(__file__).parent.parent.parent
PROBE_S = 0.005
STEADY_S = 10.0
RATE_HZ = 50  # of commands, one to each gateway
OUTAGE_S = 10
SETTLE_S = 2.0
DEADLINE_S = 180


class Probe:
    """How much later than asked a task of the loop is woken up, in ms.

    Beside the delay itself stands the part of it in which this thread used a processor: the rest
    is other programs' doing.
    """

    def __init__(self):
        self._delays, self._own = [], []
        self._task = asyncio.create_task(self._look())
        self.take()

    async def _look(self):
        while True:
            at_s, cpu_s = time.perf_counter(), time.thread_time()
            await asyncio.sleep(PROBE_S)
            delay_s = max(0.0, time.perf_counter() - at_s - PROBE_S)
            self._delays.append(delay_s * 1e3)
            self._own.append(min(delay_s, time.thread_time() - cpu_s) * 1e3)

    def take(self):
        """What there was since the last time: seconds, processor seconds, delays."""
        now_s, cpu_s = time.perf_counter(), time.process_time()
        before, self._since = getattr(self, "_since", (now_s, cpu_s)), (now_s, cpu_s)
        found = {"s": now_s - before[0], "cpu_s": cpu_s - before[1]}
        for name, kept in (("delay", self._delays), ("own", self._own)):
            found[name] = [float(np.percentile(kept, q)) for q in (50, 99, 100)] if kept else []
            kept.clear()
        return found

    async def end(self):
        self._task.cancel()
        await asyncio.wait([self._task])


def rss_mb():
    """What this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@contextlib.asynccontextmanager
async def lab_child():
    """A lab in a process of its own: where it is, and a coroutine function that asks it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.benchmarks.lab_child", cwd=ROOT, limit=2**24,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)

    async def answer():
        async with asyncio.timeout(DEADLINE_S):
            return json.loads(await child.stdout.readline())

    async def ask(do, **asked):
        child.stdin.write(json.dumps({"do": do, **asked}).encode() + b"\n")
        return await answer()

    try:
        yield await answer(), ask
    finally:
        child.stdin.close()
        try:
            async with asyncio.timeout(20):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()


def gateways(count):
    """So many gateways with three sensors, each sending once a second."""
    made = Gateway("gw-{n}", factory_id="f-{n}", factory_key="k", every="1s", seed=42, count=count)
    return (made.sensor("temperature", algorithm="sine_wave", min=10, max=30)
            .sensor("humidity").sensor("pressure"))


async def until(true, deadline_s=DEADLINE_S):
    async with asyncio.timeout(deadline_s):
        while not true():
            await asyncio.sleep(0.02)


def warm():
    """Load what is loaded on first use."""
    import aiohttp
    import cryptography.x509
    import pandas as pd

    from iotsim.gateway import envelope

    assert all((aiohttp, cryptography.x509, envelope))
    gateways(2).generate("2s", progress=False).frame()
    pd.DataFrame({"a": ["x"]}).astype("category").describe()


async def measured(count, *, before=None, steady_s=STEADY_S):
    """Yield (phase, what was found) of gateways that live through all that happens to them."""
    async with lab_child() as (where, ask), contextlib.AsyncExitStack() as ends:
        folder = ends.enter_context(tempfile.TemporaryDirectory())
        where.pop("nats_pid")
        gateway, store = gateways(count), Path(folder) / "gateways.db"
        warm()
        await ask("register", count=count)
        platform = Platform(**where, own_certificates=True, store=store, store_key="0" * 64)
        probe = Probe()
        ends.push_async_callback(probe.end)
        await asyncio.sleep(0.1)
        probe.take()
        opened = await asyncio.to_thread(Store.open, str(store), key="0" * 64)
        records = gateway.records() if before is None else before(gateway.records())
        enrolment = await onboard_all(records, url=platform.provisioning_url, keeper=opened,
                                      progress=False)
        await asyncio.to_thread(opened.close)
        yield "provision", probe.take() | {"failed": len(enrolment.errors)}

        empty_mb = rss_mb()
        run = await platform.start(gateway, progress=False)
        table = run.gateways()
        yield "start", probe.take() | {"connected": int(table.connected.sum())}
        way, = run._works.ways
        await until(lambda: way.pump.connected == count)
        await asyncio.sleep(SETTLE_S)
        yield "consumers", probe.take()
        probe.take()
        await asyncio.sleep(steady_s)
        yield "steady", probe.take() | {"mb": (rss_mb() - empty_mb) / count,
                                        "late": run.snapshot().late}
        for name, look in (("gateways()", run.gateways), ("snapshot()", run.snapshot),
                           ("frame()", run.frame)):
            cpu_s = time.thread_time()
            look()
            yield name, {"cpu_s": time.thread_time() - cpu_s}
        await asyncio.sleep(0.2)
        probe.take()
        for name, more in (("commands", {"every_ms": 1000, "rate_hz": RATE_HZ}),
                           ("commands at once", {"every_ms": 900})):
            before = len(run.commands())
            found = await ask("command", **more)
            latency = run.commands().latency[before:]
            yield name, probe.take() | found | {
                "p50_s": latency.quantile(0.5), "p99_s": latency.quantile(0.99)}
        cpu_s = time.thread_time()
        run.commands()
        yield "commands()", {"cpu_s": time.thread_time() - cpu_s}
        await asyncio.sleep(1)
        probe.take()
        await asyncio.sleep(steady_s)
        yield "steady, commanded", probe.take() | {
            "blocks": len(run._works.driver.simulation.blocks)}
        run.inject("disconnect", duration=f"{OUTAGE_S}s")
        await until(lambda: way.pump.connected == 0)
        yield "disconnect", probe.take()
        await until(lambda: way.pump.connected > 0)
        yield "away", probe.take()
        await until(lambda: way.pump.connected == count)
        yield "return", probe.take()
        await asyncio.sleep(SETTLE_S)
        probe.take()
        await ask("restart")
        await until(lambda: way.pump.connected < count // 10)
        yield "NATS restarts", probe.take()
        await until(lambda: way.pump.connected == count)
        yield "all back", probe.take()
        await asyncio.sleep(SETTLE_S)
        probe.take()
        result = await run.stop()
        yield "stop", probe.take() | {"publishers": str(result.publishers),
                                      "notes": result.notes, "valid": str(result.quality)}
        yield "received", await ask("telemetry")


def _ms(delays):
    return "/".join(f"{delay:.0f}" for delay in delays)


def shown(found):
    """One phase in a line."""
    parts = [f"{found['s']:.1f} s"] if "s" in found else []
    parts += [f"{found['cpu_s']:.3g} s of a core"] if "cpu_s" in found else []
    if "delay" in found:
        parts.append(f"loop delay p50/p99/max {_ms(found['delay'])} ms "
                     f"(own work {_ms(found['own'])})")
    parts += [f"{name} {found[name]:.3g}" for name in ("mb", "p50_s", "p99_s") if name in found]
    parts += [f"{name} {found[name]:,}" for name in ("connected", "late", "blocks", "messages")
              if name in found]
    return ", ".join(parts)


def rows(count, before=None):
    """The table of so many gateways; `before` may give their records private keys."""
    async def all_of_them():
        return [one async for one in measured(count, before=before)]

    for phase, found in asyncio.run(all_of_them()):
        budget, met, value = "", None, found.get("s", found.get("cpu_s", 0.0))
        if phase == "steady":
            budget, met = "delay p99 < 50 ms", found["delay"][1] < 50
        elif phase.startswith("commands") and "p99_s" in found:
            budget, met, value = "answered < 1 s at p99", found["p99_s"] < 1, found["p99_s"]
        yield Row(f"{count:,} gateways: {phase}", float(value or 1e-9), shown(found), budget, met)
