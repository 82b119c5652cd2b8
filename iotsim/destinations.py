"""Where the messages of a run went: one entry per publisher, with who published there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from iotsim.feeders import Way
from iotsim.outlets import Outlet
from iotsim.publishers.base import Publisher
from iotsim.readings import Readings


class Form(Protocol):
    """How payloads are compared with readings, where the same reading has no two alike."""

    def bodies(self, readings: Readings) -> list[bytes]:
        """Return what each reading says."""
        ...

    def same(self, body: bytes, payload: bytes) -> bool:
        """Return whether a payload says that."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Destination:
    """One publisher of a run.

    Attributes
    ----------
    number : int
        Of its pump; verdicts by message id have it.
    name : str
        Its key in `Result.publishers`.
    url : str
        Without secrets.
    confirms : bool
        Whether acknowledgements are the peer's; else a message counts as acknowledged once the
        client has taken it (QoS 0, CoAP NON, NATS core without a fence).
    audit_field : str
        The key of every message that holds its id; empty: none.
    masks : mapping of group index to bool array
        Which devices of the group publish here.
    outlet : Outlet
        Who says under which topics.
    form : Form or None
        None: its payloads are our JSON.
    """

    number: int
    name: str
    url: str
    confirms: bool
    audit_field: str
    masks: Mapping[int, npt.NDArray[np.bool_]] = field(repr=False)
    outlet: Outlet = field(repr=False)
    form: Form | None = field(default=None, repr=False)


def destinations_of(ways: Sequence[Way], names: Sequence[str]) -> tuple[Destination, ...]:
    """Return where the messages of a run went, from its ways and what their accounts are called."""
    return tuple(
        Destination(
            number, name, way.route.publisher.url, confirms(way.route.publisher),
            way.route.publisher.tracing.audit_field,
            {index: lanes >= 0 for index, lanes in way.groups.items()}, way.route.outlet,
            getattr(way.route.publisher, "form", None),
        )
        for number, (way, name) in enumerate(zip(ways, names, strict=False))
    )


def confirms(publisher: Publisher) -> bool:
    """Return whether a publisher's acknowledgements are the peer's own.

    One that can choose says so (`confirms`, CoAP's `confirmable`, MQTT's `qos`, NATS' `fence`:
    a PONG comes once the server has processed what was written before its PING); others confirm.

    Examples
    --------
    >>> from iotsim.publishers.base import build
    >>> confirms(build("mqtt://broker", qos=0)), confirms(build("mqtt://broker", qos=1))
    (False, True)
    >>> confirms(build("nats://broker", fence=False)), confirms(build("nats://broker"))
    (False, True)
    """
    return all(getattr(publisher, name, True)
               for name in ("confirms", "confirmable", "qos", "fence"))
