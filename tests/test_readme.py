"""The Python in the README runs as it stands there, block after block."""

import ast
import asyncio
import re
from pathlib import Path

from iotsim.errors import BadValue
from iotsim.lab.nats_server import find_nats_server

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks():
    return BLOCK.findall(README.read_text(encoding="utf-8"))


def can_run(source):
    # Gateways need a program that may be missing; under tests/run it never is.
    if "lab.notip()" not in source:
        return "# not run" not in source
    try:
        return bool(find_nats_server())
    except BadValue:
        return False


async def run_all(sources):
    names = {"__name__": "readme"}
    for source in sources:
        code = compile(source, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waiting = eval(code, names)
        if waiting is not None:
            async with asyncio.timeout(50):
                await waiting
    return names


def test_the_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = asyncio.run(run_all(filter(can_run, blocks())))
    hits = names["df"]["hit"].value_counts()  # of what was broken on purpose
    assert min(hits[["", "offset", "disconnect", "packet_loss"]]) > 0


def test_there_is_python_in_the_readme():
    assert blocks(), "the README shows no Python"
