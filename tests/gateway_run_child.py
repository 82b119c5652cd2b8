"""A process that runs gateways until it is killed, and says which run it is.

    python -m tests.gateway_run_child OPTIONS        OPTIONS: JSON of Platform's keyword arguments

It writes "ready <run id>" when they send, and every id that was acknowledged, one in a line.
"""

import asyncio
import json
import sys

from iotsim import Gateway, Platform


async def main(options, gateways):
    made = [Gateway(name, factory_id=f"f-{name}", factory_key="key", every="50ms", seed=42,
                    count=count).sensor("temperature", algorithm="sine_wave")
            for name, count in gateways]
    run = await Platform(**options).start(made or None, recover=not made, progress=False)
    known = run.works.acks.add

    def told(ids, outcome, seconds, publisher):
        known(ids, outcome, seconds, publisher=publisher)
        if outcome == "acknowledged":
            print("\n".join(ids), flush=True)

    for pump in run.works.pumps:
        settled = pump._settings
        object.__setattr__(settled, "settled",
                           lambda ids, outcome, seconds: told(ids, outcome, seconds, 0))
    print("ready", run.id, flush=True)
    await run.wait()


if __name__ == "__main__":
    asyncio.run(main(*json.loads(sys.argv[1])))
