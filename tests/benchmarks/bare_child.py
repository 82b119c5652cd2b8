"""Publishes with a client library alone, as fast as it goes, and prints what it cost.

    python -m tests.benchmarks.bare_child '{"client": "nats", "url": "nats://…", "count": 100000}'

`client` is "nats" (nats-py, `publish`), "jetstream" (nats-py, `publish_async`, a window of 4,000)
or "aio-pika" (confirms, tasks in a window). They publish the bytes of `flat_child`, with the id in
a header where iotsim sends one.
"""

import asyncio
import json
import sys
import time

from tests.benchmarks.flat_child import messages

HEADER = "Nats-Msg-Id"


async def core(url, count, options):
    import nats

    topics, payloads, ids = messages(0, count)
    subjects = [topic.replace("/", ".") for topic in topics]
    client = await nats.connect(url)
    with_ids = options.get("ids", True)
    wall_s, cpu_s = time.monotonic(), time.process_time()
    for subject, payload, ident in zip(subjects, payloads, ids, strict=True):
        await client.publish(subject, payload, headers={HEADER: ident} if with_ids else None)
    await client.flush(60)
    spent = time.monotonic() - wall_s, time.process_time() - cpu_s
    await client.close()
    return count, *spent


async def jetstream(url, count, options):
    import nats

    topics, payloads, ids = messages(0, count)
    subjects = [topic.replace("/", ".") for topic in topics]
    client = await nats.connect(url)
    stream = client.jetstream(publish_async_max_pending=options.get("window", 4000))
    wall_s, cpu_s = time.monotonic(), time.process_time()
    for subject, payload, ident in zip(subjects, payloads, ids, strict=True):
        await stream.publish_async(subject, payload, headers={HEADER: ident})
    async with asyncio.timeout(120):
        await stream.publish_async_completed()
    spent = time.monotonic() - wall_s, time.process_time() - cpu_s
    await client.close()
    return count, *spent


async def amqp(url, count, options):
    import aio_pika

    topics, payloads, ids = messages(0, count)
    connection = await aio_pika.connect(url)
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    exchange = await channel.get_exchange(options["exchange"])
    gate = asyncio.Semaphore(options.get("window", 1024))

    async def send(topic, payload, ident):
        try:
            message = aio_pika.Message(payload, message_id=ident, content_type="application/json",
                                       delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await exchange.publish(message, topic)
        finally:
            gate.release()

    wall_s, cpu_s = time.monotonic(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for one in zip(topics, payloads, ids, strict=True):
            await gate.acquire()
            group.create_task(send(*one))
    spent = time.monotonic() - wall_s, time.process_time() - cpu_s
    await connection.close()
    return count, *spent


CLIENTS = {"nats": core, "jetstream": jetstream, "aio-pika": amqp}


def main():
    wish = json.loads(sys.argv[1])
    made = CLIENTS[wish["client"]](wish["url"], wish["count"], wish.get("options", {}))
    print(json.dumps(dict(zip(("acknowledged", "wall_s", "cpu_s"), asyncio.run(made),
                              strict=True))))


if __name__ == "__main__":
    main()
