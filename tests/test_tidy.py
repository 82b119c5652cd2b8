"""Size, leftovers and banned calls: what a review should not have to look for."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "iotsim").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MODULE_LINES_MAX = 450
FUNCTION_LINES_MAX = 60
BANNED = {
    "asyncio.wait_for": "it can swallow a cancellation on 3.11; use asyncio.timeout",
    "pickle.load": "nothing is executed from a file",
    "pickle.loads": "nothing is executed from a file",
    "yaml.load": "use iotsim.documents",
    "yaml.unsafe_load": "use iotsim.documents",
    "eval": "nothing is executed from a file",
    "exec": "nothing is executed from a file",
    "os.system": "give subprocess a list",
    "nest_asyncio.apply": "async has one spelling",
}


def place(path, line):
    return f"{path.relative_to(ROOT)}:{line}"


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(node):
    """What is called, as it stands there: asyncio.sleep; "" if it is more than names."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""


def functions(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


@pytest.mark.parametrize("path", [*PACKAGE, *TESTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_leftovers(path):
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK", "breakpoint" + "()")
    found = [place(path, i) for i, line in enumerate(path.read_text("utf-8").splitlines(), 1)
             if any(mark in line for mark in marks)]
    assert not found, found


def test_modules_stay_short():
    long = {place(path, 1): lines for path in PACKAGE
            if (lines := len(path.read_text("utf-8").splitlines())) > MODULE_LINES_MAX}
    assert not long, long


def test_functions_stay_short():
    long = {
        f"{place(path, node.lineno)} {node.name}": lines
        for path in PACKAGE
        for node in functions(path)
        if (lines := code_lines(node)) > FUNCTION_LINES_MAX
    }
    assert not long, long


def code_lines(node):
    # A docstring is not what makes a function long.
    first = node.body[0]
    has_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    text = first.end_lineno - first.lineno + 1 if has_text else 0
    return node.end_lineno - node.lineno + 1 - text


def test_no_banned_calls():
    found = []
    for path in [*PACKAGE, *TESTS]:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call):
                continue
            name = dotted(node.func)
            ours = path in PACKAGE or name == "asyncio.wait_for"
            if name in BANNED and ours:
                found.append(f"{place(path, node.lineno)}: {name}: {BANNED[name]}")
            if name == "np.load" and not _says_no_pickle(node):
                found.append(f"{place(path, node.lineno)}: np.load without allow_pickle=False")
    assert not found, found


def _says_no_pickle(call):
    return any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in call.keywords)


def test_every_function_of_a_test_file_is_a_test_a_fixture_or_used():
    lost = []
    for path in (p for p in TESTS if p.name.startswith("test_")):
        tree = tree_of(path)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in tree.body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            fixture = any("fixture" in ast.unparse(mark) for mark in node.decorator_list)
            if not (node.name.startswith("test_") or fixture or node.name in used):
                lost.append(place(path, node.lineno) + f" {node.name}")
            if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test_"):
                lost.append(place(path, node.lineno) + f" {node.name} is async: never awaited")
    assert not lost, lost


def test_no_two_tests_of_a_file_have_the_same_name():
    # The second would hide the first.
    doubled = []
    for path in TESTS:
        seen = set()
        for node in tree_of(path).body:
            name = getattr(node, "name", None)
            if name is not None and name in seen:
                doubled.append(f"{place(path, node.lineno)} {name}")
            seen.add(name)
    assert not doubled, doubled


def test_no_test_sleeps_for_time():
    # What cannot be awaited may be polled; a run at the pace of real time needs a little of it.
    longest_s = {"time.sleep": 0.05, "asyncio.sleep": 1}
    found = [
        place(path, node.lineno)
        for path in TESTS
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and dotted(node.func) in longest_s
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value > longest_s[dotted(node.func)]
    ]
    assert not found, found
