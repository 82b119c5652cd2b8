"""Publishes one device's message after the other as fast as it goes, and prints what it cost.

    python -m tests.benchmarks.flat_child '{"client": "iotsim", "url": "mqtt://…", "count": 100000}'

`client` is "iotsim" (a pump, as a run has it) or "paho" (its loop in a thread, window 20 or what
is given). Both publish the same bytes to the same topics with QoS 1 and wait for every answer.
"""

import asyncio
import json
import sys
import threading
import time
from urllib.parse import urlsplit

import numpy as np

DEVICES, BLOCK = 1000, 2000


def messages(first, count):
    names = [f"temperature_sensor-{i % DEVICES:04d}" for i in range(first, first + count)]
    payload = (b'{"device_id":"%b","device_type":"temperature_sensor","timestamp":'
               b'"2026-03-01T12:00:00.000000Z","fields":{"battery":99.9,"humidity":55.1,'
               b'"temperature":21.73},"labels":{"device_type":"temperature_sensor"}}')
    return ([f"devices/{name}/telemetry" for name in names],
            [payload % name.encode() for name in names],
            [f"flat/{name}/{i}/0" for i, name in enumerate(names, first)])


async def ours(url, count, options):
    from iotsim.publishers.base import build
    from iotsim.publishers.payload import Messages
    from iotsim.publishers.pump import Pump

    blocks = [Messages(*messages(first, BLOCK), np.zeros(BLOCK, np.int64))
              for first in range(0, count, BLOCK)]
    pump = Pump(build(url, **options))
    await pump.open()
    try:
        wall_s, cpu_s = time.monotonic(), time.process_time()
        for one in blocks:
            await pump.offer(0, one)
        await pump.drain(300)
        spent = time.monotonic() - wall_s, time.process_time() - cpu_s
        return pump.snapshot().acknowledged, *spent
    finally:
        await pump.close()


def paho(url, count, options):
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    topics, payloads, _ = messages(0, count)
    client = Client(CallbackAPIVersion.VERSION2)
    window = threading.Semaphore(options.get("window", 20))
    client.max_inflight_messages_set(options.get("window", 20))
    done, all_done, connected = [0], threading.Event(), threading.Event()

    def published(*_):
        done[0] += 1
        window.release()
        if done[0] == count:
            all_done.set()

    client.on_publish = published
    client.on_connect = lambda *_: connected.set()
    address = urlsplit(url)
    client.connect(address.hostname, address.port)
    client.loop_start()
    connected.wait(10)
    wall_s, cpu_s = time.monotonic(), time.process_time()
    for topic, payload in zip(topics, payloads, strict=True):
        window.acquire()
        client.publish(topic, payload, 1)
    all_done.wait(300)
    spent = time.monotonic() - wall_s, time.process_time() - cpu_s
    client.disconnect()
    client.loop_stop()
    return done[0], *spent


def main():
    wish = json.loads(sys.argv[1])
    given = wish["url"], wish["count"], wish.get("options", {})
    found = asyncio.run(ours(*given)) if wish["client"] == "iotsim" else paho(*given)
    print(json.dumps(dict(zip(("acknowledged", "wall_s", "cpu_s"), found, strict=True))))


if __name__ == "__main__":
    main()
