"""The command line: what it says, and the exit status."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import iotsim
from iotsim import Fleet, Profile, notebooks
from iotsim.broker import free_port
from iotsim.cli import main
from iotsim.errors import IotsimError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def lab_environment(tmp_path_factory):
    """Where JupyterLab starts in half the time: without the grammar of URLs that jsonschema, if it
    is there, has parsed at every import (4 s of processor time)."""
    folder = tmp_path_factory.mktemp("less")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def command(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "iotsim", *map(str, arguments)],
                          capture_output=True, text=True, timeout=50, check=False, **options)


def without(module, *arguments):
    """The command line on a Python that lacks a library."""
    code = (f"import sys; sys.modules[{module!r}] = None; from iotsim.cli import main; "
            f"sys.exit(main({[str(a) for a in arguments]!r}))")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          timeout=50, check=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    result = Fleet("f", seed=1).add("pump", count=3).generate("1m")
    result.save(folder / "run.iotsim")
    result.to_parquet(folder / "readings.parquet")
    other = Fleet("f", seed=2).add("pump", count=3).generate("1m")
    other.to_parquet(folder / "other.parquet")
    return folder


def test_it_says_its_version_as_a_module_and_as_a_program(capsys):
    assert command("--version").stdout == f"iotsim {iotsim.__version__}\n"
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"iotsim {iotsim.__version__}\n"


def test_profiles_lists_all_of_them_with_interval_fields_and_units(capsys):
    assert main(["profiles"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == Profile.names()
    [sensor] = [line for line in lines if line.startswith("temperature_sensor")]
    assert sensor.split(maxsplit=1)[1] == "every 5s    temperature (°C), humidity (%), battery (%)"


def test_verify_says_identical_or_what_differs(saved, capsys):
    assert main(["verify", str(saved / "run.iotsim")]) == 0
    assert capsys.readouterr().out.startswith("identical, digest ")
    both = ["verify", str(saved / "run.iotsim"), "--against"]
    assert main([*both, str(saved / "readings.parquet")]) == 0
    capsys.readouterr()
    assert main([*both, str(saved / "other.parquet")]) == 1
    said = capsys.readouterr().out
    assert said.startswith("different: device 'pump-000")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("arguments", "said"), [
    (["verify", "no.iotsim"], "iotsim: no.iotsim: there is no such file.\n"),
    (["verify", "."], "iotsim: .: this is a folder, not a saved run.\n"),
])
def test_what_cannot_be_is_one_line_and_exit_1(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("arguments", [
    [], ["dmeo"], ["verify"], ["demo", "--devices", "many"], ["demo", "extra"],
    ["demo", "--broker", "rabbit"], ["profiles", "--", "x"],
])
def test_a_wrong_command_line_shows_the_usage_and_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("usage: iotsim")


@pytest.mark.parametrize(("option", "value", "said"), [
    ("--devices", "0", "devices=0 is out of range. Give 1 to 1,000,000."),
    ("--seconds", "nan", "seconds=nan is out of range. Give 1 to 120."),
    ("--seed", "-1", "seed=-1 "),
])
def test_a_number_out_of_range_is_one_line_and_exits_2(option, value, said, capsys):
    assert main(["demo", f"{option}={value}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"iotsim demo: error: {said}")
    assert err.count("\n") == 1


def test_a_terminal_that_knows_ascii_only_shows_question_marks(tmp_path):
    done = command("profiles", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "temperature (?C)" in done.stdout


def test_a_reader_that_leaves_early_is_no_traceback():
    work = subprocess.Popen([sys.executable, "-m", "iotsim", "profiles"],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    work.stdout.close()
    assert work.stderr.read() == ""
    work.stderr.close()
    assert work.wait() == 1


# -- notebooks ----------------------------------------------------------------------------------


def test_notebooks_copies_what_is_missing_and_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "_become", lambda _given: 0)  # JupyterLab is started below
    folder = tmp_path / "mine"
    source = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    arguments = ("notebooks", "--folder", str(folder), "--no-browser", "--", "--version")
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for name in source:
        assert f"new: {folder / name}\n" in said
    assert f"JupyterLab on {folder}" in said
    (folder / source[0]).write_text("my own work")
    (folder / source[1]).unlink()
    assert main(arguments) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("new")] == [
        f"new: {folder / source[1]}"
    ]
    assert (folder / source[0]).read_text() == "my own work"


def test_a_checkout_opens_its_own_notebooks_and_a_wheel_copies_them(tmp_path, monkeypatch):
    assert notebooks.bundled() == (ROOT / "notebooks", True)
    package = tmp_path / "site-packages" / "iotsim"
    (package / "_notebooks" / ".ipynb_checkpoints").mkdir(parents=True)
    (package / "_notebooks" / "a.ipynb").write_text("{}")
    (package / "_notebooks" / ".ipynb_checkpoints" / "a.ipynb").write_text("{}")
    monkeypatch.setattr(notebooks, "__file__", str(package / "notebooks.py"))
    monkeypatch.setenv("HOME", str(tmp_path))
    became = []
    monkeypatch.setattr(notebooks, "_become", lambda given: became.append(given) or 0)
    assert notebooks.bundled() == (package / "_notebooks", False)
    said = []
    assert notebooks.notebooks(None, ["--port=1"], said.append) == 0
    home = tmp_path / "iotsim-notebooks"
    assert [path.name for path in home.iterdir()] == ["a.ipynb"]
    assert said == [f"new: {home / 'a.ipynb'}", f"JupyterLab on {home}; end it with Ctrl-C"]
    assert became[0][1:] == ["-m", "jupyterlab", str(home), "--ip=127.0.0.1", "--port=1"]
    shutil.rmtree(package)
    with pytest.raises(IotsimError, match="has no notebooks"):
        notebooks.bundled()


def test_notebooks_without_jupyterlab_or_a_folder_is_one_line(tmp_path, capsys):
    done = without("jupyterlab", "notebooks")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ('iotsim: iotsim notebooks needs jupyterlab. Install it with: '
                           'pip install "iotsim[lab]"\n')
    (tmp_path / "file").write_text("")
    assert main(["notebooks", "--folder", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_jupyterlab_listens_on_loopback_only_and_ends(tmp_path, lab_environment):
    port = free_port()
    log = (tmp_path / "log").open("w+")
    others = '{"jupyter_lsp": False, "jupyter_server_terminals": False, "notebook_shim": False}'
    server = subprocess.Popen(
        [sys.executable, "-m", "iotsim", "notebooks", "--folder", str(tmp_path / "books"),
         "--no-browser", "--", "--allow-root", f"--ServerApp.port={port}",
         f"--ServerApp.jpserver_extensions={others}"],
        stdout=log, stderr=log, env={**lab_environment, "HOME": str(tmp_path)},
        start_new_session=True,
    )
    try:
        assert any(_listens(port, server) for _ in range(1200)), (tmp_path / "log").read_text()
        # Bound to every address it would answer here, too.
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=1):
            pass
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def _listens(port, server):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        if server.poll() is not None:
            raise
        time.sleep(0.05)
        return False
