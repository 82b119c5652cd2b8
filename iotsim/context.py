"""What a scenario script sees: its `ctx`.

What a script does is done at the call; the `await` only takes the value. Only `ctx.wait` must be
awaited, because it is what lets time go on.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from iotsim import verbs
from iotsim.conditions import condition_of
from iotsim.director import judged
from iotsim.errors import BadValue, IotsimError
from iotsim.members import check_count, members_of
from iotsim.observed import Observed, observed_of
from iotsim.scenario_checks import expect_parameters, known_fields
from iotsim.selectors import Selector, Where, parse
from iotsim.selectors import ids as ids_of
from iotsim.units import Duration, duration_us

if TYPE_CHECKING:
    from iotsim.fleet import Fleet
    from iotsim.script import Playing
    from iotsim.stage import Stage

T = TypeVar("T")


class Done(Generic[T]):
    """What a verb of `ctx` gives: done already; `await` takes its value.

    Attributes
    ----------
    value : object
        Of the call; a forgotten `await` loses nothing.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __await__(self) -> Generator[None, None, T]:
        yield from ()  # a generator that never gives anything
        return self.value

    def __bool__(self) -> bool:
        return bool(self.value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)  # type: ignore[call-overload, no-any-return]

    def __len__(self) -> int:
        return len(self.value)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        return self.value[key]  # type: ignore[index]

    def __repr__(self) -> str:
        return f"<Done: {self.value!r}>"


class Pause:
    """What `ctx.wait` gives: it must be awaited."""

    __slots__ = ("awaited", "until_us")

    def __init__(self, until_us: int) -> None:
        self.until_us, self.awaited = until_us, False

    def __await__(self) -> Generator[Pause, None, None]:
        if self.awaited:
            raise IotsimError("this wait is over: time does not come back. Write "
                              "`await ctx.wait(...)` each time.")
        self.awaited = True
        yield self


@dataclass(frozen=True, slots=True)
class ScriptClock:
    """Simulated time, as it is when somebody asks.

    Attributes
    ----------
    elapsed : float
        Seconds since the start.
    now : datetime
        In UTC.
    """

    elapsed: float
    now: datetime


