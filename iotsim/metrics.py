"""Prometheus metrics of live runs: `iotsim.metrics.serve(port=9090)`.

Every run has its own registry; what is served joins them, told apart by the label `run`. Counting
by device type begins when serving begins (or the run, if that is later): nobody pays for it before.
Labels are device types (100 at most, then "other"), protocols, states and names of faults; never a
device, an address or a secret. The last sixteen runs that are over stay readable.

Runs of NoTIP gateways also have what their platform's dashboards show, under those names, by
gateway id (2,000 at most, then "other") as long as the gateway and the run are there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from iotsim import live_runs
from iotsim.errors import BadValue, MissingExtra
from iotsim.gateway import outcomes
from iotsim.intake import BATCH_POWERS
from iotsim.preflight import memory_used_bytes
from iotsim.publishers.base import whole
from iotsim.run import Run
from iotsim.run_tally import LATENCY_BOUNDS_S, Buckets, RunTally, Totals

PORT = 9090
HOST = "127.0.0.1"
OVER_MAX = 16
ANSWER_S = 0.5  # how long a scrape waits for a run's loop, before it reads beside it
BATCH_POWERS_TOLD = 17

# What a Totals calls it: name, kind, help, labels beside `run`.
TABLE = {
    "devices_active": ("sim_devices_active", "gauge", "Devices that live now.",
                       ("device_type", "protocol")),
    "messages_sent": ("sim_messages_sent", "counter",
                      "Messages with a verdict: ok (acknowledged) or error (refused).",
                      ("device_type", "protocol", "status")),
    "device_errors": ("sim_device_errors", "counter",
                      "Errors: publish_error (refused), device_failed (a script raised).",
                      ("device_type", "error_type")),
    "backpressure_drops": ("sim_backpressure_drops", "counter",
                           "Messages that a full queue dropped.", ("device_type",)),
    "backpressure_slowdowns": ("sim_backpressure_slowdowns", "counter",
                               "Devices that were slowed down by a full queue.",
                               ("device_type",)),
    "faults_injected": ("sim_faults_injected", "counter", "Faults that were injected.",
                        ("fault_type",)),
    "faults_active": ("sim_faults_active", "gauge", "Devices on which a fault is active.",
                      ("fault_type",)),
    "queue_depth": ("sim_publish_queue_depth", "gauge", "Messages that wait to be sent.",
                    ("protocol",)),
    "tasks_active": ("sim_tasks_active", "gauge", "Tasks on the run's event loop.", ()),
    "publisher_messages": ("sim_publisher_messages", "gauge",
                           "The ledger: every message is in one state.", ("protocol", "state")),
    "readings": ("sim_readings", "counter", "Readings that were made.", ()),
    "readings_late": ("sim_readings_late", "counter",
                      "Readings handed over more than 100 ms after their time.", ()),
    "loop_lag": ("sim_loop_lag_max_seconds", "gauge", "The latest that the event loop was.", ()),
    "quality": ("sim_run_valid", "gauge", "1 if the run is valid so far.", ()),
}


class Server:
    """Metrics over HTTP, until it is closed; made by `serve`.

    Attributes
    ----------
    host : str
    port : int
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            from prometheus_client import start_http_server
        except ImportError:
            raise MissingExtra("serving metrics", "prometheus-client", "metrics") from None
        self.host = host
        _EXPORT.enter(self)
        try:
            self._http, self._thread = start_http_server(
                port, host, registry=_EXPORT)
        except (OSError, UnicodeError, OverflowError) as error:
            _EXPORT.leave(self)
            raise _refused(host, port, error) from None
        self.port = int(self._http.server_port)

    @property
    def url(self) -> str:
        """Where a browser, or Prometheus, finds it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    @property
    def closed(self) -> bool:
        """Whether it serves no more."""
        return not _EXPORT.has(self)

    def close(self) -> None:
        """Serve no more; to close twice is to close once."""
        if _EXPORT.leave(self):
            self._http.shutdown()
            self._http.server_close()
            self._thread.join(2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Metrics on {self.url}{': closed' if self.closed else ''}>"


def serve(port: int = PORT, host: str = HOST) -> Server:
    """Serve the metrics of all live runs for Prometheus, from a thread of its own.

    Parameters
    ----------
    port : int
        0 takes a free one; the server says which.
    host : str
        Only this machine can read them, unless another address is given.

    Raises
    ------
    BadValue
        If the port is in use, or the address is none of this machine's.
    MissingExtra
        If prometheus-client is not installed.

    Examples
    --------
    >>> import iotsim
    >>> with iotsim.metrics.serve(port=0) as server:
    ...     server.url.endswith("/metrics")
    True
    """
    whole("port", port, 0, 65_535)
    if not isinstance(host, str) or not host or not host.isprintable():
        raise BadValue("host", host, "is not an address", f"Give one such as {HOST!r}.")
    return Server(host, port)


def _refused(host: str, port: int, error: Exception) -> BadValue:
    import errno

    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return BadValue("port", port, f"is in use on {host}",
                        "Give another, or port=0 for a free one.")
    if number in (errno.EACCES, errno.EPERM):
        return BadValue("port", port, "is not allowed to this user", "Give one above 1023.")
    why = getattr(error, "strerror", None) or str(error)
    return BadValue("host", host, f"cannot be listened on ({why})",
                    "Give an address of this machine.")


class _Export:
    """What all servers show; counts only while there is one. A registry of registries."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._servers: set[Server] = set()
        self._live: dict[int, tuple[Run, RunTally, Any]] = {}
        self._over: deque[tuple[RunTally, Any]] = deque(maxlen=OVER_MAX)

    def has(self, server: Server) -> bool:
        return server in self._servers

    def enter(self, server: Server) -> None:
        with self._lock:
            self._servers.add(server)
            if len(self._servers) == 1:
                live_runs.WATCHES.append(self)
                for run in live_runs.runs():
                    self.begun(run)

    def leave(self, server: Server) -> bool:
        with self._lock:
            if server not in self._servers:
                return False
            self._servers.remove(server)
            if not self._servers:
                live_runs.WATCHES.remove(self)
                for _, tally, _ in self._live.values():
                    tally.close()
                self._live.clear()
                self._over.clear()
            return True

    def begun(self, run: Run) -> None:
        with self._lock:
            tally = RunTally(run)
            self._live[id(run)] = run, tally, _registry(_RunCollector(tally, run))

    def over(self, run: Run) -> None:
        with self._lock:
            found = self._live.pop(id(run), None)
            if found is not None:
                found[1].finish()
                for older in [one for one in self._over if one[0].name == run.name]:
                    self._over.remove(older)
                self._over.append((found[1], _registry(_RunCollector(found[1], None))))

    def collect(self) -> Iterator[Any]:
        """Yield the families of all runs, those of one name joined; what prometheus asks."""
        with self._lock:
            # One registry for each name, the latest: a series must not come twice.
            latest = {tally.name: registry for tally, registry in self._over}
            latest |= {tally.name: registry for _, tally, registry in self._live.values()}
            registries = list(latest.values())
        joined = {family.name: family for family in _of_process()}
        for registry in registries:
            for family in registry.collect():
                if family.name in joined:
                    joined[family.name].samples.extend(family.samples)
                else:
                    joined[family.name] = family
        yield from joined.values()


