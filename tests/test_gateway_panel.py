"""`GatewayRun.panel()` and `lab.panel()` without a browser: tables, and what is done to one."""

import asyncio
import json

import pytest

from iotsim.errors import IotsimError
from iotsim.panels import run_panel
from iotsim.panels.gateway_panel import FORMS, GatewayPanel
from iotsim.panels.gateway_table import ROWS_SHOWN, Book
from iotsim.panels.lab_panel import LabPanel
from tests.gateway_life_rig import Site, row, sees
from tests.live import until
from tests.panel_rig import Stage
from tests.panel_rig import wires as wires
from tests.servers.notip import notip_lab  # noqa: F401


@pytest.fixture(scope="module")
def site(notip_lab, tmp_path_factory):  # noqa: F811
    return Site(notip_lab, tmp_path_factory.mktemp("panel"))


def page(stage):
    return stage.wire.state["gateways"]


def cells(stage, name):
    found = page(stage)
    [row] = [row for row in found["rows"] if row[0] == name]
    return dict(zip(found["columns"], row, strict=True))


async def do(stage, form, gateway="gw-1", **given):
    said = await stage.said(do="gateway", form=form, gateway=gateway, given=given)
    return said["text"], said["wrong"]


async def shows(stage, name, **facts):
    await until(lambda: all(cells(stage, name)[key] == value for key, value in facts.items()))


@pytest.mark.broker
def test_a_panel_of_gateways_shows_them_and_does_what_it_is_asked(site, wires):
    async def main():
        async with site.running(site.gateway(), alone=False) as run:
            stage = Stage(run, run.panel())
            assert isinstance(stage.panel, GatewayPanel)
            assert run.panel() is stage.panel
            await until(lambda: int(cells(stage, "gw-2")["readings"]) > 5)
            assert cells(stage, "gw-2") | {"readings": "", "queued": ""} == {
                "gateway": "gw-2", "state": "running", "status": "online", "connected": "yes",
                "sensors": "1", "every ms": "50", "readings": "", "queued": "",
                "last command": "", "trouble": ""}

            answer = await site.command(row(run, "gw-2").gateway_id, send_frequency_ms=40)
            assert answer.status == "ack"
            await shows(stage, "gw-2", **{"last command": "config_update ack", "every ms": "40"})
            assert page(stage)["said"][0][1:4] == ["gw-2", "config_update", "ack"]

            text, wrong = await do(stage, "attach", type="humidity", name="inside")
            assert not wrong, text
            await shows(stage, "gw-1", sensors="2")
            await stage.ask(do="gateways", chosen="gw-1")
            assert page(stage)["sensors"] == ["temperature", "inside"]
            for form, given in (
                ("pause", {}), ("resume", {}), ("frequency", {"every": "60ms"}),
                ("outlier", {"sensor": "temperature", "value": "99"}),
                ("degrade", {"duration": "1s", "loss": "0.5", "latency_ms": "5"}),
                ("disconnect", {"duration": "10ms"}), ("detach", {"sensor": "inside"}),
            ):
                text, wrong = await do(stage, form, **given)
                assert not wrong, (form, text)
            verbs = [action.verb for action in run.actions]
            assert verbs.count("inject") == 5
            assert verbs.count("clear") == 1
            await shows(stage, "gw-1", **{"every ms": "60", "sensors": "1"})

            assert await do(stage, "stop") == ("gateway gw-1 is stopped", False)
            await shows(stage, "gw-1", state="stopped", connected="no")
            assert await do(stage, "start") == ("gateway gw-1 goes on", False)
            await sees(run, "gw-1", connected=True)
            assert await do(stage, "delete", "gw-2") == ("gateway gw-2 is deleted", False)
            await shows(stage, "gw-2", state="deleted", connected="no")

            text, wrong = await do(stage, "stop", "gw-9")
            assert wrong
            assert "no gateway called 'gw-9'" in text
            await stage.ask(do="gateways", text="DELETED")
            assert [row[0] for row in page(stage)["rows"]] == ["gw-2"]
            assert (page(stage)["matching"], page(stage)["count"]) == (1, 2)
            assert "gw-2" in stage.panel.still()
            json.dumps(page(stage), allow_nan=False)
        await until(lambda: stage.facts["state"] == "stopped")
        stage.panel.close()

    try:
        asyncio.run(main())
    finally:
        run_panel._ENDED.clear()


