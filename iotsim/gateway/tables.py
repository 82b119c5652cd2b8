"""The gateways of a run as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from iotsim.feeders import Way
from iotsim.gateway.crew import Crew
from iotsim.gateway.record import GatewayRecord

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("gateway", "gateway_id", "tenant_id", "model", "firmware", "send_frequency_ms",
           "status", "state", "connected", "sensors", "queued", "waiting")
_WORDS = ("model", "firmware", "status", "state", "tenant_id")


def gateways_table(crew: Crew, lanes: Mapping[str, Sequence[tuple[Way, int]]]) -> pd.DataFrame:
    """Return a row for each gateway; see `GatewayRun.gateways`."""
    import pandas as pd

    rows = [_row(crew, record, lanes.get(name, ())) for name, record in crew.records.items()]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(_WORDS, "category"))


def state_of(crew: Crew, record: GatewayRecord) -> str:
    """Return running, stopped, deleted or decommissioned."""
    return crew.gone.get(record.name) or record.intent


def _row(
    crew: Crew, record: GatewayRecord, lanes: Sequence[tuple[Way, int]]
) -> tuple[Any, ...]:
    connected = [way.pump.is_connected(lane) for way, lane in lanes]
    queued = sum(way.pump.open_of(lane) for way, lane in lanes)
    return (record.name, record.gateway_id, record.tenant_id, record.model, record.firmware,
            record.send_frequency_ms, record.status, state_of(crew, record),
            any(connected) or crew.is_connected(record.name), len(record.sensors), queued,
            crew.waiting_of(record.name))
