"""PUBLISH packets made from bytes, against the codec as the oracle."""

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqtt5 import PublishPacket, QoS

from iotsim.publishers.mqtt_frames import Framer, odd, varint, why_not

ASCII = st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="+#")
SIZES = st.sampled_from([0, 1, 110, 127, 128, 254, 255, 256, 2000, 4090, 5000, 16_384])


def oracle(item, number, qos, retain, again=False, sent=""):
    properties = [("id", item[2])] + ([("sent", sent)] if sent else [])
    return PublishPacket(item[0], item[1], qos=QoS(qos), retain=retain, user_properties=properties,
                         packet_id=number if qos else None, duplicate=again).write()


@st.composite
def messages(draw, signs=ASCII):
    topic = draw(st.text(signs, min_size=1, max_size=20)).ljust(draw(SIZES), "t")
    ident = draw(st.text(signs, max_size=20)).ljust(draw(SIZES), "i")
    return topic, b"p" * draw(SIZES), ident, 0.0


@given(st.lists(messages(), min_size=1, max_size=40), st.sampled_from([0, 1, 2]), st.booleans(),
       st.sampled_from(["", "1700000000000000"]))
def test_a_batch_is_what_the_codec_writes_one_by_one(items, qos, retain, sent):
    assert not odd(items)
    numbers = range(65_536 - len(items), 65_536)
    whole, largest = Framer(qos, retain, properties=True).frames(items, numbers, sent)
    expected = [oracle(item, n, qos, retain, sent=sent)
                for item, n in zip(items, numbers, strict=True)]
    assert whole == b"".join(expected)
    assert max(map(len, expected)) <= largest <= max(map(len, expected)) + 4


@given(messages(st.characters(exclude_categories=["Cs", "Cc", "Cn"], exclude_characters="+#")),
       st.sampled_from([1, 2]), st.booleans())
def test_one_packet_is_what_the_codec_writes_whatever_its_signs(item, qos, again):
    if why_not(item[0], item[2]):
        return
    made = Framer(qos, False, properties=True).frame(item, 7, again=again)
    assert made == oracle(item, 7, qos, False, again=again)


@given(st.lists(messages(), min_size=1, max_size=20), st.sampled_from([0, 1, 2]))
def test_without_properties_it_is_mqtt_3_1_1(items, qos):
    whole, largest = Framer(qos, True, properties=False).frames(items, range(1, len(items) + 1))
    for number, (topic, payload, _, _) in enumerate(items, 1):
        body = len(topic).to_bytes(2, "big") + topic.encode()
        body += (number.to_bytes(2, "big") if qos else b"") + payload
        frame = bytes([0x31 | qos << 1]) + varint(len(body)) + body
        assert whole.startswith(frame)
        assert len(frame) <= largest
        whole = whole[len(frame):]
    assert not whole


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("name", ["a+b", "a/#", "", "a\x00", "a\n", "a\x7f", "ä", "a\ud800"])
def test_what_may_be_odd_is_looked_at_one_by_one(name, count):
    good = [("devices/d/telemetry", b"x", "run/d/0/0", 0.0)] * count
    assert not odd(good)
    assert odd([*good, (name, b"x", "run/d/1/0", 0.0)])
    assert bool(why_not(name, "i")) == (name != "ä")


@given(st.text(max_size=5))
def test_what_the_codec_cannot_write_is_never_called_good(name):
    try:
        oracle((name, b"", "i"), 1, 1, False)
    except ValueError:
        assert why_not(name, "i")
    try:
        oracle(("t", b"", name), 1, 1, False)
    except ValueError:
        assert why_not("t", name)


def test_a_variable_byte_integer_is_read_back():
    for number in (0, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152):
        payload = bytes(max(0, number - 3))
        frame = bytes([0x30]) + varint(len(payload) + 4) + b"\x00\x01t\x00" + payload
        if number > 3:
            assert mqtt5.read(memoryview(frame))[1] == len(frame)
