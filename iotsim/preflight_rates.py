"""How many messages a second a publisher can take: what is in flight, over one round trip."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from iotsim.preflight import Finding
from iotsim.preflight_probe import Contact
from iotsim.publishers.base import Publisher

COAP_RATE_HZ = 265.0  # 65,536 message ids in the 247 s that each one lives, for each endpoint
COAP_UNBOUND_RATE_HZ = 2_000.0
COAP_PAYLOAD_BYTES = 1024
TRIP_S_MIN = 0.001  # under load: with a loop and a broker that have other things to do
SHARE = 0.8  # of a ceiling that is wise to use

Ceiling: TypeAlias = Callable[[Any, Contact, int], tuple[float, str]]


def _by_window(publisher: Any, contact: Contact, lanes: int) -> tuple[float, str]:
    each_hz = contact.window / _trip_s(contact)
    told = f"{contact.window:,} in flight at {_trip(contact)} round trip = {_about(each_hz)}/s"
    if lanes == 1:
        return each_hz, told
    return lanes * each_hz, f"{told} on each of {lanes:,} connections"


def _http(publisher: Any, contact: Contact, lanes: int) -> tuple[float, str]:
    batch = publisher.batch
    rate_hz = publisher.connections * batch / _trip_s(contact)
    each = f" of {batch:,} readings" if batch > 1 else ""
    return rate_hz, (f"{publisher.connections:,} requests{each} at {_trip(contact)} round trip = "
                     f"{_about(rate_hz)}/s, if the server answers at once")


def _coap(publisher: Any, contact: Contact, lanes: int) -> tuple[float, str]:
    if not publisher.confirmable:
        each_hz = float(publisher.rate or COAP_UNBOUND_RATE_HZ)
        return lanes * each_hz, f"{each_hz:,.0f}/s from each of {lanes:,} endpoints"
    by_window_hz = publisher.window / _trip_s(contact)
    each_hz = min(COAP_RATE_HZ, by_window_hz, publisher.rate or math.inf)
    return lanes * each_hz, (f"{each_hz:,.0f}/s from each of {lanes:,} endpoints (message ids of "
                             f"CoAP allow {COAP_RATE_HZ:.0f})")


CEILINGS: dict[str, Ceiling] = {"http": _http, "coap": _coap}
MORE = {
    "mqtt": "connections={n}, or raise the broker's max_inflight_messages",
    "amqp": "connections={n}, or a larger window=",
    "nats": "connections={n}, or a larger window=",
    "http": "more connections=, or a larger batch=",
    "coap": "endpoints={n}, or confirmable=False",
}


def _trip_s(contact: Contact) -> float:
    return max(contact.round_trip_s, TRIP_S_MIN)


def _trip(contact: Contact) -> str:
    return f"{_trip_s(contact) * 1000:.1f} ms"


def _about(rate_hz: float) -> str:
    # Two digits are all that such a figure is worth.
    digits = max(0, int(math.log10(max(rate_hz, 1.0))) - 1)
    return f"{round(rate_hz, -digits):,.0f}"


def rate_finding(
    name: str, publisher: Publisher, protocol: str, contact: Contact, lanes: int, rate_hz: float,
    payload_bytes: int,
) -> Finding:
    """Return whether a publisher can take what its devices give.

    Parameters
    ----------
    rate_hz : float
        Infinite: as fast as it goes.
    payload_bytes : int
        The largest that was seen; 0 if none was.
    """
    if contact.error:
        return Finding(name, False, contact.error)
    ceiling_hz, how = CEILINGS.get(protocol, _by_window)(publisher, contact, lanes)
    if protocol == "coap" and payload_bytes > COAP_PAYLOAD_BYTES:
        return _too_long(name, publisher, payload_bytes)
    if math.isinf(rate_hz):
        return Finding(name, True, f"{how}; the fleet waits for it")
    text = f"{how}; its devices make {rate_hz:,.0f}/s"
    if publisher.per_device:
        text += f", on {lanes:,} sessions of its devices"
    if rate_hz <= SHARE * ceiling_hz:
        return Finding(name, True, text)
    more = math.ceil(lanes * rate_hz / (SHARE * ceiling_hz)) if ceiling_hz else lanes + 1
    if publisher.per_device:
        return Finding(name, False, f"{text}. Give it fewer devices, or a longer every=")
    todo = MORE.get(protocol, "connections={n}").format(n=more)
    return Finding(name, False, f"{text}. Use {todo}.")


def _too_long(name: str, publisher: Any, payload_bytes: int) -> Finding:
    text = (f"messages of up to {payload_bytes:,} bytes; one datagram holds "
            f"{COAP_PAYLOAD_BYTES:,}")
    if publisher.confirmable:
        return Finding(name, True, f"{text}: each goes in blocks, a round trip for every block")
    return Finding(name, False, f"{text}, and blocks need confirmable=True. Use that, or fewer "
                   "fields.")
