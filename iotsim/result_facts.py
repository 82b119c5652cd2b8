"""What a result says of itself: in one line, and as facts with names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from iotsim.facts import few, line
from iotsim.units import clock_text, instant_text
from iotsim.verdict import VALID, brief

if TYPE_CHECKING:
    from iotsim.result import Result


def facts_of(result: Result) -> Iterator[tuple[str, str]]:
    """Yield what a result says of itself, with a name for each fact."""
    yield "devices", f"{result._count():,}"
    yield "readings", f"{result.rows:,}"
    yield "start", instant_text(result.start_us)
    yield "duration", clock_text(result.end_us - result.start_us)
    yield "seed", str(result.fleet.seed)
    yield "digest", result.digest
    if result.capture.evicted_rows:
        yield "kept", f"{result.capture.rows:,} of {result.rows:,} readings (see capture=)"
    if result.path is not None:
        yield "file", str(result.path)
    for name, ledger in result.publishers.items():
        yield name, f"{ledger.acknowledged:,} acknowledged of {ledger.offered:,} offered"
    if result.expectations:
        yield "expectations", expected(result)
    if result.quality != VALID:
        yield "quality", result.quality
    said = "; ".join(few(result.errors))
    yield "errors", f"{len(result.errors):,}{f': {said}' if said else ''}"
    if result.notes:
        yield "notes", f"{len(result.notes):,}: {'; '.join(few(result.notes))}"


def in_words(result: Result) -> str:
    """Return the chief facts in one line."""
    length = clock_text(result.end_us - result.start_us)
    judged = "" if result.quality == VALID else f", {line(brief(result.quality))}"
    return (f"{result.rows:,} readings of {result._count():,} devices over {length}, digest "
            f"{result.digest[:12]}…, {_first('error', result.errors) or '0 errors'}"
            f"{''.join(f', {text}' for text in _missed(result))}{judged}"
            f"{_first(', note', result.notes)}")


def called(result: Result) -> str:
    """Return its name, and its fleet's if that is another."""
    on = f" on fleet {result.fleet.name!r}" if result.name != result.fleet.name else ""
    return f"{result.name!r}{on}"


def expected(result: Result) -> str:
    """Return how many expectations passed and the first that failed; nothing if there were none."""
    if not result.expectations:
        return ""
    passed = sum(one.status == "passed" for one in result.expectations)
    return "; ".join([f"{passed:,} of {len(result.expectations):,} passed", *_missed(result)])


def _missed(result: Result) -> Iterator[str]:
    failed = result._failed()
    if failed:
        yield _first("failed expectation", failed)


def _first(what: str, things: Sequence[object]) -> str:
    more = f" (and {len(things) - 1:,} more)" if len(things) > 1 else ""
    return f"{what}: {line(str(things[0]))}{more}" if things else ""
