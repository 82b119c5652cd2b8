"""Chaos: for half an hour something breaks every minute, somewhere; the same every time."""

from typing import Any

from iotsim import Fleet
from iotsim.context import Context

fleet = (
    Fleet("chaos", seed=3)
    .add("pump", count=60, labels={"site": "north"})
    .add("temperature_sensor", count=40, labels={"site": "south"})
)

STRIKES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("disconnect", {}),
    ("disconnect", {"store_and_forward": True}),
    ("packet_loss", {"loss": 0.3}),
    ("latency_spike", {"latency_ms": 800}),
    ("data_corruption", {"corruption_rate": 0.25}),
    ("clock_drift", {"drift_rate_ms_per_sec": 50}),
    ("reboot", {}),
)


async def run(ctx: Context) -> None:
    """Strike a few devices a minute, chosen by the seed; then let them recover."""
    for _ in range(30):
        fault, parameters = STRIKES[int(ctx.random("strike") * len(STRIKES))]
        struck = await ctx.choose(count=1 + int(ctx.random("how many") * 10))
        seconds = 20 + int(ctx.random("how long") * 70)
        await ctx.inject_fault(fault, ids=list(struck), duration=seconds, params=parameters)
        await ctx.wait("1m")
        await ctx.expect("devices == 100", "nobody is gone for good")
    await ctx.wait("2m")
    await ctx.expect("faults == 0", "everything has ended")
    await ctx.expect("nulls(flow) == 0 and nulls(temperature) == 0", "all values are back",
                     last="30s")
