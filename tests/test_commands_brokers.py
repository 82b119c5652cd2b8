"""Commands that reach devices through a broker as a platform sends them, and what that gets."""

import asyncio
import json
import os
import signal
import threading
from urllib.parse import urlsplit

import aio_pika
import pytest

import iotsim
from iotsim import Fleet
from iotsim.errors import BadValue, ConnectError, UnknownName
from tests.live import until
from tests.proxy import Proxy
from tests.publishing import until as soon
from tests.servers.nats import nats_server  # noqa: F401  (a fixture)
from tests.servers.platforms import AmqpPlatform, MqttPlatform, NatsPlatform
from tests.servers.rabbit import rabbit_node  # noqa: F401  (a fixture)

pytestmark = pytest.mark.broker


async def meter(dev):
    every = 5
    while True:
        command = await dev.commands().get(every)
        if command is None:
            dev.emit(power=dev.draw("power", "gaussian", mean=400, stddev=25), every=every)
        elif command.name == "set":
            every = command.payload["every"]
            command.ack(every=every)
        elif command.name == "":
            command.fail(str(command.payload)[:20])
        elif command.name != "ignore":
            command.fail(f"no {command.name}")


def meters(name="listening", count=3):
    return Fleet(name, seed=7).add(meter, count=count, every="5s").add("pump", count=2)


def whole(coroutine):
    """Run to the end and check that no task is left, but for what a client ends in a moment."""

    async def main():
        result = await coroutine
        await until(lambda: all(task.done() or task is asyncio.current_task()
                                for task in asyncio.all_tasks()), 20)
        return result

    return asyncio.run(main())


@pytest.fixture(params=["mqtt", "nats", "amqp"])
def there(request):
    """(url, the platform of a protocol)."""
    if request.param == "mqtt":
        url = request.getfixturevalue("mosquitto")().url
        return url, MqttPlatform
    if request.param == "nats":
        return request.getfixturevalue("nats_server")().url, NatsPlatform
    return request.getfixturevalue("rabbit").url, AmqpPlatform


def test_devices_answer_a_platform_and_the_session_is_the_same_again(there, tmp_path):
    url, kind = there

    async def main():
        async with kind(url) as platform:
            run = meters().listen_to(url).start(speed=20)
            await run.ready()
            await platform.send("meter-0000", {"command": "set", "id": "a", "every": 2})
            await platform.send("meter-0001", {"name": "dance", "command_id": 5})
            await platform.send("pump-0001", {"command": "stop", "id": "b"})
            await platform.answered(3)
            assert platform.of("a") == {"meter-0000": {
                "status": "ack", "command_id": "a", "device_id": "meter-0000",
                "result": {"every": 2}}}
            assert platform.of("5")["meter-0001"]["error"] == "no dance"
            assert platform.of("b")["pump-0001"] == {
                "status": "acknowledged", "command_id": "b", "device_id": "pump-0001"}
            await until(lambda: run.snapshot().readings > 20)
            return await run.stop()

    result = whole(main())
    assert not result.errors
    assert not result.notes, result.notes
    found = result.commands()
    assert sorted(found["command_id"]) == ["5", "a", "b"]
    assert set(found["by"]) == {url}
    path = result.save(tmp_path / "heard.iotsim")
    assert iotsim.verify(path, devices={"meter": meter})
    assert result.to_scenario().generate().digest == result.digest
    assert 2 in set(result.frame()["every"].dropna())


def test_an_answer_goes_where_it_is_wanted(there):
    url, kind = there

    async def main():
        async with kind(url) as platform:
            run = meters().listen_to(url).start(speed=20)
            await run.ready()
            await platform.send("meter-0002", {"command": "set", "id": "a", "every": 1},
                                reply="replies/mine")
            await platform.answered(1)
            await run.stop()
            return platform.answers

    [(topic, said)] = whole(main())
    assert topic in ("replies/mine", "replies.mine")
    assert said["status"] == "ack"


