"""Back to a moment of a run, and on from there: the same bytes as from the start."""

import asyncio

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import iotsim
from iotsim import Fleet, Scenario, checkpoints, driver
from iotsim.checkpoints import Checkpoint, origin_of
from iotsim.digest import Digest
from iotsim.engine.twin import twin_of
from iotsim.errors import BadValue
from iotsim.units import DEFAULT_START
from tests.action_rig import END_US, PLAIN, THING, Hand, rows
from tests.fault_rig import EVERY
from tests.fleets import START_US
from tests.live import START, meter, run
from tests.test_actions_properties import PLANS, few

SECOND = 1_000_000


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert iotsim.runs() == []


def things(seed=7, name="things"):
    return (Fleet(name, seed=seed).add(THING, count=4, labels={"site": "a"})
            .add(THING, count=2, labels={"site": "b"}).add(PLAIN, count=3, labels={"site": "b"}))


def from_the_start(scenario):
    return scenario._with(_origin=None).generate()


async def reached(live, seconds):
    """Wait until everything before a moment has been computed."""
    while live._works.driver.begun_us - live._works.start_us < seconds * SECOND:
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def short_slots(monkeypatch):
    """Virtual time goes in steps of two seconds, so that moments can be met."""
    monkeypatch.setattr(driver, "VIRTUAL_ROWS", 4)


def session(fleet, *deeds, lasts="2m", speed="max", capture="all"):
    """A live run to which things are done at moments; returns its result."""
    async def main():
        live = fleet.start(lasts, start=START, speed=speed, capture=capture)
        await live.ready()
        for seconds, deed in deeds:
            await reached(live, seconds() if callable(seconds) else seconds)
            deed(live)
        live.set_speed("max")
        return await (live.stop() if lasts is None else live.wait())

    return run(main())


def keep(live):
    live.checkpoint()


# -- twins --------------------------------------------------------------------------------------


class Fork(Hand):
    """Does everything to a simulation, and from a moment on to its twins, too."""

    def __init__(self, fleet, plan, at_us):
        self._fork_us, self._twin, self.before = at_us, None, 0
        super().__init__(fleet, plan, cuts=[at_us])

    def _to(self, at_us):
        super()._to(at_us)
        if at_us >= self._fork_us and self._twin is None:
            self._twin = twin_of(self.simulation)
            self.before, self.acts = len(self.chunks), len(self.done)

    def again(self, plan=None):
        """Go on from the twin as the original went, or otherwise."""
        made = object.__new__(Hand)
        made.simulation = twin_of(self._twin)
        made.chunks, made.done, made.refused = list(self.chunks[: self.before]), [], []
        made.digest = Digest(START_US)
        for chunk in made.chunks:
            made.digest.add(chunk)
        for action in self.done[self.acts :] if plan is None else plan:
            made._to(action.at_us)
            made.simulation.act(action)
        made._to(END_US)
        return made


@few(30)
@given(PLANS, st.integers(0, END_US - 1))
def test_a_twin_goes_on_as_the_original_does_whatever_was_done(plan, at_us):
    plan = [deed for deed in plan if deed[1] != "add" or not callable(deed[2]["device"])]
    fork = Fork(things(), plan, at_us)
    otherwise = fork.again(plan=[]).digest.hexdigest()
    again = fork.again()
    assert again.digest.hexdigest() == fork.digest.hexdigest()
    assert rows(again.chunks) == fork.rows
    assert fork.again(plan=[]).digest.hexdigest() == otherwise


