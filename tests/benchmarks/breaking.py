"""A day of 1,000 devices with 50 faults: what faults cost, against the same day without them."""

from iotsim import Fleet, Scenario
from tests.benchmarks.measures import Row, cpu_s

KINDS = (
    ("offset", {"by": 3}), ("drift", {"rate_per_sec": 0.001}), ("noise", {"stddev": 1}),
    ("stuck", {}), ("packet_loss", {"loss": 0.2}), ("disconnect", {}),
    ("data_corruption", {"corruption_rate": 0.25}), ("clock_drift", {"drift_rate_ms_per_sec": 50}),
    ("latency_spike", {"latency_ms": 800}), ("duplicate", {"probability": 0.2}),
)


def bad_day(devices, hours, faults=50):
    """A scenario of so many faults, each an hour long, on 1 to 50 % of the devices."""
    fleet = Fleet("day", seed=7).add("temperature_sensor", count=devices)
    scenario = Scenario("day", fleet)
    for i in range(faults):
        name, parameters = KINDS[i % len(KINDS)]
        begin_s = int(hours * 3600 * i / (faults + 3))
        scenario = scenario.at(f"{begin_s}s").inject(
            name, where=f"fraction={(1, 10, 50)[i % 3]}%", duration="1h", **parameters)
    return scenario.lasting(f"{hours * 3600}s")


def breaking(scale):
    """Faults offline: 24 h × 1,000 devices × 50 faults."""
    devices, hours = max(20, int(1000 * scale)), 24 if scale >= 0.1 else 0.5
    scenario = bad_day(devices, hours)
    plain_s, plain = cpu_s(
        lambda: scenario.fleet.generate(f"{hours}h", progress=False), repeat=1)
    broken_s, broken = cpu_s(lambda: scenario.generate(progress=False), repeat=1)
    held = broken.capture.size_bytes / broken.capture.rows
    return [
        Row(f"scenario, {hours:g} h × {devices:,} devices, 50 faults", broken_s,
            f"{broken_s:.1f} s, {broken.rows / broken_s / 1e6:.1f} M rows/s", "< 30 s",
            broken_s < 30),
        Row("… against the same without faults", broken_s / plain_s,
            f"{broken_s / plain_s:.1f} × of {plain_s:.1f} s for {plain.rows / 1e6:.1f} M rows"),
        Row("… capture, with faults, hits and truth", held, f"{held:.0f} bytes a row"),
    ]
