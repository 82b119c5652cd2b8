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
    "air_quality": "4be5e2bc01fe2741bc6e4d679f2876e7",
    "industrial_valve": "9762d4232fbd674547c2d8cdd1bf0784",
    "pump": "6d1e1bcc71368adca4361d855e71d467",
    "smart_lock": "5d9778d709e8fe3cd577599bfd3c4bc5",
    "smart_meter": "870da0d5cbe4cadbc7665379ef563c61",
    "temperature_sensor": "30cb7d0b04e587340851e6efbf8ff439",
    "vehicle_tracker": "abcfdee0e567983bf8b0f7ffc6dce0e3",
    "wearable": "a937f37ef5a5e06b78b4aad276d1eb3d",
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
