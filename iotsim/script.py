"""The director that plays a script: `async def run(ctx)`, stepped by hand.

Offline and live alike a script may await what `ctx` gives and nothing else: so the same things
happen at the same simulated times, whoever is slow.
"""

from __future__ import annotations

import asyncio
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from os.path import dirname
from types import CodeType
from typing import TYPE_CHECKING, Any

from iotsim import verbs
from iotsim.conditions import Expectation
from iotsim.context import Context, Pause
from iotsim.director import ALL_US, Ends, failed
from iotsim.engine.kernel import describe, place_of
from iotsim.errors import IotsimError, told
from iotsim.faults.base import NEVER_US
from iotsim.members import Members
from iotsim.script_choice import Dice

if TYPE_CHECKING:
    from iotsim.stage import Stage

ACTS_AT_ONE_INSTANT_MAX = 100_000
_ASYNCIO = dirname(asyncio.__file__)


class Playing:
    """A director that plays a script.

    Parameters
    ----------
    name : str
        Of the scenario.
    script : coroutine function
    lasting_us : int or None
        How long the run is; until the script and its timed faults have ended if None.
    """

    def __init__(
        self, name: str, script: Callable[[Any], Coroutine[Any, Any, None]], lasting_us: int | None
    ) -> None:
        self.expectations: list[Expectation] = []
        self.errors: list[IotsimError] = []
        self.notes: list[str] = []
        self.end_us = lasting_us
        self.name, self._code = name, getattr(script, "__code__", None)
        self._context = Context(self)
        self._script = script
        self._body: Coroutine[Any, Any, None] | None = None
        self._over = False
        self._refusal: IotsimError | None = None
        self._next_us = 0
        self._now_us = 0
        self._stage: Stage | None = None
        self._ends = Ends()
        self._added: list[Members] = []
        self._acts = 0
        self._dice: Dice | None = None

    @property
    def next_us(self) -> int | None:
        """When the script goes on; None: it has ended."""
        late = self.end_us is not None and self._next_us > self.end_us
        return None if self._over or late else self._next_us

    @property
    def needs_us(self) -> int:
        """All readings if the script expects anything; what it will look at is not known."""
        return ALL_US if "expect" in _names(self._code) else 0

    def act(self, stage: Stage) -> None:
        """Step the script until it waits; an exception in it ends the scenario."""
        if self._over:
            return
        if self._body is None:
            self._body = self._script(self._context)
        self._stage, self._now_us, self._acts = stage, self._next_us, 0
        try:
            request = self._body.send(None)
        except StopIteration:
            self._finish()
        except (Exception, SystemExit, CancelledError) as error:
            self._fail(_why(error, self._code), error)
        else:
            if isinstance(request, Pause):
                self._next_us = request.until_us
            else:
                self._refuse(request)
        finally:
            self._stage = None

    def close(self) -> None:
        """End the script where it stands."""
        body, self._body, self._over = self._body, None, True
        if body is None:
            return
        try:
            body.close()
        except Exception as error:
            if error is self._refusal:  # it wanted to act in its `finally`
                return
            self.errors.append(failed(self.name, self._now_us, told(error), error))

    def here(self) -> tuple[Stage, int]:
        """Return the stage and the time, while the script is on it."""
        if self._stage is None:
            self._refusal = IotsimError("the scenario is not acting: its ctx works only inside its "
                                        "own script.")
            raise self._refusal
        self._acts += 1
        if self._acts > ACTS_AT_ONE_INSTANT_MAX:
            raise IotsimError(f"time has not moved on for {ACTS_AT_ONE_INSTANT_MAX:,} calls. "
                              "Let the script `await ctx.wait(...)`.")
        return self._stage, self._now_us

    def do(self, verb: str, parameters: Mapping[str, Any]) -> int | None:
        """Do something now; returns how many devices it concerned."""
        stage, at_us = self.here()
        action = stage.do(verb, at_us, parameters)
        self._ends.note(verb, at_us, parameters)
        return action.devices

    def add(self, members: Members) -> None:
        """Add devices now."""
        stage, at_us = self.here()
        stage.do("add", at_us, verbs.added(members), members)
        self._added.append(replace(members, count=1))
        self._ends.note("add", at_us, {})

    def members(self, stage: Stage) -> list[Members]:
        """Return whose fields are known: the fleet's, and those of what was added."""
        return [*stage.fleet.members, *self._added]

    def dice(self, seed: int) -> Dice:
        """Return the scenario's own streams."""
        if self._dice is None:
            self._dice = Dice(seed)
        return self._dice

    def _finish(self) -> None:
        self._body, self._over = None, True
        pause = self._context.pause
        if pause is not None and not pause.awaited:
            self._fail("ctx.wait(...) was not awaited. Write `await ctx.wait(...)`.", None)
        elif self.end_us is None:
            self._ends.note("log", self._now_us, {})
            self.end_us = self._ends.last_us
            self._note_endless()

    def _note_endless(self) -> None:
        # Steps with such a fault have no end at all; a script has one, so it is only said.
        assert self._stage is not None
        deeds, at_us = self._stage.simulation.deeds, self._stage.start_us + self._now_us
        active = deeds.active(at_us)
        endless = {window.name: active[window.name] for window in deeds.windows
                   if window.name in active and (window.ends_us >= NEVER_US).any()}
        for name, devices in endless.items():
            self.notes.append(
                f"scenario {self.name!r} ended while {name} was active on {devices:,} devices: "
                "nothing clears it. Say .lasting('30m') to go on with it.")

    def _fail(self, why: str, cause: BaseException | None) -> None:
        self._body, self._over = None, True
        self.errors.append(failed(self.name, self._now_us, why, cause))
        self.end_us = self._now_us

    def _refuse(self, request: Any) -> None:
        assert self._body is not None
        line = place_of(self._body)
        if hasattr(request, "cancel"):
            request.cancel()
        self.close()
        self._fail(f"the script awaits {describe(request)} at {line}: it may only await what ctx "
                   "gives, such as ctx.wait.", None)


def _names(code: CodeType | None) -> set[str]:
    # Names of attributes that a function uses, and the functions in it.
    if code is None:
        return {"expect"}
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)


def _why(error: BaseException, code: CodeType | None) -> str:
    place = _where(error, code)
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, RuntimeError) and frames[-1].filename.startswith(_ASYNCIO):
        # Without a running loop asyncio raises where it would otherwise be awaited.
        return (f"the script uses asyncio{place}, which says {told(error)}: it may only await what "
                "ctx gives, such as ctx.wait.")
    return f"{told(error)}{place}"


def _where(error: BaseException, code: CodeType | None) -> str:
    # The innermost line of the script's own file, or of the last frame if it has none.
    frames = traceback.extract_tb(error.__traceback__)
    file = "" if code is None else code.co_filename
    mine = [frame for frame in frames if frame.filename == file] or list(frames[-1:])
    return f" ({mine[-1].filename}:{mine[-1].lineno})" if mine else ""
