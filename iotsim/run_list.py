"""Runs together: seen in one line or one table, and stopped at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from iotsim.facts import table_html
from iotsim.units import clock_text

if TYPE_CHECKING:
    from iotsim.result import Result
    from iotsim.run import Run

_COLUMNS = ("name", "state", "time", "devices", "readings")
_NAMED_MAX = 5  # on one line


class Runs(list["Run"]):
    """A list of runs, as `iotsim.runs()` gives it.

    Examples
    --------
    >>> from iotsim import runs
    >>> runs()
    <Runs: none>
    """

    async def stop(self) -> list[Result]:
        """Stop all of them, whatever loop they are on; returns their results, in this order."""
        return list(await asyncio.gather(*(run.stop() for run in self)))

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for run in self:
            now = run.snapshot()
            yield (run.name, now.state, clock_text(now.elapsed_us), f"{now.devices:,}",
                   f"{now.readings:,}")

    def __repr__(self) -> str:
        said = [f"{name!r} {state} {time}, {devices} devices, {readings} readings"
                for name, state, time, devices, readings in islice(self._rows(), _NAMED_MAX)]
        if len(self) > _NAMED_MAX:
            said.append(f"and {len(self) - _NAMED_MAX} more")
        return f"<Runs: {'; '.join(said) or 'none'}>"

    def _repr_html_(self) -> str:
        if not self:
            return "<div><b>Runs</b>: none</div>"
        return f"<div><b>Runs</b>{table_html(_COLUMNS, self._rows(), len(self), 'runs')}</div>"


_INTERRUPTED: list[Run] = []  # the last one, until the next: its readings stay in memory


async def end_interrupted(run: Run, interrupt: BaseException) -> None:
    """End a run that somebody has interrupted; the interrupt says how to get what there is."""
    _INTERRUPTED[:] = [run]
    await run.stop()
    now = run.snapshot()
    note = (f"iotsim: run {run.name!r} was interrupted, and stopped at "
            f"{clock_text(now.elapsed_us)} with {now.readings:,} readings. Its result: "
            "(await iotsim.runs(ended=True).stop())[0]")
    if note not in getattr(interrupt, "__notes__", ()):
        interrupt.add_note(note)


def interrupted() -> Runs:
    """Return the run that was interrupted last, if there was one."""
    return Runs(_INTERRUPTED)
