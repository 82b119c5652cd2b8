"""The files around the package say the same as pyproject.toml."""

import os
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_environment_yml_matches_pyproject():
    found = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert found["name"] == PYPROJECT["project"]["name"] == "iotsim"
    assert f"python{PYPROJECT['project']['requires-python']}" in found["dependencies"]
    pip = next(entry["pip"] for entry in found["dependencies"] if isinstance(entry, dict))
    assert pip == ["-e .[all]"]
    assert "all" in PYPROJECT["project"]["optional-dependencies"]


def test_all_and_test_bring_every_other_extra():
    extras = PYPROJECT["project"]["optional-dependencies"]
    others = sorted(set(extras) - {"all", "test"})
    listed = extras["all"][0].removeprefix("iotsim[").removesuffix("]").split(",")
    assert sorted(listed) == others
    assert "iotsim[all]" in extras["test"]


def test_ci_runs_tests_run_and_nothing_else():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines == ["#!/usr/bin/env bash", 'exec bash "$(dirname "$0")/../tests/run"']


def test_both_scripts_are_valid_shell():
    for script in (".ci/run", "tests/run"):
        assert os.access(ROOT / script, os.X_OK), script
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
