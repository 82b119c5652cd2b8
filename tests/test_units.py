"""Durations, instants and their texts: one parser, bounds checked."""

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsim.errors import BadValue
from iotsim.units import (
    DURATION_US_MAX,
    clock_text,
    duration_text,
    duration_us,
    instant_text,
    instant_us,
)


@pytest.mark.parametrize(
    ("given_value", "microseconds"),
    [
        ("1us", 1), ("1µs", 1), ("500ms", 500_000), ("5s", 5_000_000), ("1m", 60_000_000),
        ("1min", 60_000_000), ("1h30m", 5_400_000_000), ("1d", 86_400_000_000),
        (" 1h 30m ", 5_400_000_000), ("1.5s", 1_500_000), (".5s", 500_000), ("1e3ms", 1_000_000),
        ("0.1s", 100_000), (5, 5_000_000), (0.25, 250_000), (0.1, 100_000),
        (timedelta(minutes=1, microseconds=1), 60_000_001), (1e-6, 1), ("2m2m", 240_000_000),
        ("1000us", 1000), (True + 1, 2_000_000),
    ],
)
def test_a_duration_is_read_exactly(given_value, microseconds):
    assert duration_us(given_value) == microseconds


@pytest.mark.parametrize(
    ("given_value", "why"),
    [
        ("0s", "is zero"), (0, "is zero"), (0.0, "is zero"), (timedelta(0), "is zero"),
        (-1, "is negative"), ("-5s", "is negative"), (timedelta(seconds=-1), "is negative"),
        (float("nan"), "is not finite"), (float("inf"), "is not finite"),
        (float("-inf"), "is not finite"), (1e300, "is over 1,000 years"),
        (10**400, "is over 1,000 years"), ("999999999d", "is over 1,000 years"),
        ("9e999s", "is over 1,000 years"), ("0.1us", "is shorter than one microsecond"),
        (1e-9, "is shorter than one microsecond"), ("5", "is not a duration"),
        ("", "is not a duration"), ("s", "is not a duration"), ("5 sec", "is not a duration"),
        ("5S", "is not a duration"), ("1h-30m", "is not a duration"), ("١s", "is not a duration"),
        ("5s,", "is not a duration"), ("1_0s", "is not a duration"), (None, "is not a duration"),
        (True, "is not a duration"), ([5], "is not a duration"), (b"5s", "is not a duration"),
        ("1s" * 100, "is not a duration"), ("--5s", "is not a duration"),
        (1 + 2j, "is not a duration"),
    ],
)
def test_what_cannot_be_a_duration_is_an_error_that_says_why(given_value, why):
    with pytest.raises(BadValue) as caught:
        duration_us(given_value, "every")
    assert caught.value.why == why
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("every=")


def test_zero_is_allowed_only_where_it_means_something():
    assert duration_us("0s", zero=True) == duration_us(0, zero=True) == 0
    with pytest.raises(BadValue, match="shorter than one microsecond"):
        duration_us("0.1us", zero=True)


@given(st.integers(1, DURATION_US_MAX))
def test_the_text_of_a_duration_reads_back_to_it(microseconds):
    assert duration_us(duration_text(microseconds)) == microseconds


@given(st.integers(1, 10**6), st.sampled_from(["us", "ms", "s", "m", "h"]))
def test_fractions_and_wholes_agree(count, unit):
    whole, half = duration_us(f"{2 * count}{unit}"), duration_us(f"{count}.0{unit}")
    assert Fraction(whole, half) == 2


@given(st.text(max_size=12))
def test_no_text_makes_the_parser_fail_otherwise(text):
    try:
        found = duration_us(text)
    except BadValue:
        return
    assert 1 <= found <= DURATION_US_MAX


@pytest.mark.parametrize(
    ("given_value", "microseconds"),
    [
        ("1970-01-01T00:00:00Z", 0), ("1970-01-01", 0), ("1970-01-01T00:00:00.000001", 1),
        ("1970-01-01T02:00:00+02:00", 0), ("2026-01-01T00:00:00Z", 1_767_225_600_000_000),
        (datetime(1970, 1, 1, tzinfo=UTC), 0), ("1969-12-31T23:59:59.999999Z", -1),
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 0),
    ],
)
def test_an_instant_is_read_exactly(given_value, microseconds):
    assert instant_us(given_value) == microseconds


@pytest.mark.parametrize(
    "given_value", [datetime(2026, 1, 1), "yesterday", "", 5, None, "2026-13-01", "25:00"]
)
def test_what_is_no_instant_is_an_error(given_value):
    with pytest.raises(BadValue, match=r"^start="):
        instant_us(given_value)


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)))
def test_the_wire_shows_six_fractional_digits_and_z_and_reads_back(moment):
    microseconds = instant_us(moment.replace(tzinfo=UTC))
    text = instant_text(microseconds)
    assert len(text) == 27
    assert (text[10], text[19], text[26]) == ("T", ".", "Z")
    assert instant_us(text) == microseconds


def test_elapsed_time_reads_like_a_clock():
    assert clock_text(0) == "00:00:00"
    assert clock_text(100 * 3_600_000_000) == "100:00:00"
