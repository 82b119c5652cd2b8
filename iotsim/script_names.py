"""Names that scenario scripts may use for who and what: they are selectors and names of faults."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from iotsim.errors import BadValue
from iotsim.selectors import Ids, Selector, parse

_SIGNS = ",=|"


class LabelSelector(Selector):
    """A selector of devices by their labels: `LabelSelector(site="north")`.

    Parameters
    ----------
    text : str, optional
        As anywhere else: "site=north,device_type=pump".
    **labels : str or iterable of str
        All must hold; one of the values is enough.

    Examples
    --------
    >>> str(LabelSelector("device_type=pump", site=["north", "south"]))
    'device_type=pump,site=north|south'
    """

    __slots__ = ()

    def __init__(self, text: str | None = None, **labels: str | Iterable[str]) -> None:
        if text is None and not labels:
            raise BadValue("LabelSelector", text, "says nobody",
                           "Give LabelSelector(site='north'); 'all' is everybody.")
        terms = [] if text is None else [text]
        for name, given in labels.items():
            values = [given] if isinstance(given, str) else list(given)
            if not values or not all(_is_plain(value) for value in values):
                raise BadValue(name, given, "is not the value of a label",
                               "Give text without , = and |, or a list of such.")
            terms.append(f"{name}={'|'.join(values)}")
        found = parse(",".join(terms))
        super().__init__(found.terms, found.fraction, found.count, found.shard)


class DeviceIds(Ids):
    """A selector of devices by their ids; `DeviceIds([])` is nobody.

    Examples
    --------
    >>> DeviceIds(["pump-0001"]).names
    ('pump-0001',)
    """

    __slots__ = ()

    def __init__(self, names: Iterable[str]) -> None:
        if isinstance(names, str):
            raise BadValue("ids", names, "is text, not a list of ids",
                           f"Write DeviceIds([{names!r}]).")
        super().__init__(tuple(names))


class FaultType(StrEnum):
    """The faults by name, as `inject_fault(FaultType.DISCONNECT)` takes them."""

    BATTERY_DRAIN = "battery_drain"
    CLOCK_DRIFT = "clock_drift"
    DATA_CORRUPTION = "data_corruption"
    DISCONNECT = "disconnect"
    DRIFT = "drift"
    DROPOUT = "dropout"
    DUPLICATE = "duplicate"
    FIRMWARE_UPDATE = "firmware_update"
    LATENCY_SPIKE = "latency_spike"
    NETWORK_DEGRADATION = "network_degradation"
    NOISE = "noise"
    OFFSET = "offset"
    OUTLIER = "outlier"
    PACKET_LOSS = "packet_loss"
    RATE = "rate"
    REBOOT = "reboot"
    RECONNECT_STORM = "reconnect_storm"
    REORDER = "reorder"
    SLOW_DOWN = "slow_down"
    STUCK = "stuck"
    SUSPEND = "suspend"


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and bool(value) and not any(sign in value for sign in _SIGNS)
