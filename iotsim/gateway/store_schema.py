"""The tables of a store, and how a store of an older iotsim becomes one of today."""

from __future__ import annotations

import sqlite3

from iotsim.clock import wall_us
from iotsim.errors import StoreError
from iotsim.units import instant_text

APPLICATION_ID = 0x494F5453  # "IOTS": how a store tells itself from other SQLite files

# Secrets are BLOBs that only the vault can open, or NULL. What is unique when it is present is
# NULL when it is not.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE schema_migrations (
            version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL
        )""",
        """CREATE TABLE facts (name TEXT PRIMARY KEY NOT NULL, value BLOB) WITHOUT ROWID""",
        """CREATE TABLE gateways (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            factory_id TEXT UNIQUE,
            factory_key BLOB,
            model TEXT NOT NULL,
            firmware TEXT NOT NULL,
            send_frequency_ms INTEGER NOT NULL,
            seed INTEGER NOT NULL,
            private_key_pem BLOB,
            gateway_id TEXT UNIQUE,
            tenant_id TEXT NOT NULL,
            cert_pem TEXT NOT NULL,
            aes_key BLOB,
            status TEXT NOT NULL,
            intent TEXT NOT NULL,
            created_at TEXT NOT NULL,
            forgotten INTEGER NOT NULL DEFAULT 0
        )""",
        """CREATE TABLE sensors (
            gateway INTEGER NOT NULL REFERENCES gateways (id) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            name TEXT NOT NULL,
            type TEXT NOT NULL,
            spec TEXT NOT NULL,
            PRIMARY KEY (gateway, position),
            UNIQUE (gateway, name)
        ) WITHOUT ROWID""",
        """CREATE TABLE answers (
            id INTEGER PRIMARY KEY,
            gateway INTEGER NOT NULL REFERENCES gateways (id) ON DELETE CASCADE,
            command_id TEXT NOT NULL,
            status TEXT NOT NULL,
            message TEXT NOT NULL,
            timestamp TEXT NOT NULL,
            UNIQUE (gateway, command_id)
        )""",
        "CREATE INDEX answers_by_age ON answers (gateway, id)",
        f"PRAGMA application_id = {APPLICATION_ID}",
    ),
)


def migrate(
    connection: sqlite3.Connection,
    path: str,
    migrations: tuple[tuple[str, ...], ...] = MIGRATIONS,
) -> None:
    """Apply what a store has not seen yet, each migration in one transaction.

    Raises
    ------
    StoreError
        If a newer iotsim made it.
    """
    seen = _seen(connection)
    if seen > len(migrations):
        raise StoreError(path, f"a newer iotsim made it (schema {seen}, known here: "
                         f"{len(migrations)})", "Update iotsim, or give another path.")
    for version, statements in enumerate(migrations, 1):
        if version <= seen:
            continue
        try:
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO schema_migrations VALUES (?, ?)",
                               (version, instant_text(wall_us())))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def is_ours(connection: sqlite3.Connection) -> bool:
    """Return whether it is a store, or nothing yet."""
    (ident,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return bool(ident == APPLICATION_ID) if tables else ident in (0, APPLICATION_ID)


def _seen(connection: sqlite3.Connection) -> int:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        return 0
    (seen,) = connection.execute("SELECT max(version) FROM schema_migrations").fetchone()
    return int(seen or 0)
