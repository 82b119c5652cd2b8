"""The pump: its account, its bounds, its order, its end. No broker needed."""

import asyncio
import io
import json
import sys
import time
from collections import Counter

import numpy as np
import pytest

from iotsim import Fleet
from iotsim.errors import BadValue, ConnectError, UnknownName
from iotsim.publishers import memory
from iotsim.publishers.backoff import BACKOFF_CEILING_S, BACKOFF_FIRST_S
from iotsim.publishers.base import Loss, build
from iotsim.publishers.ledger import REASONS_MAX, Latency, Ledger
from iotsim.publishers.pump import Pump
from iotsim.seeding import device_keys
from tests.publishing import (
    CheckedLedger,
    Gate,
    GateLink,
    block,
    gated,
    in_order_per_device,
    one,
    own,
    pumping,
    turn,
    until,
)

# -- admission ------------------------------------------------------------------------------------


def test_drop_oldest_drops_the_oldest_that_wait_and_counts_them():
    async def scenario():
        gate = Gate(window=5)
        async with gated(gate, backpressure="drop_oldest", queue_messages=20) as pump:
            await pump.offer(0, block(10))
            await turn()
            assert gate.links[0].sent == list(block(10).ids)[:5]
            await pump.offer(0, block(40, first=10))
            gate.behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)
            gate.links[0].acknowledge()
            await pump.drain(2)
            return gate.links[0].sent, pump.snapshot()

    sent, account = asyncio.run(scenario())
    ids = list(block(50).ids)
    assert sent == ids[:5] + ids[30:]
    assert account.dropped == 25
    assert dict(account.drops) == {"queue full, oldest dropped": 25}
    assert account.acknowledged == 25


def test_a_full_lane_delays_its_own_callers_only():
    async def scenario():
        gate = Gate(count=2, window=5)
        async with gated(gate, queue_messages=10) as pump:
            stuck = asyncio.create_task(pump.offer(0, block(100)))
            await turn()
            assert not stuck.done()
            assert pump.snapshot().offered == 15
            gate.links[1].gate = Gate(behave=lambda link, t, i: link.verdicts.acknowledged(t))
            async with asyncio.timeout(10):
                for n in range(50):
                    await pump.offer(1, block(10, first=n * 10))
                    await turn()
            assert pump.snapshot().acknowledged == 500
            assert not stuck.done()
            while not stuck.done():
                gate.links[0].acknowledge()
                await turn()
            gate.behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)
            gate.links[0].acknowledge()
            assert await pump.drain(1)
            return gate.links[0].sent

    assert asyncio.run(scenario()) == list(block(100).ids)


def test_callers_of_a_full_lane_are_served_in_their_order():
    async def scenario():
        gate = Gate(window=3)
        async with gated(gate, queue_messages=4) as pump:
            waiting = [
                asyncio.create_task(pump.offer(0, block(7, first=7 * n, devices=1)))
                for n in range(6)
            ]
            while not all(task.done() for task in waiting):
                await turn()
                gate.links[0].acknowledge()
            while pump.snapshot().acknowledged < 42:
                await turn()
                gate.links[0].acknowledge()
            return gate.links[0].sent

    assert asyncio.run(scenario()) == list(block(42, devices=1).ids)


def test_a_cancelled_offer_is_accounted_for():
    async def scenario():
        async with gated(Gate(window=5), queue_messages=10) as pump:
            task = asyncio.create_task(pump.offer(0, block(100)))
            await turn()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            return pump.snapshot()

    account = asyncio.run(scenario())
    assert (account.offered, account.dropped, account.queued, account.in_flight) == (100, 85, 10, 5)


