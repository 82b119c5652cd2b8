"""The demonstration: a fleet live over a real broker, audited, saved, and replayed to the byte.

Nothing is believed that was not looked at: what was sent is held against what an independent
subscriber received, and the whole run against one that is computed again.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iotsim import __version__
from iotsim.broker import Broker
from iotsim.clock import monotonic
from iotsim.demo.auditing import Audit, audit
from iotsim.demo.plan import PICTURED, SPEED, Plan, plan_of
from iotsim.errors import BadValue
from iotsim.result import Result
from iotsim.run import Run
from iotsim.taps import Tap, tap
from iotsim.units import DEFAULT_START, clock_text, duration_text
from iotsim.verification import verify

__all__ = ("demo", "plan_of")

BAR_S = 0.1
BAR_COLUMNS_MAX = 100
SETTLE_S = 0.3  # how long to listen for messages that should not come
RESENT_S = 3.0  # and for those that come again to a subscriber that was cut off
TAP_SILENT_S = 10.0  # after which nothing more is expected of it
FOLDERS_MAX = 10_000

Say = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """Says what happens, and remembers what did not hold."""

    say: Say
    problems: list[str] = field(default_factory=list)

    def line(self, name: str = "", text: str = "") -> None:
        """Say one line: a name, and what there is to say of it."""
        self.say(f"{name:<12} {text}".rstrip())

    def hold(self, ok: bool, problem: str) -> bool:
        """Remember a problem unless `ok`; returns `ok`."""
        if not ok:
            self.problems.append(problem)
        return ok


@dataclass(frozen=True, slots=True)
class Heard:
    """How the subscriber did: for how long it lagged behind, and what it says of itself."""

    waited_s: float
    ill: str
    absence: str


def demo(plan: Plan, say: Say) -> int:
    """Show it; returns the exit status: 0 only if everything held.

    Parameters
    ----------
    plan : Plan
    say : callable
        Takes one line of text.

    Raises
    ------
    IotsimError
        If it cannot begin.
    KeyboardInterrupt
        If it was interrupted; by then the run has stopped and the broker has ended.
    """
    report, began_s = Report(say), monotonic()
    if not _fits(plan, report):
        return _verdict(report)
    folder = _fresh(plan.folder)
    with _broker(plan) as broker:
        _introduce(plan, broker, report)
        _look_ahead(plan, broker, report)
        with _tap(plan, broker) as listener:
            run, result, waited_s = asyncio.run(_live(plan, broker, listener, report))
            messages = [(payload, name) for _, payload, name in listener.messages()]
            witness = listener.witness()
    heard = Heard(waited_s, witness["ill"], witness["absence"])
    report.hold(not heard.ill, f"the subscriber was ill: {heard.ill}")
    for error in result.errors:
        report.hold(False, str(error))
    _table(plan, result, found := audit(result, messages, has_ids=not plan.embedded), report)
    _told(found, plan, run, result.quality, heard, report)
    _proofs(found, plan, result, report)
    _files(folder, result, report)
    return _verdict(report, monotonic() - began_s)


def _fits(plan: Plan, report: Report) -> bool:
    report.say(f"iotsim {__version__} demo\n")
    for finding in plan.findings():
        report.line(finding.name, finding.text)
        report.hold(finding.ok, f"{finding.name}: {finding.text}")
    return not report.problems


def _look_ahead(plan: Plan, broker: Broker, report: Report) -> None:
    # What a pre-flight finds is worth knowing; whether it was right is seen in what follows.
    flight = plan.fleet(broker.url).preflight(f"{plan.duration_us}us", speed=plan.speed,
                                              capture="all")
    shown: set[str] = set()
    for finding in flight.findings:
        name = "pre-flight" if not shown else ""
        text = finding.text
        if finding.name == broker.url:
            text = f"broker, for one device type: {text}"
        if not finding.ok:
            text = f"does not fit: {text}"
        elif finding.name not in ("own speed", broker.url):
            continue  # it was looked at before there was a broker
        if finding.name not in shown:  # each device type has a publisher of its own, alike
            report.line(name, text)
        shown.add(finding.name)


def _fresh(folder: Path) -> Path:
    # Never into what is there already, unless it is empty.
    folder = folder if folder.name else folder.absolute()
    for number in range(1, FOLDERS_MAX):
        place = folder if number == 1 else folder.parent / f"{folder.name or 'demo'}-{number}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            if not any(place.iterdir()):
                return place
        except FileExistsError:
            continue
        except OSError as error:
            raise BadValue("folder", str(place), f"cannot be made ({error.strerror})",
                           "Choose another --folder.") from None
    raise BadValue("folder", str(folder), f"exists, and so do {FOLDERS_MAX:,} others beside it",
                   "Choose another --folder.")


def _introduce(plan: Plan, broker: Broker, report: Report) -> None:
    report.line("broker", f"{broker.kind} on {broker.url}, MQTT {broker.version}, QoS 1")
    if plan.embedded:
        fewer = f": {plan.devices:,} devices instead of {plan.wanted_devices:,}"
        report.line("", "slow, in pure Python" + (fewer if plan.devices < plan.wanted_devices
                                                  else "") + "; install mosquitto for more")
    if plan.speed < SPEED:
        report.line("", f"so many devices run at ×{plan.speed:g} instead of ×{SPEED:g}")
    kinds = ", ".join(f"{count:,} {name}" for name, count in plan.counts)
    report.line("fleet", f"{plan.devices:,} devices: {kinds}")
    report.line("live", f"{plan.seconds:g} s at ×{plan.speed:g} are "
                f"{duration_text(plan.duration_us)} of simulated time")


# -- live ---------------------------------------------------------------------------------------


@contextmanager
def _broker(plan: Plan) -> Iterator[Broker]:
    broker = Broker(embedded=plan.embedded)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


def _tap(plan: Plan, broker: Broker) -> Tap:
    return tap(broker.url, "#", version=plan.version, capacity=2 * plan.messages + 10_000)


async def _live(
    plan: Plan, broker: Broker, listener: Tap, report: Report
) -> tuple[Run, Result, float]:
    run = plan.fleet(broker.url).start(
        f"{plan.duration_us}us", speed=plan.speed, start=DEFAULT_START, capture="all"
    )
    try:
        await run.ready()
        ending = asyncio.ensure_future(_ended(run, listener))
        await _shown(ending, run, plan, listener)
        result, waited_s = await ending
    except asyncio.CancelledError:
        left = await run.stop()
        acknowledged = sum(ledger.acknowledged for ledger in left.publishers.values())
        report.say("")
        report.line("stopped", f"{left.rows:,} readings made, {acknowledged:,} acknowledged")
        raise
    return run, result, waited_s


async def _ended(run: Run, listener: Tap) -> tuple[Result, float]:
    result = await run.wait()
    ended_s, before = monotonic(), -1
    # However slow the machine is: as long as something comes, the rest may.
    while before < listener.count < result.rows:
        before = listener.count
        await listener.received(result.rows, TAP_SILENT_S)
    waited_s = monotonic() - ended_s
    while await listener.received(listener.count + 1, RESENT_S if listener.away else SETTLE_S):
        pass
    return result, waited_s


async def _shown(ending: asyncio.Future[Any], run: Run, plan: Plan, listener: Tap) -> None:
    # Shows what a run and its subscriber say of themselves, until both are done.
    from tqdm import tqdm

    # tqdm shows nothing in a terminal that says its size is 0, as some containers do.
    columns = min(BAR_COLUMNS_MAX, shutil.get_terminal_size().columns - 1)
    bar = tqdm(total=plan.messages, disable=None, leave=False, ncols=columns, nrows=20,
               bar_format="live         {percentage:3.0f}%|{bar}| {desc}")
    try:
        while not ending.done():
            await asyncio.wait({ending}, timeout=BAR_S)
            now = run.snapshot()
            bar.total = max(now.readings, plan.messages)
            bar.set_description_str(f"{clock_text(now.elapsed_us)}  sent {now.readings:,}  "
                                    f"received {listener.count:,}", refresh=False)
            bar.n = min(listener.count, bar.total)
            bar.refresh()
    except asyncio.CancelledError:
        ending.cancel()
        raise
    finally:
        bar.close()


# -- what came of it ----------------------------------------------------------------------------


def _table(plan: Plan, result: Result, found: Audit, report: Report) -> None:
    readings = {group.device_type: 0 for group in result.groups}
    for chunk in result.capture.chunks():
        readings[chunk.group.device_type] += len(chunk)
    # Each device type has a publisher of its own, in the order of the plan.
    ledgers = dict(zip((name for name, _ in plan.counts), result.publishers.values(), strict=True))
    rows = [("device type", "devices", "readings", "acknowledged", "received", "ack p50", "p99")]
    for name, count in plan.counts:
        ledger, made = ledgers[name], readings[name]
        received = found.by_type.get(name, 0)
        rows.append((name, f"{count:,}", f"{made:,}", f"{ledger.acknowledged:,}", f"{received:,}",
                     _milliseconds(ledger.latency_p50_s), _milliseconds(ledger.latency_p99_s)))
        report.hold(made > 0, f"{name}: no readings were made. Choose a larger --seconds.")
        report.hold(ledger.acknowledged == made == ledger.offered,
                    f"{name}: {made:,} readings, but {ledger.acknowledged:,} of "
                    f"{ledger.offered:,} messages acknowledged")
        report.hold(received == made, f"{name}: {made:,} readings, but {received:,} received")
    report.say("")
    for row in _aligned(rows):
        report.say(row)
    report.say("")


def _milliseconds(seconds: float) -> str:
    return "–" if seconds != seconds else f"{seconds * 1000:,.1f} ms"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells)
        if i == 0:
            yield "  ".join("─" * width for width in widths)


def _told(
    found: Audit, plan: Plan, run: Run, quality: str, heard: Heard, report: Report
) -> None:
    none_lost = report.hold(not found.lost, f"{found.lost:,} readings never arrived")
    none_foreign = report.hold(not found.foreign,
                               f"{found.foreign:,} messages arrived that nobody sent")
    words = ["none lost" if none_lost else f"{found.lost:,} lost",
             f"{found.doubled:,} twice (QoS 1 may)" if found.doubled else "none twice",
             *([] if none_foreign else [f"{found.foreign:,} foreign"])]
    report.line("audit", f"sent {found.sent:,}, received {found.received:,}: {', '.join(words)}")
    if heard.waited_s >= 1:
        report.line("", f"the subscriber was done {heard.waited_s:.0f} s after the last message")
    if heard.absence and report.hold(none_lost, f"the subscriber {heard.absence}"):
        report.line("", "the subscriber was cut off meanwhile, and missed nothing")
    late_s = run.snapshot().lateness_p99_s
    report.line("", f"99 % of the readings left within {late_s * 1000:,.0f} ms of their time")
    report.line("", f"quality: {quality}")
    if plan.embedded and none_lost and none_foreign:
        report.line("", "every payload is the run's, byte for byte (MQTT 3.1.1 carries no message "
                    "ids: no digest of what was received)")


def _proofs(found: Audit, plan: Plan, result: Result, report: Report) -> None:
    report.line("digest", f"{result.digest}  of the run")
    if not plan.embedded:
        same = report.hold(found.digest == result.digest, found.trouble or
                           "the digest of what was received differs from the run's")
        report.line("", f"{found.digest or 'none'}  of what was received: {_equal(same)}")
    again = plan.fleet().generate(f"{plan.duration_us}us", start=DEFAULT_START, progress=False)
    same = report.hold(again.digest == result.digest,
                       f"generate() gives another digest: {result.diff(again)}")
    report.line("", f"{again.digest}  of generate(), same start: {_equal(same)}")


def _equal(same: bool) -> str:
    return "equal" if same else "DIFFERENT"


def _files(folder: Path, result: Result, report: Report) -> None:
    saved = result.save(folder / "run.iotsim")
    readings = result.to_parquet(folder / "readings.parquet")
    verification = verify(saved, against=readings)
    report.hold(verification.ok, f"verify: {verification.difference}")
    report.line("verify", "identical" if verification.ok else "DIFFERENT")
    picture = folder / "plot.png"
    _draw(result, picture)
    report.line("folder", str(folder))
    what = ("iotsim.verify(path) runs it again", "every reading, for pandas, polars or duckdb",
            "the fleet as bands and shares")
    for path, text in zip((saved, readings, picture), what, strict=True):
        size = path.stat().st_size
        report.hold(size > 0, f"{path} is empty")
        report.line("", f"{path.name:<17} {size / 1000:>7,.0f} kB  {text}")


def _draw(result: Result, path: Path) -> None:
    held = {field.name for member in result.fleet.members if member.profile is not None
            for field in member.profile.fields}
    axes: Any = result.plot([name for name in PICTURED if name in held])
    first = getattr(axes, "flat", [axes])[0]
    first.figure.savefig(path, dpi=120)


def _verdict(report: Report, took_s: float | None = None) -> int:
    report.say("")
    if not report.problems:
        report.say(f"All of it holds. ({took_s:.0f} s)")
        return 0
    for problem in report.problems:
        report.say(f"did not hold: {problem}")
    return 1
