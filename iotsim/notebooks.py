"""JupyterLab on the notebooks that come with iotsim.

In a checkout it opens them where they are; from a wheel it opens a copy in a folder of the user's,
in which nothing that exists is ever replaced.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from iotsim.errors import BadValue, IotsimError, MissingExtra

DEFAULT_FOLDER = Path("~/iotsim-notebooks")
_HIDDEN = (".", "__pycache__")


def bundled() -> tuple[Path, bool]:
    """Return the folder of notebooks, and whether it is a checkout's."""
    package = Path(__file__).resolve().parent
    if (package / "_notebooks").is_dir():
        return package / "_notebooks", False
    if (package.parent / "notebooks").is_dir() and (package.parent / "pyproject.toml").is_file():
        return package.parent / "notebooks", True
    raise IotsimError("this installation of iotsim has no notebooks. Install it again.")


def copied(source: Path, target: Path) -> list[Path]:
    """Copy what is missing in a folder; returns the new files, relative to it."""
    new = []
    for path in sorted(source.rglob("*")):
        place = path.relative_to(source)
        if not path.is_file() or any(part.startswith(_HIDDEN) for part in place.parts):
            continue
        if not (target / place).exists():
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / place)
            new.append(place)
    return new


def notebooks(
    folder: Path | None, more: Sequence[str], say: Callable[[str], None], *, browser: bool = True
) -> int:
    """Open JupyterLab; returns its exit status.

    Parameters
    ----------
    folder : Path or None
        Where the copy is; None is the checkout itself, or `~/iotsim-notebooks`.
    more : sequence of str
        Arguments for JupyterLab.
    say : callable
        Takes one line of text.
    browser : bool

    Raises
    ------
    IotsimError
        If JupyterLab is not installed, or the folder cannot be made.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise MissingExtra("iotsim notebooks", "jupyterlab", "lab")
    source, checkout = bundled()
    target = source if checkout and folder is None else (folder or DEFAULT_FOLDER).expanduser()
    if target != source:
        try:
            target.mkdir(parents=True, exist_ok=True)
            new = copied(source, target)
        except OSError as error:
            raise BadValue("folder", str(target), f"cannot be written ({error.strerror})",
                           "Choose another --folder.") from None
        for path in new:
            say(f"new: {target / path}")
    say(f"JupyterLab on {target}; end it with Ctrl-C")
    command = [sys.executable, "-m", "jupyterlab", str(target), "--ip=127.0.0.1",
               *([] if browser else ["--no-browser"]), *more]
    return _become(command)


def _become(command: list[str]) -> int:
    # Its own process takes our place: Ctrl-C is then JupyterLab's, and nothing stays behind.
    sys.stdout.flush()
    if os.name == "posix":
        os.execv(command[0], command)
    return subprocess.run(command, check=False).returncode