def test_slow_down_queues_like_block_and_says_how_full_it_is():
    async def scenario():
        gate = Gate(window=10)
        async with gated(gate, queue_messages=100, backpressure="slow_down") as pump:
            empty = pump.fill(0)
            await pump.offer(0, block(90))
            await turn()
            nearly = pump.fill(0)
            waiting = asyncio.create_task(pump.offer(0, block(40, first=90)))
            await turn()
            assert not waiting.done()
            full = pump.fill(0)
            gate.behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)
            gate.links[0].acknowledge()
            await waiting
            assert await pump.drain(3)
            return empty, nearly, full, pump.fill(0), pump.snapshot()

    empty, nearly, full, after, account = asyncio.run(scenario())
    assert (empty, nearly, full, after) == (0, 0.8, 1, 0)
    assert account.acknowledged == 130


def test_an_unknown_back_pressure_is_one_line_that_says_what_there_is():
    with pytest.raises(BadValue, match="Use one of: block, drop_oldest, slow_down"):
        build("memory:x", backpressure="drop_newest")


# -- order and retry ------------------------------------------------------------------------------


def test_what_was_in_flight_is_unknown_then_sent_again_first_under_the_same_ids():
    async def scenario():
        gate = Gate(window=10)
        async with gated(gate) as pump:
            await pump.offer(0, block(30))
            await turn()
            link = gate.links[0]
            link.acknowledge(4)
            await turn()
            assert pump.snapshot().in_flight == 10
            link.verdicts.lost(Loss("the cable"))
            at_loss = pump.snapshot()
            gate.behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)
            assert await pump.drain(3)
            return at_loss, link.sent, pump.snapshot(), pump.errors

    at_loss, sent, account, errors = asyncio.run(scenario())
    ids = list(block(30).ids)
    assert (at_loss.unknown, at_loss.in_flight, at_loss.queued) == (10, 0, 16)
    assert sent == ids[:14] + ids[4:]
    assert account.acknowledged == 30
    assert account.retries == 10
    assert account.reconnects == 1
    assert errors == ("link lost: the cable",)


def test_the_back_off_grows_to_a_ceiling_with_jitter_from_the_run_id():
    def delays(run_id):
        pump = Pump(Gate(), run_id=run_id)
        asyncio.run(pump.open())
        return [pump._lanes[0]._connector.delay_s(n) for n in range(1, 40)]

    first = delays("a")
    assert first == delays("a") != delays("b")
    assert BACKOFF_FIRST_S / 2 <= first[0] <= BACKOFF_FIRST_S
    assert all(delay <= BACKOFF_CEILING_S for delay in first)
    assert all(delay >= BACKOFF_CEILING_S / 2 for delay in first[8:])
    assert len(set(first[8:])) > 25


def test_a_broker_that_stays_away_for_some_tries_gets_everything():
    async def scenario():
        gate = Gate(window=10)
        async with gated(gate) as pump:
            await pump.offer(0, block(20))
            await turn()
            gate.failures = 3
            gate.behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)
            gate.links[0].verdicts.lost(Loss("power", "cut"))
            assert pump.connected == 0
            assert await pump.drain(5)
            return pump.snapshot(), pump.errors

    account, errors = asyncio.run(scenario())
    assert account.acknowledged == 20
    assert errors[1].endswith("closed for now. (×3)")


def test_a_lane_comes_back_whatever_its_link_fails_with(monkeypatch):
    monkeypatch.setattr("iotsim.publishers.backoff.BACKOFF_CEILING_S", 0.05)
    troubles = [
        ValueError("one\nline"),
        OSError(24, "Too many open files"),
        BadValue("ca", "x.pem", "is not a file", "Give one."),
        RuntimeError("can't start new thread"),
    ]

    class Troubled(GateLink):
        async def open(self):
            if self.opened and troubles:
                raise troubles.pop(0)
            return await super().open()

    async def scenario():
        gate = Gate(window=10)
        monkeypatch.setattr(gate, "link", lambda _n, _run, verdicts: made(gate, verdicts))
        async with gated(gate, deadline_s=3) as pump:
            await pump.offer(0, block(20))
            await turn()
            gate.behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)
            gate.links[0].verdicts.lost(Loss("power"))
            assert await pump.drain(5)
            return pump.snapshot(), pump.errors

    def made(gate, verdicts):
        gate.links.append(Troubled(gate, verdicts))
        return gate.links[-1]

    account, errors = asyncio.run(scenario())
    assert account.acknowledged == 20
    assert account.reconnects == 1
    assert errors == (
        "link lost: power",
        "reconnecting failed: one line (ValueError)",
        "reconnecting failed: Too many open files (OSError)",
        "ca='x.pem' is not a file. Give one.",
        "reconnecting failed: can't start new thread (RuntimeError)",
    )


