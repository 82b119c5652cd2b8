"""`run.dashboard()` without a browser, and what `iotsim dashboard` is asked for."""

import asyncio
import json
import socket
import subprocess
import sys
import threading

import pytest

from iotsim import Fleet
from iotsim.cli import main
from iotsim.dashboard import VARIABLE, Asked, asked, started
from iotsim.dashboard.command import _book, page_of
from iotsim.engine.simulation import Simulation
from iotsim.errors import BadValue, IotsimError
from iotsim.panels import run_panel
from iotsim.panels.dashboard import Dashboard
from iotsim.panels.dashboard_alerts import ALERTS_MAX, FRESH_S, Alerts, Sign
from iotsim.panels.dashboard_table import ROWS_HELD, ROWS_SHOWN, Telemetry
from tests.fleets import START_US
from tests.live import until
from tests.panel_rig import Stage, plant
from tests.panel_rig import wires as wires


def live(work, fleet=None, *, speed=20, **options):
    """Run a fleet, have its dashboard, do something with the two; everything ends with it."""
    async def main():
        run = (plant() if fleet is None else fleet).start(speed=speed, **options)
        await run.ready()
        stage = Stage(run, run.dashboard())
        stage.panel.rate_hz = 10
        try:
            return await work(stage)
        finally:
            await run.stop()
            stage.panel.close()

    try:
        return asyncio.run(main())
    finally:
        run_panel._ENDED.clear()


def rows_of(stage):
    return stage.wire.state["table"]["rows"]


# -- the panel ------------------------------------------------------------------------------------


def test_there_is_one_dashboard_of_a_run_and_it_shares_the_panels_instruments(wires):
    async def work(stage):
        assert stage.run.dashboard() is stage.panel
        panel = stage.run.panel()
        assert panel is not stage.panel
        await until(lambda: panel.scope is not None)
        assert panel.scope is stage.panel.scope
        assert len(stage.run.works.viewers) == 2  # the instruments, and the table
        panel.close()

    live(work)


def test_everything_is_done_on_the_loop_of_the_run_whatever_thread_asks(wires, monkeypatch):
    seen = {}
    for name in [name for name in vars(Dashboard) if name.startswith("do_")]:
        real = getattr(Dashboard, name)

        def handler(panel, message, name=name, real=real):
            seen[name] = threading.get_ident()
            return real(panel, message)

        monkeypatch.setattr(Dashboard, name, handler)

    async def work(stage):
        await stage.ask(do="seen", tab="telemetry")
        await stage.ask(do="table", type="pump", ids="", text="")
        await stage.ask(do="table_pause", paused=True)
        await stage.ask(do="table_clear")
        assert set(seen) == {"do_seen", "do_table", "do_table_pause", "do_table_clear"}
        assert set(seen.values()) == {threading.get_ident()}
        assert {thread for _, _, thread in stage.wire.sent} == {threading.get_ident()}

    live(work)


def test_the_fleet_is_counted_by_state_and_by_type_and_the_runtime_is_there(wires):
    async def work(stage):
        await until(lambda: stage.facts["fleet"]["states"]["fine"] == 50)
        assert [(one["type"], sum(one["states"])) for one in stage.facts["fleet"]["types"]] == [
            ("temperature_sensor", 40), ("pump", 10)]
        said = await stage.said(do="add", profile="smart_meter", count="5", labels="site=east")
        assert not said["wrong"]
        await stage.said(do="stop_devices", where="device_type=pump")
        await until(lambda: stage.facts["fleet"]["states"]["stopped"] == 10)
        assert stage.facts["devices"] == 45
        assert "smart_meter" in [one["type"] for one in stage.facts["fleet"]["types"]]
        runtime = stage.facts["runtime"]
        assert runtime["memory"] > 10e6
        assert runtime["up"] > 0
        assert runtime["seed"] == 42

    live(work)


def test_the_table_goes_out_only_while_a_page_shows_it(wires):
    async def work(stage):
        await stage.ticks(3)
        assert stage.wire.state.get("table") in (None, {})
        await stage.ask(do="seen", tab="telemetry")
        await until(lambda: rows_of(stage))
        del stage.wire.sent[:]
        await stage.ticks(5)
        assert all(len(keys) <= 5 for _, keys, _ in stage.wire.sent)
        assert any("table" in keys for _, keys, _ in stage.wire.sent)
        stage.panel._watched_s.clear()  # the page is at another part, and says so no more
        await stage.ticks(1)
        del stage.wire.sent[:]
        await stage.ticks(3)
        assert not any("table" in keys for _, keys, _ in stage.wire.sent)

    live(work, plant(north=4, south=2))


