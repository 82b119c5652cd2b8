"""Every error that iotsim raises on purpose.

Each class builds its own one-line text from data: what was given, why it cannot be, what is
allowed, what to do. Each inherits the builtin that a caller would catch anyway.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

__all__ = (
    "IotsimError",
    "BadValue",
    "UnknownName",
    "ProfileError",
    "MissingExtra",
    "NoLoop",
    "NameInUse",
    "DeviceFailed",
    "StalledError",
    "ForeignAwait",
    "ConnectError",
    "NoAnswer",
    "SavedRunError",
    "StoreError",
    "CutShort",
    "RunBroken",
    "RunFailed",
    "Undelivered",
)

_SHOWN_CHARS = 60
_TOLD_CHARS = 500
_LINE_CHARS, _TAIL_CHARS = 3000, 1000
_CLOSE_CHARS = 100


def shown(value: object) -> str:
    """Return a repr that stays short and on one line, whatever was given.

    Examples
    --------
    >>> shown(10**5000)
    '<a number of 5,001 digits>'
    """
    text = _one_line(_repr(value)[: _SHOWN_CHARS + 1])
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _repr(value: object) -> str:
    if type(value) is str:  # of a long text, only what is shown
        return repr(value[: _SHOWN_CHARS + 1])
    try:
        return repr(value)
    except Exception:  # what cannot say what it is must not hide why it was refused
        if isinstance(value, int):
            digits = int(value.bit_length() * 0.30103) + 1
            return f"<a number of {digits:,} digits>"
        return f"<a {type(value).__name__} that cannot be shown>"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _bounded(text: str) -> str:
    # What to do stands at the end: a line that is too long is cut in its middle.
    if len(text) > _LINE_CHARS:
        text = f"{text[:_LINE_CHARS - _TAIL_CHARS]} … {text[-_TAIL_CHARS:]}"
    return _one_line(text)


def told(error: BaseException) -> str:
    """Return what an exception says, on one line and bounded, even if it cannot say it."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(it cannot say why)"
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text if len(text) <= _TOLD_CHARS else text[: _TOLD_CHARS - 1] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class IotsimError(Exception):
    """Base of every error that iotsim raises on purpose; its text is one line."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(_bounded(arg) if type(arg) is str else arg for arg in args))


class BadValue(IotsimError, ValueError):
    """A value that cannot be used: `name=given` cannot be, because `why`; `allowed`."""

    def __init__(self, name: str, given: object, why: str, allowed: str = "") -> None:
        self.name, self.given, self.why, self.allowed = name, given, why, allowed
        tail = f" {allowed}" if allowed else ""
        super().__init__(f"{_one_line(name)}={shown(given)} {why}.{tail}")


class UnknownName(IotsimError, LookupError):
    """A name that nothing answers to; offers the closest and lists what is known."""

    def __init__(self, kind: str, name: object, known: Iterable[str], where: str = "") -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        given = name[:_CLOSE_CHARS] if isinstance(name, str) else ""
        close = difflib.get_close_matches(given, self.known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        prefix = f"{where}: " if where else ""
        listed = ", ".join(self.known) or "none"
        super().__init__(f"{prefix}no {kind} called {shown(name)}.{hint} Known: {listed}.")


class ProfileError(IotsimError, ValueError):
    """A profile that cannot be used; names file, line and field where they are known."""

    def __init__(self, where: str, problem: str) -> None:
        self.where, self.problem = where, problem
        super().__init__(f"{where}: {problem}")


class MissingExtra(IotsimError, ImportError):
    """A guest library that is not installed; says which extra brings it."""

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        self.purpose, self.package, self.extra = purpose, package, extra
        super().__init__(
            f'{purpose} needs {package}. Install it with: pip install "iotsim[{extra}]"'
        )


class NoLoop(IotsimError, RuntimeError):
    """A call that needs a running event loop where none runs."""

    def __init__(self, call: str, instead: str) -> None:
        super().__init__(
            f"{call} needs a running event loop and there is none here. "
            f"In a script write `{instead}`."
        )


class NameInUse(IotsimError, RuntimeError):
    """Another specification is already live under the same name."""

    def __init__(self, name: str, live: str = "a different fleet is already live") -> None:
        self.name = name
        super().__init__(
            f"{live} under the name {name!r}. Stop it first, give this one another name, or call "
            "start(replace=True)."
        )


class DeviceFailed(IotsimError, RuntimeError):
    """A scripted device raised: says which device, when in simulated time, and with which seed."""

    def __init__(self, device_id: str, time: str, seed: int, cause: BaseException) -> None:
        self.device_id, self.time, self.seed = device_id, time, seed
        detail = told(cause)
        super().__init__(f"device {device_id!r} failed at {time} (seed={seed}): {detail}")
        self.__cause__ = cause


class StalledError(IotsimError, RuntimeError):
    """Virtual time stands still because parties wait for something the kernel does not own."""

    def __init__(self, waiting: Iterable[str], seconds: float) -> None:
        self.waiting = list(waiting)
        head = "; ".join(self.waiting[:3]) or "unknown"
        more = f" and {len(self.waiting) - 3} more" if len(self.waiting) > 3 else ""
        super().__init__(
            f"virtual time has stood still for {seconds:g} s: {head}{more}. "
            "Devices may only await dev.sleep, or the kernel's Event and Queue."
        )


class ForeignAwait(IotsimError, RuntimeError):
    """A scripted device awaited something that cannot be awaited offline."""

    def __init__(self, device_id: str, line: str, what: str) -> None:
        self.device_id, self.line = device_id, line
        super().__init__(
            f"device {device_id!r} awaits {what} at {line}: offline, a device may only await "
            "dev.sleep, or the kernel's Event and Queue. Use run() for devices that do real I/O."
        )


class ConnectError(IotsimError, ConnectionError):
    """A broker could not be reached, or refused us; `lasting` if soon again would be no use."""

    def __init__(
        self, url: str, why: str, todo: str = "", verb: str = "publish to", *,
        lasting: bool = False,
    ) -> None:
        self.url, self.why, self.lasting = url, why, lasting
        tail = f" {todo}" if todo else ""
        super().__init__(f"cannot {verb} {url}: {why}.{tail}")


class NoAnswer(IotsimError, TimeoutError):
    """Nobody answered in time."""

    def __init__(self, what: str, seconds: float) -> None:
        self.what, self.seconds = what, seconds
        super().__init__(f"{what} was not answered within {seconds:g} s.")


class SavedRunError(IotsimError, ValueError):
    """A saved run that cannot be read: truncated, foreign or newer than this iotsim."""

    def __init__(self, path: object, why: str, todo: str = "") -> None:
        self.path, self.why = str(path), why
        tail = f" {todo}" if todo else ""
        super().__init__(f"{path}: {why}.{tail}")


class StoreError(IotsimError, RuntimeError):
    """A store of gateways that cannot be opened, read or written."""

    def __init__(self, path: object, why: str, todo: str = "") -> None:
        self.path, self.why = str(path), why
        tail = f" {todo}" if todo else ""
        super().__init__(f"{path}: {why}.{tail}")


class CutShort(IotsimError, RuntimeError):
    """A run ended before the readings that full lanes had held up were computed."""

    def __init__(self, devices: int) -> None:
        self.devices = devices
        super().__init__(
            f"the run was stopped while {devices:,} devices were behind, and there was no time to "
            "compute the rest of their readings: this result is not what generate() gives. "
            "Stop earlier, or lower the speed."
        )


class RunBroken(IotsimError, RuntimeError):
    """Something happened in a run that should not have; carries its cause."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"the run was hurt by {told(cause)}")
        self.__cause__ = cause


class RunFailed(IotsimError, RuntimeError):
    """A run ended with errors, or otherwise than expected: `errors` and `failed` hold all of it."""

    def __init__(
        self, name: str, errors: Iterable[BaseException], failed: Iterable[object] = ()
    ) -> None:
        self.errors, self.failed = tuple(errors), tuple(failed)
        told = [f"{what}: {found[0]}" + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")
                for what, found in (("errors", self.errors), ("failed expectations", self.failed))
                if found]
        super().__init__(f"run {name!r} ended with {'; '.join(told)}")


class Undelivered(IotsimError, RuntimeError):
    """Messages of a run that no broker acknowledged; says how many and why."""

    def __init__(self, url: str, counts: Mapping[str, int], reasons: Iterable[str]) -> None:
        self.url, self.counts = url, dict(counts)
        told = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
        why = "; ".join(reasons)
        super().__init__(f"{url}: {told}" + (f" ({why})" if why else ""))
