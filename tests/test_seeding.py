"""Streams: known answers, avalanche, distinctness, and no trace of names, seeds or order.

False alarm of each statistical test: 1e-9, at fixed seeds.
"""

import itertools
import math
import shutil
import subprocess
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsim import seeding
from iotsim.normals import normal_many
from iotsim.seeding import (
    check_seed,
    combine,
    combine_many,
    device_key,
    device_keys,
    draws,
    fnv1a,
    fnv1a_many,
    mix,
    mix_many,
    scaled,
    shared_key,
    squares64,
    stream_key,
    stream_keys,
    unit,
    unit_many,
)
from tests import oracles as slow
from tests.statistics_rig import (
    FALSE_ALARM,
    Z_MAX,
    assert_counts,
    assert_variance,
    chi_square_beyond,
    normal_limit,
)

WORD = st.integers(0, 2**64 - 1)


def key_of(seed=42, device="device-001", field="temperature", version=1):
    return stream_key(device_key(seed, device), field, version)


# -- known answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", 0xCBF29CE484222325),
        ("a", 0xAF63DC4C8601EC8C),
        ("temperature", 0x556575C1CE107955),
        ("humidity", 0x0DB801B199CB3940),
        ("battery", 0x651A621374033D4E),
        ("device-001", 0x668841AC683CE3C1),
    ],
)
def test_fnv_has_the_values_of_the_contract(name, value):
    assert fnv1a(name) == value == slow.fnv(name)
    assert fnv1a_many([name, "other"])[0] == value


def test_the_contracts_own_seed_is_the_xor_that_we_do_not_use():
    master_42 = 42 ^ fnv1a("device-001")
    assert master_42 == 7388227397440300011
    assert master_42 ^ fnv1a("temperature") == 3741704510958770878
    assert key_of() not in (master_42, 3741704510958770878)


def test_splitmix_has_its_published_values():
    # Vigna's splitmix64.c with state 0: the first outputs are mix(γ), mix(2γ), mix(3γ).
    gamma = seeding.GOLDEN
    found = [mix(i * gamma % 2**64) for i in (1, 2, 3)]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@settings(max_examples=100, derandomize=True)
@given(counter=WORD, key=WORD)
def test_squares_is_the_papers_routine_for_any_counter_and_key(counter, key):
    assert squares64(counter, key) == slow.squares(counter, key)
    block = draws(np.array([key], dtype=np.uint64), np.array([[counter]], dtype=np.uint64))
    assert int(block[0, 0]) == squares64(counter, key)


def test_squares_agrees_with_an_independent_implementation():
    randomgen = pytest.importorskip("randomgen")
    for device in range(300):
        key = key_of(device=f"d{device}")
        theirs = randomgen.Squares(key=key, counter=0).random_raw(20)
        ours = draws(np.array([key], dtype=np.uint64), np.arange(20)[:, None])[:, 0]
        assert (theirs == ours).all()


@settings(max_examples=100, derandomize=True)
@given(names=st.lists(st.text(max_size=20), min_size=1, max_size=20),
       seed=st.integers(0, 2**63 - 1))
def test_keys_of_a_block_are_the_keys_of_each_device(names, seed):
    names = [name.encode("utf-8", "replace").decode() for name in names]
    parents = device_keys(seed, names)
    assert parents.tolist() == [device_key(seed, name) for name in names]
    assert parents.tolist() == [slow.device(seed, name) for name in names]
    keys = stream_keys(parents, names[0], 3)
    assert keys.tolist() == [slow.stream(int(parent), names[0], 3) for parent in parents]


def test_names_that_end_in_zero_bytes_are_told_apart():
    assert len(set(fnv1a_many(["a", "a\0", "a\0\0", "", "\0"]).tolist())) == 5


@settings(max_examples=100, derandomize=True)
@given(word=WORD, name=WORD)
def test_one_and_many_are_the_same_functions(word, name):
    words = np.array([word], dtype=np.uint64)
    assert int(mix_many(words)[0]) == mix(word) == slow.splitmix(word)
    assert int(combine_many(words, name)[0]) == combine(word, name)
    assert float(unit_many(words)[0]).hex() == unit(word).hex()


def test_units_lie_in_0_to_1_and_never_reach_it():
    assert unit(0) == 0.0
    assert unit(2**64 - 1) == 1 - 2**-53


