"""The order of each device's messages, where a peer may refuse one for now and take the next.

Over such a connection what is already in flight overtakes what was refused: that is counted. From
then on, for a while, each device has one message in flight at a time, and nothing overtakes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from iotsim.clock import monotonic
from iotsim.publishers.base import Item

STRICT_S = 30.0  # after the last refusal for now
OVERTAKEN = (
    "overtaken: the broker refused a message for now, and took a newer one of the same device "
    "that was on its way"
)


def device_of(topic: str, ident: str) -> str:
    """Return whose message it is: from its id `run/device/seq/copy`, else by its topic.

    Examples
    --------
    >>> device_of("a/b", "run/pump-1/17/0"), device_of("a/b", "17")
    ('run/pump-1', 'a/b')
    """
    parts = ident.rsplit("/", 2)
    return parts[0] if len(parts) == 3 else topic


class Alone:
    """Lets one message of each device go at a time."""

    __slots__ = ("_devices",)

    def __init__(self, flight: Mapping[int, Item]) -> None:
        self._devices = {device_of(item[0], item[2]) for item in flight.values()}

    def joins(self, topic: str, ident: str) -> bool:
        """Return whether this message may go; then it is in flight."""
        device = device_of(topic, ident)
        free = device not in self._devices
        self._devices.add(device)
        return free


class Ordering:
    """Says when devices go one by one, and what overtook.

    Parameters
    ----------
    pipelines : bool
        False: the link itself sees to it that nothing overtakes.
    """

    __slots__ = ("_pipelines", "_until_s")

    def __init__(self, pipelines: bool) -> None:
        self._pipelines = pipelines
        self._until_s = 0.0

    def refused_for_now(self) -> None:
        """Begin to be strict, or go on with it."""
        if self._pipelines:
            self._until_s = monotonic() + STRICT_S

    def alone(self, flight: Mapping[int, Item]) -> Alone | None:
        """Return who may go, or None where a device may have as many in flight as it likes."""
        return Alone(flight) if self._until_s and monotonic() < self._until_s else None

    def overtaken(
        self, tokens: Sequence[int], flight: Mapping[int, Item],
        oldest_held: Callable[[str], int | None],
    ) -> int:
        """Return how many were taken before an older one of the same device that is held."""
        if not self._pipelines:
            return 0
        count = 0
        for token in tokens:
            item = flight.get(token)
            if item is not None:
                held = oldest_held(device_of(item[0], item[2]))
                count += held is not None and held < token
        return count
