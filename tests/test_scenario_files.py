"""Scenarios in files: run because they are named; errors with file and line; a report for CI."""

import asyncio
from functools import cache
from xml.etree import ElementTree

import pytest

from iotsim import Fleet, IotsimError, Scenario, scenario_files
from iotsim.junit import write
from tests.acting import Played

SCRIPT = '''"""One more pump.

More text.
"""
from iotsim import Fleet

fleet = Fleet("plant", seed=7).add("pump", count=2)


async def run(ctx):
    await ctx.spawn("pump")
    await ctx.wait("1m")
    await ctx.expect("devices == 3", "one more")
'''


def file_of(tmp_path, text, name="more.py"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_script_in_a_file_is_a_scenario_of_its_name(tmp_path):
    made = Scenario.load(file_of(tmp_path, SCRIPT))
    assert repr(made) == "<Scenario 'more': a script on fleet 'plant', 2 devices>"
    result = made.generate()
    assert [one.status for one in result.expectations] == ["passed"]


def test_a_scenario_in_a_file_is_that_scenario(tmp_path):
    text = ("from iotsim import Fleet, Scenario\n"
            "fleet = Fleet('f', seed=1).add('pump')\n"
            "scenario = Scenario('mine', fleet).at('1m').stop().lasting('2m')\n")
    made = Scenario.load(str(file_of(tmp_path, text)))
    assert made == Scenario("mine", Fleet("f", seed=1).add("pump")).at("1m").stop().lasting("2m")


def test_a_file_that_changes_is_read_again_and_nothing_is_left_beside_it(tmp_path):
    path = file_of(tmp_path, SCRIPT)
    assert len(Scenario.load(path).fleet) == 2
    file_of(tmp_path, SCRIPT.replace("count=2", "count=4"))
    assert len(Scenario.load(path).fleet) == 4
    assert [one.name for one in tmp_path.iterdir()] == ["more.py"]


def test_a_script_of_the_contract_runs_as_its_documents_show(tmp_path):
    # Waves whose ids go on, a log that is not awaited, and the names of the design document.
    text = ("from iotsim import DeviceIds, FaultType, LabelSelector\n"
            "async def run(ctx):\n"
            "    for wave in range(3):\n"
            "        ids = await ctx.spawn('temperature_sensor', count=2, labels={'site': 'n'})\n"
            "        ctx.log(f'wave {wave}')\n"
            "        await ctx.wait('10s')\n"
            "    await ctx.inject_fault(FaultType.DISCONNECT, DeviceIds(ids), duration='10s')\n"
            "    await ctx.inject_fault(FaultType.CLOCK_DRIFT, LabelSelector('site=n'),\n"
            "                           params={'drift_rate_ms_per_sec': 50})\n"
            "    status = await ctx.status()\n"
            "    assert status['total_devices'] == 6, status\n"
            "    await ctx.wait('10s')\n"
            "    await ctx.stop(device_type='temperature_sensor', graceful=True)\n")
    result = Scenario.load(file_of(tmp_path, text)).generate()
    assert not result.errors
    assert [action.verb for action in result.actions] == [
        *(["add", "log"] * 3), "inject", "inject", "stop"]


@pytest.mark.parametrize(("text", "said"), [
    ("", "it holds no scenario. Write `async def run(ctx)`, or `scenario = Scenario(...)`."),
    ("scenario = 5\n", "`scenario` is a int."),
    ("\ndef run(ctx):\n    pass\n", ":2: `run` is not a coroutine function."),
    ("run = 5\n", ":1: `run` is not a coroutine function."),
    ("async def run(ctx): pass\nfleet = 'plant'\n", "`fleet` is a str."),
    ("\n\nx = (\n", ":3: '(' was never closed."),
    ("a = 1\n1 / 0\n", ":2: ZeroDivisionError: division by zero"),
    ("def f():\n    raise ValueError('a\\nb')\nf()\n", ":2: ValueError: a b"),
    ("import sys\nsys.exit(3)\n", ":2: SystemExit: 3"),
    ("async def run(): pass\n", "does not take one argument"),
])
def test_a_file_that_is_no_scenario_says_where_and_why(tmp_path, text, said):
    path = file_of(tmp_path, text)
    with pytest.raises(IotsimError) as caught:
        Scenario.load(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(IotsimError, match="there is no such file"):
        Scenario.load(tmp_path / "none.py")
    with pytest.raises(IotsimError, match="no scenario called 'choas'"):
        Scenario.load("choas")
    with pytest.raises(IotsimError, match="is neither a name nor a path"):
        Scenario.load(5)


def test_a_raising_script_names_its_line(tmp_path):
    path = file_of(tmp_path, "async def run(ctx):\n    await ctx.wait('1s')\n    ctx.nothing()\n")
    played = Played(Scenario.load(path))
    assert f"({path}:3)" in str(played.error)


def test_shipped_scenarios_have_a_name_and_a_line(tmp_path, monkeypatch):
    file_of(tmp_path, SCRIPT, "more.py")
    file_of(tmp_path, "raise ValueError", "broken.py")
    file_of(tmp_path, "", "__init__.py")
    monkeypatch.setattr(scenario_files, "_folder", lambda: tmp_path)
    assert [(one.name, one.summary) for one in scenario_files.shipped()] == [
        ("broken", ""), ("more", "One more pump.")]
    assert Scenario.load("more").name == "more"


def expecting():
    return (Scenario("<s>", Fleet("f", seed=1).add("pump", count=2)).at("1m")
            .expect("devices == 2").expect("devices > 5", message="a \"lot\" & more")
            .expect("lost == 0").lasting("2m"))


def test_junit_has_a_case_for_every_expectation(tmp_path):
    path = write(tmp_path / "report.xml", "<s>\x07", expecting().generate())
    suite = ElementTree.parse(path).getroot()
    assert suite.attrib["name"] == "<s>?"
    assert [suite.attrib[name] for name in ("tests", "failures", "errors", "skipped")] == [
        "3", "1", "0", "1"]
    cases = suite.findall("testcase")
    assert [case.attrib["name"] for case in cases] == [
        "devices == 2", "a \"lot\" & more", "lost == 0"]
    assert [[part.tag for part in case] for case in cases] == [[], ["failure"], ["skipped"]]
    assert cases[1][0].text == "devices=2"
    assert {one.attrib["name"] for one in suite.iter("property")} == {"digest", "seed"}


def test_junit_wants_an_xml_file(tmp_path):
    with pytest.raises(IotsimError, match=r"does not end in \.xml"):
        write(tmp_path / "report.txt", "s", expecting().generate())


SHIPPED = ("brownout", "chaos", "clock_skew", "crying_baby", "night_and_day", "ramp_up",
           "reconnect_storm", "rolling_update")


@cache
def offline(name):
    """A shipped scenario's result; nobody changes it."""
    return Scenario.load(name).generate()


def test_the_shipped_scenarios_are_these():
    assert tuple(one.name for one in scenario_files.shipped()) == SHIPPED
    assert all(one.summary.endswith(".") for one in scenario_files.shipped())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_runs_and_what_it_expects_is_so(name):
    result = offline(name)
    assert not result.errors
    assert result.expectations
    assert [str(one) for one in result.expectations if one.status == "failed"] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_gives_the_same_bytes_from_its_log(name):
    result = offline(name)
    assert result.to_scenario().generate().digest == result.digest


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_is_the_same_live(name):
    made, begun = Scenario.load(name), offline(name).start
    live = asyncio.run(made.publish_to(f"memory:{name}").run(speed="max", start=begun))
    assert [str(error) for error in live.errors] == []
    assert live.digest == offline(name).digest
    assert [str(one) for one in live.expectations if one.status != "passed"] == []


def test_an_updated_device_says_its_new_version():
    frame = offline("rolling_update").frame(last="30s")
    assert set(frame["firmware"].astype(str)) == {"2.0.0"}