def test_a_message_alone_on_a_link_that_is_cut_where_others_go_through_is_passed_over():
    async def scenario():
        def touchy(link, tokens, items):
            for token, item in zip(tokens, items, strict=True):
                if item[2] == "run/d-5/0/0":
                    link.verdicts.lost(Loss("closed without a word", "cut"))
                    return
                link.verdicts.acknowledged([token])

        gate = Gate(behave=touchy)
        async with gated(gate, deadline_s=3) as pump:
            await pump.offer(0, block(50))
            assert await pump.drain(5)
            return pump.snapshot(), gate.links[0].sent

    account, sent = asyncio.run(scenario())
    assert account.acknowledged == 49
    assert dict(account.refusals) == {"ended the connection 5 times": 1}
    assert sent.count("run/d-5/0/0") == 5
    assert account.reconnects == 5


def test_a_broker_that_dies_again_and_again_makes_no_message_poison(monkeypatch):
    monkeypatch.setattr("iotsim.publishers.backoff.BACKOFF_CEILING_S", 0.05)

    async def scenario():
        gate = Gate(window=10)
        async with gated(gate, deadline_s=3) as pump:
            await pump.offer(0, block(10))
            for _ in range(6):
                await until(lambda: gate.links[0].open_tokens)
                gate.failures = 1
                gate.links[0].open_tokens.clear()
                gate.links[0].verdicts.lost(Loss("killed", "cut"))
            gate.behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)
            assert await pump.drain(10)
            return pump.snapshot()

    account = asyncio.run(scenario())
    assert account.acknowledged == 10


def test_a_link_that_takes_something_now_and_then_and_is_cut_refuses_nobody(monkeypatch):
    """A forwarder that accepts and ends: it takes one message in three connections."""
    monkeypatch.setattr("iotsim.publishers.backoff.BACKOFF_CEILING_S", 0.02)

    async def scenario():
        def flapping(link, tokens, items):
            if link.opened % 3 == 0 and link.fresh != link.opened:
                link.fresh = link.opened
                link.verdicts.acknowledged(tokens[:1])
                if len(tokens) == 1:
                    return  # the next one is cut
            link.verdicts.lost(Loss("closed without a word", "cut"))

        gate = Gate(behave=flapping, window=10)
        async with gated(gate, deadline_s=3) as pump:
            await pump.offer(0, block(30))
            await until(lambda: pump.snapshot().reconnects > 40, 10)
            meanwhile = pump.snapshot()
            gate.behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)
            gate.links[0].verdicts.lost(Loss("at last"))
            assert await pump.drain(5)
            return meanwhile, pump.snapshot()

    meanwhile, account = asyncio.run(scenario())
    assert meanwhile.acknowledged > 3
    assert (account.acknowledged, account.refused) == (30, 0)


