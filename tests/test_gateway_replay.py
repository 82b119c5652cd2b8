"""The engine's promise for gateways: one model, live or computed, and again from what was saved.

"A whole run, wire included, replays byte for byte" means here: over one store, and from one start,
the envelope of each (sensor, seq) is the same bytes whenever it is sent. Message ids are not: they
begin with the run's id, so that a stream does not take a second run for the first.
"""

import json
import re

import pandas as pd
import pytest

import iotsim
from iotsim import Gateway
from iotsim.errors import BadValue, NameInUse
from tests import gateway_runs
from tests.gateway_runs import until
from tests.servers import notip

site, notip_lab = gateway_runs.site, notip.notip_lab  # the fixtures

pytestmark = pytest.mark.broker

START, EVERY = "2026-01-01T00:00:00Z", "40ms"


async def rows(run, count):
    """Wait until so many more readings are there."""
    seen = run.snapshot().readings
    await until(lambda: run.snapshot().readings >= seen + count)


def envelopes(sent):
    """(sensor, seq, copy) of each message, and its bytes."""
    return {(device, seq, copy): payload for device, seq, copy, payload in
            sent[["device", "seq", "copy", "payload"]].itertuples(index=False)}


# -- live or computed ------------------------------------------------------------------------------


def test_a_live_run_gives_what_generate_gives(site):
    async def work(run):
        await rows(run, 20)
        result = await run.stop()
        return result, await site.sent(run)

    result, sent = site.go(work, every=EVERY)
    again = site.gateway(EVERY).generate(f"{result.end_us - result.start_us}us", start=result.start)
    assert again.digest == result.digest
    assert result.diff(again) == again.diff(result)
    pd.testing.assert_frame_equal(result.frame(), again.frame(), check_categorical=False)
    # And the wire holds just those: times and values, each once.
    frame = again.frame().astype({"device_id": str})
    both = sent.merge(frame, left_on=["device", "seq"], right_on=["device_id", "seq"])
    assert len(both) == len(sent) == len(frame)
    assert (both["value_x"] == both["value_y"]).all()
    assert (both["time_x"] == both["time_y"]).all()


def test_readings_do_not_depend_on_what_the_platform_hands_out(site):
    named = site.gateway().generate("5s", start=START)
    other = (Gateway("gw-{n}", factory_id="other-{n}", factory_key="x", every="100ms", seed=7,
                     count=2, model="another", firmware="9")
             .sensor("temperature", algorithm="sine_wave", min=-30, max=-10).sensor("humidity"))
    assert other.generate("5s", start=START).digest == named.digest


# -- everything that can be done to gateways -------------------------------------------------------


def test_whatever_was_done_to_gateways_is_done_again_from_a_file_and_as_a_scenario(site, tmp_path):
    async def work(run):
        await rows(run, 8)
        run.outlier("gw-1", "humidity")
        assert (await site.config(run, "gw-1", send_frequency_ms=70)).status == "ack"
        run.degrade("gw-2", "400ms", loss=0.5, latency_ms=120, duplicate=0.5, reorder=0.4)
        run.disconnect("gw-1", "300ms")
        await run.attach("gw-1", "pressure", algorithm="spike", min=900, max=1000)
        await rows(run, 20)
        assert (await site.config(run, "gw-1", status="paused")).status == "ack"
        run.outlier("gw-1", "temperature", value=77)  # it waits
        await run.stop_gateway("gw-2")
        await rows(run, 8)
        await run.detach("gw-1", "pressure")
        await run.start_gateway("gw-2")
        answer = await site.config(run, "gw-1", status="online", send_frequency_ms=50)
        assert answer.status == "ack"
        run.clear(where="gateway=gw-2")
        await rows(run, 20)
        return await run.stop()

    result = site.go(work)
    assert not result.errors
    verbs = [one.verb for one in result.actions]
    assert {"command", "set", "inject", "clear", "add", "stop"} <= set(verbs)
    assert (result.frame()["value"] == 77).sum() == 1

    path = tmp_path / "gateways.iotsim"
    result.save(path, readings=True)
    verified = iotsim.verify(path)
    assert verified.ok, verified.difference
    scenario = result.to_scenario()
    assert scenario.generate(start=result.start).digest == result.digest

    names = {}
    source = scenario.code()
    exec(source, names)
    assert names["scenario"].generate().digest == result.digest
    assert "factory" not in source

    events = result.events()
    assert {"fault_injected", "fault_cleared", "disconnected", "connected", "stopped",
            "action"} <= set(events["event"])


