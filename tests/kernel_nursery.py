"""Kernels for tests: a process imports once what all notebooks import, and each kernel is its fork.

A fork has imported what it needs, but has run nothing: no name of one notebook is seen by another.
Figures are made but not painted: tests do not look at pixels, and painting is what costs most in a
notebook. `python -m tests.notebook_tools`, which saves notebooks, starts ordinary kernels, and
paints.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager

REPOSITORY = Path(__file__).parent.parent
IMPORTED = (
    "numpy", "pandas", "pandas.io.formats.html", "pyarrow.parquet", "matplotlib.pyplot",
    "matplotlib_inline.config", "tqdm.auto",
    "ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell",
    "iotsim.fleet", "iotsim.profiles", "iotsim.profile_schema", "iotsim.scenario", "iotsim.offline",
    "iotsim.run", "iotsim.frames", "iotsim.arrow", "iotsim.plots", "iotsim.publishers.memory",
)


class Nursery:
    """The process that is forked; a context that ends it, and with it all its kernels."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, cwd=REPOSITORY, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def fork(self, argv: list[str], cwd: str, env: dict[str, str]) -> Kernel:
        """Start a kernel with these arguments."""
        order = json.dumps({"argv": argv, "cwd": str(cwd), "env": env})
        print(order, file=self._process.stdin, flush=True)
        return Kernel(int(self._process.stdout.readline()))

    def manager(self) -> type[AsyncKernelManager]:
        """Return a class of kernel managers, for a NotebookClient."""
        nursery = self

        class Manager(AsyncKernelManager):
            async def _async_launch_kernel(self, kernel_cmd, **kw):
                place = self.provisioner
                place.process = nursery.fork(kernel_cmd[kernel_cmd.index("-m") + 1 :], **{
                    name: kw[name] for name in ("cwd", "env")})
                place.pid = place.pgid = place.process.pid
                self._reconcile_connection_info(place.connection_info)

            _launch_kernel = _async_launch_kernel

        return Manager


class Kernel:
    """A process that is not our child, with as much of Popen as a kernel manager asks for."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """Return None as long as it runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def wait(self) -> int:
        """Return what it ended with; a provisioner has polled until then."""
        return 0

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


def _prepare() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    from IPython.core import pylabtools

    pylabtools.print_figure = lambda *_, **__: None
    gc.collect()
    gc.freeze()


def _reap(*_: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _become(order: dict) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nothing, number)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"], JPY_PARENT_PID=str(os.getppid()))
    sys.argv[:] = order["argv"]
    sys.path[:] = [path for path in sys.path if path != str(REPOSITORY)]
    import matplotlib
    from ipykernel import kernelapp

    # An ordinary kernel says so in the environment, and has a shell, before it imports these two.
    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    sys.modules.pop("matplotlib_inline.backend_inline", None)
    kernelapp.launch_new_instance()


def main() -> None:
    """Fork a kernel for each line of the standard input, and say its process id."""
    _prepare()
    signal.signal(signal.SIGCHLD, _reap)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line))
            return
        print(pid, flush=True)


if __name__ == "__main__":
    main()