def test_what_comes_twice_is_answered_twice_and_done_once(there):
    url, kind = there

    async def main():
        async with kind(url) as platform:
            run = meters().listen_to(url).start(speed=20)
            await run.ready()
            for _ in range(5):
                await platform.send("meter-0000", {"command": "set", "id": "a", "every": 2})
                await platform.send("meter-0000", {"command": "ignore", "id": "z"})
            await platform.answered(5)
            result = await run.stop()
            return result, platform.answers

    result, answers = whole(main())
    assert len(answers) == 5
    assert all(said["result"] == {"every": 2} for _, said in answers)
    assert [action.parameters["id"] for action in result.actions if action.verb == "command"] == [
        "a", "z"]


HOSTILE = [
    b"", b"\x00\xff\xfe", b"reboot", b"null", b"[1, 2]", b"17", b'"text"', b"{", b'{"command": 5}',
    b'{"command": ""}', b'{"command": "a\\u0000b"}', b'{"name": ["x"]}', b'{"id": "only"}',
    b"[" * 500 + b"]" * 500, b'{"command": "x", "p": ' + b"[" * 99 + b"]" * 99 + b"}",
    json.dumps({"command": "n" * 200}).encode(), b'{"command": "ok", "id": {"a": 1}}',
    b'{"command": "ok", "id": "' + b"i" * 300 + b'"}', b'{"a": 1e999}', b'{"a": NaN}',
    "{\"command\": \"\u202egnp\"}".encode(), b"<img onerror=1>", b"\r\n\r\nHTTP/1.1 200",
]


def test_what_is_no_command_hurts_nobody(there, tmp_path):
    url, kind = there

    async def main():
        async with kind(url) as platform:
            run = meters().listen_to(url).start(speed=20)
            await run.ready()
            for body in HOSTILE:
                await platform.send("meter-0000", body)
            await platform.send("meter-0000", b"x" * 70_000)
            await platform.send("nobody-0000", {"command": "set"})
            await platform.send("meter-0000", {"command": "set", "id": "end", "every": 3})
            await soon(lambda: platform.of("end"))
            await until(lambda: len(run.notes) >= 2)
            result = await run.stop()
            return result, platform.answers

    result, answers = whole(main())
    assert not result.errors
    assert len(answers) == len(HOSTILE) + 2
    assert any("over 65,536 bytes" in note for note in result.notes)
    assert any("for nobody who is here" in note for note in result.notes)
    path = result.save(tmp_path / "hostile.iotsim")
    assert iotsim.verify(path, devices={"meter": meter})
    made = {"meter": meter}
    exec(result.to_scenario().code(), made)
    assert made["scenario"].generate().digest == result.digest


def test_a_command_through_the_broker_is_a_round_trip(there):
    url, _ = there

    async def main():
        run = meters().listen_to(url).start(speed=20)
        await run.ready()
        found = await run.command("set", payload={"every": 2}, via=url)
        some = await run.command("ignore", "id=meter-0001|pump-0000", via=url, timeout="500ms")
        nobody = await run.command("set", "id=nobody", via=url)
        await run.stop()
        return found, some, nobody

    found, some, nobody = whole(main())
    assert list(found["status"]) == ["ack"] * 3 + ["acknowledged"] * 2
    assert (found["latency"] > 0).all()
    assert (found["latency"] < 10).all()
    assert found["sent"].notna().all()
    assert set(found["by"]) == {url}
    assert dict(zip(some["device_id"], some["status"], strict=True)) == {
        "meter-0001": "timeout", "pump-0000": "acknowledged"}
    assert some["latency"].isna().tolist() == [True, False]
    assert nobody.empty
    assert "matches no device" in nobody.attrs["note"]


