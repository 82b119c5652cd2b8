"""Conditions: read over a whitelist, never executed; what they see, and what they say of it."""

import math
import time
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsim import IotsimError
from iotsim.condition_values import OBSERVED, OF_BROKERS
from iotsim.conditions import Expectation, condition_of
from iotsim.publishers.ledger import LedgerSnapshot

FIELDS = ("flow", "state", "ok")
DECLARED = {"flow": frozenset({"pump"}), "level": frozenset({"tank"})}


def rows():
    return pd.DataFrame({
        "device_type": pd.Categorical(["pump", "pump", "pump", "tank"]),
        "flow": [1.0, math.nan, 3.0, math.nan],
        "level": [math.nan, math.nan, math.nan, math.nan],
        "state": ["on", "on", "off", None],
        "ok": pd.array([True, False, True, None], dtype="boolean"),
        "my field": [5, 6, 7, 8],
    })


def view(**changes):
    facts = {"now_s": 60.0, "devices": 4, "by_type": {}, "by_state": {}, "readings": 9,
             "faults": {"disconnect": 2, "noise": 0}, "withheld": 1, "errors": 0, "live": False,
             "observed": None, "frame": rows}
    return SimpleNamespace(**{**facts, **changes})


def judge(text, **changes):
    return condition_of(text).judge(view(**changes), DECLARED)


@pytest.mark.parametrize("text", [
    "devices == 4", "count() == 4", "mean(flow) == 2", "min(flow) == 1", "max(flow) == 3",
    "std(flow) == 1", "last(flow) == 3", "nulls(flow) == 1", "nulls(level) == 1",
    "share(flow > 2) == 0.5", "share(flow > 0 and not flow > 2) == 0.5", "mean('my field') == 6.5",
    "faults == 1", "active(disconnect) == 2", "active(DISCONNECT) == 2", "active(stuck) == 0",
    "now == 60", "readings == 9 and withheld == 1 and errors == 0", "not devices > 4",
    "1 < mean(flow) < 3", "devices > 9 or devices + 1 >= 5", "-devices < 0", "+devices > 0",
    "(devices - 1) * 2 / 3 == 2", "devices != 5", "max(ok) == 1", "share(flow * 2 - 1 >= 5) == .5",
    "share(-flow < -2) == 0.5", "share(1 < 2) == 1",
])
def test_what_holds(text):
    assert judge(text)[0] == "passed", judge(text)


@pytest.mark.parametrize("text", [
    "devices / 0 > 1", "devices / 0 < 1", "mean(absent) > 0",
    "not (mean(absent) < 9) and faults > 9", "share(absent > 1) > 0", "count() > 4",
])
def test_what_does_not_hold(text):
    assert judge(text)[0] == "failed"


def test_an_empty_window_has_no_mean_and_no_readings():
    nothing = {"frame": lambda: rows()[:0]}
    assert judge("mean(flow) > 0", **nothing) == ("failed", "mean(flow)=nan")
    assert judge("count() == 0", **nothing) == ("passed", "count()=0")
    assert judge("share(flow > 1) >= 0", **nothing)[0] == "failed"


def test_it_says_what_it_saw_of_all_its_parts():
    assert judge("devices > 9 and mean(flow) < 5") == ("failed", "devices=4, mean(flow)=2")


def test_text_is_no_number():
    assert judge("mean(state) > 0") == ("failed", "state holds no numbers")


@pytest.mark.parametrize("name", OBSERVED)
def test_what_only_a_live_run_knows_is_not_evaluated_offline(name):
    status, seen = judge(f"devices > 0 or {name} == 0")
    assert (status, seen) == ("not evaluated", f"{name} is known of a live run only")


def test_live_it_is_evaluated():
    one = LedgerSnapshot(9, 0, 0, 6, 1, 2, 0, 0, 0, {}, {}, 0.01, 0.02, 0.03)
    two = LedgerSnapshot(1, 0, 0, 1, 0, 0, 0, 0, 0, {}, {}, math.nan, 0.05, 0.05)
    observed = SimpleNamespace(publishers={"a": one, "b": two}, late=4, lateness_p99_s=0.5)
    live = {"live": True, "observed": observed}
    assert judge("acknowledged == 7 and lost == 3", **live) == ("passed", "acknowledged=7, lost=3")
    assert judge("offered == 10 and refused == 1 and dropped == 2", **live)[0] == "passed"
    assert judge("queued + in_flight + unknown == 0 and late == 4", **live)[0] == "passed"
    assert judge("latency_p50 == 0.01 and latency_p99 == 0.05", **live)[0] == "passed"
    assert judge("lateness_p99 == 0.5", **live)[0] == "passed"


