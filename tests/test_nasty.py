"""The nasty cases of RELIABILITY.md: what no other test file holds yet."""

import asyncio

import pytest

from tests.publishing import Gate, block, gated, in_order_per_device, pumping
from tests.servers.coap import ScriptedPeer, path_of

pytestmark = pytest.mark.timeout(120)


# -- a message that never gets an answer ----------------------------------------------------------


def test_a_message_without_an_answer_is_tried_a_bounded_number_of_times():
    lost = "run/d-2/0/0"

    def behave(link, tokens, items):
        for token, item in zip(tokens, items, strict=True):
            if item[2] == lost:
                link.verdicts.uncertain([token], "no answer")
            else:
                link.verdicts.acknowledged([token])

    async def work():
        gate = Gate(behave=behave)
        async with gated(gate) as pump:
            await pump.offer(0, block(40))
            assert await pump.drain(5)
            assert not pump._lanes[0]._tries
            return pump.snapshot(), gate.links[0].sent

    account, sent = asyncio.run(work())
    assert account.acknowledged == 39
    assert dict(account.refusals) == {"no answer, 8 times": 1}
    assert sent.count(lost) == 8
    assert account.retries == 7


def test_a_reading_that_a_coap_server_never_answers_is_given_up_and_stops_nobody():
    mute = "devices/d-3/telemetry"

    def behave(peer, message, addr):
        if path_of(message) != mute or not message.payload.startswith(b"3."):
            peer.answer(message, addr)

    async def work():
        async with (
            ScriptedPeer(behave) as peer,
            pumping(peer.url, ack_timeout_s=0.05, max_retransmit=1, rate=200) as pump,
        ):
            await pump.offer(0, block(600))  # three seconds of answers for the others
            assert await pump.drain(20)
        return pump.snapshot(), [bytes(m.payload).rstrip(b".") for m in peer.requests]

    account, asked = asyncio.run(work())
    assert dict(account.refusals) == {"no answer, 8 times": 1}
    assert account.acknowledged == 599
    assert asked.count(b"3") == 16  # each of the eight tries has one retransmission
    assert in_order_per_device(dict.fromkeys(f"run/d-{int(n) % 10}/{int(n)}/0" for n in asked))