def test_only_another_device_can_prove_that_a_message_ends_the_link(monkeypatch):
    monkeypatch.setattr("iotsim.publishers.backoff.BACKOFF_CEILING_S", 0.02)

    async def scenario():
        def touchy(link, tokens, items):
            for token, item in zip(tokens, items, strict=True):
                if item[2].startswith("run/d-0/"):
                    link.verdicts.lost(Loss("closed without a word", "cut"))
                    return
                link.verdicts.acknowledged([token])

        gate = Gate(behave=touchy)
        async with gated(gate, deadline_s=3) as pump:
            await pump.offer(0, block(5, devices=1))
            await until(lambda: pump.snapshot().reconnects > 12, 10)
            alone = pump.snapshot()
            await pump.offer(0, own("d-9", 3))
            await until(lambda: pump.snapshot().refused, 10)
            return alone, pump.snapshot(), gate.links[0].sent

    alone, account, sent = asyncio.run(scenario())
    assert (alone.refused, alone.acknowledged) == (0, 0)
    [(reason, count)] = account.refusals.items()
    assert count == 1
    times = int(reason.removeprefix("ended the connection ").removesuffix(" times"))
    assert sent.count("run/d-0/0/0") == times
    assert account.acknowledged >= 2  # those that proved it


@pytest.mark.parametrize("kind", ["refused", "returned"])
def test_what_waits_after_a_refusal_for_now_is_the_oldest_and_counts_as_queued(kind):
    async def scenario():
        gate = Gate(window=10)
        async with gated(gate, backpressure="drop_oldest", queue_messages=15) as pump:
            for first in (0, 10):
                await pump.offer(0, block(10, first=first))
                await turn()
            link = gate.links[0]
            if kind == "refused":
                link.verdicts.refused(link.open_tokens[:10], "busy", retry=True)
            else:
                link.verdicts.returned(link.open_tokens[:10], 5.0)
            assert pump.snapshot().queued == 20  # until the next is offered
            await pump.offer(0, block(2, first=20))
            full = pump.snapshot()
            assert pump.fill(0) == 1
            pump._lanes[0]._end_rest()
            gate.behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)
            await turn()
            assert await pump.drain(2)
            return full, link.sent[10:], link.gone

    full, sent, gone = asyncio.run(scenario())
    ids = list(block(22).ids)
    assert (full.queued, full.dropped) == (15, 7)
    assert sent == ids[7:]
    assert list(gone) == list(range(7))


def test_a_caller_that_waits_for_room_waits_for_what_is_held_too():
    async def scenario():
        gate = Gate(window=10)
        async with gated(gate, queue_messages=10) as pump:
            await pump.offer(0, block(10))
            await turn()
            gate.links[0].verdicts.refused(gate.links[0].open_tokens, "busy", retry=True)
            waiting = asyncio.create_task(pump.offer(0, block(5, first=10)))
            await turn()
            assert not waiting.done()
            assert pump.snapshot().queued == 10
            gate.behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)
            await waiting
            assert await pump.drain(3)
            return pump.snapshot()

    assert asyncio.run(scenario()).acknowledged == 15


def test_a_full_window_refused_for_now_one_by_one_takes_no_time():
    """Each of 8,192, the newest first, and an acknowledgement after each hundred."""
    count = 8192

    async def scenario():
        gate = Gate(window=count, pipelines=True)
        async with gated(gate) as pump:
            await pump.offer(0, block(count, devices=500))
            await until(lambda: pump.snapshot().in_flight == count)
            link = gate.links[0]
            began = time.perf_counter()
            for n, token in enumerate(reversed(link.open_tokens)):
                if n % 100:
                    link.verdicts.refused([token], "busy", retry=True)
                else:
                    link.verdicts.acknowledged([token])
            took = time.perf_counter() - began
            gate.behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)
            before = len(link.sent)
            assert await pump.drain(10)
            return took, link.sent[before:], pump.snapshot()

    took, again, account = asyncio.run(scenario())
    assert took < 20  # it took 100 s
    assert account.acknowledged == count
    done = set(range(count - 1, -1, -100))
    assert again == [ident for n, ident in enumerate(block(count, devices=500).ids)
                     if n not in done]


