"""Parameters that cannot be: one clear line each, for every signal."""

import math
from dataclasses import fields

import numpy as np
import pytest

from iotsim.errors import IotsimError
from iotsim.signals.base import build, known
from tests.signal_rig import FLOW_CSV, SIGNALS

GAUSS = {"type": "gaussian", "mean": 0, "stddev": 1}
MARKOV = {"states": ["a", "b"], "transition_matrix": [[0.5, 0.5], [0, 1]]}
DEEP = GAUSS
for _ in range(7):
    DEEP = {"type": "composite", "parts": [DEEP]}

WRONG = [
    # type, parameters, what the text must say
    ("gausian", {}, "no signal called 'gausian'. Did you mean 'gaussian'? Known: brownian, "),
    ("gaussian", {}, "type='gaussian' lacks mean. Give it; it takes: mean, stddev."),
    ("gaussian", {"mean": 1}, "type='gaussian' lacks stddev."),
    ("gaussian", {"mean": 1, "stdev": 2}, "no parameter of 'gaussian' called 'stdev'. Did you "
                                          "mean 'stddev'? Known: mean, stddev."),
    ("gaussian", {"mean": 1, "stddev": -1},
     "stddev=-1 is out of range. Give a finite number, at least 0."),
    ("gaussian", {"mean": math.nan, "stddev": 1}, "mean=nan is not finite. Give a finite number."),
    ("gaussian", {"mean": math.inf, "stddev": 1}, "mean=inf is not finite."),
    ("gaussian", {"mean": "20", "stddev": 1}, "mean='20' is not a number."),
    ("gaussian", {"mean": True, "stddev": 1}, "mean=True is not a number."),
    ("gaussian", {"mean": None, "stddev": 1}, "mean=None is not a number."),
    ("gaussian", {"mean": 10**400, "stddev": 1}, "is out of range."),
    ("gaussian", {"mean": 1e200, "stddev": 1}, "mean=1e+200 is beyond any measure."),
    ("brownian", {}, "type='brownian' lacks volatility."),
    ("brownian", {"volatility": -0.1}, "volatility=-0.1 is out of range."),
    ("brownian", {"volatility": 1, "mean_reversion": -1}, "mean_reversion=-1 is out of range."),
    ("brownian", {"volatility": 1, "min": 5, "max": 5}, "min=5 is not below max=5. Swap them."),
    ("brownian", {"volatility": 1, "start": math.nan}, "start=nan is not finite."),
    ("brownian", {"volatility": 1, "max": "9"}, "max='9' is not a number."),
    ("brownian", {"volatility": 1, "initial": 9}, "no parameter of 'brownian' called 'initial'."),
    ("diurnal", {"baseline": 1}, "type='diurnal' lacks amplitude."),
    ("diurnal", {"baseline": 1, "amplitude": 1, "peak_hour": 25},
     "peak_hour=25 is out of range. Give a finite number, at least 0, at most 24."),
    ("diurnal", {"baseline": 1, "amplitude": 1, "noise_dev": 1}, "called 'noise_dev'."),
    ("diurnal", {"baseline": 1, "amplitude": 1, "stddev": 1, "noise_stddev": 2}, "is given twice."),
    ("diurnal", {"baseline": 1, "amplitude": 1, "timezone": "Mars/Base"},
     "timezone='Mars/Base' is not a time zone. Give an IANA name such as 'Europe/Rome'."),
    ("diurnal", {"baseline": 1, "amplitude": 1, "timezone": "../../etc/passwd"},
     "is not a time zone."),
    ("uniform_random", {"min": 1}, "type='uniform_random' lacks max."),
    ("uniform_random", {"min": 1, "max": 1}, "min=1 is not below max=1."),
    ("uniform_random", {"min": 2, "max": math.inf}, "max=inf is not finite."),
    ("sine_wave", {"min": 2, "max": 1}, "min=2 is not below max=1."),
    ("sine_wave", {"min": 1, "max": 2, "period": "0s"}, "period='0s' is zero."),
    ("sine_wave", {"min": 1, "max": 2, "period": -1}, "period=-1 is negative."),
    ("spike", {"min": 1, "max": 2, "probability": 1.1}, "probability=1.1 is out of range."),
    ("spike", {"min": 1, "max": 2, "magnitude": -1}, "magnitude=-1 is out of range."),
    ("constant", {}, "min=None is missing. Give value, or min and max."),
    ("constant", {"min": 1}, "max=None is missing. Give value, or min and max."),
    ("constant", {"value": 1, "min": 0, "max": 2}, "value=1 contradicts min and max."),
    ("constant", {"value": "x"}, "value='x' is not a number."),
    ("static", {}, "type='static' lacks value."),
    ("static", {"value": math.nan}, "value=nan is not finite."),
    ("static", {"value": object}, "is not a JSON value."),
    ("static", {"value": {1, 2}}, "is not a JSON value."),
    ("static", {"value": 2**63}, "is out of range."),
    ("static", {"value": "x" * 70_000}, "is over 65,536 bytes of JSON."),
    ("markov", {"states": ["a"]}, "type='markov' lacks transition_matrix."),
    ("markov", {**MARKOV, "states": []}, "states=[] is empty or too long."),
    ("markov", {**MARKOV, "states": "ab"}, "states='ab' is not a list."),
    ("markov", {**MARKOV, "states": ["a", "a"]}, "states=['a', 'a'] names a state twice."),
    ("markov", {**MARKOV, "states": ["on", False]}, "states=False is not text. Put quotes"),
    ("markov", {**MARKOV, "states": ["a", 1]}, "states=1 is not text."),
    ("markov", {**MARKOV, "transition_matrix": [[1, 0]]}, "does not have 2 rows."),
    ("markov", {**MARKOV, "transition_matrix": [[0.5, 0.5], [1]]},
     "transition_matrix[1]=[1] does not have 2 columns."),
    ("markov", {**MARKOV, "transition_matrix": [[0.5, 0.25, 0.25], [0, 1, 0]]},
     "does not have 2 columns."),
    ("markov", {**MARKOV, "transition_matrix": [[0.5, 0.4], [0, 1]]},
     "transition_matrix[0]=[0.5, 0.4] sums to 0.9, not to 1. Mend the row of 'a'."),
    ("markov", {**MARKOV, "transition_matrix": [[1.5, -0.5], [0, 1]]},
     "transition_matrix[0][0]=1.5 is out of range."),
    ("markov", {**MARKOV, "transition_matrix": [[math.nan, 1], [0, 1]]}, "is not finite."),
    ("markov", {**MARKOV, "transition_matrix": None}, "does not have 2 rows."),
    ("markov", {**MARKOV, "initial_state": "c"},
     "initial_state: no state called 'c'. Known: a, b."),
    ("markov", {**MARKOV, "initial_state": ["a"]}, "initial_state: no state called ['a']."),
    ("markov", {**MARKOV, "per": "sometimes"}, "per='sometimes' is not a duration."),
    ("markov", {**MARKOV, "per": 0}, "per=0 is zero."),
    ("composite", {}, "type='composite' lacks parts."),
    ("composite", {"parts": []}, "parts=[] is empty or too long."),
    ("composite", {"parts": GAUSS}, "is not a list."),
    ("composite", {"parts": [3]}, "parts[0]=3 has no type."),
    ("composite", {"parts": [GAUSS] * 33}, "is empty or too long."),
    ("composite", {"op": "mean", "parts": [GAUSS]}, "op: no operation called 'mean'. Known: "),
    ("composite", {"parts": [GAUSS, {**GAUSS, "stddev": -1}]},
     "parts[1].stddev=-1 is out of range. Give a finite number, at least 0."),
    ("composite", {"parts": [{"type": "gausian"}]}, "parts[0]: no signal called 'gausian'. Did"),
    ("composite", {"parts": [{"type": "static", "value": "on"}]},
     "parts[0].type='static' makes text, not numbers."),
    ("composite", {"op": "chain", "parts": [GAUSS]}, "has no for."),
    ("composite", {"parts": [{**GAUSS, "for": "5s"}]}, "has a for, which only a chain knows."),
    ("composite", {"op": "chain", "parts": [{**GAUSS, "for": "0s"}]}, "parts[0].for='0s' is zero."),
    ("composite", {"parts": [DEEP]}, "is over 5 levels deep."),
    ("playback", {"path": FLOW_CSV}, "type='playback' lacks column."),
    ("playback", {"path": "nowhere.csv", "column": "a"}, "is not a file that can be read."),
    ("playback", {"path": 3, "column": "a"}, "path=3 is not a path."),
    ("playback", {"path": "a\0b.csv", "column": "a"}, "is not a path."),
    ("playback", {"path": "/etc", "column": "a"}, "is not a file that can be read."),
    ("playback", {"path": "/etc/passwd", "column": "root"}, "is neither CSV nor Parquet."),
    ("playback", {"path": FLOW_CSV, "column": "flo"},
     "column='flo' is not a column of numbers in flow.csv. Look at the file's header and types."),
    ("playback", {"path": FLOW_CSV, "column": "note"}, "is not a column of numbers in flow.csv."),
    ("playback", {"path": FLOW_CSV, "column": "flow", "start": "last"}, "no value of 'start'"),
    ("playback", {"path": FLOW_CSV, "column": "flow", "missing": 0}, "no value of 'missing'"),
    ("playback", {"path": FLOW_CSV, "column": "flow", "loop": "no"}, "is not true or false."),
    ("playback", {"path": FLOW_CSV, "column": "flow", "sha256": "00"}, "its values have changed."),
    ("depends_on", {}, "of=None is missing, and expression too. Give one of them."),
    ("depends_on", {"of": {"x": 1}, "expression": "x"}, "stands beside expression."),
    ("depends_on", {"of": {}}, "of={} is not a mapping of fields."),
    ("depends_on", {"of": "x"}, "of='x' is not a mapping of fields."),
    ("depends_on", {"of": {"x": "1"}}, "of.x='1' is not a number."),
    ("depends_on", {"expression": "x", "offset": 1}, "offset=1 belongs to of."),
    ("depends_on", {"of": {"x": 1}, "noise_stddev": -1}, "noise_stddev=-1 is out of range."),
]


