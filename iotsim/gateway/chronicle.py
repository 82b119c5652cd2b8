"""What a log says of the gateways of a run: who connects, is stopped, deleted, commanded.

Commands are told as they are answered. The rest is looked at once a second, as publishers are: a
thousand connections that are lost together are one line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from iotsim.gateway.command_log import NEVER_US, Entry
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.tables import state_of
from iotsim.logs import LOG, say

if TYPE_CHECKING:
    from iotsim.gateway.run import GatewayRun

TOLD_MAX = 10  # of one kind and second by name; more are one line
NAMES_TOLD = 5
WORDS = {
    "gateway_joined": "joined the run", "gateway_connected": "connected",
    "gateway_disconnected": "disconnected", "gateway_started": "started",
    "gateway_stopped": "stopped", "gateway_deleted": "deleted",
    "gateway_decommissioned": "decommissioned",
}  # fmt: skip

_Seen: TypeAlias = tuple[GatewayRecord, str, bool]  # as it was, its state, whether connected


class Chronicle:
    """Tells the logger what becomes of the gateways of a run.

    Parameters
    ----------
    run : GatewayRun
    """

    def __init__(self, run: GatewayRun) -> None:
        self._crew = run.crew
        self._facts = {"run": run.works.run_id, "fleet": run.name}
        self._seen: dict[str, _Seen] = {}
        self._crew.log.watch = self._answered
        run.works.journal.lookers.append(self.look)

    def _say(self, event: str, message: str, **facts: Any) -> None:
        say(logging.INFO, event, message, {**self._facts, **facts})

    def look(self) -> None:
        """Say what has become of gateways since the last look."""
        if not LOG.isEnabledFor(logging.INFO):
            return
        news: dict[str, list[GatewayRecord]] = {}
        for name, record in self._crew.records.items():
            state = state_of(self._crew, record)
            now = record, state, self._crew.is_connected(name)
            before = self._seen.get(name)
            if before != now:
                for event in _events(before, now):
                    news.setdefault(event, []).append(record)
                if before is not None and before[0].sensors != record.sensors:
                    self._look_at_sensors(before[0], record)
                self._seen[name] = now
        for event, records in news.items():
            self._tell(event, records)

    def _tell(self, event: str, records: list[GatewayRecord]) -> None:
        if len(records) <= TOLD_MAX:
            for record in records:
                self._say(event, f"gateway {record.name} {WORDS[event]}", **_who(record))
            return
        names = [record.name for record in records[:NAMES_TOLD]]
        self._say(event, f"{len(records):,} gateways {WORDS[event]}: {', '.join(names)}, …",
                  count=len(records), gateways=names)

    def _look_at_sensors(self, before: GatewayRecord, now: GatewayRecord) -> None:
        old, new = _sensors(before), _sensors(now)
        for event, word, names in (("sensor_attached", "attached to", new.keys() - old.keys()),
                                   ("sensor_detached", "detached from", old.keys() - new.keys())):
            for name in sorted(names):
                kind = new.get(name, old.get(name))
                self._say(event, f"sensor {name} {word} gateway {now.name}", **_who(now),
                          sensor=name, sensor_type=kind)

    def _answered(self, entry: Entry) -> None:
        known = NEVER_US not in (entry.issued_us, entry.answered_us)
        latency_s = (entry.answered_us - entry.issued_us) / 1e6 if known else None
        why = f": {entry.message}" if entry.message else ""
        self._say("gateway_command",
                  f"command {entry.command_id or '(without an id)'} to gateway {entry.gateway}: "
                  f"{entry.kind or 'no command'} {entry.status}{why}",
                  gateway=entry.gateway, gateway_id=entry.gateway_id, command_id=entry.command_id,
                  type=entry.kind, status=entry.status, latency_s=latency_s,
                  repeated=entry.repeated)


def _events(before: _Seen | None, now: _Seen) -> Iterable[str]:
    # In the order in which they can have come.
    if before is None:
        yield "gateway_joined"
    state = "running" if before is None else before[1]
    if state != now[1] == "running":
        yield "gateway_started"
    if now[2] and (before is None or not before[2]):
        yield "gateway_connected"
    if state != now[1] != "running":
        yield f"gateway_{now[1]}"
    if before is not None and before[2] and not now[2]:
        yield "gateway_disconnected"


def _who(record: GatewayRecord) -> dict[str, str]:
    return {"gateway": record.name, "gateway_id": record.gateway_id,
            "tenant_id": record.tenant_id}


def _sensors(record: GatewayRecord) -> dict[str, str]:
    return {str(one["name"]): str(one["type"]) for one in record.sensors}
