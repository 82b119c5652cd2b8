"""Size, leftovers and banned calls: what a review should not have to look for."""

import ast
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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


def dotted(node):
    """What is called, as it stands there: asyncio.sleep; "" if it is more than names."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""


@dataclass
class Source:
    """What the rules ask of a file; its tree is walked once, for all of them, and let go."""

    path: Path
    text: str
    top: list = field(default_factory=list)  # (line, name, what it is)
    functions: list = field(default_factory=list)  # (line, name, lines of code)
    calls: list = field(default_factory=list)  # (line, dotted name, first value, keywords)
    used: set = field(default_factory=set)  # names and attributes

    @classmethod
    def of(cls, path):
        source = cls(path, path.read_text(encoding="utf-8"))
        tree = ast.parse(source.text)
        source.top = [(node.lineno, node.name, kind_of(node)) for node in tree.body
                      if hasattr(node, "name")]
        waiting = [tree]
        while waiting:  # ast.walk takes three times as long
            node = waiting.pop()
            source._take(node)
            for child in vars(node).values():
                if isinstance(child, ast.AST):
                    waiting.append(child)
                elif type(child) is list:
                    waiting += [part for part in child if isinstance(part, ast.AST)]
        return source

    def _take(self, node):
        kind = type(node)
        if kind is ast.Name:
            self.used.add(node.id)
        elif kind is ast.Attribute:
            self.used.add(node.attr)
        elif kind is ast.Call:
            if name := dotted(node.func):
                first = node.args[0] if node.args else None
                self.calls.append((node.lineno, name, getattr(first, "value", None),
                                   {k.arg: getattr(k.value, "value", ...) for k in node.keywords}))
        elif kind in (ast.FunctionDef, ast.AsyncFunctionDef):
            self.functions.append((node.lineno, node.name, code_lines(node)))


def kind_of(node):
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return "class"
    if any("fixture" in ast.unparse(mark) for mark in node.decorator_list):
        return "fixture"
    if not node.name.startswith("test_"):
        return "function"
    return "test" if isinstance(node, ast.FunctionDef) else "async test"


def code_lines(node):
    # A docstring is not what makes a function long.
    first = node.body[0]
    has_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    text = first.end_lineno - first.lineno + 1 if has_text else 0
    return node.end_lineno - node.lineno + 1 - text


@pytest.fixture(scope="module")
def package():
    return [Source.of(path) for path in sorted((ROOT / "iotsim").rglob("*.py"))]


@pytest.fixture(scope="module")
def tests():
    return [Source.of(path) for path in sorted((ROOT / "tests").rglob("*.py"))]


def test_no_leftovers(package, tests):
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK", "breakpoint" + "()")
    found = [place(source.path, i) for source in [*package, *tests]
             for i, line in enumerate(source.text.splitlines(), 1)
             if any(mark in line for mark in marks)]
    assert not found, found


def test_modules_stay_short(package):
    long = {place(source.path, 1): lines for source in package
            if (lines := len(source.text.splitlines())) > MODULE_LINES_MAX}
    assert not long, long


def test_functions_stay_short(package):
    long = {f"{place(source.path, line)} {name}": lines for source in package
            for line, name, lines in source.functions if lines > FUNCTION_LINES_MAX}
    assert not long, long


def test_no_banned_calls(package, tests):
    found = []
    for banned, sources in ((set(BANNED), package), ({"asyncio.wait_for"}, tests)):
        for source in sources:
            for line, name, _, keywords in source.calls:
                if name in banned:
                    found.append(f"{place(source.path, line)}: {name}: {BANNED[name]}")
                if name == "np.load" and keywords.get("allow_pickle") is not False:
                    found.append(f"{place(source.path, line)}: np.load without allow_pickle=False")
    assert not found, found


def test_every_function_of_a_test_file_is_a_test_a_fixture_or_used(tests):
    found = []
    for source in (source for source in tests if source.path.name.startswith("test_")):
        for line, name, kind in source.top:
            if kind == "function" and name not in source.used:
                found.append(f"{place(source.path, line)} {name}")
            if kind == "async test":
                found.append(f"{place(source.path, line)} {name} is async: never awaited")
    assert not found, found


def test_no_two_tests_of_a_file_have_the_same_name(tests):
    # The second would hide the first.
    found = []
    for source in tests:
        seen = set()
        for line, name, _ in source.top:
            if name in seen:
                found.append(f"{place(source.path, line)} {name}")
            seen.add(name)
    assert not found, found


def test_no_test_sleeps_for_time(tests):
    # What cannot be awaited may be polled; a run at the pace of real time needs a little of it.
    longest_s = {"time.sleep": 0.05, "asyncio.sleep": 1}
    found = [place(source.path, line) for source in tests for line, name, first, _ in source.calls
             if isinstance(first, (int, float)) and first > longest_s.get(name, first)]
    assert not found, found


def test_the_rules_see_what_breaks_them(tmp_path):
    path = tmp_path / "test_it.py"
    path.write_text('''
import time
def lost():
    """Said."""
    pass
@pytest.fixture(scope="module")
def used(): pass
async def test_it():
    used()
    if True:
        for i in range(3):
            [time.sleep(0.2) for _ in (1, 2)]
            np.load(asyncio.wait_for(lambda: eval("1"), timeout=3), allow_pickle=True)
''')
    source = Source.of(path)
    assert source.top == [(3, "lost", "function"), (7, "used", "fixture"),
                          (8, "test_it", "async test")]
    assert sorted(source.functions) == [(3, "lost", 2), (7, "used", 1), (8, "test_it", 6)]
    assert sorted(source.calls, key=lambda call: call[:2]) == [
        (6, "pytest.fixture", None, {"scope": "module"}), (9, "used", None, {}),
        (11, "range", 3, {}), (12, "time.sleep", 0.2, {}),
        (13, "asyncio.wait_for", None, {"timeout": 3}), (13, "eval", "1", {}),
        (13, "np.load", None, {"allow_pickle": True})]
    assert "used" in source.used
    assert "lost" not in source.used
