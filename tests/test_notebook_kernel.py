"""Runs in a real kernel: cells that are run twice, that block, that are interrupted."""

import os
import time
from dataclasses import dataclass, field
from queue import Empty

import pytest
from jupyter_client.manager import KernelManager

DEADLINE_S = 50
PLAIN = ["--InteractiveShell.colors=NoColor", "--HistoryManager.enabled=False"]

SETUP = """
import asyncio, time
import iotsim
from iotsim import Fleet
fleet = Fleet("plant", seed=1).add("pump", count=20, every="50ms").publish_to("memory:kernel")
"""


@dataclass
class Shown:
    """What a cell has shown."""

    text: str = ""
    data: list = field(default_factory=list)
    error: str = ""
    traceback: str = ""


class Notebook:
    """A kernel of its own, and its cells."""

    def __init__(self, folder):
        self.manager = KernelManager()
        self.manager.start_kernel(extra_arguments=PLAIN, cwd=str(folder),
                                  env={**os.environ, "IPYTHONDIR": str(folder)})
        self.client = self.manager.client()
        self.client.start_channels()
        self.updates = {}

    def ready(self):
        self.client.wait_for_ready(timeout=DEADLINE_S)
        self.cell(SETUP)

    def cell(self, code, interrupt_at=None, raises=""):
        """Run a cell to its end; interrupt it when it has printed something."""
        mine, shown, limit_s = self.client.execute(code), Shown(), time.monotonic() + DEADLINE_S
        while time.monotonic() < limit_s:
            try:
                message = self.client.get_iopub_msg(timeout=0.5)
            except Empty:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "update_display_data":
                self.updates[content["transient"]["display_id"]] = content["data"]
            if message["parent_header"].get("msg_id") != mine:
                continue
            if kind == "status" and content["execution_state"] == "idle":
                assert shown.error == raises, shown.traceback
                return shown
            self.take(shown, kind, content)
            if interrupt_at is not None and interrupt_at in shown.text:
                interrupt_at = None
                self.manager.interrupt_kernel()
        raise AssertionError(f"the cell did not end: {shown}")

    def take(self, shown, kind, content):
        if kind == "stream":
            shown.text += content["text"]
        elif kind in ("display_data", "execute_result"):
            shown.data.append((content["data"], content.get("transient", {}).get("display_id")))
        elif kind == "error":
            shown.error, shown.traceback = content["ename"], "\n".join(content["traceback"])

    def value(self, expression):
        """Return what an expression is, as text."""
        return self.cell(f"print(({expression}))").text.strip()

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    notebook = Notebook(tmp_path_factory.mktemp("kernel"))
    try:
        notebook.ready()
        yield notebook
    finally:
        notebook.close()


@pytest.fixture
def notebook(started):
    yield started
    started.cell("await iotsim.runs().stop()")
    threads = "[one.name for one in __import__('threading').enumerate() if 'iotsim' in one.name]"
    started.cell(f"while {threads}: await asyncio.sleep(0.01)")


def test_the_magic_is_loaded_once_and_goes_again(notebook):
    assert notebook.cell("%load_ext iotsim").text == ""
    assert "already loaded" in notebook.cell("%load_ext iotsim").text
    notebook.cell("%reload_ext iotsim")
    shown = notebook.cell("%iotsim")
    assert len(shown.data) == 1
    assert len(shown.data[0][0]["text/plain"].splitlines()) == 2
    status = notebook.cell("run = fleet.start()\nawait run.ready()\n%iotsim status").data[0][0]
    assert status["text/plain"].startswith("<Runs: 'plant' running 00:00:0")
    assert "ipykernel " in status["text/plain"]
    assert "<td style='text-align:left'>plant</td>" in status["text/html"]
    assert "no command of %iotsim called 'sing'" in notebook.cell("%iotsim sing").text
    notebook.cell("%unload_ext iotsim")
    assert "`%iotsim` not found" in notebook.cell("%iotsim").text
    notebook.cell("%load_ext iotsim")
    assert notebook.cell("%iotsim").data


