"""Progress bars: for whoever looks, once something takes a while, and for nobody else."""

import asyncio
import io
import sys
from itertools import count
from types import SimpleNamespace

import pytest

import iotsim
from iotsim import Fleet, Scenario, progress
from iotsim.progress import bar, counted, following


class Terminal(io.StringIO):
    """A terminal that somebody looks at."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    shown = Terminal()
    seen = SimpleNamespace(stderr=shown, modules=sys.modules)  # pytest has a stderr of its own
    monkeypatch.setattr(progress, "sys", seen)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)  # no thread survives a test
    return shown


@pytest.fixture
def slow(terminal, monkeypatch):
    """All that happens takes longer than a second, by the clock that bars read."""
    seconds = count(step=0.6)
    monkeypatch.setattr(progress, "monotonic", lambda: next(seconds))
    return terminal


def fleet():
    return Fleet("plant", seed=1).add("pump", count=30)


def test_nobody_looks_and_nothing_is_written_nor_loaded(monkeypatch):
    away = io.StringIO()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=away, modules=sys.modules))
    monkeypatch.setattr(progress, "_line_bar", lambda: pytest.fail("a bar was made"))
    with bar("far", 10) as shown:
        shown.update(10)
    assert list(counted("away", ["ab", "c"])) == ["ab", "c"]
    assert away.getvalue() == ""
    assert shown.n == 10


def test_what_is_quick_shows_no_bar_even_to_those_who_look(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_line_bar", lambda: pytest.fail("a bar was made"))
    with bar("quick", 3) as shown:
        for _ in range(3):
            shown.update(1)
    assert terminal.getvalue() == ""


def test_what_takes_a_while_shows_how_far_it_is_and_vanishes(slow):
    with bar("far\nand away", 4) as shown:
        for _ in range(4):
            shown.update(1)
    said = slow.getvalue()
    assert "far and away" in said
    assert "%|" in said
    assert said.split("\r")[-1].strip() == ""


def test_who_does_not_know_the_end_says_no_percentage(slow):
    with bar("a script", 0) as shown:
        for _ in range(4):
            shown.update(1)
    assert "a script" in slow.getvalue()
    assert "%" not in slow.getvalue()


def test_a_function_is_told_of_each_step_and_may_end_it(slow):
    told = []
    with bar("told", 4, told.append) as shown:
        shown.update(3)
        shown.update(1)
    assert told == [3, 1]
    with pytest.raises(KeyboardInterrupt), bar("told", 4, raising(KeyboardInterrupt)) as shown:
        shown.update(1)
    assert slow.getvalue() == ""


def raising(error):
    def told(_):
        raise error

    return told


def works(tmp_path):
    """What may take a while, and what its bar says."""
    result = fleet().generate("1m", progress=False)
    saved = result.save(tmp_path / "x.iotsim")
    script = Scenario("told", fleet(), script=wait)
    return {
        "generate": (lambda: fleet().generate("1m"), "plant 00:01:00"),
        "script": (lambda: script.generate(), "plant"),
        "frame": (result.frame, "frame of plant"),
        "to_arrow": (result.to_arrow, "table of plant"),
        "to_parquet": (lambda: result.to_parquet(tmp_path / "x.parquet"), "writing plant"),
        "save": (lambda: result.save(tmp_path / "y.iotsim", readings=True), "saving plant"),
        "verify": (lambda: iotsim.verify(saved), "plant 00:01:00"),
        "preflight": (lambda: fleet().preflight("1m", connect=False), "preflight"),
        "audit": (audited, "audit of loud"),
        "run": (lambda: asyncio.run(fleet().run("1m", speed="max")), None),
    }


async def wait(ctx):
    await ctx.wait("1m")


def audited():
    loud = Fleet("loud", seed=1).add("pump", count=3).publish_to("memory:progress")
    return asyncio.run(loud.run("10s", speed="max")).audit([])


def test_every_long_work_has_a_bar(slow, tmp_path):
    for name, (work, title) in works(tmp_path).items():
        slow.truncate(0)
        work()
        if title is not None:
            assert title in slow.getvalue(), name


def test_a_run_that_is_awaited_is_followed_in_simulated_time(slow, monkeypatch):
    monkeypatch.setattr(progress, "LOOK_S", 0.001)

    async def go():
        looks = iter(range(1, 1000))
        seen = asyncio.Event()

        def at_s():
            here = next(looks)
            if here > 5:
                seen.set()
            return float(here)

        async with following("night shift", 8.0, at_s):
            await seen.wait()
        return len(asyncio.all_tasks())

    assert asyncio.run(go()) == 1
    assert "night shift" in slow.getvalue()
    assert "%|" in slow.getvalue()


def test_in_a_notebook_a_bar_is_a_widget_that_leaves_nothing_behind(slow, monkeypatch):
    import IPython.display

    seen = []

    class Place:
        def update(self, data, raw):
            assert raw
            seen.append(data)

    def display(container, display_id):
        assert display_id is True
        seen.append(type(container).__name__)
        return Place()

    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", display)
    with bar("far", 4) as shown:
        for _ in range(4):
            shown.update(1)
    assert seen == ["TqdmHBox", {"text/plain": ""}]
    assert slow.getvalue() == ""


def test_following_ends_with_what_it_follows_whatever_happens(terminal):
    async def go():
        with pytest.raises(ValueError, match="mine"):
            async with following("broken", 8.0, lambda: 1.0):
                raise ValueError("mine")
        return len(asyncio.all_tasks())

    assert asyncio.run(go()) == 1


def test_a_follower_that_cannot_look_harms_nobody(slow, monkeypatch):
    monkeypatch.setattr(progress, "LOOK_S", 0.001)

    async def go():
        looked = asyncio.Event()

        def at_s():
            looked.set()
            raise RuntimeError("gone")

        async with following("gone", 8.0, at_s):
            await looked.wait()

    asyncio.run(go())
