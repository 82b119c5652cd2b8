"""The benchmarks run at a tiny size, so that they cannot rot; their figures mean nothing here."""

import math

from tests.benchmarks import __main__ as benchmarks


def test_every_measure_gives_a_figure(capsys):
    benchmarks.main(["--scale", "0.002", "--hours", "0.02"])
    head, *table = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("Measured on ")
    lines = [line for line in table if line.startswith("| ")]
    assert len(lines) >= 15
    assert all(line.count("|") == 5 for line in lines)


def test_the_naive_loop_makes_the_readings_that_it_is_compared_for():
    rows = benchmarks.measures.naive.temperature_sensors(3, 10)
    assert len(rows) == 30
    assert all(math.isfinite(row[name]) for row in rows
               for name in ("temperature", "humidity", "battery"))
