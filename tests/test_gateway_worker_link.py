"""Workers behind real links: mTLS, a gateway's own rights, connections that are lost on the way."""

import asyncio
import json
import os
from contextlib import asynccontextmanager

import pytest

from iotsim.gateway.answer_book import AnswerBook
from iotsim.gateway.command_log import CommandLog
from iotsim.gateway.link import GatewayLink
from iotsim.gateway.store import Store
from iotsim.gateway.worker import Worker
from tests.commanding import Hands, Platform, until
from tests.gateway_link_rig import PlatformServer, Told, listening

pytestmark = pytest.mark.broker


@pytest.fixture
def server(tmp_path):
    one = PlatformServer(tmp_path)
    one.spare = [one.gateway(f"gw-{n}", send_frequency_ms=5000, status="online") for n in range(3)]
    one.start()
    yield one
    one.stop()


@asynccontextmanager
async def at_work(server, records, tmp_path):
    """Links with workers: (links, workers, hands, log)."""
    hands, log = Hands(), CommandLog()
    with Store.open(tmp_path / "gateways.db", key=os.urandom(32)) as store:
        store.save(*records)
        book = AnswerBook(store)
        workers = [Worker(record, hands, book, log) for record in records]
        links = [GatewayLink(server.own(record), record.name, Told(),
                             {record.gateway_id: (record.tenant_id, worker)}, ack_wait_s=2)
                 for record, worker in zip(records, workers, strict=True)]
        try:
            for link in links:
                await link.open()
            await until(lambda: all(listening(link) for link in links))
            yield links, workers, hands, log
        finally:
            for worker in workers:
                await worker.close(1)
            for link in links:
                await link.close()
            await book.close()


async def answers(server, record):
    """What the stream holds of a gateway's answers."""
    async with server.client() as (_, stream):
        subject = f"command.ack.{record.tenant_id}.{record.gateway_id}"
        facts = await stream.stream_info("COMMAND_ACKS", subjects_filter=subject)
        count = (facts.state.subjects or {}).get(subject, 0)
        sub = await stream.subscribe(subject, stream="COMMAND_ACKS", ordered_consumer=True)
        return [json.loads((await sub.next_msg(5)).data) for _ in range(count)]


def frequency(n):
    return json.loads(Platform.command({"send_frequency_ms": n}, f"c-{n}"))


async def heeded(server, record):
    async def done():
        facts = await server.consumer(record)
        return facts.num_ack_pending == facts.num_pending == 0

    await until(done, "the last acknowledgement")


def test_gateways_with_rights_of_their_own_answer_their_commands(server, tmp_path):
    async def work():
        async with at_work(server, server.spare, tmp_path) as (_, _, hands, log):
            for n, record in enumerate(server.spare, 1):
                await server.command(record, frequency(n), {"command_id": 7})
            await until(lambda: log.counts()["ack"] == 3)
            for n, record in enumerate(server.spare, 1):
                said = await answers(server, record)
                assert [(one["commandId"], one["status"]) for one in said] == [(f"c-{n}", "ack")]
                await heeded(server, record)
            assert sorted(hands.done) == [("frequency", record.name, n)
                                          for n, record in enumerate(server.spare, 1)]
            assert log.counts()["terminated"] == 3
            assert log.frame()["latency"].notna().sum() == 3

    asyncio.run(work())


def test_a_command_that_is_held_outlives_the_server_and_is_done_and_answered_once(
        server, tmp_path):
    record = server.spare[0]

    async def work():
        async with at_work(server, [record], tmp_path) as ((link,), (worker,), hands, log):
            hands.trouble(record.name)
            await server.command(record, frequency(1), frequency(2))
            await until(lambda: worker.waiting == 2)
            await asyncio.to_thread(server.kill)
            await until(lambda: not link.line.connected)
            link.drop()
            hands.soothe(record.name)
            await until(lambda: len(hands.done) == 2)  # it needs no connection for that
            await asyncio.to_thread(server.start)
            await link.open()
            await until(lambda: log.counts()["ack"] >= 2)
            assert [one["command_id"] for one in await answers(server, record)] == ["c-1", "c-2"]
            await heeded(server, record)
            assert hands.done == [("frequency", record.name, 1), ("frequency", record.name, 2)]
            assert len(await answers(server, record)) == 2
            assert worker.waiting == 0

    asyncio.run(work())
