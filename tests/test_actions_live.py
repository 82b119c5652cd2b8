"""What is done to a live run, from anywhere and at any moment, is done again by its log."""

import asyncio
import threading

import pytest

from iotsim.errors import BadValue, IotsimError, UnknownName
from iotsim.publishers.base import UNTRACED, Limits
from iotsim.registry import PUBLISHERS
from tests.action_rig import (
    GAUGE,
    beyond,
    gauges,
    rows,
    same_again,
    session,
    started,
    until,
    walker,
)
from tests.live import START, meter, run

# -- from where, and when -------------------------------------------------------------------------


def test_every_verb_may_be_called_from_another_thread_with_another_loop(tmp_path):
    def foreign(live, found):
        async def there():
            found.append(live.inject("offset", "count=3", "10m", by=1))
            found.append(live.set(every="500ms"))
            found.append(live.suspend("count=1", "3s"))
            found.append(live.add(GAUGE, count=2))
            found.append(live.clear("offset"))
            found.append(live.stop("count=2"))
            found.append(live.log("from outside"))
            with pytest.raises(UnknownName, match="Did you mean 'site'"):
                live.stop("sit=a")
            with pytest.raises(UnknownName, match="no fault called"):
                live.inject("offsett")

        asyncio.run(there())

    async def what(live):
        await beyond(live, 2)
        found = []
        thread = threading.Thread(target=foreign, args=(live, found))
        thread.start()
        await until(lambda: not thread.is_alive())
        assert [action.verb for action in found] == [
            "inject", "set", "inject", "add", "clear", "stop", "log"]
        assert [action.devices for action in found[:6]] == [3, 10, 1, 2, 3, 2]
        assert found == live.actions
        await beyond(live, 5)

    session(gauges(), what, tmp_path)


def test_what_is_done_while_it_connects_takes_effect_at_the_start(tmp_path):
    async def main():
        live = gauges().start(speed=50, start=START, capture="all")
        assert live.state == "connecting"
        early = live.inject("suspend", "count=4", "3s")
        live.add(GAUGE, count=2)
        live.add(GAUGE, count=2)
        live.set("count=2", every="200ms")
        with pytest.raises(UnknownName):
            live.stop("nothing=at all")
        assert (early.at, early.devices) == (0, 4)
        await live.ready()
        assert [action.at for action in live.actions] == [0, 0, 0, 0]
        assert live.snapshot().devices == 14
        await beyond(live, 5)
        return await live.stop()

    result = same_again(run(main()), tmp_path)
    assert result.frame()["device_id"].nunique() == 14


def test_a_mistake_while_it_connects_is_an_error_at_the_call(tmp_path):
    async def main():
        live = gauges().add(walker, count=2, every="4s").start(
            speed=50, start=START, capture="all")
        for act, error, text in (
            (lambda: live.set(temprature={"mean": 30}), UnknownName, "called 'temprature'"),
            (lambda: live.set("device_type=gauge", power={"mean": "x"}), IotsimError, "mean"),
            (lambda: live.inject("battery_drain"), BadValue, "needs a field `battery`"),
            (lambda: live.inject("offset", "device_type=gauge", by=1, field="heat"), UnknownName,
             "called 'heat'"),
            (lambda: live.add(GAUGE, id="gauge-0003"), BadValue, "'gauge-0003' is taken"),
            (lambda: live.add("pump", labels={"walk": "x"}), BadValue, "is a field of"),
            (lambda: live.inject("rate", "device_type=walker", factor=2), BadValue, "scripted"),
        ):
            with pytest.raises(error, match=text):
                act()
        assert live.add(GAUGE, id="late").devices == 1
        with pytest.raises(BadValue, match="'late' is taken"):
            live.add(GAUGE, id="late")
        assert live.add(GAUGE, count=2).parameters["members"]["first"] == 11
        assert live.stop("count=3").devices == 3
        assert live.inject("suspend", "device_type=gauge").devices == live.set(
            "device_type=gauge", every="1s").devices
        assert live.state == "connecting"
        tried = live._early and live._rehearsal.deeds.done
        await live.ready()
        assert live._rehearsal is None
        assert [str(done) for done in live.actions] == [str(done) for done in tried]
        assert [done.devices for done in live.actions] == [done.devices for done in tried]
        await beyond(live, 2)
        return await live.stop()

    result = run(main())
    assert not result.errors
    same_again(result, tmp_path, walker=walker)


