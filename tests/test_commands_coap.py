"""Commands that devices observe at a CoAP server, and answers that they post there."""

import asyncio
import logging
import socket

import pytest

import iotsim
from iotsim.errors import ConnectError
from tests.live import until
from tests.servers.platforms import CoapPlatform
from tests.test_commands_brokers import meter, meters, whole

pytestmark = pytest.mark.broker


@pytest.fixture(autouse=True)
def quiet_aiocoap():
    """aiocoap warns of what it does when a peer is gone."""
    logger = logging.getLogger("coap")
    before, logger.level = logger.level, logging.CRITICAL
    yield
    logger.setLevel(before)


def test_devices_answer_a_server_whose_resource_they_observe(tmp_path):
    async def main():
        async with CoapPlatform() as platform:
            await platform.send("meter-0001", {"command": "set", "id": "before", "every": 1})
            run = meters().listen_to(platform.url).start(speed=20)
            await run.ready()
            await until(lambda: len(platform.mailbox.watched) == 5)
            await platform.send("meter-0000", {"command": "set", "id": "a", "every": 2})
            await platform.send("pump-0001", {"command": "stop", "id": "b"})
            await platform.answered(3)
            assert platform.of("before")["meter-0001"]["result"] == {"every": 1}
            assert platform.of("a")["meter-0000"]["result"] == {"every": 2}
            assert platform.of("b")["pump-0001"]["status"] == "acknowledged"
            return await run.stop()

    result = whole(main())
    assert not result.errors
    path = result.save(tmp_path / "heard.iotsim")
    assert iotsim.verify(path, devices={"meter": meter})


def test_who_joins_observes_too():
    async def main():
        async with CoapPlatform() as platform:
            run = meters().listen_to(platform.url).start(speed=20)
            await run.ready()
            run.add("pump", count=1)
            await until(lambda: "devices/pump-0002/commands" in platform.mailbox.watched)
            await platform.send("pump-0002", {"command": "stop", "id": "b"})
            await platform.answered(1)
            return await run.stop()

    assert whole(main()).commands()["device_id"].tolist() == ["pump-0002"]


def test_a_command_through_the_server_is_a_round_trip():
    async def main():
        async with CoapPlatform() as platform:
            run = meters().listen_to(platform.url).start(speed=20)
            await run.ready()
            found = await run.command("set", payload={"every": 2}, via=platform.url)
            await run.stop()
            return found

    found = whole(main())
    assert list(found["status"]) == ["ack"] * 3 + ["acknowledged"] * 2
    assert found["latency"].between(0, 10).all()


def test_one_command_after_the_other_through_the_server_is_answered():
    async def main():
        async with CoapPlatform() as platform:
            run = meters(count=1).listen_to(platform.url).start(speed=20)
            await run.ready()
            found = [await run.command("set", "id=meter-0000", payload={"every": 2},
                                       via=platform.url) for _ in range(3)]
            await run.stop()
            return found

    # aiocoap's server loses a new observer when it tells one that has left.
    assert [list(table["status"]) for table in whole(main())] == [["ack"]] * 3


def test_a_server_that_is_away_when_it_is_asked_is_told_with_its_reason():
    async def main():
        async with CoapPlatform() as platform:
            run = meters(count=1).listen_to(platform.url).start(speed=20)
            await run.ready()
        with pytest.raises(ConnectError, match=r"cannot send commands to .*connection refused"):
            await run.command("set", via=platform.url, timeout="1s")
        await run.stop()

    whole(main())


def test_a_server_that_says_nothing_is_told_so():
    async def main():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            run = meters().listen_to(f"coap://127.0.0.1:{silent.getsockname()[1]}").start()
            with pytest.raises(ConnectError, match="no answer in time"):
                await run.ready()
            return await run.stop()

    whole(main())


def test_devices_observe_again_when_the_server_was_away():
    async def main():
        async with CoapPlatform() as platform:
            run = meters(count=1).listen_to(platform.url).start(speed=20)
            await run.ready()
            await until(lambda: len(platform.mailbox.watched) == 3)
        async with CoapPlatform(platform.port) as again:
            await again.send("meter-0000", {"command": "set", "id": "after", "every": 2})
            await again.answered(1, 60)
            result = await run.stop()
            return result, again.answers

    result, answers = whole(main())
    assert answers[0][1]["result"] == {"every": 2}
    assert not result.errors


def test_a_server_that_is_not_there_is_one_error():
    async def main():
        run = meters().listen_to("coap://127.0.0.1:1").start()
        with pytest.raises(ConnectError, match=r"cannot listen to coap://127.0.0.1:1: "):
            await run.ready()
        return await run.stop()

    assert len(whole(main()).errors) == 1


def test_a_thousand_resources_are_as_many_as_are_observed():
    async def main():
        run = meters(count=1001).listen_to("coap://127.0.0.1:1").start()
        with pytest.raises(iotsim.IotsimError, match="too many to observe"):
            await run.ready()
        return await run.stop()

    asyncio.run(main())
