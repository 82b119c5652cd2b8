"""A fleet: who is simulated, and where their readings go. Frozen; every verb returns a new one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iotsim.errors import BadValue
from iotsim.facts import facts_html, table_html
from iotsim.members import DEFAULT_ID, Members, check_columns, members_of
from iotsim.outlets import Outlet, outlet_of
from iotsim.profiles import Profile
from iotsim.registry import door
from iotsim.seeding import check_seed, fresh_seed
from iotsim.selectors import Where
from iotsim.transport.discretion import discreet
from iotsim.units import Duration, Instant, duration_text

if TYPE_CHECKING:
    from iotsim.clock import Speed
    from iotsim.listening.base import Ear
    from iotsim.members import Script
    from iotsim.preflight_fleet import Preflight
    from iotsim.progress import Progress
    from iotsim.result import Result
    from iotsim.run import Run

_NAME_CHARS_MAX = 128


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Fleet:
    """Devices to simulate, and where their readings go.

    Parameters
    ----------
    name : str
        Names the run: a fleet of the same name cannot be live twice.
    seed : int, optional
        Readings are a pure function of it; drawn, and shown in the repr, if not given.

    Examples
    --------
    >>> fleet = Fleet("plant", seed=42).add("temperature_sensor", count=50)
    >>> fleet
    <Fleet 'plant': 50 devices in 1 group, seed 42>
    >>> len(fleet.generate("10m").frame())
    6000
    """

    name: str
    seed: int
    members: tuple[Members, ...]
    outlets: tuple[Outlet, ...]
    ears: tuple[Ear, ...]

    def __init__(self, name: str, *, seed: int | None = None) -> None:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise BadValue("name", name, "is not printable text", "Give a name such as 'plant'.")
        if len(name) > _NAME_CHARS_MAX:
            raise BadValue("name", name, f"is over {_NAME_CHARS_MAX} characters", "")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "seed", fresh_seed() if seed is None else check_seed(seed))
        object.__setattr__(self, "members", ())
        object.__setattr__(self, "outlets", ())
        object.__setattr__(self, "ears", ())

    def __len__(self) -> int:
        return sum(member.count for member in self.members)

    def __bool__(self) -> bool:
        return True

    def add(
        self,
        device: str | Path | Profile | Script,
        *,
        count: int = 1,
        labels: Mapping[str, str] | None = None,
        every: Duration | None = None,
        id: str | None = None,
    ) -> Fleet:
        """Return a fleet with more devices.

        Parameters
        ----------
        device : str, Path, Profile or coroutine function
            Name of a profile, path of one, a Profile, or `async def device(dev)`.
        count : int
        labels : mapping of str to str, optional
            On top of the profile's own.
        every : duration, optional
            Interval; the profile's if not given.
        id : str, optional
            Template of the ids with `{type}`, `{index}` (from 0) or `{n}` (from 1);
            `{type}-{index:04d}` if not given. Indices go on from those of the same type.

        Raises
        ------
        IotsimError
            If the profile, a label, the count or an id cannot be.
        """

        def first(series: str) -> int:
            return sum(member.count for member in self.members if member.series == series)

        added = members_of(device, count=count, labels=labels, every=every, id=id, first=first)
        self._check_ids(added)
        check_columns(self.members, added)
        return self._with(members=(*self.members, added))

    def _check_ids(self, added: Members) -> None:
        if all(m.id_template == DEFAULT_ID for m in (*self.members, added)) or not self.members:
            return  # the usual template gives every device of every type its own id
        taken = {name for i, m in enumerate(self.members) for name in m.group(i).ids}
        for name in added.group(len(self.members)).ids:
            if name in taken:
                raise BadValue("id", name, "is taken by another device of this fleet",
                               "Give another template, such as id='b-{index:04d}'.")

    @discreet
    def publish_to(
        self, url: str, topic: str | None = None, *, where: Where = "all", **options: Any
    ) -> Fleet:
        """Return a fleet that publishes to a broker, too; may be repeated.

        Parameters
        ----------
        url : str
            `mqtt://host:1883`, `mqtts://`, `memory:name`, `console:` or `file:path.ndjson`.
        topic : str, optional
            Template with `{device_id}`, `{device_type}` and any `{label}`; the profile's if not
            given.
        where : selector
            Which devices.
        **options
            Of the publisher, such as `qos=1`.

        Raises
        ------
        IotsimError
            If the scheme, an option, the topic or the selector cannot be.
        """
        outlet = outlet_of(url, topic, where, options)
        return self._with(outlets=(*self.outlets, outlet))

    @discreet
    def listen_to(
        self, url: str, topic: str | None = None, answer: str | None = None, *,
        where: Where = "all", **options: Any,
    ) -> Fleet:
        """Return a fleet whose devices take commands from a broker, too; may be repeated.

        A command is JSON such as `{"command": "reboot", "id": "c-17", "payload": {}}`; anything
        else reaches scripted devices (`dev.commands()`) as text without a name. Devices that do
        not listen acknowledge. Live runs at a pace only; offline nobody is connected.

        Parameters
        ----------
        url : str
            `mqtt://host:1883`, `nats://`, `amqp://`, `coap://`, or a secure one.
        topic, answer : str, optional
            Templates, as those of `publish_to`: "devices/{device_id}/commands", and that with
            "/answers". A message that says where it wants its answer gets it there.
        where : selector
            Which devices.
        **options
            Of the protocol, such as `qos=1`.

        Raises
        ------
        IotsimError
            If the scheme, an option, a topic or the selector cannot be.
        """
        from iotsim.listening.base import ear_of
        from iotsim.listening.echoes import check_echoes

        ears = (*self.ears, ear_of(url, topic, answer, where, options))
        check_echoes(ears)
        return self._with(ears=ears)

    def generate(
        self,
        duration: Duration,
        *,
        start: Instant | None = None,
        to: str | Path | None = None,
        progress: Progress = None,
    ) -> Result:
        """Return all readings of a stretch of simulated time, as fast as the machine computes.

        Parameters
        ----------
        duration : duration
            Half-open: [start, start + duration).
        start : instant, optional
            2026-01-01T00:00Z if not given.
        to : path, optional
            A `.parquet` file to stream to; nothing is then held in memory.
        progress : bool or callable, optional
            Whether to show a progress bar; when it takes longer than a second if not given. A
            function is told of each stretch in seconds instead.

        Raises
        ------
        IotsimError
            If a duration or a path cannot be.
        """
        from iotsim.offline import generate

        return generate(self, duration, start=start, to=to, progress=progress)

    async def run(
        self,
        duration: Duration,
        *,
        speed: Speed = 1,
        start: Instant | None = None,
        capture: Any = "10m",
        to: str | Path | None = None,
        backfill: Duration | None = None,
    ) -> Result:
        """Run live for a stretch of simulated time; returns what it left.

        Cancelling it (a kernel's interrupt) stops the run gracefully.

        Parameters
        ----------
        duration : duration
            Of simulated time.
        speed : float or "max"
            Simulated seconds per real second.
        start : instant, optional
            Simulated time at the beginning; now, cut to milliseconds, if not given.
        capture : str or int
            How much of the readings to keep: "10m", a number of rows, or "all".
        to : path, optional
            A `.parquet` file that gets every reading.
        backfill : duration, optional
            First so much history, up to `start`, as fast as the brokers take it; then live. The
            readings are those of one longer run.
        """
        from iotsim.live_runs import run

        return await run(self, duration, speed=speed, start=start, capture=capture, to=to,
                         backfill=backfill)

    def start(
        self,
        duration: Duration | None = None,
        *,
        speed: Speed = 1,
        start: Instant | None = None,
        capture: Any = "10m",
        to: str | Path | None = None,
        replace: bool = False,
        backfill: Duration | None = None,
        thread: bool = False,
    ) -> Run:
        """Start a run in the background of the running event loop; returns it at once.

        Starting an equal fleet again returns the same Run. In a script, where no loop runs:
        `run = fleet.start("10m", thread=True); result = asyncio.run(run.wait())`.

        Parameters
        ----------
        duration : duration, optional
            Of simulated time; until stopped if not given.
        replace : bool
            Whether a different fleet that is live under this name may be stopped for it.
        thread : bool
            Whether it runs on a loop of its own, in a thread of its own: then no cell that blocks
            can hold it up. Scripted devices run there, too.
        speed, start, capture, to, backfill
            As for `run`.

        Raises
        ------
        NoLoop
            If no event loop runs here, and `thread` is false.
        NameInUse
            If a different fleet is live under this name, or this one on another loop.
        """
        from iotsim.live_runs import start_run

        return start_run(self, duration, speed=speed, start=start, capture=capture, to=to,
                         replace=replace, backfill=backfill, thread=thread)

    def preflight(
        self,
        duration: Duration | None = None,
        *,
        speed: Speed = 1,
        capture: Any = "10m",
        to: str | Path | None = None,
        connect: bool = True,
    ) -> Preflight:
        """Look whether a run would fit: open files, ports, memory, disk, and every publisher.

        Connects to every broker and goes away again (nothing is published), and makes a few
        thousand messages to see how fast this machine is; ten seconds at most.

        Parameters
        ----------
        duration : duration, optional
            Of simulated time; until stopped if not given.
        connect : bool
            Whether brokers may be asked at all.
        speed, capture, to
            As for `run`.

        Examples
        --------
        >>> Fleet("plant", seed=42).add("pump", count=50).preflight("10m").ok
        True
        """
        from iotsim.preflight_fleet import preflight

        return preflight(self, duration, speed=speed, capture=capture, to=to, connect=connect)

    def panel(self) -> Any:
        """Return the widget that shows this fleet, looks whether it fits, and starts it.

        It is the run's panel from then on; that of a fleet that is live already at once.
        """
        return door("panel_fleet")(self)

    def spec(self) -> dict[str, Any]:
        """Return what determines the readings, as plain JSON values."""
        return {"name": self.name, "seed": self.seed,
                "members": [member.spec() for member in self.members]}

    def _with(self, **changes: Any) -> Fleet:
        copy = object.__new__(Fleet)
        for name in ("name", "seed", "members", "outlets", "ears"):
            object.__setattr__(copy, name, changes.get(name, getattr(self, name)))
        return copy

    def _facts(self) -> Iterator[tuple[str, str]]:
        groups = len(self.members)
        yield "devices", f"{len(self):,} devices in {groups} group{'' if groups == 1 else 's'}"
        yield "seed", f"seed {self.seed}"
        for outlet in self.outlets[:3]:
            yield "publishes to", f"→ {outlet}"
        for ear in self.ears[:3]:
            yield "listens to", f"← {ear}"
        if len(self.outlets) > 3:
            yield "publishes to", f"→ {len(self.outlets) - 3} more"
        if len(self.ears) > 3:
            yield "listens to", f"← {len(self.ears) - 3} more"

    def __repr__(self) -> str:
        return f"<Fleet {self.name!r}: {', '.join(text for _, text in self._facts())}>"

    def _repr_html_(self) -> str:
        groups = table_html(("type", "count", "every", "labels"), map(_row, self.members),
                            len(self.members), "groups")
        return facts_html(f"Fleet {self.name}", self._facts(), groups)


def _row(member: Members) -> tuple[str, ...]:
    every = duration_text(member.interval_us) if member.interval_us is not None else "scripted"
    labels = ", ".join(f"{name}={text}" for name, text in list(member.labels.items())[:6])
    return member.type, f"{member.count:,}", every, labels
