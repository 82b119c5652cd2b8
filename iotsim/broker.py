"""A broker of our own on a free loopback port: mosquitto, or an embedded one in pure Python.

For the demonstration, the notebooks and the tests; it ends with its `with` block, and with this
process, however that ends.
"""

from __future__ import annotations

import atexit
import base64
import getpass
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from iotsim.clock import monotonic
from iotsim.errors import BadValue, ConnectError, MissingExtra
from iotsim.guard import Guard, reap
from iotsim.transport.tls import TLS

START_S = 10.0
PORT_TRIES = 5
# CONNECT of MQTT 3.1.1, clean session, no client id: every broker answers it with a CONNACK.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00"


def find_mosquitto() -> str | None:
    """Return the path of mosquitto; Debian puts it where a user's PATH does not look."""
    places = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    return shutil.which("mosquitto", path=places)


def free_port() -> int:
    """Return a TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """An MQTT broker on loopback; use it as a context manager.

    Parameters
    ----------
    embedded : bool, optional
        True: the one in pure Python; False: mosquitto; left out: mosquitto if there is one.
    receive_maximum : int
        How many messages a connection may have in flight (mosquitto only, like what follows).
    packet_bytes_max : int, optional
        Maximum Packet Size.
    users : mapping of name to password, optional
        Who may connect; everybody if left out.
    acl : sequence of str, optional
        Lines of mosquitto's ACL file.
    certificate : (str, str), optional
        PEM files of a certificate and its key: then it speaks TLS, under the name localhost.
    clients_ca : str, optional
        PEM file of who signs the clients: with `certificate`, nobody else may connect.
    conf : sequence of str
        More lines of mosquitto.conf, after the listener.
    """

    def __init__(
        self,
        *,
        embedded: bool | None = None,
        receive_maximum: int = 1000,
        packet_bytes_max: int | None = None,
        users: Mapping[str, str] | None = None,
        acl: Sequence[str] | None = None,
        certificate: tuple[str, str] | None = None,
        clients_ca: str | None = None,
        conf: Sequence[str] = (),
    ) -> None:
        program = None if embedded else find_mosquitto()
        if embedded is False and program is None:
            todo = "Install it (apt-get install mosquitto), or leave embedded out."
            raise BadValue("embedded", False, "needs mosquitto, which is not here", todo)
        if program is None and importlib.util.find_spec("amqtt") is None:
            raise MissingExtra("a broker without mosquitto", "amqtt", "mqtt")
        self.kind = "mosquitto" if program else "embedded"
        self.version = "5" if program else "3.1.1"
        self.port = 0
        self._program = program
        self._settings = (receive_maximum, packet_bytes_max, users, acl, tuple(conf))
        self._certificate, self._clients_ca = certificate, clients_ca
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        state = "running" if self.running else "not running"
        return f"<Broker {self.kind} {self.url}: {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where publishers and taps connect to; MQTT as in `version`."""
        if self._certificate is not None:
            return f"mqtts://localhost:{self.port}"
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid if self._process is not None else 0

    @property
    def folder(self) -> Path:
        """Its working folder, with its configuration and log."""
        return Path(self._folder.name) if self._folder is not None else Path()

    def start(self) -> None:
        """Start the process and wait until it answers a CONNECT; on the same port as before.

        Raises
        ------
        ConnectError
            If none of a few free ports could be used.
        """
        if self.running:
            return
        self._dismiss_guard()  # of one that ended by itself: its id may be somebody else's by now
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="iotsim-broker-")
        atexit.register(self.stop)
        port = self.port
        for _ in range(PORT_TRIES):
            self.port = port or free_port()
            if self._started():
                return
            self.kill()
        why = f"the {self.kind} broker did not start: {self._last_words()}"
        raise ConnectError(self.url, why, verb="use")

    def kill(self) -> None:
        """End the process without a chance to say goodbye (`kill -9`); `start` revives it."""
        self._dismiss_guard()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            reap(process)

    def stop(self) -> None:
        """End the process and remove its folder."""
        atexit.unregister(self.stop)
        self._dismiss_guard()
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            process.terminate()
            reap(process)
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    def reload(
        self, *, users: Mapping[str, str] | None = None, acl: Sequence[str] | None = None
    ) -> None:
        """Have a running mosquitto that began with such lists read new ones (SIGHUP)."""
        self._write_lists(users, acl)
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def log(self) -> str:
        """Return what the broker has written to its log."""
        path = self.folder / "log"
        return path.read_text("utf-8", "replace") if path.is_file() else ""

    def _started(self) -> bool:
        command = self._mosquitto() if self._program else self._embedded()
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,  # an interrupt of the kernel or terminal is not for it
            )
        self._guard = Guard(self.folder)
        self._guard.watch(self._process.pid)
        deadline_s = monotonic() + START_S
        while self.running and monotonic() < deadline_s:
            if _answers(self.port, self._certificate is not None):
                return True
            try:
                self._process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
        return False

    def _dismiss_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.dismiss()

    def _mosquitto(self) -> list[str]:
        receive_maximum, packet_bytes_max, users, acl, more = self._settings
        lines = [
            f"user {getpass.getuser()}",  # root would become somebody who cannot read the folder
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {'false' if users else 'true'}",
            "persistence false",
            f"max_inflight_messages {receive_maximum}",
            "max_queued_messages 1000000",  # 0 means unlimited and drops all of QoS 0
            f"log_dest file {self.folder / 'log'}",
            *more,
        ]
        if self._certificate is not None:
            lines += [f"certfile {self._certificate[0]}", f"keyfile {self._certificate[1]}"]
        if self._clients_ca is not None:
            lines += [f"cafile {self._clients_ca}", "require_certificate true"]
        if packet_bytes_max is not None:
            lines.append(f"max_packet_size {packet_bytes_max}")
        self._write_lists(users, acl)
        if users:
            lines.append(f"password_file {self.folder / 'passwords'}")
        if acl is not None:
            lines.append(f"acl_file {self.folder / 'acl'}")
        self._write("mosquitto.conf", lines)
        return [str(self._program), "-c", str(self.folder / "mosquitto.conf")]

    def _embedded(self) -> list[str]:
        return [sys.executable, "-m", "iotsim.embedded_broker", str(self.port)]

    def _write_lists(
        self, users: Mapping[str, str] | None, acl: Sequence[str] | None
    ) -> None:
        if users:
            self._write("passwords", [_password_line(*user) for user in users.items()])
        if acl is not None:
            self._write("acl", acl)

    def _write(self, name: str, lines: Sequence[str]) -> None:
        path = self.folder / name
        path.write_text("\n".join(lines) + "\n", "utf-8")
        path.chmod(0o600)

    def _last_words(self) -> str:
        path = self.folder / "output"
        said = path.read_text("utf-8", "replace").split("\n") if path.is_file() else []
        said = [line for line in [*self.log().split("\n"), *said] if line.strip()]
        return re.sub(r"\s+", " ", said[-1])[:200] if said else "it said nothing"


def _answers(port: int, secure: bool) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as plain:
            if not secure:
                return _connects(plain)
            # Only whether it answers, not who it is.
            with TLS(verify=False).context().wrap_socket(plain) as peer:
                return _connects(peer)
    except ssl.SSLError as error:  # it wants a certificate that only the tests' clients have
        return "CERTIFICATE_REQUIRED" in (error.reason or "")
    except OSError:
        return False


def _connects(peer: socket.socket) -> bool:
    peer.sendall(_CONNECT)
    return peer.recv(4)[:1] == b"\x20"


def _password_line(name: str, password: str) -> str:
    # mosquitto's own format: PBKDF2 with SHA-512.
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    texts = [base64.b64encode(part).decode() for part in (salt, digest)]
    return f"{name}:$7$101${texts[0]}${texts[1]}"
