"""Every example in a docstring runs and says what it says."""

import doctest
import importlib
import pkgutil

import pytest

import iotsim


def _modules():
    yield "iotsim"
    for found in pkgutil.walk_packages(iotsim.__path__, "iotsim."):
        if not found.name.endswith("__main__"):
            yield found.name


@pytest.mark.parametrize("name", list(_modules()))
def test_the_examples_of(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    said = []
    for example in finder.find(module, name):
        runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)
