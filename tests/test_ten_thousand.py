"""Ten thousand devices over a broker that is killed twice: nothing is lost by the simulator."""

import asyncio
import os
import signal

import aio_pika
import pytest

import iotsim
from iotsim import Fleet, Profile
from iotsim.broker import Broker
from iotsim.publishers import pump as pump_module
from tests.live import START
from tests.matrix import mosquitto, nats
from tests.publishing import CheckedLedger
from tests.servers.nats import NatsServer
from tests.servers.rabbit import lent

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

DEVICES, LASTS_S, EVERY_S, SPEED = 10_000, 20, 10, 4
ROWS = DEVICES * LASTS_S // EVERY_S


async def until(condition, timeout_s=60, step_s=0.02):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(step_s)


def fleet(url, **options):
    unit = Profile("unit", {"value": {"type": "gaussian", "mean": 20, "stddev": 2,
                                      "resolution": 0.01}}, telemetry_interval=f"{EVERY_S}s")
    return Fleet("ten thousand", seed=4).add(unit, count=DEVICES).publish_to(url, **options)


async def lived(made, server, speed=SPEED):
    """A run in which the broker is killed after a fifth and after three fifths."""
    run = made.start(f"{LASTS_S}s", speed=speed, start=START, capture="all")
    ledger = run._works.pumps
    await run.ready()
    for share in (0.2, 0.6):
        await until(lambda share=share: run.snapshot().readings > share * ROWS)
        if isinstance(server, (Broker, NatsServer)):
            # It answers nothing more, and what it had answered has been read: in flight is
            # what stays so.
            pid = server.pid if isinstance(server, Broker) else server.process.pid
            os.kill(pid, signal.SIGSTOP)
            told = []
            await until(lambda told=told: stuck(run, told), step_s=0.05)
        else:  # in flight is a matter of milliseconds
            await until(lambda: any(pump.snapshot().in_flight for pump in run._works.pumps),
                        step_s=0.0005)
        server.kill()
        await asyncio.to_thread(server.start)
        await until(lambda: all(pump.connected == pump.lanes for pump in run._works.pumps))
    return await run.wait(), [pump._ledger for pump in ledger]


def stuck(run, told):
    """Whether messages are in flight and none was acknowledged for a few looks."""
    now = [pump.snapshot() for pump in run._works.pumps]
    told.append(sum(one.acknowledged for one in now))
    return len(told) > 4 and told[-1] == told[-5] and any(one.in_flight for one in now)


@pytest.fixture
def checked(monkeypatch):
    """Every ledger asserts the law at every step."""
    monkeypatch.setattr(pump_module, "Ledger", CheckedLedger)


def assert_all_accounted(result, ledgers):
    (ledger,), = (result.publishers.values(),)
    assert result.rows == ROWS
    assert ledger.balanced
    assert ledger.acknowledged == ledger.offered == ROWS, ledger
    assert ledger.reconnects >= 2
    assert all(one.moves > 100 for one in ledgers)
    assert any(("unknown", "in_flight") in one.seen for one in ledgers), "nobody was in flight"
    assert not result.errors


def test_over_mqtt(checked):
    # What mosquitto acknowledged and had not delivered when it was killed is gone: it says that
    # it keeps nothing. The tap was there, and was cut off, too.
    with mosquitto() as broker, iotsim.tap(broker.url) as tap:
        # Slower, so that the tap can follow on a busy machine: else what it missed is nobody's.
        result, ledgers = asyncio.run(lived(fleet(broker.url, qos=1), broker, SPEED / 2))
        assert_all_accounted(result, ledgers)
        audit = result.audit(tap)
        assert_broker_blamed(audit)
        frame = tap.frame()
        with pytest.raises(AssertionError):
            assert_broker_blamed(result.audit(frame.iloc[:0]))
    assert audit.ok or "was disconnected 2 times" in audit.verdict
    assert "was disconnected 2 times" in tap.health


def assert_broker_blamed(audit):
    assert audit.lost_by_simulator == audit.lost_in_flight == 0, audit.verdict
    assert audit.received + audit.lost_by_broker + audit.unknown == ROWS, audit.verdict
    assert audit.received > 0.3 * ROWS, audit.verdict
    assert audit.corrupted == audit.unexpected == audit.out_of_order == 0, audit.verdict


def test_over_amqp(checked):
    async def queue(url):
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange("iot.telemetry", "topic", durable=True)
            kept = await channel.declare_queue("kept", durable=True)
            await kept.bind(exchange, "#")

    with lent() as server:
        asyncio.run(queue(server.url))
        result, ledgers = asyncio.run(lived(fleet(server.url), server))
        assert_all_accounted(result, ledgers)
        with iotsim.tap(server.url, queue="kept") as tap:
            tap.wait(ROWS, 120)
            audit = result.audit(tap)
    assert audit.lost_by_simulator == 0, audit.verdict
    assert audit.received == ROWS, audit.verdict
    assert audit.ok, audit.verdict


def test_over_jetstream(checked):
    with nats(jetstream=True) as server:
        server.add_stream("KEPT", ("devices.>",))
        result, ledgers = asyncio.run(lived(fleet(server.jetstream_url), server))
        assert_all_accounted(result, ledgers)
        with iotsim.tap(server.jetstream_url, "devices.>", stream="KEPT", deliver="all") as tap:
            tap.wait(ROWS, 120)
            audit = result.audit(tap)
    assert audit.ok, audit.verdict
    assert audit.received == ROWS
    assert audit.duplicated == 0, "JetStream knows messages by their id"
