"""How many messages a second a publisher can take: what is in flight, over one round trip.

It is an upper bound: nothing is published to find out. Brokers have other things to do, too.
"""

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
SHARE = 0.8  # of a ceiling that is wise to use

Ceiling: TypeAlias = Callable[[Any, Contact, int], tuple[float, str]]


def _by_window(publisher: Any, contact: Contact, lanes: int) -> tuple[float, str]:
    # An exchange of QoS 2 is there and back twice.
    trips = 2 if getattr(publisher, "qos", 1) == 2 else 1
    each_hz = contact.window / (trips * contact.round_trip_s)
    told = f"{contact.window:,} in flight and {_trip(contact)} round trip"
    return lanes * each_hz, f"{told} on each of {lanes:,} connections" if lanes > 1 else told


def _http(publisher: Any, contact: Contact, lanes: int) -> tuple[float, str]:
    batch = publisher.batch
    by_trip_hz = publisher.connections / contact.round_trip_s
    at_once = not math.isnan(contact.at_once_hz)
    rate_hz = batch * (min(contact.at_once_hz, by_trip_hz) if at_once else by_trip_hz)
    each = f" of {batch:,} readings" if batch > 1 else ""
    return rate_hz, (f"{publisher.connections:,} requests{each} at once and {_trip(contact)} round "
                     "trip, if a POST takes as long as a HEAD")


def _coap(publisher: Any, contact: Contact, lanes: int) -> tuple[float, str]:
    if not publisher.confirmable:
        each_hz = float(publisher.rate or COAP_UNBOUND_RATE_HZ)
        return lanes * each_hz, f"{each_hz:,.0f}/s from each of {lanes:,} endpoints"
    by_window_hz = publisher.window / contact.round_trip_s
    each_hz = min(COAP_RATE_HZ, by_window_hz, publisher.rate or math.inf)
    return lanes * each_hz, (f"{_about(each_hz)}/s from each of {lanes:,} endpoints (message ids "
                             f"of CoAP allow {COAP_RATE_HZ:.0f})")


CEILINGS: dict[str, Ceiling] = {"http": _http, "coap": _coap}
MORE = {
    "mqtt": "connections={n}, or raise the broker's max_inflight_messages",
    "amqp": "connections={n}, or a larger window=",
    "nats": "connections={n}, or a larger window=",
    "http": "more connections=, or a larger batch=",
    "coap": "endpoints={n}, or confirmable=False",
}


def _trip(contact: Contact) -> str:
    return f"{contact.round_trip_s * 1000:.2g} ms"


def _about(rate_hz: float) -> str:
    # Two digits are all that such a figure is worth.
    digits = max(0, int(math.log10(max(rate_hz, 1.0))) - 1)
    return f"{round(rate_hz, -digits):,.0f}"


def wanted(rate_hz: float) -> str:
    """Return a rate that is wished for, and not as 0 because it is small.

    Examples
    --------
    >>> wanted(12_345.6), wanted(0.5), wanted(0.0)
    ('12,346', '0.5', '0')
    """
    return f"{rate_hz:,.0f}" if rate_hz >= 10 else f"{rate_hz:.2g}"


def rate_finding(
    name: str, publisher: Publisher, protocol: str, contact: Contact, lanes: int, rate_hz: float,
    payload_bytes: int, own_hz: float = math.nan,
) -> Finding:
    """Return whether a publisher can take what its devices give.

    Parameters
    ----------
    rate_hz : float
        Infinite: as fast as it goes.
    payload_bytes : int
        The largest that was seen; 0 if none was.
    own_hz : float
        What this machine makes; NaN: not known.
    """
    if contact.error or contact.certain:
        return Finding(name, False, contact.error or f"{contact.objection}.")
    if protocol == "coap" and payload_bytes > COAP_PAYLOAD_BYTES:
        return _too_long(name, publisher, payload_bytes)
    doubt = f"{contact.objection}; " if contact.objection else ""
    wish = ("the fleet waits for it" if math.isinf(rate_hz)
            else f"its devices make {wanted(rate_hz)}/s")
    if publisher.per_device:
        wish += f", on {lanes:,} sessions of its devices"
    if math.isnan(contact.round_trip_s) and getattr(publisher, "confirmable", True):
        return Finding(name, True, f"{doubt}what it takes was not measured; {wish}")
    ceiling_hz, how = CEILINGS.get(protocol, _by_window)(publisher, contact, lanes)
    if ceiling_hz > own_hz:
        text = (f"{how} allow more than the {_about(own_hz)}/s that this machine makes (the peer's "
                f"own pace was not measured); {wish}")
    else:
        text = f"at most {_about(ceiling_hz)}/s by {how}; {wish}"
    if math.isinf(rate_hz) or rate_hz <= SHARE * ceiling_hz:
        return Finding(name, True, doubt + text)
    more = math.ceil(lanes * rate_hz / (SHARE * ceiling_hz)) if ceiling_hz else lanes + 1
    if publisher.per_device:
        return Finding(name, False, f"{doubt}{text}. Give it fewer devices, or a longer every=")
    todo = MORE.get(protocol, "connections={n}").format(n=more)
    return Finding(name, False, f"{doubt}{text}. Use {todo}.")


def _too_long(name: str, publisher: Any, payload_bytes: int) -> Finding:
    text = (f"messages of up to {payload_bytes:,} bytes; one datagram holds "
            f"{COAP_PAYLOAD_BYTES:,}")
    if publisher.confirmable:
        return Finding(name, True, f"{text}: each goes in blocks, a round trip for every block")
    return Finding(name, False, f"{text}, and blocks need confirmable=True. Use that, or fewer "
                   "fields.")
