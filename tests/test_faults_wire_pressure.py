"""Back-pressure as an action, and a session led by hand, as a broker sees them."""

import asyncio
import os
import signal
from types import SimpleNamespace

import pytest
from mqtt5 import ConnAckPacket

import iotsim
from iotsim.digest import Digest
from iotsim.rebuilt import digest_of_messages
from tests import wire
from tests.fake_broker import FakeBroker, answer_now, message_id
from tests.live import START
from tests.publishing import until

SLOW = {"backpressure": "slow_down", "queue_messages": 50}
GRANT = (ConnAckPacket(receive_max=10),)  # so many may wait for an answer


class Valve:
    """A broker's answers, for the clients whose names fit: held back while it is shut."""

    def __init__(self, *, shuts=lambda client_id: True):
        self.open, self._shuts, self._held = False, shuts, []

    async def behave(self, connection, packet):
        if self.open or not self._shuts(connection.connect.client_id):
            answer_now(connection, packet)
        else:
            self._held.append((connection, packet))

    def turn(self):
        self.open = True
        for connection, packet in self._held:
            answer_now(connection, packet)


def verbs(run):
    """What back-pressure did, as (verb, where)."""
    return [(one.verb, one.parameters["where"]) for one in run.actions
            if one.parameters.get("fault") == "slow_down"]


def digest_of_left(result):
    digest = Digest(result.start_us)
    for chunk in result.capture.chunks():
        digest.add(chunk.sent())
    return digest.hexdigest()


def check_replays(result, path):
    """The run again, from its file, as a scenario and as the source of one."""
    result.save(path)
    verified = iotsim.verify(path)
    assert verified.ok, verified.difference
    scenario = result.to_scenario()
    assert scenario.generate(start=START).digest == result.digest
    names = {}
    exec(compile(scenario.code(), "session", "exec"), names)
    written = next(value for value in names.values() if isinstance(value, iotsim.Scenario))
    assert written.generate(start=START).digest == result.digest


async def slowed(run):
    """Wait until a lane has been slowed down for four seconds."""
    await until(lambda: verbs(run))
    since_us = next(one.at_us for one in run.actions if one.verb == "inject")
    await until(lambda: run.snapshot().elapsed_us > since_us + 4_000_000)


async def pressed(valve, fleet):
    """A run whose broker does not answer until a lane is slowed down, and then does."""
    run = fleet.start(speed=25, start=START)  # a lane that is served never fills up in a moment
    await run.ready()
    await slowed(run)
    valve.turn()
    await until(lambda: len(verbs(run)) >= 2)
    seen_us = run.snapshot().elapsed_us
    await until(lambda: run.snapshot().elapsed_us > seen_us + 5_000_000)
    return await run.stop()


def pressed_by_fake(shuts=lambda client_id: True, **options):
    async def session():
        valve = Valve(shuts=shuts)
        async with FakeBroker(valve.behave, GRANT) as broker:
            fleet = wire.fleet("pressed", broker.url, **{**SLOW, **options})
            result = await pressed(valve, fleet)
            publishes = [one for connection in broker.connections for one in connection.publishes]
        return SimpleNamespace(fleet=fleet, result=result, publishes=publishes)

    return asyncio.run(session())


def test_a_broker_that_does_not_answer_slows_devices_down_and_it_is_in_the_log(tmp_path):
    seen = pressed_by_fake()
    result = seen.result
    assert [verb for verb, _ in verbs(result)][:2] == ["inject", "clear"]
    began, ended = (one for one in result.actions if "fault" in one.parameters)
    assert 0 < began.at < ended.at
    assert began.devices == wire.NORTH + wire.SOUTH
    rows = result.frame(truth=True, wire=True)
    true_s = (rows["true_time"] - result.start).dt.total_seconds()
    odd = (true_s >= began.at) & (true_s < ended.at) & (rows["seq"] % 2 == 1)
    assert odd.any()
    assert (rows["withheld"] == odd.map({True: "slow_down", False: ""})).all()
    ids = [message_id(packet) for packet in seen.publishes]
    assert len(ids) == len(set(ids)) == (~odd).sum()
    assert digest_of_messages(
        (bytes(packet.payload), message_id(packet)) for packet in seen.publishes
    ) == digest_of_left(result)
    assert result.errors == ()
    check_replays(result, tmp_path / "pressed.iotsim")


def test_a_session_that_was_slowed_down_is_not_what_generate_gives():
    seen = pressed_by_fake()
    lasted = f"{seen.result.end_us - seen.result.start_us}us"
    assert seen.fleet.generate(lasted, start=START).digest != seen.result.digest


