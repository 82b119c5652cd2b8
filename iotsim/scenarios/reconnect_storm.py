"""Reconnect storm: a site loses its network, comes back all at once, and flaps for a while."""

from iotsim import Fleet, Scenario

fleet = (
    Fleet("reconnect-storm", seed=4)
    .add("smart_meter", count=200, labels={"site": "north"})
    .add("smart_meter", count=100, labels={"site": "south"})
)

scenario = (
    Scenario("reconnect_storm", fleet)
    .at("2m")
    .expect("withheld == 0", "all is well before")
    .inject("disconnect", where="site=north", duration="3m", store_and_forward=True,
            reason="the switch is dead")
    .at("4m")
    .expect("active(disconnect) == 200", "the north is dark")
    .at("5m")
    .log("the switch is back: 200 meters want in, with three minutes of backlog each")
    .inject("reconnect_storm", where="site=north", duration="2m", every="20s", down="2s")
    .at("8m")
    .expect("faults == 0", "the storm is over")
    .expect("count() == 1200", "all report again", last="1m")
    .expect("lost == 0", "no broker lost a message")
    .lasting("8m")
)
