"""Where gateways publish: the platform's NATS server, over a connection each or one for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from iotsim.errors import BadValue
from iotsim.gateway.comparing import EnvelopeForm
from iotsim.gateway.consumer import ASKING
from iotsim.gateway.link import GOODBYE_S, OPENINGS, PACE, GatewayLink, own_publisher
from iotsim.gateway.post import Post
from iotsim.gateway.record import GatewayRecord, local_name
from iotsim.members import Members
from iotsim.outlets import Outlet
from iotsim.profiles import Profile
from iotsim.publishers.backoff import Pace
from iotsim.publishers.base import (
    UNTRACED,
    Identity,
    Limits,
    Link,
    Publisher,
    Tracing,
    Verdicts,
)
from iotsim.publishers.nats import NatsPublisher
from iotsim.publishers.payload import Encoder
from iotsim.readings import Group

GATEWAYS_MAX = 10_000


def check_connections(gateways: int) -> None:
    """Raise BadValue where gateways are too many."""
    if gateways > GATEWAYS_MAX:
        raise BadValue("count", gateways, "is more gateways than one process connects",
                       f"Give up to {GATEWAYS_MAX:,}, or Platform(connection='shared').")


def _never(name: str) -> bool:
    return False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GatewayPublisher:
    """The gateways' side of a platform (a `Publisher`).

    Attributes
    ----------
    nats : NatsPublisher
        The server, and the certificate of the simulator as a whole, if it has one.
    records : mapping of local name to GatewayRecord
        Provisioned ones; may change while a run goes on.
    post_of : callable (local name) -> Post
        Who takes a gateway's commands.
    limits : Limits
        Of each connection.
    own_certificates : bool
        Whether each gateway comes with its own certificate, and not with that of the platform.
    shared : bool
        Whether all gateways have one connection.
    replayable : bool
        Whether nonces come from the key and the plaintext: for tests alone.
    rests : callable (local name) -> bool
        Whether a gateway has no connection for now.
    links : dict of str to GatewayLink
        By local name; the shared one by "".
    """

    nats: NatsPublisher
    records: Mapping[str, GatewayRecord]
    post_of: Callable[[str], Post] = field(repr=False)
    limits: Limits
    own_certificates: bool = True
    shared: bool = False
    replayable: bool = False
    rests: Callable[[str], bool] = field(default=_never, repr=False)
    links: dict[str, GatewayLink] = field(default_factory=dict, repr=False)
    goodbye_s: ClassVar[float] = GOODBYE_S
    tracing: ClassVar[Tracing] = UNTRACED
    tolerant: ClassVar[bool] = True
    pace: ClassVar[Pace] = PACE
    openings: ClassVar[int] = OPENINGS

    def __repr__(self) -> str:
        how = "one connection" if self.shared else "a connection each"
        return f"<GatewayPublisher {self.url}: {len(self.records):,} gateways, {how}>"

    @property
    def url(self) -> str:
        """The address of the server."""
        return self.nats.url

    @property
    def per_device(self) -> bool:
        """Whether each gateway has a connection of its own."""
        return not self.shared

    def lanes(self, devices: int) -> int:
        """Return how many connections there are; raises BadValue where they are too many."""
        if self.shared:
            return 1
        check_connections(devices)
        return devices

    def session_of(self, device_id: str) -> str:
        """Return whose connection a sensor's readings take: its gateway's."""
        return local_name(device_id)[0]

    def check_device(self, device: Identity) -> None:
        """Raise BadValue if a gateway is not provisioned."""
        record = self.records.get(device.device_id)
        if record is None or not record.provisioned:
            raise BadValue("gateway", device.device_id, "is not provisioned",
                           "Give it to platform.start(), or run.enrol().")

    def encoder(self, run_id: str) -> Encoder:
        """Return what makes envelopes of readings."""
        from iotsim.gateway.envelope import EnvelopeEncoder

        return EnvelopeEncoder(run_id, self.records, replayable=self.replayable)

    @property
    def form(self) -> EnvelopeForm:
        """How envelopes are compared with readings."""
        return EnvelopeForm(self.records)

    def link(
        self, lane: int, run_id: str, verdicts: Verdicts, device: Identity | None = None
    ) -> Link:
        """Return the link of one gateway, or the one of all."""
        if device is None:
            posts = {record.gateway_id: (record.tenant_id, self.post_of(name))
                     for name, record in self.records.items() if not self.rests(name)}
            self.links[""] = GatewayLink(self.nats, f"iotsim-{run_id}", verdicts, posts)
            return self.links[""]
        record = self.records[device.device_id]
        secure = self.nats.tls is not None and self.own_certificates
        nats = own_publisher(self.nats, record) if secure else self.nats
        posts = {record.gateway_id: (record.tenant_id, self.post_of(record.name))}
        made = self.links[record.name] = GatewayLink(
            nats, f"gw-{record.gateway_id}", verdicts, posts)
        return made

    def part(self, name: str) -> None:
        """Let a gateway take no more part in the shared connection."""
        if self.shared and (link := self.links.get("")) is not None:
            link.detach(self.records[name].gateway_id)

    def meet(self, name: str) -> None:
        """Let a gateway take part in the shared connection."""
        if self.shared and (link := self.links.get("")) is not None:
            record = self.records[name]
            link.attach(record.gateway_id, record.tenant_id, self.post_of(name))

    def why_not(self, name: str) -> str:
        """Return why a gateway is delivered no commands over a connection that is there."""
        link = self.links.get("" if self.shared else name)
        consumer = None if link is None else link.consumers.get(self.records[name].gateway_id)
        why = "" if consumer is None else consumer.why_not
        return f"takes no commands: {why}" if why not in ("", ASKING) else ""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PlatformOutlet(Outlet):
    """The outlet of a platform: one publisher for all gateways, and the platform's subjects.

    Two are equal if they belong to one platform: a cell that is run again asks for the same run.
    """

    platform: object = None
    made: GatewayPublisher | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlatformOutlet) and other.platform == self.platform

    def __hash__(self) -> int:
        return hash(self.url)

    def publisher(self, profile: Profile | None) -> Publisher:
        """Return the publisher of the platform, whatever a profile says."""
        assert self.made is not None, "made by Platform.start"
        return self.made

    def topic_of(self, member: Members, group: Group, i: int) -> str:
        """Return the subject of a sensor's gateway."""
        assert self.made is not None, "made by Platform.start"
        record = self.made.records.get(local_name(group.ids[i])[0])
        if record is None:
            return ""
        return f"telemetry.data.{record.tenant_id}.{record.gateway_id}"
