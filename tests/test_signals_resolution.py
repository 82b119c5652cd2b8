"""Rounding to what a sensor can resolve."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsim.errors import BadValue
from iotsim.signals.resolution import Resolution

STEPS = [1e-9, 0.001, 0.01, 0.1, 0.125, 0.2, 0.25, 0.5, 1, 2, 5, 10, 1000]


@pytest.mark.parametrize("step", STEPS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(value=st.one_of(st.floats(-1e9, 1e9), st.floats(allow_nan=False, allow_infinity=False),
                       st.sampled_from([0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1e-12, 0.05, 1.005])))
def test_a_block_rounds_like_one(step, value):
    resolution = Resolution.of(step)
    with np.errstate(over="ignore"):
        many = resolution.many(np.array([value]))[0]
    assert float(many).hex() == resolution.one(value).hex()


@pytest.mark.parametrize("step", STEPS)
@given(value=st.floats(-1e5, 1e5))
@settings(max_examples=40, derandomize=True)
def test_the_result_is_the_float_nearest_to_a_whole_number_of_steps(step, value):
    found = Resolution.of(step).one(value)
    exact = Fraction(step).limit_denominator(10**9)
    count = round(Fraction(found) / exact)
    assert found == float(count * exact)
    slack = abs(Fraction(value)) / 2**52  # value · k is rounded once before rint
    assert abs(Fraction(value) - count * exact) <= exact / 2 + slack


def test_halves_go_to_the_even_neighbour():
    one = Resolution.of(1)
    assert [one.one(x) for x in (0.5, 1.5, 2.5, -0.5, -1.5)] == [0, 2, 2, 0, -2]


def test_minus_zero_is_zero_and_null_stays_null():
    resolution = Resolution.of(0.1)
    assert math.copysign(1, resolution.one(-0.01)) == 1
    assert math.isnan(resolution.one(math.nan))
    found = resolution.many(np.array([-0.01, math.nan]))
    assert math.copysign(1, found[0]) == 1
    assert math.isnan(found[1])


@pytest.mark.parametrize("step", [0, -1, 0.3, 0.7, 2.5, math.nan, math.inf, "0.1", True, None])
def test_a_step_that_does_not_divide_one_is_refused(step):
    with pytest.raises(BadValue, match="resolution="):
        Resolution.of(step)
