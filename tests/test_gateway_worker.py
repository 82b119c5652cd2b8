"""Commands of gateways through a real nats-server: contract A6, asserted on COMMAND_ACKS.

Each test is also one of the reference's defects that is not ours: nothing is acknowledged before
it is done, nothing is done twice, nothing is lost when there is no room.
"""

import asyncio
import json
import shutil
import threading

import pytest

from iotsim.errors import BadValue
from iotsim.gateway import worker as worker_module
from tests.commanding import TENANT, Platform, Wire, add_streams, until
from tests.conftest import lacking
from tests.servers.nats import PLACES, NatsServer


@pytest.fixture(scope="module")
def server():
    if shutil.which("nats-server", path=PLACES) is None:
        lacking("nats-server is not installed (apt-get install nats-server)")
    started = NatsServer(jetstream=True)
    started.start()
    try:
        add_streams(started)
        yield started
    finally:
        started.stop()


@pytest.fixture
def platform(server, tmp_path):
    return Platform(server.url, tmp_path / "gateways.db")


class Clock:
    def __init__(self, now_us):
        self.now_us = now_us

    def __call__(self):
        return self.now_us


AT, AT_US = "2026-01-01T00:00:00.000Z", 1_767_225_600_000_000


# -- the first table of A6: what JetStream is told ------------------------------------------------


def test_what_is_no_command_is_terminated_and_never_answered(platform):
    async def work(platform):
        gateway = await platform.gateway()
        for raw in (b"{", b"[]", b'{"command_id": 7}',
                    b'{"command_id":"c","type":"config_update","issued_at":"yesterday"}'):
            await platform.send(gateway, raw=raw)
        await platform.send(gateway, {"status": "paused"})
        assert [said["status"] for said in await platform.answers(gateway, 1)] == ["ack"]
        await gateway.settled()
        assert gateway.wire.said == ["term"] * 4 + ["ack"]
        assert (await gateway.consumer()).num_redelivered == 0
        frame = gateway.log.frame()
        assert list(frame["status"]) == ["terminated"] * 4 + ["ack"]
        assert frame["message"][3].startswith("issued_at='yesterday' is not a time")
        assert frame["answered_at"].isna().tolist() == [True] * 4 + [False]
        assert gateway.log.counts()["terminated"] == 4

    platform.run(work)


def test_at_60_seconds_a_command_is_fresh_and_a_moment_later_expired(platform):
    async def work(platform):
        clock = Clock(AT_US + 60_000_000)
        gateway = await platform.gateway(now_us=clock)
        await platform.send(gateway, {"status": "paused"}, id="fresh", at=AT)
        await platform.answers(gateway, 1)
        clock.now_us += 1000
        await platform.send(gateway, {"status": "online"}, id="old", at=AT)
        fresh, old = await platform.answers(gateway, 2)
        assert (fresh["command_id"], fresh["status"]) == ("fresh", "ack")
        assert old == {"command_id": "old", "commandId": "old", "status": "expired",
                       "timestamp": "2026-01-01T00:01:00.001Z"}
        await gateway.settled()
        assert gateway.hands.done == [("status", gateway.name, "paused")]
        assert platform.store.get(gateway.name).status == "paused"

    platform.run(work)


def test_a_command_from_the_future_is_done(platform):
    async def work(platform):
        gateway = await platform.gateway()
        await platform.send(gateway, {"send_frequency_ms": 250}, age_s=-3600)
        assert (await platform.answers(gateway, 1))[0]["status"] == "ack"
        assert gateway.hands.done == [("frequency", gateway.name, 250)]

    platform.run(work)


