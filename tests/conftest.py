"""Fixtures: real brokers on free loopback ports, always ended."""

import pytest

from iotsim.broker import Broker, find_mosquitto


@pytest.fixture
def mosquitto():
    """A function that starts a mosquitto; all of them end with the test."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    started = []

    def start(**options):
        broker = Broker(embedded=False, **options)
        started.append(broker)
        broker.start()
        return broker

    yield start
    for broker in started:
        broker.stop()
