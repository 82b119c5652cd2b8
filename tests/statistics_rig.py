"""Tests of distributions with a stated rate of false alarm: 1e-9 each, seeds fixed."""

import math
from statistics import NormalDist

import numpy as np

from tests.late import Late

special = Late("scipy.special")  # scipy.stats takes four times as long to import
FALSE_ALARM = 1e-9
Z_MAX = -NormalDist().inv_cdf(FALSE_ALARM / 2)  # 6.1 standard errors


def normal_law(mean=0.0, stddev=1.0):
    """The cumulative normal law."""
    return lambda x: special.ndtr((np.asarray(x) - mean) / stddev)


def normal_beyond(x):
    """How probable a standard normal value over `x` is."""
    return special.ndtr(-np.asarray(x))


def normal_limit(probability):
    """What a standard normal value is over so probably."""
    return -special.ndtri(probability)


def uniform_law(low, high):
    """The cumulative uniform law."""
    return lambda x: np.clip((np.asarray(x) - low) / (high - low), 0, 1)


def chi_square_beyond(x, freedom):
    """How probable a chi-square over `x` is."""
    return special.chdtrc(freedom, x)


def binomial_limit(share, n, probability):
    """The least count that is not exceeded so probably."""
    count = np.ceil(special.bdtrik(share, n, probability))
    less = max(count - 1, 0)
    return less if special.bdtr(less, n, probability) >= share else count


def assert_distributed(values, cdf):
    """Dvoretzky, Kiefer, Wolfowitz: the empirical law is nowhere further from `cdf` than chance."""
    ordered = np.sort(np.asarray(values).ravel())
    n = len(ordered)
    expected = cdf(ordered)
    steps = np.arange(n + 1) / n
    distance = max((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    limit = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * n))
    assert distance <= limit, f"distance {distance:.5f} over {limit:.5f} for n={n}"


def assert_mean(values, expected, stddev):
    """The mean is within chance of `expected`, given the true spread of one value."""
    values = np.asarray(values).ravel()
    z = (values.mean() - expected) / (stddev / math.sqrt(len(values)))
    assert abs(z) < Z_MAX, f"mean {values.mean():.6g}, not {expected:.6g}: z = {z:.1f}"


def assert_variance(values, expected, mean=None):
    """The variance of independent normal values is within chance of `expected`."""
    values = np.asarray(values).ravel()
    mean = values.mean() if mean is None else mean
    ratio = ((values - mean) ** 2).mean() / expected
    z = (ratio - 1) / math.sqrt(2 / len(values))
    assert abs(z) < Z_MAX, f"variance is {ratio:.5f} of what it should be: z = {z:.1f}"


def assert_share(hits, n, probability):
    """A count is binomial with this probability."""
    low, high = (binomial_limit(share, n, probability)
                 for share in (FALSE_ALARM / 2, 1 - FALSE_ALARM / 2))
    assert low <= hits <= high, f"{hits} of {n}, not {probability:.5g}: allowed {low:g} to {high:g}"


def assert_counts(observed, expected, lost=1):
    """Counts agree with expected ones: a G-test with `lost` degrees of freedom less than cells."""
    observed, expected = np.ravel(observed).astype(float), np.ravel(expected).astype(float)
    assert (observed[expected == 0] == 0).all(), "something happened that cannot"
    there = observed > 0
    g = 2 * (observed[there] * np.log(observed[there] / expected[there])).sum()
    p = chi_square_beyond(g, (expected > 0).sum() - lost)
    assert p > FALSE_ALARM, f"G = {g:.1f}, p = {p:.1e}: {observed} against {expected}"


def assert_white(columns, lags=20):
    """No lag of series of independent values (time down) correlates."""
    columns = np.asarray(columns)
    centred = columns - columns.mean()
    variance = (centred**2).mean()
    limit = normal_limit(FALSE_ALARM / 2 / lags)
    for lag in range(1, lags + 1):
        products = centred[:-lag] * centred[lag:]
        z = products.mean() / variance * math.sqrt(products.size)
        assert abs(z) < limit, f"lag {lag} correlates: z = {z:.1f}"


def assert_independent(first, second):
    """Two samples do not correlate."""
    r = np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]
    z = r * math.sqrt(np.size(first))
    assert abs(z) < Z_MAX, f"correlation {r:.5f}: z = {z:.1f}"
