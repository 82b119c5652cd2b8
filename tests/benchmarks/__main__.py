"""The benchmarks of DESIGN.md §10: one command, one table.

    python -m tests.benchmarks                        # what needs no broker: about a minute
    python -m tests.benchmarks --live                 # live runs and publishers: ten minutes
    python -m tests.benchmarks --hours 24             # the full stream to Parquet, minutes more
    python -m tests.benchmarks --gateways 1000        # NoTIP gateways: minutes
    python -m tests.benchmarks --panel 100000         # a panel in JupyterLab: ten minutes
    python -m tests.benchmarks --scale 0.01           # quick, for the tests: no figures

Run it on a quiet machine. Ratios are within one run; nothing here fails for being slow.
"""

import argparse
import platform
from pathlib import Path

import numpy as np

from tests.benchmarks import measures
from tests.benchmarks.breaking import breaking
from tests.benchmarks.envelopes import sealing


def machine():
    """The processor, as the kernel calls it, and the versions that matter."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
                 if line.startswith("model name")]
        cpu = f"{len(names)} × {names[0]}" if names else cpu
    return f"{cpu}; Python {platform.python_version()}, numpy {np.__version__}"


def live_rows(scale):
    from tests.benchmarks import brokers, mqtt  # they need clients and servers

    yield from mqtt.rows(scale)
    yield from brokers.rows(scale)


def gateway_rows(count):
    from tests.benchmarks import gateways

    yield from gateways.rows(count)


def panel_rows(devices, minutes):
    from tests.benchmarks import panel

    yield from panel.rows(devices, minutes)


def rows(scale, hours):
    yield from measures.generating(scale)
    yield from breaking(scale)
    yield from measures.spawning(scale)
    yield from measures.importing(9 if scale >= 1 else 1)
    yield from measures.scripting(scale)
    yield from sealing(scale)
    yield from measures.streaming(max(20, int(10_000 * scale)), hours)


def line(row):
    verdict = "" if row.met is None else "met" if row.met else "**missed**"
    return f"| {row.what} | {row.shown} | {row.budget} | {verdict} |"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="size of every measure")
    parser.add_argument("--hours", type=float, default=1.0, help="simulated hours to Parquet")
    parser.add_argument("--live", action="store_true",
                        help="live runs and publishers, over real brokers")
    parser.add_argument("--gateways", type=int, nargs="?", const=1000,
                        help="so many NoTIP gateways, over a lab in another process")
    parser.add_argument("--panel", type=int, nargs="?", const=100_000,
                        help="a panel over so many devices, in JupyterLab and Chromium")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the panel is shown")
    given = parser.parse_args(arguments)
    print(f"Measured on {machine()}.\n\n| what | measured | at least | |\n|---|---|---|---|")
    found = live_rows(given.scale) if given.live else rows(given.scale, given.hours)
    if given.gateways:
        found = gateway_rows(given.gateways)
    if given.panel:
        found = panel_rows(given.panel, given.minutes)
    for row in found:
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