def test_the_deadline_for_an_acknowledgement_begins_anew_with_each_try():
    async def scenario():
        gate = Gate(window=10)
        async with gated(gate, ack_deadline_s=0.4) as pump:
            await pump.offer(0, block(1))
            await asyncio.sleep(0.15)
            link = gate.links[0]
            link.verdicts.returned(link.open_tokens, 0.6)  # as if asked to wait
            await until(lambda: len(link.sent) == 2)
            await asyncio.sleep(0.2)
            link.acknowledge()
            return pump.snapshot(), pump.errors

    account, errors = asyncio.run(scenario())
    assert (account.acknowledged, account.reconnects, errors) == (1, 0, ())


def test_an_account_that_differs_from_what_its_lanes_hold_is_noticed():
    async def scenario():
        pump = Pump(Gate(), ledger=CheckedLedger())
        await pump.open()
        await pump.offer(0, block(5))
        pump._lanes[0]._stock._queue.drop(1)  # behind the ledger's back
        await turn()
        await pump.close(0.1)
        return pump._ledger.wrong

    assert "the account says" in asyncio.run(scenario())[0]


def test_a_link_that_breaks_its_promises_loses_nothing():
    async def scenario():
        def broken(link, tokens, items):
            if link.opened == 1:
                raise KeyError("a bug")
            link.verdicts.acknowledged(tokens)
            link.verdicts.acknowledged(tokens)  # twice
            link.verdicts.refused([10**6], "never sent")

        async with gated(Gate(behave=broken), deadline_s=3) as pump:
            await pump.offer(0, block(20))
            assert await pump.drain(5)
            return pump.snapshot(), pump.errors

    account, errors = asyncio.run(scenario())
    assert account.acknowledged == 20
    assert "the link failed: KeyError" in errors[0]


def test_a_temporary_refusal_is_tried_again_a_bounded_number_of_times(monkeypatch):
    monkeypatch.setattr("iotsim.publishers.backoff.BACKOFF_CEILING_S", 0.05)

    async def scenario():
        def busy(link, tokens, items):
            for token, item in zip(tokens, items, strict=True):
                if item[2] == "run/d-2/0/0":
                    link.verdicts.refused([token], "busy", retry=True)
                else:
                    link.verdicts.acknowledged([token])

        gate = Gate(behave=busy)
        async with gated(gate) as pump:
            await pump.offer(0, block(6))
            await turn()
            assert gate.links[0].sent.count("run/d-2/0/0") == 1  # it waits first
            assert await pump.drain(5)
            return pump.snapshot(), gate.links[0].sent

    account, sent = asyncio.run(scenario())
    assert account.acknowledged == 5
    assert dict(account.refusals) == {"busy": 1}
    assert sent.count("run/d-2/0/0") == 8
    assert account.retries == 7


# -- the end --------------------------------------------------------------------------------------


def test_the_end_comes_in_time_and_says_what_was_not_sent():
    async def scenario():
        gate = Gate(window=5)
        pump = Pump(gate, ledger=CheckedLedger(), queue_messages=50)
        await pump.open()
        offers = [asyncio.create_task(pump.offer(0, block(40, first=40 * n))) for n in range(2)]
        await turn()
        started = time.perf_counter()
        await pump.close(1.0)
        took = time.perf_counter() - started
        await asyncio.gather(*offers)
        await pump.offer(0, block(3))
        assert gate.links[0].closed
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return took, pump.snapshot()

    took, account = asyncio.run(scenario())
    assert took < 8
    assert (account.offered, account.unknown, account.in_flight, account.queued) == (83, 5, 0, 0)
    assert dict(account.drops) == {
        "stopped before it was sent": 50,
        "stopped while waiting for room": 25,
        "offered after the stop": 3,
    }


def test_the_end_comes_in_time_when_the_broker_is_away():
    async def scenario():
        gate = Gate(window=5)
        pump = Pump(gate, ledger=CheckedLedger())
        await pump.open()
        await pump.offer(0, block(40))
        await turn()
        gate.failures = 1000
        gate.links[0].verdicts.lost(Loss("gone"))
        started = time.perf_counter()
        await pump.close(0.8)
        return time.perf_counter() - started, pump.snapshot()

    took, account = asyncio.run(scenario())
    assert took < 8
    assert (account.unknown, account.dropped) == (5, 35)


