"""Progress bars: in notebooks a widget, in terminals a line, elsewhere nothing.

A bar is told how far something is; it costs nothing where nobody looks, and shows itself only when
something takes longer than a second.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from iotsim.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SHOWN_AFTER_S = 1.0
LOOK_S = 0.25  # how often is looked at what goes on in the background
KNOWN = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
UNKNOWN = "{desc} {elapsed}"  # nobody knows when it ends

T = TypeVar("T")

Progress: TypeAlias = "bool | Callable[[float], object] | None"


class _Bar:
    # What nobody sees; or what somebody sees when it takes a while, and is not even made before.
    def __init__(self, show: Callable[[], Any] | None, after_s: float) -> None:
        self.n = 0.0
        self._show, self._after_s = show, after_s
        self._begun_s = monotonic()
        self._bar: Any = None
        self.update(0)

    def update(self, by: float = 1) -> None:
        """Go on by so much."""
        self.n += by
        if self._bar is not None:
            self._bar.update(by)
        elif self._show is not None and (past_s := monotonic() - self._begun_s) >= self._after_s:
            self._bar = self._show()
            self._bar.start_t -= past_s
            self._bar.last_print_t -= past_s
            self._bar.update(self.n)

    def close(self) -> None:
        """Let it vanish."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class _Told(_Bar):
    # Somebody who shows it in another way, and may raise to end it.
    def __init__(self, moved: Callable[[float], object]) -> None:
        self._moved = moved
        super().__init__(None, 0)

    def update(self, by: float = 1) -> None:
        self.n += by
        if by:
            self._moved(by)


def bar(description: str, total_s: float, shown: Progress = None) -> _Bar:
    """Return a bar over simulated seconds; a context manager with `update(seconds)`.

    Parameters
    ----------
    description : str
    total_s : float
        Or how much there is of whatever is counted; 0 if nobody knows.
    shown : bool or callable, optional
        Whether to show it, or who is told of each step instead; if not given, it is shown when it
        takes longer than a second and somebody looks.
    """
    if callable(shown):
        return _Told(shown)
    if shown is False or (shown is None and not watched()):
        return _Bar(None, 0)

    def show() -> Any:
        kind = _widget_bar() if _in_notebook() else _line_bar()
        return kind(total=total_s or None, desc=" ".join(description.split()), leave=False,
                    bar_format=KNOWN if total_s else UNKNOWN, file=sys.stderr)

    return _Bar(show, SHOWN_AFTER_S if shown is None else 0)


def watched() -> bool:
    """Return whether anybody would see a bar."""
    return _in_notebook() or sys.stderr.isatty()


def one_each(_: object) -> int:
    """Return 1: what is counted is of equal weight."""
    return 1


def counted(
    description: str, things: Sequence[T], size: Callable[[Any], int] = len
) -> Iterator[T]:
    """Yield things one by one, and show how far that is by what each of them holds.

    Examples
    --------
    >>> list(counted("two", ["ab", "c"]))
    ['ab', 'c']
    """
    with bar(description, sum(map(size, things))) as shown:
        for thing in things:
            yield thing
            shown.update(size(thing))


@asynccontextmanager
async def following(
    description: str, total_s: float, at_s: Callable[[], float]
) -> AsyncIterator[None]:
    """Show how far something is that goes on by itself, looking at it four times a second.

    Parameters
    ----------
    description : str
    total_s : float
        0 if nobody knows.
    at_s : callable
        Where it is.
    """
    if not watched():
        yield
        return

    async def follow() -> None:
        with bar(description, total_s) as shown:
            while True:
                await asyncio.sleep(LOOK_S)
                here_s = at_s()
                shown.update(max(0.0, min(here_s, total_s or here_s) - shown.n))

    follower = asyncio.create_task(follow())
    try:
        yield
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)


def _in_notebook() -> bool:
    # ZMQ shells have a front end that shows widgets; a terminal IPython has not.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell" and (
        "ipywidgets" in sys.modules or find_spec("ipywidgets") is not None)


def _widget_bar() -> Any:
    display = import_module("IPython.display").display
    widget: Any = import_module("tqdm.notebook").tqdm

    class Vanishing(widget):  # type: ignore[misc]
        # Leaves nothing in a saved notebook, where a widget that is gone says "0 %" for ever.
        def __init__(self, **options: Any) -> None:
            self._place: Any = None
            super().__init__(display=False, **options)
            self._place = display(self.container, display_id=True)

        def close(self) -> None:
            super().close()
            place, self._place = self._place, None
            if place is not None:
                place.update({"text/plain": ""}, raw=True)

    return Vanishing


def _line_bar() -> Any:
    from tqdm import tqdm

    return tqdm
