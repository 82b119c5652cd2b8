"""What a panel says of a run, as plain JSON: a snapshot, its rates, its faults, its log."""

from __future__ import annotations

import math
from typing import Any

from iotsim.clock import monotonic
from iotsim.panels.rates import Rates, Speedometer
from iotsim.panels.scope import Scope
from iotsim.run import Run
from iotsim.run_state import RunSnapshot
from iotsim.units import clock_text
from iotsim.verdict import VALID

LOG_SHOWN = 60
ERRORS_SHOWN = 5
PUBLISHERS_SHOWN = 8
TEXT_CHARS_MAX = 300


def facts_of(run: Run, scope: Scope | None, speedometer: Speedometer) -> dict[str, Any]:
    """Return the run as it is now."""
    now = run.snapshot()
    latencies = [pump.latency for pump in run.works.pumps]
    rates = speedometer.rates(monotonic(), now.readings, now.publishers, latencies)
    return {
        "name": run.name,
        "title": _title(run),
        "id": run.id,
        "state": now.state,
        "time": now.elapsed_us / 1e6,
        "speed": "max" if math.isinf(now.speed) else now.speed,
        "devices": now.devices,
        "readings": now.readings,
        "quality": now.quality,
        "valid": now.quality == VALID,
        "rates": _rates(rates),
        "health": _health(now),
        "publishers": _publishers(now),
        "errors": _errors(run, now),
        "notes": [_cut(note) for note in list(run.notes)[-ERRORS_SHOWN:]],
        **_seen(scope),
        **_log(run),
    }


def _title(run: Run) -> str:
    if run.scenario is None or run.scenario.name == run.name:
        return run.name
    return f"{run.scenario.name} on {run.name}"


def _rates(rates: Rates) -> dict[str, Any]:
    return {"readings": rates.readings_hz, "offered": rates.offered_hz,
            "acked": rates.acknowledged_hz, "lost": rates.lost_hz,
            "ack_p50": _plain(rates.latency_p50_s), "ack_p99": _plain(rates.latency_p99_s)}


def _health(now: RunSnapshot) -> dict[str, Any]:
    return {"late": now.late, "late_p99": _plain(now.lateness_p99_s),
            "lag_p99": _plain(now.loop_lag_p99_s), "lag_max": _plain(now.loop_lag_max_s),
            "cores": now.cores, "captured": now.captured, "evicted": now.evicted,
            "withheld": now.withheld, "waiting": now.waiting}


def _publishers(now: RunSnapshot) -> list[dict[str, Any]]:
    shown = list(now.publishers.items())[:PUBLISHERS_SHOWN]
    return [{"url": url, "offered": one.offered, "acked": one.acknowledged, "queued": one.queued,
             "in_flight": one.in_flight, "refused": one.refused, "dropped": one.dropped,
             "unknown": one.unknown, "retries": one.retries} for url, one in shown]


def _errors(run: Run, now: RunSnapshot) -> dict[str, Any]:
    told = [_cut(str(error)) for error in list(run.errors)[:ERRORS_SHOWN]]
    return {"count": now.errors, "texts": told}


def _seen(scope: Scope | None) -> dict[str, Any]:
    if scope is None:
        return {"fields": [], "field": "", "windows": [], "picked": {}}
    now_us = scope.now_us()
    now_s = (now_us - scope.start_us) / 1e6
    return {"fields": scope.fields, "field": scope.field, "picked": scope.picked(),
            "unit": scope.unit,
            "windows": [shade.spec(now_s) for shade in scope.windows(now_us)]}


def _log(run: Run) -> dict[str, Any]:
    actions = run.actions
    shown = actions[-LOG_SHOWN:]
    return {"log": [[clock_text(one.at_us), _cut(one.describe()), one.devices, one.note]
                    for one in shown],
            "log_hidden": len(actions) - len(shown)}


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARS_MAX else f"{text[: TEXT_CHARS_MAX - 1]}…"


def _plain(value: float) -> float | None:
    # JSON has no NaN.
    return value if math.isfinite(value) else None

