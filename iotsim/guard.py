"""What ends a child process and removes its folder when we end, however that happens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from iotsim.transport.discretion import environment_for_children

END_S = 3.0
# Our end of its standard input is closed when we end: by then it knows whom to end. The folder of
# a process that has only just been killed may not go at once.
_CODE = """
import os, shutil, sys, time
folder, pid = sys.argv[1], 0
for line in iter(sys.stdin.buffer.readline, b""):
    pid = int(line)
if pid:
    try:
        os.kill(pid, 9)
    except OSError:
        pass
for _ in range(50):
    shutil.rmtree(folder, ignore_errors=True)
    if not os.path.exists(folder):
        break
    time.sleep(0.1)
"""


class Guard:
    """A small process that outlives us by a moment, to tidy up after us.

    Parameters
    ----------
    folder : Path
        What it removes; dismissed, it removes nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CODE, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment_for_children(),
            start_new_session=True,  # an interrupt of the kernel or terminal is not for it
        )

    def watch(self, pid: int) -> None:
        """Have it end this process, instead of another one; 0 for none."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(b"%d\n" % pid)
            self._process.stdin.flush()
        except OSError:  # somebody has ended it
            pass

    def dismiss(self) -> None:
        """End it: what it watched over has been tidied up."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            reap(process)


def reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was told to end; it is killed if it does not."""
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        try:
            process.stdin.close()
        except OSError:
            pass