@pytest.mark.parametrize(("kind", "parameters", "says"), WRONG,
                         ids=[f"{kind}: {says[:50]}" for kind, _, says in WRONG])
def test_what_cannot_be_is_one_line_that_says_what_may(kind, parameters, says):
    with pytest.raises(IotsimError) as caught:
        build(kind, parameters)
    text = str(caught.value)
    assert says in text
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_frozen(name):
    signal = build(*SIGNALS[name])
    with pytest.raises(AttributeError, match="cannot assign"):
        setattr(signal, fields(signal)[0].name, 3)


def test_numbers_of_numpy_are_numbers():
    assert build("gaussian", {"mean": np.float32(1.5), "stddev": np.int64(2)}).spec() == {
        "type": "gaussian", "mean": 1.5, "stddev": 2
    }
    matrix = np.array([[0.5, 0.5], [0, 1]])
    assert build("markov", {**MARKOV, "transition_matrix": matrix}) == build("markov", MARKOV)


def test_one_and_true_are_different_static_values():
    values = [build("static", {"value": value}) for value in (1, 1.0, True, "1", None)]
    assert len(set(values)) == 5
    assert [signal.kind for signal in values] == ["int", "float", "bool", "text", "json"]


def test_a_static_value_is_a_copy():
    given = {"a": [1]}
    signal = build("static", {"value": given})
    given["a"].append(2)
    assert signal.value == {"a": [1]}


def test_every_signal_says_what_it_is():
    for name, cls in known().items():
        assert cls.type_name == name
        assert "Parameters\n" in cls.__doc__, name


def test_a_csv_over_its_bound_is_refused(tmp_path, monkeypatch):
    from iotsim.signals import playback

    monkeypatch.setattr(playback, "ROWS_MAX", 5)
    with pytest.raises(IotsimError, match="has over 10,000,000 rows"):
        build("playback", {"path": FLOW_CSV, "column": "flow"})


@pytest.mark.parametrize("content", [b"", b"a\n", b"a\n\xff\xfe\n", b"a\n1,2\nx\n", b"PAR1" * 9,
                                     b'a\n"' + b"x" * 200_000])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV"])
def test_a_damaged_file_is_one_line_without_its_content(tmp_path, content, suffix):
    path = tmp_path / f"secret{suffix}"
    path.write_bytes(content)
    with pytest.raises(IotsimError) as caught:
        build("playback", {"path": str(path), "column": "a"})
    assert "\n" not in str(caught.value)
    assert "xxx" not in str(caught.value)
