"""Golden digests: the bytes that a seed gives on every machine.

A digest that changes is a bug, or needs a new generator version and a new line here. They are
checked again without numpy's SIMD code and with another OpenBLAS kernel.
"""

import ast
import os
import subprocess
import sys

import pytest

from iotsim import Fleet, Profile, Scenario
from iotsim.faults.base import FAULTS as known_faults

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


FAULTS = {
    "battery_drain": {"drain_multiplier": 20},
    "clock_drift": {"drift_rate_ms_per_sec": 50},
    "data_corruption": {"corruption_rate": 0.25},
    "disconnect": {},
    "drift": {"rate_per_sec": 0.01},
    "dropout": {"probability": 0.3},
    "duplicate": {"probability": 0.3},
    "firmware_update": {"version": "2.0"},
    "latency_spike": {"latency_ms": 700},
    "noise": {"stddev": 2, "ramp": "1m"},
    "offset": {"by": 3, "probability": 0.5},
    "outlier": {"times": 2},
    "packet_loss": {"loss": 0.3},
    "rate": {"factor": 3},
    "reboot": {},
    "reconnect_storm": {},
    "reorder": {},
    "slow_down": {},
    "stuck": {},
    "suspend": {},
}
BROKEN = "1dd57b3691041bcdd3b875a582f32735"


def digest(profile):
    return Fleet("golden", seed=42).add(profile, count=12).generate("3h").digest


def broken_day():
    """Every fault once, on devices that change their interval, are stopped and are added."""
    fleet = Fleet("golden", seed=42).add("wearable", count=12)
    scenario = Scenario("golden", fleet).at("10m").set(where="count=4", every="7s")
    for i, (name, parameters) in enumerate(FAULTS.items()):
        scenario = scenario.at(f"{20 + 4 * i}m").inject(
            name, where="fraction=60%", duration="5m", **parameters)
    scenario = scenario.at("50m").stop(where="count=2").at("60m").add("smart_meter", count=3)
    return scenario.lasting("2h").generate().digest


def test_every_fault_is_in_the_broken_day():
    assert sorted(FAULTS) == sorted(known_faults)


def test_the_bytes_of_a_broken_day_have_not_changed():
    assert broken_day() == BROKEN


def test_every_bundled_profile_has_a_golden_digest():
    assert sorted(GOLDEN) == Profile.names()


@pytest.mark.parametrize("profile", sorted(GOLDEN))
def test_the_bytes_of_a_profile_have_not_changed(profile):
    assert digest(profile) == GOLDEN[profile]


def test_the_bytes_do_not_depend_on_simd_or_blas():
    import numpy as np

    features = np._core._multiarray_umath.__cpu_dispatch__
    code = (
        "from tests.test_golden import BROKEN, GOLDEN, broken_day, digest\n"
        "assert {name: digest(name) for name in GOLDEN} == GOLDEN\n"
        "assert broken_day() == BROKEN\n"
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
