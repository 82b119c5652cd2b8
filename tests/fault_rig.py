"""One small rig for all tests of faults: rows by hand, windows on them, and what came out."""

import numpy as np

from iotsim.faults.base import NEVER_US, Draft, Window, build, window_keys
from iotsim.readings import Column
from iotsim.seeding import device_keys
from iotsim.signals.resolution import Resolution

START_US = 1_767_225_600_000_000  # 2026-01-01T00:00Z
SPANS = {"temperature": (10.0, 30.0), "count": (0.0, 100.0), "battery": (0.0, 100.0)}
DRIFT_PER_S = -0.001

# Every fault with parameters that do something within a minute.
SHOWN = {
    "battery_drain": {"drain_multiplier": 500},
    "clock_drift": {"drift_rate_ms_per_sec": 50},
    "data_corruption": {"corruption_rate": 0.5},
    "disconnect": {},
    "drift": {"rate_per_sec": 0.25},
    "dropout": {"probability": 0.5},
    "duplicate": {"probability": 0.5},
    "firmware_update": {"version": "2.0.0"},
    "latency_spike": {"latency_ms": 300, "probability": 0.5, "ramp": "5s"},
    "noise": {"stddev": 2, "probability": 0.5, "ramp": "5s"},
    "offset": {"by": -2.5},
    "outlier": {"times": 3, "ramp": "4s"},
    "packet_loss": {"loss": 0.5},
    "rate": {"factor": 3},
    "reboot": {},
    "reconnect_storm": {"every": "4s", "down": "1500ms"},
    "reorder": {"probability": 0.5},
    "slow_down": {},
    "stuck": {},
    "suspend": {},
}
# The same names again, where a parameter changes what is done.
OTHERS = [
    ("disconnect", {"store_and_forward": True}),
    ("dropout", {"probability": 0.5, "field": ["count", "state", "door", "temperature"]}),
    ("stuck", {"field": ["count", "state", "door", "temperature", "extra"]}),
    ("outlier", {"value": 12.5}),
    ("outlier", {"value": -4, "field": "count"}),
    ("reorder", {"probability": 1, "by": "2s"}),
]
EVERY = [*SHOWN.items(), *OTHERS]


def readings(ticks=20, devices=3, interval_us=1_000_000, subs=1, seed=0):
    """Rows of all kinds of fields, tick after tick, sub-readings between the ticks."""
    rng = np.random.default_rng(seed)
    rows = ticks * subs * devices
    grid = np.arange(ticks * subs)
    n, sub = np.repeat(grid // subs, devices), np.repeat(grid % subs, devices)
    slot = np.tile(np.arange(devices), ticks * subs)
    at_us = START_US + n * interval_us + sub * (interval_us // subs)
    temperature = np.rint(rng.normal(20, 3, rows) * 100) / 100 + 0.0
    temperature[rng.random(rows) < 0.05] = np.nan
    columns = {
        "temperature": Column("float", temperature),
        "count": Column("int", rng.integers(0, 100, rows)),
        "battery": Column("float", np.rint((100 - 0.001 * n) * 1000) / 1000),
        "door": Column("bool", rng.random(rows) < 0.5),
        "state": Column("text", rng.integers(-1, 2, rows).astype(np.int32), ("on", "off")),
        "extra": Column("json", rng.integers(-1, 3, rows).astype(np.int32), (7, [1], {"a": 2}),
                        rng.random(rows) < 0.7),
        "level": Column("json", rng.integers(-1, 3, rows).astype(np.int32), (3, 4, 900)),
    }
    for column in columns.values():
        column.values.setflags(write=False)
    time_us = at_us + 3
    time_us.setflags(write=False)
    resolutions = {"temperature": Resolution.of(0.01), "battery": Resolution.of(0.001)}
    return Draft(slot.astype(np.int64), n.astype(np.int64), sub.astype(np.int64), at_us, time_us,
                 columns, SPANS, resolutions, interval_us)


def window(name, *, devices=(0, 1, 2), begin_s=0.0, end_s=None, seed=1, occurrence=0, number=0,
           **parameters):
    """A fault on devices for a stretch of time, as an inject makes it."""
    slots = np.array(sorted(devices), dtype=np.int64)
    begin_us = START_US + round(begin_s * 1e6)
    end_us = NEVER_US if end_s is None else START_US + round(end_s * 1e6)
    keys = device_keys(seed, [f"dev-{slot}" for slot in slots.tolist()])
    fault = build(name, parameters)
    keys = window_keys(keys, fault.name, np.full(len(slots), occurrence, dtype=np.int64))
    made = Window(fault, number, begin_us, end_us, slots, np.full(len(slots), end_us), keys)
    if name == "battery_drain":
        made.memory["drift_per_s"] = np.full(len(slots), DRIFT_PER_S)
    return made


def apply(draft, *windows):
    """Let a draft go through windows in order; one mask over its rows for each."""
    masks = []
    for one in windows:
        active, _ = one.active(draft)
        mask = np.zeros(len(draft.n), dtype=bool)
        mask[active.rows] = one.fault.change(draft, active)
        masks.append(mask)
    return masks


def cell(column, row):
    """What one value means on the wire: None is null, and a field may be absent."""
    if column.present is not None and not column.present[row]:
        return "absent"
    value = column.values[row].item()
    if column.kind in ("text", "json"):
        value = None if value < 0 else column.categories[value]
    return None if value != value else (type(value).__name__, repr(value))


def values(draft, name):
    """The values of a field as Python objects; None is null."""
    column = draft.columns[name]
    if column.kind in ("text", "json"):
        return [None if code < 0 else column.categories[code] for code in column.values.tolist()]
    return [None if value != value else value for value in column.values.tolist()]


def picture(draft):
    """Everything of every row that a fault may change, one tuple per row."""
    return [
        (int(draft.time_us[row]), draft.causes[draft.withheld[row]], int(draft.delay_us[row]),
         int(draft.copies[row]), *(cell(column, row) for column in draft.columns.values()))
        for row in range(len(draft.n))
    ]


def cut(draft, edges):
    """The same rows in pieces."""
    pieces = []
    for low, high in zip([0, *edges], [*edges, len(draft.n)], strict=True):
        rows = slice(low, high)
        columns = {name: column.take(rows) for name, column in draft.columns.items()}
        pieces.append(Draft(draft.slot[rows], draft.n[rows], draft.sub[rows], draft.at_us[rows],
                            draft.time_us[rows], columns, draft.spans, draft.resolutions,
                            draft.interval_us))
    return pieces