def test_a_command_is_acknowledged_only_after_it_is_done_and_its_answer_stored(platform):
    class Slow:
        """A store that waits; it notes what the others have seen by then."""

        def __init__(self, store):
            self.store, self.reached, self.go = store, threading.Event(), threading.Event()

        def answered(self, name, command_id):
            return self.store.answered(name, command_id)

        def apply(self, *change):
            self.apply_all([change])

        def apply_all(self, batch):
            self.reached.set()
            assert self.go.wait(20)
            self.store.apply_all(batch)

    async def work(platform):
        gateway = await platform.gateway(open=False)
        slow = Slow(platform.store)
        await gateway.open(keeper=slow)
        await platform.send(gateway, {"status": "paused"})
        await until(slow.reached.is_set)
        facts = await gateway.consumer()
        assert (facts.num_ack_pending, facts.ack_floor.stream_seq) == (1, 0)
        assert (gateway.hands.done, gateway.heard, gateway.wire.said) == ([], [], [])
        slow.go.set()
        await platform.answers(gateway, 1)
        await gateway.settled()
        assert gateway.wire.said == ["ack"]

    platform.run(work)


def test_beyond_its_bound_a_command_goes_back_and_is_done_later(platform, monkeypatch):
    monkeypatch.setattr(worker_module, "FULL_S", 0.1)

    async def work(platform):
        gateway = await platform.gateway(open_max=2)
        gateway.hands.trouble(gateway.name)
        for n in range(1, 6):
            await platform.send(gateway, {"send_frequency_ms": n}, id=f"c-{n}")
        # Of the reference's durable there are three deliveries: the last one finds room.
        await until(lambda: gateway.worker.waiting == 5)
        assert gateway.wire.said == ["nak"] * 4
        assert gateway.log.counts()["overflowed"] == 4
        gateway.hands.soothe(gateway.name)
        said = await platform.answers(gateway, 5)
        assert sorted(one["command_id"] for one in said) == [f"c-{n}" for n in range(1, 6)]
        assert {one["status"] for one in said} == {"ack"}
        await gateway.settled()
        assert sorted(value for _, _, value in gateway.hands.done) == [1, 2, 3, 4, 5]

    platform.run(work)


# -- the second table of A6: what is done ---------------------------------------------------------

BOUND = "sendFrequencyMs must be <= 86400000 (24 h)"
ROWS = [  # kind, payload, status, the message begins with, what is done, what the record says then
    ("config_update", {"send_frequency_ms": 1000}, "ack", "", [("frequency", 1000)],
     (1000, "online", "1.0.0")),
    ("config_update", {"sendFrequencyMs": 2000, "status": "suspended"}, "ack", "",
     [("frequency", 2000), ("status", "paused")], (2000, "paused", "1.0.0")),
    ("config_update", {"status": "RESUMED"}, "ack", "", [("status", "online")],
     (2000, "online", "1.0.0")),
    ("config_update", ..., "nack", "invalid config payload", [], (2000, "online", "1.0.0")),
    ("config_update", None, "ack", "", [], (2000, "online", "1.0.0")),
    ("config_update", {}, "ack", "", [], (2000, "online", "1.0.0")),
    ("config_update", {"send_frequency_ms": 1.5}, "nack", "invalid config payload", [],
     (2000, "online", "1.0.0")),
    ("config_update", {"send_frequency_ms": 0}, "nack", "sendFrequencyMs must be > 0", [],
     (2000, "online", "1.0.0")),
    ("config_update", {"send_frequency_ms": 10**13}, "nack", BOUND, [], (2000, "online", "1.0.0")),
    ("config_update", {"send_frequency_ms": 3000, "status": "asleep"}, "nack",
     "unknown status 'asleep': allowed are online", [], (2000, "online", "1.0.0")),
    ("config_update", {"send_frequency_ms": 0, "status": "paused"}, "nack",
     "sendFrequencyMs must be > 0", [], (2000, "online", "1.0.0")),
    ("firmware_push", {"firmware_version": "2.1.0", "download_url": "http://x/y"}, "ack", "",
     [("firmware", "2.1.0")], (2000, "online", "2.1.0")),
    ("firmware_push", {"firmware_version": ""}, "ack", "", [], (2000, "online", "2.1.0")),
    ("firmware_push", {"firmware_version": 3}, "nack", "invalid firmware payload", [],
     (2000, "online", "2.1.0")),
    ("reboot", {}, "nack", "unknown command type", [], (2000, "online", "2.1.0")),
]


