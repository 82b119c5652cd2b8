"""Fixtures: real brokers on free loopback ports, always ended."""

import os

import pytest
from hypothesis import settings

from iotsim.broker import Broker, find_mosquitto

# The same examples everywhere, and no deadline: the machine may be busy.
settings.register_profile("iotsim", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("iotsim")


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
