"""Brownout: a cold night drains batteries; devices save, then fall silent, and are swapped."""

from iotsim import Fleet, Scenario

COLD = "fraction=20%"

fleet = Fleet("brownout", seed=7).add("temperature_sensor", count=100, every="10s")

scenario = (
    Scenario("brownout", fleet)
    .at("10m")
    .expect("min(battery) > 99", "all are full", last="1m")
    .inject("battery_drain", where=COLD, drain_multiplier=30, duration="50m",
            reason="minus twenty degrees")
    .at("30m")
    .expect("min(battery) < 90", "the cold ones drain", last="1m")
    .log("saving: a report a minute")
    .set(where=COLD, every="1m")
    .at("50m")
    .log("below what the radio needs")
    .suspend(where=COLD, duration="10m")
    .at("55m")
    .expect("active(suspend) > 0", "the weak ones are silent")
    .at("60m")
    .log("swapped: new batteries, new devices")
    .stop(where=COLD)
    .add("temperature_sensor", count=20, every="10s", labels={"batch": "spare"})
    .at("70m")
    .expect("max(battery) > 99", "the spares are full", last="1m")
    .lasting("70m")
)
