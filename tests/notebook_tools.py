"""Run notebooks and save them so that a re-run makes no diff.

    python tests/notebook_tools.py                  # all of notebooks/
    python tests/notebook_tools.py notebooks/01_first_fleet.ipynb

Kept: sources, outputs, pictures. Dropped: times of execution, widget state, progress bars, the
version of Python, the names of objects in memory. What a cell tagged `varies` shows (a live run is
never at the same reading twice) stays as it was saved, as long as nothing else has changed.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_TIMEOUT_S = 60
WIDGET = "application/vnd.jupyter.widget-view+json"
_PICTURE_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"pHYs", b"sRGB", b"gAMA")
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")


def paths() -> list[Path]:
    """Return the notebooks, in order of name."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Any:
    """Return a notebook."""
    return nbformat.read(path, as_version=4)


def text_of(notebook: Any) -> str:
    """Return a notebook as it is stored."""
    return str(nbformat.writes(notebook, version=4)) + "\n"


def executed(notebook: Any, folder: Path = FOLDER, **options: Any) -> Any:
    """Return a copy of a notebook, run top to bottom in a kernel of its own.

    Parameters
    ----------
    notebook : NotebookNode
    folder : Path
        Where it runs.
    **options
        Of the NotebookClient, such as the kernel manager of a `tests.kernel_nursery`.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails that is not tagged `raises-exception`.
    """
    fresh = copy.deepcopy(notebook)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(fresh, timeout=CELL_TIMEOUT_S, kernel_name="python3",
                            resources={"metadata": {"path": str(folder)}},
                            store_widget_state=False, record_timing=False, **options)
    client.execute()
    return fresh


def normalised(notebook: Any, saved: Any = None) -> Any:
    """Return a copy of a notebook without anything that differs from run to run.

    Parameters
    ----------
    notebook : NotebookNode
    saved : NotebookNode, optional
        An earlier version: cells tagged `varies` keep its outputs, if all else is as it was.
    """
    clean = copy.deepcopy(notebook)
    clean.metadata = nbformat.from_dict(METADATA)
    clean.nbformat, clean.nbformat_minor = 4, 5
    for place, cell in enumerate(clean.cells):
        cell.id = cell.get("id") or hashlib.sha256(f"{place}{cell.source}".encode()).hexdigest()[:8]
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = _joined([_output(output) for output in cell.outputs if _kept(output)])
    if saved is not None and _steady(clean) == _steady(saved):
        for cell, old in zip(code_cells(clean), code_cells(saved), strict=True):
            if varies(cell):
                cell.outputs = old.outputs
    return clean


def code_cells(notebook: Any) -> Iterator[Any]:
    """Yield the code cells of a notebook."""
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def varies(cell: Any) -> bool:
    """Return whether a cell shows something else in every run."""
    return "varies" in cell.metadata.get("tags", ())


def _steady(notebook: Any) -> list[Any]:
    return [
        (cell.source, None if cell.cell_type != "code" or varies(cell) else cell.outputs)
        for cell in notebook.cells
    ]


def _kept(output: Any) -> bool:
    # tqdm draws its bar with carriage returns on stderr, if at all.
    bar = output.get("name") == "stderr" and "\r" in output.text
    # A bar that has vanished leaves a place with nothing in it.
    blank = output.output_type == "display_data" and not any(output.data.values())
    # Of a widget there is what is to be read where it does not live; without that, nothing.
    widget = WIDGET in output.get("data", {}) and "text/html" not in output.data
    return not (bar or blank or widget)


def _output(output: Any) -> Any:
    found = copy.deepcopy(output)
    if "metadata" in found:
        found.metadata = nbformat.from_dict({})
    found.get("data", {}).pop(WIDGET, None)
    for name, value in found.get("data", {}).items():
        if name == "image/png":
            found.data[name] = _plain_png(value)
        elif isinstance(value, str):
            found.data[name] = _ADDRESS.sub("", value)
    return found


def _joined(outputs: list[Any]) -> list[Any]:
    # How often a stream was flushed is a matter of time.
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.get("name") is not None and last.get("name") == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _plain_png(text: str) -> str:
    # Without the chunks that name the version of what drew it.
    data = base64.b64decode(text)
    parts, place = [data[:8]], 8
    while place < len(data):
        size = struct.unpack(">I", data[place : place + 4])[0] + 12
        if data[place + 4 : place + 8] in _PICTURE_CHUNKS:
            parts.append(data[place : place + size])
        place += size
    return base64.b64encode(b"".join(parts)).decode()


def refresh(path: Path) -> bool:
    """Run a notebook and save it with its outputs; returns whether the file changed."""
    saved = read(path)
    text = text_of(normalised(executed(saved), saved))
    changed = path.read_text(encoding="utf-8") != text
    path.write_text(text, encoding="utf-8")
    return changed


def main(names: list[str]) -> None:
    """Refresh the named notebooks, or all of them."""
    for path in map(Path, names) if names else paths():
        print(f"{path.name}: {'changed' if refresh(path) else 'as it was'}")


if __name__ == "__main__":
    main(sys.argv[1:])
