"""One number for all readings: any change shows, order and pieces do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsim import Fleet, Profile
from iotsim.digest import STRETCHES_MAX, Digest, Stretches
from iotsim.publishers.payload import Encoder
from iotsim.readings import Column, Group, Readings
from iotsim.rebuilt import digest_of_messages
from tests.fleets import START_US, digest_of, fleet, profile, simulate

KINDS = Profile("kinds", {
    "level": {"type": "gaussian", "mean": 20, "stddev": 1},
    "mode": {"type": "markov", "states": ["a", "b"],
             "transition_matrix": [[0.5, 0.5], [0.5, 0.5]]},
    "floor": {"type": "static", "value": 3},
    "on": {"type": "static", "value": True},
}, telemetry_interval="1s")
FLEET = Fleet("p", seed=1).add(KINDS, count=4)
WHOLE = simulate(FLEET, [20_000_000])
EXPECTED = digest_of(WHOLE)


def only(chunks):
    """All chunks as one."""
    first = chunks[0]
    columns = {
        name: Column(column.kind, np.concatenate([c.columns[name].values for c in chunks]),
                     column.categories)
        for name, column in first.columns.items()
    }
    return Readings(first.group, *(np.concatenate([getattr(c, name) for c in chunks])
                                   for name in ("device", "seq", "time_us")), columns)


ONE = only(WHOLE)


def changed(**arrays):
    """The readings with some arrays replaced: names of keys or of fields."""
    keys = {name: arrays.get(name, getattr(ONE, name)) for name in ("device", "seq", "time_us")}
    columns = {
        name: Column(column.kind, arrays.get(name, column.values), column.categories)
        for name, column in ONE.columns.items()
    }
    return Readings(ONE.group, columns=columns, **keys)


def test_a_digest_is_32_hex_digits_and_zeros_for_nothing():
    assert len(EXPECTED) == 32
    assert int(EXPECTED, 16) > 0
    assert digest_of([]) == "0" * 32


@settings(max_examples=60)
@given(st.data())
def test_any_one_bit_of_any_reading_changes_the_digest(data):
    name = data.draw(st.sampled_from(["seq", "time_us", "device", *ONE.columns]))
    array = (getattr(ONE, name) if name in ("seq", "time_us", "device")
             else ONE.columns[name].values).copy()
    row = data.draw(st.integers(0, len(ONE) - 1))
    if name in ("device", "mode"):  # codes: another device, another state
        array[row] = (array[row] + 1) % (4 if name == "device" else 2)
    elif name == "on":
        array[row] = not array[row]
    else:
        bits = array.view(np.uint64)
        bits[row] ^= np.uint64(1) << np.uint64(data.draw(st.integers(0, 62)))
    with np.errstate(all="ignore"):
        assert digest_of([changed(**{name: array})]) != EXPECTED


def test_every_bit_of_one_reading_changes_the_digest():
    found = []
    for name in ("seq", "time_us", "level"):
        for bit in range(63):
            array = (ONE.columns[name].values if name == "level" else getattr(ONE, name)).copy()
            array.view(np.uint64)[17] ^= np.uint64(1) << np.uint64(bit)
            found.append(digest_of([changed(**{name: array})]))
    assert EXPECTED not in found


def test_a_swap_of_two_devices_changes_the_digest():
    device = ONE.device.copy()
    device[ONE.device == 0], device[ONE.device == 1] = 1, 0
    assert digest_of([changed(device=device)]) != EXPECTED


def test_a_swap_of_two_values_changes_the_digest():
    for one, other in ((0, 1), (0, 4), (3, 70)):
        level = ONE.columns["level"].values.copy()
        level[[one, other]] = level[[other, one]]
        assert digest_of([changed(level=level)]) != EXPECTED


def test_a_swap_of_two_fields_changes_the_digest():
    one = Profile("k", {"a": {"type": "constant", "value": 1.5},
                        "b": {"type": "constant", "value": 2.5}})
    other = Profile("k", {"a": {"type": "constant", "value": 2.5},
                          "b": {"type": "constant", "value": 1.5}})
    digests = {Fleet("p", seed=1).add(made).generate("1m").digest for made in (one, other)}
    assert len(digests) == 2


@pytest.mark.parametrize("row", [0, 1, 40, 79])
def test_a_missing_and_a_doubled_reading_change_the_digest(row):
    without = np.delete(np.arange(80), row)
    twice = np.append(np.arange(80), row)
    thrice = np.append(twice, row)
    assert len({digest_of([ONE.take(rows)]) for rows in (without, twice, thrice)} | {EXPECTED}) == 4


@given(st.permutations(range(80)))
def test_the_order_of_rows_does_not_matter(order):
    assert digest_of([ONE.take(np.array(order))]) == EXPECTED


@given(st.lists(st.integers(0, 80), max_size=6), st.randoms(use_true_random=False))
def test_the_split_into_pieces_and_their_order_do_not_matter(cuts, random):
    pieces = [ONE.take(rows) for rows in np.split(np.arange(80), sorted(cuts))]
    random.shuffle(pieces)
    assert digest_of(pieces) == EXPECTED


def test_labels_type_and_id_are_part_of_it_and_the_order_of_labels_is_not():
    def one(device_type="k", name="k-0", labels=None):
        group = Group(0, device_type, [name], labels or {"a": "1", "b": "2"})
        return digest_of([Readings(group, np.zeros(1, np.int32), np.zeros(1, np.int64),
                                   np.zeros(1, np.int64), {})])

    assert len({one(), one("l"), one(name="k-1"), one(labels={"a": "2", "b": "1"}),
                one(labels={"a": "1"})}) == 5
    assert one() == one(labels={"b": "2", "a": "1"})


# -- values go by what they are -------------------------------------------------------------------


def value_digest(*columns):
    group = Group(0, "k", ["k-0"])
    rows = len(columns[0][1].values)
    n = np.arange(rows, dtype=np.int64)
    return digest_of([Readings(group, np.zeros(rows, np.int32), n, n, dict(columns))])


def floats(*values):
    return Column("float", np.array(values, dtype=np.float64))


def json(*values):
    known = [v for v in values if v is not None]
    codes = [-1 if v is None else known.index(v) for v in values]
    return Column("json", np.array(codes, dtype=np.int32), tuple(known))


def test_a_value_means_the_same_in_a_column_of_its_kind_and_in_a_mixed_one():
    pairs = [
        (floats(1.5, 2.5), json(1.5, 2.5)),
        (Column("int", np.array([1, -7], dtype=np.int64)), json(1, -7)),
        (Column("bool", np.array([True, False])), json(True, False)),
        (Column("text", np.array([0, 1], dtype=np.int32), ("a", "b")), json("a", "b")),
    ]
    digests = [value_digest(("x", column)) for pair in pairs for column in pair]
    assert digests[0::2] == digests[1::2]
    assert len(set(digests)) == 4


@pytest.mark.parametrize(
    ("one", "other"), [((1,), (1.0,)), ((1,), (True,)), (("1",), (1,)), (("a",), (["a"],)),
                       ((0,), (False,)), (("null",), (None,)), ((0.0,), (None,)), (("",), (None,))]
)
def test_values_of_other_kinds_are_other_values(one, other):
    assert value_digest(("x", json(*one))) != value_digest(("x", json(*other)))


def test_null_and_absent_are_no_value():
    absent = Column("float", np.array([1.0, 2.0]), present=np.array([True, False]))
    assert value_digest(("x", floats(1, np.nan))) == value_digest(("x", absent))
    assert value_digest(("x", floats(1, np.nan))) == value_digest(("x", json(1.0, None)))
    nothing = floats(np.nan, np.nan)
    assert value_digest(("x", nothing)) == value_digest(("y", nothing))
    assert value_digest(("x", floats(1, np.nan))) != value_digest(("x", floats(np.nan, 1)))
    assert value_digest(("x", floats(1, np.nan))) != value_digest(("y", floats(1, np.nan)))


def test_every_nan_is_the_same_null():
    odd = np.array([np.nan, np.nan])
    odd.view(np.uint64)[1] ^= np.uint64(5)
    assert value_digest(("x", floats(np.nan, np.nan))) == value_digest(("x", Column("float", odd)))


async def moody(dev):
    values = [1, 1.5, "a", None, True, {"k": 1}, [1], 2, 2.5, None]
    for i in range(40):
        if i % 7:
            dev.emit(x=values[i % 10], y=float(i))
        else:
            dev.emit(x=values[i % 10])
        await dev.sleep("1s")


@given(st.lists(st.integers(1, 40_000_000), max_size=8))
def test_what_else_is_flushed_with_a_scripted_reading_does_not_matter(cuts):
    mixed = Fleet("p", seed=1).add(moody, count=2)
    whole = digest_of(simulate(mixed, [40_000_000]))
    assert digest_of(simulate(mixed, [*sorted(cuts), 40_000_000])) == whole


# -- what others saw ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", Profile.names())
def test_messages_as_they_stand_on_the_wire_give_the_digest_of_the_run(name):
    made = Fleet("p", seed=3).add(name, count=5, labels={"site": "nørth"})
    chunks = simulate(made, [20 * made.members[0].profile.interval_us])
    encoder = Encoder("run", lambda group, i: "t")
    messages = [
        (payload, ident)
        for chunk in chunks
        for payload, ident in zip(*(lambda m: (m.payloads, m.ids))(encoder.encode(chunk)),
                                  strict=True)
    ]
    assert digest_of_messages(messages) == digest_of(chunks)
    assert digest_of_messages(reversed(messages)) == digest_of(chunks)
    assert digest_of_messages(messages[:-1]) != digest_of(chunks)


def test_messages_of_scripted_devices_give_the_digest_of_the_run():
    chunks = simulate(Fleet("p", seed=1).add(moody, count=2), [40_000_000])
    encoder = Encoder("run", lambda group, i: "t")
    sent = [encoder.encode(chunk) for chunk in chunks]
    messages = [pair for m in sent for pair in zip(m.payloads, m.ids, strict=True)]
    assert digest_of_messages(messages) == digest_of(chunks)


def test_the_wire_shows_six_fractional_digits_and_z():
    encoder = Encoder("run", lambda group, i: "t")
    for chunk in simulate(fleet(5), [10_000_000]):
        for payload in encoder.encode(chunk).payloads:
            stamp = payload.split(b'"timestamp":"')[1].split(b'"')[0]
            assert len(stamp) == 27
            assert stamp[19:20] == b"."
            assert stamp.endswith(b"Z")


# -- stretches ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=40))
def test_stretches_widen_without_losing_a_word(times):
    def sums(order):
        digest = Digest(START_US)
        for at in order:
            digest.add(Readings(ONE.group, np.zeros(1, np.int32), np.zeros(1, np.int64),
                                np.array([START_US + at]), {"x": floats(1.0)}))
        return digest

    one, other = sums(times), sums(sorted(times, reverse=True))
    assert one.hexdigest() == other.hexdigest()
    assert one.stretches.width_us == other.stretches.width_us
    for name in ("", "x"):
        assert np.array_equal(one.stretches.of(name), other.stretches.of(name))
    assert (max(times) // one.stretches.width_us) < STRETCHES_MAX


def test_stretches_stay_few_for_a_thousand_years():
    stretches = Stretches(0)
    stretches.of("x")[0] = 1
    stretches.widen(1000 * 365 * 86_400_000_000)
    assert stretches.of("x").shape == (STRETCHES_MAX,)
    assert stretches.of("x")[0] == 1


def test_devices_of_one_digest_are_counted():
    digest = Digest(START_US)
    for chunk in simulate(fleet(3, every="1s"), [10_000_000]):
        digest.add(chunk)
    assert digest.rows == 30
    assert [rows.tolist() for _, _, rows in digest.devices()] == [[10, 10, 10]]


def test_two_groups_of_one_type_are_apart():
    two = Fleet("p", seed=1).add(profile(), count=2).add(profile(), count=2)
    one = Fleet("p", seed=1).add(profile(), count=4)
    assert two.generate("1m").digest == one.generate("1m").digest
