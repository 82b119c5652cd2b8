"""Night and day: sensors report every minute by day and every ten by night, for two days."""

from iotsim import Fleet, Scenario

fleet = Fleet("night-and-day", seed=5).add("temperature_sensor", count=50, every="1m")

scenario = (
    Scenario("night_and_day", fleet, start="2026-06-01T06:00:00Z")
    .block()
    .log("day")
    .set(every="1m")
    .wait("16h")
    .expect("count() == 3000", "an hour of the day is 60 reports each", last="1h")
    .expect("max(temperature) - min(temperature) < 20", "a day is not a desert", last="16h")
    .log("night")
    .set(every="10m")
    .wait("8h")
    .expect("count() == 300", "an hour of the night is 6 reports each", last="1h")
    .repeat(2)
    .lasting("48h")
)
