"""A process that serves the commands of a gateway and is killed on the way (test_gateway_kills).

    python -m tests.command_child URL STORE NAME WHERE

WHERE is "written" (the answer and the change are stored, nothing is done yet), "done" (it is done,
no answer is out) or "answered" (the stream has the answer, and has not been told of the command).
"""

import asyncio
import os
import signal
import sys

from tests.commanding import Delivery, Platform, Wire


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


class Keeper:
    def __init__(self, store):
        self.answered, self._store = store.answered, store

    def apply_all(self, batch):
        self._store.apply_all(batch)
        die()


def main(url, path, name, where):
    platform = Platform(url, path)

    async def work(platform):
        if where == "done":
            Wire.request = die
        elif where == "answered":
            Delivery.ack = die
        keeper = Keeper(platform.store) if where == "written" else None
        gateway = await platform.take(platform.store.get(name), open=False, ack_wait=1)
        await gateway.open(keeper=keeper)
        print("ready", flush=True)
        await asyncio.Event().wait()

    platform.run(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
