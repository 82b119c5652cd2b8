"""The normal table, certified by arithmetic and not by sampling alone."""

import hashlib
import math
from importlib.resources import files

import mpmath
import numpy as np
import pytest

from iotsim.normals import BINS_PER_OCTAVE_BITS, OCTAVES, normal, normal_many, table
from iotsim.seeding import draws
from tests import oracles as slow
from tests.late import Late
from tests.statistics_rig import (
    assert_distributed,
    assert_mean,
    assert_share,
    assert_variance,
    normal_beyond,
    normal_law,
)

special = Late("scipy.special")
SHA256 = "bef0ac95cdef73ed153d25d30d981acbb7e9ecd6d825cc277484883a41ec89b2"


def words_of(rows, sign=0):
    """Return words whose tail probability is (row + ½) / 2**53."""
    return (np.asarray(rows, dtype=np.uint64) << np.uint64(12)) | np.uint64(sign)


def edges():
    """Return the first, second and last row of every bin of every octave."""
    found = [0, 1, 2, 3]
    for octave in range(OCTAVES - 1):
        cuts = 1 << BINS_PER_OCTAVE_BITS
        marks = [2**octave + (2**octave * i) // cuts for i in range(cuts + 1)]
        found += [row for mark in marks for row in (mark - 1, mark, mark + 1)]
    return sorted({row for row in found if 0 <= row < 2**52})


def test_the_table_is_the_one_that_was_certified():
    raw = files("iotsim").joinpath("normals.npy").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == SHA256
    assert table().shape == (3, OCTAVES << BINS_PER_OCTAVE_BITS)


def test_every_edge_of_every_bin_is_within_2e_8_of_the_quantile():
    rows = edges()
    assert len(rows) > 15_000
    found = normal_many(words_of(rows))
    truth = -special.ndtri((np.array(rows, dtype=np.float64) + 0.5) / 2**53)
    assert np.abs(found - truth).max() < 2e-8


def test_random_points_of_every_octave_are_within_2e_8_of_the_quantile():
    rng = np.random.default_rng(1)
    rows = np.concatenate([
        rng.integers(2**octave, 2 ** (octave + 1), 2000) for octave in range(52)
    ])
    found = normal_many(words_of(rows))
    truth = -special.ndtri((rows + 0.5) / 2**53)
    assert np.abs(found - truth).max() < 2e-8


@pytest.mark.parametrize("row", [0, 1, 5, 1000, 2**20 + 7, 2**40 + 1, 2**51, 2**52 - 1])
def test_mpmath_agrees(row):
    with mpmath.workdps(30):
        tail = mpmath.ncdf(-mpmath.mpf(normal(row << 12)))
    assert float(tail) == pytest.approx((row + 0.5) / 2**53, rel=2e-7)
    assert normal(row << 12) == pytest.approx(slow.normal(row << 12), abs=2e-8)


def test_a_larger_tail_never_gives_a_larger_value():
    rows = np.array(edges(), dtype=np.uint64)
    found = normal_many(words_of(rows))
    assert (np.diff(found) <= 0).all()
    rng = np.random.default_rng(2)
    more = np.sort(np.concatenate([rng.integers(0, 2**k, 20_000) for k in range(8, 53, 4)]))
    assert (np.diff(normal_many(words_of(more))) <= 0).all()


def test_the_lowest_bit_is_the_sign_and_nothing_else():
    rows = edges()
    assert (normal_many(words_of(rows)) == -normal_many(words_of(rows, 1))).all()
    noise = words_of(rows) | np.uint64(0xFFE)  # the eleven bits that nothing reads
    assert (normal_many(noise) == normal_many(words_of(rows))).all()


def test_the_reach_is_8_2_sigma():
    assert normal(0) == pytest.approx(8.2927, abs=1e-3)
    assert normal(2**64 - 1) <= 0
    assert abs(normal(2**64 - 2)) < 1e-7


def test_one_word_gives_the_bits_of_a_block():
    rng = np.random.default_rng(3)
    rows = np.concatenate([np.array(edges(), dtype=np.uint64),
                           *(rng.integers(0, 2**k, 500, dtype=np.uint64) for k in range(1, 53))])
    words = np.concatenate([words_of(rows), words_of(rows, 1)])
    found = normal_many(words)
    assert found.tobytes() == np.array([normal(word) for word in words.tolist()]).tobytes()


def test_the_moments_are_exact_by_quadrature():
    # ∫ z^k dΦ over both signs, by Gauss and Legendre within each bin of p.
    nodes, weights = np.polynomial.legendre.leggauss(8)
    total = {2: 0.0, 4: 0.0}
    c0, c1, c2 = table()
    cuts = 1 << BINS_PER_OCTAVE_BITS
    octave = np.repeat(np.arange(-1, OCTAVES - 1), cuts)
    scale = 2.0 ** (octave - 53)
    for node, weight in zip(nodes, weights, strict=True):
        g = 1 + (node + 1) / 2
        z = c0 + g * (c1 + g * c2)
        share = scale / cuts * weight / 2
        for power in total:
            total[power] += 2 * (share * z**power).sum()
    assert total[2] == pytest.approx(1, abs=1e-7)
    assert total[4] == pytest.approx(3, abs=1e-6)


def test_a_sample_of_four_million_is_normal_also_in_its_tails():
    keys = np.arange(1, 4001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    z = normal_many(draws(keys, np.arange(1000, dtype=np.uint64)[:, None])).ravel()
    assert_mean(z, 0, 1)
    assert_variance(z, 1, 0)
    assert_mean(z**3, 0, math.sqrt(15))
    assert_mean(z**4, 3, math.sqrt(96))
    assert_distributed(z, normal_law())
    for sigmas in (3, 4, 4.5, 5):
        assert_share((np.abs(z) > sigmas).sum(), z.size, 2 * normal_beyond(sigmas))
