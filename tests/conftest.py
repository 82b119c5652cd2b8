"""Fixtures: real brokers on free loopback ports, always ended."""

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from iotsim.broker import Broker, find_mosquitto

# The same examples everywhere, and no deadline: the machine may be busy.
settings.register_profile("iotsim", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("iotsim")

# No test talks to anybody whom a public authority knows, and to read the system's 140 of them
# takes 60 ms for every context of TLS: instead there is one, and nobody has its key.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "data" / "authority_of_nobody.pem")
os.environ["SSL_CERT_DIR"] = os.path.join(os.sep, "nonexistent")

# What takes a worker longest, longest first: one that began last would be waited for alone.
LONGEST = (
    "test_notebooks.py", "test_panel_lab.py", "test_demo.py", "test_matrix.py",
    "test_ten_thousand.py", "test_branch.py",
    "test_actions_properties.py", "test_commands_brokers.py", "test_audit_live.py",
    "test_nasty_ends.py", "test_seeding.py", "test_http_outages.py", "test_amqp_outages.py",
    "test_coap.py", "test_nasty_brokers.py", "test_jetstream.py", "test_quality.py",
    "test_http.py", "test_mqtt.py", "test_nats.py", "test_run.py", "test_cli.py", "test_nasty.py",
    "test_benchmarks.py", "test_nats_outages.py", "test_preflight.py", "test_departures.py",
    "test_tap.py", "test_forged.py", "test_addresses.py", "test_commands_coap.py",
)


def pytest_collection_modifyitems(config, items):
    """Let each worker of pytest-xdist have the tests in an order that ends at the same time."""
    if hasattr(config, "workerinput"):
        rank = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish():
    """Leave what all the test files have imported out of every garbage collection to come."""
    gc.collect()
    gc.freeze()


# Files whose tests share what takes long to make, once per process: runs, or a RabbitMQ node.
TOGETHER = (
    {"test_faults_wire.py", "test_faults_wire_link.py", "test_faults_wire_values.py"},
    {"test_ten_thousand.py", "test_amqp_outages.py", "test_nasty_brokers.py"},
    {"test_matrix.py", "test_commands_brokers.py", "test_amqp.py"},
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give all files that share something to one worker, each of the others as it is free."""
    from xdist.scheduler import LoadFileScheduling

    class ByFiles(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            name = os.path.basename(file)
            return next((min(group) for group in TOGETHER if name in group), file)

    return ByFiles(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_sessionfinish():
    """End what this process keeps for all its test files."""
    rabbit = sys.modules.get("tests.servers.rabbit")
    if rabbit is not None:
        rabbit.end_node()


def lacking(what):
    """Skip, and say why; under tests/run, which installs what is missing, fail."""
    if os.environ.get("IOTSIM_REQUIRE_BROKERS") == "1":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture
def mosquitto():
    """A function that starts a mosquitto; all of them end with the test."""
    if find_mosquitto() is None:
        lacking("mosquitto is not installed (apt-get install mosquitto)")
    started = []

    def start(**options):
        broker = Broker(embedded=False, **options)
        started.append(broker)
        broker.start()
        return broker

    yield start
    for broker in started:
        broker.stop()
