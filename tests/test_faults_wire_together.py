"""Faults on faults, with devices that come, go and change meanwhile: what arrives is what left."""

import functools

import pytest

from iotsim import Scenario
from iotsim.links import STORED
from tests import wire
from tests.wire import LASTS_S, OWN, SLOW, SLOWER

pytestmark = pytest.mark.broker
NORTH = {"where": "site=north"}
STORE = {"store_and_forward": True}

PLANS = {
    "a backlog of devices that were stopped": lambda day: (
        day.at(10).inject("disconnect", duration=20, **NORTH, **STORE).at(20).stop("site=north")),
    "stopped without a link": lambda day: (
        day.at(10).inject("disconnect", duration=20, **NORTH).at(20).stop("site=north")),
    "nothing stored for a while": lambda day: (
        day.at(10).inject("disconnect", duration=20, **NORTH, **STORE)
        .at(15).inject("disconnect", duration=5, **NORTH)),
    "late twice and in disorder": lambda day: (
        day.at(10).inject("latency_spike", duration=20, latency_ms=3000, **NORTH)
        .inject("duplicate", duration=20, **NORTH).inject("reorder", duration=20, **NORTH)),
    "stored on top of stored": lambda day: (
        day.at(10).inject("disconnect", **NORTH, **STORE)
        .at(12).inject("disconnect", where="id=north-0", duration=20, **STORE)
        .at(20).clear("disconnect", "site=north")),
    "late beyond the end": lambda day: (
        day.at(30).inject("latency_spike", latency_ms=20_000, **NORTH)),
    "new devices come while others are away": lambda day: (
        day.at(10).inject("disconnect", duration=20, **STORE)
        .at(15).add(wire.PROFILE, count=2, labels={"site": "north"}, every="1s",
                    id="new-{index}")),
    "an update of a fleet that shrinks": lambda day: (
        day.at(10).inject("firmware_update", version="2.0", duration=20, **NORTH)
        .at(20).stop("id=north-0").at(25).inject("disconnect", duration=8, **STORE)),
    "a reboot without a link": lambda day: (
        day.at(10).inject("disconnect", duration=20, **NORTH, **STORE)
        .at(15).inject("reboot", duration=20, **NORTH)),
    "more of everything": lambda day: (
        day.at(5).inject("rate", factor=4, **NORTH)
        .inject("disconnect", duration=20, **NORTH, **STORE).inject("duplicate", duration=30)
        .set("site=north", every="500ms")),
    "values and links": lambda day: (
        day.at(5).inject("clock_drift", drift_rate_ms_per_sec=-80, **NORTH)
        .inject("data_corruption", corruption_rate=0.3, **NORTH)
        .inject("packet_loss", loss=0.2, **NORTH).inject("latency_spike", latency_ms=2500)
        .at(20).inject("disconnect", duration=5, **STORE).at(30).clear()),
}
every_plan = pytest.mark.parametrize("plan", PLANS)


@functools.cache
def seen_of(speed, own):
    def named(url):
        made = {}
        for number, plan in enumerate(PLANS.values()):
            name = f"{'own' if own else 'plan'}-{number}"
            options = OWN if own else {}
            made[name] = plan(Scenario(name, wire.fleet(name, url, **options)).lasting(LASTS_S))
        return made

    return dict(zip(PLANS, wire.watched(named, speed=speed).values(), strict=True))


def check(seen):
    """What came, each once, is what left; and the run is what its scenario is offline."""
    assert seen.offline.digest == seen.result.digest
    assert seen.result.errors == ()
    assert set(seen.by_key) == set(seen.left)
    once = {message.ident: message for message in seen.messages}
    assert {one.payload for one in seen.messages} == {one.payload for one in once.values()}
    assert wire.digest_of_messages(
        (one.payload, one.ident) for one in once.values()) == seen.digest_of_left()


@pytest.mark.parametrize("speed", [SLOW, "max"])
@every_plan
def test_on_shared_connections_what_arrives_is_what_left_and_arrives_once(plan, speed):
    seen = seen_of(speed, False)[plan]
    check(seen)
    assert len(seen.messages) == len(seen.left)


@pytest.mark.parametrize("speed", [SLOWER, "max"])
@every_plan
def test_with_sessions_of_their_own_what_arrives_is_what_left(plan, speed):
    check(seen_of(speed, True)[plan])


@every_plan
def test_order_per_device_is_the_order_in_which_its_link_let_go(plan):
    seen = seen_of(SLOW, False)[plan]
    for device in {key[0] for key in seen.left}:
        left_s = [seen.rows[one.key]["true_us"] / 1e6 + seen.delays_s[one.key]
                  for one in seen.of(device)]
        assert left_s == sorted(left_s)


def test_what_is_still_stored_at_the_end_is_counted_and_no_failure():
    def named(url):
        day = Scenario("stored", wire.fleet("stored", url)).lasting(LASTS_S)
        return {"stored": day.at(30).inject("disconnect", **NORTH, **STORE)}

    seen = wire.watched(named, speed=SLOW)["stored"]
    stored = {key for key, row in seen.rows.items() if row["withheld"] == "disconnect"}
    assert stored == {key for key, row in seen.rows.items()
                      if wire.is_north(key[0]) and row["true_us"] >= 30e6}
    assert len(stored) == 10 * wire.NORTH
    assert set(seen.left) == set(seen.by_key) == set(seen.rows) - stored
    (account,) = seen.result.publishers.values()
    assert dict(account.drops) == {STORED: len(stored)}
    assert seen.result.errors == ()