@pytest.mark.parametrize("limit", [1, 2, 3, 1000, 2**52])
def test_scaled_words_stay_below_the_limit(limit):
    words = np.array([0, 2**63, 2**64 - 1], dtype=np.uint64)
    found = scaled(words, limit)
    assert found[0] == 0
    assert (found < limit).all()


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", True, None])
def test_a_seed_is_a_whole_number_of_63_bits(seed):
    with pytest.raises(ValueError, match="seed="):
        check_seed(seed)


# -- avalanche -----------------------------------------------------------------------------------


def _flips(before, after):
    """Return, for each output bit, how often it differs."""
    changed = np.ascontiguousarray(before ^ after).view(np.uint8)
    return np.unpackbits(changed.reshape(-1, 8), axis=1).mean(axis=0)


def test_every_bit_of_the_counter_moves_every_bit_of_the_draw():
    keys = device_keys(1, [f"d{i}" for i in range(40_000)]) | np.uint64(1)
    counters = mix_many(np.arange(40_000, dtype=np.uint64))
    for bit in range(64):
        flipped = counters ^ np.uint64(1 << bit)
        share = _flips(draws(keys, counters), draws(keys, flipped))
        assert np.abs(share - 0.5).max() < 0.015, bit  # 6 σ of 40,000 coins


def test_every_bit_of_small_counters_moves_every_bit_of_the_draw():
    keys = device_keys(1, [f"d{i}" for i in range(100_000)]) | np.uint64(1)
    total = np.zeros(64)
    for n, bit in itertools.product(range(4), range(6)):
        here, there = np.uint64([n]), np.uint64([n ^ (1 << bit)])
        total += _flips(draws(keys, here), draws(keys, there))
    assert np.abs(total / 24 - 0.5).max() < 0.01


@pytest.mark.parametrize("field", ["temperature", "humidity", "f"])
def test_every_bit_of_a_device_key_moves_every_bit_of_the_draw(field):
    parents = device_keys(1, [f"d{i}" for i in range(40_000)])
    first = np.zeros(1, dtype=np.uint64)
    base = draws(stream_keys(parents, field, 1), first)
    for bit in range(0, 64, 3):
        moved = draws(stream_keys(parents ^ np.uint64(1 << bit), field, 1), first)
        assert np.abs(_flips(base, moved) - 0.5).max() < 0.015, bit


def test_the_last_character_of_a_name_moves_every_bit_of_its_key():
    left = device_keys(1, [f"device-{i:05d}a" for i in range(100_000)])
    right = device_keys(1, [f"device-{i:05d}b" for i in range(100_000)])
    assert np.abs(_flips(left, right) - 0.5).max() < 0.01


def test_the_last_bit_of_a_seed_moves_every_bit_of_a_key():
    seeds = range(0, 20_000, 2)
    left = np.array([device_key(seed, "d") for seed in seeds], dtype=np.uint64)
    right = np.array([device_key(seed + 1, "d") for seed in seeds], dtype=np.uint64)
    assert np.abs(_flips(left, right) - 0.5).max() < 6 * 0.5 / math.sqrt(10_000)


# -- uniform in every order in which a fleet reads them -------------------------------------------

N_DEVICES, N_TICKS = 2048, 256


@cache
def fleet_words(order):
    """Return draws of a fleet in the order that a name says, shape (-1,)."""
    parents = device_keys(7, [f"sensor-{i:04d}" for i in range(N_DEVICES)])
    ticks = np.arange(N_TICKS, dtype=np.uint64)[:, None]
    by_tick = draws(stream_keys(parents, "temperature", 1), ticks)
    if order == "tick by tick":
        return by_tick.ravel()
    if order == "device by device":
        return by_tick.T.ravel()
    if order == "fields interleaved":
        other = draws(stream_keys(parents, "humidity", 1), ticks)
        return np.stack([by_tick, other], axis=2).ravel()
    if order == "the same tick under many seeds":
        keys = np.array([key_of(seed) for seed in range(10_000)], dtype=np.uint64)
        return draws(keys, np.arange(50, dtype=np.uint64)[:, None]).ravel()
    assert order == "ticks far apart"
    return draws(stream_keys(parents, "t", 1), ticks << np.uint64(32)).ravel()


ORDERS = ["tick by tick", "device by device", "fields interleaved", "ticks far apart",
          "the same tick under many seeds"]


