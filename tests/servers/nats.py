"""nats-server on a free loopback port, and what administers its streams.

    def test_it(nats_server):
        server = nats_server(jetstream=True)
        server.url, server.jetstream_url
        server.add_stream("DEVICES", ["devices.>"], max_msgs=10, discard="new")
        server.kill(); server.start()              # on the same port, with the same files
        server.signal(signal.SIGSTOP)
"""

import asyncio
import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import nats
import pytest
from nats.js.api import StreamConfig

from iotsim.broker import free_port
from tests.conftest import lacking

START_S = 60
PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


class NatsServer:
    """One server; `more` are lines of its configuration, `files` a server's certificate.

    `tls` is (cert, key); with `ca`, clients need a certificate of it.
    """

    def __init__(self, jetstream=False, tls=None, ca=None, more="", max_file="1GB", login=None):
        self.program = shutil.which("nats-server", path=PLACES)
        self.port = 0
        self._shape = (jetstream, tls, ca, more, max_file)
        self.login = login or {}
        self.tls = tls
        self._folder = tempfile.TemporaryDirectory(prefix="iotsim-nats-")
        self.folder = Path(self._folder.name)
        self.process = None

    @property
    def host(self):
        return f"localhost:{self.port}" if self.tls else f"127.0.0.1:{self.port}"

    @property
    def url(self):
        return f"nats{'+tls' if self.tls else ''}://{self.host}"

    @property
    def jetstream_url(self):
        return f"nats+jetstream{'+tls' if self.tls else ''}://{self.host}"

    def start(self):
        atexit.register(self.stop)
        self.port = self.port or free_port()
        (self.folder / "server.conf").write_text(self._conf())
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, "-c", str(self.folder / "server.conf")], stdout=log, stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._greets():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def _conf(self):
        jetstream, tls, ca, more, max_file = self._shape
        lines = [f"port: {self.port}", 'host: "127.0.0.1"', 'server_name: "test"', more]
        if jetstream:
            lines.append(f'jetstream {{ store_dir: "{self.folder}/js", max_file_store: {max_file}, '
                         "max_memory_store: 64MB }")
        if tls:
            verify = f'ca_file: "{ca}", verify: true,' if ca else ""
            lines.append(f'tls {{ cert_file: "{tls[0]}", key_file: "{tls[1]}", {verify} '
                         "timeout: 5 }")
        return "\n".join(lines) + "\n"

    def _greets(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as peer:
                return peer.recv(4) == b"INFO"
        except OSError:
            return False

    def configure(self, more):
        """Change its configuration while it runs."""
        jetstream, tls, ca, _, max_file = self._shape
        self._shape = (jetstream, tls, ca, more, max_file)
        (self.folder / "server.conf").write_text(self._conf())
        before = self.log().count("Reloaded server configuration")
        self.signal(signal.SIGHUP)
        deadline = time.monotonic() + START_S
        while self.log().count("Reloaded server configuration") == before:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def stop(self):
        atexit.unregister(self.stop)
        self.kill()
        self._folder.cleanup()

    def log(self):
        return (self.folder / "log").read_text("utf-8", "replace")

    # -- streams ----------------------------------------------------------------------------------

    def admin(self, work):
        """Run `await work(connection, streams)` with nats-py on a loop of its own."""

        async def main():
            async with asyncio.timeout(60):
                link = await nats.connect(f"nats://127.0.0.1:{self.port}", **self.login)
                try:
                    return await work(link, link.jetstream())
                finally:
                    await link.close()

        return asyncio.run(main())

    def add_stream(self, name="DEVICES", subjects=("devices.>",), **settings):
        config = StreamConfig(name=name, subjects=list(subjects), **settings)
        self.admin(lambda _, streams: streams.add_stream(config))

    def purge(self, name="DEVICES"):
        self.admin(lambda _, streams: streams.purge_stream(name))

    def delete_stream(self, name="DEVICES"):
        self.admin(lambda _, streams: streams.delete_stream(name))

    def stored(self, name="DEVICES"):
        """(subject, id, payload) of everything in a stream, in its order."""

        async def work(_, streams):
            count = (await streams.stream_info(name)).state.messages
            if not count:
                return []
            sub = await streams.subscribe(">", stream=name, ordered_consumer=True)
            got = [await sub.next_msg(45) for _ in range(count)]
            return [(m.subject, (m.headers or {}).get("Nats-Msg-Id", ""), m.data) for m in got]

        return self.admin(work)


@pytest.fixture
def nats_server():
    """A function that starts a nats-server; all of them end with the test."""
    if shutil.which("nats-server", path=PLACES) is None:
        lacking("nats-server is not installed (apt-get install nats-server)")
    started = []

    def start(**options):
        server = NatsServer(**options)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()
