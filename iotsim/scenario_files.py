"""Scenarios in files: Python that is run because somebody names it, and nothing else is."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import traceback
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from iotsim.errors import BadValue, IotsimError, UnknownName, told
from iotsim.fleet import Fleet
from iotsim.scenario import Scenario

_SIZE_MAX = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class Shipped:
    """A scenario that comes with iotsim.

    Attributes
    ----------
    name : str
    summary : str
        The first line of what its file says of itself.
    path : Path
    """

    name: str
    summary: str
    path: Path


def shipped() -> list[Shipped]:
    """Return the scenarios that come with iotsim, by name; none of them is run."""
    return [Shipped(path.stem, _summary(path), path) for path in sorted(_folder().glob("*.py"))
            if not path.stem.startswith("_")]


def load(source: str | Path) -> Scenario:
    """Return the scenario in a Python file, or the one of that name that comes with iotsim.

    Raises
    ------
    UnknownName
        If no scenario of that name comes with iotsim.
    IotsimError
        If the file cannot be read or run, or holds no scenario; names file and line.
    """
    if not isinstance(source, (str, Path)) or not str(source):
        raise BadValue("scenario", source, "is neither a name nor a path",
                       "Give 'chaos', or 'my/outage.py'.")
    path = _path_of(source)
    module = _run(path)
    found = getattr(module, "scenario", None)
    if isinstance(found, Scenario):
        return found
    script, fleet = getattr(module, "run", None), getattr(module, "fleet", None)
    if script is None:
        kind = type(found).__name__
        why = "it holds no scenario" if found is None else f"`scenario` is a {kind}"
        raise IotsimError(f"{path}: {why}. Write `async def run(ctx)`, or "
                          "`scenario = Scenario(...)`.")
    if not inspect.iscoroutinefunction(script):
        line = getattr(getattr(script, "__code__", None), "co_firstlineno", 1)
        raise IotsimError(f"{path}:{line}: `run` is not a coroutine function. Write it as "
                          "`async def run(ctx)`.")
    if fleet is not None and not isinstance(fleet, Fleet):
        raise IotsimError(f"{path}: `fleet` is a {type(fleet).__name__}. Write "
                          "`fleet = Fleet(...)`, or leave it out.")
    return Scenario(path.stem, fleet, script=script)


def _path_of(source: str | Path) -> Path:
    text = str(source)
    is_path = isinstance(source, Path) or text.lower().endswith(".py")
    if is_path or "/" in text or "\\" in text:
        return Path(source)
    known = {one.name: one.path for one in shipped()}
    if text not in known:
        raise UnknownName("scenario", text, known)
    return known[text]


class _Fresh(SourceFileLoader):
    """Reads a file as it is now: nothing is cached beside it."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _run(path: Path) -> ModuleType:
    try:
        if path.stat().st_size > _SIZE_MAX:
            raise IotsimError(f"{path}: this is over {_SIZE_MAX:,} bytes, and no scenario.")
    except OSError as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else told(error)
        raise IotsimError(f"{path}: {why}. Give the path of a scenario, or one of: "
                          f"{', '.join(one.name for one in shipped()) or 'none'}.") from None
    whole = str(path.resolve())
    name = f"iotsim_scenario_{hashlib.sha256(whole.encode(errors='replace')).hexdigest()[:16]}"
    loader = _Fresh(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look it up there
    try:
        loader.exec_module(module)
    except SyntaxError as error:
        raise IotsimError(f"{path}:{error.lineno or 1}: {error.msg}.") from None
    except (Exception, SystemExit) as error:
        raise IotsimError(f"{path}:{_line(error, str(path))}: {told(error)}") from error
    return module


def _line(error: BaseException, path: str) -> int:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if frame.filename == path]
    return (frames[-1].lineno or 1) if frames else 1


def _summary(path: Path) -> str:
    try:
        text: Any = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError):
        text = None
    return text.splitlines()[0] if text else ""


def _folder() -> Path:
    return Path(__file__).with_name("scenarios")
