"""The file of a store: one process owns it, one connection of that process serves all."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from iotsim.errors import BadValue, StoreError
from iotsim.gateway.store_schema import is_ours, migrate
from iotsim.gateway.vault import Vault, find_key, parse_key, sync_folder

BUSY_S = 5.0
_MAGIC = b"SQLite format 3\x00"
_CHECK, _CHECK_PLACE = b"the key of this store", "facts/value/check"
_LOCK_TRIES = 200
_LOCK_LOOK_S = 0.01
_ANOTHER = "Give another path."

_WHY = {  # by SQLite's primary result code
    sqlite3.SQLITE_FULL: ("the disk is full", "Make room; what was saved before is there."),
    sqlite3.SQLITE_NOTADB: ("is not a SQLite file", _ANOTHER),
    sqlite3.SQLITE_CORRUPT: ("is damaged", "Put back a copy of it."),
    sqlite3.SQLITE_READONLY: ("cannot be written", "Let its owner write it and its folder."),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "Let its owner write it and its folder."),
    sqlite3.SQLITE_BUSY: ("another program has it locked", "End what uses it."),
    sqlite3.SQLITE_LOCKED: ("another program has it locked", "End what uses it."),
}


def failure(path: str, error: sqlite3.Error) -> StoreError:
    """Return what SQLite said as an error of ours."""
    code = getattr(error, "sqlite_errorcode", 0)
    why, todo = _WHY.get(code & 0xFF, (f"SQLite says: {error}", ""))
    name = getattr(error, "sqlite_errorname", "")
    return StoreError(path, f"{why} ({name})" if name else why, todo)


class StoreFile:
    """An open store: its owner's lock, its connection, its vault.

    Attributes
    ----------
    path : str
        Without symbolic links.
    vault : Vault
    users : int
        How many `Store` objects of this process share it.
    closed : bool
    """

    def __init__(self, path: str, key: str | bytes | None) -> None:
        self.path = path
        self.users = 0
        self.closed = False
        self._process = os.getpid()
        self._mutex = threading.Lock()
        with ExitStack() as undo:
            _inspect(path)
            self._owner = _own(path)
            undo.callback(_disown, self._owner)
            _make(path)
            try:
                self._connection = undo.enter_context(closing(_connect(path)))
                self._ident = _ident(path)
                self.vault = self._unlocked(key)
            except sqlite3.Error as error:
                raise failure(path, error) from None
            undo.pop_all()

    def close(self) -> None:
        """Close the connection, then let others have the file."""
        self.closed = True
        with self._mutex:
            try:
                self._connection.close()
            except sqlite3.Error as error:
                raise failure(self.path, error) from None
            finally:
                _disown(self._owner)

    def check_key(self, key: str | bytes) -> None:
        """Raise StoreError if this is not the key that the store is open with."""
        with self.reading() as connection:
            self._vault_of(connection, parse_key("key", key))

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection to this thread alone."""
        with self._mutex:
            self.check()
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise failure(self.path, error) from None

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for a transaction: in the end all of it is stored, or nothing."""
        with self.reading() as connection:
            try:  # around BEGIN too: a cell may be interrupted right after it
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def check(self) -> None:
        """Raise StoreError unless this process still has the file that stands at the path."""
        if self.closed:
            raise StoreError(self.path, "is closed", "Open it again.")
        if os.getpid() != self._process:
            raise StoreError(self.path, f"process {self._process} opened it, and this is a fork "
                             "of that process", "Open it in one of the two alone.")
        if _ident(self.path) != self._ident:
            raise StoreError(self.path, "was removed or replaced while it was open",
                             "Put it back, or close everything that uses it and open it again.")

    def forked(self) -> None:
        """Leave the file to the process that this one was forked from."""
        self._mutex = threading.Lock()  # another thread may have held it
        _disown(self._owner)

    def _unlocked(self, key: str | bytes | None) -> Vault:
        row = self._connection.execute("SELECT value FROM facts WHERE name = 'check'").fetchone()
        return self._vault_of(self._connection, find_key(self.path, key, new=row is None))

    def _vault_of(self, connection: sqlite3.Connection, key: bytes) -> Vault:
        vault = Vault(key)
        row = connection.execute("SELECT value FROM facts WHERE name = 'check'").fetchone()
        if row is None:
            sealed = vault.seal(_CHECK, _CHECK_PLACE)
            connection.execute("INSERT INTO facts VALUES ('check', ?)", (sealed,))
        elif vault.unseal(row[0], _CHECK_PLACE) != _CHECK:
            raise StoreError(self.path, "its secrets were encrypted with another key",
                             "Give the key that it was made with.")
        return vault


# -- opening --------------------------------------------------------------------------------------


def real_path(path: Any) -> str:
    """Return the path of a store without symbolic links, or raise BadValue."""
    allowed = "Give the path of a file, such as 'gateways.db'."
    try:
        text = os.fspath(path)
    except TypeError:
        raise BadValue("store", path, "is not a path", allowed) from None
    if not isinstance(text, str) or not text or "\x00" in text or text == ":memory:":
        raise BadValue("store", path, "is not the path of a file", allowed)
    return os.path.realpath(text)


def _ident(path: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _inspect(path: str) -> None:
    # Before anything is written beside it.
    try:
        if os.path.isdir(path):
            raise StoreError(path, "is a folder", "Give the path of a file in it.")
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StoreError(path, "is not a file", _ANOTHER)
        with open(path, "rb") as file:
            head = file.read(len(_MAGIC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(path, f"cannot be opened: {error.strerror}", _ANOTHER) from None
    if head and head != _MAGIC:
        raise StoreError(path, "is not a SQLite file", _ANOTHER)


def _make(path: str) -> None:
    # SQLite would make it readable by all; -wal and -shm get the mode of the file itself.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    try:
        os.close(os.open(path, flags, 0o600))
        sync_folder(path)
    except FileExistsError:
        return
    except OSError as error:
        raise StoreError(path, f"cannot be made: {error.strerror}", _ANOTHER) from None


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None,
                                 check_same_thread=False)
    try:
        if not is_ours(connection):
            raise StoreError(path, "is a SQLite file of another program", "Give another path; what "
                             "the reference simulator stored comes in by import_reference().")
        (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise StoreError(path, "is damaged", "Put back a copy of it.")
        for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON",
                        "secure_delete = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {setting}")
        migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


# -- who owns it ----------------------------------------------------------------------------------


def _own(path: str) -> int | None:
    """Lock the store for this process; its lock file stays, or two could each lock another one."""
    place = f"{path}.lock"
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    for _ in range(_LOCK_TRIES):
        try:
            file = os.open(place, flags, 0o600)
        except OSError as error:
            raise StoreError(path, f"its lock file cannot be written: {error.strerror}",
                             "Give a path in a folder that is there and can be written.") from None
        try:
            _lock(file)
        except BlockingIOError:
            pid = os.read(file, 20).strip().decode("ascii", "replace")
            os.close(file)
            if pid == str(os.getpid()):  # ours, in a child that is only just being started
                time.sleep(_LOCK_LOOK_S)
                continue
            raise StoreError(path, f"process {pid or '(unknown)'} has it open",
                             "Two would run the same gateways twice: end that one first.") from None
        except OSError:
            return file  # a file system without locks
        here = os.fstat(file)
        if (here.st_dev, here.st_ino) == _ident(place):
            os.ftruncate(file, 0)
            os.write(file, str(os.getpid()).encode())
            return file
        os.close(file)
    raise StoreError(path, f"its lock file {place} is held by a child of this process, or "
                     "replaced all the time", _ANOTHER)


def _lock(file: int) -> None:
    try:
        import fcntl
    except ImportError:  # a platform without such locks: nothing keeps two processes apart
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _disown(owner: int | None) -> None:
    if owner is not None:
        os.close(owner)


_OPEN: dict[str, StoreFile] = {}
_abandoned: list[StoreFile] = []  # a fork must not even close a connection of its parent
_guard = threading.RLock()  # a Store that is collected lets go of its file wherever that happens


def acquire(path: str, key: str | bytes | None) -> StoreFile:
    """Return the open file of a path, one for the whole process; `release` it as often."""
    while True:
        with _guard:
            file = _OPEN.get(path)
            if file is None:
                file = _OPEN[path] = StoreFile(path, key)
            file.users += 1
            if file.closed:
                continue  # let go between these lines
            try:
                file.check()
                if key is not None:
                    file.check_key(key)
            except BaseException:
                release(file)
                raise
            return file


def release(file: StoreFile) -> None:
    """Close the file when nobody in this process uses it any more."""
    with _guard:
        file.users -= 1
        if file.users <= 0 and not file.closed and _OPEN.get(file.path) is file:
            del _OPEN[file.path]
            file.close()


def _forked() -> None:
    global _guard
    _guard = threading.RLock()
    for file in _OPEN.values():
        file.forked()
    _abandoned.extend(_OPEN.values())
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
