"""A TCP proxy that misbehaves by rule: late, cut, half-open, stalled, in crumbs.

A `Rule` says what happens to one connection; `misfortune(name, seed)` gives a rule for each
connection in turn, and calm ones after the first few, so that every story ends well: what is
asserted is that nothing was lost on the way. Chance is from a seed that a failing test prints.
"""

import asyncio
import itertools
import random
from dataclasses import dataclass

CALM_AFTER = 3  # connections, so that what is in trouble can come out of it
CRUMBS = 5000  # bytes in each direction that come one by one: a handshake, and many frames


@dataclass(frozen=True)
class Rule:
    """What happens to a connection.

    `up` and `down` are bytes from and to the client after which `then` happens: "reset" ends both
    sides with RST, "hang" passes nothing on any more and keeps both sides open, "stall" passes
    nothing on in that direction for `stall_s`. None: never. Every piece is `delay_s` late; the
    first `crumbs` bytes come one by one.
    """

    up: int | None = None
    down: int | None = None
    then: str = "reset"
    stall_s: float = 1.0
    delay_s: float = 0.0
    crumbs: int = 0
    refuse: bool = False


CALM = Rule()


def _rules(name, chance, up, down):
    calm = itertools.repeat(CALM)
    few = range(CALM_AFTER)

    def there():
        return chance.randint(*up)

    def back():
        return chance.randint(*down)

    match name:
        case "calm":
            return calm
        case "late":
            return itertools.repeat(Rule(delay_s=0.02))
        case "one byte at a time":
            return itertools.chain([Rule(crumbs=CRUMBS)], calm)
        case "cut on the way there":
            return itertools.chain([Rule(up=there()) for _ in few], calm)
        case "cut on the way back":
            return itertools.chain([Rule(down=back()) for _ in few], calm)
        case "half-open":
            return itertools.chain([Rule(up=there(), then="hang") for _ in few], calm)
        case "stalled there":
            return itertools.chain([Rule(up=there(), then="stall") for _ in few], calm)
        case "stalled back":
            return itertools.chain([Rule(down=back(), then="stall") for _ in few], calm)
        case "refused for a while":
            return itertools.chain([Rule(up=there()) for _ in few],
                                   [Rule(refuse=True) for _ in few], calm)
    raise ValueError(name)


MISFORTUNES = ("late", "one byte at a time", "cut on the way there", "cut on the way back",
               "half-open", "stalled there", "stalled back", "refused for a while")


class Rig:
    """Listens on a free port and forwards to `port`, as its misfortune says.

    Parameters
    ----------
    port : int
    name : str
        One of `MISFORTUNES`, or "calm".
    seed : int
    up, down : (int, int)
        After how many bytes from and to the client it strikes, at least and at most; the first
        connection must be able to shake hands.

    Attributes
    ----------
    connections : int
        How many there were.
    struck : int
        How often something happened; a test that wants trouble checks that there was some.
    """

    def __init__(self, port, name="calm", seed=1, up=(1000, 6000), down=(100, 1500)):
        self.target, self.name, self.seed = port, name, seed
        self._rules = _rules(name, random.Random(f"{name} {seed}"), up, down)
        self.connections = self.struck = 0
        self._tasks = set()

    def __repr__(self):
        return f"<Rig {self.name!r}, seed {self.seed}: {self.connections} connections>"

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader, writer):
        task = asyncio.ensure_future(self._serve(reader, writer, next(self._rules)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader, writer, rule):
        self.connections += 1
        far = None
        try:
            if rule.refuse:
                self.struck += 1
                return
            far_reader, far = await asyncio.open_connection("127.0.0.1", self.target)
            hung = asyncio.Event()
            ways = [asyncio.ensure_future(self._carry(reader, far, rule, rule.up, hung)),
                    asyncio.ensure_future(self._carry(far_reader, writer, rule, rule.down, hung))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:  # the far side is away
            pass
        finally:
            writer.transport.abort()
            if far is not None:
                far.transport.abort()

    async def _carry(self, reader, writer, rule, limit, hung):
        # Returns where the connection is to end.
        carried = 0
        while data := await reader.read(1 if carried < rule.crumbs else 65_536):
            if rule.delay_s:
                self.struck += 1
                await asyncio.sleep(rule.delay_s)
            if carried < rule.crumbs:
                self.struck += 1
            if limit is not None and carried + len(data) > limit:
                writer.write(data[: limit - carried])
                self.struck += 1
                if rule.then == "reset":
                    await _drained(writer)
                    return
                if rule.then == "stall":
                    await asyncio.sleep(rule.stall_s)
                    data, limit = data[limit - carried:], None
                else:
                    hung.set()
            if hung.is_set():
                await asyncio.Event().wait()
            writer.write(data)
            carried += len(data)
            await _drained(writer)


async def _drained(writer):
    try:
        await writer.drain()
    except OSError:
        pass
