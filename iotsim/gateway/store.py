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
from iotsim.gateway import store_rows as rows
from iotsim.gateway.commands import Answer, Verdict
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.store_file import StoreFile, acquire, real_path, release
from iotsim.gateway.store_values import check_answer, check_text, checked, sensor_specs
from iotsim.transport.discretion import discreet


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
            there = connection.execute(f"{rows.SELECT} ORDER BY id").fetchall()
            specs: dict[int, list[str]] = {}
            for gateway, spec in connection.execute(
                "SELECT gateway, spec FROM sensors ORDER BY gateway, position"
            ):
                specs.setdefault(gateway, []).append(spec)
        found = []
        for row in there:
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
                if rows.ident_of(connection, record.name) is not None:
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
            return self._record(*rows.fetched(connection, "name", name))

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
            return rows.find_answer(connection, name, command_id)

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
                rows.put_answer(connection, self._known(connection, name), answered)

    @discreet
    def snapshot(self) -> StoreSnapshot:
        """Return how much it holds."""
        with self._open_file.reading() as connection:
            return StoreSnapshot(*connection.execute(rows.COUNTS).fetchone())

    # -- rows -------------------------------------------------------------------------------------

    def _one(self, column: str, value: str) -> GatewayRecord | None:
        check_text(column, value)
        with self._open_file.reading() as connection:
            row, specs = rows.fetched(connection, column, value)
        return None if row is None else self._record(row, specs)

    def _put(self, connection: sqlite3.Connection, record: GatewayRecord) -> None:
        rows.put_name(connection, record.name)
        self._change(connection, record.name,
                     {name: value for name, value in _values(record).items() if name != "name"})

    def _change(
        self, connection: sqlite3.Connection, name: str, changes: Mapping[str, Any]
    ) -> None:
        ident = self._known(connection, name)
        row: dict[str, Any] = {}
        for column, value in changes.items():
            if column == "sensors":
                rows.put_sensors(connection, ident, sensor_specs(value))
            elif column in rows.SECRETS:
                row[column] = self._sealed(name, column, value)
            elif column in rows.UNIQUE:
                row[column] = rows.unique(connection, ident, column, value)
            else:
                row[column] = value
        rows.update(connection, ident, row)

    def _known(self, connection: sqlite3.Connection, name: str) -> int:
        check_text("name", name)
        ident = rows.ident_of(connection, name)
        if ident is None:
            names = [known for (known,) in connection.execute("SELECT name FROM gateways")]
            raise UnknownName("gateway", name, names, self.path)
        return ident

    def _sealed(self, name: str, column: str, value: str | bytes) -> bytes | None:
        secret = value.encode() if isinstance(value, str) else value
        return self._file.vault.seal(secret, _place(name, column)) if secret else None

    def _record(self, row: Any, specs: list[str]) -> GatewayRecord:
        fields = dict(zip(rows.COLUMNS, row[1:], strict=True))
        name = fields["name"]
        for column in rows.UNIQUE:
            fields[column] = fields[column] or ""
        for column in rows.SECRETS:
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


def _values(record: GatewayRecord) -> dict[str, Any]:
    if not isinstance(record, GatewayRecord):
        raise BadValue("record", type(record), "is no GatewayRecord", "Give a GatewayRecord.")
    return {column: getattr(record, column) for column in (*rows.COLUMNS, "sensors")}


def _changes(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    if "name" in changes:
        raise BadValue("name", changes["name"], "cannot be changed",
                       "Delete the gateway, and save it under its new name.")
    for column in changes:
        if column not in (*rows.COLUMNS, "sensors"):
            raise UnknownName("field of a gateway", column, (*rows.COLUMNS[1:], "sensors"))
    return checked(changes)


def _place(name: str, column: str) -> str:
    return f"gateways/{column}/{name}"
