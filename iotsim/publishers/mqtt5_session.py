"""An MQTT 5 session over the `mqtt5` codec, made for exact account rather than convenience.

One `Mqtt5Link` outlives its connections: it remembers which packet id carries which token, so
that a resumed session replays with DUP (or with PUBREL alone, for QoS 2) and a lost one starts
afresh. Everything the peer says about a message ends as exactly one verdict.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from itertools import repeat
from typing import Protocol

from mqtt5 import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    PingReqPacket,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    PubRelReasonCode,
    QoS,
    Will,
)

from iotsim.clock import stamp_us
from iotsim.errors import ConnectError
from iotsim.publishers.base import Blame, Item, Loss, Verdicts
from iotsim.publishers.mqtt import MqttPublisher
from iotsim.publishers.mqtt5_wire import Wire
from iotsim.publishers.sessions import LastWill
from iotsim.transport.addresses import failure_text

CONNECT_S = 5.0  # for TCP and TLS
CONNACK_S = 4.0
CLOSE_S = 0.4
SESSION_EXPIRY_S = 300
WINDOW_MAX = 8192
WINDOW_SMALL = 256
PAYLOAD_BYTES_MAX = 255 * 1024 * 1024  # a packet ends at 256 MB, the codec panics beyond
QUOTA_EXCEEDED = 151
# DISCONNECT codes that a single message of ours may have earned.
_MESSAGE_CODES = frozenset({129, 130, 144, 147, 149, 151, 153, 154, 155})
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class ReasonCode(Protocol):
    """What the codec's reason codes have in common."""

    @property
    def name(self) -> str:
        """The name in capitals."""

    @property
    def value(self) -> int:
        """The number; 128 and above is a failure."""


