"""Small platforms on loopback, for notebooks and tests; `iotsim.lab.notip()` is one of NoTIP."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from iotsim.errors import MissingExtra

if TYPE_CHECKING:
    from iotsim.lab.platform import NotipLab

__all__ = ("notip",)

_GUESTS = {"cryptography": "cryptography", "aiohttp": "aiohttp", "nats": "nats-py"}


def notip(
    *,
    name: str = "notip",
    gateway_certificates: bool = True,
    cert_ttl: Any = "90d",
    request_timeout: Any = "5s",
    retry_backoff: Any = "1s",
    tenant_id: str | None = None,
) -> NotipLab:
    """Return a small NoTIP platform; `async with` it, or `await` its `start()` and `stop()`.

    Parameters
    ----------
    name : str
        `start()` ends what was started under the same name before, so that a cell can be run
        again.
    gateway_certificates : bool
        Whether gateways may come to NATS with their own certificates. False: only the platform's
        five services may, as on the shipped platform.
    cert_ttl : duration
        How long a gateway's certificate is valid, in whole seconds.
    request_timeout, retry_backoff : duration
        For how long provisioning waits for management, each of three times, and between them: so
        long, then twice as long.
    tenant_id : str, optional
        Whose gateways are that name nobody; a new UUID if left out.

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

    return NotipLab(
        name=name, gateway_certificates=gateway_certificates, cert_ttl=cert_ttl,
        request_timeout=request_timeout, retry_backoff=retry_backoff, tenant_id=tenant_id,
    )  # fmt: skip