# -- the wire, byte for byte -----------------------------------------------------------------------


def live_twice(site, work, then):
    """The envelopes of two runs from one start over one store."""
    def go(what):
        async def all_of(run):
            await what(run)
            await run.stop()
            return run.id, await site.sent(run)

        return site.go(all_of, every=EVERY, start=START, replayable=True)

    return go(work), go(then)


def test_two_runs_of_one_start_send_the_same_bytes(site):
    async def work(run):
        await rows(run, 40)

    (first_id, first), (second_id, second) = live_twice(site, work, work)
    assert first_id != second_id
    one, other = envelopes(first), envelopes(second)
    common = one.keys() & other.keys()
    assert len(common) >= 40
    assert all(one[key] == other[key] for key in common)
    assert first["time"].min() >= pd.Timestamp(START)
    assert first["time"].max() < pd.Timestamp(START) + pd.Timedelta("1h")


def test_no_nonce_serves_two_plaintexts_whatever_is_done_to_the_second_run(site):
    async def work(run):
        await rows(run, 40)

    done = []

    async def then(run):
        done.append(run.inject("offset", "gateway=gw-2", "1h", by=1))
        await rows(run, 12)
        run.outlier("gw-1", "humidity", value=12)
        await site.config(run, "gw-1", send_frequency_ms=130)
        await rows(run, 20)

    (_, first), (_, second) = live_twice(site, work, then)
    one, other = envelopes(first), envelopes(second)
    common = one.keys() & other.keys()
    same = {key for key in common if one[key] == other[key]}
    assert {device for device, _, _ in same} >= {"gw-1:temperature", "gw-1:humidity"}
    since = pd.Timestamp(START) + pd.Timedelta(done[0].at_us, "us")
    other = second[(second["gateway"] == "gw-2") & (second["time"] >= since)]
    assert len(other)
    assert not same & envelopes(other).keys()
    both = pd.concat([first, second])
    both["plain"] = list(zip(both["value"], both["unit"], strict=True))
    kinds = both.groupby(["gateway", "iv"])["plain"].nunique()
    assert len(kinds) > 60
    assert (kinds == 1).all()
    # Equal bytes are equal readings: no envelope stands for another sensor, tick or time.
    assert both.drop_duplicates("iv").shape[0] == both.drop_duplicates("payload").shape[0]


def test_ordinary_runs_share_no_nonce(site):
    async def work(run):
        await rows(run, 16)
        await run.stop()
        return await site.sent(run)

    first, second = site.go(work, every=EVERY), site.go(work, every=EVERY)
    assert not set(first["iv"]) & set(second["iv"])
    assert first["iv"].is_unique
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}Z", json.loads(first["payload"][0])[
        "timestamp"])


def test_a_start_is_for_tests_and_an_instant(site):
    async def never(run):
        raise AssertionError("it has begun")

    with pytest.raises(BadValue, match="Platform\\(replayable=True\\)"):
        site.go(never, start=START)
    with pytest.raises(BadValue, match="start='yesterday'"):
        site.go(never, start="yesterday", replayable=True)


def test_a_cell_that_is_run_again_has_the_same_run_unless_it_begins_elsewhere(site):
    async def work(run):
        platform = site.platform(replayable=True)
        assert await platform.start(site.gateway(), start=START) is run
        with pytest.raises(NameInUse, match="replace=True"):
            await platform.start(site.gateway(), start="2026-02-01T00:00:00Z")
        assert not run.ended

    site.go(work, start=START, replayable=True)
