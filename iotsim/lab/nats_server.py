"""nats-server as a child process on loopback that ends when we end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from iotsim.broker import free_port
from iotsim.clock import monotonic
from iotsim.errors import BadValue, ConnectError
from iotsim.guard import Guard, reap
from iotsim.transport.discretion import environment_for_children

START_S = 10.0
RELOAD_S = 20.0  # a reload waits for handshakes that hang, and those may take 5 s
POLL_S = 0.005
PORT_TRIES = 5
_RELOADED = b"Reloaded server configuration"
_NOT_RELOADED = b"Failed to reload server configuration"


def find_nats_server() -> str:
    """Return the path of nats-server; Debian puts it where a user's PATH does not look.

    Raises
    ------
    BadValue
        If there is none.
    """
    places = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which("nats-server", path=places)
    if found is None:
        raise BadValue("program", "nats-server", "is not installed, and the lab needs it",
                       "Install it: apt-get, conda or brew install nats-server.")
    return found


class NatsServer:
    """One nats-server, with what it stores, in a folder.

    Parameters
    ----------
    folder : Path
    guard : Guard
        Ends it when we end.
    configuration : callable
        Takes a port and returns the whole text, as things are at that moment.
    """

    def __init__(self, folder: Path, guard: Guard, configuration: Callable[[int], str]) -> None:
        self.port = 0
        self._program = find_nats_server()
        self._folder, self._guard, self._configuration = folder, guard, configuration
        self._process: subprocess.Popen[bytes] | None = None
        self._changing = asyncio.Lock()
        self._wanted = self._applied = 0

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id, or 0."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Start it and wait until it greets; on the same port as before.

        Raises
        ------
        ConnectError
            If none of a few free ports could be used.
        """
        async with self._changing:
            if self.running:
                return
            port = self.port
            for _ in range(PORT_TRIES):
                self.port = port or free_port()
                if await self._started():
                    return
                self.kill()
        why = f"nats-server did not start: {self._last_words()}"
        raise ConnectError(f"tls://127.0.0.1:{self.port}", why, verb="use")

    def kill(self) -> None:
        """End it without a chance to say goodbye (`kill -9`); `start` revives it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it; what is in its folder stays."""
        self._end(signal.SIGTERM)

    async def reload(self) -> None:
        """Have it read a new configuration, and wait until it has; calls at once share one.

        Raises
        ------
        ConnectError
            If it refuses the configuration, or does not answer.
        """
        self._wanted += 1
        mine = self._wanted
        async with self._changing:
            if self._applied >= mine:
                return
            self._applied = self._wanted
            self._write()
            if self._process is None or not self.running:
                return  # it reads it when it starts
            log = self._folder / "log"
            begin = _size(log)
            self._process.send_signal(signal.SIGHUP)
            await self._reloaded(log, begin)

    async def _reloaded(self, log: Path, begin: int) -> None:
        deadline_s = monotonic() + RELOAD_S
        seen = begin
        while self.running and monotonic() < deadline_s:
            if (size := _size(log)) != seen:
                seen = size
                said = _read(log, begin)
                if _RELOADED in said:
                    return
                if _NOT_RELOADED in said:
                    break
            await asyncio.sleep(POLL_S)
        raise ConnectError(f"tls://127.0.0.1:{self.port}",
                           f"it did not take new users: {self._last_words()}", verb="change")

    async def _started(self) -> bool:
        self._begin()
        deadline_s = monotonic() + START_S
        while self.running and monotonic() < deadline_s:
            if await _greets(self.port):
                return True
            await asyncio.sleep(POLL_S)
        return False

    def _begin(self) -> None:
        self._applied = self._wanted
        self._write()
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", str(self._folder / "nats-server.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=environment_for_children(),
                start_new_session=True,  # an interrupt of the kernel or terminal is not for it
            )
        self._guard.watch(self._process.pid)

    def _end(self, number: signal.Signals) -> None:
        self._guard.watch(0)  # its id may be somebody else's soon
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            reap(process)

    def _write(self) -> None:
        path = self._folder / "nats-server.conf"
        fresh = path.with_suffix(".new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(self._configuration(self.port))
        fresh.replace(path)

    def _last_words(self) -> str:
        path = self._folder / "log"
        said = path.read_text("utf-8", "replace").strip() if path.is_file() else ""
        return said.rsplit("\n", 1)[-1][:200] or "it said nothing"


def _size(log: Path) -> int:
    return log.stat().st_size


def _read(log: Path, begin: int) -> bytes:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read()


async def _greets(port: int) -> bool:
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                return await reader.read(4) == b"INFO"
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
