"""What faults and the engine ask of a signal: where it is, how it drifts, whether it walks."""

import math

import pytest

from iotsim.signals.base import build
from tests.signal_rig import SIGNALS, made

SPANS = {
    "gaussian": (14, 26), "gaussian without noise": (20, 20), "brownian walk": None,
    "brownian that returns": (55.2 - 2 / math.sqrt(0.2), 55.2 + 2 / math.sqrt(0.2)),
    "brownian with bounds": (0, 4), "battery": None, "diurnal": (15.8, 28.2),
    "diurnal in Rome": (17, 27), "uniform": (-3, 11), "sine": (10, 30),
    "sine with a period of its own": (0.1, 0.3), "spike": (10, 20), "constant": (3, 3),
    "constant from bounds": (10, 30), "static int": (7, 7), "static float": (7.5, 7.5),
    "static bool": None, "static text": None, "static null": None, "static json": None,
    "markov": None, "markov by time, slower": None, "markov by time, faster": None,
    "sum": (-8, 17), "product": None, "chain": None, "playback of CSV": (-2.25, 2.0**60),
    "playback from anywhere, held": (-2.25, 2.0**60), "playback of Parquet, once": (1, 4),
    "linear": None, "expression": None,
}


@pytest.mark.parametrize("name", SIGNALS)
def test_the_span_follows_from_the_parameters(name):
    found = made(name).span
    assert found == (None if SPANS[name] is None else pytest.approx(SPANS[name]))
    assert found is None or {type(end) for end in found} == {float}


@pytest.mark.parametrize(
    ("law", "span"),
    [
        ({"mean_reversion": 0.5, "mean": 10}, (2, 18)),
        ({"mean_reversion": 0.5, "mean": 10, "min": 5}, (5, 18)),
        ({"mean_reversion": 0.5, "mean": 10, "max": 1}, (1, 1)),
        ({"mean_reversion": 0.5, "mean": 10, "drift": 2, "max": 20}, (6, 20)),
        ({"min": 5}, None),
        ({"min": 5, "max": 9}, (5, 9)),
        ({"mean_reversion": 5e-324}, None),
        ({"min": -1e100, "mean_reversion": 1e-200, "drift": 1e100}, None),
    ],
)
def test_the_span_of_a_walk_is_its_bounds_or_its_stationary_law(law, span):
    found = build("brownian", {"volatility": 2, **law}).span
    assert found == (None if span is None else pytest.approx(span))


def part(low, high, **more):
    return {"type": "uniform_random", "min": low, "max": high, **more}


@pytest.mark.parametrize(
    ("given", "span"),
    [
        ({"op": "product", "parts": [part(-2, 3), part(-5, 1)]}, (-15, 10)),
        ({"op": "sum", "parts": [part(-2, 3), part(-5, 1)]}, (-7, 4)),
        ({"op": "chain", "parts": [part(-2, -1, **{"for": 1}), part(4, 5, **{"for": 2})]}, (-2, 5)),
        ({"op": "product", "parts": [part(1, 1e100)] * 4}, None),
        ({"parts": [part(0, 1), {"type": "brownian", "volatility": 1}]}, None),
    ],
)
def test_the_span_of_a_composite_is_made_of_those_of_its_parts(given, span):
    assert build("composite", given).span == span


def test_only_what_moves_on_the_grid_walks():
    walking = {name for name in SIGNALS if made(name).walks}
    assert walking == {name for name, (kind, _) in SIGNALS.items()
                       if kind in ("brownian", "markov", "playback")} | {"product", "chain"}


def test_the_drift_of_a_battery_is_known_also_inside_a_sum():
    drain = {"type": "brownian", "volatility": 0, "drift": -0.25}
    still = {"type": "gaussian", "mean": 0, "stddev": 1}
    assert made("battery").drift_per_s == -0.001
    assert build("composite", {"parts": [drain, still, drain]}).drift_per_s == -0.5
    assert build("composite", {"parts": [still]}).drift_per_s is None
    assert build("composite", {"op": "product", "parts": [drain]}).drift_per_s is None
    assert [name for name in SIGNALS if made(name).drift_per_s is not None] == [
        "brownian walk", "brownian that returns", "battery"]