def test_a_flood_is_bounded_and_the_run_goes_on(there):
    url, kind = there
    count = 3_000 if url.startswith("nats") else 500

    async def main():
        async with kind(url) as platform:
            run = meters().listen_to(url).start(speed=1)
            await run.ready()
            for first in range(0, count, 100):
                await asyncio.gather(*(
                    platform.send(f"pump-000{i % 2}", {"command": "go", "id": f"f-{i}"})
                    for i in range(first, first + 100)))
            await platform.send("meter-0000", {"command": "set", "id": "end", "every": 3})
            await soon(lambda: platform.of("end"))
            result = await run.stop()
            return result, platform.answers

    result, answers = whole(main())
    assert not result.errors
    done = len(result.commands())
    lost = sum(int(note.rsplit("×", 1)[1].replace(",", "")) for note in result.notes
               if "came faster" in note)
    if url.startswith("nats"):  # core NATS tells nobody what it has dropped
        assert len(answers) > 300
    else:
        assert done + lost == count + 1
        assert len(answers) == done


def test_an_address_that_cannot_be_is_one_error(there):
    url, _ = there
    scheme = url.partition(":")[0]

    async def refused():
        run = meters().listen_to(f"{scheme}://127.0.0.1:1").start()
        with pytest.raises(ConnectError, match=r"cannot listen to .*:1: nothing listens there"):
            await run.ready()
        return await run.stop()

    result = whole(refused())
    assert len(result.errors) == 1


def test_a_run_without_pace_cannot_listen(there):
    url, _ = there
    fleet = meters().listen_to(url)

    async def main():
        with pytest.raises(BadValue, match="listen_to needs a paced run"):
            fleet.start(speed="max")
        run = fleet.start(speed=5)
        with pytest.raises(BadValue, match="listen_to needs a paced run"):
            run.set_speed("max")
        return await run.stop()

    whole(main())
    assert fleet.generate("1m").rows


def test_options_are_checked_and_secrets_are_not_shown(there):
    url, _ = there
    with pytest.raises(UnknownName, match="quos"):
        meters().listen_to(url, quos=1)
    with pytest.raises(BadValue, match="wildcard"):
        meters().listen_to(url, topic="devices/+/commands")
    with pytest.raises(BadValue, match="url scheme"):
        meters().listen_to("gopher://x")
    scheme, rest = url.split("//")
    fleet = meters().listen_to(f"{scheme}//ann:s3cret@{rest}")
    assert "s3cret" not in f"{fleet!r}{fleet.ears}{fleet._repr_html_()}"
    assert fleet == meters().listen_to(f"{scheme}//ann:s3cret@{rest}")
    assert hash(fleet) is not None


# -- a broker that goes away ----------------------------------------------------------------------


def outage(url, kind, stop, start):
    """Return the result of a run whose broker goes away and comes back, and the answers."""

    async def main():
        run = meters(count=1).listen_to(url).start(speed=20)
        await run.ready()
        async with kind(url) as platform:
            await platform.send("meter-0000", {"command": "set", "id": "before", "every": 2})
            await platform.answered(1)
        await asyncio.to_thread(stop)
        await until(lambda: any("the connection was lost" in note for note in run.notes))
        await asyncio.to_thread(start)
        async with kind(url) as platform:
            async with asyncio.timeout(30):
                while not platform.of("after"):  # core NATS has nothing that waits for devices
                    await platform.send("meter-0000", {"command": "set", "id": "after",
                                                       "every": 3})
                    await asyncio.sleep(0.2)
            assert platform.of("after")["meter-0000"]["result"] == {"every": 3}
        return await run.stop()

    result = whole(main())
    assert not result.errors
    assert [action.parameters["id"] for action in result.actions if action.verb == "command"] == [
        "before", "after"]


def test_devices_listen_again_when_mosquitto_was_killed(mosquitto):
    broker = mosquitto()
    outage(broker.url, MqttPlatform, broker.kill, broker.start)


def test_devices_listen_again_when_a_nats_server_was_killed(nats_server):  # noqa: F811
    server = nats_server()
    outage(server.url, NatsPlatform, server.kill, server.start)