def test_one_lane_that_cannot_connect_fails_the_whole_opening_and_closes_the_rest():
    async def scenario():
        gate = Gate(count=3)
        pump = Pump(gate)
        open_one = GateLink.open

        async def refuse_second(link):
            if link is gate.links[1]:
                raise ConnectError("gate:", "no")
            return await open_one(link)

        GateLink.open = refuse_second
        try:
            with pytest.raises(ConnectError):
                await pump.open()
        finally:
            GateLink.open = open_one
        assert all(link.closed for link in gate.links)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


# -- the account ----------------------------------------------------------------------------------


def test_reasons_are_bounded():
    ledger = Ledger()
    for n in range(100):
        ledger.offer(1, "dropped", f"reason {n}")
    drops = ledger.snapshot().drops
    assert len(drops) == REASONS_MAX + 1
    assert drops["other"] == 100 - REASONS_MAX


def test_latency_quantiles_are_within_a_tenth():
    latency = Latency()
    seconds = np.random.default_rng(1).lognormal(-5, 1, 50_000)
    latency.add(seconds.tolist())
    for share in (0.01, 0.5, 0.99):
        assert latency.quantile(share) == pytest.approx(np.quantile(seconds, share), rel=0.1)
    assert latency.max_s == seconds.max()


def test_a_message_is_settled_once_and_the_observer_hears_of_it():
    heard = []

    async def scenario():
        def behave(link, tokens, items):
            link.verdicts.refused(tokens[:1], "no")
            link.verdicts.acknowledged(tokens[1:])

        tell = lambda ids, outcome, seconds: heard.append((list(ids), outcome, len(seconds)))  # noqa: E731
        async with gated(Gate(behave=behave), settled=tell) as pump:
            await pump.offer(0, block(4))

    asyncio.run(scenario())
    ids = list(block(4).ids)
    assert heard == [(ids[:1], "refused: no", 0), (ids[1:], "acknowledged", 3)]


def test_an_observer_that_fails_stops_nothing():
    def observe(ids, outcome, seconds):
        raise KeyError("theirs")

    async def scenario():
        behave = lambda link, tokens, items: link.verdicts.acknowledged(tokens)  # noqa: E731
        async with gated(Gate(behave=behave), settled=observe) as pump:
            await pump.offer(0, block(10))
            assert await pump.drain(1)
            return pump.snapshot(), pump.errors

    account, errors = asyncio.run(scenario())
    assert account.acknowledged == 10
    assert errors == ("an observer failed: KeyError: 'theirs'",)


def test_what_is_not_even_offered_is_accounted_for():
    async def scenario():
        async with gated(Gate()) as pump:
            pump.discard(7, "no room")
            pump.stop_admission()
            await pump.offer(0, block(3))
        return pump.snapshot()

    account = asyncio.run(scenario())
    assert (account.offered, account.dropped) == (10, 10)
    assert dict(account.drops) == {"no room": 7, "offered after the stop": 3}


def test_errors_are_bounded_and_repeats_are_counted():
    pump = Pump(Gate())
    for n in range(300):
        pump._notice(f"error {n // 2}")
    assert len(pump.errors) == 100
    assert pump.errors[-1] == "error 149 (×2)"


def test_lanes_are_stable_and_balanced():
    pump = Pump(build("mqtt://h"), devices=400_000)
    keys = device_keys(7, [f"d-{i:05d}" for i in range(40_000)])
    lanes = pump.lane_of(keys)
    assert pump.lanes == 4
    assert np.bincount(lanes).min() > 9_500
    assert (pump.lane_of(keys[100:200]) == lanes[100:200]).all()
    assert [Pump(build("mqtt://h"), devices=n).lanes for n in (1, 100_000, 100_001, 10**6)] == [
        1, 1, 2, 8,
    ]  # fmt: skip


