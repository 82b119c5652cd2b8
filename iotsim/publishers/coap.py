"""CoAP: what may be set. The messages, the sockets and the account are this package's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import unquote_to_bytes

from iotsim.errors import BadValue, MissingExtra
from iotsim.publishers.base import (
    UNTRACED,
    Identity,
    Limits,
    Link,
    Tracing,
    Verdicts,
    check_options,
    choice,
    flag,
    whole,
    with_defaults,
)
from iotsim.publishers.coap_codec import METHODS, SEGMENT_BYTES_MAX
from iotsim.transport.addresses import Address
from iotsim.transport.tls import TLS, TLS_OPTIONS, take_tls

if TYPE_CHECKING:
    from iotsim.publishers.coap_wire import Listener, Wire

DEVICES_PER_ENDPOINT = 1000  # every 5 s that is 200/s, below what message ids allow
ENDPOINTS_MAX = 64
WINDOW = 8
RATE_NON = 2000
_DEFAULTS: dict[str, Any] = {
    "method": "POST",
    "confirmable": True,
    "window": WINDOW,
    "endpoints": None,
    "ack_timeout_s": 2.0,
    "max_retransmit": 4,
    "rate": None,
    **TLS_OPTIONS,
}


@dataclass(frozen=True, slots=True)
class CoapPublisher:
    """A CoAP server; devices share a few endpoints (UDP ports) of ours.

    Attributes
    ----------
    address : Address
        Its path stands before every topic, its query goes with every request.
    method : {"POST", "PUT"}
    confirmable : bool
        True: every message is acknowledged, or sent again. False: it counts as acknowledged once
        it was handed to the socket.
    window : int
        Confirmable messages that may be unanswered at each endpoint (NSTART of RFC 7252, which
        advises 1; 8 reaches what message ids allow up to a round trip of 30 ms). Of one device
        there is never more than one.
    endpoints : int or None
        None is one for every 1,000 devices, at most 64.
    ack_timeout_s : float
        Seconds until the first retransmission, up to half as long again by chance; each next one
        takes twice as long.
    max_retransmit : int
    rate : int or None
        Messages a second that each endpoint sends at most; None is 2,000 for those that are not
        confirmable, as nothing else would slow them down, and no bound for others.
    tls : TLS or None
        None for plain UDP. `coaps://` is DTLS 1.2 with certificates; there are no pre-shared keys.
    """

    per_device: ClassVar[bool] = False

    address: Address
    limits: Limits
    method: str = "POST"
    confirmable: bool = True
    window: int = WINDOW
    endpoints: int | None = None
    ack_timeout_s: float = 2.0
    max_retransmit: int = 4
    rate: int | None = None
    tls: TLS | None = None
    tracing: Tracing = UNTRACED

    @classmethod
    def build(cls, url: str, **options: Any) -> Self:
        """Return the publisher for a URL and options; see `publishers.base.build`."""
        scheme = url.partition(":")[0].lower()
        check_options(scheme, options, _DEFAULTS)
        limits, tracing = Limits.take(options), Tracing.take(options, can_stamp=False)
        given = with_defaults(options, _DEFAULTS)
        address = Address.parse(url, 5684 if scheme == "coaps" else 5683, path=True)
        if address.credentials:
            raise BadValue("url", str(address), "names a user, and CoAP knows none",
                           "Leave out what stands before the @.")
        base_path(address.path)
        endpoints, rate = given["endpoints"], given["rate"]
        tls = take_tls(given, secure=scheme == "coaps", scheme="coaps")
        if tls is not None:
            tls.context()  # an error now, and not when it connects
            if tls.minimum == "1.3":
                raise BadValue("minimum", "1.3", "is beyond DTLS here", "Use TLS(minimum='1.2').")
        return cls(
            address=address,
            limits=limits,
            method=choice("method", given["method"], tuple(METHODS)),
            confirmable=flag("confirmable", given["confirmable"]),
            window=whole("window", given["window"], 1, 256),
            endpoints=None if endpoints is None else whole("endpoints", endpoints, 1, 1000),
            ack_timeout_s=_seconds("ack_timeout_s", given["ack_timeout_s"], 0.05, 10.0),
            max_retransmit=whole("max_retransmit", given["max_retransmit"], 0, 20),
            rate=None if rate is None else whole("rate", rate, 1, 1_000_000),
            tls=tls,
            tracing=tracing,
        )

    @property
    def url(self) -> str:
        """The address, without its query."""
        return str(self.address)

    @property
    def query(self) -> list[bytes]:
        """What goes with every request, as the URL says after its question mark."""
        return [unquote_to_bytes(part) for part in self.address.query.split("&") if part]

    def lanes(self, devices: int) -> int:
        """Return how many endpoints so many devices share."""
        if self.endpoints is not None:
            return self.endpoints
        return min(max(1, -(-devices // DEVICES_PER_ENDPOINT)), ENDPOINTS_MAX)

    def link(
        self, lane: int, run_id: str, verdicts: Verdicts, device: Identity | None = None
    ) -> Link:
        """Return the link of one lane; raises MissingExtra if what it needs is not installed."""
        if self.tls is not None:
            try:
                import iotsim.publishers.coap_dtls  # noqa: F401
            except ModuleNotFoundError:
                raise MissingExtra("publishing over coaps://", "pyOpenSSL", "coap") from None
        from iotsim.publishers.coap_link import CoapLink

        return CoapLink(self, f"{run_id}/{lane}", verdicts)

    def wire(self, listener: Listener) -> Wire:
        """Return an endpoint of ours that is not connected."""
        if self.tls is not None:
            from iotsim.publishers.coap_dtls import DtlsWire

            return DtlsWire(listener, self.tls)
        from iotsim.publishers.coap_wire import Wire

        return Wire(listener)


def base_path(path: str) -> list[bytes]:
    """Return the segments of a URL's path, as bytes.

    Raises
    ------
    BadValue
        If one is longer than 255 bytes, or a dot or two.

    Examples
    --------
    >>> base_path("/api/v%201/")
    [b'api', b'v 1']
    """
    segments = [unquote_to_bytes(part) for part in path.split("/") if part]
    for segment in segments:
        if len(segment) > SEGMENT_BYTES_MAX or segment in (b".", b".."):
            raise BadValue("url", path, "has a path that CoAP cannot carry",
                           "Give segments of at most 255 bytes, none of them '.' or '..'.")
    return segments


def _seconds(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadValue(name, value, "cannot be used", f"Give seconds from {low:g} to {high:g}.")
    return float(value)
