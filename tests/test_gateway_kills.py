"""Killed with SIGKILL at any step of a command: it is done once, and has one answer."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commanding import Platform, add_streams, until
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


@pytest.mark.parametrize("where", ["written", "done", "answered"])
def test_a_command_of_a_killed_process_is_answered_once_by_who_follows(server, tmp_path, where):
    path = tmp_path / "gateways.db"
    platform = Platform(server.url, path)
    record = platform.run(lambda platform: platform.gateway(open=False)).record
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.command_child", server.url, str(path), record.name, where],
        cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"ready\n"

        async def commanded(link, streams):
            body = Platform.command({"send_frequency_ms": 9}, "c-1")
            await streams.publish(f"command.gw.{record.tenant_id}.{record.gateway_id}", body)

        server.admin(commanded)
        assert child.wait(20) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
        child.stdout.close()

    async def work(platform):
        kept = platform.store.get(record.name)
        assert kept.send_frequency_ms == 9  # what the next run begins with
        before = platform.store.answered(record.name, "c-1")
        gateway = await platform.take(kept, ack_wait=1)
        said = await platform.answers(gateway, 1)
        await until(lambda: len(gateway.log) >= 1)
        await gateway.settled()
        assert await platform.stored(gateway) == 1
        assert (said[0]["command_id"], said[0]["status"]) == ("c-1", "ack")
        assert said[0]["timestamp"] == before.timestamp
        assert gateway.hands.done == []
        assert gateway.log.frame()["repeated"].all()

    Platform(server.url, path).run(work)
