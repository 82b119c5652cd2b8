"""Whom an audit blames: not the broker where the tap was away, slow, ill, or still receiving."""

import asyncio
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest

import iotsim.audit_received as received_module
from iotsim import Fleet, Scenario
from iotsim.publishers import memory
from iotsim.tapping.amqp import Source as AmqpSource
from iotsim.tapping.store import Store, unpacked
from iotsim.taps import Tap

START = "2026-03-01T12:00:00Z"
WALL_US = 1_700_000_000_000_000


class Recorded(Tap):
    """A tap without a process: messages come at each wait, some at a time."""

    def __init__(self, records, *, each=10_000_000, url="memory:doubt", ill="", away=()):
        self._all, self._each, self._now = list(records), each, 0
        self._told = {"url": url, "topic": "#", "ill": ill, "away": list(away),
                      "absence": "was disconnected once: messages may be missing",
                      "since_us": 1, "until_us": 0}
        self.since_us, self.until_us, self.waits = 1, 0, 0
        self.topic = "#"

    url = property(lambda self: self._told["url"])
    count = property(lambda self: self._now)
    away = property(lambda self: self._told["away"])

    def __repr__(self):
        return "<Recorded>"

    def witness(self):
        return dict(self._told)

    def records(self):
        return self._all[:self._now], self._told["ill"]

    def wait(self, count, timeout_s=10.0):
        self.waits += 1
        self._now = min(len(self._all), self._now + self._each)
        return self._now >= count


