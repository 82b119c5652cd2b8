"""What outlives a process: gateways, their secrets encrypted, and what commands were answered."""

from __future__ import annotations

import json
import sqlite3
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

from iotsim.errors import BadValue, StoreError, UnknownName
from iotsim.gateway.commands import Answer, Verdict
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.store_file import StoreFile, acquire, real_path, release
from iotsim.gateway.store_values import check_answer, check_text, checked, sensor_specs
from iotsim.transport.discretion import discreet

ANSWERS_MAX = 1000
_UNIQUE = ("factory_id", "gateway_id")  # NULL where they are empty
_SECRETS = ("factory_key", "private_key_pem", "aes_key")
_PLAIN = ("model", "firmware", "send_frequency_ms", "seed", "tenant_id", "cert_pem", "status",
          "intent", "created_at")
_COLUMNS = ("name", *_UNIQUE, *_PLAIN, *_SECRETS)


@dataclass(frozen=True, slots=True)
class StoreSnapshot:
    """How much a store holds; `forgotten` are answers beyond the latest 1,000 of each gateway."""

    gateways: int
    sensors: int
    answers: int
    forgotten: int


class Store:
    """A file of gateways: SQLite, with every secret encrypted. Open it with `Store.open`.

    Each call is one transaction, on the disk when it returns. Any thread may call; in a coroutine
    write `await asyncio.to_thread(store.save, record)`.
    """

    __slots__ = ("__weakref__", "_file", "_let_go")

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._let_go = weakref.finalize(self, release, file)

    @classmethod
    @discreet
    def open(cls, path: str | PathLike[str], *, key: str | bytes | None = None) -> Self:
        """Return the store at a path; made if it is missing, shared if this process has it open.

        Parameters
        ----------
        path : str or path
        key : str or bytes, optional
            32 bytes, or base64 or hex text of them. Left out: `IOTSIM_STORE_KEY` of the
            environment, or else the file `<path>.key`, which is made with a new store.

        Raises
        ------
        StoreError
            If it is no store, or another process has it open; if its key is missing or another.
        BadValue
            If the path or the key cannot be one.
        """
        return cls(acquire(real_path(path), key))

    def close(self) -> None:
        """Let go of the file; again is nothing."""
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self.path!r}{', closed' if self.closed else ''}>"

    @property
    def path(self) -> str:
        """Where it is, without symbolic links."""
        return self._file.path

    @property
    def closed(self) -> bool:
        """Whether this one was closed; others of the same file may be open."""
        return not self._let_go.alive

    @property
    def _open_file(self) -> StoreFile:
        if self.closed:
            raise StoreError(self.path, "is closed", "Open it again.")
        return self._file

    # -- gateways ---------------------------------------------------------------------------------

    @discreet
    def records(self, *, unreadable: list[StoreError] | None = None) -> list[GatewayRecord]:
        """Return every gateway, the oldest first.

        Parameters
        ----------
        unreadable : list, optional
            Takes an error for each gateway whose secrets are damaged; without it, the first such
            error is raised.
        """
        with self._open_file.reading() as connection:
            rows = connection.execute(f"{_SELECT} ORDER BY id").fetchall()
            specs: dict[int, list[str]] = {}
            for gateway, spec in connection.execute(
                "SELECT gateway, spec FROM sensors ORDER BY gateway, position"
            ):
                specs.setdefault(gateway, []).append(spec)
        found = []
        for row in rows:
            try:
                found.append(self._record(row, specs.get(row[0], [])))
            except StoreError as error:
                if unreadable is None:
                    raise
                unreadable.append(error.with_traceback(None))
        return found

    @discreet
    def names(self) -> list[str]:
        """Return the name of every gateway, the oldest first, readable or not."""
        with self._open_file.reading() as connection:
            return [name for (name,) in
                    connection.execute("SELECT name FROM gateways ORDER BY id")]

    @discreet
    def get(self, name: str) -> GatewayRecord | None:
        """Return a gateway, or None."""
        return self._one("name", name)

    @discreet
    def by_gateway_id(self, gateway_id: str) -> GatewayRecord | None:
        """Return the gateway that the platform calls so, or None."""
        return self._one("gateway_id", gateway_id) if gateway_id else None

    @discreet
    def save(self, *records: GatewayRecord) -> None:
        """Insert gateways, or replace those of the same name; all of them or none.

        Raises
        ------
        BadValue
            If a factory id or gateway id is another gateway's, or a value cannot be stored.
        """
        for record in records:
            checked(_values(record))
        with self._open_file.writing() as connection:
            for record in records:
                self._put(connection, record)

    @discreet
    def add(self, *records: GatewayRecord) -> None:
        """Insert gateways whose names are new; all of them or none.

        Raises
        ------
        BadValue
            If a name is there already, or as `save`.
        """
        for record in records:
            checked(_values(record))
        with self._open_file.writing() as connection:
            for record in records:
                if _ident(connection, record.name) is not None:
                    raise BadValue("name", record.name, "is in the store already",
                                   "Give another name, or delete that gateway first.")
                self._put(connection, record)

    @discreet
    def update(self, name: str, **changes: Any) -> GatewayRecord:
        """Change fields of one gateway, and return it.

        Raises
        ------
        UnknownName, BadValue
            If there is no such gateway or field, or a value cannot be stored.
        """
        changed = _changes(changes)
        with self._open_file.writing() as connection:
            self._change(connection, name, changed)
            return self._record(*_fetched(connection, "name", name))

    @discreet
    def delete(self, name: str) -> bool:
        """Remove a gateway, its sensors and its answers; return whether it was there."""
        check_text("name", name)
        with self._open_file.writing() as connection:
            return connection.execute("DELETE FROM gateways WHERE name = ?", (name,)).rowcount > 0

    # -- commands ---------------------------------------------------------------------------------

    @discreet
    def answered(self, name: str, command_id: str) -> Answer | None:
        """Return what a command was answered with; None if it was not, or long ago."""
        for what, text in (("name", name), ("command_id", command_id)):
            check_text(what, text)
        with self._open_file.reading() as connection:
            row = connection.execute(
                "SELECT command_id, answers.status, message, timestamp FROM answers "
                "JOIN gateways ON gateways.id = answers.gateway WHERE name = ? AND command_id = ?",
                (name, command_id),
            ).fetchone()
        return None if row is None else Answer(*row)

    @discreet
    def remember(
        self, name: str, command_id: str, status: Verdict, message: str = "", timestamp: str = ""
    ) -> None:
        """Keep the answer to a command, instead of an earlier one to it.

        Of each gateway the latest 1,000 are kept.
        """
        self.apply_all([(name, {}, Answer(command_id, status, message, timestamp))])

    @discreet
    def apply(self, name: str, changes: Mapping[str, Any], answered: Answer) -> None:
        """Do what a command asks for and keep its answer, in one transaction.

        Parameters
        ----------
        name : str
        changes : mapping
            As the arguments of `update`.
        answered : Answer
        """
        self.apply_all([(name, changes, answered)])

    @discreet
    def apply_all(self, batch: Iterable[tuple[str, Mapping[str, Any], Answer]]) -> None:
        """Do as `apply` for many, in one transaction: all of it or nothing."""
        work = list(batch)
        for _, changes, answered in work:
            _changes(changes)
            check_answer(answered)
        with self._open_file.writing() as connection:
            for name, changes, answered in work:
                self._change(connection, name, changes)
                _answer(connection, self._known(connection, name), answered)

    @discreet
    def snapshot(self) -> StoreSnapshot:
        """Return how much it holds."""
        with self._open_file.reading() as connection:
            return StoreSnapshot(*connection.execute(
                "SELECT (SELECT count(*) FROM gateways), (SELECT count(*) FROM sensors), "
                "(SELECT count(*) FROM answers), (SELECT coalesce(sum(forgotten), 0) FROM gateways)"
            ).fetchone())

    # -- rows -------------------------------------------------------------------------------------

    def _one(self, column: str, value: str) -> GatewayRecord | None:
        check_text(column, value)
        with self._open_file.reading() as connection:
            row, specs = _fetched(connection, column, value)
        return None if row is None else self._record(row, specs)

    def _put(self, connection: sqlite3.Connection, record: GatewayRecord) -> None:
        # Not REPLACE: that deletes the row, and with it its answers.
        connection.execute(
            "INSERT INTO gateways (name, model, firmware, send_frequency_ms, seed, tenant_id, "
            "cert_pem, status, intent, created_at) VALUES (?, '', '', 0, 0, '', '', '', '', '') "
            "ON CONFLICT (name) DO NOTHING", (record.name,)
        )
        self._change(connection, record.name,
                     {name: value for name, value in _values(record).items() if name != "name"})

    def _change(
        self, connection: sqlite3.Connection, name: str, changes: Mapping[str, Any]
    ) -> None:
        ident = self._known(connection, name)
        row: dict[str, Any] = {}
        for column, value in changes.items():
            if column == "sensors":
                _put_sensors(connection, ident, sensor_specs(value))
            elif column in _SECRETS:
                row[column] = self._sealed(name, column, value)
            elif column in _UNIQUE:
                row[column] = _unique(connection, ident, column, value)
            else:
                row[column] = value
        if row:
            places = ", ".join(f"{column} = ?" for column in row)
            connection.execute(f"UPDATE gateways SET {places} WHERE id = ?",
                               (*row.values(), ident))

    def _known(self, connection: sqlite3.Connection, name: str) -> int:
        check_text("name", name)
        ident = _ident(connection, name)
        if ident is None:
            names = [known for (known,) in connection.execute("SELECT name FROM gateways")]
            raise UnknownName("gateway", name, names, self.path)
        return ident

    def _sealed(self, name: str, column: str, value: str | bytes) -> bytes | None:
        secret = value.encode() if isinstance(value, str) else value
        return self._file.vault.seal(secret, _place(name, column)) if secret else None

    def _record(self, row: Any, specs: list[str]) -> GatewayRecord:
        fields = dict(zip(_COLUMNS, row[1:], strict=True))
        name = fields["name"]
        for column in _UNIQUE:
            fields[column] = fields[column] or ""
        for column in _SECRETS:
            sealed = fields[column]
            secret = b"" if sealed is None else self._file.vault.unseal(
                sealed, _place(name, column))
            if secret is None:
                raise StoreError(self.path, f"the {column} of gateway {name!r} is damaged",
                                 "Put back a copy of the store, or delete that gateway.")
            fields[column] = secret if column == "aes_key" else secret.decode()
        try:
            fields["sensors"] = tuple(json.loads(spec) for spec in specs)
            checked(fields)
        except ValueError as error:
            raise StoreError(self.path, f"gateway {name!r} is damaged: {error}",
                             "Put back a copy of the store, or delete that gateway.") from None
        return GatewayRecord(**fields)