def test_what_is_broken_is_an_alert_with_its_time_until_it_is_well_again(wires):
    async def work(stage):
        await until(lambda: stage.facts["fleet"]["states"]["fine"] == 50)
        await stage.said(do="inject", where="site=south", fault="disconnect", duration="")
        await until(lambda: any("silent" in one["text"] for one in stage.facts["alerts"]))
        [alert] = [one for one in stage.facts["alerts"] if "silent" in one["text"]]
        assert alert["text"].startswith("10 pump devices are silent: pump-0000, pump-0001, ")
        assert alert["active"]
        assert 0 < alert["first"] <= alert["last"]
        await stage.said(do="clear", where="all")
        await until(lambda: not any(one["active"] and "silent" in one["text"]
                                    for one in stage.facts["alerts"]))

    live(work)


def test_a_device_that_fails_is_an_alert(wires):
    async def breaks(dev):
        await dev.sleep()
        raise ValueError("a wire is loose")

    async def work(stage):
        await until(lambda: stage.facts["alerts"])
        [alert] = stage.facts["alerts"]
        assert alert["level"] == "error"
        assert alert["count"] == 3
        assert "a wire is loose" in alert["text"]

    live(work, Fleet("plant", seed=1).add("pump").add(breaks, count=3, every="1s"))


def test_a_dashboard_without_a_page_is_a_table_that_is_escaped(wires):
    async def work(stage):
        await until(lambda: stage.facts["telemetry"]["seen"])
        text = stage.panel.still()
        assert "<i" not in text
        assert "&lt;i1" in text
        assert "<script" not in text
        for part in ("Fleet", "Telemetry", "devices"):
            assert part in text
        bundle = stage.panel._repr_mimebundle_()
        assert "Telemetry" in bundle["text/html"]
        assert bundle["text/plain"].startswith("<Dashboard of <Run 'plant'")

    live(work, Fleet("plant", seed=1).add("pump", count=2, id="<i{index}"))


def test_after_the_end_the_last_readings_can_still_be_looked_through(wires):
    async def work(stage):
        await stage.ask(do="seen", tab="telemetry")
        await until(lambda: stage.panel.telemetry.seen >= 100)
        await stage.run.stop()
        await until(lambda: stage.facts["state"] == "stopped")
        assert stage.run.works.viewers == []
        await stage.ask(do="table", type="", ids="pump-0003", text="")
        assert rows_of(stage)
        assert {row[1] for row in rows_of(stage)} == {"pump-0003"}

    live(work)


# -- the table ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces():
    """Two minutes of sixty devices, in pieces of a second."""
    fleet = (Fleet("plant", seed=3)
             .add("temperature_sensor", count=40, labels={"site": "north"})
             .add("pump", count=20, labels={"site": "south"}))
    simulation = Simulation(fleet.members, fleet.seed, START_US)
    chunks = [chunk for second in range(1, 121)
              for chunk in simulation.advance(START_US + second * 1_000_000)]
    yield simulation, chunks
    simulation.close()


def table_of(pieces, **wanted):
    simulation, chunks = pieces
    telemetry = Telemetry(simulation)
    if wanted:
        telemetry.filter(*(wanted.get(name, "") for name in ("device_type", "ids", "text")))
    for chunk in chunks:
        telemetry.took(chunk)
    return telemetry


def test_the_table_has_the_newest_rows_and_no_more_than_five_hundred(pieces):
    telemetry = table_of(pieces)
    table = telemetry.table()
    assert len(table["rows"]) == ROWS_SHOWN < telemetry.seen
    times = [row[0] for row in table["rows"]]
    assert times == sorted(times)
    newest = max(int(chunk.time_us.max()) for chunk in pieces[1])
    assert times[-1].startswith("2026-01-01T00:01:5"), (times[-1], newest)
    when, name, kind, values, faults = table["rows"][-1]
    assert when.endswith("Z")
    assert name.startswith(kind)
    assert values
    assert faults == ""


@pytest.mark.parametrize(("wanted", "meant"), [
    ({"device_type": "pump"}, lambda row: row[2] == "pump"),
    ({"ids": "pump-0001, temperature_sensor-0002"},
     lambda row: row[1] in ("pump-0001", "temperature_sensor-0002")),
    ({"ids": "pump-001*"}, lambda row: row[1].startswith("pump-001")),
    ({"text": "NORTH"}, lambda row: row[2] == "temperature_sensor"),
    ({"text": "running"}, lambda row: "running" in row[3]),
    ({"device_type": "pump", "text": "north"}, lambda row: False),
    ({"ids": "nobody"}, lambda row: False),
    ({"ids": "[", "text": "*"}, lambda row: False),
])
def test_filters_leave_the_newest_rows_that_are_meant(pieces, wanted, meant):
    everything = table_of(pieces)
    told = [row for chunk in pieces[1] for row in everything._told(chunk)]
    expected = sorted(row for row in told if meant(row))[-ROWS_SHOWN:]
    found = table_of(pieces, **wanted).table()["rows"]
    assert sorted(found) == expected


