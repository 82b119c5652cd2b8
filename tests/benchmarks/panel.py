"""A panel over many live devices, in a JupyterLab and a Chromium: what it costs, what stays flat.

The fleet publishes to a nats-server. The kernel is measured first without the panel, then with it,
ten looks a second. Kernel, servers and browser share this machine's cores.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.brokers import nats
from tests.benchmarks.measures import Row
from tests.browser import CHROMIUM, FLAGS, Lab

LOOKS_HZ = 10
WITHOUT_S = 30
DEADLINE_S = 120
LOOK_EACH_S = 10

FLEET = """
import asyncio, json, os, resource, time
from pathlib import Path
from iotsim import Fleet
fleet = (Fleet("bench", seed=42)
         .add("temperature_sensor", count={devices}, every="5s", labels={{"site": "north"}})
         .publish_to("{url}"))
run = fleet.start(capture="20s")
await run.ready()
run.inject("offset", where="fraction=30%", duration="1h", by=3)
await asyncio.sleep(6)

def memory_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    # Verdicts of brokers fill their bound, 150 MB, in eight minutes, panel or not.
    return (pages * resource.getpagesize() - 15 * len(run.works.acks)) / 1e6

async def measured(seconds, panel=None):
    begin_s, cpu_s = time.monotonic(), time.process_time()
    cost_s, looks = (0, 0) if panel is None else (panel.cost_s, panel.looks)
    lags = []
    while time.monotonic() - begin_s < seconds:
        at_s = time.monotonic()
        await asyncio.sleep(0.02)
        lags.append(time.monotonic() - at_s - 0.02)
    span_s = time.monotonic() - begin_s
    found = dict(cores=(time.process_time() - cpu_s) / span_s, memory_mb=memory_mb(),
                 lag_p99_s=sorted(lags)[int(len(lags) * 0.99)])
    if panel is not None:
        found.update(cost=(panel.cost_s - cost_s) / span_s, looks_hz=(panel.looks - looks) / span_s)
    return found

def tell(name, found):
    Path(name + ".part").write_text(json.dumps(found))
    os.rename(name + ".part", name)
"""
WITHOUT = 'tell("without.json", await measured({seconds}))'
PANEL = "panel = run.panel({looks_hz})\npanel"
WITH = """
for part in range({parts}):
    tell(f"with-{{part}}.json", await measured({each_s}, panel))
result = await run.stop()
tell("end.json", dict(digest=result.digest, quality=result.quality))
"""
FRAMES = """() => {
  window.gaps = [];
  let last = performance.now();
  const look = (now) => { window.gaps.push(now - last); last = now; requestAnimationFrame(look); };
  requestAnimationFrame(look);
}"""
TAKE = "() => { const found = window.gaps; window.gaps = []; return found; }"


def waited(path, seconds):
    """What a file says, once it is there."""
    until_s = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until_s:
            raise TimeoutError(f"{path.name} did not come in {seconds:g} s")
        time.sleep(0.05)
    return json.loads(path.read_text())


def watched(page, root, parts, each_s):
    """What kernel and page say, part by part."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    page.evaluate(FRAMES)
    for part in range(parts):
        kernel = waited(root / f"with-{part}.json", each_s + DEADLINE_S)
        session.send("HeapProfiler.collectGarbage")
        metrics = {one["name"]: one["value"]
                   for one in session.send("Performance.getMetrics")["metrics"]}
        yield {**kernel, "gaps_ms": page.evaluate(TAKE), "nodes": metrics["Nodes"],
               "heap_mb": metrics["JSHeapUsedSize"] / 1e6}


def measured(devices, minutes, shot=None):
    """Everything that one run with a panel shows."""
    from playwright.sync_api import sync_playwright

    parts = max(2, round(minutes * 60 / LOOK_EACH_S))
    with tempfile.TemporaryDirectory() as folder, nats() as server, sync_playwright() as driver:
        lab = Lab(Path(folder))
        lab.start()
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            page = lab.open(
                browser, "panel", FLEET.format(devices=devices, url=server.url),
                WITHOUT.format(seconds=WITHOUT_S),
                PANEL.format(looks_hz=LOOKS_HZ), WITH.format(parts=parts, each_s=LOOK_EACH_S))
            without = waited(lab.root / "without.json", DEADLINE_S)
            page.get_by_role("button", name="Inject", exact=True).wait_for()
            found = list(watched(page, lab.root, parts, LOOK_EACH_S))
            if shot is not None:
                page.screenshot(path=shot)
            end = waited(lab.root / "end.json", DEADLINE_S)
        finally:
            browser.close()
            lab.stop()
    return without, found, end


def rows(devices, minutes, shot=None):
    """The rows of the table."""
    without, parts, end = measured(devices, minutes, shot)
    what = f"panel, {devices:,} devices"
    cores = float(np.mean([one["cores"] for one in parts]))
    cost = float(np.mean([one["cost"] for one in parts]))
    looks_hz = float(np.mean([one["looks_hz"] for one in parts]))
    yield Row(f"{what}: kernel with it, less without", cores - without["cores"],
              f"{cores:.3f} − {without['cores']:.3f} = {cores - without['cores']:.3f} core; its "
              f"looks alone {cost:.3f}, {looks_hz:.1f} a second", "≤ 0.05 core",
              cores - without["cores"] <= 0.05)
    lag_ms = max(one["lag_p99_s"] for one in parts) * 1e3
    usual_ms = float(np.median([one["lag_p99_s"] for one in parts])) * 1e3
    yield Row(f"{what}: loop callback delay p99", lag_ms, f"{usual_ms:.0f} ms, {lag_ms:.0f} ms in "
              f"the worst {LOOK_EACH_S} s", "< 50 ms", usual_ms < 50)
    gaps = np.concatenate([one["gaps_ms"] for one in parts])
    yield Row(f"{what}: browser, between frames", float(np.percentile(gaps, 99)),
              f"p99 {np.percentile(gaps, 99):.0f} ms, longest {gaps.max():.0f} ms", "p99 < 100 ms",
              bool(np.percentile(gaps, 99) < 100))
    for name, key, unit in (("kernel memory without verdicts", "memory_mb", "MB"),
                            ("page's heap", "heap_mb", "MB"), ("page's nodes", "nodes", "")):
        told = [one[key] for one in parts]
        half = len(told) // 2
        first, last = float(np.median(told[:half])), float(np.median(told[half:]))
        yield Row(f"{what}: {name} over {minutes:g} min", last - first,
                  f"{told[0]:,.0f} to {told[-1]:,.0f} {unit}; median of its halves "
                  f"{first:,.0f}, {last:,.0f}", "flat: ≤ 5 % more", last <= 1.05 * first)
    yield Row(f"{what}: quality", 0.0, end["quality"])
