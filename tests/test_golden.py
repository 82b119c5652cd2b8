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
    "air_quality": "41d1d05935c6454e3500fb1fc8e4d2b6",
    "industrial_valve": "2782c06f1de37fe57e660094a83ffbc6",
    "pump": "0ac8c459e899f30578448242e137d4cb",
    "smart_lock": "da649f53cfb588dfe2dac2dbaf9dca37",
    "smart_meter": "023f603167ed52ae46a89a4064417e61",
    "temperature_sensor": "25701af72bba76728e3cbd9d70318ed2",
    "vehicle_tracker": "cbc15add5ce69f614985d218743abbca",
    "wearable": "a462eeccdb9980858129e89d9b16499c",
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
