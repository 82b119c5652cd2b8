"""What the tests of the engine share: small profiles, fleets, and readings as plain tuples."""

import numpy as np

from iotsim import Fleet, Profile
from iotsim.digest import Digest
from iotsim.engine.simulation import Simulation
from iotsim.units import DEFAULT_START, instant_us

START_US = instant_us(DEFAULT_START)


def profile(name="meter", every="5s", **options):
    """Two cheap fields: one that is drawn by tick, one that walks."""
    fields = {
        "power": {"type": "gaussian", "mean": 400, "stddev": 25, "resolution": 0.1},
        "drift": {"type": "brownian", "volatility": 0.5, "mean_reversion": 0.1},
    }
    return Profile(name, fields, telemetry_interval=every, **options)


def fleet(count=20, seed=1, name="p", **options):
    return Fleet(name, seed=seed).add(profile(**options), count=count)


def simulate(fleet, cuts_us, start_us=START_US):
    """Readings of a fleet that is advanced to each of these instants after the start."""
    simulation = Simulation(fleet.members, fleet.seed, start_us)
    made = [chunk for cut in cuts_us for chunk in simulation.advance(start_us + cut)]
    simulation.close()
    assert not simulation.failures.kept, simulation.failures.kept
    return made


def rows(chunks):
    """Every reading as (device, seq, time, fields), sorted: what two runs are compared by."""
    found = []
    for chunk in chunks:
        names = list(chunk.columns)
        cells = zip(*(cells_of(chunk.columns[name]) for name in names), strict=True)
        found += [
            (chunk.group.ids[i], n, at_us, dict(zip(names, values, strict=True)))
            for i, n, at_us, values in zip(chunk.device.tolist(), chunk.seq.tolist(),
                                           chunk.time_us.tolist(), cells, strict=True)
        ]
    return sorted(found, key=lambda row: row[:2])


def cells_of(column):
    if column.kind in ("text", "json"):
        known = [*column.categories, None]
        return [known[code] for code in column.values.tolist()]
    if column.kind == "float":
        return [value.hex() for value in column.values.tolist()]
    return column.values.tolist()


def digest_of(chunks):
    digest = Digest(START_US)
    for chunk in chunks:
        digest.add(chunk)
    return digest.hexdigest()


def same_values(one, other):
    """Whether two arrays are equal, NaN to NaN."""
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
