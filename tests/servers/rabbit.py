"""A private RabbitMQ node: free loopback ports, a folder and an epmd of its own, always ended.

    with lent() as broker:             # the node of this process, as new; `Rabbit()` is another
        broker.url                     # amqp://127.0.0.1:<port>, which guest/guest may use
        broker.tell("rabbit_vhost:add(<<\"v\">>, <<\"me\">>)")   # an Erlang expression, in there
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aio_pika
import pytest

from tests.conftest import lacking
from tests.servers.certificates import Certificates
from tests.servers.ports import quiet_port

START_S = 90.0
END_S = 20.0
_HOMES = ("/usr/lib/rabbitmq/bin", "/usr/local/lib/rabbitmq/bin", "/opt/rabbitmq/sbin")

# Who there is beside guest, and what they may: (vhost, configure, write, read).
USERS = {
    "writer": ("/", "^$", "^iot[.].*", "^$"),
    "reader": ("/", "^$", "^$", ".*"),
    "nobody": ("/", "^$", "^$", "^$"),
    "vetted": ("/", ".*", ".*", ".*"),  # with topic permissions: only what begins with open
}

# A node looks into every module of every application for what it has to do at its start, and a
# third of its start is to load them one by one. Those that cannot have anything are passed over,
# and its own are loaded at once: 3.4 s of processor time for a start, and not 5.4.
_PASSED = ("asn1,crypto,public_key,ssl,inets,xmerl,tools,syntax_tools,compiler,mnesia,os_mon,"
           "observer_cli,cuttlefish,recon,jsx,aten")
_FIRST = ("""lists:foreach(fun(A) -> try {ok, [{application, A, P}]} = file:consult("""
          """filename:join([code:lib_dir(A), "ebin", atom_to_list(A) ++ ".app"])), """
          """application:load("""
          f"""{{application, A, lists:keystore(modules, 1, P, {{modules, []}})}}) """
          f"""catch _:_ -> ok end end, [{_PASSED}]), """
          """code:ensure_modules_loaded(lists:append([begin application:load(A), """
          """case application:get_key(A, modules) of {ok, M} -> M; _ -> [] end end """
          """|| A <- [rabbit_common, rabbit, rabbitmq_prelaunch, ra, osiris]])).""")


def find_rabbitmq():
    """Return the path of the server's own script (Debian's wrapper only runs as two users)."""
    places = os.pathsep.join((*_HOMES, os.environ.get("PATH", ""), "/usr/sbin"))
    return shutil.which("rabbitmq-server", path=places)


class Rabbit:
    """One node; a context manager.

    Parameters
    ----------
    conf : sequence of str
        More lines of rabbitmq.conf.
    certificates : Certificates, optional
        Then it listens for TLS, too; `server` says with which certificate.
    plugins : sequence of str
    """

    def __init__(self, conf=(), certificates=None, server=None, plugins=()):
        self.port, self.tls_port = quiet_port(), quiet_port()
        self._ports = (quiet_port(), quiet_port())
        self._conf, self._plugins = list(conf), plugins
        if certificates is not None:
            pair = server or certificates.server
            self._conf += [
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                f"ssl_options.cacertfile = {certificates.ca}",
                f"ssl_options.certfile = {pair.cert}",
                f"ssl_options.keyfile = {pair.key}",
                "ssl_options.verify = verify_peer",
                "ssl_options.fail_if_no_peer_cert = false",
                "ssl_cert_login_from = common_name",
            ]
        self._folder = self._node = self._epmd = None
        self._lines, self._news = [], threading.Condition()

    @property
    def url(self):
        return f"amqp://127.0.0.1:{self.port}"

    def as_user(self, name, password="s3cret-amqp", vhost=""):
        return f"amqp://{name}:{password}@127.0.0.1:{self.port}/{vhost}"

    @property
    def folder(self):
        return Path(self._folder.name)

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="iotsim-rabbit-")
        self._write_files()
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        """Start the node, on the same ports and with the same folder as before."""
        home = self.folder
        epmd_port, dist_port = self._ports
        environment = {
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/bin",
            "LANG": "C.UTF-8", "HOME": str(home), "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1", "RABBITMQ_NODENAME": f"iotsim{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port), "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_MNESIA_BASE": str(home / "data"), "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"), "RABBITMQ_LOGS": "-",
            "RABBITMQ_ALLOW_INPUT": "1",  # an Erlang shell on its standard input, and no wrapper
            "RABBITMQ_CONF_ENV_FILE": str(home / "none"), "ERL_AFLAGS": f"-eval '{_FIRST}'",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 -kernel inet_dist_use_interface "
                                                   "{127,0,0,1}",
        }  # fmt: skip
        if self._epmd is None:
            epmd = shutil.which("epmd", path=environment["PATH"])
            self._epmd = subprocess.Popen(
                [epmd, "-port", str(epmd_port), "-address", "127.0.0.1"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self._lines.clear()
        self._node = subprocess.Popen(
            [find_rabbitmq()], env=environment, cwd=home, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        # A pytest that is ended with a signal tears nothing down: this ends both at our end.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", f"cat; kill -9 -{self._node.pid}; kill -9 {self._epmd.pid}; "
                              f"rm -rf '{home}'"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(self._node.stdout,), daemon=True)
        self._reader.start()
        self._await(lambda: any(" completed with " in s for s in self._lines), START_S)

    @property
    def alive(self):
        return self._node is not None and self._node.poll() is None

    def kill(self):
        """End it with SIGKILL."""
        os.killpg(self._node.pid, signal.SIGKILL)
        self._node.wait(END_S)
        self._node.stdin.close()
        self._reader.join(END_S)
        self._guard.kill()
        self._guard.communicate(timeout=END_S)

    def restart(self):
        self.kill()
        self.start()

    @asynccontextmanager
    async def frozen(self):
        """Let the whole node stand still meanwhile."""
        os.killpg(self._node.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._node.pid, signal.SIGCONT)

    @asynccontextmanager
    async def short_of_memory(self):
        """Let it believe that it has no memory left: it blocks all who publish."""
        await self.tells("vm_memory_monitor:set_vm_memory_high_watermark(0.00001)")
        try:
            yield
        finally:
            await self.tells("vm_memory_monitor:set_vm_memory_high_watermark(0.8)")

    def tell(self, expression, timeout_s=20.0):
        """Evaluate an Erlang expression in the node; returns when it has, raises if it failed."""
        mark = f"said-{time.monotonic_ns()}"
        line = (f'catch io:format("~n{mark} ~0p~n", '
                f'[try {{ok, begin {expression} end}} catch C:E -> {{C, E}} end]), '
                "erlang:erase(), f().\n")
        self._node.stdin.write(line.encode())
        self._node.stdin.flush()

        def found():
            return next((s for s in self._lines if s.startswith(mark)), None)

        self._await(found, timeout_s)
        answer = found().partition(" ")[2]
        assert answer.startswith("{ok,"), answer
        return answer

    async def tells(self, expression):
        return await asyncio.to_thread(self.tell, expression)

    def stop(self):
        """End node and epmd, whatever state they are in, and forget everything."""
        if self.alive:
            self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(END_S)
        if self._folder is not None:
            self._folder.cleanup()
        self._node = self._epmd = self._folder = None

    def _write_files(self):
        home = self.folder
        permissions = [
            {"user": user, "vhost": vhost, "configure": configure, "write": write, "read": read}
            for user, (vhost, configure, write, read) in USERS.items()
        ] + [{"user": "guest", "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"}
             for vhost in ("/", "plant")]  # fmt: skip
        topics = [{"user": "vetted", "vhost": "/", "exchange": "iot.telemetry",
                   "write": "^open.*", "read": ".*"}]
        users = [{"name": name, "password": "s3cret-amqp", "tags": ""} for name in USERS]
        users.append({"name": "guest", "password": "guest", "tags": "administrator"})
        definitions = {
            "vhosts": [{"name": "/"}, {"name": "plant"}], "users": users,
            "permissions": permissions, "topic_permissions": topics,
        }
        (home / "definitions.json").write_text(json.dumps(definitions))
        (home / "plugins").write_text(f"[{','.join(self._plugins)}].\n")
        (home / "rabbitmq.conf").write_text("\n".join([
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            f"load_definitions = {home / 'definitions.json'}",
            "vm_memory_high_watermark.relative = 0.8", "disk_free_limit.absolute = 1MB",
            "log.console.level = error", "max_message_size = 1048576", *self._conf, "",
        ]))  # fmt: skip

    def _read(self, pipe):
        with pipe:
            for line in pipe:
                with self._news:
                    self._lines.append(line.decode(errors="replace").rstrip())
                    del self._lines[:-2000]
                    self._news.notify_all()

    def _await(self, condition, timeout_s):
        node, until_s = self._node, time.monotonic() + timeout_s
        with self._news:
            while not condition():
                if node.poll() is not None or time.monotonic() > until_s:
                    raise RuntimeError("RabbitMQ: " + "\n".join(self._lines[-40:]))
                self._news.wait(0.1)


_NODE = []  # that of this process


@contextmanager
def lent():
    """The node of this process, as new: whoever kills it starts it again."""
    if find_rabbitmq() is None:
        lacking("RabbitMQ is not installed (apt-get install rabbitmq-server)")
    if _NODE and not _NODE[0].alive:  # a test has failed before it could start it again
        end_node()
    if _NODE:
        _NODE[0].tell('rabbit_vhost:delete(<<"/">>, <<"me">>), '
                      "rabbit_definitions:maybe_load_definitions()")
    else:
        folder = tempfile.TemporaryDirectory(prefix="iotsim-certificates-")
        certificates = Certificates(folder.name)
        node = Rabbit(["auth_mechanisms.1 = PLAIN", "auth_mechanisms.2 = EXTERNAL"], certificates,
                      plugins=["rabbitmq_auth_mechanism_ssl"])
        node.certificates, node.certificates_folder = certificates, folder
        _NODE.append(node.__enter__())
    yield _NODE[0]


def end_node():
    """End the node of this process, if there is one."""
    while _NODE:
        node = _NODE.pop()
        node.stop()
        node.certificates_folder.cleanup()


@pytest.fixture(scope="module", name="rabbit")
def rabbit_node():
    """A node; tests that kill it leave it running."""
    with lent() as broker:
        yield broker


class Consumer:
    """An independent AMQP client with a queue of its own, for what arrives."""

    def __init__(self, url, exchange="iot.telemetry", key="#", queue=None, **arguments):
        self._url, self._exchange, self._key = url, exchange, key
        self._queue, self._arguments = queue, arguments
        self.messages = []

    async def __aenter__(self):
        self._connection = await aio_pika.connect(self._url, timeout=10)
        self.channel = await self._connection.channel()
        kind = aio_pika.ExchangeType.TOPIC
        self.exchange = await self.channel.declare_exchange(self._exchange, kind, durable=True)
        self.queue = await self.channel.declare_queue(
            self._queue, durable=self._queue is not None, exclusive=self._queue is None,
            arguments=self._arguments or None,
        )  # fmt: skip
        await self.queue.bind(self.exchange, self._key)
        return self

    async def consume(self):
        """Take all in, from now on."""
        await self.queue.consume(self._take, no_ack=True)

    async def _take(self, message):
        self.messages.append(message)

    async def __aexit__(self, *_):
        await self._connection.close()

    @property
    def ids(self):
        return [message.message_id for message in self.messages]
