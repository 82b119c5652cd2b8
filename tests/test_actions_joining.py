"""Devices that come and go, wait and change while a run is live; its log does it again."""


import pytest

from iotsim import Fleet
from iotsim.errors import BadValue, IotsimError, UnknownName
from iotsim.publishers import memory
from tests.action_rig import GAUGE, beyond, gauges, session, started, until
from tests.live import meter, run


def test_devices_that_wait_in_a_queue_can_be_stopped():
    shared = {}

    async def taker(dev):
        queue = shared.setdefault("line", dev.queue(5))
        while True:
            dev.emit(got=await queue.get())

    async def giver(dev):
        await dev.sleep("1s")
        for i in range(10_000):
            await shared["line"].put(i)
            dev.emit(gave=i)
            await dev.sleep("500ms")

    async def what(live):
        await beyond(live, 4)
        stopped = live.stop("id=taker-0000")
        assert stopped.devices == 1
        await beyond(live, 4)
        assert live.stop("device_type=taker").devices == 2
        driver = live._works.driver
        full_us = driver.frontier_us + 4_000_000
        # The queue is full by then: the giver waits, and time goes on.
        await until(lambda: driver.frontier_us > full_us)
        action = live.inject("offset", "all", "10s", by=1)
        assert full_us < live._works.start_us + action.at_us <= driver.frontier_us
        live.add(taker)
        await beyond(live, 4)

    fleet = Fleet("line", seed=1).add(taker, count=3).add(giver)

    async def main():
        live = await started(fleet, 30)
        await what(live)
        return await live.stop()

    result = run(main())
    assert not result.errors
    shared.clear()
    again = result.to_scenario().generate()
    assert again.digest == result.digest, result.diff(again)


def test_devices_whose_outlet_nobody_had_get_a_publisher_of_their_own(tmp_path):
    fleet = (gauges("growing").publish_to("memory:a", where="site=a")
             .publish_to("memory:b", where="site=b").publish_to("memory:late", where="kind=new"))
    with pytest.raises(UnknownName):
        run(fleet.run("1s", speed="max"))
    fleet = (gauges("growing").publish_to("memory:a", where="site=a")
             .publish_to("memory:b", where="site=b"))

    async def what(live):
        await beyond(live, 2)
        assert "memory:b" not in live.snapshot().publishers
        live.add(GAUGE, count=3, labels={"site": "b"})
        live.add(meter, count=2, every="1s", labels={"site": "b"})
        live.add(GAUGE, count=1)
        await beyond(live, 3)

    result = session(fleet, what, tmp_path, meter=meter)
    frame = result.frame()
    for name in "ab":
        ledger = result.publishers[f"memory:{name}"]
        assert ledger.offered == ledger.acknowledged == (frame["site"] == name).sum() > 0
        assert len(memory.messages(name)) == ledger.offered


def test_an_id_that_was_ever_taken_is_an_error_and_nothing_is_done(tmp_path):
    async def what(live):
        live.stop("id=gauge-0009")
        for name in ("gauge-0003", "gauge-0009"):
            with pytest.raises(BadValue, match=f"'{name}' is taken by another device of this run"):
                live.add(GAUGE, id=name)
        with pytest.raises(BadValue, match="Rename one"):
            live.add("pump", labels={"walk": "x"})
        with pytest.raises(IotsimError):
            live.add("no_such_profile")
        assert [action.verb for action in live.actions] == ["stop"]
        await beyond(live, 2)
        assert live.snapshot().devices == 9

    session(gauges(), what, tmp_path)


def test_a_run_without_devices_goes_on_and_takes_new_ones(tmp_path):
    async def what(live):
        await beyond(live, 2)
        gone = live.stop("all")
        assert gone.devices == 12
        await beyond(live, 5)
        assert live.snapshot().devices == 0
        assert "matches no device" in live.inject("suspend").note
        joined = live.add(GAUGE, count=2)
        assert joined.at_us > gone.at_us
        await beyond(live, 3)
        assert live.snapshot().devices == 2

    fleet = gauges("empty").add(meter, count=2, every="1s")
    result = session(fleet, what, tmp_path, meter=meter)
    gone, joined = (a.at for a in result.actions if a.verb in ("stop", "add") and a.devices)
    seconds = (result.frame()["time"] - result.start).dt.total_seconds()
    assert not ((seconds >= gone) & (seconds < joined)).any()
    assert set(result.frame()["device_id"][seconds > joined]) == {"gauge-0010", "gauge-0011"}


@pytest.mark.parametrize("speed", [50, "max"])
def test_set_gives_scripted_devices_another_interval(tmp_path, speed):
    async def what(live):
        await beyond(live, 5)
        action = live.set("device_type=meter", every="250ms")
        assert action.devices == 3
        with pytest.raises(UnknownName, match="field of the selected devices"):
            live.set("device_type=meter", power={"mean": 1})
        await beyond(live, 5)

    fleet = Fleet("scripts", seed=5).add(meter, count=3, every="1s").add(GAUGE)
    result = session(fleet.publish_to("memory:scripts"), what, tmp_path, speed, meter=meter)
    frame = result.frame(device_type="meter")
    gaps = frame.groupby("device_id", observed=True)["time"].diff().dt.total_seconds().dropna()
    assert set(gaps.round(3)) == {1.0, 0.25}


def test_what_a_device_itself_does_to_its_run_comes_after_the_instant_it_is_in(tmp_path):
    held = {}

    async def meddler(dev):
        while True:
            dev.emit(x=1.0)
            if "live" in held and dev.id == "meddler-0000":
                held["actions"].append((dev.now_us, held["live"].inject("offset", by=1)))
            await dev.sleep("1s")

    async def what(live):
        held.update(live=live, actions=[])
        await beyond(live, 4)
        del held["live"]

    result = session(Fleet("meddlers", seed=1).add(meddler, count=3), what, tmp_path,
                     meddler=meddler)
    assert len(held["actions"]) > 2
    for now_us, action in held["actions"]:
        assert result.start_us + action.at_us > now_us
