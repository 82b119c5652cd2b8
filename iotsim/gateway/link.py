"""A gateway's connection to the platform: telemetry out, acknowledged by a stream; commands in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from iotsim.clock import stamp_us
from iotsim.errors import ConnectError, told
from iotsim.gateway.consumer import Delivery, Durable, PushConsumer
from iotsim.gateway.post import Post
from iotsim.gateway.record import GatewayRecord
from iotsim.publishers.backoff import Pace
from iotsim.publishers.base import Verdicts
from iotsim.publishers.nats import NatsPublisher
from iotsim.publishers.nats_jetstream import JetStreamLink
from iotsim.transport.tls import HeldTLS

COMMANDS = "COMMANDS"
ACK_WAIT_S = 30.0
ASKING_MAX = 64  # consumers that one connection asks for at a time
END_S = 0.3
GOODBYE_S = 5.0  # for what a gateway still has to send when it is deleted
OPENINGS = 8  # at a time: each is some ms of arithmetic, in which the loop does nothing else
# 2 s and up to 2 s of chance, for ever; half a minute to a minute where we are not let in.
PACE = Pace(first_s=4.0, ceiling_s=4.0, slow_s=60.0)
_SECURE = ("certificate", "tls", "ended", "reset", "closed", "violation", "authentication")
_UNKNOWN = ("authorization violation", "authentication")


def platform_tls(
    ca: str | None, cert: str | None = None, key: str | None = None, *, verify: bool = True
) -> HeldTLS:
    """Return the TLS of a platform: 1.3, with the certificate that all gateways share, or none."""
    return HeldTLS(ca=ca, cert=cert, key=key, verify=verify)


def own_publisher(shared: NatsPublisher, record: GatewayRecord) -> NatsPublisher:
    """Return where a gateway publishes with its own certificate.

    Parameters
    ----------
    shared : NatsPublisher
        The server, and whom to trust; with JetStream. Without TLS it is the same for all.
    record : GatewayRecord
        A provisioned one.
    """
    if (trust := shared.tls) is None:
        return shared
    tls = HeldTLS(ca=trust.ca, verify=trust.verify, cert_pem=record.cert_pem,
                  key_pem=record.private_key_pem)
    return replace(shared, tls=tls)


class ConsumingLink(JetStreamLink):
    """One NATS connection whose line also takes what durables deliver.

    Parameters
    ----------
    publisher : NatsPublisher
    name : str
        The client's name, as the server shows it.
    verdicts : Verdicts
    who : str
        Whose connection it is, for the texts.

    Attributes
    ----------
    consumers : dict of PushConsumer
        By a name of the owner's; each says why it delivers nothing.
    """

    has_streams = True  # a server that goes down has none before its connections end

    def __init__(
        self, publisher: NatsPublisher, name: str, verdicts: Verdicts, who: str
    ) -> None:
        super().__init__(publisher, name, verdicts)
        self._who = who
        self.consumers: dict[str, PushConsumer] = {}
        self._turns = asyncio.Semaphore(ASKING_MAX)
        self._up = self._cut_off = False

    async def open(self) -> int:
        """Connect, listen, and see to the durables in the background."""
        window = await super().open()
        self._up = True
        self._came()
        cut_off, self._cut_off = self._cut_off, False
        for consumer in self.consumers.values():
            consumer.begin(cut_off=cut_off)
        return window

    def drop(self) -> None:
        """End the connection at once; no verdict comes after it."""
        self._cut_off |= self.line.connected
        super().drop()
        self._go()

    async def close(self) -> None:
        """Let the server take what was written, then close, within a deadline."""
        try:
            await super().close()
        finally:
            ending = self._go()
        if ending:
            await asyncio.wait(ending, timeout=END_S)

    async def _consult(self) -> None:
        """Ask nothing: of the API a gateway may use little, and one round of it is the durable."""

    def _go(self) -> list[asyncio.Task[None]]:
        if not self._up:
            return []
        self._up = False
        ending = [consumer.end() for consumer in self.consumers.values()]
        self._went()
        return [task for task in ending if task is not None]

    def _came(self) -> None:
        """Take that there is a connection."""

    def _went(self) -> None:
        """Take that there is none any more."""

    # -- why there is no connection ---------------------------------------------------------------

    def _refusal(self, why: str, todo: str = "") -> ConnectError:
        # What is about who we are names us; that a server is away is the same for all.
        lower, tls = why.lower(), self._publisher.tls
        if not any(sign in lower for sign in _SECURE):
            return super()._refusal(why, todo)
        own = isinstance(tls, HeldTLS) and bool(tls.cert_pem)
        end_us = tls.not_after_us() if isinstance(tls, HeldTLS) else None
        if end_us is not None and end_us < stamp_us():
            end = datetime.fromtimestamp(end_us // 1_000_000, UTC).isoformat(timespec="seconds")
            why = f"its certificate expired on {end}"
            todo = "Provision it anew." if own else "Renew the certificate that all share."
        elif any(sign in lower for sign in _UNKNOWN):
            todo = "Enter its certificate's subject among the users of the server."
            if own:
                todo += " If the gateway was revoked, provision it anew; a server that knows no " \
                    "gateways needs one certificate for all (nats_cert=, nats_key=)."
        elif "certificate" in lower and "its certificate" not in lower:
            todo = "Is it of the authority that the server trusts, and not revoked?"
        else:
            return super()._refusal(why, todo)
        return ConnectError(self._publisher.url, why, todo, f"connect {self._who} to",
                            lasting=True)


class GatewayLink(ConsumingLink):
    """One NATS connection of a gateway, or of several (a `Link`).

    The publisher is a `NatsPublisher` with `jetstream=True`: for a gateway's own connection from
    `own_publisher(nats, record)`, for a shared one with `platform_tls(ca, cert, key)`. Its
    `keepalive` is twice the time from PING to PING. The publisher that the pump is given may have
    `pace = PACE` and `openings = OPENINGS`.

    Parameters
    ----------
    publisher : NatsPublisher
    name : str
        The client's name, as the server shows it.
    verdicts : Verdicts
    posts : mapping of gateway id to (tenant id, Post)
        Who takes which gateway's commands, and is told of the connection. With one alone, all
        that the connection listens to is under `_INBOX.<gateway id>.`, as its rights may ask for.
    ack_wait_s : float
        Of a consumer that is made.

    Attributes
    ----------
    line : Line
        What each post is told with `connected`.
    consumers : dict of gateway id to PushConsumer
        `why_not` is empty where commands are delivered.
    """

    def __init__(
        self,
        publisher: NatsPublisher,
        name: str,
        verdicts: Verdicts,
        posts: Mapping[str, tuple[str, Post]],
        *,
        ack_wait_s: float = ACK_WAIT_S,
    ) -> None:
        alone = next(iter(posts)) if len(posts) == 1 else ""
        who = f"gateway {alone}" if alone else f"{len(posts):,} gateways"
        super().__init__(publisher, name, verdicts, who)
        self._posts: dict[str, Post] = {}
        self._ack_wait_s = ack_wait_s
        if alone:
            self._prefix = f"_INBOX.{alone}."
        for gateway_id, (tenant_id, post) in posts.items():
            self.attach(gateway_id, tenant_id, post)

    def attach(self, gateway_id: str, tenant_id: str, post: Post) -> None:
        """Take the commands of one more gateway, now or as soon as there is a connection."""
        self.detach(gateway_id)
        durable = Durable(
            COMMANDS, f"gw-{gateway_id}", f"command.gw.{tenant_id}.{gateway_id}",
            f"_INBOX.{gateway_id}.commands", self._ack_wait_s,
        )

        def changed(why: str) -> None:
            said = f"takes no commands for now: {why}" if why else "takes commands again"
            self._verdicts.notice(f"gateway {gateway_id} {said}")

        def delivered(delivery: Delivery) -> None:
            self._tell(lambda: post.delivered(delivery))

        consumer = PushConsumer(self.line, durable, delivered, changed, self._turns)
        self._posts[gateway_id], self.consumers[gateway_id] = post, consumer
        if self._up:
            self._introduce(post)
            consumer.begin()

    def detach(self, gateway_id: str) -> None:
        """Take no more commands of a gateway; its durable stays, and keeps what comes."""
        consumer, post = self.consumers.pop(gateway_id, None), self._posts.pop(gateway_id, None)
        if consumer is not None:
            consumer.remove()
        if post is not None and self._up:
            self._tell(post.disconnected)

    def _came(self) -> None:
        for post in self._posts.values():
            self._introduce(post)

    def _went(self) -> None:
        for post in self._posts.values():
            self._tell(post.disconnected)

    def _introduce(self, post: Post) -> None:
        self._tell(lambda: post.connected(self.line))

    def _tell(self, word: Callable[[], None]) -> None:
        try:
            word()
        except Exception as error:  # whoever takes commands must not stop telemetry
            self._verdicts.notice(f"a post failed: {told(error)}")
