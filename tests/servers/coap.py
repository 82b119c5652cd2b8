"""CoAP servers for tests: libcoap's, and a peer that does exactly what a test tells it."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pytest
from aiocoap import Message
from aiocoap.numbers.codes import Code

from tests.conftest import lacking

PROGRAM = "coap-server-openssl"
START_S = 45.0
_REQUEST = re.compile(r"v:1 t:(CON|NON) c:(POST|PUT) i:\w+ \{\w*\} \[ (.*?) \] :: '(.*)'$")


def udp_port():
    """A UDP port of the loopback interface that is free now, and the TCP port of that number."""
    while True:
        with socket.socket(type=socket.SOCK_DGRAM) as probe, socket.socket() as other:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class LibcoapServer:
    """coap-server of libcoap; it says in its log what it received.

    Parameters
    ----------
    resources : int
        How many paths may be made by PUT or POST.
    options : sequence of str
        More of its command line.
    """

    def __init__(self, resources=1000, options=()):
        self.port = udp_port()
        self.url = f"coap://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="iotsim-coap-")
        self.log = os.path.join(self._folder.name, "log")
        self._command = [shutil.which(PROGRAM), "-A", "127.0.0.1", "-p", str(self.port),
                         "-d", str(resources), "-v", "7", *options]
        self._process = None

    def start(self):
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline_s = time.monotonic() + START_S
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.connect(("127.0.0.1", self.port))
            probe.settimeout(0.1)
            while time.monotonic() < deadline_s:
                try:
                    probe.send(b"\x40\0\0\1")
                    if probe.recv(100)[:1] == b"\x70":
                        return self
                except OSError:
                    time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"{PROGRAM} does not answer: {self.text()[-500:]}")

    def stop(self, number=signal.SIGTERM):
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self):
        self.stop(signal.SIGKILL)

    def freeze(self):
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self._process.send_signal(signal.SIGCONT)

    def text(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def received(self):
        """(kind, method, topic, payload, content format) of every request, as it came."""
        found = []
        for line in self.text().splitlines():
            match = _REQUEST.match(line)
            if match:
                kind, method, options, payload = match.groups()
                named = [part.split(":", 1) for part in options.split(", ")]
                topic = "/".join(value for name, value in named if name == "Uri-Path")
                form = [value for name, value in named if name == "Content-Format"]
                found.append((kind, method, topic, payload, form[0] if form else ""))
        return found

    def end(self):
        self.stop()
        self._folder.cleanup()


@pytest.fixture
def libcoap():
    """A function that starts a server of libcoap; all of them end with the test."""
    if shutil.which(PROGRAM) is None:
        lacking(f"{PROGRAM} is not installed (apt-get install libcoap3-bin)")
    started = []

    def start(**options):
        server = LibcoapServer(**options)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.end()


class ScriptedPeer(asyncio.DatagramProtocol):
    """A peer on a free port, by aiocoap's codec: `behave(peer, message, address)` answers.

    It answers pings itself unless told otherwise, and keeps what it received.
    """

    def __init__(self, behave, *, pong=True):
        self.behave, self.pong = behave, pong
        self.requests = []
        self.heard = []
        self.ports = set()

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        self.port = self.transport.get_extra_info("sockname")[1]
        self.url = f"coap://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_):
        self.transport.abort()
        await asyncio.sleep(0)

    def datagram_received(self, data, addr):
        message = Message.decode(data)
        self.heard.append(message)
        self.ports.add(addr[1])
        if not message.code and message.mtype == 0:
            if self.pong:
                self.transport.sendto(bytes([0x70, 0]) + data[2:4], addr)
        elif message.code.is_request():
            self.requests.append(message)
            self.behave(self, message, addr)

    def say(self, addr, kind, code, number, token=b"", **options):
        """Send a message; the code as in "2.04" or "0.00"."""
        upper, lower = code.split(".")
        message = Message(code=Code(int(upper) << 5 | int(lower)), _mid=number, _mtype=kind,
                          _token=token, **options)
        self.transport.sendto(message.encode(), addr)

    def answer(self, message, addr, code="2.04", **options):
        """Answer in the acknowledgement, or without one where none was asked for."""
        self.say(addr, 2 if message.mtype == 0 else 1, code, message.mid, message.token, **options)


def path_of(message):
    """The path of a request, as a topic."""
    return "/".join(message.opt.uri_path)
