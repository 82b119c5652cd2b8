"""What the tests of live runs share."""

import asyncio

from iotsim import Fleet
from iotsim.offline import Offline
from iotsim.stage import Replay
from iotsim.units import instant_text

START = "2026-03-01T12:00:00Z"


def sensors(name="plant", count=50, **options):
    return Fleet(name, seed=42).add("temperature_sensor", count=count, **options)


async def meter(dev):
    while True:
        dev.emit(power=dev.draw("power", "gaussian", mean=400, stddev=25))
        await dev.sleep()


def generated(fleet, result):
    """Return the digest of what the result would be offline."""
    lasted = f"{result.end_us - result.start_us}us"
    return fleet.generate(lasted, start=instant_text(result.start_us)).digest


def run(coroutine):
    """Run to the end and check that no task is left."""

    async def main():
        result = await coroutine
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    return asyncio.run(main())


async def until(condition, timeout_s=45):
    """Wait until something is so that nobody can be told of."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def replayed(fleet, actions, start_us, end_us):
    """Return the result of a fleet with everything that was done to it done again, offline."""
    content = [action for action in actions if action.is_content]
    return Offline(fleet, Replay(content, end_us - start_us), start_us, None).run(None)