def test_every_row_of_the_contract_is_answered_and_done_as_it_says(platform):
    async def work(platform):
        gateway = await platform.gateway()
        for n, (kind, payload, status, message, done, kept) in enumerate(ROWS, 1):
            ident = await platform.send(gateway, payload, kind=kind)
            said = (await platform.answers(gateway, n))[-1]
            assert (said["command_id"], said["commandId"]) == (ident, ident)
            assert said["status"] == status, said
            assert said.get("message", "").startswith(message), said
            assert ("message" in said) == bool(message), said
            assert [(what, value) for what, _, value in gateway.hands.done] == done
            gateway.hands.done.clear()
            record = platform.store.get(gateway.name)
            assert (record.send_frequency_ms, record.status, record.firmware) == kept
        frame = gateway.log.frame()
        assert list(frame["status"]) == [row[2] for row in ROWS]
        assert list(frame["type"]) == [row[0] for row in ROWS]
        assert frame["latency"].between(0, 30).all()
        assert (frame["gateway"] == gateway.name).all()
        assert (frame["gateway_id"] == gateway.id).all()

    platform.run(work)


def test_a_command_in_the_spelling_of_the_published_schema_is_done(platform):
    async def work(platform):
        gateway = await platform.gateway()
        now = platform.now()
        await platform.send(gateway, raw=json.dumps({
            "commandId": "c-1", "type": "config_update", "issuedAt": now,
            "payload": {"sendFrequencyMs": 700}}).encode())
        assert (await platform.answers(gateway, 1))[0]["status"] == "ack"
        assert gateway.hands.done == [("frequency", gateway.name, 700)]

    platform.run(work)


def test_what_cannot_be_done_is_refused_and_nothing_of_it_stays(platform):
    async def work(platform):
        gateway = await platform.gateway()
        gateway.hands.refusing["status"] = BadValue("status", "paused", "cannot be now", "Wait.")
        await platform.send(gateway, {"send_frequency_ms": 9, "status": "paused"}, id="c-1")
        said = (await platform.answers(gateway, 1))[0]
        assert said["message"] == "could not be done: status='paused' cannot be now. Wait."
        gateway.hands.refusing["status"] = RuntimeError("key-secret and more")
        await platform.send(gateway, {"send_frequency_ms": 9, "status": "paused"}, id="c-2")
        said = (await platform.answers(gateway, 2))[1]
        assert said["message"] == "could not be done: RuntimeError"
        assert gateway.hands.done == 2 * [("frequency", gateway.name, 9),
                                          ("frequency", gateway.name, 5000)]
        record = platform.store.get(gateway.name)
        assert (record.send_frequency_ms, record.status) == (5000, "online")
        assert platform.store.answered(gateway.name, "c-1").status == "nack"
        assert gateway.log.counts()["failed"] == 2

    platform.run(work)


def test_what_cannot_be_stored_is_refused_and_not_done(platform):
    async def work(platform):
        gateway, other = await platform.gateway(), await platform.gateway()
        platform.store.delete(gateway.name)
        # Of one run: their changes are in one transaction.
        await asyncio.gather(platform.send(gateway, {"send_frequency_ms": 9}),
                             platform.send(other, {"send_frequency_ms": 9}))
        said = (await platform.answers(gateway, 1))[0]
        assert said["status"] == "nack"
        assert said["message"] == "the change could not be stored (UnknownName)"
        assert (await platform.answers(other, 1))[0]["status"] == "ack"
        assert gateway.hands.done == []
        assert other.hands.done == [("frequency", other.name, 9)]

    platform.run(work)


# -- once -----------------------------------------------------------------------------------------


