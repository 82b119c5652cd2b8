"""One small rig for all tests of signals: devices, a grid, a source stepped over it."""

import numpy as np

from iotsim.seeding import device_keys
from iotsim.signals.base import Site, Steps, Tick, build

START_US = 1_767_225_600_000_000  # 2026-01-01T00:00Z

FLOW_CSV = __file__.rpartition("/")[0] + "/data/flow.csv"
FLOW_PARQUET = __file__.rpartition("/")[0] + "/data/flow.parquet"
CHAIN_1S = {"type": "constant", "value": 7, "for": "12s"}
CHAIN_2S = {"type": "brownian", "volatility": 1, "for": "20s"}

SIGNALS = {
    "gaussian": ("gaussian", {"mean": 20, "stddev": 1.5}),
    "gaussian without noise": ("gaussian", {"mean": 20, "stddev": 0}),
    "brownian walk": ("brownian", {"volatility": 0.5, "start": 3, "drift": -0.01}),
    "brownian that returns": (
        "brownian",
        {"volatility": 0.5, "start": 40, "mean": 55, "mean_reversion": 0.1, "drift": 0.02},
    ),
    "brownian with bounds": ("brownian", {"volatility": 2, "start": 1, "min": 0, "max": 4}),
    "battery": ("brownian", {"volatility": 0, "start": 100, "drift": -0.001, "min": 0}),
    "diurnal": ("diurnal", {"baseline": 22, "amplitude": 5, "peak_hour": 14, "stddev": 0.3}),
    "diurnal in Rome": (
        "diurnal", {"baseline": 22, "amplitude": 5, "peak_hour": 14.5, "timezone": "Europe/Rome"}
    ),
    "uniform": ("uniform_random", {"min": -3, "max": 11}),
    "sine": ("sine_wave", {"min": 10, "max": 30}),
    "sine with a period of its own": ("sine_wave", {"min": 0.1, "max": 0.3, "period": "7s"}),
    "spike": ("spike", {"min": 10, "max": 20}),
    "constant": ("constant", {"value": 3}),
    "constant from bounds": ("constant", {"min": 10, "max": 30}),
    "static int": ("static", {"value": 7}),
    "static float": ("static", {"value": 7.5}),
    "static bool": ("static", {"value": True}),
    "static text": ("static", {"value": "running"}),
    "static null": ("static", {"value": None}),
    "static json": ("static", {"value": [1, {"a": None}]}),
    "markov": (
        "markov",
        {
            "states": ["a", "b", "c"],
            "transition_matrix": [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0, 0.3, 0.7]],
        },
    ),
    "markov by time, slower": (
        "markov",
        {"states": ["on", "off"], "transition_matrix": [[0.5, 0.5], [0.1, 0.9]], "per": "12s",
         "initial_state": "off"},
    ),
    "markov by time, faster": (
        "markov",
        {"states": ["on", "off"], "transition_matrix": [[0.9, 0.1], [0.1, 0.9]], "per": "2s"},
    ),
    "sum": (
        "composite",
        {"parts": [{"type": "sine_wave", "min": 0, "max": 9},
                   {"type": "gaussian", "mean": 0, "stddev": 1},
                   {"type": "gaussian", "mean": 0, "stddev": 1}]},
    ),
    "product": (
        "composite",
        {"op": "product", "parts": [{"type": "uniform_random", "min": 1, "max": 2},
                                    {"type": "brownian", "volatility": 1, "start": 5}]},
    ),
    "chain": ("composite", {"op": "chain", "parts": [CHAIN_1S, CHAIN_2S]}),
    "playback of CSV": ("playback", {"path": FLOW_CSV, "column": "flow"}),
    "playback from anywhere, held": (
        "playback", {"path": FLOW_CSV, "column": "flow", "start": "random", "missing": "hold"}
    ),
    "playback of Parquet, once": (
        "playback",
        {"path": FLOW_PARQUET, "column": "count", "loop": False, "start": "random"},
    ),
    "linear": ("depends_on", {"of": {"x": -0.8, "y": 0.1}, "offset": 3, "noise_stddev": 0.1}),
    "expression": (
        "depends_on", {"expression": "min(100, 2*x/y + where(0 < y <= 20, 5, -x)) - max(x, y, 1)"}
    ),
}


def made(name):
    """Return a signal of the table."""
    return build(*SIGNALS[name])


def site(names=("device-001",), field="temperature", seed=42, interval_us=5_000_000):
    return Site(device_keys(seed, list(names)), field, interval_us)


def run(signal, ticks, devices=1, *, seed=42, field="temperature", interval_us=5_000_000,
        fields=None, start_us=START_US):
    """Return values of shape (ticks, devices) in one step."""
    place = site([f"d-{i}" for i in range(devices)], field, seed, interval_us)
    time_us = np.tile(
        start_us + np.arange(ticks, dtype=np.int64)[:, None] * interval_us, (1, devices)
    )
    steps = Steps(0, ticks, slice(0, devices), time_us, fields or {}, interval_us)
    found = signal.block(place).step(steps)
    return np.broadcast_to(found, (ticks, devices))


def alone(signal, ticks, *, name="d-0", seed=42, field="temperature", interval_us=5_000_000,
          fields=None, start_us=START_US):
    """Return the values of one device, made one by one."""
    single = signal.single(site([name], field, seed, interval_us))
    return [
        single(Tick(n, start_us + n * interval_us,
                    {key: column[n] for key, column in (fields or {}).items()}))
        for n in range(ticks)
    ]
