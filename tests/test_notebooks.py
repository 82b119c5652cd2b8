"""Saved notebooks: whole, tidy, and showing what they give today when they are run."""

import ast
import copy
import os
import re
import sys
from pathlib import Path

import pytest

from tests.late import Late

# jsonschema would parse a grammar of URLs when nbformat imports it, for 2 s; nobody asks it.
sys.modules.setdefault("rfc3987_syntax", None)
tools, nbformat = Late("tests.notebook_tools"), Late("nbformat")
nursery = Late("tests.kernel_nursery")
SAVED = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.name for path in SAVED.glob("*.ipynb"))
# What a notebook starts itself listens on 127.0.0.1; nothing is ever sent to localhost.
BROKER = re.compile(r"\b(mqtts?|amqps?|https?|coaps?|nats\S*)://(?!127\.0\.0\.1|localhost\b)")
FOLDER = re.compile(r"(/tmp|/root|/home|/work|/var|[A-Z]:\\)[/\\]?\w")
DIGEST = re.compile(r"\b[0-9a-f]{12,64}\b")


@pytest.fixture(params=NAMES)
def path(request):
    return SAVED / request.param


@pytest.fixture
def notebook(path):
    return tools.read(path)


@pytest.fixture(scope="module")
def kernels():
    """Options for `executed`: kernels that have imported everything already, where one can fork."""
    if not hasattr(os, "fork"):
        yield {}
        return
    with nursery.Nursery() as started:
        yield {"kernel_manager_class": started.manager()}


def texts(notebook, *, steady=False):
    for cell in tools.code_cells(notebook):
        if steady and tools.varies(cell):
            continue
        for output in cell.outputs:
            data = output.get("data", {})
            yield output.get("text", "")
            yield from (data[kind] for kind in ("text/plain", "text/html") if kind in data)


def digests(notebook):
    return [found for text in texts(notebook, steady=True) for found in DIGEST.findall(text)]


def test_there_are_notebooks():
    assert [name.partition("_")[0] for name in NAMES[:-1]] == [f"{n:02}" for n in range(9)]
    assert NAMES[0] == "00_start_here.ipynb"
    assert NAMES[-1] == "dashboard.ipynb"


def test_it_is_saved_as_a_rerun_would_save_it(path, notebook):
    assert path.read_text(encoding="utf-8") == tools.text_of(tools.normalised(notebook))


def test_every_code_cell_was_run_in_order(notebook):
    counts = [cell.execution_count for cell in tools.code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    shown = [cell.id for cell in tools.code_cells(notebook) if cell.outputs]
    assert len(shown) >= len(counts) * 3 // 4, "most cells should show something"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_no_cell_failed_or_complained(notebook):
    bad = [
        cell.id
        for cell in tools.code_cells(notebook)
        if "raises-exception" not in cell.metadata.get("tags", ())
        for output in cell.outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert not bad, bad


def test_the_last_cell_asserts(notebook):
    last = list(tools.code_cells(notebook))[-1]
    assert any(isinstance(node, ast.Assert) for node in ast.parse(last.source).body)


def test_it_needs_no_broker_and_no_network(notebook):
    found = [cell.id for cell in tools.code_cells(notebook) if BROKER.search(cell.source)]
    assert not found, found


def test_it_shows_no_folder_of_the_machine_that_ran_it(notebook):
    found = [match.group() for text in texts(notebook) if (match := FOLDER.search(text))]
    assert not found, found


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_rerun_gives_the_digests_that_it_shows(notebook, kernels):
    assert digests(tools.executed(notebook, **kernels)) == digests(notebook)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_without_nats_server_gateways_are_described_and_the_rest_is_left_out(kernels):
    notebook = tools.read(SAVED / "06_notip_gateways.ipynb")
    nothing = "import shutil; shutil.which = lambda *_, **__: None"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(nothing))
    cells = list(tools.code_cells(tools.executed(notebook, **kernels)))[1:]
    (said,) = (n for n, cell in enumerate(cells) if "platform = await" in cell.source)
    assert cells[said].outputs[0].text.startswith("program='nats-server' is not installed")
    assert all(cell.outputs for cell in cells[:said])
    left_out = cells[said + 1 :]
    assert not any(cell.outputs for cell in left_out), "they need a platform"


def test_a_rerun_of_a_live_cell_leaves_what_was_saved_if_all_else_is_the_same(notebook):
    fresh = copy.deepcopy(notebook)
    for cell in filter(tools.varies, tools.code_cells(fresh)):
        cell.outputs = [nbformat.v4.new_output("stream", text="later")]
    assert tools.normalised(fresh, notebook) == tools.normalised(notebook)
    shown = next(c for c in tools.code_cells(fresh) if c.outputs and not tools.varies(c))
    shown.outputs = [nbformat.v4.new_output("stream", text="other readings")]
    assert tools.normalised(fresh, notebook) == tools.normalised(fresh)


def test_what_differs_from_run_to_run_is_not_saved():
    new = nbformat.v4
    python = {"name": "python", "version": "3.11.7"}
    messy = new.new_notebook(metadata={"widgets": {"state": 1}, "language_info": python})
    cell = new.new_code_cell("x", metadata={"execution": {"iopub.status.busy": "2026-01-01"}})
    cell.outputs = [
        new.new_output("stream", name="stdout", text="one "),
        new.new_output("stream", name="stdout", text="two"),
        new.new_output("stream", name="stderr", text="\rhalf way: 50%|█████     |"),
        new.new_output("display_data", data={"text/plain": "<object at 0x7f12345678ab>"}),
        new.new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}}),
    ]
    messy.cells = [cell]
    clean = tools.normalised(messy)
    assert clean.metadata == tools.METADATA
    assert clean.cells[0].metadata == {}
    first, second = clean.cells[0].outputs
    assert first.text == "one two"
    assert second.data == {"text/plain": "<object>"}
