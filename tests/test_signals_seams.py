"""Where devices part: another interval for some of them, other parameters, another source.

The oracles here are loops over (tick n, time since the first tick, length of the step): what §3 of
the design says of a grid whose interval has been changed.
"""

import math
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from itertools import accumulate, islice
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsim.normals import normal
from iotsim.signals.base import Site, Steps, build, kept, resumed
from iotsim.units import duration_us
from tests import oracles as slow
from tests.signal_rig import SIGNALS, START_US, made, site

S = 1_000_000
NAMES = [f"d{i}" for i in range(6)]


# -- the oracles --------------------------------------------------------------------------------


def grid(segments):
    """Return (n, elapsed, step) in µs for ticks of one interval after another."""
    intervals = [interval_us for interval_us, ticks in segments for _ in range(ticks)]
    elapsed = [0, *accumulate(intervals[1:])]
    return list(zip(range(len(intervals)), elapsed, intervals, strict=True))


def made_up(name, i, n):
    return ((n * 7 + i * 3 + len(name)) % 101 - 25) / 4.0


def oracle(kind, given, parent, field, ticks, i):
    """Return what a signal of device i is at (n, elapsed, step) of its ticks."""
    law = {name: value for name, value in given.items() if name != "for"}
    return list(ORACLES[kind](parent, field, ticks, i, **law))


def noise(parent, field, n, stddev):
    return stddev * normal(slow.squares(n, slow.stream(parent, field))) if stddev else 0.0


def gaussian(parent, field, ticks, i, mean, stddev):
    return [mean + noise(parent, field, n, stddev) for n, _, _ in ticks]


def uniform(parent, field, ticks, i, min, max):
    key = slow.stream(parent, field)
    return [min + slow.unit(slow.squares(n, key)) * (max - min) for n, _, _ in ticks]


def sine(parent, field, ticks, i, min, max, period="1m"):
    turn = 2 * math.pi / duration_us(period)
    return [(min + max) / 2 + (max - min) / 2 * math.sin(t * turn) for _, t, _ in ticks]


def spike(parent, field, ticks, i, min, max):
    return list(islice(slow.spike(parent, field, min, max, 0.1, 1.5), len(ticks)))


def diurnal(parent, field, ticks, i, baseline, amplitude, peak_hour, stddev=0, timezone="UTC"):
    for n, t, _ in ticks:
        moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_us(i, t))
        local = moment.astimezone(ZoneInfo(timezone))
        hour = local.hour + local.minute / 60 + (local.second + local.microsecond / 1e6) / 3600
        turn = 2 * math.pi * (hour - peak_hour) / 24
        yield baseline + amplitude * math.cos(turn) + noise(parent, field, n, stddev)


def constant(parent, field, ticks, i, value=None, min=None, max=None):
    return [value if min is None else (min + max) / 2 for _ in ticks]


def brownian(parent, field, ticks, i, volatility, start=0.0, drift=0.0, mean_reversion=0.0,
             mean=None, min=-math.inf, max=math.inf):
    x, middle = start, start if mean is None else mean
    for n, _, step_us in ticks:
        dt, z = step_us / 1e6, noise(parent, field, n, 1.0)
        if mean_reversion == 0:
            x = x + drift * dt + volatility * math.sqrt(dt) * z
        else:
            keep = math.exp(-mean_reversion * dt)
            spread = volatility * math.sqrt((1 - keep**2) / (2 * mean_reversion))
            target = middle + drift / mean_reversion
            x = target + (x - target) * keep + spread * z
        x = min if x < min else max if x > max else x
        yield x


def markov(parent, field, ticks, i, states, transition_matrix, per="tick", initial_state=None):
    key, state, done = slow.stream(parent, field), states.index(initial_state or states[0]), 0
    lead_us = ticks[0][2]
    for n, t, _ in ticks:
        due = n + 1 if per == "tick" else (t + lead_us) // duration_us(per)
        for draw in range(done, due):
            row = list(accumulate(transition_matrix[state]))
            state = bisect_right(row, slow.unit(slow.squares(draw, key)))
        done = due
        yield states[state]


def composite(parent, field, ticks, i, parts, op="sum"):
    inside = slow.child(parent, slow.fnv(field))
    found = [oracle(part["type"], {k: v for k, v in part.items() if k != "type"}, inside, str(p),
                    ticks, i) for p, part in enumerate(parts)]
    ends = list(accumulate(duration_us(part.get("for", 1)) for part in parts))
    for row, (_, t, _) in enumerate(ticks):
        values = [part[row] for part in found]
        if op == "chain":
            yield values[next(p for p, end in enumerate(ends) if t % ends[-1] < end)]
        else:
            yield sum(values) if op == "sum" else math.prod(values)


def playback(parent, field, ticks, i, path, column, start="first", missing="null", loop=True):
    rows = [1.5, math.nan, 0.1, 2.0**60, math.nan, -2.25] if column == "flow" else [1, 2, 3, 4]
    if missing == "hold":
        rows = [1.5, 1.5, 0.1, 2.0**60, 2.0**60, -2.25]
    word = slow.squares(0, slow.stream(slow.child(parent, slow.fnv(field)), "start"))
    first = math.floor(slow.unit(word) * len(rows)) if start == "random" else 0
    return [rows[(first + n) % len(rows) if loop else min(first + n, len(rows) - 1)]
            for n, _, _ in ticks]


