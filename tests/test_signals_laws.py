"""Every signal against the law it states. False alarm 1e-9 each, at a fixed seed."""

import math

import numpy as np
import pytest

from iotsim.signals.base import build
from tests.signal_rig import alone, run
from tests.statistics_rig import (
    assert_counts,
    assert_distributed,
    assert_independent,
    assert_mean,
    assert_share,
    assert_variance,
    assert_white,
    normal_beyond,
    normal_law,
    uniform_law,
)

DT = 5.0


def values(kind, parameters, ticks, devices, **options):
    return run(build(kind, parameters), ticks, devices, **options)


def test_gaussian_values_are_normal_independent_and_white():
    found = values("gaussian", {"mean": 20, "stddev": 1.5}, 400, 1000)
    assert_distributed(found, normal_law(20, 1.5))
    assert_mean(found, 20, 1.5)
    assert_variance(found, 2.25, 20)
    cubes = ((found - 20) / 1.5) ** 3
    assert_mean(cubes, 0, math.sqrt(15))
    assert_mean(((found - 20) / 1.5) ** 4, 3, math.sqrt(96))
    assert_white(found)
    assert_independent(found[:, 0::2], found[:, 1::2])


def test_gaussian_tails_have_the_right_weight():
    found = values("gaussian", {"mean": 0, "stddev": 1}, 2000, 2000)
    for sigmas in (2, 3, 4, 5):
        assert_share((found > sigmas).sum(), found.size, normal_beyond(sigmas))
        assert_share((found < -sigmas).sum(), found.size, normal_beyond(sigmas))


def test_uniform_values_fill_the_range_and_never_reach_its_end():
    found = values("uniform_random", {"min": -3, "max": 11}, 400, 1000)
    assert found.min() >= -3
    assert found.max() < 11
    assert_distributed(found, uniform_law(-3, 11))
    assert_white(found)


def test_uniform_never_reaches_its_end_even_where_floats_are_coarse():
    found = values("uniform_random", {"min": 2.0**53 - 2, "max": 2.0**53}, 200, 100)
    assert set(np.unique(found)) <= {2.0**53 - 2, 2.0**53 - 1}


@pytest.mark.parametrize("theta", [0.002, 0.1, 1.0])  # θ·dt = 0.01, 0.5, 5: Euler fails from 0.4
def test_the_innovations_of_a_brownian_signal_are_white_and_normal(theta):
    law = {"volatility": 0.5, "start": 55, "mean": 50, "mean_reversion": theta, "drift": 0.01}
    found = values("brownian", law, 400, 1000)
    keep = math.exp(-theta * DT)
    target = 50 + 0.01 / theta
    spread = 0.5 * math.sqrt((1 - keep**2) / (2 * theta))
    before = np.vstack([np.full((1, 1000), 55.0), found[:-1]])
    innovations = (found - target - keep * (before - target)) / spread
    assert_distributed(innovations, normal_law())
    assert_variance(innovations, 1.0, 0.0)
    assert_mean(innovations, 0, 1)
    assert_white(innovations)


@pytest.mark.parametrize("theta", [0.02, 0.1, 0.4, 1.0, 50.0])
def test_a_brownian_signal_settles_at_its_stationary_law(theta):
    law = {"volatility": 0.5, "start": 55, "mean_reversion": theta}
    ticks = 10 + int(14 / (theta * DT))  # what is left of the start: below e^-14
    last = values("brownian", law, ticks, 40_000)[-1]
    assert_mean(last, 55, 0.5 / math.sqrt(2 * theta))
    assert_variance(last, 0.25 / (2 * theta), 55)
    assert_distributed(last, normal_law(55, 0.5 / math.sqrt(2 * theta)))


def test_a_brownian_signal_remembers_by_its_time_constant():
    law = {"volatility": 1, "mean_reversion": 0.05}
    found = values("brownian", law, 200, 5000)[100:]
    variance = 1 / (2 * 0.05)
    for lag in (1, 3, 8):
        products = found[:-lag:20] * found[lag::20][: len(found[:-lag:20])]  # far apart
        expected = variance * math.exp(-0.05 * DT * lag)
        assert_mean(products, expected, math.sqrt(variance**2 + expected**2) * 1.1)


def test_a_walk_without_reversion_spreads_with_the_root_of_time():
    found = values("brownian", {"volatility": 0.5, "start": 3, "drift": 0.02}, 100, 20_000)
    for n in (0, 9, 99):
        elapsed = DT * (n + 1)
        assert_mean(found[n], 3 + 0.02 * elapsed, 0.5 * math.sqrt(elapsed))
        assert_variance(found[n], 0.25 * elapsed, 3 + 0.02 * elapsed)


def test_the_first_value_stands_one_interval_after_the_start():
    steady = values("brownian", {"volatility": 0, "start": 100, "drift": -0.001}, 3, 1)
    assert steady[:, 0] == pytest.approx([99.995, 99.99, 99.985], rel=1e-15)


