"""Simulate fleets of IoT devices: live, offline, and replayed byte for byte.

The friendly names are here; everything loads on first use, so that `import iotsim` costs
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iotsim.registry import PUBLIC, resolve

if TYPE_CHECKING:
    from iotsim import lab as lab
    from iotsim import logs as logs
    from iotsim import metrics as metrics
    from iotsim.errors import IotsimError as IotsimError
    from iotsim.fleet import Fleet as Fleet
    from iotsim.gateway.platform import Platform as Platform
    from iotsim.gateway.spec import Gateway as Gateway
    from iotsim.live_runs import runs as runs
    from iotsim.profiles import Profile as Profile
    from iotsim.result import Result as Result
    from iotsim.run import Run as Run
    from iotsim.scenario import Scenario as Scenario
    from iotsim.script_names import DeviceIds as DeviceIds
    from iotsim.script_names import FaultType as FaultType
    from iotsim.script_names import LabelSelector as LabelSelector
    from iotsim.selectors import ids as ids
    from iotsim.taps import Tap as Tap
    from iotsim.taps import tap as tap
    from iotsim.transport.credentials import Credentials as Credentials
    from iotsim.transport.tls import TLS as TLS
    from iotsim.verification import Verification as Verification
    from iotsim.verification import verify as verify

__version__ = "0.1.0"
__all__ = (  # equals registry.PUBLIC; a test holds them together
    "Credentials",
    "DeviceIds",
    "FaultType",
    "Fleet",
    "Gateway",
    "IotsimError",
    "LabelSelector",
    "Platform",
    "Profile",
    "Result",
    "Run",
    "Scenario",
    "TLS",
    "Tap",
    "Verification",
    "ids",
    "lab",
    "logs",
    "metrics",
    "runs",
    "tap",
    "verify",
)


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        value = resolve(PUBLIC, name, "name")
        globals()[name] = value
        return value
    raise AttributeError(f"module 'iotsim' has no attribute {name!r}")


def load_ipython_extension(shell: Any) -> None:
    """Give a shell the line magic `%iotsim`; what `%load_ext iotsim` calls."""
    from iotsim.magic import load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Take the line magic away again; what `%unload_ext iotsim` calls."""
    from iotsim.magic import unload

    unload(shell)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