def test_devices_listen_again_when_a_nats_server_stood_still(nats_server):  # noqa: F811
    server = nats_server()
    outage(server.url, NatsPlatform, lambda: server.signal(signal.SIGSTOP),
           lambda: server.signal(signal.SIGCONT))


def test_what_was_sent_while_a_connection_was_cut_comes_with_the_next(there):
    url, kind = there
    if kind is NatsPlatform:
        return  # core NATS keeps nothing for who is not there
    count = 20

    async def main():
        async with kind(url) as platform, Proxy(platform.port) as proxy:
            there = url.replace(str(platform.port), str(proxy.port))
            run = meters(count=1).listen_to(there).start(speed=20)
            await run.ready()
            for task in list(proxy._tasks):
                task.cancel()
            for i in range(count):
                await platform.send("meter-0000", {"command": "set", "id": f"c-{i}", "every": 2})
            await platform.answered(count, 30)
            result = await run.stop()
            return result, platform.answers

    result, answers = whole(main())
    assert sorted({said["command_id"] for _, said in answers}) == sorted(
        f"c-{i}" for i in range(count))
    assert any("the connection was lost" in note for note in result.notes)


def test_retained_commands_are_left_alone(mosquitto):
    broker = mosquitto()

    async def main():
        async with MqttPlatform(broker.url) as platform:
            await platform.send("meter-0000", {"command": "set", "id": "old", "every": 1},
                                retain=True)
            run = meters().listen_to(broker.url).start(speed=20)
            await run.ready()
            await platform.send("meter-0000", {"command": "set", "id": "new", "every": 2})
            await platform.answered(1)
            return await run.stop()

    result = whole(main())
    assert result.commands()["command_id"].tolist() == ["new"]
    assert any("retained" in note for note in result.notes)


def test_one_topic_may_be_that_of_many_devices(mosquitto):
    broker = mosquitto()

    async def main():
        async with MqttPlatform(broker.url) as platform:
            fleet = meters().listen_to(broker.url, topic="fleet/{device_type}/commands")
            run = fleet.start(speed=20)
            await run.ready()
            await platform.publish("fleet/meter/commands", b'{"command": "dance", "id": "all"}')
            await platform.publish("fleet/meter/commands",
                                   b'{"command": "x", "id": "one", "device_id": "meter-0001"}')
            await platform.answered(4)
            return await run.stop(), platform.of("all"), platform.of("one")

    result, everybody, one = whole(main())
    assert sorted(everybody) == ["meter-0000", "meter-0001", "meter-0002"]
    assert list(one) == ["meter-0001"]
    assert len([action for action in result.actions if action.verb == "command"]) == 2


def test_history_is_over_before_devices_listen(mosquitto):
    broker = mosquitto()

    async def main():
        async with MqttPlatform(broker.url) as platform:
            run = meters().listen_to(broker.url).start(speed=20, backfill="2h")
            await run.ready()
            async with asyncio.timeout(30):
                while not any(said["status"] == "ack" for _, said in platform.answers):
                    await platform.send("meter-0000", {"command": "set", "every": 2})
                    await asyncio.sleep(0.05)
            return await run.stop(), platform.answers

    result, answers = whole(main())
    assert {said["status"] for _, said in answers} <= {"ack", "busy"}
    assert min(action.at for action in result.actions if action.verb == "command") >= 7200
    assert result.to_scenario().generate().digest == result.digest


# -- who may listen -------------------------------------------------------------------------------


def refused(fleet):
    """Return the text of the error with which a run of a fleet ends before it begins."""

    async def main():
        run = fleet.start(speed=20)
        with pytest.raises(ConnectError) as caught:
            await run.ready()
        await run.stop()
        return str(caught.value)

    return whole(main())