def test_stop_returns_at_once_and_its_line_is_renewed_when_all_have_ended(notebook):
    notebook.cell("%reload_ext iotsim")
    notebook.cell("run = fleet.start()\napart = Fleet('apart', seed=1).add('pump').start("
                  "thread=True)\nawait run.ready()\nawait apart.ready()")
    data, display_id = notebook.cell("%iotsim stop").data[0]
    assert data["text/plain"].startswith("'plant' is ending; 'apart' ")
    notebook.cell("await run.wait(); await apart.wait(); await asyncio.sleep(0.1)")
    for _ in range(100):
        if display_id in notebook.updates:
            break
        notebook.cell("await asyncio.sleep(0.05)")
    assert notebook.updates[display_id]["text/plain"] == "'plant' has ended; 'apart' has ended"


@pytest.mark.parametrize("thread", [False, True])
def test_a_cell_that_is_run_twice_doubles_nothing(notebook, thread):
    start = f"run = fleet.start(thread={thread})\nawait run.ready()\nprint(id(run))"
    first = notebook.cell(start).text
    assert notebook.cell(start).text == first
    assert notebook.value("len(iotsim.runs()), run.state") == "(1, 'running')"
    tasks = ("sum(task.get_name() == 'iotsim run plant' for task in asyncio.all_tasks(run.loop))")
    assert notebook.value(tasks) == "1"
    digest = notebook.value("(result := await run.stop()).digest")
    again = "fleet.generate(result.duration, start=result.start, progress=False).digest"
    assert notebook.value(again) == digest


def test_a_cell_that_blocks_is_noticed_and_holds_up_no_run_on_its_own_loop(notebook):
    notebook.cell("run = fleet.start()\nawait run.ready()\nawait asyncio.sleep(0.1)")
    blocked = ("before = run.snapshot().readings; time.sleep(1.5); "
               "print(run.snapshot().readings - before)")
    assert notebook.cell(blocked).text == "0\n"
    notebook.cell("while 'blocked' not in run.snapshot().quality: await asyncio.sleep(0.05)")
    late, lag_s = eval(notebook.value("(run.snapshot().late, run.snapshot().loop_lag_max_s)"))
    assert late > 300  # 20 devices, each 50 ms, for 1.5 s less 100 ms: 560
    assert lag_s > 1
    assert "late" in notebook.value("run")
    quality = notebook.value("(await run.stop()).quality")
    assert quality.startswith("the simulator was the bottleneck from 00:00")
    assert "the event loop was blocked for up to" in quality

    notebook.cell("run = fleet.start(thread=True)\nawait run.ready()\nawait asyncio.sleep(0.1)")
    assert int(notebook.cell(blocked).text) > 300
    assert int(notebook.value("run.snapshot().late")) < late


@pytest.mark.parametrize("awaited", ["fleet.run('10m')", "fleet.start().wait()",
                                     "fleet.start(thread=True).wait()"])
def test_an_interrupt_ends_the_run_that_a_cell_awaits_and_its_result_can_be_had(notebook, awaited):
    cell = ("asyncio.get_running_loop().call_later(0.3, print, 'live')\n"
            f"await {awaited}")
    shown = notebook.cell(cell, interrupt_at="live", raises="CancelledError")
    told = "iotsim: run 'plant' was interrupted, and stopped at 00:00:0"
    assert told in shown.traceback
    assert "(await iotsim.runs(ended=True).stop())[0]" in shown.traceback
    assert notebook.value("iotsim.runs()") == "<Runs: none>"
    notebook.cell("result = (await iotsim.runs(ended=True).stop())[0]\n"
                  "assert result.errors == (), result.errors\n"
                  "ledger = result.publishers['memory:kernel']\n"
                  "assert ledger.acknowledged == result.rows > 0, ledger\n"
                  "assert len(result.frame()) == result.rows\n"
                  "again = fleet.generate(result.duration, start=result.start, progress=False)\n"
                  "assert again.digest == result.digest")


def test_a_run_that_nobody_awaits_is_not_interrupted(notebook):
    notebook.cell("run = fleet.start()\nawait run.ready()")
    notebook.cell("print('asleep'); time.sleep(20)", interrupt_at="asleep",
                  raises="KeyboardInterrupt")
    notebook.cell("print('waiting'); await asyncio.sleep(20)", interrupt_at="waiting",
                  raises="CancelledError")
    assert notebook.value("run.state") == "running"