@few(30)
@given(PLANS, st.integers(0, END_US - 1))
def test_what_is_done_to_a_twin_is_not_done_to_the_original(plan, at_us):
    plan = [deed for deed in plan if deed[1] != "add" or not callable(deed[2]["device"])]
    plain = Hand(things(), plan)
    stopped = [deed for deed in plan if deed[0] < at_us]
    hand = Hand(things(), stopped, end_us=at_us)
    other = twin_of(hand.simulation)
    people = other.population
    others = [slot for slot in range(len(people)) if people.ended_us[slot] == 2**62]
    for _ in other.advance(START_US + at_us + SECOND):
        pass
    for window in other.deeds.windows:
        window.clear(window.slots, START_US + at_us)
        window.memory.clear()
    people.ended_us[others] = START_US + at_us
    other.blocks.clear()
    for at, *what in plan[len(stopped) :]:
        hand._to(at)
        hand._do(at, *what)
    hand._to(END_US)
    assert hand.digest.hexdigest() == plain.digest.hexdigest()


# -- branches -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "options"), EVERY, ids=lambda value: str(value)[:40])
def test_a_branch_from_the_middle_of_any_fault_is_the_run_from_its_start(fault, options):
    fields = {"field": ["power", "state"]} if isinstance(options.get("field"), list) else (
        {"field": "power"} if "field" in options else {})
    result = session(
        things(), (6, lambda live: live.inject(fault, parameters={**options, **fields})),
        (8, lambda live: live.inject(fault, "count=2", "16s", parameters={**options, **fields})),
        (18, keep), (28, lambda live: live.clear(fault, where="site=a")), (38, keep), lasts="55s")
    assert all(point.at >= at for point, at in zip(result.checkpoints, (18, 38), strict=True))
    point = result.checkpoints[0]
    before = point.digests.hexdigest()
    same = result.branch(result.duration)
    assert same._origin is result.checkpoints[1]
    assert same.generate().digest == result.digest == from_the_start(same).digest
    branch = result.branch(point.at)
    assert branch._origin is point
    first, whole = branch.generate(), from_the_start(branch)
    assert first.digest == whole.digest
    assert (first.rows, first.actions) == (whole.rows, whole.actions)
    other = branch.inject("offset", by=3).wait("5s").set(every="2s").add("pump", count=2)
    assert other.generate().digest == from_the_start(other).digest != first.digest
    assert point.digests.hexdigest() == before
    assert branch.generate().digest == first.digest


def test_everything_at_once_in_flight_across_a_checkpoint():
    result = session(
        things(),
        (2, lambda live: live.set(where="count=3", every="3s")),
        (4, lambda live: live.set(where="device_type=thing", walk={"volatility": 2})),
        (5, lambda live: live.inject("rate", factor=4)),
        (6, lambda live: live.inject("stuck", "site=a")),
        (7, lambda live: live.inject("battery_drain", drain_multiplier=50)),
        (8, lambda live: live.inject("firmware_update", "site=b", "60s", version="9")),
        (9, lambda live: live.inject("disconnect", "count=2", "50s", store_and_forward=True)),
        (10, lambda live: live.add(PLAIN, count=2)),
        (11, lambda live: live.stop("fraction=10%")),
        (20, keep), (40, lambda live: live.clear("firmware_update", "count=1")), (55, keep))
    for seconds in (30, 54, 60, 119.5):
        branch = result.branch(seconds)
        assert branch.generate().digest == from_the_start(branch).digest
    assert result.branch(120).generate().digest == result.digest


def test_the_frame_and_the_events_of_a_branch_are_whole():
    result = session(things(), (5, lambda live: live.inject("noise", stddev=3)), (20, keep))
    branch = result.branch("30s").clear()
    from pandas.testing import assert_frame_equal

    one, other = branch.generate(), from_the_start(branch)
    assert_frame_equal(one.frame(wire=True, truth=True), other.frame(wire=True, truth=True))
    assert_frame_equal(one.events(), other.events())


