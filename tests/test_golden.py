"""Golden digests: the bytes that a seed gives on every machine.

A digest that changes is a bug, or needs a new generator version and a new line here. They are
checked again without numpy's SIMD code and with another OpenBLAS kernel.
"""

import ast
import os
import subprocess
import sys

import pytest

from iotsim import Fleet, Profile

GOLDEN = {
    "air_quality": "a4d7384ed68903ba3cd2fe0211fcbbf5",
    "industrial_valve": "fd7c02b3606f9f5accfa8701f5371e80",
    "pump": "a9b61b25fbf6263ad568d3ff200b5a93",
    "smart_lock": "43e939d3fdd1379346fce878137a6f39",
    "smart_meter": "43d2eaeb9d37703f346b4cac3783b731",
    "temperature_sensor": "d6727f6e3552b7ecd97eddf638bc5dfb",
    "vehicle_tracker": "e0d250a3ca3fff75c68d2c0b85ff3de5",
    "wearable": "f480b79903e7cd927161c5c8cc5aee64",
}


def digest(profile):
    return Fleet("golden", seed=42).add(profile, count=12).generate("3h").digest


def test_every_bundled_profile_has_a_golden_digest():
    assert sorted(GOLDEN) == Profile.names()


@pytest.mark.parametrize("profile", sorted(GOLDEN))
def test_the_bytes_of_a_profile_have_not_changed(profile):
    assert digest(profile) == GOLDEN[profile]


def test_the_bytes_do_not_depend_on_simd_or_blas():
    import numpy as np

    features = np._core._multiarray_umath.__cpu_dispatch__
    code = (
        "from tests.test_golden import GOLDEN, digest\n"
        "assert {name: digest(name) for name in GOLDEN} == GOLDEN\n"
        "import numpy as np; print(sorted(k for k, v in "
        "np._core._multiarray_umath.__cpu_features__.items() if v))"
    )
    environment = {
        **os.environ,
        "NPY_DISABLE_CPU_FEATURES": " ".join(features),
        "OPENBLAS_CORETYPE": "Prescott",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(os.path.dirname(__file__))]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120,
                          capture_output=True, text=True)
    assert not set(features) & set(ast.literal_eval(done.stdout))
