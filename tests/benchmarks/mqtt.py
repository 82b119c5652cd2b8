"""Live fleets over MQTT, and how fast a pump is beside a bare paho loop.

    python -m tests.benchmarks.mqtt                   # minutes; wants a quiet machine

`live` runs any fleet against any address, so other protocols use it as well.
"""

import json
import subprocess
import sys

from iotsim.broker import Broker
from tests.benchmarks.measures import ROOT, Row

RECEIVE_MAXIMUM = 65_535
WARM_S = {100_000: 7, 500_000: 12}  # the first period of every device, and what it takes to spawn


def live(url, devices, every="5s", seconds=20, warm_s=None, **options):
    """What a live fleet cost: a dict of `tests.benchmarks.live_child`, from a process of its own.

    Rate and cores are those of `seconds` after a warm-up; lateness and acknowledgement quantiles
    are of the whole run.
    """
    if warm_s is None:
        warm_s = next((warm for most, warm in WARM_S.items() if devices <= most), 20)
    return child("live_child", url=url, devices=devices, every=every, seconds=seconds,
                 warm_s=warm_s, options=options)


def flat_out(client, url, count, **options):
    """What publishing so many messages cost, as fast as it goes, in a process of its own."""
    return child("flat_child", client=client, url=url, count=count, options=options)


def child(module, **wish):
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{module}", json.dumps(wish)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def live_rows(what, found, devices, cores=None, every_s=5, ack_ms=None, memory_mb=None,
              late_ms=None):
    """The lines of one live fleet, and what they should be at least."""
    due_hz = devices / every_s
    sustained = found["rate_hz"] >= 0.98 * due_hz
    clean = found["dropped"] == found["refused"] == found["unknown"] == 0
    yield Row(f"{what}, {devices:,} devices every {every_s} s", found["rate_hz"],
              f"{found['rate_hz'] / 1e3:.1f} k acknowledged/s, {found['quality']}",
              f"{due_hz / 1e3:.0f} k/s, none lost", sustained and clean)
    yield Row("… processor time of the simulator", found["cores"],
              f"{found['cores']:.2f} core (a piece of Python took {found['chunk_ms']:.1f} ms)",
              f"≤ {cores} core" if cores else "", found["cores"] <= cores if cores else None)
    yield Row("… publish to acknowledgement", found["ack_p99_ms"],
              f"p50 {found['ack_p50_ms']:.0f} ms, p99 {found['ack_p99_ms']:.0f} ms",
              f"p99 < {ack_ms} ms" if ack_ms else "",
              found["ack_p99_ms"] < ack_ms if ack_ms else None)
    yield Row("… lateness", found["lateness_p99_ms"], f"p99 {found['lateness_p99_ms']:.0f} ms",
              f"p99 ≤ {late_ms} ms" if late_ms else "",
              found["lateness_p99_ms"] <= late_ms if late_ms else None)
    yield Row("… memory", found["memory_mb"], f"{found['memory_mb']:.0f} MB",
              f"≤ {memory_mb} MB besides the capture" if memory_mb else "",
              found["memory_mb"] <= memory_mb if memory_mb else None)


def publishing(scale):
    """Live fleets over MQTT 5 QoS 1."""
    seconds = max(1, int(20 * scale))
    for full, cores, ack_ms, memory_mb in (
        (100_000, 0.2, 50, 300), (500_000, 1.0, None, None), (1_000_000, None, None, None),
    ):
        devices = max(50, int(full * scale))
        with Broker(embedded=False, receive_maximum=RECEIVE_MAXIMUM) as broker:
            found = live(broker.url, devices, seconds=seconds,
                         warm_s=None if scale >= 0.1 else 1)
        yield from live_rows("MQTT 5 QoS 1", found, devices, cores, 5, ack_ms, memory_mb)


def beside_paho(scale):
    """A pump against a bare paho loop, in the same run, per processor-second."""
    count = max(2000, int(100_000 * scale) // 2000 * 2000)
    rates = {}
    for client in ("paho", "iotsim"):
        with Broker(embedded=False, receive_maximum=RECEIVE_MAXIMUM) as broker:
            found = flat_out(client, broker.url, count)
        rates[client] = found["acknowledged"] / max(found["cpu_s"], 1e-9)
        yield Row(f"{client}, MQTT QoS 1 as fast as it goes", rates[client],
                  f"{found['acknowledged'] / found['wall_s'] / 1e3:.1f} k msg/s, "
                  f"{rates[client] / 1e3:.1f} k msg per processor-second")
    ratio = rates["iotsim"] / rates["paho"]
    yield Row("… per core, against paho", ratio, f"{ratio:.1f} ×", "≥ 10 ×", ratio >= 10)


def rows(scale):
    yield from beside_paho(scale)
    yield from publishing(scale)


def main():
    from tests.benchmarks.__main__ import line, machine

    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    print(f"Measured on {machine()}.\n\n| what | measured | at least | |\n|---|---|---|---|")
    for row in rows(scale):
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