class Context:
    """What a script does and sees; made by the run that plays it."""

    def __init__(self, playing: Playing) -> None:
        self._playing = playing
        self.pause: Pause | None = None

    @property
    def clock(self) -> ScriptClock:
        """Simulated time: `clock.elapsed` in seconds, `clock.now` as a datetime."""
        stage, at_us = self._here()
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=stage.start_us + at_us)
        return ScriptClock(at_us / 1e6, moment)

    @property
    def fleet(self) -> Fleet:
        """Who was there at the start."""
        return self._here()[0].fleet

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self._here()[0].seed

    @property
    def live(self) -> bool:
        """Whether `observed()` is known."""
        stage, at_us = self._here()
        return stage.view(at_us, None).live

    def wait(self, duration: Duration) -> Pause:
        """Let simulated time go on; must be awaited."""
        _, at_us = self._here()
        self.pause = Pause(at_us + duration_us(duration, "wait"))
        return self.pause

    def spawn(
        self, profile: Any, count: int = 1, labels: Mapping[str, str] | None = None,
        offset: int = 0, every: Duration | None = None, id: str | None = None,
    ) -> Done[list[str]]:
        """Add devices; gives their ids, which are never used twice.

        Parameters
        ----------
        profile : str, Path, Profile or coroutine function
        count : int
        labels : mapping of str to str, optional
        offset : int
            The lowest index that may be used; it goes on after those of the type there are.
        every : duration, optional
        id : str, optional
            Template of the ids; see `Fleet.add`.
        """
        stage, _ = self._here()
        if offset:
            check_count(offset)

        def first(series: str) -> int:
            return max(stage.first_index(series), offset)

        members = members_of(profile, count=count, labels=labels, every=every, id=id, first=first)
        self._playing.add(members)
        return Done(list(members.group(0).ids))

    def add(
        self, profile: Any, *, count: int = 1, labels: Mapping[str, str] | None = None,
        every: Duration | None = None, id: str | None = None,
    ) -> Done[list[str]]:
        """Add devices: `spawn`, as it is called everywhere else."""
        return self.spawn(profile, count, labels, 0, every, id)

    def stop(
        self, ids: Any = None, device_type: str | None = None, graceful: bool = True, *,
        where: Any = None,
    ) -> Done[int]:
        """Stop devices, for good; gives how many.

        Parameters
        ----------
        ids : list of str or selector, optional
            An empty list is nobody; everybody if nothing says who.
        device_type : str, optional
        graceful : bool
            Taken and not needed: readings that are under way are always delivered.
        where : selector, optional
            As everywhere else; of those with these ids, if both are given.
        """
        return Done(self._do("stop", verbs.stop(who(where, ids, device_type))) or 0)

    def inject_fault(
        self, fault: Any, ids: Any = None, device_type: str | None = None,
        duration: Duration | None = "60s", params: Mapping[str, Any] | None = None, *,
        where: Any = None, reason: str | None = None, **more: Any,
    ) -> Done[int]:
        """Inject a fault; gives on how many devices.

        Parameters
        ----------
        fault : str or FaultType
        ids, device_type, where
            Who, as in `stop`.
        duration : duration or None
            None: until it is cleared.
        params : mapping, optional
            Of the fault; or give them by name.
        reason : str, optional
            For people; it stands in the log and in the events.
        """
        given = verbs.inject(fault, who(where, ids, device_type), duration, reason,
                             verbs.merged(params, more, "params"))
        return Done(self._do("inject", given) or 0)

    def inject(
        self, fault: Any, where: Any = "all", duration: Duration | None = None, *,
        reason: str | None = None, parameters: Mapping[str, Any] | None = None, **more: Any,
    ) -> Done[int]:
        """Inject a fault, spelled as everywhere else: without a duration until it is cleared."""
        given = verbs.inject(fault, who(where, None, None), duration, reason,
                             verbs.merged(parameters, more))
        return Done(self._do("inject", given) or 0)

    def suspend(self, where: Any = "all", duration: Duration | None = None) -> Done[int]:
        """Let devices rest."""
        return self.inject("suspend", where, duration)

    def clear(
        self, fault: Any = None, where: Any = "all", *, ids: Any = None,
        device_type: str | None = None,
    ) -> Done[int]:
        """End a fault, or all of them; gives on how many devices."""
        return Done(self._do("clear", verbs.clear(fault, who(where, ids, device_type))) or 0)

    def set(
        self, where: Any = "all", every: Duration | None = None,
        fields: Mapping[str, Any] | None = None, **more: Any,
    ) -> Done[int]:
        """Change the interval, or the parameters of fields; gives of how many devices."""
        given = verbs.set_(who(where, None, None), every, verbs.merged(fields, more, "fields"))
        return Done(self._do("set", given) or 0)

    def command(
        self, name: str, where: Any = "all", *, payload: Any = None, id: str | None = None
    ) -> Done[int]:
        """Give devices a command; gives to how many it was new."""
        given = verbs.command(name, who(where, None, None), payload, id)
        return Done(self._do("command", given) or 0)

    def update_behavior(
        self, params: Mapping[str, Any], ids: Any = None, device_type: str | None = None, *,
        where: Any = None,
    ) -> Done[int]:
        """Change the parameters of fields: `{"temperature": {"mean": 25}}`; who as in `stop`."""
        given = verbs.set_(who(where, ids, device_type), None, params)
        return Done(self._do("set", given) or 0)

    def log(self, text: Any) -> Done[None]:
        """Write a line into the log."""
        self._do("log", verbs.log(text))
        return Done(None)

    def status(self) -> Done[dict[str, Any]]:
        """Give the model's state, the same offline: total_devices, by_state, by_type, faults."""
        stage, at_us = self._here()
        view = stage.view(at_us, None)
        return Done({"total_devices": view.devices, "by_state": dict(view.by_state),
                     "by_type": dict(view.by_type), "faults": dict(view.faults)})

    def observed(self) -> Done[Observed]:
        """Give what only a live run knows: acknowledgements, latency, lateness.

        Raises
        ------
        IotsimError
            If this run is offline.
        """
        stage, at_us = self._here()
        found = stage.view(at_us, None).observed
        if found is None:
            raise IotsimError("ctx.observed() is known of a live run only, and this one is "
                              "offline. Use ctx.status(), or ask ctx.live first.")
        return Done(observed_of(found))

    def expect(
        self, condition: Any, message: str | None = None, last: Duration | None = None
    ) -> Done[bool]:
        """Check something, as `Scenario.expect`; gives False if it failed."""
        stage, at_us = self._here()
        members = self._playing.members(stage)
        checked = condition_of(condition, known_fields(members))
        given = expect_parameters(message, last)
        found = judged(stage, checked, at_us, message, given.get("last_us"), members)
        self._playing.expectations.append(found)
        return Done(found.status != "failed")

    def random(self, name: str) -> float:
        """Return a number in [0, 1): the next draw of the scenario's own stream of this name."""
        stage, _ = self._here()
        return self._playing.dice(stage.seed).uniform(name)

    def choose(
        self, where: Any = "all", count: int | None = None, fraction: float | None = None
    ) -> Done[list[str]]:
        """Give the ids of some devices, others every time: so many, or such a part of them."""
        stage, at_us = self._here()
        there = stage.ids(parse(who(where, None, None)), at_us)
        return Done(self._playing.dice(stage.seed).choose(there, count, fraction))

    def _do(self, verb: str, parameters: Mapping[str, Any]) -> int | None:
        self._here()
        return self._playing.do(verb, parameters)

    def _here(self) -> tuple[Stage, int]:
        if self.pause is not None and not self.pause.awaited:
            self.pause = None
            raise IotsimError("ctx.wait(...) was not awaited. Write `await ctx.wait(...)`.")
        return self._playing.here()


