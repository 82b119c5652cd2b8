"""What `iotsim dashboard` does: makes the page out of the notebook, and serves it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iotsim.dashboard import VARIABLE, Asked
from iotsim.errors import BadValue, MissingExtra

BOOK = "dashboard.ipynb"
HIDDEN = "check"  # cells with this tag are for who runs the notebook
PAGES_MAX = 8
HOST = "127.0.0.1"


def dashboard(
    wanted: Asked, say: Callable[[str], None], *, port: int = 0, theme: str = "light",
    browser: bool = True,
) -> int:
    """Serve a dashboard until somebody ends it; returns the exit status.

    Parameters
    ----------
    wanted : Asked
    say : callable
        Takes the one line with the address.
    port : int
        0 takes a free one.
    theme : {"light", "dark"}
    browser : bool

    Raises
    ------
    IotsimError
        If Voila is not installed, the port is taken, or what is wanted cannot be.
    """
    if importlib.util.find_spec("voila") is None:
        raise MissingExtra("iotsim dashboard", "voila", "dashboard")
    from iotsim.fleet import Fleet

    wanted.plan(Fleet("dashboard").add("pump"))  # what is wrong is said here, not in the page
    with _bound(port) as listening, tempfile.TemporaryDirectory(prefix="iotsim-") as folder:
        page = Path(folder) / BOOK
        page.write_text(json.dumps(page_of(_book())), encoding="utf-8")
        os.environ[VARIABLE] = wanted.text()
        # Else jsonschema parses a grammar of URLs for seconds, and nobody here asks it.
        sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
        from iotsim.dashboard.server import serve

        # Two pages would publish the same devices twice.
        pages = PAGES_MAX if wanted.publish is None else 1
        serve(page, listening, say, theme=theme, pages_max=pages, browser=browser)
    return 0


def page_of(book: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook with one cell, which shows what the last line of another's code gives.

    Text, and cells that are for who runs the notebook, are left out.
    """
    sources = ["".join(cell["source"]) for cell in book["cells"]
               if cell["cell_type"] == "code" and HIDDEN not in cell["metadata"].get("tags", ())]
    cell: dict[str, Any] = {"cell_type": "code", "id": "page", "metadata": {}, "outputs": [],
                            "execution_count": None, "source": "\n\n".join(sources)}
    return {**book, "cells": [cell]}


def _book() -> dict[str, Any]:
    from iotsim.notebooks import bundled

    folder, _ = bundled()
    try:
        found: dict[str, Any] = json.loads((folder / BOOK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BadValue("notebook", BOOK, "cannot be read", "Install iotsim again.") from None
    return found


def _bound(port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        raise BadValue("port", port, "is no port", "Give 1 to 65535, or 0 for a free one.")
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # else a port is not free for a minute after its last page
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(128)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise BadValue("port", port, f"cannot be used ({error.strerror})",
                       "Leave --port out for a free one.") from None
    return listening
