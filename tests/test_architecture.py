"""Who may import whom: arrows point down, or sideways within a layer."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "iotsim"

# First match wins; a module that no line names fails the test below: give it a layer.
LAYERS = (
    (0, "foundations", "errors units logs registry readings facts"),
    (1, "time, randomness, who, what was done", "clock seeding normals selectors actions"),
    (2, "pure values: signals, profiles, members", "signals fields documents topics profile_schema "
        "profiles members testing faults verbs commands"),
    (3, "engine and the shapes of its readings", "engine capture acks frames arrow digest rebuilt"),
    (3, "carriers", "transport publishers outlets broker guard embedded_broker tapping listening"),
    (4, "what people type", "fleet offline driver feeders intake run result result_facts "
        "comparison saved run_state works progress verification replaying taps preflight "
        "preflight_fleet preflight_probe preflight_rates journal quality verdict loop_lag stage "
        "links waiting checkpoints events run_verbs run_commands run_views live_runs "
        "destinations episodes arrears gateway audit audit_match audit_sent audit_received "
        "audit_tables audit_verdict own_loop interrupts run_home run_pace run_list "
        "audit_doubt pictures"),
    (4, "scenarios", "scenario scenario_verbs scenario_checks scenario_code scenario_html "
        "scenario_files director conditions condition_values context observed script script_choice "
        "script_names junit"),
    (5, "doors", "metrics run_tally plots audit_plot plotting "
        "magic panels lab cli dashboard demo notebooks scenarios scenario_command __main__"),
)


def layer_of(module):
    """(number, what it is) of `iotsim.engine.block`, or None."""
    head = module.removeprefix("iotsim.").split(".")[0]
    for number, what, names in LAYERS:
        if head in names.split():
            return number, what
    return None


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "iotsim":
            yield name, path


def statements(body):
    """Every statement, in functions too, but not those of TYPE_CHECKING: an annotation's names
    are no dependency."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from statements(node.orelse)
            continue
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from statements(getattr(node, part, ()))


def imported(source):
    """(line, module) of every import of ours."""
    for node in statements(ast.parse(source).body):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "iotsim":
                yield from ((node.lineno, f"iotsim.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def upward(name, source):
    """What a module imports from above itself, in words."""
    mine = layer_of(name)
    found = []
    for line, target in imported(source):
        theirs = layer_of(target)
        if not target.startswith("iotsim.") or theirs is None:
            continue
        if theirs[0] > mine[0]:
            found.append(f"{name}:{line}: layer {mine[0]} ({mine[1]}) imports {target} of layer "
                         f"{theirs[0]} ({theirs[1]})")
    return found


# The frozen Fleet is what people type; its three verbs reach their engines inside the call.
def test_imports_point_down_or_sideways():
    found = [line for name, path in modules()
             for line in upward(name, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_every_module_has_a_layer():
    lost = [name for name, _ in modules() if layer_of(name) is None]
    assert not lost, f"give them a layer in {Path(__file__).name}: {', '.join(lost)}"


def test_imports_are_absolute():
    relative = re.compile(r"^ *from +\.", re.MULTILINE)
    found = [name for name, path in modules() if relative.search(path.read_text("utf-8"))]
    assert not found, found


def test_an_import_inside_a_function_counts():
    source = "def f():\n    from iotsim.fleet import Fleet\n    return Fleet\n"
    assert upward("iotsim.engine.block", source) == [
        "iotsim.engine.block:2: layer 3 (engine and the shapes of its readings) imports "
        "iotsim.fleet of layer 4 (what people type)"
    ]


def test_doors_are_reached_by_name_only():
    from iotsim.registry import DOORS, PUBLISHERS

    for table in (DOORS, PUBLISHERS):
        for target in table.values():
            module, _, attribute = target.partition(":")
            assert layer_of(module) is not None, target
            assert attribute.isidentifier(), target
    assert all(layer_of(target.partition(":")[0])[0] == 5 for target in DOORS.values())


def test_no_module_is_named_after_nothing():
    vague = {"utils", "util", "core", "helpers", "types", "constants", "common", "misc"}
    assert not [name for name, _ in modules() if name.rsplit(".", 1)[1] in vague]
