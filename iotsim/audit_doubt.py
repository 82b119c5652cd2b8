"""What a tap cannot testify to: what left while it was away, or was so slow that a broker drops.

A broker that acknowledged a reading which did not come is blamed only where somebody was there to
receive it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from iotsim.audit_match import Floats, Joined, Mask
from iotsim.audit_received import Received
from iotsim.audit_sent import Sent
from iotsim.audit_verdict import seconds_text

UNDER_WAY_US = 1_000_000  # what left so shortly before a tap was closed may not have arrived
MARGIN_US = 50_000  # between one wall clock's hands, the model's and the tap's
BEHIND_S = 0.5
# Brokers commonly queue a thousand messages for a subscriber, and drop what is beyond.
BEHIND_MESSAGES = 500
DROPPING = ("mqtt", "mqtts", "nats", "nats+tls")


def doubts(
    received: Received, sent: Sent, left_us: Floats, found: Joined, *,
    acknowledged: Mask, undecided: Mask, moving: bool,
) -> tuple[Mask, str]:
    """Return of which rows nobody can say that they did not arrive, and why, in words.

    Parameters
    ----------
    received : Received
    sent : Sent
    left_us : float array
        When each row left its device, by the wall clock; NaN where time was virtual.
    found : Joined
    acknowledged, undecided : bool arrays
        What the broker took; whose link was lost before a verdict: they were sent again.
    moving : bool
        Whether messages still arrive.
    """
    missing = (found.arrival_of < 0) & sent.mine & (sent.withheld == 0)
    whole = np.zeros(len(sent), dtype=np.bool_)
    said = []
    for mask, why in _found(received, sent, left_us, found, missing & acknowledged, undecided,
                            moving=moving):
        if (mask & missing & ~whole).any():
            whole |= mask
            said.append(why)
    return whole, "; ".join(said)


def _found(
    received: Received, sent: Sent, left_us: Floats, found: Joined, owed: Mask, undecided: Mask,
    *, moving: bool,
) -> Iterator[tuple[Mask, str]]:
    if received.ill:
        yield np.ones(len(sent), dtype=np.bool_), received.ill
        return
    if moving:
        yield np.ones(len(sent), dtype=np.bool_), "the tap is still receiving"
        return
    if received.away:
        yield _absent(received, left_us, found, undecided), received.absence
    if received.since_us or received.until_us:
        yield (_outside(received, sent, left_us, found.arrival_of >= 0),
               "they left before or after it listened")
    if received.url.partition(":")[0] in DROPPING and owed.any():
        yield from _behind(received, sent, left_us, found, owed, undecided)


def _absent(received: Received, left_us: Floats, found: Joined, undecided: Mask) -> Mask:
    # What left while the tap was away, or was sent again then. What comes after an absence
    # though it had left before it has waited in our queue: so may what left since, and a broker
    # that was back before the tap has had it while nobody listened.
    rows = np.flatnonzero((found.arrival_of >= 0) & ~undecided)
    at_us = received.time_us[found.arrival_of[rows]]
    absent = np.isnan(left_us)
    begins = [since_us for since_us, _ in received.away]
    ends = [until_us or np.inf for _, until_us in received.away]
    for begin_us, end_us, next_us in zip(begins, ends, [*begins[1:], np.inf], strict=True):
        waited = rows[(at_us > begin_us + MARGIN_US) & (at_us < next_us)]
        first_us = np.nanmin(left_us[waited], initial=begin_us)
        absent |= (left_us >= first_us - MARGIN_US) & (left_us <= end_us + MARGIN_US)
    return absent | (undecided & (left_us <= ends[-1] + MARGIN_US))


def _outside(received: Received, sent: Sent, left_us: Floats, came: Mask) -> Mask:
    # One that began later has missed what left before, up to the first that came of each device:
    # of a queue that was kept for it, the rest is its to tell. One that was closed has missed
    # what was still on its way.
    outside = np.zeros(len(came), dtype=np.bool_)
    stream = sent.slot * 65536 + sent.lane + 1
    _, place = np.unique(stream, return_inverse=True)
    place = place.reshape(-1)
    first_us = np.full(len(came), np.inf)
    last_us = np.full(len(came), -np.inf)
    seen = came & ~np.isnan(left_us)
    np.minimum.at(first_us, place[seen], left_us[seen])
    np.maximum.at(last_us, place[seen], left_us[seen])
    if received.since_us:
        outside |= (left_us < received.since_us) & (left_us < first_us[place])
    if received.until_us:
        outside |= (left_us > received.until_us - UNDER_WAY_US) & (left_us > last_us[place])
    return outside


def _behind(
    received: Received, sent: Sent, left_us: Floats, found: Joined, owed: Mask, undecided: Mask
) -> Iterator[tuple[Mask, str]]:
    # What did not come is in doubt if those that came next to it came late, or had hundreds of
    # messages before them: then a broker's queue for the tap may have been full.
    rows = np.flatnonzero((found.arrival_of >= 0) & ~undecided)
    at = found.arrival_of[rows]
    stamps = received.sent_us[at].astype(np.float64)
    since_us: Any = np.where(stamps > 0, stamps, left_us[rows])
    known = ~np.isnan(since_us)
    rows, at, since_us = rows[known], at[known], since_us[known]
    if not len(rows):
        if len(received) and received.time_us.any():
            yield owed, ("how far the tap was behind is not known, and a broker drops for slow "
                         "subscribers: publish with stamp=True")
        return
    came_us = received.time_us[at]
    order = np.sort(received.time_us)
    depth = np.searchsorted(order, came_us) - np.searchsorted(order, since_us)
    lag_s = np.where((depth >= BEHIND_MESSAGES) | (came_us - since_us > BEHIND_S * 1e6),
                     (came_us - since_us) / 1e6, 0.0)
    turn = np.argsort(sent.left_us[rows], kind="stable")
    times, lag_s = sent.left_us[rows][turn], lag_s[turn]
    gone = np.flatnonzero(owed)
    next_one = np.searchsorted(times, sent.left_us[gone])
    near_s = np.maximum(lag_s[np.minimum(next_one, len(times) - 1)],
                        lag_s[np.maximum(next_one - 1, 0)])
    mask = np.zeros(len(sent), dtype=np.bool_)
    mask[gone[near_s > 0]] = True
    if near_s.any():
        yield mask, (f"the tap was up to {seconds_text(float(near_s.max()))} behind; a broker "
                     "drops for slow subscribers")
