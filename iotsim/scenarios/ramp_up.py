"""Ramp up: five waves of devices join a site, until 500 report; nobody is lost on the way."""

from iotsim import Fleet
from iotsim.context import Context

fleet = Fleet("ramp-up", seed=1).add("temperature_sensor", count=20, labels={"site": "north"})


async def run(ctx: Context) -> None:
    """Add a wave every two minutes, and look whether all of it reports before the next."""
    there = 20
    for wave in range(1, 6):
        ids = await ctx.spawn("temperature_sensor", count=96, labels={"site": f"wave-{wave}"})
        there += len(ids)
        await ctx.log(f"wave {wave}: {len(ids)} more, {there} in all")
        await ctx.wait("2m")
        await ctx.expect(f"devices == {there}", f"all {there} are there")
        # One report each 5 s: in a minute everybody has spoken twelve times.
        await ctx.expect(f"count() == {there * 12}", f"all {there} report", last="1m")
    await ctx.expect("lost == 0", "no message is lost")
