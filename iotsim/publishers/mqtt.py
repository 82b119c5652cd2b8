"""MQTT: what may be set; a session of our own carries it, in version 5 or 3.1.1."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from typing import Any, Self

from iotsim.errors import BadValue, MissingExtra
from iotsim.publishers.base import (
    UNTRACED,
    Identity,
    Limits,
    Link,
    Tracing,
    Verdicts,
    check_options,
    choice,
    flag,
    whole,
    with_defaults,
)
from iotsim.publishers.sessions import (
    CLIENT_ID,
    WILL_OPTIONS,
    LastWill,
    Passwords,
    check_room,
    check_shared,
    checked_client_id,
    client_id_of,
    credentials_of,
    is_template,
    take_will,
    tls_of,
)
from iotsim.transport.addresses import Address
from iotsim.transport.credentials import Credentials
from iotsim.transport.tls import TLS, TLS_OPTIONS, take_tls

DEVICES_PER_LANE = 100_000  # fewer lanes, fuller slots: half the cost at 100,000 devices
LANES_MAX = 8
QUEUE_MESSAGES_PER_DEVICE = 1000
_DEFAULTS: dict[str, Any] = {
    "qos": 1,
    "connections": None,
    "version": "5",
    "keepalive": 10,
    "retain": False,
    "client_id": None,
    "sessions": "shared",
    "credentials": None,
    "username": None,
    "password": None,
    "passwords": None,
    **TLS_OPTIONS,
    **WILL_OPTIONS,
}


@dataclass(frozen=True, slots=True)
class MqttPublisher:
    """An MQTT broker; devices share a few connections, or have one each.

    Attributes
    ----------
    address : Address
    qos : {0, 1, 2}
    connections : int or None
        Shared: None is one for every 100,000 devices, at most 8.
    version : {"5", "3.1.1"}
    keepalive : int
        Seconds.
    retain : bool
    client_id : str
        Shared: prefix of the client ids `<prefix>-<run id>-<lane>`. Per device: their template.
    tls : TLS or None
        None for plain TCP. Per device, the paths in `cert` and `key` may be templates.
    credentials : Credentials
        Per device, the username may be a template such as "{device_id}".
    per_device : bool
        Whether each device has a session of its own (`sessions="per-device"`).
    will : LastWill or None
        Per device: what the broker publishes when a connection ends without a goodbye.
    passwords : Passwords or None
        Per device: a password for each, from a file.
    """

    address: Address
    limits: Limits
    qos: int = 1
    connections: int | None = None
    version: str = "5"
    keepalive: int = 10
    retain: bool = False
    client_id: str = CLIENT_ID["shared"]
    tls: TLS | None = None
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    per_device: bool = False
    will: LastWill | None = None
    tracing: Tracing = UNTRACED
    passwords: Passwords | None = None

    @classmethod
    def build(cls, url: str, **options: Any) -> Self:
        """Return the publisher for a URL and options; see `publishers.base.build`."""
        scheme = url.partition(":")[0].lower()
        check_options(scheme, options, _DEFAULTS)
        sessions = choice("sessions", options.get("sessions", "shared"), tuple(CLIENT_ID))
        per_device = sessions == "per-device"
        if per_device:
            options.setdefault("queue_messages", QUEUE_MESSAGES_PER_DEVICE)
        limits, tracing = Limits.take(options), Tracing.take(options)
        given = with_defaults(options, _DEFAULTS)
        address = Address.parse(url, 8883 if scheme == "mqtts" else 1883)
        if given["connections"] is not None:
            if per_device:
                why = "cannot be chosen where each device has its own"
                raise BadValue("connections", given["connections"], why, "Leave it out.")
            whole("connections", given["connections"], 1, 1000)
        tls = take_tls(given, secure=scheme == "mqtts", scheme="mqtts")
        who = Credentials.take(given, address.credentials, "MQTT", ("username", "password"))
        if not per_device:
            check_shared(who.username, tls, given["passwords"])
        if tls is not None:  # an error now, and not when it connects
            own = per_device and is_template(tls)
            (replace(tls, cert=None, key=None) if own else tls).context()
        passwords = None if given["passwords"] is None else Passwords.read(given["passwords"])
        if passwords is not None and (who.password or not who.username):
            why = "is given beside a password for all" if who.password else "needs a username"
            todo = "Give username='{device_id}' and passwords=, but not password=."
            raise BadValue("passwords", passwords.path, why, todo)
        return cls(
            address=address,
            limits=limits,
            qos=whole("qos", given["qos"], 0, 2),
            connections=given["connections"],
            version=choice("version", given["version"], ("5", "3.1.1")),
            keepalive=whole("keepalive", given["keepalive"], 2, 3600),
            retain=flag("retain", given["retain"]),
            client_id=checked_client_id(given["client_id"], sessions),
            tls=tls,
            credentials=who,
            per_device=per_device,
            will=take_will(given, sessions),
            tracing=tracing,
            passwords=passwords,
        )

    @property
    def url(self) -> str:
        """The address, without user and password."""
        return str(self.address)

    @property
    def context(self) -> ssl.SSLContext | None:
        """A fresh client context, or None for plain TCP."""
        return None if self.tls is None else self.tls.context()

    def lanes(self, devices: int) -> int:
        """Return how many connections so many devices have; raises BadValue if too many."""
        if self.per_device:
            return check_room(devices)
        if self.connections is not None:
            return self.connections
        return min(max(1, -(-devices // DEVICES_PER_LANE)), LANES_MAX)

    def link(
        self, lane: int, run_id: str, verdicts: Verdicts, device: Identity | None = None
    ) -> Link:
        """Return the link of one lane; raises MissingExtra if its client is not installed."""
        name, will, own = f"{self.client_id}-{run_id}-{lane}", None, self
        if self.per_device:
            assert device is not None, "a session of its own needs to know whose it is"
            name, own = client_id_of(self.client_id, device), self._of(device)
            will = self.will.of(device) if self.will is not None else None
        try:
            from iotsim.publishers.mqtt5_session import Mqtt5Link
            from iotsim.publishers.mqtt311 import Mqtt311Link
        except ModuleNotFoundError:
            raise MissingExtra("publishing over MQTT", "mqtt5", "mqtt") from None
        kind = Mqtt5Link if self.version == "5" else Mqtt311Link
        return kind(own, name, verdicts, will)

    def check_device(self, device: Identity) -> None:
        """Raise BadValue if a device cannot be who it should be, as without its certificate."""
        client_id_of(self.client_id, device)
        self._of(device)
        if self.will is not None:
            self.will.of(device)

    def _of(self, device: Identity) -> Self:
        # The same as one device has it: its certificate, its name, its password.
        tls = None if self.tls is None else tls_of(self.tls, device)
        who = credentials_of(self.credentials, self.passwords, device)
        if tls is self.tls and who == self.credentials:
            return self
        return replace(self, tls=tls, credentials=who, passwords=None)
