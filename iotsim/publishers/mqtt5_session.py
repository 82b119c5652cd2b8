"""An MQTT 5 session over the `mqtt5` codec, made for exact account rather than convenience.

One `Mqtt5Link` outlives its connections: it remembers which packet id carries which token, so
that a resumed session replays with DUP (or with PUBREL alone, for QoS 2) and a lost one starts
afresh. Everything the peer says about a message ends as exactly one verdict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import repeat
from typing import ClassVar, Protocol

from mqtt5 import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    PingReqPacket,
    PubAckPacket,
    PubCompPacket,
    PubRecPacket,
    PubRelPacket,
    PubRelReasonCode,
    QoS,
    Will,
)

from iotsim.clock import stamp_us
from iotsim.errors import ConnectError
from iotsim.publishers.base import Blame, Item, Link, Loss, Verdicts
from iotsim.publishers.mqtt import MqttPublisher
from iotsim.publishers.mqtt5_wire import Wire, read
from iotsim.publishers.mqtt_frames import PACKET_BYTES_MAX, Framer, odd, why_not
from iotsim.publishers.refusals import Refusals
from iotsim.publishers.sessions import LastWill
from iotsim.publishers.timers import Pulse
from iotsim.transport.addresses import failure_text

CONNECT_S = 5.0  # for TCP and TLS
CONNACK_S = 4.0
CLOSE_S = 0.4
SESSION_EXPIRY_S = 300
WINDOW_MAX = 8192
WINDOW_SMALL = 256
QUOTA_EXCEEDED = 151
# DISCONNECT codes that a single message of ours may have earned.
_MESSAGE_CODES = frozenset({129, 130, 144, 147, 149, 151, 153, 154, 155})


class ReasonCode(Protocol):
    """What the codec's reason codes have in common."""

    @property
    def name(self) -> str:
        """The name in capitals."""

    @property
    def value(self) -> int:
        """The number; 128 and above is a failure."""


