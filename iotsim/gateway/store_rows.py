"""The rows of a store: how gateways, sensors and answers are written and found."""

from __future__ import annotations

import sqlite3
from typing import Any

from iotsim.errors import BadValue
from iotsim.gateway.commands import Answer

ANSWERS_MAX = 1000
UNIQUE = ("factory_id", "gateway_id")  # NULL where they are empty
SECRETS = ("factory_key", "private_key_pem", "aes_key")
COLUMNS = ("name", *UNIQUE, "model", "firmware", "send_frequency_ms", "seed", "tenant_id",
           "cert_pem", "status", "intent", "created_at", *SECRETS)
SELECT = f"SELECT id, {', '.join(COLUMNS)} FROM gateways"
COUNTS = (
    "SELECT (SELECT count(*) FROM gateways), (SELECT count(*) FROM sensors), "
    "(SELECT count(*) FROM answers), (SELECT coalesce(sum(forgotten), 0) FROM gateways)"
)


def put_name(connection: sqlite3.Connection, name: str) -> None:
    """See to it that a gateway has a row; what stands in it comes afterwards."""
    # Not REPLACE: that deletes a row that is there, and with it its answers.
    connection.execute(
        "INSERT INTO gateways (name, model, firmware, send_frequency_ms, seed, tenant_id, "
        "cert_pem, status, intent, created_at) VALUES (?, '', '', 0, 0, '', '', '', '', '') "
        "ON CONFLICT (name) DO NOTHING", (name,)
    )


def update(connection: sqlite3.Connection, ident: int, row: dict[str, Any]) -> None:
    """Write columns of a gateway; their names are of `COLUMNS`."""
    if row:
        places = ", ".join(f"{column} = ?" for column in row)
        connection.execute(f"UPDATE gateways SET {places} WHERE id = ?", (*row.values(), ident))


def find_answer(connection: sqlite3.Connection, name: str, command_id: str) -> Answer | None:
    """Return what a gateway answered to a command, or None."""
    row = connection.execute(
        "SELECT command_id, answers.status, message, timestamp FROM answers "
        "JOIN gateways ON gateways.id = answers.gateway WHERE name = ? AND command_id = ?",
        (name, command_id),
    ).fetchone()
    return None if row is None else Answer(*row)


def ident_of(connection: sqlite3.Connection, name: str) -> int | None:
    """Return the number of a gateway's row, or None."""
    row = connection.execute("SELECT id FROM gateways WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def fetched(connection: sqlite3.Connection, column: str, value: str) -> tuple[Any, list[str]]:
    """Return the row of a gateway, as `SELECT` gives it, and its sensors as JSON; or None."""
    row = connection.execute(f"{SELECT} WHERE {column} = ?", (value,)).fetchone()
    if row is None:
        return None, []
    specs = connection.execute(
        "SELECT spec FROM sensors WHERE gateway = ? ORDER BY position", (row[0],)
    )
    return row, [spec for (spec,) in specs]


def unique(
    connection: sqlite3.Connection, ident: int, column: str, value: str
) -> str | None:
    """Return what goes into a column of ids, or raise BadValue if another gateway has it."""
    row = connection.execute(
        f"SELECT name FROM gateways WHERE {column} = ? AND id <> ?", (value, ident)
    ).fetchone()
    if row is not None:
        raise BadValue(column, value, f"is that of gateway {row[0]!r} already",
                       "Delete that gateway first, or give another one.")
    return value or None


def put_sensors(
    connection: sqlite3.Connection, ident: int, specs: list[tuple[str, str, str]]
) -> None:
    """Replace a gateway's sensors: name, type and JSON of each."""
    connection.execute("DELETE FROM sensors WHERE gateway = ?", (ident,))
    connection.executemany(
        "INSERT INTO sensors (gateway, position, name, type, spec) VALUES (?, ?, ?, ?, ?)",
        ((ident, position, *spec) for position, spec in enumerate(specs)),
    )


def put_answer(connection: sqlite3.Connection, ident: int, answer: Answer) -> None:
    """Keep an answer, and of a gateway the latest 1,000; what is forgotten is counted."""
    connection.execute(
        "INSERT INTO answers (gateway, command_id, status, message, timestamp) "
        "VALUES (?, ?, ?, ?, ?) ON CONFLICT (gateway, command_id) DO UPDATE SET "
        "status = excluded.status, message = excluded.message, timestamp = excluded.timestamp",
        (ident, answer.command_id, answer.status, answer.message, answer.timestamp),
    )
    gone = connection.execute(
        "DELETE FROM answers WHERE gateway = ? AND id <= (SELECT id FROM answers "
        "WHERE gateway = ? ORDER BY id DESC LIMIT 1 OFFSET ?)", (ident, ident, ANSWERS_MAX)
    ).rowcount
    if gone:
        connection.execute("UPDATE gateways SET forgotten = forgotten + ? WHERE id = ?",
                           (gone, ident))
