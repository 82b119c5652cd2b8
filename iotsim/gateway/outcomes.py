"""How many gateways this process had provisioned, and how many it could not; for metrics.

They outlive runs, and count also where no run comes of it.
"""

from __future__ import annotations

import threading
from collections import Counter

SUCCESS, ERROR = "success", "error"
# What metrics call them.
TABLE = {
    SUCCESS: ("notip_sim_provisioning_success", "Gateways that were provisioned."),
    ERROR: ("notip_sim_provisioning_errors", "Gateways that could not be provisioned."),
}

_LOCK = threading.Lock()
_COUNTS: Counter[str] = Counter()


def count(outcome: str) -> None:
    """Count one gateway: `SUCCESS` or `ERROR`."""
    with _LOCK:
        _COUNTS[outcome] += 1


def counts() -> dict[str, int]:
    """Return how many there were of each; nothing before the first of any."""
    with _LOCK:
        return {SUCCESS: _COUNTS[SUCCESS], ERROR: _COUNTS[ERROR]} if _COUNTS else {}