def test_mqtt_says_whom_the_broker_refuses(mosquitto):
    broker = mosquitto(users={"ann": "s3cret"}, acl=["user ann", "topic write devices/#"])
    text = refused(meters().listen_to(broker.url, username="ann", password="wr0ng"))
    assert "the broker refused us: Not authorized" in text or "Bad user" in text, text
    assert "wr0ng" not in text


def test_nats_says_whom_the_server_refuses(nats_server):  # noqa: F811
    server = nats_server(more='authorization { users = [{user: "ann", password: "s3cret", '
                              'permissions: {subscribe: "replies.>"}}] }')
    text = refused(meters().listen_to(server.url, username="ann", password="wr0ng"))
    assert "authorization violation" in text
    assert "wr0ng" not in text
    text = refused(meters().listen_to(server.url, username="ann", password="s3cret"))
    assert "permissions violation" in text.lower()


def test_amqp_says_whom_the_broker_refuses(rabbit):
    text = refused(meters().listen_to(rabbit.as_user("reader", "wr0ng")))
    assert "the broker refused us" in text
    assert "wr0ng" not in text
    text = refused(meters().listen_to(rabbit.as_user("nobody")))
    assert "refused us" in text
    assert "access" in text.lower(), text


def test_devices_listen_over_tls(rabbit):
    url = f"amqps://localhost:{rabbit.tls_port}"

    async def main():
        async with AmqpPlatform(rabbit.url) as platform:
            run = meters().listen_to(url, ca=rabbit.certificates.ca).start(speed=20)
            await run.ready()
            await platform.send("meter-0000", {"command": "set", "id": "a", "every": 2})
            await platform.answered(1)
            return await run.stop()

    assert whole(main()).commands()["status"].tolist() == ["ack"]
    assert "certificate is not accepted" in refused(meters().listen_to(url))


def test_a_command_through_a_broker_that_goes_and_comes_back_is_answered(there):
    url, _ = there

    async def main():
        port = urlsplit(url).port
        async with Proxy(port) as proxy:
            through = url.replace(str(port), str(proxy.port))
            run = meters(count=1).listen_to(through).start(speed=20)
            await run.ready()
            run.pause()
            asked = asyncio.create_task(run.command("set", "id=meter-0000", payload={"every": 2},
                                                    via=through))
            await until(lambda: len(run.commands()))
            for task in list(proxy._tasks):
                task.cancel()
            run.resume()
            found = await asked
            await run.stop()
            return found

    assert list(whole(main())["status"]) == ["ack"]


@pytest.mark.parametrize("kind", ["mosquitto", "nats_server"])
def test_a_command_through_a_broker_that_goes_away_says_so(kind, request):
    broker = request.getfixturevalue(kind)()

    async def main():
        run = meters(count=1).listen_to(broker.url).start(speed=20)
        await run.ready()
        run.pause()
        asked = asyncio.create_task(run.command("set", "id=meter-0000", via=broker.url,
                                                timeout="2s"))
        await until(lambda: len(run.commands()))
        broker.kill()
        with pytest.raises(ConnectError, match=r"cannot send commands to .*0 of 1 answered"):
            await asked
        await run.stop()

    whole(main())


@pytest.mark.parametrize("url", ["mqtt://h", "nats://h", "amqp://h", "coap://h"])
def test_answers_cannot_go_where_commands_come_from(url):
    topic = "devices/{device_id}/commands"
    with pytest.raises(BadValue, match=f"is where {url} is listened to for commands"):
        meters().listen_to(url, answer=topic)
    with pytest.raises(BadValue, match="answers a topic of their own"):
        meters().listen_to(url, answer="other/{device_id}").listen_to(url, "other/{device_id}")
    assert len(meters().listen_to(url).listen_to(url, "other/{device_id}").ears) == 2
    assert len(meters().listen_to(url).listen_to(f"{url}2", answer=topic, topic="x").ears) == 2


@pytest.mark.parametrize("verb", ["publish_to", "listen_to"])
@pytest.mark.parametrize("url", ["mqtt://h\n", "nats://h\r\nPUB x", "amqp://h\0", "coap://\th",
                                 "mqtt://ann:marker\n@h"])
