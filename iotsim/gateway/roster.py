"""Who is to run: what people ask for now, over what a store knows of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iotsim.clock import stamp_us
from iotsim.errors import BadValue, StoreError
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.spec import Gateway
from iotsim.gateway.store import Store
from iotsim.units import instant_text


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a call of `Platform.start` asks for; an equal one asks for the same run."""

    gateways: tuple[Gateway, ...]
    recover: bool
    start_us: int | None = None

    @property
    def label(self) -> str:
        """What the run is called."""
        return self.gateways[0].label if self.gateways else "gateways"


@dataclass(frozen=True, slots=True)
class Roster:
    """The gateways of a run that is to begin, its seed, and what is worth saying."""

    records: tuple[GatewayRecord, ...]
    seed: int
    notes: tuple[str, ...] = ()


def wanted_of(
    gateway: Any, count: int | None, recover: bool, start_us: int | None = None
) -> Wanted:
    """Return what is asked for, or raise BadValue."""
    given = [] if gateway is None else [gateway] if isinstance(gateway, Gateway) else gateway
    if not isinstance(given, (list, tuple)) or not all(isinstance(g, Gateway) for g in given):
        raise BadValue("gateway", gateway, "is not a Gateway", "Give a Gateway, or a list of them.")
    for one in given:
        if not one.sensors:
            one.fleet()  # says what is missing
    if not given and not recover:
        raise BadValue("gateway", gateway, "is nothing to start",
                       "Give a Gateway, or recover=True.")
    if not given and count is not None:
        raise BadValue("count", count, "counts nothing without a Gateway", "Give a Gateway.")
    many = tuple(one if count is None else one.many(count) for one in given)
    return Wanted(many, recover, start_us)


def roster_of(store: Store, wanted: Wanted) -> Roster:
    """Return the gateways that are to run; those that are recovered are as they were.

    Raises
    ------
    IotsimError
        If there is nobody, two have one name or different seeds, or an asked one is damaged.
    """
    damaged: list[StoreError] = []
    known = {record.name: record for record in store.records(unreadable=damaged)}
    asked = [record for one in wanted.gateways for record in one.records()]
    _check_asked(store, wanted, asked, known, damaged)
    undone = [] if wanted.recover else [
        name for one in asked if (name := _undone(known.get(one.name), one))]
    records = [_over(known.pop(one.name, None), one, wanted.recover) for one in asked]
    if wanted.recover:
        records += [record for record in known.values() if record.provisioned]
    if not records:
        raise BadValue("store", store.path, "has no gateway to recover", "Give a Gateway.")
    notes = [str(error) for error in damaged]
    if undone:
        few = ", ".join(undone[:3]) + (", …" if len(undone) > 3 else "")
        notes.append(f"{len(undone):,} gateways begin as given here, not as the platform or a stop "
                     f"had left them ({few}): recover=True keeps that")
    seeds = Counter(record.seed for record in asked or records)
    seed = seeds.most_common(1)[0][0]
    others = sum(record.seed != seed for record in records)
    if others:
        notes.append(f"{others:,} of the recovered gateways had other seeds: their readings come "
                     f"from this run's, {seed}, now")
    now = instant_text(stamp_us())
    return Roster(tuple(one if one.created_at else replace(one, created_at=now)
                        for one in records), seed, tuple(notes))


def _check_asked(
    store: Store, wanted: Wanted, asked: Sequence[GatewayRecord], known: dict[str, GatewayRecord],
    damaged: Sequence[StoreError],
) -> None:
    for what in ("name", "factory_id"):
        if len({getattr(record, what) for record in asked}) < len(asked):
            raise BadValue("gateway", [one.name for one in wanted.gateways],
                           f"give two gateways one {what.replace('_', ' ')}",
                           "Give each its own.")
    seeds = sorted({record.seed for record in asked})
    if len(seeds) > 1:
        raise BadValue("seed", ", ".join(map(str, seeds[:3])),
                       "are several: the readings of one run come from one",
                       "Start them apart, or make them with the same seed=.")
    if damaged:
        lost = set(store.names()) - set(known)
        if any(record.name in lost for record in asked):
            raise damaged[0]


def awake(records: Iterable[GatewayRecord]) -> list[GatewayRecord]:
    """Return those that are to run, and were not stopped."""
    return [record for record in records if record.intent == "running"]


def _undone(there: GatewayRecord | None, asked: GatewayRecord) -> str:
    # What the platform asked of a gateway, or its stop, that a start without recover ends.
    if there is None or not there.provisioned:
        return ""
    was = [f"{field} {getattr(there, field)}" for field, usual in (
        ("status", "online"), ("intent", "running"), ("firmware", asked.firmware),
        ("send_frequency_ms", asked.send_frequency_ms)) if getattr(there, field) != usual]
    return f"{there.name}: {', '.join(was)}" if was else ""


def _over(there: GatewayRecord | None, asked: GatewayRecord, recover: bool) -> GatewayRecord:
    if there is None:
        return asked
    if not there.provisioned:
        return replace(asked, private_key_pem=there.private_key_pem, created_at=there.created_at)
    if there.factory_id != asked.factory_id:
        raise BadValue("factory_id", asked.factory_id, f"is not that of gateway {asked.name}, "
                       f"which the store has, provisioned as {there.factory_id!r}",
                       "Give another name, or platform.forget() that one first.")
    if recover:
        return there
    return replace(there, sensors=asked.sensors, seed=asked.seed, model=asked.model,
                   firmware=asked.firmware, send_frequency_ms=asked.send_frequency_ms,
                   status="online", intent="running")


def as_meant(
    enrolled: Iterable[GatewayRecord], asked: Iterable[GatewayRecord]
) -> list[GatewayRecord]:
    """Return who was provisioned, in the order they were asked for, and online."""
    order = {record.name: i for i, record in enumerate(asked)}
    return sorted((replace(one, status="online") if one.status == "provisioning" else one
                   for one in enrolled), key=lambda one: order[one.name])


class StoreKeeper:
    """A store for exchanges that may outlive who began them: open while they write.

    Parameters
    ----------
    opened : callable () -> Store
    """

    def __init__(self, opened: Callable[[], Store]) -> None:
        self._opened = opened

    def save(self, record: GatewayRecord, /) -> None:
        """Keep a record, instead of an earlier one of its name."""
        with self._opened() as store:
            store.save(record)

    def get(self, name: str, /) -> GatewayRecord | None:
        """Return the record of this name, or None."""
        with self._opened() as store:
            return store.get(name)
