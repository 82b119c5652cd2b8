"""`%load_ext iotsim`: the line magic `%iotsim`, for who wants to know or end what is alive."""

from __future__ import annotations

import asyncio
import html
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from iotsim import __version__
from iotsim.errors import UnknownName
from iotsim.live_runs import runs
from iotsim.run_list import Runs

HELP = ("%iotsim status   the runs that are alive, and the versions that matter\n"
        "%iotsim stop     end all of them")
PACKAGES = ("ipython", "ipykernel", "jupyterlab", "ipywidgets", "anywidget")
OLDEST = {"ipykernel": (6, 31), "jupyterlab": (4, 2), "ipywidgets": (8, 1), "anywidget": (0, 9)}
SUBSHELLS = 7  # from this ipykernel on, callbacks of widgets run in threads of their own
_UPDATES: set[asyncio.Task[None]] = set()


class Told:
    """Lines for people: plain text, and HTML with the same facts.

    Parameters
    ----------
    text, html : callable () -> str
    """

    def __init__(self, text: Callable[[], str], html: Callable[[], str]) -> None:
        self._text, self._html = text, html

    def __repr__(self) -> str:
        return self._text()

    def _repr_html_(self) -> str:
        return self._html()


def load(shell: Any) -> None:
    """Give a shell the magic; to do so twice is to do so once."""
    shell.register_magic_function(iotsim, "line", "iotsim")


def unload(shell: Any) -> None:
    """Take the magic away again."""
    shell.magics_manager.magics["line"].pop("iotsim", None)


def iotsim(line: str) -> None:
    """Show the runs that are alive (`%iotsim status`), or end them (`%iotsim stop`)."""
    from IPython.core.error import UsageError

    words = {"": _help, "status": _status, "stop": _stop}
    act = words.get(line.strip().lower())
    if act is None:
        known = [word for word in words if word]
        raise UsageError(str(UnknownName("command of %iotsim", line.strip(), known)))
    act()


def _help() -> None:
    _show(lambda: HELP)


def _status() -> None:
    alive, lines = runs(), [_versions(), *_troubles()]
    _show(lambda: "\n".join([repr(alive), *lines]),
          lambda: alive._repr_html_() + _paragraphs(lines))


def _stop() -> None:
    alive = runs()
    if not alive:
        _show(lambda: "no run is alive")
        return
    for run in alive:
        run.end_soon()
    shown = _show(lambda: _endings(alive))
    try:
        task = asyncio.get_running_loop().create_task(_ended(alive, shown))
    except RuntimeError:  # a shell without a loop: it would not show it anyway
        return
    _UPDATES.add(task)
    task.add_done_callback(_UPDATES.discard)


async def _ended(stopped: Runs, shown: Any) -> None:
    await stopped.stop()
    if shown is not None:
        shown.update(_told(lambda: _endings(stopped)))


def _endings(stopped: Runs) -> str:
    ends = [f"{run.name!r} {'has ended' if run.ended else 'is ending'}" for run in stopped]
    return "; ".join(ends)


def _show(text: Callable[[], str], rich: Callable[[], str] | None = None) -> Any:
    from IPython import display

    show: Any = display.display
    return show(_told(text, rich), display_id=True)


def _told(text: Callable[[], str], rich: Callable[[], str] | None = None) -> Told:
    return Told(text, rich or (lambda: _paragraphs(text().splitlines())))


def _paragraphs(lines: list[str]) -> str:
    return "".join(f"<div style='white-space:pre-wrap'>{html.escape(line)}</div>"
                   for line in lines)


def _versions() -> str:
    here = {name: _version(name) for name in PACKAGES}
    said = [f"{name} {number}" for name, number in here.items() if number]
    return f"iotsim {__version__}, Python {sys.version.split()[0]}, " + ", ".join(said)


def _troubles() -> Iterator[str]:
    # What has been measured to go wrong, and is not of our doing.
    for name, oldest in OLDEST.items():
        number = _version(name)
        if number and _numbers(number) < oldest:
            least = ".".join(map(str, oldest))
            yield f"{name} {number} is older than what iotsim is tested with: take {least} or later"
    if _numbers(_version("ipykernel")) < (SUBSHELLS,):
        return
    if "ipympl" in sys.modules:
        yield ("ipympl is loaded: live canvases of matplotlib can crash this ipykernel; panels "
               "and plot() of iotsim do not need it")
    for name in ("nest_asyncio", "nest_asyncio2"):
        if name in sys.modules:
            yield (f"{name} is loaded: with this ipykernel it can drop cells that are queued; "
                   "write await instead")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(".")[:2]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)
