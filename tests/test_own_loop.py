"""A loop in a thread of its own: let in from anywhere, ended without a trace."""

import asyncio
import threading

import pytest

from iotsim.errors import BadValue
from iotsim.own_loop import Home, Once, OwnLoop


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("iotsim"):
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def own():
    made = OwnLoop("iotsim test")
    yield made
    made.leave()


def test_what_happens_once_is_known_on_every_loop():
    once, told = Once(), []

    def elsewhere():
        asyncio.run(once.wait())
        told.append("elsewhere")

    async def here():
        waiting = [asyncio.create_task(once.wait()) for _ in range(3)]
        threads = [threading.Thread(target=elsewhere) for _ in range(2)]
        for thread in threads:
            thread.start()
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        await asyncio.to_thread(once.happen)
        once.happen()
        await asyncio.gather(*waiting)
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await once.wait()  # at once

    asyncio.run(here())
    assert told == ["elsewhere"] * 2


def test_who_does_not_wait_any_more_is_forgotten():
    once = Once()

    async def impatient():
        async with asyncio.timeout(0.001):
            await once.wait()

    with pytest.raises(TimeoutError):
        asyncio.run(impatient())
    assert not once._waiting
    loop = asyncio.new_event_loop()
    task = loop.create_task(once.wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()  # with somebody who waits
    once.happen()
    assert not task.done()


def test_a_question_is_answered_there_and_its_error_comes_back(own):
    assert own.ask(threading.get_ident).result(20) == own.thread != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        own.ask(lambda: 1 / 0).result(20)
    assert (own.here, own.closed, own.own) == (False, False, True)


def test_what_was_asked_before_its_end_is_answered_and_what_comes_later_is_told(own):
    async def slowly():
        await asyncio.sleep(0.05)
        return "answered"

    asked = own.send(slowly())
    own.leave()
    assert asked.result(20) == "answered"
    own.join(20)
    assert own.closed
    assert own.loop.is_closed()
    assert own.ask(lambda: 1) is None
    assert own.send(slowly()) is None
    own.leave()


def test_a_question_that_nobody_waits_for_any_more_is_not_asked(own):
    asked, held = [], threading.Event()
    own.enter(lambda: held.wait(20))
    late = own.ask(lambda: asked.append("late"))
    assert late.cancel()
    held.set()
    assert own.ask(lambda: list(asked)).result(20) == []


def test_what_would_end_a_program_ends_that_loop_and_nothing_else(own):
    def leave():
        raise SystemExit(3)

    own.enter(leave)
    own.join(20)
    assert own.closed
    assert own.loop.is_closed()


def test_a_task_that_does_not_end_is_cancelled_when_all_have_had_their_time(own, monkeypatch):
    monkeypatch.setattr("iotsim.own_loop.LINGER_S", 0.01)

    async def endless():
        await asyncio.Event().wait()

    asked = own.send(endless())
    own.leave()
    own.join(20)
    assert asked.cancelled()


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError(24, "too many")])
def test_where_no_thread_can_be_had_the_error_says_what_to_do(monkeypatch, error):
    def start(self):
        raise error

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(BadValue) as caught:
        OwnLoop("iotsim none")
    assert str(caught.value).startswith("thread=True cannot be had here (")
    assert str(caught.value).endswith(
        "Leave it out: the run is then on the event loop of the caller.")


def test_where_no_loop_can_be_had_it_is_the_same_error(monkeypatch):
    def none():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio.events, "new_event_loop", none)
    with pytest.raises(BadValue, match="Too many open files"):
        OwnLoop("iotsim none")


def test_a_loop_that_runs_already_is_a_home_until_it_is_closed():
    async def live():
        home = Home()
        assert (home.here, home.closed, home.own) == (True, False, False)
        assert await asyncio.to_thread(lambda: home.ask(lambda: home.here).result(20))
        return home

    home = asyncio.run(live())
    assert home.closed
    assert home.ask(lambda: 1) is None
    assert home.send(asyncio.sleep(0)) is None