class Mqtt5Link(Link):
    """One MQTT 5 connection of a lane (a `Link`).

    Parameters
    ----------
    publisher : MqttPublisher
    client_id : str
    verdicts : Verdicts
    will : LastWill, optional
    """

    properties: ClassVar[bool] = True  # whether the protocol has any
    pipelines = True  # a refused message may be overtaken by those in flight
    read = staticmethod(read)

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
        self._framer = Framer(self._qos, publisher.retain, properties=self.properties)
        self._wire: Wire | None = None
        self._connack: asyncio.Future[ConnAckPacket] | None = None
        self._begun = False
        self._tokens: dict[int, int] = {}  # packet id → token, of all that await a verdict
        self._released: set[int] = set()  # packet ids whose PUBREC came (QoS 2)
        self._resumed: dict[int, int] = {}  # token → packet id, from before the reconnect
        self._last_id = 0
        self._size_max = PACKET_BYTES_MAX
        self._pulse = Pulse(self._ask, self._silent)
        self._pong: asyncio.Future[None] | None = None

    # -- connection ---------------------------------------------------------------------------

    async def open(self) -> int:
        """Connect, and return how many messages may be in flight."""
        wire = Wire(self, self.read)
        try:
            connack = await self._introduced(wire, self._connect_packet())
            window = self._agreed(connack)
            if window < WINDOW_SMALL:  # then the rate is what the round trip allows
                wire.answer_quickly()
            if self._wire is not wire:
                raise self._refusal("the broker closed the connection at once")
        except BaseException as error:
            raise self._failed(wire, error) from None
        self._begun = True
        self._pulse.begin(connack.server_keep_alive or self._publisher.keepalive)
        return window

    def _failed(self, wire: Wire, error: BaseException) -> BaseException:
        # Why there is no connection, in one line; nothing of it is left.
        accepted = self._wire is wire
        self.drop()
        wire.abort()
        if isinstance(error, TimeoutError) and accepted:
            other = "3.1.1" if self.properties else "5"
            why = "the broker accepts the connection but does not answer"
            return self._refusal(why, f"Perhaps it wants version={other!r}.")
        if isinstance(error, TimeoutError):
            return self._refusal("the address does not answer")
        if isinstance(error, OSError) and not isinstance(error, ConnectError):
            return self._refusal(failure_text(error))
        return error

    async def _introduced(self, wire: Wire, packet: bytes) -> ConnAckPacket:
        # What the broker answers to a CONNECT.
        loop = asyncio.get_running_loop()
        address = self._publisher.address
        self._connack = loop.create_future()
        async with asyncio.timeout(CONNECT_S):
            await loop.create_connection(
                lambda: wire, address.host, address.port, ssl=self._publisher.context
            )
        self._wire = wire
        wire.write(packet)
        del packet  # it may hold a password, and this frame stands in a traceback
        async with asyncio.timeout(CONNACK_S):
            return await self._connack

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
                f"the broker refused us: {_reason(connack.reason_code)}", self._advice(code)
            )
        if connack.max_qos.value < self._qos:
            raise self._refusal(
                f"the broker grants QoS {connack.max_qos.value} at most, not {self._qos}",
                f"Use qos={connack.max_qos.value}.",
            )
        if self._publisher.retain and not connack.retain_available:
            raise self._refusal("the broker retains no messages", "Use retain=False.")
        self._size_max = min(connack.max_packet_size or PACKET_BYTES_MAX, PACKET_BYTES_MAX)
        if connack.session_present and self._begun:
            self._resumed = {token: number for number, token in self._tokens.items()}
        else:
            self._tokens.clear()
            self._released.clear()
            self._resumed = {}
        return min(connack.receive_max, WINDOW_MAX) if self._qos else WINDOW_MAX

    def _advice(self, code: int) -> str:
        if code in (134, 135):
            return "Check username= and password=."
        if code == 132:
            return f"Use version={'3.1.1' if self.properties else '5'!r}."
        return ""

    def _refusal(self, why: str, todo: str = "") -> ConnectError:
        if self._publisher.per_device:
            why = f"{self._client_id}: {why}"
        return ConnectError(self._publisher.url, why, todo)

    def drop(self) -> None:
        """End the connection at once; no verdict comes after it."""
        self._pulse.end()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()

    async def close(self) -> None:
        """Send DISCONNECT, flush and close, within a deadline."""
        self._pulse.end()
        wire, self._wire = self._wire, None
        if wire is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await wire.close(self._farewell())
        except TimeoutError:
            pass
        finally:
            wire.abort()

    def _farewell(self) -> bytes:
        return DisconnectPacket(session_expiry_interval=0).write()

    # -- sending ------------------------------------------------------------------------------

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        """Hand messages to the transport in one write; False if it holds more than 256 kB."""
        wire = self._wire
        if wire is None:
            return False
        sent = str(stamp_us()) if self._publisher.tracing.stamp else ""
        if self._resumed or odd(items) or not self._send_all(wire, tokens, items, sent):
            self._send_each(wire, tokens, items, sent)
        elif not self._qos:
            self._verdicts.acknowledged(tokens)
        return not wire.paused

    def _send_all(
        self, wire: Wire, tokens: Sequence[int], items: Sequence[Item], sent: str
    ) -> bool:
        # False if one of them is too large.
        numbers = self._free_numbers(len(items)) if self._qos else range(len(items))
        packets, largest = self._framer.frames(items, numbers, sent)
        if largest > self._size_max:
            return False
        if self._qos:
            self._tokens.update(zip(numbers, tokens, strict=True))
            self._last_id = numbers[-1]
        wire.write(packets)
        return True

    def _send_each(
        self, wire: Wire, tokens: Sequence[int], items: Sequence[Item], sent: str
    ) -> None:
        frames: list[bytes] = []
        bad = Refusals()
        good: list[int] = []
        for token, item in zip(tokens, items, strict=True):
            frame, why = self._frame(token, item, sent)
            frames.append(frame)
            if why:
                bad.add(token, why)
            else:
                good.append(token)
        wire.write(b"".join(frames))
        bad.tell(self._verdicts)
        if not self._qos:
            self._verdicts.acknowledged(good)

    def _free_numbers(self, count: int) -> Sequence[int]:
        first = self._last_id % 65_535 + 1
        ahead = range(first, first + count)
        if first + count <= 65_536 and self._tokens.keys().isdisjoint(ahead):
            return ahead
        found: list[int] = []
        number = self._last_id
        while len(found) < count:
            number = number % 65_535 + 1
            if number not in self._tokens:
                found.append(number)
        return found

    def _frame(self, token: int, item: Item, sent: str) -> tuple[bytes, str]:
        # One packet, of a message that may have been sent before; or why there is none.
        known_id = self._resumed.pop(token, 0)
        if known_id in self._released:
            return PubRelPacket(known_id).write(), ""
        if known_id == 0 and self._resumed and token > max(self._resumed):
            self._pass_over()
        why, frame = why_not(item[0], item[2]), b""
        if not why:
            number = (known_id or self._free_numbers(1)[0]) if self._qos else 0
            frame = self._framer.frame(item, number, again=known_id > 0, sent=sent)
            if len(frame) > self._size_max:
                why = "larger than the broker's Maximum Packet Size"
        if why:
            self._tokens.pop(known_id, None)
            return b"", why
        if self._qos:
            self._tokens[number] = token
            self._last_id = number
        return frame, ""

    def _pass_over(self) -> None:
        # The lane replays in order: what it has passed over will not come again.
        for number in self._resumed.values():
            self._tokens.pop(number, None)
            self._released.discard(number)
        self._resumed = {}

    # -- receiving (called by the wire) ---------------------------------------------------------

    def settled(self, packet_ids: list[int]) -> None:
        """Take a run of PUBACKs without complaint."""
        self._pulse.heard = True
        found = map(self._tokens.pop, packet_ids, repeat(-1))
        self._acknowledge([token for token in found if token >= 0])

    def received(self, packets: list[object]) -> None:
        """Take packets of the broker's and turn them into verdicts."""
        self._pulse.heard = True
        if self._pong is not None and not self._pong.done():
            self._pong.set_result(None)
        done: list[int] = []
        bad = Refusals()
        replies: list[bytes] = []
        for packet in packets:
            if type(packet) is PubAckPacket:
                token = self._tokens.pop(packet.packet_id, None)
                if packet.reason_code.value < 128:
                    if token is not None:
                        done.append(token)
                elif token is not None:
                    _refuse(bad, token, packet.reason_code)
            elif type(packet) is PubRecPacket:
                self._recorded(packet, replies, bad)
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
                bad.tell(self._verdicts)
                self._acknowledge(done)
                self.gone(Loss(f"the broker disconnected us: {_reason(packet.reason_code)}", blame))
                return
        if replies and self._wire is not None:
            self._wire.write(b"".join(replies))
        bad.tell(self._verdicts)
        self._acknowledge(done)

    def _acknowledge(self, tokens: list[int]) -> None:
        if tokens:
            self._verdicts.acknowledged(tokens)

    def _recorded(self, packet: PubRecPacket, replies: list[bytes], bad: Refusals) -> None:
        number = packet.packet_id
        if number not in self._tokens:
            unknown = PubRelReasonCode.PACKET_ID_NOT_FOUND
            replies.append(PubRelPacket(number, reason_code=unknown).write())
        elif packet.reason_code.value >= 128:
            self._released.discard(number)
            _refuse(bad, self._tokens.pop(number), packet.reason_code)
        else:
            self._released.add(number)
            replies.append(PubRelPacket(number).write())

    def gone(self, loss: Loss) -> None:
        """Take the end of the wire."""
        opening = self._connack is not None and not self._connack.done()
        if opening and self._connack is not None:
            why = f"the broker ended the connection during the handshake ({loss.why})"
            self._connack.set_exception(
                self._refusal(
                    why,
                    f"Is it an MQTT {self._publisher.version} broker, and TLS as the URL says?",
                )
            )
        self.drop()
        if not opening:
            self._verdicts.lost(loss)

    def writable(self) -> None:
        """Take the news that the transport has room again."""
        self._verdicts.ready()

    # -- keepalive ----------------------------------------------------------------------------

    async def round_trip(self, topic: str) -> None:
        """Return when the broker has answered to a PINGREQ."""
        self._pong = asyncio.get_running_loop().create_future()
        self._ask()
        await self._pong

    def _ask(self) -> None:
        if self._wire is not None:
            self._wire.write(PingReqPacket().write())

    def _silent(self, half_s: float) -> None:
        self.gone(Loss(f"no PINGRESP in {half_s:g} s"))


def _refuse(refusals: Refusals, token: int, code: ReasonCode) -> None:
    refusals.add(token, _reason(code), retry=code.value == QUOTA_EXCEEDED)


def _reason(code: ReasonCode) -> str:
    return f"{code.name.lower().replace('_', ' ')} ({code.value})"
