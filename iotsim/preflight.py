"""Before a run: what this machine has, what the run needs, and what to do where it does not fit."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PYTHON = (3, 11)
PORTS_ELSEWHERE = (49_152, 65_535)  # where nobody says: the range that IANA names
PORTS_SHARE = 0.9
FILES_SPARE = 64  # the interpreter's own, a notebook's, a few libraries


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
    ok : bool
    text : str
        What is there; where it does not fit also what is needed, and what to do.
    """

    name: str
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Need:
    """What a run needs of the machine.

    Attributes
    ----------
    connections : int
        Sockets that are open at the same time.
    ports : int
        Loopback ports that it will listen on.
    memory_bytes : int
    packages : mapping of module to distribution
        Guest libraries.
    extra : str
        The extra of iotsim that brings them.
    """

    connections: int = 0
    ports: int = 0
    memory_bytes: int = 0
    packages: Mapping[str, str] | None = None
    extra: str = "all"


def look(need: Need) -> list[Finding]:
    """Return what was found, in a fixed order; nothing is raised.

    Examples
    --------
    >>> [finding.ok for finding in look(Need())]
    [True, True]
    """
    found = [_python(), _packages(need.packages or {}, need.extra)]
    if need.ports:
        found.append(_ports(need.ports))
    if need.connections:
        found.append(file_finding(need.connections))
    if need.memory_bytes:
        found.append(_memory(need.memory_bytes))
    return found


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= PYTHON:
        return Finding("Python", True, version)
    wanted = ".".join(map(str, PYTHON))
    return Finding("Python", False, f"{version}, needs {wanted}. Use a newer one.")


def _packages(packages: Mapping[str, str], extra: str) -> Finding:
    missing = [name for module, name in packages.items() if not _there(module)]
    if missing:
        return Finding("packages", False, f"{_and(missing)} {'are' if missing[1:] else 'is'} "
                       f'not installed. Install with: pip install "iotsim[{extra}]"')
    return Finding("packages", True, ", ".join(packages.values()) or "nothing else is needed")


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ports(count: int) -> Finding:
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            listener = socket.socket()
            held.append(listener)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
    except OSError as error:
        return Finding("ports", False, f"none can be opened on 127.0.0.1 ({error.strerror}). "
                       "Allow this process to listen on the loopback interface.")
    finally:
        for listener in held:
            listener.close()
    return Finding("ports", True, f"{count} free on 127.0.0.1")


def file_finding(connections: int) -> Finding:
    """Return whether so many sockets may be open beside what a process has open anyway."""
    needed = connections + FILES_SPARE
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return Finding("open files", True, "no limit")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} allowed"
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Finding("open files", True, f"{limit}, about {needed:,} needed")
    return Finding("open files", False, f"{limit}, about {needed:,} needed. "
                   f"Raise it in this shell with: ulimit -n {2 * needed}")


def port_finding(connections: int) -> Finding:
    """Return whether this machine has local ports for so many connections to one peer."""
    low, high = _local_ports()
    there = high - low + 1
    text = f"{there:,} for connections to one peer, {connections:,} needed"
    if connections <= PORTS_SHARE * there:
        return Finding("local ports", True, text)
    return Finding("local ports", False, f"{text}, and others need some. Widen it with: sysctl -w "
                   'net.ipv4.ip_local_port_range="1024 65535", or use several brokers.')


def _local_ports() -> tuple[int, int]:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()
        return int(low), int(high)
    except (OSError, ValueError):
        return PORTS_ELSEWHERE


def _memory(needed_bytes: int) -> Finding:
    free_bytes = memory_free_bytes()
    if free_bytes is None:
        return Finding("memory", True,
                       f"about {size_text(needed_bytes)} needed; cannot be looked up")
    text = f"{size_text(free_bytes)} free, about {size_text(needed_bytes)} needed"
    if free_bytes >= needed_bytes:
        return Finding("memory", True, text)
    return Finding("memory", False, f"{text}. Choose fewer devices or a shorter run.")


def memory_free_bytes() -> int | None:
    """Return the bytes of memory that can be had without swapping; None if nobody says."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def memory_used_bytes() -> int | None:
    """Return the bytes of memory that this process holds; None if nobody says."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def size_text(count: float) -> str:
    """Return a number of bytes as people say it.

    Examples
    --------
    >>> size_text(2_500_000_000), size_text(1)
    ('2.5 GB', '1 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6)):,} MB"