def depends_on(parent, field, ticks, i, of=None, offset=0, noise_stddev=0, expression=None):
    for n, _, _ in ticks:
        x, y = made_up("x", i, n), made_up("y", i, n)
        if of is not None:
            found = offset + of["x"] * x + of["y"] * y
        else:
            found = math.nan
            if y:
                found = min(100, 2 * x / y + (5 if 0 < y <= 20 else -x)) - max(x, y, 1)
        yield found + noise(parent, field, n, noise_stddev)


ORACLES = {
    "gaussian": gaussian, "uniform_random": uniform, "sine_wave": sine, "spike": spike,
    "diurnal": diurnal, "constant": constant, "static": constant, "brownian": brownian,
    "markov": markov, "composite": composite, "playback": playback, "depends_on": depends_on,
}


# -- devices whose interval is changed, as the engine does it -------------------------------------


def time_us(i, elapsed_us):
    return START_US + i * 1_234 + elapsed_us


class Devices:
    """Some devices on grids of their own, and what they have measured."""

    def __init__(self, signal, segments):
        self.signal, self.place = signal, site(NAMES)
        self.grids = [grid(parts) for parts in segments]
        self.taken = [[] for _ in segments]

    def source(self, rows, interval_us):
        place = Site(self.place.parents[rows], self.place.field, interval_us)
        return self.signal.block(place)

    def moved(self, source, rows, places, interval_us):
        """Return a source of devices `rows`, which had these places in the old one."""
        return resumed(self.source(rows, interval_us), kept(source, np.array(places)))

    def step(self, source, rows, low, high, ticks, *, numbered):
        here = rows[low:high]
        cells = [self.grids[i][len(self.taken[i]):][:ticks] for i in here]
        n, elapsed, step = np.array(cells).transpose(2, 1, 0).copy()
        times = np.array([[time_us(i, t) for i, t in zip(here, row, strict=True)]
                          for row in elapsed.tolist()])
        fields = {name: np.array([[made_up(name, i, m) for i, m in zip(here, row, strict=True)]
                                  for row in n.tolist()]) for name in self.signal.needs}
        assert (step == step[0, 0]).all()
        steps = Steps(int(n[0, 0]), ticks, slice(low, high), times, fields, int(step[0, 0]),
                      *((n, elapsed) if numbered else ()))
        found = np.broadcast_to(source.step(steps), steps.shape)
        for i, column in zip(here, found.T.tolist(), strict=True):
            self.taken[i] += column


def changed_twice(signal):
    """Step six devices of 5 s; then three at 2 s, of different n; then two of those at 7 s."""
    ends = [10 + 2 * (i < 3) for i in range(6)]
    rest = {4: [(2 * S, 13), (7 * S, 6)], 1: [(2 * S, 13), (7 * S, 6)], 3: [(2 * S, 13)]}
    devices = Devices(signal, [[(5 * S, ends[i]), *rest.get(i, [(5 * S, 8)])] for i in range(6)])
    everybody = list(range(6))
    first = devices.source(everybody, 5 * S)
    devices.step(first, everybody, 0, 6, 10, numbered=False)
    devices.step(first, everybody, 0, 3, 2, numbered=False)
    stayed, quick, slowed = [0, 2, 5], [4, 1, 3], [1, 4]
    second = devices.moved(first, quick, quick, 2 * S)
    devices.step(second, quick, 0, 3, 5, numbered=True)
    devices.step(second, quick, 0, 1, 8, numbered=True)
    devices.step(second, quick, 1, 3, 8, numbered=True)
    same = devices.moved(first, stayed, stayed, 5 * S)
    devices.step(same, stayed, 0, 2, 8, numbered=False)
    devices.step(same, stayed, 2, 3, 8, numbered=False)
    third = devices.moved(second, slowed, [1, 0], 7 * S)
    devices.step(third, slowed, 0, 2, 6, numbered=True)
    return devices


@pytest.mark.parametrize("name", SIGNALS)
def test_devices_whose_interval_is_changed_go_on_by_their_number_and_their_time(name):
    signal, (kind, law) = made(name), SIGNALS[name]
    devices = changed_twice(signal)
    for i, ticks in enumerate(devices.grids):
        twin = oracle(kind, law, slow.device(42, NAMES[i]), "temperature", ticks, i)
        found = devices.taken[i]
        if signal.kind in ("text", "json"):
            found = [None if code < 0 else signal.categories[code] for code in found]
        if signal.kind == "float":
            assert found == pytest.approx(twin, rel=1e-8, abs=1e-8, nan_ok=True)
        else:
            assert found == twin


MATRIX = [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0, 0.3, 0.7]]
LENGTHS = st.lists(st.tuples(st.integers(1, 15), st.integers(1, 8)), min_size=1, max_size=5)


