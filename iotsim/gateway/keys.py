"""RSA keys and certificate requests of gateways; keys are made in processes of their own.

A key takes 60 ms of a core. `cryptography` lets other threads run meanwhile only since its
version 47, and a thread that computes wants the lock of the interpreter back after each key. So
keys are made by child processes, at a lower priority, which also can be ended at any moment.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from iotsim.errors import BadValue, MissingExtra
from iotsim.gateway.provisioning_errors import KeysUnavailable
from iotsim.transport.discretion import discreet, environment_for_children

WORKERS_MAX = 32
WORKERS_BY_DEFAULT = 4
MAKE_S = 120.0  # for one key, on a machine that does much else
END_S = 2.0
PEM_BYTES_MAX = 10_000
_PROGRAM = Path(__file__).with_name("key_worker.py")


class KeyMaker:
    """Makes RSA-2048 keys in child processes; an async context manager.

    The processes begin with the first keys and end with the block. They end by themselves when
    this process is gone, however it went.

    Parameters
    ----------
    workers : int, optional
        How many processes at most; all cores but one, up to 4, if not given.

    Examples
    --------
    >>> async def three():
    ...     async with KeyMaker() as keys:
    ...         return [await keys.make() for _ in range(3)]
    >>> import asyncio
    >>> asyncio.run(three())[0][:31]
    '-----BEGIN RSA PRIVATE KEY-----'
    """

    def __init__(self, workers: int | None = None) -> None:
        if workers is None:
            workers = max(1, min(_cores() - 1, WORKERS_BY_DEFAULT))
        if isinstance(workers, bool) or not isinstance(workers, int) or not (
            1 <= workers <= WORKERS_MAX
        ):
            raise BadValue("workers", workers, "is no number of processes",
                           f"Give a whole number from 1 to {WORKERS_MAX}.")
        self.workers = workers
        self.made = 0
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        self._slots: asyncio.Semaphore | None = None
        self._threads: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"<KeyMaker of {self.workers} processes at most: {self.made:,} keys made>"

    async def __aenter__(self) -> Self:
        needs_cryptography()
        self._slots = asyncio.Semaphore(self.workers)
        # One thread per process waits for what it writes.
        self._threads = ThreadPoolExecutor(2 * self.workers, "iotsim-keys")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        threads, self._threads = self._threads, None
        if threads is None:
            return
        ended = [threads.submit(child.end) for child in self._children]
        self._children.clear()
        self._idle.clear()
        threads.shutdown(wait=False)
        if ended:
            await asyncio.wait([asyncio.wrap_future(one) for one in ended], timeout=END_S)

    async def make(self) -> str:
        """Return a fresh private key as PKCS#1 PEM; cancelled, its process is ended.

        Raises
        ------
        KeysUnavailable
            If no process can be started, or it ends or hangs without a key.
        """
        if self._slots is None or self._threads is None:
            raise KeysUnavailable("this KeyMaker is not open: write `async with KeyMaker()`")
        async with self._slots:
            if self._threads is None:
                raise KeysUnavailable("this KeyMaker was closed meanwhile")
            fresh = not self._idle
            try:
                return await self._make(self._threads)
            except KeysUnavailable:
                if fresh or self._threads is None:
                    raise
            # A process that waited may have been ended by somebody else.
            return await self._make(self._threads)

    async def _make(self, threads: ThreadPoolExecutor) -> str:
        child = self._idle.pop() if self._idle else _Child()
        self._children.add(child)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(MAKE_S):
                pem = await loop.run_in_executor(threads, child.make)
        except BaseException as error:
            self._dismiss(child)
            if isinstance(error, TimeoutError):
                raise KeysUnavailable(f"none was made in {MAKE_S:g} s") from None
            raise
        if self._threads is not None:  # else it is being ended
            self._idle.append(child)
            self.made += 1
        return pem

    def _dismiss(self, child: _Child) -> None:
        child.kill()
        if self._threads is not None:
            self._children.discard(child)
            self._threads.submit(child.end)


class _Child:
    """One process; `make` and `end` run on threads, `kill` anywhere and at any time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    def make(self) -> str:
        try:
            if self._process is None:
                self._begin()
            return self._ask()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            why = error.strerror if isinstance(error, OSError) else type(error).__name__
            self.end()
            raise KeysUnavailable(f"the process that makes them failed ({why})") from None

    def _begin(self) -> None:
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.BELOW_NORMAL_PRIORITY_CLASS
                       | subprocess.CREATE_NEW_PROCESS_GROUP}
        # -P: modules beside the program must not hide those of Python.
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment_for_children(), **options,
        )
        if self._killed:  # while it began
            process.kill()
        assert process.stdin is not None
        paths = [path for path in sys.path if isinstance(path, str)]
        process.stdin.write(json.dumps(paths).encode() + b"\n")

    def _ask(self) -> str:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        size = process.stdout.readline(20)
        pem = process.stdout.read(min(int(size), PEM_BYTES_MAX)) if size else b""
        if not pem.endswith(b"-----END RSA PRIVATE KEY-----\n"):
            self.end()
            raise KeysUnavailable(
                f"the process that makes them ended early (exit code {process.returncode})"
            )
        return pem.decode("ascii")

    def kill(self) -> None:
        self._killed = True
        process = self._process
        if process is not None:
            process.kill()

    def end(self) -> None:
        """Kill it, wait until it is gone, and close its pipes."""
        self.kill()
        process = self._process
        if process is None:
            return
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # what was not written yet
                pass


@discreet
def csr_pem(private_key_pem: str) -> str:
    """Return a certificate request for a key: no subject, SHA-256, PEM with LF.

    Raises
    ------
    BadValue
        If the key is not an RSA key in PEM; it is not shown.
    """
    needs_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    key = private_key(private_key_pem)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = request.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode("ascii")


def private_key(pem: str) -> Any:
    """Return the RSA key of a PEM; its primes are not looked at again, which takes 70 ms."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    try:
        key = serialization.load_pem_private_key(
            pem.encode("ascii"), None, unsafe_skip_rsa_key_validation=True
        )
    except Exception:  # whose text and traceback may hold the key
        key = None
    if not isinstance(key, RSAPrivateKey):
        pem = ""  # this frame stays in the traceback
        raise BadValue("private_key_pem", "…", "is no RSA key in PEM",
                       "Give one of `KeyMaker.make`, or an empty text and one is made.")
    return key


def needs_cryptography() -> None:
    """Raise MissingExtra if `cryptography` is not installed."""
    if find_spec("cryptography") is None:
        raise MissingExtra("provisioning gateways", "cryptography", "notip")


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
