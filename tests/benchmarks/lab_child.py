"""A NoTIP lab in a process of its own: a line of JSON in, a line of JSON out.

    {"do": "register", "count": 100}       factory ids f-1 to f-100, key "k"
    {"do": "command", "every_ms": 900, "rate_hz": 0}    to all, at once (0) or one after the other;
                                           answers with their latencies in seconds
    {"do": "telemetry"}                    how many messages came, and how many were rejected
    {"do": "restart"}                      NATS, with what it has stored
"""

import asyncio
import json
import sys
import time

import iotsim.lab


async def sent_one_by_one(lab, ids, every_ms, rate_hz):
    sent = []
    for one in ids:
        sent.append(await lab.console.config(one, send_frequency_ms=every_ms))
        await asyncio.sleep(1 / rate_hz)
    return sent


async def commanded(lab, every_ms, rate_hz):
    began_s, cpu_s = time.perf_counter(), time.process_time()
    ids = lab.console.gateways().gateway_id
    if rate_hz:
        sent = await sent_one_by_one(lab, ids, every_ms, rate_hz)
    else:
        sent = await asyncio.gather(*(lab.console.config(one, send_frequency_ms=every_ms)
                                      for one in ids))
    sent_s = time.perf_counter() - began_s
    await asyncio.gather(*(lab.console.answer(one, 60) for one in sent))
    acks = lab.console.acks()
    acks = acks[acks.command_id.isin(sent)]
    return {"sent_s": sent_s, "answered_s": time.perf_counter() - began_s,
            "lab_cpu_s": time.process_time() - cpu_s,
            "latency_s": acks.latency.dt.total_seconds().tolist()
            if acks.latency.dtype.kind == "m" else acks.latency.tolist(),
            "status": acks.status.value_counts().to_dict()}


async def done(lab, asked):
    match asked.pop("do"):
        case "register":
            await lab.register_many({f"f-{n + 1}": "k" for n in range(asked["count"])})
            return {}
        case "command":
            return await commanded(lab, asked["every_ms"], asked.get("rate_hz", 0))
        case "telemetry":
            return {"messages": len(await lab.console.telemetry()),
                    "rejected": dict(lab.console.rejected)}
        case "restart":
            await lab.restart_nats()
            return {}


async def main():
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    def say(what):
        print(json.dumps(what), flush=True)

    async with iotsim.lab.notip() as lab:
        say({"provisioning_url": lab.provisioning_url, "nats_url": lab.nats_url,
             "nats_ca": str(lab.ca_path), "nats_cert": str(lab.simulator_cert),
             "nats_key": str(lab.simulator_key), "nats_pid": lab.nats_pid})
        while line := await lines.readline():
            say(await done(lab, json.loads(line)))


if __name__ == "__main__":
    asyncio.run(main())
