"""Every signal against its slow, obvious twin in `oracles.py`."""

import math
from itertools import islice

import numpy as np
import pytest

from iotsim.signals.base import build
from tests import oracles as slow
from tests.signal_rig import START_US, alone, run

PARENT = slow.device(42, "d-0")
NEAR = {"rel": 1e-12, "abs": 2e-7}  # the normal table is good to 2e-8


def first(values, count=200):
    return list(islice(values, count))


def fast(kind, parameters, count=200, **options):
    signal = build(kind, parameters)
    block = run(signal, count, **options)[:, 0].tolist()
    assert block == alone(signal, count, **options)
    return block


def test_gaussian_is_mean_plus_stddev_times_a_normal():
    found = fast("gaussian", {"mean": 20, "stddev": 1.5})
    assert found == pytest.approx(first(slow.gaussian(PARENT, "temperature", 20, 1.5)), **NEAR)


def test_uniform_is_min_plus_u_times_the_range():
    found = fast("uniform_random", {"min": -3, "max": 11})
    assert found == pytest.approx(first(slow.uniform(PARENT, "temperature", -3, 11)), rel=1e-15)


@pytest.mark.parametrize(
    "law",
    [
        {"volatility": 0.5, "start": 3, "drift": -0.01},
        {"volatility": 0.5, "start": 40, "mean": 55, "mean_reversion": 0.1},
        {"volatility": 0.5, "start": 40, "mean": 55, "mean_reversion": 0.1, "drift": 0.3},
        {"volatility": 0.5, "start": 40, "mean_reversion": 3},
        {"volatility": 2, "start": 1, "min": 0, "max": 4},
        {"volatility": 2, "start": -1, "max": 0},
        {"volatility": 0, "start": 100, "drift": -0.2, "min": 0, "max": 100},
        {"volatility": 1, "start": 2, "mean_reversion": 1e-13, "drift": 0.01},
    ],
)
@pytest.mark.parametrize("interval_us", [1_000_000, 5_000_000, 3_600_000_000])
def test_brownian_is_the_exact_transition(law, interval_us):
    found = fast("brownian", law, interval_us=interval_us)
    twin = slow.brownian(PARENT, "temperature", interval_us / 1e6, **law)
    assert found == pytest.approx(first(twin), rel=1e-7, abs=1e-5 * math.sqrt(interval_us / 1e6))


@pytest.mark.parametrize("peak_hour", [0, 6, 14, 14.5, 24])
def test_diurnal_peaks_at_its_hour_of_the_utc_day(peak_hour):
    law = {"baseline": 22, "amplitude": 5, "peak_hour": peak_hour, "noise_stddev": 0.3}
    seconds = [n * 613.0 % 86400 for n in range(300)]
    found = fast("diurnal", law, 300, interval_us=613_000_000)
    twin = slow.diurnal(PARENT, "temperature", seconds, 22, 5, peak_hour, 0.3)
    assert found == pytest.approx(list(twin), **NEAR)


def test_diurnal_is_exact_at_its_peak_and_twelve_hours_later():
    law = {"baseline": 22, "amplitude": 5, "peak_hour": 14}
    found = fast("diurnal", law, 25, interval_us=3_600_000_000)
    assert (found[14], found[2], found[8], found[20]) == (27.0, 17.0, 22.0, 22.0)


@pytest.mark.parametrize("day", ["2026-01-15", "2026-03-29", "2026-07-01", "2026-10-25"])
@pytest.mark.parametrize("zone", ["Europe/Rome", "America/New_York", "Asia/Kolkata"])
def test_diurnal_follows_the_hours_of_a_time_zone_also_when_clocks_change(zone, day):
    from datetime import UTC, datetime, timedelta
    from zoneinfo import ZoneInfo

    start = datetime.fromisoformat(day).replace(tzinfo=UTC)
    seconds = []
    for n in range(200):
        local = (start + timedelta(minutes=10 * n)).astimezone(ZoneInfo(zone))
        seconds.append(local.hour * 3600 + local.minute * 60 + local.second)
    law = {"baseline": 22, "amplitude": 5, "peak_hour": 14, "timezone": zone}
    start_us = int(start.timestamp()) * 1_000_000
    found = fast("diurnal", law, 200, interval_us=600_000_000, start_us=start_us)
    assert found == pytest.approx(list(slow.diurnal(0, "", seconds, 22, 5, 14)), abs=1e-9)


@pytest.mark.parametrize("period", ["60s", "7s", "333ms", "90d"])
def test_sine_starts_at_its_middle_and_rises(period):
    from iotsim.units import duration_us

    found = fast("sine_wave", {"min": 10, "max": 30, "period": period}, interval_us=123_457)
    twin = slow.sine_wave(0.123457, 10, 30, duration_us(period) / 1e6)
    assert found == pytest.approx(first(twin), abs=1e-10)
    assert found[0] == 20.0 < found[1]


def test_sine_stays_within_its_bounds_to_the_bit():
    found = fast("sine_wave", {"min": 0.1, "max": 0.3, "period": "4s"}, interval_us=1_000_000)
    assert min(found) >= 0.1
    assert max(found) == 0.3
    assert min(found) == pytest.approx(0.1, rel=1e-15)