def test_lanes_that_hold_devices_up_do_not_matter_to_a_checkpoint():
    fleet = things()
    for site in "cde":
        fleet = fleet.add(PLAIN, count=40, every="1s", labels={"site": site})
    fleet = fleet.publish_to("memory:held", queue_messages=10)
    behind, kept_at = [], []

    def kept(live):
        works = live._works
        behind.append(works.driver.begun_us - min(
            block.time_us for block in works.driver.simulation.blocks if not block.retired))
        kept_at.append((works.driver.begun_us - works.start_us) / SECOND)
        live.checkpoint()

    result = session(fleet, (10, lambda live: live.inject("stuck", "site=b", "60s")),
                     (30, kept), (50, kept), (70, kept), (lambda: kept_at[-1] + 60, bool),
                     lasts=None, speed=2000)
    assert max(behind) > 0
    for point in result.checkpoints:
        branch = result.branch(point.at + 1e-6).inject("offset", by=1)
        assert branch._origin.at == point.at
        assert branch.generate().digest == from_the_start(branch).digest


def test_a_branch_takes_the_nearest_checkpoint_that_has_nothing_done_after_it():
    result = session(things(), (10, keep), (20, keep), (30, lambda live: live.inject("stuck")),
                     (30, keep), (60, keep))
    first, second, third, last = result.checkpoints
    stuck_at = result.actions[0].at
    assert result.branch(first.at - 1e-6)._origin is None
    assert result.branch(first.at)._origin is first
    assert result.branch("29s")._origin is second
    # At the very instant of an action the branch goes another way than the run.
    assert result.branch(stuck_at)._origin is (second if third.actions else third)
    assert not result.branch(stuck_at).steps
    assert len(result.branch(last.at).steps) == 1
    assert result.branch("2m")._origin is last


def test_a_scenario_that_was_changed_before_its_checkpoint_begins_at_the_start():
    result = session(things(), (5, lambda live: live.inject("noise", stddev=3)), (20, keep))
    branch = result.branch("30s")
    begin_us = result.start_us
    assert origin_of(branch, begin_us) is not None
    assert branch.generate(start=DEFAULT_START).start_us != begin_us  # another start: no way back
    branch = branch._with(_since_us=0)  # nobody can, but it is not what this relies on
    assert origin_of(branch.at("25s").inject("stuck"), begin_us) is not None
    for other in (branch.at("10s").inject("stuck"), branch.with_seed(3), branch.at("1s").log("x")):
        assert origin_of(other, begin_us) is None
        assert other.generate().digest == from_the_start(other).digest
    assert origin_of(branch, begin_us + 1) is None


def test_a_branch_does_not_go_back_beyond_its_moment():
    result = Scenario("s", things()).lasting("2m").generate()
    branch = result.branch("1m")
    with pytest.raises(BadValue) as caught:
        branch.log("x").at("59s")
    assert str(caught.value) == ("at='59s' is before this branch, which begins at 1m. Give 1m or "
                                 "later, or branch earlier.")
    assert [step.at_us for step in branch.at("1m").log("x").wait("5s").log("y").steps] == [
        60_000_000, 65_000_000]
    assert result.to_scenario().at("59s").log("x").steps


def test_expectations_of_a_branch_see_all_that_they_look_at():
    result = session(things(), (20, keep), capture="10s")
    branch = result.branch("40s").expect("count() > 0", last="35s")
    assert origin_of(branch, result.start_us) is None
    assert branch.generate().expectations[0].status == "passed"
    whole = session(things(), (20, keep)).branch("40s").expect("count() > 0", last="35s")
    assert origin_of(whole, result.start_us) is not None
    seen = whole.generate().expectations[0]
    assert seen == from_the_start(whole).expectations[0]
    assert seen.status == "passed"


def test_a_capture_that_let_readings_go_gives_the_digest_of_all_of_them():
    result = session(things(), (60, keep), capture="10s")
    branch = result.branch("70s").inject("offset", by=1)
    made, whole = branch.generate(), from_the_start(branch)
    assert made.digest == whole.digest
    assert made.rows == whole.rows
    assert made.capture.evicted_rows > 0
    assert made.capture.rows + made.capture.evicted_rows == made.rows
    with pytest.warns(UserWarning, match="only what came after"):
        assert len(made.compare(result.branch("70s").generate()))