# -- memory, console, file ------------------------------------------------------------------------


def test_memory_keeps_what_was_published_in_order():
    async def scenario():
        async with pumping("memory:kept") as pump:
            for n in range(5):
                await pump.offer(0, block(300, first=300 * n))
        return pump.snapshot()

    account = asyncio.run(scenario())
    got = memory.messages("kept")
    assert account.acknowledged == len(got) == 1500
    assert [payload for _, payload, _ in got] == list(block(1500).payloads)
    assert in_order_per_device(ident for _, _, ident in got)
    asyncio.run(scenario())
    assert len(memory.messages("kept")) == 1500
    assert memory.messages("never used") == []


def test_memory_is_bounded():
    async def scenario():
        async with pumping("memory:small", capacity=10) as pump:
            await pump.offer(0, block(30))

    asyncio.run(scenario())
    assert [i for _, _, i in build("memory:small").messages()] == list(block(30).ids)[20:]


def test_console_shows_topic_and_payload(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)

    async def scenario():
        async with pumping("console:") as pump:
            await pump.offer(0, one("a/b", b'{"x":1}'))

    asyncio.run(scenario())
    assert shown.getvalue() == '[a/b] {"x":1}\n'


def test_a_file_holds_one_payload_per_line(tmp_path):
    path = tmp_path / "out.ndjson"

    async def scenario():
        async with pumping(f"file:{path}") as pump:
            for n in range(3):
                await pump.offer(0, one("t", json.dumps({"n": n}).encode()))

    for _ in range(2):
        asyncio.run(scenario())
        lines = path.read_text().splitlines()
        assert [json.loads(line)["n"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_routes_of_one_run_share_a_sink_and_the_next_run_begins_afresh(tmp_path, scheme):
    path = tmp_path / "shared.ndjson"
    (tmp_path / "elsewhere").mkdir()
    urls = ["memory:shared", "memory:shared"]
    if scheme == "file":
        urls = [f"file:{path}", f"file:{tmp_path}/elsewhere/../shared.ndjson"]

    def kept():
        if scheme == "file":
            return path.read_bytes().splitlines()
        return [payload for _, payload, _ in memory.messages("shared")]

    async def run(name):
        small = {"capacity": 10} if scheme == "memory" else {}
        first = Pump(build(urls[0], **small), run_id=f"{name}-0")
        second = Pump(build(urls[1], backpressure="drop_oldest"), run_id=f"{name}-1")
        await first.open()
        await second.open()
        await first.offer(0, block(20))
        await first.drain(2)
        await second.offer(0, block(20, first=20))
        await second.close()
        await first.offer(0, block(20, first=40))
        await first.close()
        assert first.snapshot().acknowledged + second.snapshot().acknowledged == 60
        return first, second

    for name in ("one", "two"):
        pumps = asyncio.run(run(name))  # still there when the next run begins
        assert kept() == list(block(60).payloads)
    assert pumps


@pytest.mark.parametrize("again", [False, True])
def test_two_routes_to_one_sink_lose_nothing_of_what_is_acknowledged(tmp_path, again):
    path = tmp_path / "two.ndjson"
    fleet = Fleet("two", seed=1).add("smart_lock", count=2).add("vehicle_tracker", count=2)
    for url in ("memory:two", f"file:{path}"):
        published = fleet.publish_to(url)
        if again:
            published = published.publish_to(url, where="device_type=smart_lock")
        result = asyncio.run(published.run("2m", speed="max"))
        taken = sum(ledger.acknowledged for ledger in result.publishers.values())
        assert taken == (96 if again else 72)
    assert len(memory.messages("two")) == taken
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert Counter(line["device_type"] for line in lines) == {
        "smart_lock": 48 if again else 24, "vehicle_tracker": 48,
    }  # fmt: skip


def test_a_file_that_cannot_be_written_is_an_error_at_the_start(tmp_path):
    async def scenario():
        async with pumping(f"file:{tmp_path}/missing/out.ndjson"):
            pass

    with pytest.raises(ConnectError, match="No such file"):
        asyncio.run(scenario())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
def test_a_full_disk_is_seen_and_nothing_is_called_written():
    async def scenario():
        async with pumping("file:/dev/full", deadline_s=0.8) as pump:
            await pump.offer(0, block(10))
        return pump.snapshot(), pump.errors

    account, errors = asyncio.run(scenario())
    assert account.acknowledged == 0
    assert account.unknown == 10
    assert "No space left" in errors[0]


# -- what is refused at the door ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "kind", "words"),
    [
        ("mqtt://h", {"qoss": 1}, UnknownName, r"no mqtt option called 'qoss'. Did you mean 'qos'"),
        ("mqtt://h", {"qos": 3}, BadValue, "qos=3 cannot be used. Give a whole number from 0 to 2"),
        ("mqtt://h", {"qos": True}, BadValue, "qos=True cannot be used"),
        ("mqtt://h", {"connections": 0}, BadValue, "connections=0"),
        ("mqtt://h", {"version": "4"}, BadValue, "Use one of: 5, 3.1.1"),
        ("mqtt://h", {"retain": 1}, BadValue, "Give True or False"),
        ("mqtt://h", {"ca": "x.pem"}, BadValue, "ca='x.pem' needs TLS. Use mqtts://"),
        ("mqtt://h", {"verify": False}, BadValue, "verify=False needs TLS"),
        ("mqtts://h", {"ca": "/no/such"}, BadValue, "ca='/no/such' is not a file"),
        ("mqtt://h", {"keepalive": 0}, BadValue, "keepalive=0"),
        ("mqtt://h", {"client_id": "a\nb"}, BadValue, "client_id="),
        ("mqtt://h", {"queue_messages": 0}, BadValue, "queue_messages=0"),
        ("mqtt://", {}, BadValue, "names no host"),
        ("mqtt://h:x", {}, BadValue, "is not a URL with a valid port"),
        ("mqtt:u:s3cret@h", {}, BadValue, r"url='mqtt:\*\*\*@h' names no host"),
        ("mqtt:/u:s3cret@h", {}, BadValue, "names no host|has a path"),
        ("u:s3cret@h", {}, BadValue, r"url='\*\*\*@h' has no scheme"),
        ("s3cret:@h", {}, BadValue, r"url='\*\*\*@h' has no scheme"),
        ("mqtt://u:s3cret", {}, BadValue, r"'mqtt://u:\*\*\*' is not a URL with a valid port"),
        ("mqtt://u:p@h:s3cret", {}, BadValue, r"@h:\*\*\*' is not a URL with a valid port"),
        ("mqtt://[s3cret", {}, BadValue, "is not a URL with a valid port"),
        ("mqtt://h:70000", {}, BadValue, "is not a URL with a valid port"),
        ("mqtt://h/topic", {}, BadValue, "has a path or a query"),
        ("mqqt://h", {}, UnknownName, "no publisher called 'mqqt'. Did you mean 'mqtt'"),
        ("broker", {}, BadValue, "has no scheme"),
        ("file:", {}, BadValue, "names no file"),
        ("console:x", {}, BadValue, "has more than a scheme"),
        ("memory:x", {"qos": 1}, UnknownName,
         "Known: audit_field, backpressure, capacity, queue_messages, stamp"),
    ],
)
def test_a_wrong_option_is_one_line_that_says_what_is_allowed(url, options, kind, words):
    with pytest.raises(kind, match=words.replace("(", r"\(")) as caught:
        build(url, **options)
    assert "\n" not in str(caught.value)
    error = caught.value
    while error is not None:
        assert url == "mqtt://[s3cret" or "s3cret" not in str(error) + repr(error)
        error = error.__cause__ or error.__context__
