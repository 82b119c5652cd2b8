"""Where readings go: what one `publish_to` call said, and what it means for a fleet's devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue, UnknownName
from iotsim.publishers.base import Identity, Publisher, build, session_of
from iotsim.readings import Group
from iotsim.selectors import Selector, Where, parse, select
from iotsim.topics import DEFAULT_TOPIC, check_topic, topic
from iotsim.transport.addresses import redacted
from iotsim.transport.discretion import Hidden, discreet

if TYPE_CHECKING:
    from iotsim.members import Members
    from iotsim.profiles import Profile

_FAMILIES = {"mqtts": "mqtt", "amqps": "amqp", "https": "http", "coaps": "coap"}


@dataclass(frozen=True, slots=True, repr=False)
class Outlet:
    """One `publish_to`: an address, a topic template, who, and options.

    Attributes
    ----------
    url : str
    topic : str or None
        None takes each profile's own.
    where : Selector
    options : mapping
    """

    url: str
    topic: str | None
    where: Selector
    options: Mapping[str, Any]

    def __hash__(self) -> int:
        return hash((self.url, self.topic, self.where))

    def __reduce__(self) -> tuple[Any, ...]:
        return outlet_of, (self.url, self.topic, self.where, dict(self.options))

    def __str__(self) -> str:
        who = "" if self.where == Selector() else f" where {self.where}"
        return f"{redacted(self.url)}{who}"

    def __repr__(self) -> str:
        return f"<Outlet {self}>"

    @property
    def protocol(self) -> str:
        """What is spoken there, as a profile's `protocol` says it."""
        scheme = self.url.partition(":")[0].lower()
        return _FAMILIES.get(scheme, scheme.partition("+")[0])

    @discreet
    def publisher(self, profile: Profile | None) -> Publisher:
        """Return the publisher, with a profile's wishes where the call said nothing."""
        wishes: dict[str, Any] = {}
        if profile is not None:
            if profile.backpressure is not None:
                wishes["backpressure"] = profile.backpressure
            if profile.qos is not None and self.protocol == "mqtt":
                wishes["qos"] = profile.qos
            if profile.protocol == self.protocol:
                wishes |= profile.publish
        return build(self.url, **{**wishes, **self.options})

    def topic_of(self, member: Members, group: Group, i: int) -> str:
        """Return the topic of one device."""
        own = DEFAULT_TOPIC if member.profile is None else member.profile.topic_template
        return topic(self.topic or own, group.ids[i], group.device_type, group.labels)


def outlet_of(url: str, topic: str | None, where: Where, options: Mapping[str, Any]) -> Outlet:
    """Return an outlet, with everything checked that can be without connecting."""
    build(url, **options)
    if topic is not None:
        check_topic(topic)
    return Outlet(url, topic, parse(where), MappingProxyType(Hidden(options)))


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Devices that share one publisher: an outlet, and the wishes that their profiles agree on.

    Attributes
    ----------
    outlet : Outlet
    publisher : Publisher
    masks : mapping of group index to bool array
        Who publishes here.
    devices : int
    identities : sequence of Identity or None
        Those who have a session of their own, in order of groups and devices.
    """

    outlet: Outlet
    publisher: Publisher
    masks: Mapping[int, npt.NDArray[np.bool_]]
    devices: int
    identities: Sequence[Identity] | None = None


def routes_of(
    outlets: Sequence[Outlet], members: Sequence[Members], groups: Sequence[Group]
) -> tuple[list[Route], list[str]]:
    """Return the routes of a fleet, and a note for each outlet that nobody uses, or a few."""
    routes: list[Route] = []
    notes: list[str] = []
    for outlet in outlets:
        selection = select(outlet.where, groups)
        if selection.note:
            notes.append(f"publish_to({redacted(outlet.url)!r}): {selection.note}")
        shared: list[tuple[Publisher, dict[int, npt.NDArray[np.bool_]]]] = []
        for member, group in zip(members, groups, strict=True):
            mask = selection.masks[group.index]
            if mask.any():
                if outlet.topic is not None:
                    check_topic(outlet.topic, group.labels)
                _share(shared, outlet.publisher(member.profile), group.index, mask)
        for publisher, masks in shared:
            count = sum(int(mask.sum()) for mask in masks.values())
            names = _identities(publisher, groups, masks) if publisher.per_device else None
            _check_sessions(publisher, masks, routes)
            routes.append(Route(outlet, publisher, masks, count, names))
    return routes, notes


def _check_sessions(
    publisher: Publisher, masks: Mapping[int, npt.NDArray[np.bool_]], routes: Sequence[Route]
) -> None:
    # A second session under the same name would end the first, again and again.
    for route in routes:
        if not (publisher.per_device and route.publisher.per_device
                and route.publisher.url == publisher.url):
            continue
        for index, mask in masks.items():
            if index in route.masks and (mask & route.masks[index]).any():
                raise BadValue("sessions", "per-device", f"is asked for twice at {publisher.url}, "
                               "for the same devices", "Give the two publish_to a where= that "
                               "does not overlap, or use shared sessions.")


def _identities(
    publisher: Publisher, groups: Sequence[Group], masks: Mapping[int, npt.NDArray[np.bool_]]
) -> list[Identity]:
    found: dict[str, Identity] = {}
    for group in groups:
        if group.index in masks:
            for i in np.flatnonzero(masks[group.index]).tolist():
                one = identity_of(publisher, group, i)
                found.setdefault(one.device_id, one)
    return list(found.values())


def identity_of(publisher: Publisher, group: Group, i: int) -> Identity:
    """Return who a device is to a publisher with sessions of their own."""
    return Identity(session_of(publisher, group.ids[i]), group.device_type, group.labels)


def more_of(
    outlet: Outlet, member: Members, group: Group
) -> tuple[Publisher, npt.NDArray[np.bool_]]:
    """Return the publisher of devices that join a run, and who of them publishes here.

    An outlet for a count of devices has found them already.
    """
    publisher = outlet.publisher(member.profile)
    if outlet.where.count is not None:
        return publisher, np.zeros(len(group), dtype=np.bool_)
    try:
        mask = select(outlet.where, [group]).masks[group.index]
    except UnknownName:  # a label that only others have
        mask = np.zeros(len(group), dtype=np.bool_)
    if mask.any() and outlet.topic is not None:
        check_topic(outlet.topic, group.labels)
    return publisher, mask


def _share(
    shared: list[tuple[Publisher, dict[int, npt.NDArray[np.bool_]]]],
    publisher: Publisher,
    index: int,
    mask: npt.NDArray[np.bool_],
) -> None:
    # Profiles that come to the same options share one publisher.
    for known, masks in shared:
        if known == publisher:
            masks[index] = mask
            return
    shared.append((publisher, {index: mask}))
