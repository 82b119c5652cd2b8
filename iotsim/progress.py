"""Progress bars: in notebooks a widget, in terminals a line, elsewhere nothing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

SHOWN_AFTER_S = 1.0


def bar(description: str, total_s: float, shown: bool | None = None) -> Any:
    """Return a tqdm bar over simulated seconds; a context manager with `update(seconds)`.

    Parameters
    ----------
    description : str
    total_s : float
    shown : bool, optional
        Whether to show it; if not given, when it takes longer than a second and somebody looks.
    """
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
