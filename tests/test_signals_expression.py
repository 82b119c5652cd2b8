"""The little language of depends_on: what it computes and what it will not."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsim.errors import BadValue
from iotsim.signals.base import build
from iotsim.signals.expression import parse
from tests.signal_rig import alone, run

RIGHT = [
    ("1 + 2 * 3", 7.0),
    ("-x + +y", -1.0),
    ("x - y - 1", 0.0),
    ("(x + y) / 2", 2.5),
    ("min(x, y)", 2.0),
    ("max(x, y, 10)", 10.0),
    ("min(100, 2*x + where(y < 20, 5, 0))", 11.0),
    ("where(1 < y <= 2 < x, 1, 0)", 1.0),
    ("where(x == 3, 1, 0) + where(x != 3, 10, 0)", 1.0),
    ("where(x > y, where(y >= 2, 4, 5), 6)", 4.0),
    ("1e3 * .5", 500.0),
    ("température", 4.0),
    ("  x  ", 3.0),
]
VALUES = {"x": 3.0, "y": 2.0, "température": 4.0, "nothing": math.nan, "zero": 0.0}


def both(text, values):
    """Return what the array and the single evaluation give; they must agree to the bit."""
    signal = build("depends_on", {"expression": text})
    block = run(signal, 1, fields={name: np.full((1, 1), x) for name, x in values.items()})[0, 0]
    single = alone(signal, 1, fields={name: [x] for name, x in values.items()})[0]
    assert float(block).hex() == float(single).hex()
    return float(single)


@pytest.mark.parametrize(("text", "value"), RIGHT)
def test_an_expression_is_ordinary_arithmetic(text, value):
    assert both(text, VALUES) == value


@pytest.mark.parametrize(
    "text",
    ["x / zero", "zero / zero", "1 / (x - 3)", "nothing + 1", "min(nothing, 1)", "max(1, nothing)",
     "x * 1e100 * 1e100 * 1e100 * 1e100", "where(x > 1, nothing, 2)", "min(100, 1 / zero)"],
)
def test_a_division_by_zero_an_overflow_and_null_give_null(text):
    assert math.isnan(both(text, VALUES))


def test_a_comparison_with_null_is_false():
    assert both("where(nothing < 1, 10, 20)", VALUES) == 20.0
    assert both("where(nothing == nothing, 10, 20)", VALUES) == 20.0


def test_a_branch_that_is_not_taken_does_no_harm():
    assert both("where(zero == 0, 7, 1 / zero)", VALUES) == 7.0


WRONG = [
    "", "x +", "x ** 2", "2 ** 99999999", "x % 2", "x // 2", "x @ y", "~x", "not x", "x and y",
    "x or y", "x if y else 1", "x.real", "x[0]", "[1, 2]", "(1, 2)", "{1: 2}", "lambda: 1",
    "abs(x)", "print(1)", "__import__('os').system('id')", "min(x)", "max()", "where(x, 1, 2)",
    "where(x < 1, 2)", "min(x, y, key=1)", "min(*x, 1)", "'text'", "True", "None", "1j", "f'{x}'",
    "(x := 1)", "x < y", "x + (x < y)", "where(x in y, 1, 2)", "where(x is y, 1, 2)", "x; y",
    "import os", "1e400", "x\n+ y; z", "min", "(" * 300 + "x" + ")" * 300, "-" * 500 + "x",
    "x" * 1001, "+".join(["x"] * 300), "x\0", "await x", "yield", "...", "1e101", "\ud800",
]


@pytest.mark.parametrize("text", [w for w in WRONG if w != "min"])
def test_nothing_else_is_read(text):
    with pytest.raises(BadValue) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("expression=")


@pytest.mark.parametrize("given", [3, None, ["x"], b"x"])
def test_an_expression_is_text(given):
    with pytest.raises(BadValue, match="is not text"):
        parse(given)


def test_names_are_listed_once_and_in_order():
    assert parse("b + a * where(c < b, a, d)").names == ("b", "a", "c", "d")


NAMES = st.sampled_from(["x", "y", "z", "1.5", "0", "7"])
TREES = st.recursive(
    NAMES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(
            lambda p: f"{p[0]}({p[1]}, {p[2]})"),
        st.tuples(inner, st.sampled_from(["<", "<=", "==", "!=", ">", ">="]), inner, inner).map(
            lambda p: f"where({p[0]} {p[1]} {p[2]}, {p[3]}, {p[0]})"),
        inner.map(lambda p: f"-{p}"),
    ),
    max_leaves=12,
)
FLOATS = st.one_of(st.just(math.nan), st.just(0.0), st.just(-0.0),
                   st.floats(-1e100, 1e100, allow_nan=False))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(text=TREES, x=FLOATS, y=FLOATS, z=FLOATS)
def test_arrays_and_single_floats_agree_to_the_bit(text, x, y, z):
    both(text, {"x": x, "y": y, "z": z})


def test_fields_of_every_number_kind_can_be_read():
    signal = build("depends_on", {"expression": "count + where(open > 0, 10, 0)"})
    fields = {"count": np.array([[3]], dtype=np.int64), "open": np.array([[True]])}
    assert run(signal, 1, fields=fields)[0, 0] == 13.0
    assert alone(signal, 1, fields={"count": [3], "open": [True]}) == [13.0]


def test_a_missing_field_is_named():
    signal = build("depends_on", {"of": {"x": 1}})
    with pytest.raises(LookupError, match="depends_on: no field called 'x'"):
        alone(signal, 1, fields={"y": [1.0]})
