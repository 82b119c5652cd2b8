"""A UDP proxy for tests: loses, doubles, delays and swaps datagrams, by a seeded rule."""

import asyncio
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Weather:
    """What happens to each datagram, in both directions; the rates are probabilities.

    A datagram that is swapped waits until the next one has gone, or for `swap_s`.
    """

    lose: float = 0.0
    double: float = 0.0
    swap: float = 0.0
    swap_s: float = 0.05
    delay_s: float = 0.0
    jitter_s: float = 0.0


CALM = Weather()


class UdpProxy:
    """Listens on a free port and forwards to `port`; every client gets a port of its own there.

    Attributes
    ----------
    rule : Weather or callable (direction, number, data)
        The callable sees each datagram, "up" to the server or "down", with its number, and
        returns the datagrams that are passed on. It may be replaced at any time.
    lost, doubled, swapped, carried : int
    """

    def __init__(self, port, rule=CALM, seed=1):
        self.target, self.rule, self.seed = port, rule, seed
        self.chance = random.Random(seed)
        self.lost = self.doubled = self.swapped = self.carried = 0
        self._clients = {}
        self._held = {}
        self._timers = set()

    def __repr__(self):
        return (f"<UdpProxy {self.rule}, seed {self.seed}: {self.carried} carried, {self.lost} "
                f"lost, {self.doubled} doubled, {self.swapped} swapped>")

    async def __aenter__(self):
        self._loop = asyncio.get_running_loop()
        self._front, _ = await self._loop.create_datagram_endpoint(
            lambda: _Side(self._from_client), local_addr=("127.0.0.1", 0)
        )
        self.port = self._front.get_extra_info("sockname")[1]
        return self

    async def __aexit__(self, *_):
        for timer in self._timers:
            timer.cancel()
        for back in [await task for task in self._clients.values()]:
            back.abort()
        self._front.abort()
        await asyncio.sleep(0)  # the transports' own last callbacks

    def _from_client(self, data, client):
        task = self._clients.get(client)
        if task is None:
            task = self._clients[client] = asyncio.ensure_future(self._opened(client))
        task.add_done_callback(
            lambda done: self._pass("up", data, lambda one: done.result().sendto(one), client)
        )

    async def _opened(self, client):
        def from_server(data, _):
            self._pass("down", data, lambda one: self._front.sendto(one, client), client)

        back, _ = await self._loop.create_datagram_endpoint(
            lambda: _Side(from_server), remote_addr=("127.0.0.1", self.target)
        )
        return back

    def _pass(self, direction, data, send, client):
        self.carried += 1
        if callable(self.rule):
            for one in self.rule(direction, self.carried, data):
                send(one)
            return
        rule, way = self.rule, (direction, client)
        if self.chance.random() < rule.lose:
            self.lost += 1
            return
        copies = 1
        if self.chance.random() < rule.double:
            self.doubled += 1
            copies = 2
        if way not in self._held and self.chance.random() < rule.swap:
            self.swapped += 1
            self._held[way] = (data, copies, send)
            self._later(rule.swap_s, lambda: self._release(way))
            return
        self._deliver(data, copies, send)
        self._release(way)

    def _release(self, way):
        held = self._held.pop(way, None)
        if held is not None:
            self._deliver(*held)

    def _deliver(self, data, copies, send):
        for _ in range(copies):
            late_s = self.rule.delay_s if not callable(self.rule) else 0.0
            if not callable(self.rule) and self.rule.jitter_s:
                late_s += self.chance.random() * self.rule.jitter_s
            if late_s:
                self._later(late_s, lambda: send(data))
            else:
                send(data)

    def _later(self, delay_s, what):
        def fire():
            self._timers.discard(timer)
            what()

        timer = self._loop.call_later(delay_s, fire)
        self._timers.add(timer)


class _Side(asyncio.DatagramProtocol):
    def __init__(self, take):
        self._take = take

    def datagram_received(self, data, addr):
        self._take(data, addr)

    def error_received(self, exc):  # the server is away: what is lost is lost
        pass