_SELECT = f"SELECT id, {', '.join(_COLUMNS)} FROM gateways"


def _values(record: GatewayRecord) -> dict[str, Any]:
    if not isinstance(record, GatewayRecord):
        raise BadValue("record", type(record), "is no GatewayRecord", "Give a GatewayRecord.")
    return {column: getattr(record, column) for column in (*_COLUMNS, "sensors")}


def _changes(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    if "name" in changes:
        raise BadValue("name", changes["name"], "cannot be changed",
                       "Delete the gateway, and save it under its new name.")
    for column in changes:
        if column not in (*_COLUMNS, "sensors"):
            raise UnknownName("field of a gateway", column, (*_COLUMNS[1:], "sensors"))
    return checked(changes)


def _place(name: str, column: str) -> str:
    return f"gateways/{column}/{name}"


def _ident(connection: sqlite3.Connection, name: str) -> int | None:
    row = connection.execute("SELECT id FROM gateways WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def _fetched(connection: sqlite3.Connection, column: str, value: str) -> tuple[Any, list[str]]:
    row = connection.execute(f"{_SELECT} WHERE {column} = ?", (value,)).fetchone()
    if row is None:
        return None, []
    specs = connection.execute(
        "SELECT spec FROM sensors WHERE gateway = ? ORDER BY position", (row[0],)
    )
    return row, [spec for (spec,) in specs]


def _unique(
    connection: sqlite3.Connection, ident: int, column: str, value: str
) -> str | None:
    row = connection.execute(
        f"SELECT name FROM gateways WHERE {column} = ? AND id <> ?", (value, ident)
    ).fetchone()
    if row is not None:
        raise BadValue(column, value, f"is that of gateway {row[0]!r} already",
                       "Delete that gateway first, or give another one.")
    return value or None


def _put_sensors(
    connection: sqlite3.Connection, ident: int, specs: list[tuple[str, str, str]]
) -> None:
    connection.execute("DELETE FROM sensors WHERE gateway = ?", (ident,))
    connection.executemany(
        "INSERT INTO sensors (gateway, position, name, type, spec) VALUES (?, ?, ?, ?, ?)",
        ((ident, position, *spec) for position, spec in enumerate(specs)),
    )


def _answer(connection: sqlite3.Connection, ident: int, answer: Answer) -> None:
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
