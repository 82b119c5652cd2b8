"""The frame of commands, and the book of answers: bounded, typed, a fault is one gateway's."""

import asyncio
import threading

import pytest

from iotsim.errors import StoreError, UnknownName
from iotsim.gateway.answer_book import TOGETHER_MAX, AnswerBook
from iotsim.gateway.command_log import NEVER_US, CommandLog, Entry
from iotsim.gateway.commands import Answer

COLUMNS = {
    "command_id": "str", "gateway": "category", "gateway_id": "category", "type": "category",
    "status": "category", "message": "str", "issued_at": "datetime64[us, UTC]",
    "received_at": "datetime64[us, UTC]", "answered_at": "datetime64[us, UTC]",
    "latency": "float64", "deliveries": "int64", "repeated": "bool",
}


def test_a_frame_has_the_same_columns_with_and_without_commands():
    log = CommandLog()
    empty = log.frame()
    log.add(Entry("gw-1", "uuid", 2_000_000, "c-1", "config_update", 1_000_000, 3_500_000, "ack"))
    log.add(Entry("gw-2", "uuid", 2_000_000))
    filled = log.frame()
    for frame in (empty, filled):
        assert {name: str(kind) for name, kind in frame.dtypes.items()} == COLUMNS
    assert list(empty["status"].cat.categories) == list(filled["status"].cat.categories)
    assert len(empty) == 0
    assert filled["latency"].iloc[0] == 2.5
    last = filled.iloc[1]
    assert (last["status"], last["command_id"], last["message"]) == ("waiting", "", "")
    assert filled[["issued_at", "answered_at", "latency"]].iloc[1].isna().all()
    assert Entry("g", "u", 0).answered_us == NEVER_US


def test_a_log_is_bounded_and_says_what_it_forgot_but_counts_all():
    log = CommandLog(rows_max=10)
    for n in range(25):
        log.settle(log.add(Entry("gw-1", "uuid", n, f"c-{n}")), "ack")
    log.note("retried")
    assert (len(log), log.forgotten, log.counts()["ack"]) == (10, 15, 25)
    assert list(log.frame()["command_id"]) == [f"c-{n}" for n in range(15, 25)]
    assert repr(log) == "<CommandLog: 25 ack, 1 retried>"
    assert repr(CommandLog()) == "<CommandLog: no command yet>"
    assert set(log.counts()) == {
        "ack", "nack", "expired", "terminated", "returned", "delayed", "repeated", "retried",
        "unanswered", "overflowed", "failed", "unsaid"}


class Keeper:
    """Notes transactions; gateways called `bad…` are not there, and one may wait."""

    def __init__(self):
        self.kept, self.transactions, self.go = {}, [], threading.Event()
        self.go.set()
        self.broken = False

    def answered(self, name, command_id):
        return self.kept.get((name, command_id))

    def apply(self, name, changes, answered):
        self.apply_all([(name, changes, answered)])

    def apply_all(self, batch):
        assert self.go.wait(20)
        if self.broken:
            self.transactions.append(0)
            raise StoreError("gateways.db", "the disk is full")
        if any(name.startswith("bad") for name, _, _ in batch):
            raise UnknownName("gateway", "bad", ["gw"])
        self.transactions.append(len(batch))
        self.kept |= {(name, answered.command_id): answered for name, _, answered in batch}


def test_what_waits_while_one_transaction_is_written_shares_the_next_ones():
    keeper = Keeper()

    async def main():
        book = AnswerBook(keeper)
        keeper.go.clear()
        asked = [asyncio.create_task(book.remember(f"gw-{n}", {}, Answer(f"c-{n}", "ack")))
                 for n in range(1001)]
        await asyncio.sleep(0)
        keeper.go.set()
        assert set(await asyncio.gather(*asked)) == {None}
        await book.close()
        assert sum(keeper.transactions) == 1001
        assert max(keeper.transactions) <= TOGETHER_MAX
        assert len(keeper.transactions) <= 6
        assert book.transactions == len(keeper.transactions)

    asyncio.run(main())


def test_an_answer_that_is_there_stands_unless_it_is_taken_back():
    async def main():
        book = AnswerBook(Keeper())
        first = Answer("c-1", "ack", "", "t1")
        assert await book.remember("gw", {}, first) is None
        assert await book.remember("gw", {}, Answer("c-1", "nack", "", "t2")) == first
        other = Answer("c-1", "nack", "no", "t3")
        assert await book.remember("gw", {}, other, again=True) is None
        assert await book.remember("gw", {}, first) == other

    asyncio.run(main())


def test_the_fault_of_one_gateway_does_not_touch_those_that_share_its_transaction():
    keeper = Keeper()

    async def main():
        book = AnswerBook(keeper)
        asked = [book.remember(name, {}, Answer("c-1", "ack")) for name in ("a", "bad", "b")]
        a, bad, b = await asyncio.gather(*asked, return_exceptions=True)
        assert (a, b) == (None, None)
        assert isinstance(bad, UnknownName)
        assert set(keeper.kept) == {("a", "c-1"), ("b", "c-1")}

    asyncio.run(main())


def test_a_store_in_trouble_is_asked_once_for_all_who_wait():
    keeper = Keeper()
    keeper.broken = True

    async def main():
        book = AnswerBook(keeper)
        asked = [book.remember(f"gw-{n}", {}, Answer("c-1", "ack")) for n in range(5)]
        said = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in said] == [StoreError] * 5
        assert keeper.transactions == [0]

    asyncio.run(main())


def test_who_gave_up_waiting_does_not_hold_up_the_others():
    keeper = Keeper()

    async def main():
        book = AnswerBook(keeper)
        keeper.go.clear()
        gone, stays = (asyncio.create_task(book.remember(name, {}, Answer("c-1", "ack")))
                       for name in ("gone", "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        keeper.go.set()
        assert await stays is None
        with pytest.raises(asyncio.CancelledError):
            await gone
        await book.close()

    asyncio.run(main())
