"""The line magic, without a kernel; with one it is in test_notebook_kernel.py."""

import asyncio
import sys

import pytest
from IPython.core.error import UsageError

import iotsim
from iotsim import magic
from tests.live import run, sensors, until


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    left = iotsim.runs()
    asyncio.run(left.stop())
    assert left == []


@pytest.fixture
def versions(monkeypatch):
    """What is installed, in words of the test."""
    found = {"ipython": "9.1", "ipykernel": "7.4.0", "jupyterlab": "4.6.6"}
    monkeypatch.setattr(magic, "_version", lambda name: found.get(name, ""))
    for name in ("ipympl", "nest_asyncio", "nest_asyncio2"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return found


def said(capsys, line):
    magic.iotsim(line)
    return capsys.readouterr().out.rstrip("\n").split("\n")


def test_alone_it_says_what_there_is(capsys):
    lines = said(capsys, "")
    assert len(lines) == 2
    assert [line.split()[:2] for line in lines] == [["%iotsim", "status"], ["%iotsim", "stop"]]


def test_an_unknown_word_is_one_clear_line():
    with pytest.raises(UsageError) as caught:
        magic.iotsim("stauts --now")
    assert str(caught.value) == ("no command of %iotsim called 'stauts --now'. "
                                 "Known: status, stop.")
    with pytest.raises(UsageError, match="Did you mean 'status'"):
        magic.iotsim("statu")


def test_the_status_is_the_runs_and_the_versions(capsys, versions):
    async def cell():
        live = sensors("a<b").start()
        await live.ready()
        live.pause()
        lines = said(capsys, " Status ")
        assert lines == [
            repr(iotsim.runs()),
            f"iotsim {iotsim.__version__}, Python {sys.version.split()[0]}, ipython 9.1, "
            "ipykernel 7.4.0, jupyterlab 4.6.6"]
        await live.stop()

    run(cell())
    assert said(capsys, "status")[0] == "<Runs: none>"


@pytest.mark.parametrize(("there", "loaded", "text"), [
    ({"ipykernel": "6.29.5"}, "", "ipykernel 6.29.5 is older than what iotsim is tested with: "
     "take 6.31 or later"),
    ({"jupyterlab": "3.6.1"}, "", "take 4.2 or later"),
    ({"anywidget": "0.8.0rc1"}, "", "take 0.9 or later"),
    ({}, "ipympl", "live canvases of matplotlib can crash this ipykernel"),
    ({}, "nest_asyncio2", "it can drop cells that are queued; write await instead"),
    ({"ipykernel": "6.31.0"}, "ipympl", ""),
    ({"ipykernel": "7.0.0"}, "", ""),
])
def test_what_is_known_to_be_troublesome_is_said(monkeypatch, capsys, versions, there, loaded,
                                                 text):
    versions.update(there)
    if loaded:
        monkeypatch.setitem(sys.modules, loaded, object())
    lines = said(capsys, "status")[2:]
    assert len(lines) == bool(text)
    assert all(text in line for line in lines)


def test_stop_asks_every_run_to_end_and_says_which(capsys):
    assert said(capsys, "stop") == ["no run is alive"]

    async def cell():
        here, apart = sensors("here").start(), sensors("apart").start(thread=True)
        assert said(capsys, "stop")[0].startswith("'here' is ending; 'apart' ")
        await until(lambda: here.ended and apart.ended)
        await until(lambda: not magic._UPDATES)
        assert capsys.readouterr().out == ""  # nothing prints later

    run(cell())


def test_what_is_shown_is_escaped():
    shown = magic._told(lambda: "'<b>' is ending")
    assert repr(shown) == "'<b>' is ending"
    assert "&lt;b&gt;" in shown._repr_html_()