@cache
def ran():
    """Six devices for ten seconds, as if at the pace of the clock; what left, and when it did."""
    made = Fleet("doubt", seed=42).add("temperature_sensor", count=6, every="1s")
    result = asyncio.run(made.publish_to("memory:doubt").run("10s", speed="max", start=START))
    result = replace(result, paces=((result.start_us, WALL_US, 1.0),))
    sent = memory.messages("doubt")
    left = result.audit(sent).readings().set_index("id")["left"]
    at_us = {name: int(left[name].value // 1000) - result.start_us for _, _, name in sent}
    return result, sent, at_us


def records(sent, at_us, lag_us=lambda at_us: 2000):
    found = [(WALL_US + at_us[name] + lag_us(at_us[name]), topic, name, payload, 1, 0)
             for topic, payload, name in sent]
    return sorted(found, key=lambda one: one[0])


def without_those_that_left_at(sent, at_us, *seconds):
    """All but the first that left after each of these instants."""
    gone = {min((at_us[name], name) for name in at_us if at_us[name] >= second * 1e6)[1]
            for second in seconds}
    return [message for message in sent if message[2] not in gone]


def test_an_audit_waits_as_long_as_the_tap_moves():
    result, sent, at_us = ran()
    tap = Recorded(records(sent, at_us), each=2)
    audit = result.audit(tap)
    assert audit.ok, audit.verdict
    assert tap.waits == len(sent) / 2


def test_what_has_not_come_when_time_is_up_is_unknown_and_nobodys_loss(monkeypatch):
    monkeypatch.setattr(received_module, "WAIT_S", 0.0)
    result, sent, at_us = ran()
    audit = result.audit(Recorded(records(sent, at_us), each=2))
    assert (audit.unknown, audit.lost) == (len(sent) - 2, 0)
    assert "the tap is still receiving" in audit.verdict
    assert not audit.ok


def test_messages_of_an_earlier_run_do_not_end_the_waiting():
    result, sent, at_us = ran()
    strange = [(WALL_US, "devices/x", f"other/x/{i}/0", b"{}", 1, 0) for i in range(len(sent))]
    audit = result.audit(Recorded([*strange, *records(sent, at_us)], each=len(sent)))
    assert audit.ok, audit.verdict
    assert audit.foreign == len(sent)


def test_only_what_left_while_the_tap_was_away_is_unknown():
    result, sent, at_us = ran()
    kept = without_those_that_left_at(sent, at_us, 1, 4, 8)
    away = [(WALL_US + 3_500_000, WALL_US + 5_500_000)]
    audit = result.audit(Recorded(records(kept, at_us), away=away))
    assert (audit.lost_by_broker, audit.unknown, audit.received) == (2, 1, len(sent) - 3)
    assert "was disconnected once" in audit.verdict
    still = result.audit(Recorded(records(kept, at_us), away=[(WALL_US + 3_500_000, 0)]))
    assert (still.lost_by_broker, still.unknown) == (1, 2)


def test_what_waited_in_our_queue_until_the_tap_was_gone_is_unknown_too():
    result, sent, at_us = ran()
    kept = without_those_that_left_at(sent, at_us, 1, 3)

    def lag_us(at):  # what left from 2.5 s on waited for the broker, which came back at 6 s
        return 6_000_000 - at if 2_500_000 < at < 6_000_000 else 2000

    away = [(WALL_US + 4_000_000, WALL_US + 5_500_000)]
    audit = result.audit(Recorded(records(kept, at_us, lag_us), away=away))
    assert (audit.lost_by_broker, audit.unknown) == (1, 1)


def test_a_broker_is_not_blamed_for_what_is_missing_beside_late_ones():
    result, sent, at_us = ran()
    kept = without_those_that_left_at(sent, at_us, 4, 8)

    def lag_us(at):
        return 3_200_000 if 3_000_000 < at < 5_000_000 else 2000

    there = records(kept, at_us, lag_us)
    audit = result.audit(Recorded(there, url="mqtt://127.0.0.1:1"), publisher="memory:doubt")
    assert (audit.lost_by_broker, audit.unknown) == (1, 1)
    assert ("(the tap was up to 3.2 s behind; a broker drops for slow subscribers)"
            in audit.verdict)
    # A queue that is the tap's own drops nothing.
    kind = result.audit(Recorded(there, url="amqp://127.0.0.1:1"), publisher="memory:doubt")
    assert (kind.lost_by_broker, kind.unknown) == (2, 0)


def test_hundreds_of_messages_before_a_reading_are_as_late_as_half_a_second():
    result, sent, at_us = ran()
    kept = without_those_that_left_at(sent, at_us, 4)
    there = records(kept, at_us, lambda at: 400_000)
    url = "mqtt://127.0.0.1:1"
    quiet = result.audit(Recorded(there, url=url), publisher="memory:doubt")
    assert (quiet.lost_by_broker, quiet.unknown) == (1, 0)
    first = min(at for at in at_us.values() if at >= 4e6)
    noise = [(WALL_US + first + i, "x", "other/x/0/0", b"", 0, 0) for i in range(900)]
    busy = sorted([*there, *noise], key=lambda one: one[0])
    audit = result.audit(Recorded(busy, url=url), publisher="memory:doubt")
    assert (audit.lost_by_broker, audit.unknown) == (0, 1)


def test_where_time_was_virtual_nobody_knows_how_slow_a_tap_was():
    result, sent, at_us = ran()
    virtual = replace(result, paces=((result.start_us, WALL_US, float("inf")),))
    there = records(sent[1:], at_us)
    audit = virtual.audit(Recorded(there, url="mqtt://127.0.0.1:1"), publisher="memory:doubt")
    assert (audit.lost_by_broker, audit.unknown) == (0, 1)
    assert "publish with stamp=True" in audit.verdict


def test_plain_messages_are_believed_and_the_verdict_says_so():
    result, sent, _ = ran()
    audit = result.audit(sent[1:])
    assert audit.lost_by_broker == 1
    assert audit.verdict.endswith("the tap's health is not known")
    assert "health" not in result.audit(sent).verdict


def test_an_audit_of_nothing_is_not_ok():
    result, sent, _ = ran()
    audit = result.audit(sent, where="id=nobody")
    assert audit.verdict.startswith(
        "nothing to compare: no reading has left a device that where= chooses")
    assert not audit.ok
    stored = (Fleet("silent", seed=1).add("temperature_sensor", count=2, every="1s")
              .publish_to("memory:silent"))
    story = Scenario("silent", stored).at("0s").inject("disconnect", duration="3s").lasting("3s")
    silent = asyncio.run(story.run(speed="max", start=START)).audit(memory.messages("silent"))
    assert silent.verdict.startswith("nothing to compare: every reading was withheld by a fault")
    assert not silent.ok


# -- the sources --------------------------------------------------------------------------------


def test_amqp_delivers_again_what_was_not_acknowledged_and_the_tap_keeps_it_once():
    store = Store(100)
    source = AmqpSource({"queue": None}, store)
    acked = []

    async def ack(multiple):
        acked.append(multiple)

    def message(ident, body, again=False):
        return SimpleNamespace(message_id=ident, routing_key="k", body=body, headers={}, ack=ack,
                               redelivered=again)

    async def work():
        await source._take(message("a", b"1"))
        await source._take(message("a", b"1"))  # twice published
        await source._take(message("a", b"1", again=True))
        await source._take(message("b", b"2", again=True))  # somebody else had it, not we
        await source._take(message("a", b"3", again=True))
        for i in range(300):
            await source._take(message(f"c{i}", b"4", again=True))

    asyncio.run(work())
    kept = [(ident, body) for _, _, ident, body, *_ in unpacked(store.packed(0, 4))]
    assert kept == [("a", b"1"), ("a", b"1"), ("b", b"2"), ("a", b"3")]
    assert acked == [True], "after so many, and not only after some time"


@pytest.mark.parametrize("kept", [False, True])
def test_a_store_knows_when_nobody_listened(kept):
    store = Store(10)
    store.connected()
    store.subscribed()
    store.take(b"t", b"", b"1")
    (came_us, *_), = unpacked(store.packed(0, 1))
    store.paused() if kept else store.lost()
    assert store.state["away"] == ([] if kept else [[came_us, 0]])
    store.connected()
    store.subscribed()
    assert len(store.state["away"]) == (not kept)
    for since_us, until_us in store.state["away"]:
        assert since_us < until_us
    for _ in range(2000):
        store.lost()
        store.connected()
        store.subscribed()
    assert len(store.state["away"]) <= 1000
    assert store.state["losses"] == 2000 + (not kept)
