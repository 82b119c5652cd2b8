"""Whatever is given, what comes back is an error of iotsim, on one line of a sane length."""

import asyncio
import threading
from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest

from iotsim import run_home, verbs
from iotsim.errors import BadValue, IotsimError, SavedRunError, UnknownName, shown
from iotsim.faults.parameters import whole
from iotsim.seeding import check_seed
from iotsim.selectors import parse
from iotsim.signals.base import number
from iotsim.units import duration_us
from tests.fleets import fleet


class Mute:
    def __repr__(self):
        raise RuntimeError("no")


class Talker:
    def __repr__(self):
        return "x\n" * 50_000


@pytest.mark.parametrize("value", [
    10**5000, -(10**5000), Mute(), Talker(), "x" * 10**6, b"x" * 10**6, [[Mute()]],
], ids=lambda value: "")
def test_whatever_is_given_is_shown_in_a_few_characters(value):
    assert len(shown(value)) <= 60
    assert shown(value).isprintable()
    assert len(str(BadValue("x", value, "cannot be"))) < 120
    assert len(str(UnknownName("fault", value, ["offset"]))) < 120


def test_a_text_that_is_too_long_is_cut_in_its_middle_and_says_what_to_do():
    text = str(SavedRunError("x", "y" * 10**5 + "\n", "Save it again."))
    assert len(text) < 3010
    assert text.startswith("x: yyy")
    assert text.endswith("y?. Save it again.")


@pytest.mark.parametrize("where", [
    "x" * 10**5, "x=" + "y" * 10**5 + ",", "count=" + "9" * 5000, "shard=0/" + "9" * 5000,
    "shard=" + "1" * 5000 + "/" + "9" * 5000, "fraction=" + "9" * 5000, 10**5000, Mute(),
    ("x" * 10**5 + "=1,") * 2 + "a=1",
], ids=lambda value: "")
def test_a_selector_that_cannot_be_is_an_error_of_a_line(where):
    with pytest.raises(BadValue) as caught:
        parse(where)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [
    b"5", bytearray(b"5"), np.True_, 10**5000, "9" * 5000 + "s", "1s" * 100, Fraction(10**400),
    np.timedelta64("NaT"), np.timedelta64(5), np.timedelta64(5, "Y"), np.timedelta64(5, "ps"),
    np.timedelta64(10**15, "D"), Mute(), float("nan"), [5],
], ids=lambda value: "")
def test_what_is_no_duration_is_refused(value):
    with pytest.raises(BadValue) as caught:
        duration_us(value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("value", "us"), [
    (np.timedelta64(5, "ms"), 5000), (np.timedelta64(2, "s"), 2_000_000),
    (np.timedelta64(1500, "ns"), 2), (np.timedelta64(1, "D"), 86_400_000_000),
    (np.timedelta64(1, "W"), 7 * 86_400_000_000),
    (np.timedelta64(timedelta(hours=1)), 3_600_000_000),
    (np.int64(3), 3_000_000), (np.float64(0.5), 500_000), (Fraction(1, 4), 250_000),
])
def test_a_duration_of_numpy_has_its_unit(value, us):
    assert duration_us(value) == us


@pytest.mark.parametrize("check", [
    lambda value: number("by", value), lambda value: whole("factor", value, 1, 9), check_seed,
])
def test_a_length_of_time_is_not_a_number(check):
    with pytest.raises(BadValue, match="is not a"):
        check(np.timedelta64(5, "s"))


@pytest.mark.parametrize("call", [
    lambda: verbs.inject("x" * 10**5), lambda: verbs.inject("offset", parameters={"by": 10**5000}),
    lambda: verbs.inject("offset", parameters={"x" * 10**5: 1}), lambda: verbs.set_("all", Mute()),
    lambda: verbs.inject("rate", parameters={"factor": 10**5000}),
    lambda: verbs.inject("offset", duration=b"5", parameters={"by": 1}),
    lambda: verbs.clear(Mute()), lambda: verbs.set_("all", fields={"x" * 10**5: 5}),
    lambda: fleet(1).add("x" * 10**5), lambda: fleet(1).generate(b"5"),
    lambda: fleet(1).generate("10s", start="9" * 10**5),
])
def test_a_verb_that_cannot_be_is_an_error_of_a_line(call):
    with pytest.raises(IotsimError) as caught:
        call()
    assert len(str(caught.value)) <= 3100
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_a_busy_loop_does_not_answer_says_so(monkeypatch):
    monkeypatch.setattr(run_home, "ANSWER_S", 0.02)
    asyncio.run(ask_a_busy_loop())


async def ask_a_busy_loop():
    run = fleet(1).start(speed="max")
    await run.ready()
    caught = []

    def ask():
        try:
            run.checkpoint()
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()  # the loop is busy with this
    await run.stop()
    assert isinstance(caught[0], IotsimError)
    assert "did not answer for 0.02 s: its loop is busy" in str(caught[0])


def test_what_is_asked_of_a_run_whose_loop_is_closed_does_nothing():
    async def begin():
        run = fleet(1).start()
        await run.ready()
        return run

    loop = asyncio.new_event_loop()
    run = loop.run_until_complete(begin())
    loop.run_until_complete(run.stop())
    loop.close()
    failed = []

    def ask():
        try:
            run.pause()
            run.resume()
            run.set_speed(2)
        except Exception as error:
            failed.append(error)

    ask()
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert not failed
    assert run.ended