@pytest.mark.parametrize("shift", [0, 12, 28, 48, 56])
@pytest.mark.parametrize("order", ORDERS)
def test_bytes_from_the_top_to_the_bottom_are_uniform(order, shift):
    words = fleet_words(order)
    counts = np.bincount((words >> np.uint64(shift)).astype(np.uint8), minlength=256)
    assert_counts(counts, np.full(256, len(words) / 256))


@pytest.mark.parametrize("order", ORDERS)
def test_neighbours_fall_into_all_pairs_of_cells_alike(order):
    words = fleet_words(order)
    for shift in (60, 0):
        cells = ((words >> np.uint64(shift)) & np.uint64(15)).astype(np.int64)
        for lag in (1, N_DEVICES):
            pairs = np.bincount(cells[:-lag] * 16 + cells[lag:], minlength=256)
            assert_counts(pairs, np.full(256, (len(words) - lag) / 256))


@pytest.mark.parametrize("order", ORDERS)
def test_no_bit_prefers_a_side_and_no_two_bits_agree(order):
    words = fleet_words(order)[:200_000]
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).astype(np.float32) * 2 - 1
    n = len(bits)
    assert np.abs(bits.mean(axis=0)).max() * math.sqrt(n) < 6.8  # 64 of them
    products = bits.T @ bits / n
    np.fill_diagonal(products, 0)
    assert np.abs(products).max() * math.sqrt(n) < 7.2  # 2,016 pairs


# -- no two streams are one -----------------------------------------------------------------------


def test_400_000_streams_have_as_many_keys():
    parents = device_keys(3, [f"temperature_sensor-{i:04d}" for i in range(100_000)])
    keys = np.concatenate([stream_keys(parents, field, 1)
                           for field in ("temperature", "humidity", "battery", "temperature2")])
    assert len(np.unique(keys)) == 400_000
    assert len(np.unique(keys >> np.uint64(1))) == 400_000


def test_no_first_draw_stands_within_the_first_thousand_of_another_stream():
    keys = stream_keys(device_keys(3, [f"d{i}" for i in range(800)]), "t", 1)
    words = draws(keys, np.arange(1000, dtype=np.uint64)[:, None])
    assert len(np.unique(words)) == words.size


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("dev1", "2temp"), ("dev12", "temp")),  # joined they are equal
        (("a", "b"), ("b", "a")),
        (("same", "same"), ("", "")),
        (("d", "t"), ("d", "t\0")),
    ],
)
def test_names_that_look_alike_have_streams_that_do_not(one, other):
    assert key_of(device=one[0], field=one[1]) != key_of(device=other[0], field=other[1])


def test_close_seeds_and_swapped_names_have_distinct_streams():
    names = ["a", "b", "ab", "ba", "", "temperature", "device-0001", "device-0002"]
    keys = {
        key_of(seed, device, field, version)
        for seed in (0, 1, 2, 41, 42, 43, 2**62, 2**63 - 1)
        for device in names for field in names for version in (1, 2)
    }
    assert len(keys) == 8 * 8 * 8 * 2


def test_what_devices_share_is_no_devices_own():
    labels = ["site", "zone", "north", "a"]
    shared = {shared_key(seed, label, value)
              for seed in (1, 2) for label in labels for value in labels}
    own = {device_key(seed, name) for seed in (1, 2) for name in (*labels, "label", "shared label")}
    assert len(shared) == 32
    assert not shared & own


def _correlations(first, second):
    """Return the z of each column's correlation, for words as numbers in [0, 1)."""
    a, b = unit_many(first) - 0.5, unit_many(second) - 0.5
    return (a * b).mean(axis=0) * 12 * math.sqrt(len(a))


def test_a_thousand_random_pairs_of_streams_do_not_correlate():
    keys = stream_keys(device_keys(5, [f"d{i}" for i in range(2000)]), "t", 1)
    words = draws(keys, np.arange(2000, dtype=np.uint64)[:, None])
    z = _correlations(words[:, :1000], words[:, 1000:])
    assert np.abs(z).max() < normal_limit(FALSE_ALARM / 2 / 1000)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_neighbours_do_not_correlate_whatever_neighbour_means(lag):
    names = [f"d{i}" for i in range(1000)]
    parents, ticks = device_keys(5, names), np.arange(1000, dtype=np.uint64)[:, None]
    base = draws(stream_keys(parents, "t", 1), ticks)
    others = {
        "the next device": np.roll(base, 1, axis=1),
        "the next seed": draws(stream_keys(device_keys(6, names), "t", 1), ticks),
        "the next version": draws(stream_keys(parents, "t", 2), ticks),
        "another field": draws(stream_keys(parents, "u", 1), ticks),
        "a part of the field": draws(
            stream_keys(combine_many(parents, fnv1a("t")), "spike", 1), ticks),
    }
    for what, words in others.items():
        shifted = words[lag:] if lag else words
        z = _correlations(base[: len(shifted)], shifted)
        assert np.abs(z).max() < normal_limit(FALSE_ALARM / 2 / 1000), what
        assert abs(z.sum()) / math.sqrt(len(z)) < Z_MAX, what


