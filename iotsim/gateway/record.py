"""What is known of one gateway, on this side and on the platform's; the store keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from uuid import UUID, uuid5

Status: TypeAlias = Literal["provisioning", "online", "paused", "offline"]
Intent: TypeAlias = Literal["running", "stopped"]

FREQUENCY_MS_MAX = 86_400_000  # a day


@dataclass(frozen=True, slots=True, repr=False)
class GatewayRecord:
    """One gateway: who it is here, and what the platform made of it.

    Attributes
    ----------
    name : str
        The local name: what readings are keyed by, whatever the platform hands out.
    factory_id, factory_key : str
        Credentials that work once. The key is a secret.
    model, firmware : str
    send_frequency_ms : int
    seed : int
    sensors : tuple of mapping
        The spec of each sensor, as plain JSON values.
    private_key_pem : str
        PKCS#1, RSA-2048; a secret. Empty: not made yet.
    gateway_id, tenant_id : str
        The platform's UUIDs; empty until it has answered.
    cert_pem : str
    aes_key : bytes
        32 bytes; a secret.
    status : str
        What the platform asked for: online, paused, offline; "provisioning" before it answered.
    intent : str
        Whether people want it "running" or "stopped".
    created_at : str
        RFC 3339, UTC.
    """

    name: str
    factory_id: str
    factory_key: str = ""
    model: str = ""
    firmware: str = ""
    send_frequency_ms: int = 5000
    seed: int = 0
    sensors: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)
    private_key_pem: str = ""
    gateway_id: str = ""
    tenant_id: str = ""
    cert_pem: str = ""
    aes_key: bytes = b""
    status: Status = "provisioning"
    intent: Intent = "running"
    created_at: str = ""

    @property
    def provisioned(self) -> bool:
        """Whether the platform has answered, and all it said is here."""
        return bool(self.gateway_id and self.aes_key and self.cert_pem)

    def __repr__(self) -> str:
        where = f" as {self.gateway_id} of tenant {self.tenant_id}" if self.gateway_id else ""
        return f"<GatewayRecord {self.name!r}{where}: {self.status}, {self.intent}>"


def sensor_id(gateway_id: str, sensor: str) -> str:
    """Return the UUID of a sensor: the same for the same gateway and name, for ever.

    Examples
    --------
    >>> sensor_id("9f5a0a3e-0a53-4b2f-8c4e-0d8f3a1b2c3d", "temperature")
    '4f20438c-4d5d-5ea7-ae23-5bdb22c2c85a'
    """
    return str(uuid5(UUID(gateway_id), sensor))


def local_name(device_id: str) -> tuple[str, str]:
    """Return the gateway's and the sensor's name of a device id such as `gw-1:temperature`.

    Examples
    --------
    >>> local_name("gw-1:temperature")
    ('gw-1', 'temperature')
    """
    gateway, _, sensor = device_id.rpartition(":")
    return gateway, sensor