def test_rows_keep_their_numbers_from_look_to_look(pieces):
    simulation, chunks = pieces
    telemetry, known = Telemetry(simulation), {}
    for start in range(0, len(chunks), 7):
        for chunk in chunks[start : start + 7]:
            telemetry.took(chunk)
        table = telemetry.table()
        for number, row in enumerate(table["rows"], table["first"]):
            assert known.setdefault(number, row) == row
    assert telemetry.missed == 0
    assert len(known) == telemetry.seen


def test_a_table_that_is_held_stands_still_and_goes_on_later(pieces):
    simulation, chunks = pieces
    telemetry = Telemetry(simulation)
    for chunk in chunks[: len(chunks) // 2]:
        telemetry.took(chunk)
    before = telemetry.table()
    telemetry.paused = True
    for chunk in chunks[len(chunks) // 2 :]:
        telemetry.took(chunk)
    assert telemetry.table() == before
    telemetry.filter("pump", "", "")
    assert {row[2] for row in telemetry.table()["rows"]} == {"pump"}
    telemetry.paused = False
    telemetry.filter("", "", "")
    assert telemetry.table()["rows"][-1][0] > before["rows"][-1][0]
    telemetry.clear()
    assert telemetry.table()["rows"] == []


def test_what_goes_by_unseen_is_counted_and_what_is_held_is_bounded(pieces, monkeypatch):
    monkeypatch.setattr("iotsim.panels.dashboard_table.ROWS_HELD", 100)
    simulation, chunks = pieces
    telemetry = table_of(pieces)
    assert sum(len(piece) for _, piece in telemetry._pieces) <= 100
    assert telemetry.missed == telemetry.seen - sum(len(piece) for _, piece in telemetry._pieces)
    resting = Telemetry(simulation)
    resting.rest()
    for chunk in chunks:
        resting.took(chunk)
    assert resting.missed == 0
    assert resting.table()["rows"]
    assert ROWS_HELD > ROWS_SHOWN


# -- alerts ---------------------------------------------------------------------------------------


def test_an_alert_that_comes_back_is_the_same_and_is_counted():
    alerts, silent = Alerts(), Sign("silent pump", "warning", "3 pumps are silent")
    assert alerts.look([silent], 10, 0)[0]["count"] == 1
    assert alerts.look([silent], 11, 1)[0]["count"] == 1
    assert not alerts.look([], 12, 2)[0]["active"]
    [again] = alerts.look([silent], 20, 3)
    assert (again["count"], again["first"], again["last"], again["active"]) == (2, 10, 20, True)


def test_an_alert_with_a_total_is_active_while_it_grows():
    alerts = Alerts()

    def dropped(total, now_s):
        return alerts.look([Sign("d", "error", "messages dropped", total)], now_s, now_s)[0]

    assert dropped(5, 0)["count"] == 5
    assert dropped(5, FRESH_S / 2)["active"]
    assert not dropped(5, FRESH_S)["active"]
    assert dropped(9, FRESH_S + 1) == {
        "level": "error", "text": "messages dropped", "first": 0, "last": FRESH_S + 1, "count": 9,
        "active": True}


def test_alerts_are_bounded_and_what_there_is_no_room_for_is_counted():
    alerts = Alerts()
    signs = [Sign(f"{n}", "error", f"error {n}") for n in range(ALERTS_MAX + 7)]
    assert len(alerts.look(signs, 1, 1)) == ALERTS_MAX
    assert alerts.hidden == 7
    assert len(alerts.look(signs, 2, 2)) == ALERTS_MAX
    assert alerts.hidden == 7
    fresh = alerts.look([Sign("new", "error", "a new one")], 3, 3)
    assert len(fresh) == ALERTS_MAX, "the oldest that is over makes room"
    assert fresh[0]["text"] == "a new one"


# -- what the command is asked for ----------------------------------------------------------------


def test_the_page_is_the_notebooks_code_in_one_cell_that_ends_with_the_dashboard():
    page = page_of(_book())
    [cell] = page["cells"]
    assert cell["source"].splitlines()[-1] == "board"
    assert "started(fleet" in cell["source"]
    assert "assert" not in cell["source"]
    assert "inject" not in cell["source"]
    compile(cell["source"], "page", "exec", flags=0x2000)  # with await at its top


def test_what_is_asked_for_reaches_the_notebook_through_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fleet = Fleet("mine", seed=1).add("pump")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert asked() == Asked()
    assert asked().plan(fleet) is fleet
    wanted = Asked(profile="pump", devices=7, publish="memory:x", speed=60.0, folder=str(tmp_path))
    monkeypatch.setenv(VARIABLE, wanted.text())
    assert asked() == wanted

    async def main():
        run = await started(fleet, speed=5).ready()
        assert (len(run.fleet), run.snapshot().speed) == (7, 60.0)
        assert [outlet.url for outlet in run.fleet.outlets] == ["memory:x"]
        await run.stop()

    asyncio.run(main())
    monkeypatch.setenv(VARIABLE, Asked(scenario="brownout").text())
    assert asked().plan(fleet).name == "brownout"
    monkeypatch.setenv(VARIABLE, '["mqtt://ann:s3cret@localhost"]')
    with pytest.raises(BadValue, match="is not what iotsim dashboard writes there") as told:
        asked()
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize(("given", "text"), [
    ({"profile": "pump", "scenario": "chaos"}, "cannot go with a scenario"),
    ({"devices": 5}, "needs a profile"),
    ({"profile": "pump", "devices": 0}, "count=0"),
    ({"speed": -1}, "speed=-1"),
    ({"profile": "pmup"}, "Did you mean 'pump'"),
    ({"scenario": "nothing.py"}, "nothing.py"),
    ({"publish": "ftp://x"}, "ftp"),
])
def test_what_cannot_be_is_said_before_anything_is_served(given, text):
    with pytest.raises(IotsimError, match=text):
        Asked(**given).plan(Fleet("d").add("pump"))


def test_everything_that_goes_to_the_page_is_json():
    async def main():
        run = plant().start(speed=20)
        await run.ready()
        panel = run.dashboard()
        panel.hear({"do": "seen", "tab": "telemetry"})
        await until(lambda: panel.table.get("rows"))
        json.dumps([panel.facts, panel.table], allow_nan=False)
        assert len(json.dumps(panel.table)) < 400 * ROWS_SHOWN
        await run.stop()
        panel.close()

    asyncio.run(main())
    run_panel._ENDED.clear()




def command(*arguments, before=""):
    code = (f"import sys; {before}; from iotsim.cli import main; "
            f"sys.exit(main({['dashboard', '--no-browser', *arguments]!r}))")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          timeout=50, check=False)


def test_without_voila_one_line_says_how_to_install_it():
    done = command(before="sys.modules['voila'] = None")
    assert done.returncode == 1
    assert done.stderr == ("iotsim: iotsim dashboard needs voila. Install it with: "
                           'pip install "iotsim[dashboard]"\n')
    assert done.stdout == ""


def test_a_port_that_is_taken_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("iotsim.cli._end_gracefully_when_told", lambda: None)
    pytest.importorskip("voila")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["dashboard", "--no-browser", "--port", port]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"iotsim: port={port} cannot be used (")
    assert said.count("\n") == 1
    assert main(["dashboard", "--profile", "pmup"]) == 1
    assert main(["dashboard", "--devices", "5"]) == 1
    assert main(["dashboard", "--speed", "fast"]) == 1
    assert capsys.readouterr().err.count("\n") == 3