def test_what_is_given_in_a_mapping_and_by_name_is_given_once():
    async def main():
        live = gauges().start(speed=50)
        for _ in range(2):  # connecting, and then running
            with pytest.raises(BadValue, match="by=2 is given twice: also in parameters"):
                live.inject("offset", parameters={"by": 1}, by=2)
            with pytest.raises(BadValue, match="parameters='by' is not a mapping"):
                live.inject("offset", parameters="by")
            with pytest.raises(BadValue, match="fields='x' is not a mapping"):
                live.set(fields="x")
            with pytest.raises(BadValue, match="is given twice: also in fields"):
                live.set(fields={"power": {"mean": 1}}, power={"mean": 2})
            await live.ready()
        made = live.inject("offset", parameters={"by": 1}, field="power")
        assert made.parameters["parameters"] == {"by": 1.0, "field": ["power"]}
        assert [done.verb for done in live.actions] == ["inject"]
        return await live.stop()

    assert not run(main()).errors


def test_after_the_end_every_verb_says_that_it_has_ended():
    async def main():
        live = await started(gauges())
        result = await live.stop()
        for verb, arguments in (("inject", ("suspend",)), ("clear", ()), ("suspend", ()),
                                ("stop", ("all",)), ("add", (GAUGE,)), ("log", ("x",))):
            with pytest.raises(BadValue, match=r"has ended \(it is stopped\)\. Start it again"):
                getattr(live, verb)(*arguments)
        with pytest.raises(BadValue, match="has ended"):
            live.set(every="1s")
        assert not [action for action in live.actions if action.is_content]
        return result

    run(main())


def test_what_is_done_while_it_is_paused_happens_at_that_instant_and_in_that_order(tmp_path):
    async def what(live):
        await beyond(live, 3)
        live.pause()
        first = live.inject("offset", by=1)
        second = live.clear("offset", "count=5")
        third = live.stop("count=2")
        assert first.at_us == second.at_us == third.at_us
        assert live.snapshot().faults == {"offset": 5}
        computed = live.snapshot().readings
        await asyncio.sleep(0.05)
        assert live.snapshot().readings == computed
        fourth = live.add(GAUGE)
        assert fourth.at_us == first.at_us
        live.resume()
        await beyond(live, 3)

    result = session(gauges(), what, tmp_path)
    assert [a.verb for a in result.to_scenario().steps] == ["inject", "clear", "stop", "add"]


def test_at_the_speed_of_the_machine_actions_find_their_instant(tmp_path):
    async def what(live):
        for i in range(4):
            action = live.inject("offset", f"count={i % 4 + 1}", "30s", by=i + 1)
            assert action.at_us <= live._works.driver.frontier_us
            assert action.devices == i % 4 + 1
            seen = live.snapshot().readings
            await until(lambda seen=seen: live.snapshot().readings > seen)
        live.set(every="700ms")
        live.add(walker, every="2s")
        seen = live.snapshot().readings
        await until(lambda: live.snapshot().readings > seen + 100)
        live.stop("device_type=gauge")
        live.add(GAUGE, labels={"site": "b"})

    session(gauges(), what, tmp_path, "max", walker=walker)