def test_only_the_devices_of_the_full_connection_are_slowed_down(tmp_path):
    seen = pressed_by_fake(lambda client_id: client_id.endswith("-0"), north=9, south=9,
                           connections=2)
    injected, *more = (one for one in seen.result.actions if one.verb == "inject")
    assert "shard=0/2" in str(injected)
    rows = seen.result.frame(wire=True)
    slowed = set(rows.loc[rows["withheld"] == "slow_down", "device_id"])
    assert 0 < injected.devices < 18
    # On a machine that is slow enough the other connection is full, too, and later.
    assert len(slowed) == injected.devices or more
    calm = seen.fleet.generate(f"{seen.result.end_us - seen.result.start_us}us", start=START)
    assert changed(seen.result, calm) == slowed
    check_replays(seen.result, tmp_path / "one.iotsim")


def changed(result, other):
    """Whose readings differ."""
    words = [{name: word for group, sums, _ in one.digests.devices()
              for name, word in zip(group.ids, sums.tolist(), strict=True)}
             for one in (result, other)]
    return {name for name in words[0] if words[0][name] != words[1][name]}


def test_a_device_with_a_session_of_its_own_is_slowed_down_by_its_name(tmp_path):
    seen = pressed_by_fake(lambda client_id: client_id.endswith("north-1"),
                           sessions="per-device", queue_messages=10)
    assert {tuple(where["ids"]) for _, where in verbs(seen.result)} == {("north-1",)}
    lasted = f"{seen.result.end_us - seen.result.start_us}us"
    calm = seen.fleet.generate(lasted, start=START)
    assert changed(seen.result, calm) == {"north-1"}
    check_replays(seen.result, tmp_path / "own.iotsim")


@pytest.mark.broker
def test_mosquitto_that_hangs_for_a_while_gets_all_that_left_and_the_session_replays(
    mosquitto, tmp_path
):
    broker = mosquitto(receive_maximum=20)

    async def session():
        run = wire.fleet("hung", broker.url, **SLOW).start(speed=100, start=START)
        await run.ready()
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            await slowed(run)
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        await until(lambda: len(verbs(run)) == 2)
        return await run.stop()

    with iotsim.tap(broker.url, "wire/#") as tap:
        result = asyncio.run(session())
        account = next(iter(result.publishers.values()))
        assert tap.wait(account.acknowledged, 45)
        assert tap.digest() == digest_of_left(result)
    assert account.acknowledged == account.offered
    assert result.frame(wire=True)["withheld"].isin(["", "slow_down"]).all()
    check_replays(result, tmp_path / "hung.iotsim")


@pytest.mark.broker
def test_what_is_done_by_hand_is_on_the_wire_from_its_instant_on(mosquitto, tmp_path):
    broker = mosquitto()

    async def session(tap):
        run = wire.fleet("hand", broker.url).start(speed=60, start=START)
        await run.ready()
        done = {}
        for name, deed in (
            ("offset", lambda: run.inject("OFFSET", where="site=south", by=100, field="level")),
            ("silent", lambda: run.inject("disconnect", where="site=north", duration="1h")),
            ("back", lambda: run.clear("disconnect", where="site=north")),
            ("right", lambda: run.clear(where="site=south")),
            ("fewer", lambda: run.stop(where="id=north-0|north-1")),
        ):
            assert await tap.received(tap.count + 20, 45)
            done[name] = deed().at_us
        run.set_speed(600)
        assert await tap.received(tap.count + 60, 45)
        return await run.stop(), done

    with iotsim.tap(broker.url, "wire/#") as tap:
        result, done = asyncio.run(session(tap))
        assert tap.wait(sum(one.acknowledged for one in result.publishers.values()))
        assert tap.digest() == digest_of_left(result)
        messages = [wire.Message(i, 0, *parts) for i, parts in enumerate(
            (topic, ident, payload) for topic, payload, ident in tap.messages())]
    lasted = f"{result.end_us - result.start_us}us"
    calm = {(row["device_id"], row["seq"]): row["level"] for row in
            wire.fleet("hand", broker.url).generate(lasted, start=START).frame().to_dict("records")}
    came = set()
    for message in messages:
        (device, seq, _, _), at_us = message.key, message.stamp_us
        came.add((device, seq))
        off = not wire.is_north(device) and done["offset"] <= at_us < done["right"]
        assert message.body["fields"]["level"] == pytest.approx(
            calm[device, seq] + (100 if off else 0))
        assert not (wire.is_north(device) and done["silent"] <= at_us < done["back"])
        assert device not in ("north-0", "north-1") or at_us < done["fewer"]
    rows = result.frame(wire=True)
    missing = rows[rows["withheld"] == "disconnect"]
    assert came == set(zip(rows["device_id"], rows["seq"], strict=True)) - set(
        zip(missing["device_id"], missing["seq"], strict=True))
    check_replays(result, tmp_path / "hand.iotsim")
