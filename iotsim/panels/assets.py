"""The browser's half of the panels: plain ES modules and a style sheet, joined without a build.

Each file of `js/` is a module that a browser could load by itself. A widget has only one, so its
lines of import are left out and nothing but the last line is exported.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

MODULES = (  # those that others use come first
    "dom", "colours", "axes", "lines", "cells", "figures", "form", "run", "guest", "launch",
    "fleet", "timeline", "result", "scenario", "tabs", "dashboard", "gateway", "main",
)
STYLES = ("panel.css", "small.css", "dashboard.css")
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)


@cache
def script() -> str:
    """Return the one module that every panel runs."""
    folder = files("iotsim.panels") / "js"
    return "\n".join(joinable((folder / f"{name}.js").read_text("utf-8")) for name in MODULES)


def joinable(source: str) -> str:
    """Return a module without what only counts between files.

    Examples
    --------
    >>> joinable("export const A = 1;")
    'const A = 1;'
    """
    return _EXPORT.sub("", _IMPORT.sub("", source))


@cache
def style() -> str:
    """Return the style sheet of every panel."""
    folder = files("iotsim.panels") / "js"
    return "\n".join((folder / name).read_text("utf-8") for name in STYLES)