@given(per_s=st.integers(1, 40), lengths=LENGTHS)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_markov_takes_every_multiple_of_per_once_whatever_the_intervals(per_s, lengths):
    law = {"states": ["a", "b", "c"], "transition_matrix": MATRIX, "per": f"{per_s}s"}
    signal = build("markov", law)
    segments = [(seconds * S, ticks) for seconds, ticks in lengths]
    devices = Devices(signal, [segments] * 6)
    rows, source = [0, 1], None
    for interval_us, ticks in segments:
        if source is None:
            source = devices.source(rows, interval_us)
        else:
            source = devices.moved(source, rows, [0, 1], interval_us)
        devices.step(source, rows, 0, 2, ticks, numbered=True)
    for i in rows:
        twin = oracle("markov", law, slow.device(42, NAMES[i]), "temperature", devices.grids[i], i)
        assert [signal.categories[code] for code in devices.taken[i]] == twin


def test_markov_devices_of_different_first_intervals_share_a_source():
    law = {"states": ["a", "b", "c"], "transition_matrix": MATRIX, "per": "3s"}
    signal = build("markov", law)
    devices = Devices(signal, [[(5 * S, 10), (2 * S, 20)], [(2 * S, 24)]] + [[(2 * S, 1)]] * 4)
    slowly, quickly = devices.source([0], 5 * S), devices.source([1], 2 * S)
    devices.step(slowly, [0], 0, 1, 10, numbered=False)
    devices.step(quickly, [1], 0, 1, 4, numbered=False)
    states, *left = kept(slowly, np.array([0]))
    _, *right = kept(quickly, np.array([0]))
    both = [np.concatenate(pair) for pair in zip(left, right, strict=True)]
    source = resumed(devices.source([0, 1], 2 * S), (states, *both))
    devices.step(source, [0, 1], 0, 2, 20, numbered=True)
    for i in (0, 1):
        twin = oracle("markov", law, slow.device(42, NAMES[i]), "temperature", devices.grids[i], i)
        assert [signal.categories[code] for code in devices.taken[i]] == twin


# -- other parameters -----------------------------------------------------------------------------


def continued(old, new, ticks=40, seed=42):
    """Return the last values under the old parameters and all under the new ones."""
    place, zero = site(["a", "b"], seed=seed), np.zeros((ticks, 2), dtype=np.int64)
    before, after = old.block(place), new.block(place)
    first = before.step(Steps(0, ticks, slice(0, 2), zero, {}, 5 * S))
    resumed(after, kept(before, np.array([0, 1])))
    return first[-1], after.step(Steps(ticks, ticks, slice(0, 2), zero, {}, 5 * S))


def test_a_walk_goes_on_from_its_value_when_its_parameters_change():
    last, found = continued(build("brownian", {"volatility": 3}),
                            build("brownian", {"volatility": 0, "drift": 1}))
    assert found[0] == pytest.approx(last + 5)
    assert found[9] == pytest.approx(last + 50)


def test_a_state_keeps_its_name_when_states_are_added_and_is_the_first_when_it_is_gone():
    stay = {"states": ["off", "on"], "transition_matrix": [[0, 1], [0, 1]]}
    kinds = ["broken", "on", "off"]
    more = {"states": kinds, "transition_matrix": np.eye(3).tolist()}
    _, found = continued(build("markov", stay), build("markov", more))
    assert {kinds[code] for code in found.ravel()} == {"on"}
    other = {"states": ["red", "green"], "transition_matrix": np.eye(2).tolist(),
             "initial_state": "green"}
    _, found = continued(build("markov", stay), build("markov", other))
    assert (found == 1).all()


def test_another_per_counts_from_now_on_and_catches_up_with_nothing():
    turn = {"states": ["a", "b"], "transition_matrix": [[0, 1], [1, 0]]}
    last, found = continued(build("markov", {**turn, "per": "1h"}),
                            build("markov", {**turn, "per": "5s"}))
    assert last.tolist() == [0, 0]
    assert found[:, 0].tolist() == [1, 0] * 20


def test_a_composite_takes_over_the_state_of_the_parts_it_still_has():
    walk, still = {"type": "brownian", "volatility": 3}, {"type": "brownian", "volatility": 0}
    fair = {"type": "constant", "value": 7}
    last, found = continued(build("composite", {"parts": [walk, still]}),
                            build("composite", {"parts": [still, fair]}))
    assert found[0] == pytest.approx(last + 7)
    _, found = continued(build("composite", {"parts": [walk, walk]}),
                         build("composite", {"parts": [fair, {**still, "start": 1}, fair]}))
    assert found[0] != pytest.approx(15)  # the second part walked before
    _, found = continued(build("composite", {"parts": [fair]}),
                         build("composite", {"parts": [still]}))
    assert (found == 0).all()


def test_steps_that_do_not_say_how_long_one_is_are_our_own_mistake():
    with pytest.raises(AssertionError, match="do not say how long"):
        _ = Steps(0, 1, slice(0, 1), np.zeros((1, 1), dtype=np.int64), {}).elapsed_us