def test_a_command_that_is_sent_three_times_is_done_once_and_has_one_answer(platform):
    async def work(platform):
        gateway = await platform.gateway()
        for _ in range(3):
            await platform.send(gateway, {"send_frequency_ms": 9}, id="c-1")
        await platform.answers(gateway, 1)
        await gateway.settled()
        assert await platform.stored(gateway) == 1
        assert gateway.hands.done == [("frequency", gateway.name, 9)]
        assert len(gateway.wire.asked) == 3
        assert len(set(gateway.wire.asked)) == 1
        frame = gateway.log.frame()
        assert list(frame["repeated"]) == [False, True, True]
        assert list(frame["status"]) == ["ack"] * 3
        assert gateway.log.counts()["repeated"] == 2

    platform.run(work)


def test_a_command_whose_acknowledgement_was_lost_is_not_done_again_by_who_follows(platform):
    async def work(platform):
        clock = Clock(AT_US + 59_000_000)
        gateway = await platform.gateway(ack_wait=1, max_deliver=-1, now_us=clock)
        gateway.wire.deaf = True  # as if killed between the answer and the acknowledgement
        await platform.send(gateway, {"send_frequency_ms": 9}, at=AT)
        await platform.answers(gateway, 1)
        await until(lambda: gateway.wire.said)
        await gateway.close()
        assert gateway.hands.done == [("frequency", gateway.name, 9)]
        first, = set(gateway.wire.asked)
        gateway.hands.done.clear()
        clock.now_us += 60_000_000
        await gateway.open()
        await gateway.settled()
        assert gateway.hands.done == []
        assert set(gateway.wire.asked) == {first}  # byte for byte, though it is late now
        assert await platform.stored(gateway) == 1
        _, *again = gateway.log.frame().itertuples()
        assert again
        assert all(one.repeated and one.deliveries >= 2 for one in again)

    platform.run(work)


def test_a_long_command_is_not_delivered_again_and_if_it_is_it_is_the_same_one(platform):
    async def work(platform):
        gateway = await platform.gateway(pulse_s=0.1, ack_wait=3, max_deliver=-1)
        gateway.hands.trouble(gateway.name)
        await platform.send(gateway, {"send_frequency_ms": 9})
        await until(lambda: gateway.wire.said.count("in_progress") >= 33)
        assert (await gateway.consumer()).num_redelivered == 0
        gateway.worker.disconnected()  # and nothing is said: it comes again
        gateway.wire.said.clear()
        await until(lambda: gateway.log.frame()["deliveries"][0] >= 2)
        assert (gateway.worker.waiting, gateway.wire.said) == (1, [])
        gateway.worker.connected(gateway.wire)
        gateway.hands.soothe(gateway.name)
        await platform.answers(gateway, 1)
        await gateway.settled()
        assert gateway.hands.done == [("frequency", gateway.name, 9)]
        assert len(gateway.log.frame()) == 1

    platform.run(work)


# -- anomalies ------------------------------------------------------------------------------------


def test_during_an_anomaly_commands_wait_and_afterwards_their_age_counts_again(platform):
    async def work(platform):
        clock = Clock(AT_US)
        gateway = await platform.gateway(now_us=clock)
        gateway.hands.trouble(gateway.name)
        await platform.send(gateway, {"send_frequency_ms": 1}, id="old", at=AT)
        for n in (2, 3, 4):
            await platform.send(gateway, {"send_frequency_ms": n}, id=f"c-{n}",
                                at="2026-01-01T00:00:30Z")
        await until(lambda: gateway.worker.waiting == 4)
        await until(lambda: set(gateway.log.frame()["status"]) == {"held"})
        assert (gateway.heard, gateway.hands.done) == ([], [])
        clock.now_us += 60_001_000
        gateway.hands.soothe(gateway.name)
        said = await platform.answers(gateway, 4)
        assert [(one["command_id"], one["status"]) for one in said] == [
            ("old", "expired"), ("c-2", "ack"), ("c-3", "ack"), ("c-4", "ack")]
        assert [value for _, _, value in gateway.hands.done] == [2, 3, 4]
        await gateway.settled()
        assert gateway.log.counts()["delayed"] == 4

    platform.run(work)


