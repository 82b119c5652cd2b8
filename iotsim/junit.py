"""What a scenario expected, as the XML that CI systems read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from iotsim import arrow
from iotsim.errors import told
from iotsim.units import instant_text

if TYPE_CHECKING:
    from iotsim.conditions import Expectation
    from iotsim.result import Result


def write(path: str | Path, name: str, result: Result) -> Path:
    """Write one test case per expectation, and one for each thing that went wrong.

    Parameters
    ----------
    path : str or Path
    name : str
        Of the scenario.
    result : Result

    Returns
    -------
    Path
    """
    return _written(target_of(path, name), _suite(name, result))


def write_error(path: str | Path, name: str, error: BaseException) -> Path:
    """Write that a scenario came to no result, and why; see `write`."""
    suite = ElementTree.Element("testsuite", {
        "name": _plain(name), "tests": "1", "failures": "0", "errors": "1", "skipped": "0"})
    suite.extend(_errors(name, [error]))
    return _written(target_of(path, name), suite)


def target_of(path: str | Path, name: str) -> Path:
    """Return where a report can be written, or raise BadValue."""
    return arrow.target("junit", path, f"{name}.xml")


def _written(target: Path, suite: ElementTree.Element) -> Path:
    with arrow.named_when_complete("junit", target) as part:
        part.write_bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
    return target


def _suite(name: str, result: Result) -> ElementTree.Element:
    cases = [_case(name, one) for one in result.expectations]
    statuses = [one.status for one in result.expectations]
    failed, skipped = statuses.count("failed"), statuses.count("not evaluated")
    cases += _errors(name, result.errors)
    suite = ElementTree.Element("testsuite", {
        "name": _plain(name), "tests": str(len(cases)), "failures": str(failed),
        "errors": str(len(result.errors)), "skipped": str(skipped),
        "time": f"{(result.end_us - result.start_us) / 1e6:.6f}",
        "timestamp": instant_text(result.start_us)[:19],
    })
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in (("digest", result.digest), ("seed", str(result.fleet.seed))):
        ElementTree.SubElement(properties, "property", {"name": key, "value": value})
    suite.extend(cases)
    return suite


def _case(name: str, one: Expectation) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {
        "classname": _plain(name), "name": _plain(one.title), "time": f"{one.at_us / 1e6:.6f}"})
    if one.status == "failed":
        failure = ElementTree.SubElement(case, "failure", {"message": _plain(one.text)})
        failure.text = _plain(one.seen)
    elif one.status == "not evaluated":
        ElementTree.SubElement(case, "skipped", {"message": _plain(one.seen)})
    return case


def _errors(name: str, errors: Iterable[BaseException]) -> list[ElementTree.Element]:
    found = []
    for error in errors:
        case = ElementTree.Element("testcase", {"classname": _plain(name),
                                                "name": type(error).__name__})
        ElementTree.SubElement(case, "error", {"message": _plain(told(error))})
        found.append(case)
    return found


def _plain(text: str) -> str:
    # XML 1.0 has no place for control characters and half surrogates.
    return "".join(c if c.isprintable() else "?" for c in text)
