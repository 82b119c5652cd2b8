"""What the tests of live runs share."""

import asyncio

from iotsim import Fleet
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
