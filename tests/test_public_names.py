"""The top level is small, documented, and the same whatever was imported before."""

import inspect
import itertools
import subprocess
import sys

import pytest

import iotsim
from iotsim.registry import PUBLIC


def test_all_is_what_the_registry_knows():
    assert sorted(iotsim.__all__) == sorted(PUBLIC)
    assert dir(iotsim) == sorted([*iotsim.__all__, "__version__"])


def test_there_are_at_most_24_public_names():
    assert len(iotsim.__all__) <= 24


@pytest.mark.parametrize("name", iotsim.__all__)
def test_every_public_name_has_a_docstring_of_its_own(name):
    value = getattr(iotsim, name)
    text = inspect.getdoc(value) or ""
    assert text.splitlines()[0].endswith((".", ";")), text
    assert not text.startswith(f"{name}("), "a generated docstring says nothing"


@pytest.mark.parametrize(
    ("cls", "name"),
    [(cls, name) for cls in ("Fleet", "Profile", "Result", "Run", "Tap", "Verification")
     for name in vars(getattr(iotsim, cls)) if not name.startswith("_")],
)
def test_every_public_method_has_a_docstring(cls, name):
    member = inspect.getattr_static(getattr(iotsim, cls), name)
    if isinstance(member, (property, classmethod, staticmethod)) or inspect.isfunction(member):
        assert inspect.getdoc(getattr(getattr(iotsim, cls), name, member)), f"{cls}.{name}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'iotsim' has no attribute 'Flet'"):
        _ = iotsim.Flet


def test_tap_and_verify_stay_functions_in_any_order_of_imports():
    code = f"""
import importlib, os, sys
import asyncio, numpy, orjson, pydantic, yaml  # what they share is imported once, for all orders
for order in {list(itertools.permutations(["taps", "verification", "fleet"]))}:
    child = os.fork()
    if child == 0:
        import iotsim
        for name in order:
            importlib.import_module(f"iotsim.{{name}}")
        right = callable(iotsim.tap) and callable(iotsim.verify) and callable(iotsim.runs)
        os._exit(0 if right and isinstance(iotsim.Fleet, type) else 1)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"after {{order}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_star_import_brings_the_public_names():
    names = {}
    exec("from iotsim import *", names)
    assert set(iotsim.__all__) <= names.keys()


def test_what_the_readme_calls_logs_is_there_after_import_iotsim():
    code = "import iotsim; assert iotsim.logs.JsonFormatter().format"
    subprocess.run([sys.executable, "-c", code], check=True)