# -- answers --------------------------------------------------------------------------------------


def test_an_answer_is_sent_until_its_stream_is_there_and_the_next_command_is_not_held_up(platform):
    async def work(platform):
        gateway = await platform.gateway()
        await platform.js.delete_stream("COMMAND_ACKS")
        try:
            await platform.send(gateway, {"send_frequency_ms": 1}, id="c-1")
            await platform.send(gateway, {"send_frequency_ms": 2}, id="c-2")
            await until(lambda: gateway.log.counts()["retried"] >= 2)
            await until(lambda: len(gateway.hands.done) == 2)
            assert (await gateway.consumer()).num_ack_pending == 2
        finally:
            await platform.add_answers()
        await gateway.settled()
        assert await platform.stored(gateway) == 2
        assert list(gateway.log.frame()["status"]) == ["ack", "ack"]

    platform.run(work)


def test_an_answer_that_is_never_stored_gives_its_command_back(platform):
    async def work(platform):
        gateway = await platform.gateway(answer_s=0.2)
        wire, lost = gateway.wire, Wire(platform.link)
        lost.up = False
        gateway.worker.connected(lost)
        await platform.send(gateway, {"send_frequency_ms": 1})
        await until(lambda: "nak" in wire.said)
        counts = gateway.log.counts()
        assert (counts["unanswered"], counts["returned"], gateway.worker.waiting) == (1, 1, 0)
        assert "not connected" in gateway.log.frame()["message"][0]

    platform.run(work)


def test_a_command_that_came_before_the_line_was_lost_is_done_and_answered_on_the_next(platform):
    async def work(platform):
        gateway = await platform.gateway()
        gateway.worker.disconnected()
        await platform.send(gateway, {"send_frequency_ms": 1})
        await until(lambda: gateway.hands.done)
        assert gateway.wire.asked == []
        gateway.worker.connected(gateway.wire)
        await platform.answers(gateway, 1)
        await gateway.settled()

    platform.run(work)


# -- the end --------------------------------------------------------------------------------------


def test_at_the_end_what_was_not_begun_goes_back_and_who_follows_does_it(platform, monkeypatch):
    monkeypatch.setattr(worker_module, "CLOSING_S", 0.1)

    async def work(platform):
        gateway = await platform.gateway()
        gateway.hands.trouble(gateway.name)
        for n in (1, 2, 3):
            await platform.send(gateway, {"send_frequency_ms": n})
        await until(lambda: gateway.worker.waiting == 3)
        await gateway.close()
        assert (gateway.hands.done, gateway.heard, gateway.worker.waiting) == ([], [], 0)
        assert gateway.wire.said.count("nak") >= 3
        assert list(gateway.log.frame()["status"]) == ["returned"] * 3
        gateway.wire.up = False  # whoever says something now fails the test
        gateway.hands.soothe(gateway.name)
        await gateway.open()
        await platform.answers(gateway, 3)
        await gateway.settled()
        assert sorted(value for _, _, value in gateway.hands.done) == [1, 2, 3]

    platform.run(work)


def test_a_command_in_flight_at_the_end_is_done_and_answered(platform):
    class Slow:
        def __init__(self, store):
            self.store, self.reached = store, threading.Event()
            self.answered, self.apply = store.answered, store.apply

        def apply_all(self, batch):
            self.reached.set()
            threading.Event().wait(0.2)
            self.store.apply_all(batch)

    async def work(platform):
        gateway = await platform.gateway(open=False)
        slow = Slow(platform.store)
        await gateway.open(keeper=slow)
        await platform.send(gateway, {"send_frequency_ms": 1})
        await until(slow.reached.is_set)
        await gateway.close()
        assert gateway.hands.done == [("frequency", gateway.name, 1)]
        assert len(await platform.answers(gateway, 1)) == 1
        assert gateway.wire.said == ["ack"]

    platform.run(work)


