"""Rolling update: pumps get firmware 2.0.0 in five waves; each is off for half a minute."""

from iotsim import Fleet
from iotsim.context import Context

WAVES = 5
fleet = Fleet("rolling-update", seed=2).add("pump", count=100)


async def run(ctx: Context) -> None:
    """Update a fifth at a time, and go on only when it is back."""
    everybody = list(await ctx.choose(fraction=1))
    for wave in range(WAVES):
        ids = everybody[wave::WAVES]
        await ctx.inject_fault("firmware_update", ids=ids, duration="30s", version="2.0.0",
                               reason=f"wave {wave + 1} of {WAVES}")
        await ctx.wait("10s")
        await ctx.expect(f"active(firmware_update) == {len(ids)}", "only this wave is off")
        await ctx.wait("1m")
        back = await ctx.expect("faults == 0", "the wave is back")
        if not back:
            await ctx.log("a wave did not come back: the update stops here")
            return
    # 30 readings a minute each: since the last wave nobody was off.
    await ctx.wait("1m")
    await ctx.expect(f"count() == {len(everybody) * 30}", "all report again", last="1m")
