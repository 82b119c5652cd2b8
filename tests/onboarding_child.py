"""A process that onboards one gateway into a store, says how far it is, and then waits.

    python onboarding_child.py URL STORE NAME FACTORY_ID

Its factory key comes in on a line of its input. It says "asking", and "answered" when `onboard`
has returned; or, interrupted, "interrupted".
"""

import asyncio
import sys

from iotsim.gateway.provisioning import onboard
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.store import Store


def say(text):
    print(text, flush=True)


async def main(url, path, name, factory_id):
    record = GatewayRecord(name, factory_id, sys.stdin.readline().rstrip("\n"))
    with Store.open(path) as store:
        say("asking")
        try:
            await onboard(record, url=url, keeper=store)
        except asyncio.CancelledError:
            say("interrupted")
            raise
        say("answered")
        await asyncio.Event().wait()  # what connects it would come here


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