def test_a_command_whose_answer_is_not_stored_at_the_end_is_answered_by_who_follows(platform):
    async def work(platform):
        gateway = await platform.gateway(ack_wait=1, max_deliver=-1)
        gateway.worker.disconnected()
        await platform.send(gateway, {"send_frequency_ms": 1})
        await until(lambda: gateway.hands.done)
        await gateway.close()
        assert (gateway.wire.said, gateway.heard) == ([], [])
        await gateway.open()
        await platform.answers(gateway, 1)
        await gateway.settled()
        assert gateway.hands.done == [("frequency", gateway.name, 1)]  # once
        assert list(gateway.log.frame()["status"]) == ["returned", "ack"]

    platform.run(work)


def test_an_end_does_not_wait_for_a_line_that_does_not_answer(platform):
    class Mute(Wire):
        async def request(self, subject, payload, *, headers, timeout_s):
            await asyncio.Event().wait()

    async def work(platform):
        gateway = await platform.gateway()
        gateway.worker.connected(Mute(platform.link))
        await platform.send(gateway, {"send_frequency_ms": 1})
        await until(lambda: gateway.hands.done)
        async with asyncio.timeout(5):
            await gateway.worker.close(0.1)
            await gateway.worker.close(0.1)  # again is nothing
        assert (gateway.wire.said, gateway.worker.waiting) == ([], 0)
        assert repr(gateway.worker).endswith("0 commands open, closed>")
        frame = gateway.log.frame()
        assert list(frame["message"]) == ["the gateway was stopped before it answered"]

    platform.run(work)


def test_commands_in_flight_while_a_worker_ends_and_begins_again_and_again_are_all_answered(
        platform, monkeypatch):
    monkeypatch.setattr(worker_module, "CLOSING_S", 0.05)
    monkeypatch.setattr(worker_module, "CLOSED_S", 0.05)

    async def work(platform):
        gateway = await platform.gateway(ack_wait=1, max_deliver=-1)

        async def commanding():
            for n in range(1, 121):
                await platform.send(gateway, {"send_frequency_ms": n}, id=f"c-{n}")

        sending = asyncio.create_task(commanding())
        while not sending.done():
            await until(lambda: gateway.worker.waiting or sending.done())
            await gateway.close()
            gateway.wire.up = False
            await gateway.open()
        await sending
        said = await platform.answers(gateway, 120)
        assert {one["status"] for one in said} == {"ack"}
        await gateway.settled()
        assert sorted(value for _, _, value in gateway.hands.done) == list(range(1, 121))

    platform.run(work)


# -- many gateways --------------------------------------------------------------------------------


def test_when_many_have_a_command_at_once_their_answers_share_transactions(platform):
    async def work(platform):
        gateways = [await platform.gateway() for _ in range(40)]
        await asyncio.gather(*(platform.send(gateway, {"send_frequency_ms": 7})
                               for gateway in gateways))
        for gateway in gateways:
            assert (await platform.answers(gateway, 1))[0]["status"] == "ack"
        assert platform.book.transactions < 20
        assert all(platform.store.get(gateway.name).send_frequency_ms == 7 for gateway in gateways)

    platform.run(work)


def test_a_gateway_hears_of_its_own_commands_only_and_says_no_secret(platform):
    async def work(platform):
        first, second = await platform.gateway(), await platform.gateway()
        await platform.send(first, {"send_frequency_ms": 7})
        await platform.answers(first, 1)
        assert second.worker.waiting == len(second.log) == len(second.heard) == 0
        shown = repr(first.worker) + repr(vars(first.worker)) + repr(first.log) + str(
            first.log.frame().to_dict())
        assert "secret" not in shown
        assert repr(first.worker) == f"<Worker of {first.name!r}: 0 commands open>"
        assert first.wire.asked[0].count(TENANT.encode()) == 0

    platform.run(work)