@pytest.mark.parametrize("name", OF_BROKERS)
def test_what_becomes_of_messages_is_not_evaluated_where_nothing_is_published(name):
    observed = SimpleNamespace(publishers={}, late=4, lateness_p99_s=0.5)
    status, seen = judge(f"{name} == 0 and late == 4", live=True, observed=observed)
    assert (status, seen) == ("not evaluated",
                              f"{name} is known of a run that publishes somewhere")


def test_lateness_is_known_of_any_live_run():
    observed = SimpleNamespace(publishers={}, late=4, lateness_p99_s=0.5)
    assert judge("late == 4 and lateness_p99 == 0.5", live=True, observed=observed)[0] == "passed"


def test_a_function_judges_the_view():
    assert condition_of(lambda seen: seen.devices == 4).judge(view(), {}) == ("passed", "")
    status, said = condition_of(lambda seen: 1 / 0).judge(view(), {})
    assert (status, said) == ("failed", "it raised ZeroDivisionError: division by zero")


async def coroutine(seen):
    return True


@pytest.mark.parametrize(("given", "said"), [
    ("", "is not a condition"),
    (5, "is not a condition"),
    ("a = 5", "is not an expression"),
    ("devices >", "is not an expression"),
    ("devices", "is a number, not a condition. Compare it, as in 'devices > 0'."),
    ("devices > 'x'", "cannot hold"),
    ("devices > True", "cannot hold"),
    ("(devices > 1) > 0", "compares what is no number"),
    ("devices and 1", "joins what is no condition"),
    ("devices ** 2 > 1", "cannot hold"),
    ("[1][0] > 0", "cannot hold"),
    ("devices.real > 0", "cannot hold"),
    ("devices in 5", "cannot hold"),
    ("(lambda: 1)() > 0", "cannot hold"),
    ("__import__('os').x > 0", "cannot hold"),
    ("__import__(os) > 0", "no function of a condition called '__import__'"),
    ("mean(flow, 1) > 0", "has mean() with 2 arguments"),
    ("count(flow) > 0", "has count() with 1 arguments"),
    ("mean(1) > 0", "where a name belongs"),
    ("mean > 0", "has mean without its brackets"),
    ("mean(flwo) > 0", "no field called 'flwo'. Did you mean 'flow'?"),
    ("acknowleged > 0", "Did you mean 'acknowledged'?"),
    ("share(devices > 1) > 0", "no field called 'devices'"),
    ("share(mean(flow) > 1) > 0", "no function of a condition called 'mean'"),
    ("active(disconect) > 0", "Did you mean 'disconnect'?"),
    ("devices > 1e999", "has a number that is too large"),
    ("devices > 1" + "0" * 400, "has a number that is too large"),
    ("(" * 400 + "1" + ")" * 400 + " > 0", "is not an expression"),
    ("-" * 600 + "1 > 0", "is too long"),
    ("devices > 1 " * 200, "is over 1,000 characters"),
    (coroutine, "is a coroutine function"),
])
def test_what_is_not_a_condition_is_one_line_at_the_call(given, said):
    with pytest.raises(IotsimError) as caught:
        condition_of(given, FIELDS)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_one_clear_error(text):
    try:
        found = condition_of(text)
    except IotsimError:
        pass
    else:
        assert found.judge(view(), DECLARED)[0] in ("passed", "failed", "not evaluated")


def test_nothing_in_a_condition_takes_long():
    started = time.perf_counter()
    with pytest.raises(IotsimError):
        condition_of("9**9**9**9 > 0")
    assert time.perf_counter() - started < 5


def test_equal_texts_are_equal_and_functions_compare_by_their_code():
    assert condition_of("devices > 0") == condition_of(" devices > 0 ")
    assert condition_of(lambda v: v.devices) == condition_of(lambda v: v.devices)
    assert condition_of(lambda v: v.devices) != condition_of(lambda v: v.readings)


def test_an_expectation_reads_as_a_line():
    one = Expectation(61_000_000, "devices > 0", None, "passed", "devices=4")
    assert str(one) == "00:01:01 ✓ devices > 0 (devices=4)"
    two = Expectation(0, "lost == 0", "nothing is lost", "not evaluated", "lost is …")
    assert str(two) == "00:00:00 – nothing is lost: not evaluated (lost is …)"