_EXPORT = _Export()


def _registry(collector: _RunCollector) -> Any:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


class _RunCollector:
    def __init__(self, tally: RunTally, run: Run | None) -> None:
        self._tally, self._run = tally, run

    def describe(self) -> Iterable[Any]:
        return ()

    def collect(self) -> Iterator[Any]:
        yield from _families(self._tally.name, self._read())

    def _read(self) -> Totals:
        # A loop may be blocked by a cell that waits for this very answer: nothing moves then.
        read = self._tally.read
        return read() if self._run is None else self._run._look(read, ANSWER_S)


def _families(run: str, totals: Totals) -> Iterator[Any]:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    for key, (name, kind, text, labels) in _table(totals).items():
        make: Any = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
        family = make(name, text, labels=("run", *labels))
        for values, count in sorted(totals.counts.get(key, {}).items()):
            family.add_metric((run, *values), count)
        yield family
    latency = HistogramMetricFamily(
        "sim_publish_latency_seconds", "From the hand-over of a message to its acknowledgement.",
        labels=("run", "device_type", "protocol"))
    for values, buckets in sorted(totals.latencies.items()):
        latency.add_metric((run, *values), _summed(LATENCY_BOUNDS_S, buckets), buckets.sum)
    yield latency
    sizes = HistogramMetricFamily(
        "sim_telemetry_batch_size", "How many readings are handed over together.",
        labels=("run",))
    if totals.batches.counts:
        told = [*totals.batches.counts[:BATCH_POWERS_TOLD],
                sum(totals.batches.counts[BATCH_POWERS_TOLD:BATCH_POWERS])]
        bounds = tuple(float(2**power) for power in range(BATCH_POWERS_TOLD))
        sizes.add_metric((run,), _summed(bounds, Buckets(told, totals.batches.sum)),
                         totals.batches.sum)
    yield sizes


def _table(totals: Totals) -> dict[str, tuple[str, str, str, tuple[str, ...]]]:
    if "gateways_running" not in totals.counts:
        return TABLE
    from iotsim.gateway import tally

    return {**TABLE, **tally.TABLE}


def _summed(bounds: tuple[float, ...], buckets: Buckets) -> list[tuple[str, float]]:
    # Prometheus counts what is at most the bound, not what lies between two.
    from itertools import accumulate

    names = [*(f"{bound:g}" if bound < 1000 else f"{bound:.0f}" for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(buckets.counts), strict=True))


def _of_process() -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for outcome, count in outcomes.counts().items():
        name, text = outcomes.TABLE[outcome]
        yield CounterMetricFamily(name, text, value=count)
    used_bytes = memory_used_bytes()
    if used_bytes is not None:
        yield GaugeMetricFamily("sim_memory_alloc_bytes", "Memory that this process holds.",
                                value=used_bytes)