def test_the_sum_over_a_fleet_at_one_tick_is_normal():
    keys = stream_keys(device_keys(9, [f"d{i}" for i in range(100_000)]), "t", 1)
    sums = np.array([normal_many(draws(keys, np.array([n], dtype=np.uint64))).sum()
                     for n in range(120)])
    assert_variance(sums, 100_000, 0.0)
    assert np.abs(sums).max() / math.sqrt(100_000) < normal_limit(FALSE_ALARM / 240)


def test_a_million_devices_of_one_tick_are_normal():
    keys = stream_keys(device_keys(9, [f"d{i}" for i in range(1_000_000)]), "t", 1)
    total = normal_many(draws(keys, np.array([17], dtype=np.uint64))).sum()
    assert abs(total) / 1000 < Z_MAX


# -- a standard battery ---------------------------------------------------------------------------


def fleet_stream(size_bytes):
    """Yield words of 4,096 devices, tick by tick, as bytes."""
    keys = stream_keys(device_keys(1, [f"sensor-{i:04d}" for i in range(4096)]), "t", 1)
    for first in range(0, size_bytes // (8 * 4096), 64):
        yield draws(keys, np.arange(first, first + 64, dtype=np.uint64)[:, None]).tobytes()


@pytest.fixture(scope="module")
def fleet_file(tmp_path_factory):
    """32 megabytes of a fleet."""
    path = tmp_path_factory.mktemp("battery") / "fleet.bin"
    with path.open("wb") as stream:
        stream.writelines(fleet_stream(2**25))
    assert path.stat().st_size == 2**25
    return path


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ent") is None,
                    reason="ent is not installed (apt-get install ent)")
@pytest.mark.parametrize("by_bits", [[], ["-b"]], ids=["bytes", "bits"])
def test_ent_finds_nothing_in_32_megabytes_of_a_fleet(by_bits, fleet_file):
    done = subprocess.run(["ent", "-t", *by_bits, fleet_file], capture_output=True, timeout=50,
                          check=True)
    figures = done.stdout.decode().splitlines()[1].split(",")
    _, n, entropy, chi_square, mean, pi, correlation = figures
    cells, expected_mean = (2, 0.5) if by_bits else (256, 127.5)
    count = int(n)
    p = chi_square_beyond(float(chi_square), cells - 1)
    assert FALSE_ALARM < p < 1 - FALSE_ALARM
    spread = math.sqrt((cells**2 - 1) / 12 / count)
    assert abs(float(mean) - expected_mean) < Z_MAX * spread + 5e-7  # ent prints six digits
    assert abs(float(correlation)) < Z_MAX / math.sqrt(count) + 5e-7
    points = 2**25 / 6
    assert abs(float(pi) - math.pi) < Z_MAX * 4 * math.sqrt(math.pi / 4 * 0.2147 / points) + 5e-7
    assert float(entropy) > math.log2(cells) - 1e-5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dieharder") is None,
                    reason="dieharder is not installed (apt-get install dieharder)")
@pytest.mark.parametrize(
    ("test", "samples"),
    [("0", 50), ("2", 5), ("3", 10), ("8", 50), ("10", 40), ("15", 50), ("100", 50),
     ("101", 10)],
    ids=["birthdays", "rank 32", "rank 6", "count 1s", "parking", "runs", "monobit", "sts runs"],
)
def test_dieharder_finds_nothing_in_32_megabytes_of_a_fleet(test, samples, fleet_file):
    done = subprocess.run(
        ["dieharder", "-g", "201", "-f", str(fleet_file), "-d", test, "-p", str(samples), "-c", ",",
         "-D", "pvalues", "-D", "test_name"],
        capture_output=True, text=True, timeout=55, check=True,
    )
    found = [float(line.split(",")[1]) for line in done.stdout.splitlines()
             if line.count(",") == 1]
    assert found, done.stdout
    assert all(1e-7 < p < 1 - 1e-7 for p in found), done.stdout