@pytest.mark.parametrize("bounds", [{"min": -1}, {"max": -1}, {"min": -2, "max": 1}])
def test_bounds_hold_also_alone_and_below_zero(bounds):
    found = values("brownian", {"volatility": 1, "start": -1, **bounds}, 200, 500)
    assert found.min() == bounds.get("min", found.min())
    assert found.max() == bounds.get("max", found.max())
    assert (found == bounds.get("min", bounds.get("max"))).mean() > 0.05
    assert len(np.unique(found)) > 1000


def test_two_intervals_of_one_step_are_one_interval_of_two():
    law = {"volatility": 0.5, "start": 40, "mean": 55, "mean_reversion": 0.1}
    fine = values("brownian", law, 2, 100_000, interval_us=2_500_000)[1]
    coarse = values("brownian", law, 1, 100_000, seed=7)[0]
    target = 55 + (40 - 55) * math.exp(-0.5)
    variance = 0.25 * (1 - math.exp(-1)) / 0.2
    for found in (fine, coarse):
        assert_distributed(found, normal_law(target, math.sqrt(variance)))


def test_least_squares_finds_the_amplitude_and_the_peak_of_a_day():
    law = {"baseline": 22, "amplitude": 5, "peak_hour": 14, "noise_stddev": 0.3}
    found = values("diurnal", law, 1440, 200, interval_us=60_000_000)
    turn = 2 * np.pi * np.arange(1440) / 1440
    design = np.stack([np.ones(1440), np.cos(turn), np.sin(turn)], axis=1)
    fit = np.linalg.lstsq(design, found.mean(axis=1), rcond=None)[0]
    error = 0.3 / math.sqrt(found.size / 2)
    peak = 2 * np.pi * 14 / 24
    assert fit[0] == pytest.approx(22, abs=6.2 * error)
    assert fit[1] == pytest.approx(5 * math.cos(peak), abs=6.2 * error)
    assert fit[2] == pytest.approx(5 * math.sin(peak), abs=6.2 * error)
    truth = 22 + 5 * np.cos(turn - peak)
    residual = found - truth[:, None]
    assert_distributed(residual, normal_law(0, 0.3))
    assert_white(residual)


MATRIX = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.0, 0.3, 0.7]])
CHAIN = {"states": ["a", "b", "c"], "transition_matrix": MATRIX.tolist()}


def _transitions(codes):
    counts = np.zeros((3, 3))
    np.add.at(counts, (codes[:-1], codes[1:]), 1)
    return counts


def test_markov_moves_with_the_probabilities_of_its_matrix():
    codes = values("markov", CHAIN, 300, 1000)
    counts = _transitions(codes)
    expected = counts.sum(axis=1, keepdims=True) * MATRIX
    assert_counts(counts, expected, lost=3)


def test_markov_settles_at_the_law_that_its_matrix_keeps():
    codes = values("markov", {**CHAIN, "initial_state": "c"}, 80, 40_000)
    vector = np.linalg.matrix_power(MATRIX, 500)[0]
    assert_counts(np.bincount(codes[-1], minlength=3), vector * 40_000)


def test_markov_stays_geometrically_long():
    codes = values("markov", CHAIN, 200, 2000)
    entered = (codes[99:129] == 1) & (codes[98:128] != 1)
    ticks, devices = np.nonzero(entered)
    stays = np.array([
        np.argmax(np.append(codes[99 + t :, d] != 1, True))
        for t, d in zip(ticks, devices, strict=True)
    ])
    longest = 12
    observed = np.bincount(np.minimum(stays, longest), minlength=longest + 1)[1:]
    law = [0.2 * 0.8 ** (k - 1) for k in range(1, longest)]
    assert_counts(observed, np.array([*law, 1 - sum(law)]) * len(stays))


def test_markov_by_time_moves_once_in_each_of_its_times():
    still = values("markov", {**CHAIN, "per": "1m"}, 240, 2000)
    moves = np.nonzero((np.diff(still, axis=0) != 0).any(axis=1))[0] + 1
    assert set(moves) == {n for n in range(1, 240) if (n + 1) % 12 == 0}
    slow = still[11::12]
    expected = _transitions(slow).sum(axis=1, keepdims=True) * MATRIX
    assert_counts(_transitions(slow), expected, lost=3)


def test_markov_by_time_is_the_same_chain_at_any_interval():
    law = {**CHAIN, "per": "30s"}
    often = values("markov", law, 120, 50, interval_us=5_000_000)
    seldom = values("markov", law, 10, 50, interval_us=60_000_000)
    assert (often[11::12] == seldom).all()


def test_spikes_come_as_often_as_they_say_and_half_of_them_up():
    found = values("spike", {"min": 10, "max": 20, "probability": 0.03}, 400, 1000)
    up, down = (found == 35).sum(), (found == -5).sum()
    assert_share(up + down, found.size, 0.03)
    assert_share(up, up + down, 0.5)
    rest = found[(found != 35) & (found != -5)]
    assert_distributed(rest, uniform_law(10, 20))
    hit = ((found == 35) | (found == -5)).astype(float)
    assert_white(hit)