def test_an_action_never_touches_a_reading_that_was_there_before(tmp_path):
    async def main():
        live = await started(gauges(), 200)
        held = []
        for fault in ("offset", "suspend", "clock_drift", "duplicate", "rate"):
            await beyond(live, 2)
            given = {"offset": {"by": 9}, "clock_drift": {"drift_rate_ms_per_sec": 9},
                     "rate": {"factor": 3}}.get(fault, {})
            before = live.frame(wire=True)
            action = live.inject(fault, "all", "2s", **given)
            assert live.frame(wire=True).equals(before)
            held.append((action, before))
        return await live.stop(), held

    result, held = run(main())
    whole = rows(same_again(result, tmp_path).capture.chunks())
    for action, before in held:
        later = [row for row in whole if row["true_time"] - result.start_us >= action.at_us]
        assert len(before) <= len(whole) - len([row for row in later if not row["sub"]])


# -- a lane that is held up -----------------------------------------------------------------------


class Gate:
    """A publisher whose peer says nothing until somebody opens it."""

    per_device = False
    tracing = UNTRACED
    pipelines = False
    opened = True
    waiting = ()

    def __init__(self, limits, url="gate:"):
        self.limits, self.url = limits, url

    @classmethod
    def build(cls, url, **options):
        return cls(Limits.take({"queue_messages": 60, **options}))

    def __eq__(self, other):
        return self.url == other.url

    def __hash__(self):
        return hash(self.url)

    def lanes(self, devices):
        return 1

    def link(self, lane, run_id, verdicts, device=None):
        self.verdicts = verdicts
        return self

    async def open(self):
        return 20

    def send(self, tokens, items):
        if Gate.opened:
            self.verdicts.acknowledged(tokens)
        else:
            Gate.waiting += ((self.verdicts, list(tokens)),)
        return True

    def drop(self):
        pass

    async def close(self):
        pass

    @classmethod
    def turn(cls, opened):
        cls.opened = opened
        waiting, cls.waiting = cls.waiting, ()
        for verdicts, tokens in waiting:
            verdicts.acknowledged(tokens)


@pytest.fixture
def gate(monkeypatch):
    monkeypatch.setitem(PUBLISHERS, "gate", f"{__name__}:Gate")
    monkeypatch.setattr("iotsim.feeders.FEEDER_ROWS", 20)
    Gate.opened, Gate.waiting = False, ()
    return Gate


def lag_us(driver):
    """How far the last of the blocks is behind."""
    times = [block.time_us for block in driver.simulation.blocks]
    return driver.frontier_us - min(times, default=driver.frontier_us)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("scripted", [True, False])
def test_while_a_lane_is_held_up_nothing_that_was_computed_changes(tmp_path, gate, free, scripted):
    fleet = gauges("held", 8, every="200ms")
    if free:
        fleet = fleet.add(GAUGE, count=4, labels={"site": "b"})
    if scripted:
        fleet = fleet.add(meter, count=3, every="200ms", labels={"site": "a"})
    fleet = fleet.publish_to("gate:", where="site=a")

    async def what(live):
        driver = live._works.driver
        await until(lambda: driver.behind and live.snapshot().elapsed_us > 9_000_000)
        before, last = live.frame(wire=True, truth=True), 0
        for i in range(6):
            acted = [live.inject("offset", "count=6", "4s", by=1, probability=0.5),
                     live.set("count=3", every=f"{150 + 70 * i}ms"),
                     live.clear("offset", "count=2"),
                     live.add(GAUGE, labels={"site": "a"}),
                     live.inject("rate", "device_type=gauge", "2s", factor=2),
                     live.stop("id=gauge-0000|meter-0001") if i == 3 else live.log("on")]
            assert all(last <= action.at_us <= driver.frontier_us for action in acted)
            last = acted[-1].at_us
            await beyond(live, 0.7)
            if i == 2:
                gate.turn(True)
                await until(lambda: lag_us(driver) < 2_000_000)
                gate.turn(False)
        told = [name for name in before if name not in ("acked", "latency")]
        after = live.frame(wire=True, truth=True)[told].merge(
            before[told], how="right", indicator=True)
        assert (after["_merge"] == "both").all()
        gate.turn(True)

    session(fleet, what, tmp_path, meter=meter)
