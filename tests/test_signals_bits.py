"""The same bits: in a block and alone, for any cut, on any processor, today and next year."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsim.normals import normal, normal_many
from iotsim.seeding import device_key, draws, squares64, stream_key
from iotsim.signals.base import BUILT_IN, Signal, Steps, build, register
from iotsim.testing import check_signal, same_bits
from tests.signal_rig import SIGNALS, START_US, made, site

GOLDEN = Path(__file__).parent / "data" / "golden_signals.json"
DEVICES = ("device-001", "device-002", "pump/ü")


@pytest.mark.parametrize("name", SIGNALS)
def test_a_block_gives_the_bits_of_every_device_alone(name):
    check_signal(made(name))


@pytest.mark.parametrize("interval_us", [1, 1_000, 999_999, 3_600_000_000, 86_400_000_000])
@pytest.mark.parametrize("name", [n for n in SIGNALS if "by time" not in n])
def test_the_bits_agree_at_any_interval(name, interval_us):
    check_signal(made(name), interval_us=interval_us, seed=interval_us)


def test_every_built_in_signal_is_in_the_table():
    assert {kind for kind, _ in SIGNALS.values()} == set(BUILT_IN)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_rebuilt_from_its_spec(name):
    signal = made(name)
    spec = json.loads(json.dumps(signal.spec()))
    assert build(spec.pop("type"), spec) == signal


def _stepped(signal, place, fields, cuts, parts, numbered=False):
    source = signal.block(place)
    wide, ticks = len(place.parents), cuts[-1]
    out = None
    for low, high in itertools.pairwise(parts):
        for begin, end in itertools.pairwise(cuts):
            area = (slice(begin, end), slice(low, high))
            numbers = np.arange(begin, end)[:, None] + np.zeros(high - low, dtype=np.int64)
            steps = Steps(begin, end - begin, slice(low, high), _times(ticks, wide)[area],
                          {key: values[area] for key, values in fields.items()}, 5_000_000,
                          *((numbers, numbers * 5_000_000) if numbered else ()))
            found = source.step(steps)
            out = np.empty((ticks, wide), found.dtype) if out is None else out
            out[area] = found
    return out


def _times(ticks, wide):
    return (START_US + np.arange(ticks, dtype=np.int64)[:, None] * 5_000_000
            + np.arange(wide, dtype=np.int64) * 1_234)


@pytest.mark.parametrize("name", SIGNALS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_neither_a_cut_nor_numbers_for_each_device_change_a_bit(name, data):
    ticks, wide = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, ticks), max_size=5)) - {ticks}), ticks]
    parts = [0, *sorted(data.draw(st.sets(st.integers(1, wide), max_size=5)) - {wide}), wide]
    signal = made(name)
    rng = np.random.default_rng(1)
    fields = {need: rng.normal(size=(ticks, wide)).round(1) for need in signal.needs}
    place = site([f"d{i}" for i in range(wide)], seed=data.draw(st.integers(0, 2**63 - 1)))
    whole = _stepped(signal, place, fields, [0, ticks], [0, wide])
    assert same_bits(whole, _stepped(signal, place, fields, cuts, parts))
    assert same_bits(whole, _stepped(signal, place, fields, cuts, parts, numbered=True))


def test_no_device_changes_when_others_come_and_go():
    signal = made("brownian that returns")
    few = _stepped(signal, site(["a", "b"]), {}, [0, 30], [0, 2])
    many = _stepped(signal, site(["x", "a", "y", "z", "b"]), {}, [0, 30], [0, 5])
    assert same_bits(few, np.ascontiguousarray(many[:, [1, 4]]))


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_neither_keeps_nor_hands_out_an_array_of_another(name):
    signal = made(name)
    fields = {need: np.full((3, 2), 2.0) for need in signal.needs}
    place = site(["a", "b"])
    first, again = signal.block(place), signal.block(place)
    for n in range(3):
        steps = Steps(n, 1, slice(0, 2), _times(3, 2)[n : n + 1],
                      {key: values[n : n + 1] for key, values in fields.items()}, 5_000_000)
        spoilt, kept = first.step(steps), again.step(steps)
        assert same_bits(spoilt, kept)
        spoilt[...] = 1  # as rounding does, in place
    assert all((values == 2.0).all() for values in fields.values())


# -- golden vectors ---------------------------------------------------------------------------


def _hex(value):
    return value.hex() if isinstance(value, float) else value


def golden():
    """Return what this machine computes, as JSON: exact floats in hex."""
    words = [squares64(n, stream_key(device_key(42, d), "temperature", 1))
             for d in DEVICES for n in (0, 1, 2**40)]
    keys = np.array([stream_key(device_key(42, d), "temperature", 1) for d in DEVICES],
                    dtype=np.uint64)
    block = draws(keys, np.array([0, 1, 2**40], dtype=np.uint64)[:, None]).T.reshape(-1)
    assert [int(word) for word in block] == words
    edges = [*words, 0, 1, 2**63, 2**64 - 1, 4095, 4096]
    found = {"draws": words, "normals": [_hex(normal(word)) for word in edges], "signals": {}}
    many = normal_many(np.array(edges, dtype=np.uint64)).tolist()
    assert [_hex(z) for z in many] == found["normals"]
    for name in SIGNALS:
        signal = made(name)
        fields = {need: np.arange(9.0).reshape(3, 3) - 2 for need in signal.needs}
        values = _stepped(signal, site(DEVICES), fields, [0, 3], [0, 3])
        found["signals"][name] = [[_hex(x) for x in row] for row in values.tolist()]
    wide = _stepped(made("brownian that returns"), site([f"d{i}" for i in range(64)]), {},
                    [0, 200], [0, 64])
    found["wide"] = [_hex(x) for x in wide[-1, ::8].tolist()]
    return found


def test_the_golden_vectors_have_not_moved():
    assert golden() == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("core", ["Prescott", "Haswell"])
def test_the_golden_vectors_hold_without_the_processors_extras(core):
    dispatch = np._core._multiarray_umath.__cpu_dispatch__
    features = np._core._multiarray_umath.__cpu_features__
    off = " ".join(name for name in dispatch if features.get(name))
    assert off, "numpy dispatches to nothing on this machine, so the test proves nothing"
    code = ("import json, sys; import numpy as np; sys.path.insert(0, sys.argv[1]);"
            "from tests.test_signals_bits import golden; "
            "f = np._core._multiarray_umath.__cpu_features__;"
            "print(json.dumps([[n for n in sys.argv[2].split() if f.get(n)], golden()]))")
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": off, "OPENBLAS_CORETYPE": core}
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[1]), off],
        env=environment, capture_output=True, text=True, timeout=50, check=False,
    )
    assert done.returncode == 0, done.stderr
    still_on, found = json.loads(done.stdout)
    assert still_on == []
    assert found == json.loads(GOLDEN.read_text())


# -- the extension door -------------------------------------------------------------------------


def test_check_signal_names_a_signal_whose_block_and_single_differ():
    class Broken(type(made("gaussian"))):
        def single(self, place):
            return lambda tick: 1.0

    with pytest.raises(AssertionError, match="alone and"):
        check_signal(Broken(mean=0, stddev=1))


def test_check_signal_names_a_signal_that_depends_on_the_cut():
    class Source:
        def step(self, steps):
            return np.full(steps.shape, float(steps.ticks))

    class Broken(Signal):
        def block(self, place):
            return Source()

    with pytest.raises(AssertionError, match="depends on the cut"):
        check_signal(Broken())


def test_nobody_can_take_the_name_of_a_built_in_signal():
    with pytest.raises(ValueError, match="signal='gaussian' comes with iotsim"):
        register("gaussian")(Signal)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")