def who(where: Any, ids: Any, device_type: str | None) -> Where:
    """Return the selector that a script's arguments mean: nothing is everybody, [] is nobody.

    Either may be a list of ids or a selector; those who are in both are meant.
    """
    first, second = _selector("where", where), _selector("ids", ids)
    if device_type is not None:
        if not isinstance(device_type, str):
            raise BadValue("device_type", device_type, "is not the name of a type",
                           "Give text such as 'pump'.")
        second = Selector((*second.terms, *parse(f"device_type={device_type}").terms),
                          second.fraction, second.count, second.shard)
    if any(not values for _, values in (*first.terms, *second.terms)):
        return ids_of(())
    if first == Selector():
        return second
    if second == Selector():
        return first
    twice = {key for key, _ in first.terms} & {key for key, _ in second.terms}
    for key in ("fraction", "count", "shard"):
        if getattr(first, key) is not None and getattr(second, key) is not None:
            twice.add(key)
    if twice:
        raise BadValue(min(twice), str(second), "is given twice", "Say it once.")
    one = second if first.fraction is None and first.count is None else first
    return Selector((*first.terms, *second.terms), one.fraction, one.count,
                    first.shard or second.shard)


def _selector(name: str, given: Any) -> Selector:
    if given is None:
        return Selector()
    if isinstance(given, Done):
        given = given.value
    if isinstance(given, (list, tuple, set, frozenset)):
        names = [str(one) for one in given]
        return parse(ids_of(names if isinstance(given, (list, tuple)) else sorted(names)))
    if isinstance(given, str) and name == "ids" and given != "all" and "=" not in given:
        raise BadValue("ids", given, "is text, not a list of ids",
                       f"Write [{given!r}], or a selector such as 'site=north'.")
    return parse(given)