@pytest.mark.broker
def test_the_platforms_people_command_gateways_from_another_thread(site, wires):
    async def main():
        lab = site.lab
        async with site.running(site.gateway("lab-{n}"), alone=False) as run:
            # The lab lives on another thread; what is clicked comes on this one.
            panel = await site.at(made(lab))
            assert isinstance(panel, LabPanel)

            def told():
                return panel.facts.get("said", {}).get("text", "")


            def of(name):
                found = panel.gateways
                [row] = [row for row in found["rows"] if row[0] == name]
                return dict(zip(found["columns"], row, strict=True))

            name = run.crew.records["lab-1"].factory_id
            assert of(name)["provisioned"] == "yes"
            panel._arrived(panel, {"do": "gateway", "form": "frequency", "gateway": name,
                                   "given": {"send_frequency_ms": "70"}}, [])
            await until(lambda: f"gateway {name} says ack" in told())
            await until(lambda: of(name)["every ms"] == "70")
            assert row(run, "lab-1").send_frequency_ms == 70
            assert panel.gateways["said"][0][1:3] == [name, "ack"]
            panel._arrived(panel, {"do": "gateway", "form": "firmware", "gateway": name,
                                   "given": {"version": "3.1.4"}}, [])
            await until(lambda: of(name)["firmware"] == "3.1.4")
            panel._arrived(panel, {"do": "gateway", "form": "decommission", "gateway": name}, [])
            await until(lambda: of(name)["ended"] == "decommissioned")
            await sees(run, "lab-1", state="decommissioned")
            panel._arrived(panel, {"do": "gateway", "form": "status", "gateway": "nobody",
                                   "given": {"status": "paused"}}, [])
            await until(lambda: panel.facts["said"]["wrong"])
            assert "nobody" in told()
            assert name in panel.still()
            await site.at(closed(panel))

    async def made(lab):
        return lab.panel()

    async def closed(panel):
        panel.close()

    asyncio.run(main())


def test_a_page_of_gateways_is_bounded_and_filtered():
    book = Book()
    rows = [[f"gw-{n}", "stopped" if n % 7 == 0 else "running", "x" * 999] for n in range(2000)]
    page = book.page(["gateway", "state", "trouble"], rows, lambda name: [name], ["a"], [])
    assert len(page["rows"]) == ROWS_SHOWN
    assert (page["count"], page["matching"], page["chosen"]) == (2000, 2000, "gw-0")
    assert page["sensors"] == ["gw-0"]
    assert max(len(cell) for row in page["rows"] for cell in row) == 200
    book.ask({"text": " STOPPED ", "chosen": "gw-7"})
    page = book.page(["gateway", "state", "trouble"], rows, lambda name: [], ["a"], [])
    assert (page["matching"], page["chosen"]) == (286, "gw-7")


def test_forms_give_values_and_refuse_what_they_do_not_know():
    book = Book()
    given = book.given({"form": "degrade", "gateway": "gw-1", "given": {
        "duration": "30s", "loss": "0.5", "duplicate": " ", "else": "1"}}, FORMS)
    assert given == {"duration": "30s", "loss": 0.5}
    for message, text in (({"form": "explode", "gateway": "gw-1"}, "no command called 'explode'"),
                          ({"form": "stop", "gateway": ""}, "Choose one in the table"),
                          ({}, "no command called None")):
        with pytest.raises(IotsimError, match=text):
            book.given(message, FORMS)
