"""Blocks that became alike are one again: a command for each of many devices leaves few blocks.

Where something is done to devices one by one, each split leaves a block of its own, and a block
costs as much for one device as for hundreds. Blocks of one group and one profile that have come to
the same instant can go on as one, on a grid that begins there, as after any change of interval.
Which devices step together changes no reading.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import numpy as np

from iotsim.engine.block import Block
from iotsim.engine.grid import Origin, new_grid
from iotsim.faults.base import NEVER_US


def merged(blocks: Iterable[Block], kind: Callable[[Block], Hashable]) -> list[Block]:
    """Return blocks, with those made one that can be; what becomes part of another is retired.

    Parameters
    ----------
    blocks : iterable of Block
    kind : callable (block) -> hashable
        Blocks may be one if theirs is equal, and not None.
    """
    alike: dict[Hashable, list[Block]] = {}
    left: list[Block] = []
    for block in blocks:
        known = kind(block) if _can_merge(block) else None
        if known is None:
            left.append(block)
        else:
            key = (known, block.group.index, id(block.profile), block.time_us)
            alike.setdefault(key, []).append(block)
    left += [_one(several) if len(several) > 1 else several[0] for several in alike.values()]
    return left


def _can_merge(block: Block) -> bool:
    # All of it has to follow from the tick: no state of signals, nothing between ticks.
    return not (block.retired or block.splits or block._between is not None or any(
        hasattr(source, "keep") for _, source in block._sources))


def _one(blocks: list[Block]) -> Block:
    first, every_us = blocks[0], blocks[0].profile.interval_us
    grids = [new_grid(one.time_us, one.start_us + one._phase_us, every_us, every_us, one._origin)
             for one in blocks]
    phase_us = np.concatenate([phases_us for phases_us, _ in grids])
    order = np.argsort(phase_us, kind="stable")
    made = object.__new__(Block)
    made.time_us, made.forked, made.splits = first.time_us, first.forked, []
    windows = {window.number: window for block in blocks for window in block.windows}
    made.windows = [windows[number] for number in sorted(windows)]
    made._fill(
        first.group, first.profile, first.seed, first.time_us,
        np.concatenate([block._members for block in blocks])[order],
        np.concatenate([block.slots for block in blocks])[order],
        np.concatenate([block._keys for block in blocks])[order],
        phase_us[order], Origin.joined([origin for _, origin in grids]).take(order),
    )
    for block in blocks:
        block.time_us = NEVER_US
    return made