class Mqtt5Link:
    """One MQTT 5 connection of a lane (a `Link`).

    Parameters
    ----------
    publisher : MqttPublisher
    client_id : str
    verdicts : Verdicts
    will : LastWill, optional
    """

    def __init__(
        self,
        publisher: MqttPublisher,
        client_id: str,
        verdicts: Verdicts,
        will: LastWill | None = None,
    ) -> None:
        self._publisher = publisher
        self._client_id = client_id
        self._verdicts = verdicts
        self._qos = publisher.qos
        self._qos_code = QoS(publisher.qos)  # the codec's codes are no ints, whatever its stubs say
        self._will: Will | None = None
        if will is not None:
            payload = will.payload.encode()
            self._will = Will(will.topic, payload=payload, qos=self._qos_code, retain=will.retain)
        self._wire: Wire | None = None
        self._connack: asyncio.Future[ConnAckPacket] | None = None
        self._begun = False
        self._tokens: dict[int, int] = {}  # packet id → token, of all that await a verdict
        self._released: set[int] = set()  # packet ids whose PUBREC came (QoS 2)
        self._resumed: dict[int, int] = {}  # token → packet id, from before the reconnect
        self._last_id = 0
        self._size_max = 1 << 28
        self._ping: asyncio.TimerHandle | None = None
        self._heard = False

    # -- connection ---------------------------------------------------------------------------

    async def open(self) -> int:
        """Connect, and return how many messages may be in flight."""
        loop = asyncio.get_running_loop()
        address = self._publisher.address
        wire = Wire(self)
        self._connack = loop.create_future()
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(
                    lambda: wire, address.host, address.port, ssl=self._publisher.context
                )
            self._wire = wire
            wire.write(self._connect_packet())
            async with asyncio.timeout(CONNACK_S):
                connack = await self._connack
            window = self._agreed(connack)
            if window < WINDOW_SMALL:  # then the rate is what the round trip allows
                wire.answer_quickly()
            if self._wire is not wire:
                raise self._refusal("the broker closed the connection at once")
        except BaseException as error:
            accepted = self._wire is wire
            self.drop()
            wire.abort()
            if isinstance(error, TimeoutError) and accepted:
                why = "the broker accepts the connection but does not answer"
                raise self._refusal(why, "Perhaps it wants version='3.1.1'.") from None
            if isinstance(error, TimeoutError):
                raise self._refusal("the address does not answer") from None
            if isinstance(error, OSError) and not isinstance(error, ConnectError):
                raise self._refusal(failure_text(error)) from None
            raise
        self._begun = True
        self._arm_ping(connack.server_keep_alive or self._publisher.keepalive)
        return window

    def _connect_packet(self) -> bytes:
        who = self._publisher.credentials
        return ConnectPacket(
            self._client_id,
            username=who.username or None,
            password=who.password.encode() if who.password else None,
            clean_start=not self._begun,
            will=self._will,
            keep_alive=self._publisher.keepalive,
            session_expiry_interval=SESSION_EXPIRY_S,
            max_packet_size=65_536,
        ).write()

    def _agreed(self, connack: ConnAckPacket) -> int:
        # What the broker granted; raises where it is less than what was asked for.
        code = connack.reason_code.value
        if code >= 128:
            raise self._refusal(
                f"the broker refused us: {_reason(connack.reason_code)}", _advice(code)
            )
        if connack.max_qos.value < self._qos:
            raise self._refusal(
                f"the broker grants QoS {connack.max_qos.value} at most, not {self._qos}",
                f"Use qos={connack.max_qos.value}.",
            )
        if self._publisher.retain and not connack.retain_available:
            raise self._refusal("the broker retains no messages", "Use retain=False.")
        self._size_max = connack.max_packet_size or 1 << 28
        if connack.session_present and self._begun:
            self._resumed = {token: number for number, token in self._tokens.items()}
        else:
            self._tokens.clear()
            self._released.clear()
            self._resumed = {}
        return min(connack.receive_max, WINDOW_MAX) if self._qos else WINDOW_MAX

    def _refusal(self, why: str, todo: str = "") -> ConnectError:
        if self._publisher.per_device:
            why = f"{self._client_id}: {why}"
        return ConnectError(self._publisher.url, why, todo)

    def drop(self) -> None:
        """End the connection at once; no verdict comes after it."""
        self._cancel_ping()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()

    async def close(self) -> None:
        """Send DISCONNECT, flush and close, within a deadline."""
        self._cancel_ping()
        wire, self._wire = self._wire, None
        if wire is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await wire.close(DisconnectPacket(session_expiry_interval=0).write())
        except TimeoutError:
            pass
        finally:
            wire.abort()

    # -- sending ------------------------------------------------------------------------------

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        """Hand messages to the transport in one write; False if it holds more than 256 kB."""
        wire = self._wire
        if wire is None:
            return False
        frames: list[bytes] = []
        bad: list[tuple[int, str]] = []
        frame = self._replay if self._resumed else self._frame
        for token, item in zip(tokens, items, strict=True):
            try:
                frames.append(frame(token, item))
            except ValueError as error:
                bad.append((token, _why_not(item, error)))
        wire.write(b"".join(frames))
        for token, reason in bad:
            self._verdicts.refused([token], reason)
        if not self._qos:
            refused = {token for token, _ in bad}
            self._verdicts.acknowledged([t for t in tokens if t not in refused])
        return not wire.paused

    def _frame(self, token: int, item: Item, known_id: int = 0) -> bytes:
        topic, payload, ident, _ = item
        if not (topic.isprintable() and ident.isprintable()) and _UNPRINTABLE.search(topic + ident):
            raise ValueError("control character")
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise _TooLargeError
        number: int | None = None
        if self._qos:
            number = known_id or self._last_id % 65_535 + 1
            while number in self._tokens and not known_id:
                number = number % 65_535 + 1
        frame = PublishPacket(
            topic,
            payload,
            qos=self._qos_code,
            retain=self._publisher.retain,
            packet_id=number,
            duplicate=known_id > 0,
            user_properties=[("id", ident), *self._stamps()],
        ).write()
        if len(frame) > self._size_max:
            raise _TooLargeError
        if number is not None:
            self._tokens[number] = token
            self._last_id = number
        return frame

    def _stamps(self) -> list[tuple[str, str]]:
        return [("sent", str(stamp_us()))] if self._publisher.tracing.stamp else []

    def _replay(self, token: int, item: Item) -> bytes:
        number = self._resumed.pop(token, 0)
        if number in self._released:
            return PubRelPacket(number).write()
        if number == 0 and self._resumed and token > max(self._resumed):
            # The lane replays in order: what it has passed over will not come again.
            for number_left in self._resumed.values():
                self._tokens.pop(number_left, None)
                self._released.discard(number_left)
            self._resumed = {}
        try:
            return self._frame(token, item, number)
        except ValueError:
            self._tokens.pop(number, None)
            raise

    # -- receiving (called by the wire) ---------------------------------------------------------

    def settled(self, packet_ids: list[int]) -> None:
        """Take a run of PUBACKs without complaint."""
        self._heard = True
        found = map(self._tokens.pop, packet_ids, repeat(-1))
        self._acknowledge([token for token in found if token >= 0])

    def received(self, packets: list[object]) -> None:
        """Take packets of the broker's and turn them into verdicts."""
        self._heard = True
        done: list[int] = []
        replies: list[bytes] = []
        for packet in packets:
            if type(packet) is PubAckPacket:
                token = self._tokens.pop(packet.packet_id, None)
                if packet.reason_code.value < 128:
                    if token is not None:
                        done.append(token)
                elif token is not None:
                    self._refuse(token, packet.reason_code)
            elif type(packet) is PubRecPacket:
                self._recorded(packet, replies)
            elif type(packet) is PubCompPacket:
                self._released.discard(packet.packet_id)
                token = self._tokens.pop(packet.packet_id, None)
                if token is not None:  # "not found" after a resume: it was taken before
                    done.append(token)
            elif type(packet) is ConnAckPacket:
                if self._connack is not None and not self._connack.done():
                    self._connack.set_result(packet)
            elif type(packet) is DisconnectPacket:
                blame: Blame = "message" if packet.reason_code.value in _MESSAGE_CODES else "other"
                self._acknowledge(done)
                self.gone(Loss(f"the broker disconnected us: {_reason(packet.reason_code)}", blame))
                return
        if replies and self._wire is not None:
            self._wire.write(b"".join(replies))
        self._acknowledge(done)

    def _acknowledge(self, tokens: list[int]) -> None:
        if tokens:
            self._verdicts.acknowledged(tokens)

    def _recorded(self, packet: PubRecPacket, replies: list[bytes]) -> None:
        number = packet.packet_id
        if number not in self._tokens:
            unknown = PubRelReasonCode.PACKET_ID_NOT_FOUND
            replies.append(PubRelPacket(number, reason_code=unknown).write())
        elif packet.reason_code.value >= 128:
            self._released.discard(number)
            self._refuse(self._tokens.pop(number), packet.reason_code)
        else:
            self._released.add(number)
            replies.append(PubRelPacket(number).write())

    def _refuse(self, token: int, code: ReasonCode) -> None:
        self._verdicts.refused([token], _reason(code), retry=code.value == QUOTA_EXCEEDED)

    def gone(self, loss: Loss) -> None:
        """Take the end of the wire."""
        opening = self._connack is not None and not self._connack.done()
        if opening and self._connack is not None:
            why = f"the broker ended the connection during the handshake ({loss.why})"
            self._connack.set_exception(
                self._refusal(why, "Is it an MQTT 5 broker, and TLS as the URL says?")
            )
        self.drop()
        if not opening:
            self._verdicts.lost(loss)

    def writable(self) -> None:
        """Take the news that the transport has room again."""
        self._verdicts.ready()

    # -- keepalive ----------------------------------------------------------------------------

    def _arm_ping(self, keepalive_s: float) -> None:
        # Half the time to the ping, half for its answer: a dead link shows within one keepalive.
        half_s = keepalive_s / 2
        loop = asyncio.get_running_loop()

        def ask() -> None:
            if self._wire is not None:
                self._heard = False
                self._wire.write(PingReqPacket().write())
                self._ping = loop.call_later(half_s, check)

        def check() -> None:
            if not self._heard:
                self.gone(Loss(f"no PINGRESP in {half_s:g} s"))
            else:
                self._ping = loop.call_later(half_s, ask)

        self._cancel_ping()
        self._ping = loop.call_later(half_s, ask)

    def _cancel_ping(self) -> None:
        if self._ping is not None:
            self._ping.cancel()
            self._ping = None


class _TooLargeError(ValueError):
    pass


def _why_not(item: Item, error: ValueError) -> str:
    topic = item[0]
    if isinstance(error, _TooLargeError):
        return "larger than the broker's Maximum Packet Size"
    if "#" in topic or "+" in topic:
        return "wildcard in the topic"
    if not topic:
        return "empty topic"
    if len(topic.encode("utf-8", "replace")) > 65_535:
        return "topic over 65,535 bytes"
    if _UNPRINTABLE.search(topic):
        return "control character or lone surrogate in the topic"
    return "message id cannot be a user property"


def _reason(code: ReasonCode) -> str:
    return f"{code.name.lower().replace('_', ' ')} ({code.value})"


def _advice(code: int) -> str:
    if code in (134, 135):
        return "Check username= and password=."
    if code == 132:
        return "Use version='3.1.1'."
    return ""
