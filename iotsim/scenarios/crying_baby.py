"""Crying baby: one device publishes a hundred times as often as it should; the others do not."""

from iotsim import Fleet, Scenario, ids

fleet = Fleet("crying-baby", seed=6).add("pump", count=50)

scenario = (
    Scenario("crying_baby", fleet)
    .at("2m")
    .expect("count() == 1500", "a quiet minute", last="1m")
    .inject("rate", where=ids(["pump-0007"]), duration="3m", factor=100,
            reason="a loop without a delay")
    .at("4m")
    .expect("count() == 1500 + 99 * 30", "one device outshouts the other 49", last="1m")
    .at("6m")
    .expect("count() == 1500", "quiet again", last="1m")
    .expect("lost == 0", "nobody paid for it")
    .lasting("6m")
)
