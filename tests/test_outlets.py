"""Who publishes where: selectors, a profile's protocol, and options in a profile."""

import asyncio

import pytest

from iotsim import Fleet, Profile
from iotsim.errors import ProfileError, UnknownName
from iotsim.outlets import routes_of
from iotsim.publishers.memory import messages
from tests.live import START


def profile(name, **options):
    field = {"flow": {"type": "constant", "value": 1}}
    return Profile(name, field, telemetry_interval="1s", **options)


def routes(fleet):
    found, notes = routes_of(fleet.outlets, fleet.members,
                             [member.group(i) for i, member in enumerate(fleet.members)])
    return found, notes


def three():
    return (Fleet("mixed", seed=1)
            .add(profile("pump", protocol="amqp"), count=3)
            .add(profile("meter", protocol="mqtt"), count=2)
            .add(profile("scale", protocol="mqtt"), count=1, labels={"protocol": "modbus"}))


def test_a_selector_knows_the_protocol_of_a_profile():
    fleet = (three().publish_to("memory:a", where="protocol=amqp")
             .publish_to("memory:b", where="protocol=mqtt|amqp")
             .publish_to("memory:c"))
    asyncio.run(fleet.run("2s", speed="max", start=START))
    counts = [len(messages(name)) for name in "abc"]
    assert counts == [6, 10, 12]


def test_a_label_of_that_name_wins():
    found, notes = routes(three().publish_to("memory:a", where="protocol=modbus"))
    assert [route.devices for route in found] == [1]
    _, notes = routes(three().publish_to("memory:a", where="protocol=coap"))
    assert notes == ["publish_to('memory:a'): where='protocol=coap' matches no device"]


def test_options_of_a_profile_reach_publishers_of_its_protocol_only():
    fleet = Fleet("plant", seed=1).add(
        profile("pump", protocol="mqtt", publish={"retain": True, "keepalive": 30}), count=2)
    (mqtt,), _ = routes(fleet.publish_to("mqtt://h"))
    assert (mqtt.publisher.retain, mqtt.publisher.keepalive) == (True, 30)
    (called,), _ = routes(fleet.publish_to("mqtt://h", keepalive=60))
    assert (called.publisher.retain, called.publisher.keepalive) == (True, 60)
    (other,), _ = routes(fleet.publish_to("memory:x"))
    assert other.publisher.url == "memory:x"


def test_a_wrong_option_of_a_profile_lists_those_there_are():
    fleet = Fleet("plant", seed=1).add(
        profile("pump", protocol="mqtt", publish={"exchange": "x"}), count=2).publish_to("mqtt://h")
    with pytest.raises(UnknownName, match=r"no mqtt option called 'exchange'.*Known: audit_field"):
        routes(fleet)


@pytest.mark.parametrize("name", ["password", "token", "key", "headers", "verify", "ca"])
def test_a_profile_holds_no_secret_and_trusts_nobody(name):
    with pytest.raises(ProfileError, match=f"publish.{name}='…' has no place in a profile") as one:
        profile("pump", publish={name: "s3cret"})
    assert "s3cret" not in str(one.value)


def test_options_of_a_profile_are_plain_values_that_travel():
    with pytest.raises(ProfileError, match=r"publish.exchange=.* is no text, number or yes or no"):
        profile("pump", publish={"exchange": ["a"]})
    made = profile("pump", publish={"exchange": "plant", "mandatory": False})
    again = Profile.parse(made.to_yaml())
    assert again == made
    assert again.publish == {"exchange": "plant", "mandatory": False}
    assert profile("pump") != made
