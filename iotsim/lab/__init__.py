"""Small platforms on loopback, for notebooks and tests; `iotsim.lab.notip()` is one of NoTIP."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from iotsim.errors import MissingExtra

if TYPE_CHECKING:
    from iotsim.lab.platform import NotipLab

__all__ = ("notip",)

_GUESTS = {"cryptography": "cryptography", "aiohttp": "aiohttp", "nats": "nats-py"}


def notip(**options: Any) -> NotipLab:
    """Return a small NoTIP platform; `async with` it, or `await` its `start()` and `stop()`.

    Parameters
    ----------
    **options
        As of `iotsim.lab.platform.NotipLab`.

    Returns
    -------
    NotipLab
        Not started yet.

    Raises
    ------
    MissingExtra
        If a library is missing.
    BadValue
        If an option cannot be used, or nats-server is not here.
    """
    for module, package in _GUESTS.items():
        if importlib.util.find_spec(module) is None:
            raise MissingExtra("the NoTIP platform of the lab", package, "notip")
    from iotsim.lab.platform import NotipLab

    return NotipLab(**options)
