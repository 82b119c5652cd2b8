"""The gateways of a run as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from iotsim.gateway.connections import Connections
from iotsim.gateway.crew import Crew
from iotsim.gateway.record import GatewayRecord

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("gateway", "gateway_id", "tenant_id", "model", "firmware", "send_frequency_ms",
           "status", "state", "connected", "sensors", "queued", "waiting", "trouble")
STORE_COLUMNS = ("gateway", "gateway_id", "tenant_id", "factory_id", "model", "firmware",
                 "send_frequency_ms", "status", "intent", "sensors", "provisioned", "created_at",
                 "run", "trouble")
_WORDS = ("model", "firmware", "status", "state", "tenant_id")


def gateways_table(crew: Crew, connections: Connections) -> pd.DataFrame:
    """Return a row for each gateway; see `GatewayRun.gateways`."""
    import pandas as pd

    rows = [_row(crew, record, connections) for record in crew.records.values()]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(_WORDS, "category"))


def store_table(
    records: Iterable[GatewayRecord], damaged: Mapping[str, str], runs: Mapping[str, str]
) -> pd.DataFrame:
    """Return a row for each gateway of a store; see `Platform.gateways`."""
    import pandas as pd

    rows: list[tuple[Any, ...]] = [
        (one.name, one.gateway_id, one.tenant_id, one.factory_id, one.model, one.firmware,
         one.send_frequency_ms, one.status, one.intent, len(one.sensors), one.provisioned,
         one.created_at, runs.get(one.name, ""), "")
        for one in records
    ]
    rows += [(name, "", "", "", "", "", 0, "", "", 0, False, "", "", why)
             for name, why in damaged.items()]
    return pd.DataFrame(rows, columns=list(STORE_COLUMNS))


def state_of(crew: Crew, record: GatewayRecord) -> str:
    """Return running, stopped, deleted or decommissioned, whether the run is over or not."""
    return crew.gone.get(record.name) or record.intent


def _row(crew: Crew, record: GatewayRecord, connections: Connections) -> tuple[Any, ...]:
    name, state = record.name, state_of(crew, record)
    if state == "running" and crew.run is not None and crew.run.ended:
        state = "ended"
    return (record.name, record.gateway_id, record.tenant_id, record.model, record.firmware,
            record.send_frequency_ms, record.status, state,
            connections.is_connected(name), len(record.sensors), connections.queued(name),
            crew.waiting_of(name), connections.trouble(name))
