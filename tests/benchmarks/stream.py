"""Streams a fleet to Parquet in a process of its own and prints rows, seconds and peak memory.

    python -m tests.benchmarks.stream DEVICES DURATION PATH
"""

import json
import resource
import sys
import time
from pathlib import Path


def peak_kb():
    """The most memory this process has held; ru_maxrss would count its parent's as well."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main():
    from iotsim import Fleet

    devices, duration, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    fleet = Fleet("stream", seed=1).add("temperature_sensor", count=devices)
    begin_s = time.perf_counter()
    result = fleet.generate(duration, to=path, progress=False)
    took_s = time.perf_counter() - begin_s
    print(json.dumps({"rows": result.rows, "seconds": took_s, "peak_mb": peak_kb() / 1024,
                      "digest": result.digest}))


if __name__ == "__main__":
    main()