def test_spike_is_uniform_with_excursions_of_fixed_size():
    law = {"min": 10, "max": 20, "probability": 0.3, "magnitude": 1.5}
    found = fast("spike", law)
    twin = first(slow.spike(PARENT, "temperature", 10, 20, 0.3, 1.5))
    assert found == pytest.approx(twin, rel=1e-15)
    assert {x for x in found if not 10 <= x < 20} == {35.0, -5.0}


@pytest.mark.parametrize(("per", "ratio"), [("tick", 1), ("2s", 2.5), ("12s", 5 / 12), ("5s", 1)])
def test_markov_takes_the_first_column_whose_sum_exceeds_the_draw(per, ratio):
    states, matrix = ["a", "b", "c"], [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0, 0.3, 0.7]]
    law = {"states": states, "transition_matrix": matrix, "initial_state": "b", "per": per}
    signal = build("markov", law)
    twin = first(slow.markov(PARENT, "temperature", states, matrix, "b", ratio))
    assert alone(signal, 200) == twin
    assert [states[code] for code in run(signal, 200)[:, 0]] == twin


def test_a_part_of_a_composite_has_a_stream_of_its_own():
    twins = {"type": "gaussian", "mean": 0, "stddev": 1}
    found = fast("composite", {"parts": [twins, twins]})
    inside = slow.child(PARENT, slow.fnv("temperature"))
    left, right = slow.gaussian(inside, "0", 0, 1), slow.gaussian(inside, "1", 0, 1)
    assert found == pytest.approx([a + b for a, b in zip(first(left), first(right), strict=True)],
                                  **NEAR)


def test_a_product_multiplies_its_parts():
    parts = [{"type": "sine_wave", "min": 0, "max": 2, "period": "7s"},
             {"type": "uniform_random", "min": 1, "max": 3}, {"type": "constant", "value": -2}]
    found = fast("composite", {"op": "product", "parts": parts})
    wave = first(slow.sine_wave(5.0, 0, 2, 7))
    noise = first(slow.uniform(slow.child(PARENT, slow.fnv("temperature")), "1", 1, 3))
    assert found == pytest.approx([a * b * -2 for a, b in zip(wave, noise, strict=True)], abs=1e-12)


def test_a_chain_takes_turns_and_every_part_keeps_moving():
    parts = [{"for": "10s", "type": "constant", "value": 7},
             {"for": "20s", "type": "brownian", "volatility": 0, "drift": 1}]
    found = fast("composite", {"op": "chain", "parts": parts}, 14)
    walk = [5.0 * (n + 1) for n in range(14)]
    assert found == [7.0 if n % 6 < 2 else walk[n] for n in range(14)]


def test_a_linear_field_is_computed_from_the_others_of_its_reading():
    x, y = np.linspace(-5, 5, 50), np.linspace(100, 0, 50)
    fields = {"y": y[:, None], "x": x[:, None]}
    signal = build("depends_on", {"of": {"y": 0.1, "x": -0.8}, "offset": 3})
    found = run(signal, 50, fields=fields)[:, 0]
    assert found == pytest.approx(3 - 0.8 * x + 0.1 * y, abs=1e-12)
    assert found.tolist() == alone(signal, 50, fields={"x": x, "y": y})


def test_the_order_in_which_coefficients_are_written_changes_no_bit():
    fields = {name: np.full((1, 1), value) for name, value in
              {"a": 0.1, "b": 0.2, "c": 0.3}.items()}
    one = build("depends_on", {"of": {"a": 1, "b": 1, "c": 1}})
    two = build("depends_on", {"of": {"c": 1, "b": 1, "a": 1}})
    assert one == two
    assert run(one, 1, fields=fields).tobytes() == run(two, 1, fields=fields).tobytes()


def test_noise_of_a_dependent_field_comes_from_its_own_stream():
    signal = build("depends_on", {"expression": "x", "noise_stddev": 2})
    zeros = {"x": np.zeros((50, 1))}
    twin = first(slow.gaussian(PARENT, "temperature", 0, 2), 50)
    assert run(signal, 50, fields=zeros)[:, 0].tolist() == pytest.approx(twin, **NEAR)


CSV_VALUES = [1.5, None, 0.1, 2.0**60, None, -2.25]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [CSV_VALUES[n % 6] for n in range(9)]),
        ({"loop": False}, [*CSV_VALUES, -2.25, -2.25, -2.25]),
        ({"missing": "hold"}, [1.5, 1.5, 0.1, 2.0**60, 2.0**60, -2.25, 1.5, 1.5, 0.1]),
    ],
)
def test_playback_gives_a_row_for_each_tick(options, expected):
    from tests.signal_rig import FLOW_CSV

    signal = build("playback", {"path": FLOW_CSV, "column": "flow", **options})
    found = [None if math.isnan(x) else x for x in run(signal, 9)[:, 0].tolist()]
    assert found == expected


def test_playback_from_random_rows_starts_each_device_somewhere_else():
    from tests.signal_rig import FLOW_PARQUET

    law = {"path": FLOW_PARQUET, "column": "count", "start": "random"}
    found = run(build("playback", law), 4, 1000)
    assert (np.sort(found, axis=0) == np.array([[1.0], [2.0], [3.0], [4.0]])).all()
    counts = np.bincount(found[0].astype(int))[1:]
    assert abs(counts - 250).max() < 6 * math.sqrt(1000 * 0.25 * 0.75)


def test_the_start_of_the_year_is_where_the_rig_says():
    assert START_US == 1_767_225_600 * 1_000_000
