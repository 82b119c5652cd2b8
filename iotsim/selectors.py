"""Who is meant: `"device_type=pump,site=north"`, `"fraction=10%"`, `ids([...])`, `"gateway=gw-7"`.

A selector is parsed when it is written and resolved when it takes effect, against the groups of a
fleet. Fractions and counts go by a hash of the id, so that devices that come and go do not change
who else is chosen; of gateways, whole ones are. `shard=0/4` is the first of four parts by such a
hash: back-pressure writes it into the log, for the devices of one lane.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue, UnknownName, shown
from iotsim.readings import Group, gateways_of, sensor_of
from iotsim.seeding import combine_many, fnv1a, fnv1a_many, mix_many, unit_many

_ALLOWED = (
    "Give 'all', terms such as 'device_type=pump,site=north', 'id=a|b', 'fraction=10%', "
    "'count=5', or ids([...])."
)
_CHOICE = fnv1a("selector")
_NAMED_MAX = 10
_DIGITS_MAX = 18
_OWN = ("id", "device_type", "protocol", "fraction", "count")


@dataclass(frozen=True, slots=True, repr=False)
class Ids:
    """A selector that names devices one by one; empty selects nothing."""

    names: tuple[str, ...]

    def __repr__(self) -> str:
        more = ", …" if len(self.names) > 3 else ""
        return f"ids([{', '.join(map(repr, self.names[:3]))}{more}])"


Where: TypeAlias = "str | Ids | Selector | Mapping[str, list[str]]"


@dataclass(frozen=True, slots=True)
class Selector:
    """A parsed selector.

    Attributes
    ----------
    terms : tuple of (key, values)
        All must hold; one of the values is enough.
    fraction : float or None
        Of those left, in [0, 1], by hash threshold.
    count : int or None
        Of those left, the ones with the lowest hashes.
    shard : (int, int) or None
        The k-th of n parts of all devices, by a hash of the id: the devices of one lane.
    """

    terms: tuple[tuple[str, tuple[str, ...]], ...] = ()
    fraction: float | None = None
    count: int | None = None
    shard: tuple[int, int] | None = None

    def __str__(self) -> str:
        parts = [f"{key}={'|'.join(values)}" for key, values in self.terms]
        parts += [f"fraction={_percent(self.fraction)}"] if self.fraction is not None else []
        parts += [f"count={self.count}"] if self.count is not None else []
        parts += [f"shard={self.shard[0]}/{self.shard[1]}"] if self.shard is not None else []
        return ",".join(parts) or "all"

    def spec(self) -> str | dict[str, list[str]]:
        """Return the selector as plain JSON that `parse` reads back: text, or a list of ids."""
        for key, values in self.terms:
            if key == "id" and len(self.terms) == 1 and str(self) == f"id={'|'.join(values)}":
                return {"ids": list(values)}
        return str(self)


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Who a selector matched.

    Attributes
    ----------
    masks : mapping of group index to bool array, shape (devices,)
    count : int
    note : str
        Says so when nobody matched; how many a fraction or a count chose, and who; else empty.
    """

    masks: Mapping[int, npt.NDArray[np.bool_]]
    count: int
    note: str


def _percent(fraction: float) -> str:
    short = f"{fraction * 100:g}%"
    return short if float(short[:-1]) / 100 == fraction else repr(fraction)


def ids(names: Iterable[str]) -> Ids:
    """Return a selector of these device ids; `ids([])` selects nothing.

    Examples
    --------
    >>> ids(["pump-0001"]).names
    ('pump-0001',)
    """
    if isinstance(names, str):
        raise BadValue("ids", names, "is text, not a list of ids", f"Write ids([{names!r}]).")
    return Ids(tuple(names))


def parse(where: Where) -> Selector:
    """Return the selector that people wrote.

    Raises
    ------
    BadValue
        If it is empty, or a term has no value, or a fraction or count cannot be.

    Examples
    --------
    >>> str(parse("site=north,fraction=10%"))
    'site=north,fraction=10%'
    """
    if isinstance(where, Selector):
        return where
    if isinstance(where, Mapping) and list(where) == ["ids"]:  # as `Selector.spec` writes it
        where = Ids(tuple(map(str, where["ids"])))
    if isinstance(where, Ids):
        return Selector((("id", where.names),))
    if not isinstance(where, str) or not where.strip():
        why = "is empty" if isinstance(where, str) else "is not a selector"
        raise BadValue("where", where, why, _ALLOWED)
    if where.strip() == "all":
        return Selector()
    terms: dict[str, tuple[str, ...]] = {}
    for term in where.split(","):
        key, equals, text = (part.strip() for part in term.partition("="))
        values = tuple(value.strip() for value in text.split("|"))
        if not key or not equals or not all(values):
            why = f"has a term {shown(term.strip())} without a value"
            raise BadValue("where", where, why, _ALLOWED)
        if key in terms:
            raise BadValue("where", where, f"names {shown(key)} twice",
                           "Write 'key=a|b' for either.")
        terms[key] = values
    fraction = _fraction(terms.pop("fraction", None), where)
    count = _count(terms.pop("count", None), where)
    shard = _shard(terms.pop("shard", None), where)
    return Selector(tuple(terms.items()), fraction, count, shard)