def test_a_page_gets_room_from_one_that_is_gone_and_from_no_other(monkeypatch):
    pytest.importorskip("jupyter_server")
    sys.modules.setdefault("rfc3987_syntax", None)  # a grammar that takes seconds to read
    from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
    from tornado.web import HTTPError

    from iotsim.dashboard import pages

    async def start_kernel(self, name, **_options):
        self._kernels[name], self._kernel_connections[name] = object(), 0
        return name

    async def shutdown_kernel(self, name, now=False):
        del self._kernels[name], self._kernel_connections[name]

    monkeypatch.setattr(AsyncMappingKernelManager, "start_kernel", start_kernel)
    monkeypatch.setattr(AsyncMappingKernelManager, "shutdown_kernel", shutdown_kernel)
    monkeypatch.setattr(pages, "ROOM_S", 0.1)
    monkeypatch.setattr(pages, "LOOK_S", 0.01)

    async def main():
        kernels = pages.PageKernels(pages_max=2)
        for name in "ab":
            assert await kernels.start_kernel(name) == name
        kernels.notify_connect("a")  # b's page is still loading
        with pytest.raises(HTTPError, match="this dashboard has 2 open already"):
            await kernels.start_kernel("c")
        kernels.notify_disconnect("a")
        assert await kernels.start_kernel("c") == "c"
        assert kernels.list_kernel_ids() == ["b", "c"]
        kernels.notify_connect("c")
        kernels.notify_disconnect("c")
        kernels.notify_connect("c")  # it was away for a moment
        assert set(kernels._ends) == {"b"}
        monkeypatch.setattr(pages, "GONE_S", 0.01)
        kernels.notify_disconnect("c")
        await until(lambda: kernels.list_kernel_ids() == ["b"])
        for timer in kernels._ends.values():
            timer.cancel()

    asyncio.run(main())
