"""`iotsim scenario`: what it says, what it leaves, and its exit status."""

from xml.etree import ElementTree

import pytest

import iotsim
from iotsim import scenario_files
from iotsim.cli import main

GOOD = '''"""Half of them go."""
from iotsim import Fleet, Scenario

scenario = (Scenario("half", Fleet("half", seed=1).add("pump", count=4))
            .at("1m").log("now").stop("count=2").expect("devices == 2", "half are left")
            .expect("lost == 0").lasting("2m"))
'''


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "half.py"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(GOOD.replace("devices == 2", "devices == 3").replace("half\"", "bad\""))
    return path


def said(capsys, *arguments):
    status = main(["scenario", *map(str, arguments)])
    return status, capsys.readouterr()


def test_offline_it_says_the_log_the_checks_and_the_digest(good, capsys):
    status, told = said(capsys, "run", good, "--offline")
    assert status == 0
    lines = told.out.splitlines()
    assert lines[0] == ("<Scenario 'half': 4 steps over 2m on fleet 'half', 4 devices>, seed 1")
    assert lines[1] == "00:01:00 log now"
    assert lines[2].startswith("00:01:00 stop where=count=2")
    assert lines[3] == "00:01:00 ✓ half are left (devices=2)"
    assert lines[4].startswith("00:01:00 – lost == 0: not evaluated")
    assert lines[5] == "1 of 2 passed, 0 failed, 1 not evaluated"
    assert lines[6].startswith("180 readings, digest ")


def test_an_expectation_that_fails_is_exit_1(bad, capsys):
    status, told = said(capsys, "run", bad, "--offline")
    assert status == 1
    assert "00:01:00 ✗ half are left (devices=2)" in told.out


def test_a_script_that_raises_is_exit_1(tmp_path, capsys):
    path = tmp_path / "raises.py"
    path.write_text("async def run(ctx):\n    await ctx.spawn('pump')\n    await ctx.wait(1)\n"
                    "    raise ValueError('no')\n")
    status, told = said(capsys, "run", path, "--offline")
    assert status == 1
    assert f"error: scenario 'raises' failed at 00:00:01: ValueError: no ({path}:4)" in told.out


def test_live_gives_the_same_digest_and_knows_what_was_lost(good, capsys, tmp_path):
    saved = tmp_path / "half.iotsim"
    status, told = said(capsys, "run", good, "--speed", "max", "--publish", "memory:half-cli",
                        "--save", saved)
    assert status == 0, told
    assert "00:01:00 ✓ lost == 0 (lost=0)" in told.out
    assert f"saved {saved}" in told.out
    assert main(["verify", str(saved)]) == 0


def test_a_seed_is_another_seed(good, capsys):
    one = said(capsys, "run", good, "--offline", "--seed", "7")[1].out
    two = said(capsys, "run", good, "--offline", "--seed", "8")[1].out
    assert "seed 7" in one.splitlines()[0]
    assert one.splitlines()[-1] != two.splitlines()[-1]


def test_it_leaves_what_was_asked_for(bad, capsys, tmp_path):
    saved, table, report = (tmp_path / name for name in ("x.iotsim", "x.parquet", "x.xml"))
    status, told = said(capsys, "run", bad, "--offline", "--save", saved, "--to", table,
                        "--junit", report)
    assert status == 1
    assert f"saved {saved}\nreport {report}\n" in told.out
    assert ElementTree.parse(report).getroot().attrib["failures"] == "1"
    assert iotsim.verify(saved, against=table).ok


@pytest.mark.parametrize(("arguments", "error"), [
    (["none.py"], "none.py: there is no such file."),
    (["choas"], "no scenario called 'choas'."),
    (["GOOD", "--speed", "fast"], "speed='fast' is not a speed."),
    (["GOOD", "--speed", "0"], "speed=0.0 is out of range."),
    (["GOOD", "--offline", "--publish", "memory:x"], "publish='memory:x' needs a live run."),
    (["GOOD", "--offline", "--seed", "-1"], "seed=-1 is out of range."),
    (["GOOD", "--offline", "--junit", "x.txt"], "junit='x.txt' does not end in .xml."),
])
def test_what_cannot_be_is_one_line_and_exit_1(arguments, error, good, capsys):
    given = [str(good) if one == "GOOD" else one for one in arguments]
    status, told = said(capsys, "run", *given)
    assert status == 1
    assert told.err.startswith(f"iotsim: {error}")
    assert told.err.count("\n") == 1


def test_list_names_what_comes_with_iotsim(capsys, monkeypatch, tmp_path, good):
    monkeypatch.setattr(scenario_files, "_folder", lambda: tmp_path)
    assert said(capsys, "list") == (0, ("half  Half of them go.\n", ""))


def test_a_wrong_command_line_is_exit_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["scenario"])
    assert end.value.code == 2


@pytest.mark.parametrize(("more", "why"), [
    (["--publish", "mqtt://127.0.0.1:1"], "ConnectError: cannot publish to mqtt://127.0.0.1:1"),
    (["--offline", "--save", "nowhere/x.iotsim"], "BadValue: path="),
    (["--speed", "0"], "BadValue: speed=0.0 is out of range."),
])
def test_a_run_that_comes_to_no_result_leaves_a_report_too(more, why, good, capsys, tmp_path):
    report = tmp_path / "x.xml"
    status, told = said(capsys, "run", good, "--junit", report, *more)
    assert status == 1
    assert f"report {report}\n" in told.out
    suite = ElementTree.parse(report).getroot()
    assert [suite.attrib[name] for name in ("name", "tests", "errors")] == ["half", "1", "1"]
    message = next(suite.iter("error")).attrib["message"]
    assert message.startswith(why), message


def test_a_file_that_cannot_be_run_leaves_a_report_too(capsys, tmp_path):
    report = tmp_path / "x.xml"
    assert said(capsys, "run", tmp_path / "none.py", "--junit", report)[0] == 1
    error = next(ElementTree.parse(report).iter("error"))
    assert "there is no such file" in error.attrib["message"]


def test_a_script_that_raises_leaves_its_error_in_the_report(capsys, tmp_path):
    path, report = tmp_path / "raises.py", tmp_path / "x.xml"
    path.write_text("async def run(ctx):\n    await ctx.spawn('pump')\n    await ctx.wait(1)\n"
                    "    raise ValueError('no')\n")
    assert said(capsys, "run", path, "--offline", "--junit", report)[0] == 1
    assert ElementTree.parse(report).getroot().attrib["errors"] == "1"


def test_where_no_report_can_be_nothing_is_run(good, capsys, tmp_path):
    status, told = said(capsys, "run", good, "--offline", "--junit", tmp_path / "no" / "x.xml")
    assert status == 1
    assert told.out == ""
    assert "is in a folder that does not exist" in told.err