def test_an_address_with_what_nobody_sees_is_refused(verb, url):
    with pytest.raises(BadValue, match="invisible character") as refused:
        getattr(meters(), verb)(url)
    assert "\n" not in str(refused.value)
    assert "marker" not in str(refused.value)


def test_an_answer_is_not_answered(there):
    url, kind = there

    async def main():
        async with kind(url) as platform:
            run = meters().listen_to(url).start(speed=20)
            await run.ready()
            await platform.send("meter-0000", {"status": "ack", "command_id": "a",
                                               "device_id": "meter-0000"})
            await platform.send("meter-0000", {"command": "set", "id": "b", "every": 2})
            await platform.answered(1)
            return await run.stop()

    result = whole(main())
    assert result.commands()["command_id"].tolist() == ["b"]
    assert any("answers of devices came as if they were commands" in note
               for note in result.notes)


def test_text_counts_as_it_came(there):
    url, kind = there

    async def main():
        async with kind(url) as platform:
            run = meters().listen_to(url).start(speed=20)
            await run.ready()
            for body in (b"\x01" * 30_000, b"\xc3" * 65_000):
                await platform.send("meter-0000", body)
            await platform.answered(2)
            return platform.answers, await run.stop()

    answers, result = whole(main())
    assert {said["error"] for _, said in answers} == {"\x01" * 20, "\ufffd" * 20}
    assert not result.notes


def test_no_queue_is_left_behind(rabbit):
    async def queues():
        connection = await aio_pika.connect(rabbit.url)
        channel = await connection.channel()
        try:
            await channel.declare_queue(name, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        finally:
            await connection.close()
            await asyncio.sleep(0)
        return True

    async def main():
        nonlocal name
        run = meters().listen_to(rabbit.url).start(speed=20)
        await run.ready()
        name = run._works.desks[0]._listener._queue
        assert await queues()
        await run.stop()
        assert not await queues()

    name = ""
    whole(main())


def listeners():
    return [thread.name for thread in threading.enumerate() if "iotsim-devices" in thread.name]


async def slow(dev):
    async for command in dev.commands():
        await dev.sleep("1s")
        command.ack()


def test_a_run_that_is_stopped_while_its_broker_stands_still_does_not_listen_any_more(mosquitto):
    broker = mosquitto(conf=["log_type all"])

    async def main():
        async with MqttPlatform(broker.url) as platform:
            fleet = Fleet("still", seed=1).add(slow, count=1)
            run = fleet.listen_to(broker.url).start(speed=2)
            await run.ready()
            await platform.send("slow-0000", {"command": "x", "id": "1"})
            await until(lambda: len(run.commands()))
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                await until(lambda: set(run.commands()["status"]) == {"ack"})
                result = await run.stop()
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            await soon(lambda: not listeners())
            await soon(lambda: "Received DISCONNECT from iotsim-devices" in broker.log())
            return result

    result = whole(main())
    assert "answers that the broker had not taken at the end: 1" in result.notes[-1]


def test_a_run_that_is_stopped_while_its_broker_is_away_does_not_come_back(mosquitto):
    broker = mosquitto(conf=["log_type all"])

    async def main():
        run = meters().listen_to(broker.url).start(speed=20)
        await run.ready()
        broker.kill()
        await until(lambda: run.notes)
        await run.stop()
        await until(lambda: not listeners())

    whole(main())


def test_a_result_holds_no_open_files(mosquitto):
    url = mosquitto().url

    def files():
        return len(os.listdir("/proc/self/fd"))

    async def main():
        before, kept = files(), []
        for _ in range(3):
            run = meters().listen_to(url).start(speed=20)
            await run.ready()
            kept.append(await run.stop())
        await until(lambda: files() <= before + 1)  # the loop's thread that connects makes one

    whole(main())
