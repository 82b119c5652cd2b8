"""Knocks with every door at every kind of wrong address, and writes down what was said.

A process of its own: what a library prints by itself is hidden where pytest collects the logs.
"""

import asyncio
import json
import socket
import sys
import time
import traceback
import typing

from pamqp import commands, frame

import iotsim
from iotsim.broker import Broker, find_mosquitto
from tests.fleets import fleet
from tests.servers.nats import NatsServer

SECRET = "s3cret-marker"
OPEN = []  # what listens, to be closed at the end
BANNER = b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n"
SECURE = {"mqtt": "mqtts", "amqp": "amqps", "http": "https", "nats": "nats+tls",
          "nats+jetstream": "nats+jetstream+tls"}
INFO = (b'INFO {"server_id":"N","version":"2.9.10","proto":1,"headers":true,'
        b'"max_payload":1048576,"jetstream":true}\r\n')
PLAIN = {  # what a server without TLS says first, and what it says to bytes that it does not know
    "mqtt": (b"", b""), "amqp": (b"", b"AMQP\x00\x00\x09\x01"), "nats": (INFO, b""),
    "http": (b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
}
DOORS = {
    "publish": ("mqtt", "amqp", "http", "coap", "nats", "nats+jetstream"),
    "listen": ("mqtt", "amqp", "coap", "nats"),
    "tap": ("mqtt", "amqp", "nats", "nats+jetstream"),
}


def cells():
    """Yield (door, scheme, what is wrong) of the table."""
    for door, schemes in DOORS.items():
        for scheme in schemes:
            for wrong in ("closed", "silent", "banner", "unknown"):
                yield door, scheme, wrong
            if scheme in SECURE:
                yield door, SECURE[scheme], "plain"
            if scheme in ("mqtt", "amqp", "nats"):
                yield door, scheme, "stranger"
    for scheme in ("http", "coap"):
        yield "tap", scheme, "taken"
        yield "tap", scheme, "unknown"


class Peer(asyncio.Protocol):
    """Says something at once, and something to the first bytes that come."""

    def __init__(self, first=b"", then=None):
        self.first, self.then = first, then

    there: typing.ClassVar = []

    def connection_made(self, transport):
        self.transport = transport
        self.there.append(transport)
        transport.write(self.first)

    def data_received(self, data):
        if self.then is not None:
            self.transport.write(self.then)
            self.transport.close()

    @classmethod
    def end(cls):
        for transport in cls.there:
            transport.abort()


class Mute(asyncio.DatagramProtocol):
    """Answers datagrams with the same, or not at all."""

    def __init__(self, answer=b""):
        self.answer = answer

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        if self.answer:
            self.transport.sendto(self.answer, addr)


def free_port(kind):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Refusing(asyncio.Protocol):
    """An AMQP broker for which every password is wrong."""

    def connection_made(self, transport):
        self.transport = transport
        self.answers = [commands.Connection.Start(mechanisms="PLAIN"),
                        commands.Connection.Close(403, "ACCESS_REFUSED - Login was refused", 0, 0)]

    def data_received(self, data):
        if self.answers:
            self.transport.write(frame.marshal(self.answers.pop(0), 0))
        else:
            self.transport.close()


async def served(scheme, wrong, strict):
    """Return a port at which it is wrong in that way."""
    loop, datagrams = asyncio.get_running_loop(), scheme == "coap"
    if wrong == "stranger" and scheme in strict:
        return strict[scheme]
    if wrong == "stranger":
        server = await loop.create_server(Refusing, "127.0.0.1", 0)
        OPEN.append(server)
        return server.sockets[0].getsockname()[1]
    if wrong in ("closed", "unknown"):
        return free_port(socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
    if datagrams:
        answer = BANNER if wrong == "banner" else b""
        made, _ = await loop.create_datagram_endpoint(
            lambda: Mute(answer), local_addr=("127.0.0.1", 0))
        OPEN.append(made)
        return made.get_extra_info("sockname")[1]
    words = {"silent": (b"", None), "taken": (b"", None), "banner": (BANNER, None)}
    first, then = words.get(wrong) or PLAIN[scheme.rstrip("s").partition("+")[0]
                                            if scheme != "https" else "http"]
    server = await loop.create_server(lambda: Peer(first, then), "127.0.0.1", 0)
    OPEN.append(server)
    return server.sockets[0].getsockname()[1]


async def knock(door, scheme, url, number):
    if door == "tap":
        found = await asyncio.to_thread(iotsim.tap, url)
        found.close()
        return
    devices = fleet(1, name=f"cell-{number}")
    devices = devices.publish_to(url) if door == "publish" else devices.listen_to(url)
    run = devices.start(speed=20)
    try:
        await run.ready()
    finally:
        await run.stop()


class Lateness:
    """How late the loop itself was so far, seconds: a busy machine's doing, and no deadline's."""

    total_s = 0.0

    async def watch(self, every_s=0.02):
        while True:
            begun = time.monotonic()
            await asyncio.sleep(every_s)
            self.total_s += time.monotonic() - begun - every_s


LATE = Lateness()


async def told(door, scheme, wrong, number, turns, strict):
    port = await served(scheme, wrong, strict)
    host = "no-such-host.invalid" if wrong == "unknown" else "127.0.0.1"
    who = "" if "coap" in scheme or (door == "tap" and scheme == "http") else f"ann:{SECRET}@"
    async with turns:
        begun = time.monotonic() - LATE.total_s
        text, kind, ours = "", "", []
        try:
            await knock(door, scheme, f"{scheme}://{who}{host}:{port}", number)
        except Exception as error:
            kind, text = type(error).__name__, str(error)
            trace = "".join(traceback.TracebackException.from_exception(
                error, capture_locals=True).format())
            ours = [part for part in trace.split('  File "') if "/iotsim/" in part[:200]]
        took_s = time.monotonic() - LATE.total_s - begun
    return {"cell": [door, scheme, wrong], "kind": kind, "text": text, "took_s": took_s,
            "secret": SECRET in text or any(SECRET in part for part in ours),
            "where": [part[:300] for part in ours if SECRET in part]}


def strict_servers():
    """Return brokers that know nobody of ours; those that are installed."""
    if find_mosquitto() is not None:
        yield "mqtt", Broker(embedded=False, users={"bob": "other"})
    nats = NatsServer(more='authorization { user: "bob", password: "other" }')
    if nats.program is not None:
        yield "nats", nats


async def main(path, wanted):
    turns = {"tap": asyncio.Semaphore(5), "publish": asyncio.Semaphore(12),
             "listen": asyncio.Semaphore(12)}
    servers = dict(strict_servers())
    watch = asyncio.create_task(LATE.watch())
    try:
        for server in servers.values():
            server.start()
        strict = {scheme: server.port for scheme, server in servers.items()}
        found = await asyncio.gather(*(told(*cell, number, turns[cell[0]], strict)
                                       for number, cell in enumerate(cells())
                                       if not wanted or wanted in "-".join(cell)))
    finally:
        watch.cancel()
        for server in servers.values():
            server.stop()
        for one in OPEN:
            one.close()
        Peer.end()
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], "".join(sys.argv[2:])))
