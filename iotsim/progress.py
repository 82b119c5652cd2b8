"""Progress bars: in notebooks a widget, in terminals a line, elsewhere nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Self, TypeAlias

SHOWN_AFTER_S = 1.0

Progress: TypeAlias = "bool | Callable[[float], object] | None"


class _Told:
    # Somebody who shows it in another way, and may raise to end it.
    def __init__(self, moved: Callable[[float], object]) -> None:
        self.update = moved

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass


def bar(description: str, total_s: float, shown: Progress = None) -> Any:
    """Return a tqdm bar over simulated seconds; a context manager with `update(seconds)`.

    Parameters
    ----------
    description : str
    total_s : float
    shown : bool or callable, optional
        Whether to show it, or who is told of each step instead; if not given, it is shown when it
        takes longer than a second and somebody looks.
    """
    if callable(shown):
        return _Told(shown)
    notebook = _in_notebook()
    kind = _widget_bar() if notebook else _line_bar()
    nobody = not notebook and not sys.stderr.isatty()
    return kind(
        total=total_s,
        desc=description,
        delay=SHOWN_AFTER_S if shown is None else 0,
        disable=nobody if shown is None else not shown,
        leave=False,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    )


def _in_notebook() -> bool:
    # ZMQ shells have a front end that shows widgets; a terminal IPython has not.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell" and find_spec("ipywidgets") is not None


def _widget_bar() -> Any:
    from tqdm.notebook import tqdm

    return tqdm


def _line_bar() -> Any:
    from tqdm import tqdm

    return tqdm
