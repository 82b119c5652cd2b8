"""Runs a fleet live in a process of its own and prints what it cost as one JSON line.

    python -m tests.benchmarks.live_child '{"url": "mqtt://…", "devices": 100000, "every": "5s",
                                            "seconds": 20, "warm_s": 6, "options": {}}'
"""

import asyncio
import gc
import json
import resource
import sys
import time
from pathlib import Path

CAPTURE_ROWS = 100_000


def resident_mb():
    """What this process holds now, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def chunk_ms(repeat=9):
    """Processor time of a fixed piece of plain Python: what this machine gives right now."""
    found = []
    for _ in range(repeat):
        begin = time.process_time()
        sum([len(str(i)) for i in range(20_000)])
        found.append((time.process_time() - begin) * 1e3)
    return sorted(found)[repeat // 2]


async def cores_by_second(seconds):
    """Processor time of this process in each second; the least shows what others took least of."""
    found = []
    for _ in range(max(1, round(seconds))):
        wall_s, cpu_s = time.monotonic(), time.process_time()
        await asyncio.sleep(1.0)
        found.append((time.process_time() - cpu_s) / (time.monotonic() - wall_s))
    return found


async def measured(wish):
    from iotsim import Fleet

    devices, options = wish["devices"], wish.get("options", {})
    fleet = Fleet("bench", seed=1).add("temperature_sensor", count=devices, every=wish["every"])
    run = fleet.publish_to(wish["url"], **options).start(capture=CAPTURE_ROWS)
    try:
        await run.ready()
        await asyncio.sleep(wish["warm_s"])
        pieces, before = [chunk_ms()], run.snapshot()
        wall_s, cpu_s = time.monotonic(), time.process_time()
        windows = await cores_by_second(wish["seconds"])
        after = run.snapshot()
        wall_s, cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
        pieces.append(chunk_ms())
        memory_mb = resident_mb()
    finally:
        began_s = time.monotonic()
        result = await run.stop()
        stop_s = time.monotonic() - began_s
    first, last = (next(iter(one.publishers.values())) for one in (before, after))
    end = next(iter(result.publishers.values()))
    return {
        "chunk_ms": sum(pieces) / 2,
        "rate_hz": (last.acknowledged - first.acknowledged) / wall_s,
        "offered_hz": (last.offered - first.offered) / wall_s,
        "cores": cpu_s / wall_s,
        "cores_least": min(windows),
        "memory_mb": memory_mb,
        "lateness_p99_ms": after.lateness_p99_s * 1e3,
        "late": after.late,
        "ack_p50_ms": last.latency_p50_s * 1e3,
        "ack_p99_ms": last.latency_p99_s * 1e3,
        "ack_max_ms": last.latency_max_s * 1e3,
        "lag_p99_ms": after.loop_lag_p99_s * 1e3,
        "quality": after.quality,
        "stop_s": stop_s,
        "acknowledged": end.acknowledged,
        "refused": end.refused,
        "dropped": end.dropped,
        "unknown": end.unknown,
    }


def main():
    wish = json.loads(sys.argv[1])
    if wish.get("profile"):
        import cProfile
        import pstats

        profile = cProfile.Profile()
        profile.enable()
        found = asyncio.run(measured(wish))
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(45)
    else:
        found = asyncio.run(measured(wish))
    gc.collect()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