def _shard(values: tuple[str, ...] | None, where: str) -> tuple[int, int] | None:
    if values is None:
        return None
    k, slash, n = values[0].partition("/")
    if (len(values) > 1 or not slash or len(values[0]) > _DIGITS_MAX
            or not (k.isdecimal() and n.isdecimal() and int(k) < int(n))):
        raise BadValue("where", where, "has no shard such as 0/4", _ALLOWED)
    return int(k), int(n)


def _fraction(values: tuple[str, ...] | None, where: str) -> float | None:
    if values is None:
        return None
    text = values[0]
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = -1.0
    if len(values) > 1 or not 0 <= number <= 1:
        raise BadValue("where", where, "has no fraction from 0 % to 100 %", _ALLOWED)
    return number


def _count(values: tuple[str, ...] | None, where: str) -> int | None:
    if values is None:
        return None
    if len(values) > 1 or len(values[0]) > _DIGITS_MAX or not values[0].isdecimal():
        raise BadValue("where", where, "has a count that is not a whole number", _ALLOWED)
    return int(values[0])


def select(
    where: Where, groups: Sequence[Group],
    alive: Mapping[int, npt.NDArray[np.bool_]] | None = None,
) -> Selection:
    """Return which devices of the groups a selector matches.

    Parameters
    ----------
    where : selector
    groups : sequence of Group
    alive : mapping of group index to bool array, optional
        Who can be chosen at all; everybody if not given.

    Raises
    ------
    UnknownName
        If a key is neither a label of any group nor id, device_type, protocol, fraction or count.
    """
    selector = parse(where)
    labels = {name for group in groups for name in group.labels}
    if any(sensor_of(group.protocol, group.labels, group.ids[0])
           for group in groups if len(group)):
        labels.add("gateway")
    for key, _ in selector.terms:
        if key not in labels and key not in _OWN:
            raise UnknownName("selector key", key, (*_OWN, *labels))
    masks = {group.index: _mask(selector, group) for group in groups}
    for index, mask in masks.items():
        if alive is not None:
            mask &= alive[index]
    if selector.fraction is not None or selector.count is not None:
        _thin(selector, groups, masks)
    count = sum(int(mask.sum()) for mask in masks.values())
    there = sum(map(len, groups) if alive is None else (int(m.sum()) for m in alive.values()))
    return Selection(masks, count, _note(selector, groups, masks, count, there))


def _note(
    selector: Selector, groups: Sequence[Group], masks: Mapping[int, npt.NDArray[np.bool_]],
    count: int, there: int,
) -> str:
    if not count:
        nobody = any(not values for _, values in selector.terms)
        return f"where={'ids([])' if nobody else repr(str(selector))} matches no device"
    if selector.fraction is None and selector.count is None:
        return ""
    note = f"where={str(selector)!r} matches {count:,} of {there:,} devices"
    if selector.count is None:
        return note
    chosen = (group.ids[i] for group in groups
              for i in np.flatnonzero(masks[group.index]).tolist())
    more = ", …" if count > _NAMED_MAX else ""
    return f"{note}: {', '.join(islice(chosen, _NAMED_MAX))}{more}"


def _mask(selector: Selector, group: Group) -> npt.NDArray[np.bool_]:
    mask = np.ones(len(group), dtype=np.bool_)
    for key, values in selector.terms:
        if key == "id":
            wanted = set(values)
            mask &= np.fromiter((name in wanted for name in group.ids), np.bool_, len(group))
        elif key == "device_type":
            mask &= group.device_type in values
        elif key == "gateway" and key not in group.labels:
            mask &= _of_gateways(group, set(values))
        elif key == "protocol" and key not in group.labels:
            mask &= group.protocol in values
        else:
            mask &= group.labels.get(key) in values
    if selector.shard is not None:
        k, n = selector.shard
        mask &= shard_of(group.ids, n) == k
    return mask


def _of_gateways(group: Group, wanted: set[str]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(len(group), dtype=np.bool_)
    rows = _rows_of_gateways(group)
    mask[[rows[name] for name in wanted if name in rows]] = True
    return mask


_ROWS: WeakKeyDictionary[Group, dict[str, int]] = WeakKeyDictionary()


def _rows_of_gateways(group: Group) -> dict[str, int]:
    # Each gateway of a thousand may be commanded at once: nobody looks through all for each.
    rows = _ROWS.get(group)
    if rows is None:
        names = gateways_of(group) or ()
        rows = _ROWS[group] = {name: i for i, name in enumerate(names)}
    return rows


def shard_of(names: Sequence[str], shards: int) -> npt.NDArray[np.int64]:
    """Return which of so many parts each device belongs to, by a hash of its id."""
    return (mix_many(mix_many(fnv1a_many(names))) % np.uint64(shards)).astype(np.int64)


def _thin(
    selector: Selector, groups: Sequence[Group], masks: dict[int, npt.NDArray[np.bool_]]
) -> None:
    # Of gateways, all sensors are chosen or none.
    names = {g.index: gateways_of(g) or g.ids for g in groups}
    hashes = {index: combine_many(_CHOICE, fnv1a_many(those)) for index, those in names.items()}
    if selector.fraction is not None:
        for index, mask in masks.items():
            mask &= unit_many(hashes[index]) < selector.fraction
    if selector.count is not None:
        left = np.concatenate([hashes[index][mask] for index, mask in masks.items()])
        left = np.unique(left)
        if len(left) > selector.count:
            limit = left[selector.count] if selector.count else np.uint64(0)
            for index, mask in masks.items():
                mask &= hashes[index] < limit