def test_scripted_devices_begin_at_the_start():
    fleet = things().add(meter, count=2, every="4s")
    result = session(fleet, (10, lambda live: live.inject("noise", stddev=3)), (30, keep))
    assert "scripted devices" in repr(result.checkpoints[0])
    branch = result.branch("50s")
    assert branch._origin is None
    assert branch.generate().digest == result.digest
    assert branch.inject("stuck").generate().digest != result.digest


def test_a_branch_can_be_streamed_run_live_and_branched_again(tmp_path):
    result = session(things(), (10, lambda live: live.inject("noise", stddev=3)), (30, keep))
    branch = result.branch("40s").inject("stuck", duration="20s")
    whole = from_the_start(branch)
    assert branch.generate(to=tmp_path / "b.parquet").digest == whole.digest
    assert run(branch.run(speed=5000)).digest == whole.digest
    assert branch.generate().branch("2m").generate().digest == whole.digest


def test_a_branch_lasts_as_long_as_the_run_and_begins_where_it_began():
    result = session(things(), (30, keep))
    branch = result.branch("40s")
    made = branch.generate()
    assert (made.start_us, made.end_us) == (result.start_us, result.end_us)
    assert branch == result.to_scenario()
    longer = result.branch("2m").lasting("3m")
    assert longer.generate().digest == result.fleet.generate("3m", start=START).digest


@pytest.mark.parametrize("at", ["2m1s", 120.000001, -1, "soon"])
def test_a_moment_outside_the_run_is_refused(at):
    result = Scenario("s", things()).lasting("2m").generate()
    with pytest.raises(BadValue, match="at="):
        result.branch(at)


def test_a_result_without_checkpoints_branches_too():
    scenario = Scenario("s", things()).at("10s").inject("stuck").at("20s").log("x").lasting("1m")
    result = scenario.generate()
    assert result.branch("1m").generate().digest == result.digest
    assert result.branch("10s").generate().digest == things().generate("1m").digest


def test_a_run_that_has_ended_or_not_begun_cannot_be_kept():
    async def main():
        live = things().start("1s", speed="max", start=START)
        with pytest.raises(BadValue, match="cannot be kept now: it is connecting"):
            live.checkpoint()
        await live.wait()
        with pytest.raises(BadValue, match="cannot be kept now: it is stopped"):
            live.checkpoint()

    run(main())


def test_a_run_keeps_so_many_checkpoints_and_no_more(monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINTS_MAX", 2)

    def refused(live):
        with pytest.raises(BadValue, match=r"is one more than a run keeps\. Keep 2"):
            live.checkpoint()

    assert len(session(things(), (10, keep), (20, keep), (30, refused)).checkpoints) == 2


def test_a_checkpoint_may_be_asked_for_from_another_thread():
    async def main():
        live = things().start(speed=100, start=START)
        await live.ready()
        made = await asyncio.to_thread(live.checkpoint)
        await live.stop()
        return made

    made = run(main())
    assert isinstance(made, Checkpoint)
    assert repr(made).startswith("<Checkpoint at ")


def test_two_futures_of_one_moment_differ_in_what_was_changed():
    # What the README shows: go back, change one thing, run both futures, look at the difference.
    result = session(things(), (20, lambda live: live.inject("noise", stddev=1)), (40, keep))
    moment = result.branch("1m")
    as_it_was, repaired = moment.generate(), moment.clear("noise").generate()
    difference = as_it_was.compare(repaired)
    assert as_it_was.digest == result.digest
    assert set(difference["side"]) == {"both"}
    assert difference["time"].min() >= pd.Timestamp(START) + pd.Timedelta("60s")
    assert set(difference["field"]) <= {"power", "walk", "day", "mix", "battery"}
    told = difference.merge(as_it_was.frame(tidy=True), on=["device_id", "seq", "field"],
                            suffixes=("", "_here"))
    assert (told["value"].astype(float) == told["value_here"].astype(float)).all()
