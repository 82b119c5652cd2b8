"""Gateways that a platform decommissions: heard by every instance, also afterwards."""

import asyncio
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from iotsim.errors import ConnectError
from iotsim.gateway.decommission import Decommissions, durable_name
from tests.gateway_link_rig import TENANT, PlatformServer
from tests.publishing import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = PlatformServer(tmp_path_factory.mktemp("platform"))
    one.start()
    yield one
    one.stop()


class Store:
    """Gateways by id, and what was done to them."""

    def __init__(self, *gateway_ids):
        self.tenants = dict.fromkeys(gateway_ids, TENANT)
        self.removed, self.notices = [], []
        self.now = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures = 0

    async def remove(self, tenant_id, gateway_id):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
            if self.failures:
                self.failures -= 1
                raise OSError("the disk is full")
            assert self.tenants.pop(gateway_id) == tenant_id
            self.removed.append(gateway_id)
        finally:
            self.now -= 1


@asynccontextmanager
async def listening(server, store, instance, **options):
    ears = Decommissions(server.publisher(), instance, store.tenants.get, store.remove,
                         store.notices.append, **options)
    await ears.open()
    try:
        yield ears
    finally:
        await ears.close()
    assert not [task for task in asyncio.all_tasks() if durable_name(instance) in task.get_name()]


async def decommission(server, *gateway_ids, tenant=TENANT, subject="gateway.decommissioned.{}.{}"):
    async with server.client() as (_, stream):
        for gateway_id in gateway_ids:
            await stream.publish(subject.format(tenant, gateway_id), b"not even JSON")


async def info(server, instance):
    async with server.client() as (_, stream):
        return await stream.consumer_info("DECOMMISSION", durable_name(instance))


def test_ours_are_removed_others_ignored_and_all_acknowledged(server):
    async def work():
        ours, others = [str(uuid4()) for _ in range(3)], [str(uuid4()) for _ in range(2)]
        store = Store(*ours, others[1])
        async with listening(server, store, "a") as ears:
            await decommission(server, others[0])  # unknown
            await decommission(server, others[1], tenant=str(uuid4()))  # another tenant's
            await decommission(server, "gw-1", ours[0] + "x")  # no UUIDs
            await decommission(server, ours[0], subject="gateway.decommissioned.x.{}.{}")
            await decommission(server, ours[0], subject="gateway.decommissioned.{1}")
            await decommission(server, *ours)
            await until(lambda: len(store.removed) == 3)
            await until(lambda: (ears.handled, ears.ignored) == (3, 6))
            await asyncio.sleep(0.05)
            return store, await info(server, "a"), others

    store, found, others = asyncio.run(work())
    assert (found.num_ack_pending, found.num_pending) == (0, 0)
    assert found.config.filter_subject == "gateway.decommissioned.>"
    assert found.config.inactive_threshold == 2 * 86_400  # longer than events are kept
    assert len(store.notices) == 1
    assert f"gateway {others[1]} is ignored: it names tenant" in store.notices[0]
    assert list(store.tenants) == [others[1]]


def test_what_happens_while_nobody_listens_is_heard_and_each_instance_hears_all(server):
    async def work():
        gateways = [str(uuid4()) for _ in range(6)]
        one, two = Store(*gateways), Store(*gateways)
        await decommission(server, *gateways[:2])  # before anybody ever listened
        async with listening(server, one, "one"), listening(server, two, "two"):
            await decommission(server, *gateways[2:4])
            await until(lambda: len(one.removed) == len(two.removed) == 4)
        await decommission(server, *gateways[4:])  # between two runs
        async with listening(server, one, "one"):
            await until(lambda: len(one.removed) == 6)
        return one.removed, gateways

    removed, gateways = asyncio.run(work())
    assert sorted(removed) == sorted(gateways)


def test_many_are_handled_at_a_time_within_a_bound_and_slow_ones_once(server):
    async def work():
        gateways = [str(uuid4()) for _ in range(40)]
        store = Store(*gateways)
        store.gate.clear()
        async with listening(server, store, "many", ack_wait_s=0.6) as ears:
            await decommission(server, *gateways)
            await until(lambda: store.now == 16)
            await asyncio.sleep(1)  # they are said to be in progress
            store.gate.set()
            await until(lambda: ears.handled == 40)
            return store, ears

    store, ears = asyncio.run(work())
    assert len(store.removed) == 40
    assert (store.most, ears.failed, store.notices) == (16, 0, [])


def test_one_that_cannot_be_removed_is_tried_again_and_in_the_end_said(server):
    async def work():
        good, bad = str(uuid4()), str(uuid4())
        store = Store(good)
        store.failures = 2
        async with listening(server, store, "again", again_s=0.05) as ears:
            await decommission(server, good)
            await until(lambda: ears.handled == 1)
            store.tenants[bad], store.failures = TENANT, 3
            await decommission(server, bad)
            await until(lambda: ears.failed == 1)
            await asyncio.sleep(0.05)
            return store, bad, await info(server, "again")

    store, bad, found = asyncio.run(work())
    assert store.notices[-1] == (
        f"gateway {bad} is decommissioned and could not be removed: OSError: the disk is full. "
        "Remove it by hand.")
    assert found.num_ack_pending == 0


def test_when_we_end_before_it_is_removed_it_comes_again(server):
    async def work():
        gateway = str(uuid4())
        store = Store(gateway)
        store.gate.clear()
        ears = Decommissions(server.publisher(), "crash", store.tenants.get, store.remove,
                             store.notices.append, ack_wait_s=0.5)
        await ears.open()
        await decommission(server, gateway)
        await until(lambda: store.now)
        ears._link.drop()  # as if we were killed
        for task in ears._tasks:
            task.cancel()
        await ears.close()
        again = Store(gateway)
        async with listening(server, again, "crash"):
            await until(lambda: again.removed)

    asyncio.run(work())


def test_a_listener_comes_back_after_a_restart_of_the_server(tmp_path):
    server = PlatformServer(tmp_path)
    server.start()

    async def work():
        gateway = str(uuid4())
        store = Store(gateway)
        async with listening(server, store, "restart") as ears:
            await until(lambda: not ears.why_not)
            server.kill()
            await until(lambda: store.notices)
            await asyncio.to_thread(server.start)
            await decommission(server, gateway)
            await until(lambda: store.removed, 15)
            return store.notices

    try:
        notices = asyncio.run(work())
    finally:
        server.stop()
    assert notices[0].startswith("link lost: ")


def test_who_may_not_listen_is_told(server):
    record = server.gateway(listed=False)

    async def work():
        ears = Decommissions(server.own(record), "x", {}.get, None, print)
        with pytest.raises(ConnectError, match="cannot connect the listener to decommissions to"):
            await ears.open()
        await ears.close()

    asyncio.run(work())
