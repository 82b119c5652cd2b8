"""Clock skew: some clocks gain 50 ms a second, some lose 20, until the time server is back."""

from iotsim import Fleet, Scenario

fleet = (
    Fleet("clock-skew", seed=8)
    .add("pump", count=40, labels={"ntp": "lost"})
    .add("pump", count=20, labels={"ntp": "slow"})
    .add("pump", count=40, labels={"ntp": "fine"})
)

scenario = (
    Scenario("clock_skew", fleet)
    .at("1m")
    .inject("clock_drift", where="ntp=lost", drift_rate_ms_per_sec=50, reason="no time server")
    .inject("clock_drift", where="ntp=slow", drift_rate_ms_per_sec=-20, reason="a cheap quartz")
    .at("2m")
    .log("the fast ones are 3 s ahead, the slow ones 1.2 s behind")
    .expect("active(clock_drift) == 60")
    .expect("withheld == 0", "wrong time, but every reading leaves")
    .at("5m")
    .log("the time server is back")
    .clear("clock_drift")
    .at("6m")
    .expect("faults == 0", "every clock is right")
    .expect("count() == 100 * 15", "and everybody reports", last="30s")
    .lasting("6m")
)
