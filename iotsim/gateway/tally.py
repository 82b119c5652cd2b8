"""What metrics say of the gateways of one run; counted only while somebody serves metrics.

Counts go by message ids, which name the gateway whatever connection they came over: one dict entry
for a batch of verdicts. The rest is looked at when somebody asks.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from iotsim.acks import ACKNOWLEDGED
from iotsim.gateway.record import local_name
from iotsim.gateway.tables import state_of
from iotsim.publishers.lane_settings import DROPPED
from iotsim.verbs import BACK_PRESSURE

if TYPE_CHECKING:
    from iotsim.engine.population import Population
    from iotsim.faults.base import Window
    from iotsim.gateway.run import GatewayRun
    from iotsim.publishers.pump import Pump

Counts: TypeAlias = dict[tuple[str, ...], float]

GATEWAYS_TOLD_MAX = 2000  # what comes after them is one, "other"
OTHER = "other"
TOGETHER_US = 100_000  # parts of one anomaly are injected one after the other
# The contract's names of anomalies; other faults have their own.
ANOMALIES = {
    "packet_loss": "network_degradation", "latency_spike": "network_degradation",
    "duplicate": "network_degradation", "reorder": "network_degradation",
    "disconnect": "disconnect", "outlier": "sensor_outlier",
}
NO_ANOMALIES = ("suspend", "slow_down")
BY_GATEWAY = ("envelopes_published", "gateway_publish_errors", "buffer_dropped", "buffer_fill",
              "nats_reconnects")

# What it is called here: name, kind, help, labels beside `run`.
TABLE = {
    "gateways_running": ("notip_sim_gateways_running", "gauge", "Gateways that run now.", ()),
    "gateways_connected": ("notip_sim_gateways_connected", "gauge",
                           "Gateways with a connection to NATS now.", ()),
    "envelopes_published": ("notip_sim_envelopes_published", "counter",
                            "Envelopes that the platform's stream has acknowledged.",
                            ("gateway_id",)),
    "gateway_publish_errors": ("notip_sim_publish_errors", "counter",
                               "Attempts that failed: refused, or the link was lost before a "
                               "verdict (those are sent again).", ("gateway_id",)),
    "buffer_dropped": ("notip_sim_buffer_dropped", "counter",
                       "Envelopes that a full buffer dropped, the oldest first.",
                       ("gateway_id",)),
    "buffer_fill": ("notip_sim_buffer_fill_level", "gauge", "Envelopes that wait to be sent.",
                    ("gateway_id",)),
    "nats_reconnects": ("notip_sim_nats_reconnects", "counter",
                        "How often its connection was made again.", ("gateway_id",)),
    "anomalies_injected": ("notip_sim_anomalies_injected", "counter",
                           "Anomalies, each of a gateway, an outlier of a sensor.", ("type",)),
    "commands": ("notip_sim_commands", "counter",
                 "Commands by what became of them: ack, nack, expired, terminated, returned.",
                 ("type", "status")),
}  # fmt: skip


class GatewayTally:
    """Counts what becomes of the gateways of a run from now on.

    Parameters
    ----------
    run : GatewayRun
    """

    def __init__(self, run: GatewayRun) -> None:
        self._run, self._crew, self._works = run, run.crew, run.works
        self._lock = threading.Lock()  # a scrape reads in another thread if the loop is blocked
        self._published: Counter[str] = Counter()  # by run/gateway
        self._errors: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._told: set[str] = set()
        self._together: set[str] = set()  # those that came too late to be told one by one
        self._anomalies: Counter[str] = Counter(dict.fromkeys(ANOMALIES.values(), 0))
        self._windows = 0
        self._degraded: tuple[tuple[int, int], set[str]] = (0, 0), set()
        self._works.acks.watchers.append(self._verdict)

    def close(self) -> None:
        """Count no more."""
        watchers = self._works.acks.watchers
        if self._verdict in watchers:
            watchers.remove(self._verdict)

    def _verdict(
        self, ids: Sequence[str], outcome: str, seconds: Sequence[float], publisher: int
    ) -> None:
        if outcome == ACKNOWLEDGED:
            counts = self._published
        else:
            counts = self._dropped if outcome == DROPPED else self._errors
        with self._lock:
            if len(ids) == 1:
                counts[_whose(ids[0])] += 1
            else:
                counts.update(map(_whose, ids))

    def read(self) -> dict[str, Counts]:
        """Return what it has come to; on the run's loop, or while that is blocked."""
        crew = self._crew
        records = list(crew.records.values())  # at once: they may change meanwhile
        running = sum(state_of(crew, one) == "running" for one in records)
        connected = sum(crew.is_connected(one.name) for one in records
                        if one.name not in crew.gone)
        return {
            "gateways_running": {(): running},
            "gateways_connected": {(): connected},
            **self._by_gateway(),
            **self._lasting(),
        }

    def finish(self) -> dict[str, Counts]:
        """Return what remains of a run that is over: nothing of a single gateway."""
        return {"gateways_running": {(): 0}, "gateways_connected": {(): 0},
                **{name: {} for name in BY_GATEWAY}, **self._lasting()}

    def _lasting(self) -> dict[str, Counts]:
        self._look_at_windows()
        anomalies: Counts = {(kind,): count for kind, count in self._anomalies.items()}
        return {"anomalies_injected": anomalies, "commands": dict(self._crew.log.by_type())}

    # -- one by one -------------------------------------------------------------------------------

    def _by_gateway(self) -> dict[str, Counts]:
        found: tuple[Counts, ...] = ({}, {}, {}, {}, {})
        prefix = f"{self._works.run_id}/"
        lanes, together, waiting = self._lanes()
        with self._lock:
            counted = self._published, self._errors, self._dropped
            for name, record in list(self._crew.records.items()):
                label, who = self._label(name, record.gateway_id), prefix + name
                if not label:
                    for counts in counted:
                        counts.pop(who, None)
                    continue
                mine, fill, again = lanes.get(name, together), waiting[who], 0
                for pump, lane in mine:
                    fill += 0 if mine is together else pump.waiting_of(lane)
                    again += pump.reconnects_of(lane)
                values = *[counts[who] for counts in counted], fill, again
                for series, value in zip(found, values, strict=True):
                    series[(label,)] = series.get((label,), 0) + value
        return dict(zip(BY_GATEWAY, found, strict=True))

    def _label(self, name: str, gateway_id: str) -> str:
        # Its id, "other" if there are too many, nothing if it is gone. Who is among the others
        # stays there, deleted too: what they have counted must not become less.
        if name in self._together:
            return OTHER
        if name in self._crew.gone:
            self._told.discard(name)
            return ""
        if name in self._told:
            return gateway_id
        if len(self._told) < GATEWAYS_TOLD_MAX:
            self._told.add(name)
            return gateway_id
        if not self._together:
            self._crew.remark(f"metrics show {GATEWAYS_TOLD_MAX:,} gateways one by one; the "
                              f"others are together, as {OTHER!r}")
        self._together.add(name)
        return OTHER

    def _lanes(
        self,
    ) -> tuple[Mapping[str, list[tuple[Pump, int]]], list[tuple[Pump, int]], Counter[str]]:
        # The lanes of each gateway; those that all have together, and how much waits in them.
        own: dict[str, list[tuple[Pump, int]]] = {}
        together: list[tuple[Pump, int]] = []
        waiting: Counter[str] = Counter()
        for way in self._works.ways:
            if way.per_device:
                for name, lane in list(way.sessions.items()):
                    own.setdefault(name, []).append((way.pump, lane))
                continue
            for lane in range(way.pump.lanes):
                together.append((way.pump, lane))
                waiting.update(map(_whose, way.pump.waiting_ids(lane)))
        return own, together, waiting

    # -- anomalies --------------------------------------------------------------------------------

    def _look_at_windows(self) -> None:
        driver = self._works.driver
        if driver is None:
            return
        simulation = driver.simulation
        windows = simulation.deeds.windows
        for window in windows[self._windows :]:
            if window.by != BACK_PRESSURE and window.name not in NO_ANOMALIES:
                kind = ANOMALIES.get(window.name, window.name)
                self._anomalies[kind] += sum(
                    1 for _ in self._struck(window, kind, simulation.population))
        self._windows = len(windows)

    def _struck(self, window: Window, kind: str, people: Population) -> Iterator[str]:
        # Sensors of an outlier, else gateways. A link that becomes slow and lossy at once is bad
        # once.
        names = [people.ids[slot] for slot in window.slots.tolist()]
        if kind == "sensor_outlier":
            yield from names
            return
        gateways = {local_name(name)[0] for name in names}
        if kind == "network_degradation":
            (begin_us, length_us), _ = self._degraded
            when = window.begin_us, window.end_us - window.begin_us
            if length_us != when[1] or window.begin_us - begin_us > TOGETHER_US:
                self._degraded = when, set()
            gateways -= self._degraded[1]
            self._degraded[1].update(gateways)
        yield from gateways


def _whose(ident: str) -> str:
    # Neither a sensor's name nor what follows has a colon.
    return ident.rpartition(":")[0]