@pytest.mark.parametrize("probability", [0, 1])
def test_spikes_can_be_never_or_always(probability):
    found = values("spike", {"min": 10, "max": 20, "probability": probability}, 100, 100)
    assert ((found < 10) | (found >= 20)).all() == bool(probability)
    assert ((found < 10) | (found >= 20)).any() == bool(probability)


def test_where_a_spike_strikes_tells_nothing_of_the_values_between():
    often = values("spike", {"min": 10, "max": 20, "probability": 0.5}, 100, 100)
    never = values("spike", {"min": 10, "max": 20, "probability": 0}, 100, 100)
    quiet = (often >= 10) & (often < 20)
    assert (often[quiet] == never[quiet]).all()
    assert_independent(quiet.astype(float), never)


def test_the_parts_of_a_sum_do_not_correlate():
    part = {"type": "gaussian", "mean": 0, "stddev": 1}
    found = values("composite", {"parts": [part, part, part]}, 200, 1000)
    assert_variance(found, 3.0, 0.0)


def test_fields_of_one_device_do_not_correlate():
    law = {"mean": 0, "stddev": 1}
    one, two = (values("gaussian", law, 100, 1000, field=name) for name in ("a", "b"))
    assert_independent(one, two)


def test_devices_that_share_a_label_see_the_same_values_and_others_do_not():
    from iotsim.seeding import shared_key
    from iotsim.signals.base import Site, Steps

    signal = build("brownian", {"volatility": 1})
    parents = np.array([shared_key(1, "site", name) for name in ("north", "south", "north")],
                       dtype=np.uint64)
    place = Site(parents, "wind", 5_000_000)
    steps = Steps(0, 500, slice(0, 3), np.zeros((500, 3), dtype=np.int64), {}, 5_000_000)
    found = signal.block(place).step(steps)
    assert (found[:, 0] == found[:, 2]).all()
    assert_independent(np.diff(found[:, 0]), np.diff(found[:, 1]))


# -- the edges, which chance meets once in 2**53 draws --------------------------------------------


def with_words(monkeypatch, module, words):
    """Make a signal's module draw these words, tick after tick, for every device."""
    monkeypatch.setattr(module, "squares64", lambda n, key: words[n])
    monkeypatch.setattr(
        module, "draws",
        lambda keys, counters: np.array([[words[int(n)]] for n in np.ravel(counters)],
                                        dtype=np.uint64) + np.zeros_like(keys),
    )


@pytest.mark.parametrize(
    ("word", "state"),
    [(0, "b"), (2**63 - 2**11, "b"), (2**63, "c"), (2**64 - 1, "c")],
)
def test_markov_never_takes_a_column_of_probability_zero_and_its_bounds_are_half_open(
    monkeypatch, word, state
):
    from iotsim.signals import markov

    row = [0, 0.5, 0.5, 0]
    signal = build("markov", {"states": ["a", "b", "c", "d"], "transition_matrix": [row] * 4})
    monkeypatch.setattr(markov, "squares64", lambda n, key: word)
    monkeypatch.setattr(markov, "draws",
                        lambda keys, counters: np.full((len(counters), len(keys)), word, np.uint64))
    assert alone(signal, 1) == [state]
    assert signal.categories[run(signal, 1)[0, 0]] == state


def test_markov_stays_where_the_rest_of_a_row_leaves_it(monkeypatch):
    from iotsim.signals import markov

    row = [0.5, 0.5 - 9e-10]
    law = {"states": ["a", "b"], "transition_matrix": [row, row], "initial_state": "a"}
    word = 2**64 - 1  # r is above the sum of the row
    monkeypatch.setattr(markov, "squares64", lambda n, key: word)
    monkeypatch.setattr(markov, "draws",
                        lambda keys, counters: np.full((len(counters), len(keys)), word, np.uint64))
    for initial in ("a", "b"):
        signal = build("markov", {**law, "initial_state": initial})
        assert alone(signal, 2) == [initial] * 2
        assert [signal.categories[code] for code in run(signal, 2)[:, 0]] == [initial] * 2


def test_a_draw_equal_to_the_probability_is_no_spike(monkeypatch):
    from iotsim.signals import spike

    words = [2**63 - 2**11, 2**63, 0]
    with_words(monkeypatch, spike, words)
    signal = build("spike", {"min": 0, "max": 1, "probability": 0.5})
    for found in (run(signal, 3)[:, 0].tolist(), alone(signal, 3)):
        assert found[0] == found[2] == 2.5
        assert found[1] == 0.5


def test_a_draw_of_zero_is_the_minimum_and_the_largest_stays_below_the_maximum(monkeypatch):
    from iotsim.signals import uniform

    with_words(monkeypatch, uniform, [0, 2**64 - 1])
    signal = build("uniform_random", {"min": 0.1, "max": 0.3})
    for found in (run(signal, 2)[:, 0].tolist(), alone(signal, 2)):
        assert found[0] == 0.1
        assert 0.2999 < found[1] < 0.3
