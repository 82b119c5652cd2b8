"""Sessions of a device's own: how many there may be, under which name, with which last will.

Who a device is to the broker may be its own, too: certificate, key and username are templates
then, and passwords come from a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from iotsim.errors import BadValue, UnknownName
from iotsim.publishers.base import Identity, flag
from iotsim.topics import check_topic, topic
from iotsim.transport.credentials import Credentials
from iotsim.transport.tls import TLS

SESSIONS_MAX = 5000
FILES_SPARE = 64  # the interpreter's own, a notebook's, a few libraries
CLIENT_ID = {"shared": "iotsim", "per-device": "{device_id}"}
CLIENT_ID_CHARS_MAX = 64
WILL_PAYLOAD = "offline"
WILL_PAYLOAD_BYTES_MAX = 65_535
WILL_OPTIONS: dict[str, Any] = {"will": None, "will_payload": None, "will_retain": None}
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class LastWill:
    """What the broker publishes when a connection ends without a goodbye: texts or templates.

    Attributes
    ----------
    topic, payload : str
        With `{device_id}`, `{device_type}` and `{label}`; other braces in a payload stay as
        they are, so that it may be JSON.
    retain : bool
    """

    topic: str
    payload: str = WILL_PAYLOAD
    retain: bool = False

    def of(self, device: Identity) -> LastWill:
        """Return the last will of one device.

        Examples
        --------
        >>> LastWill("devices/{device_id}/status").of(Identity("pump-0001")).topic
        'devices/pump-0001/status'
        """
        filled = topic(self.topic, device.device_id, device.device_type, device.labels)
        return LastWill(filled, _filled(self.payload, device), self.retain)


def take_will(given: Mapping[str, Any], sessions: str) -> LastWill | None:
    """Return the last will among the options of a publisher, or None; raises BadValue."""
    named = [name for name in WILL_OPTIONS if given[name] is not None]
    if not named:
        return None
    if sessions != "per-device":
        why = "needs a session for each device"
        raise BadValue(named[0], given[named[0]], why, "Use sessions='per-device'.")
    if given["will"] is None:
        allowed = "Give will='devices/{device_id}/status', too."
        raise BadValue(named[0], given[named[0]], "needs the topic of a last will", allowed)
    payload = WILL_PAYLOAD if given["will_payload"] is None else given["will_payload"]
    allowed = "Give text of at most 65,535 bytes."
    if not isinstance(payload, str):
        raise BadValue("will_payload", payload, "is not text", allowed)
    if len(payload.encode("utf-8", "replace")) > WILL_PAYLOAD_BYTES_MAX:
        raise BadValue("will_payload", payload, "is too long", allowed)
    retain = given["will_retain"] is not None and flag("will_retain", given["will_retain"])
    try:
        return LastWill(check_topic(given["will"]), payload, retain)
    except BadValue as error:
        allowed = "Give text such as 'devices/{device_id}/status'."
        raise BadValue("will", error.given, error.why, allowed) from None


def checked_client_id(value: Any, sessions: str) -> str:
    """Return the prefix or template of the client ids, or raise BadValue."""
    if value is None:
        return CLIENT_ID[sessions]
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or not 1 <= len(value) <= CLIENT_ID_CHARS_MAX
    ):
        raise BadValue("client_id", value, "cannot be one", "Give 1 to 64 characters.")
    has_device = "{device_id}" in value
    if has_device and sessions == "shared":
        why = "names a device, but devices share connections"
        raise BadValue("client_id", value, why, "Use sessions='per-device'.")
    if not has_device and sessions == "per-device":
        allowed = "Let it hold {device_id}; left out, it is the device's id."
        raise BadValue("client_id", value, "is the same for every device", allowed)
    return value


def client_id_of(template: str, device: Identity) -> str:
    """Return the client id of one device; raises UnknownName if it lacks a label.

    Examples
    --------
    >>> client_id_of("{site}-{device_id}", Identity("pump-0001", labels={"site": "north"}))
    'north-pump-0001'
    """
    return _filled_as("client_id", template, device)


@dataclass(frozen=True, slots=True)
class Passwords:
    """One password for each device, from a JSON file `{"device id": "password"}`; never shown."""

    path: str
    by_device: Mapping[str, str] = field(repr=False, compare=False)

    @classmethod
    def read(cls, path: object) -> Self:
        """Return what the file holds; raises BadValue without a word of its content."""
        allowed = 'Give the path of a JSON file: {"device id": "password"}.'
        if not isinstance(path, (str, Path)):
            raise BadValue("passwords", type(path), "is no path", allowed)
        name = str(path)
        try:
            content = json.loads(Path(name).read_bytes())
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
            raise BadValue("passwords", name, why, allowed) from None
        except ValueError:
            raise BadValue("passwords", name, "is not JSON", allowed) from None
        if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
            raise BadValue("passwords", name, "does not map names to text", allowed)
        return cls(name, content)

    def of(self, device: Identity) -> str:
        """Return the password of one device; raises BadValue if there is none."""
        found = self.by_device.get(device.device_id)
        if found is None:
            why = f"has none for the device {device.device_id!r}"
            raise BadValue("passwords", self.path, why, "Add it to the file.")
        return found


def check_shared(username: str, tls: TLS | None, passwords: object) -> None:
    """Raise BadValue if what devices share is asked to be each one's own."""
    todo = "Use sessions='per-device'."
    own = {"username": username}
    if tls is not None:
        own |= {"cert": tls.cert or "", "key": tls.key or ""}
    for name, value in own.items():
        if "{device_id}" in value:
            raise BadValue(name, value, "names a device, but devices share connections", todo)
    if passwords is not None:
        why = "are each device's own, but devices share connections"
        raise BadValue("passwords", "…", why, todo)


def credentials_of(
    shared: Credentials, passwords: Passwords | None, device: Identity
) -> Credentials:
    """Return who one device is to the broker: its username filled in, its password found.

    Examples
    --------
    >>> credentials_of(Credentials("gw-{device_id}"), None, Identity("pump-1")).username
    'gw-pump-1'
    """
    password = shared.password if passwords is None else passwords.of(device)
    username = _filled_as("username", shared.username, device)
    return replace(shared, username=username, password=password)


def is_template(tls: TLS) -> bool:
    """Return whether certificate or key are named after the device."""
    return "{" in (tls.cert or "") + (tls.key or "")


def tls_of(shared: TLS, device: Identity) -> TLS:
    """Return the TLS of one device: its certificate and key filled in, and looked at.

    Raises
    ------
    BadValue
        If they cannot be used; it names the device.
    """
    if not is_template(shared):
        return shared
    assert shared.cert is not None, "only a certificate can be a template"
    cert = _filled_as("cert", shared.cert, device)
    key = None if shared.key is None else _filled_as("key", shared.key, device)
    own = replace(shared, cert=cert, key=key)
    try:
        own.check_identity()
    except BadValue as error:
        why = f"{error.why} (device {device.device_id!r})"
        raise BadValue(error.name, error.given, why, error.allowed) from None
    return own


def check_room(devices: int) -> int:
    """Return how many devices may have sessions if that is all of them, else raise BadValue."""
    todo = f"Choose at most {SESSIONS_MAX:,} with where=, or use sessions='shared'."
    if devices > SESSIONS_MAX:
        why = "each is an open file, here and at the broker"
        raise BadValue("sessions", "per-device", f"is too much for {devices:,} devices: {why}",
                       todo)
    needed = devices + FILES_SPARE
    allowed = _files_max()
    if allowed is not None and needed > allowed:
        why = f"needs about {needed:,} open files and this process may have {allowed:,}"
        raise BadValue("sessions", "per-device", why, f"Raise it in the shell: ulimit -n {needed}")
    return devices


def _files_max() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _parts(device: Identity) -> dict[str, str]:
    own = {"device_id": device.device_id, "device_type": device.device_type}
    return {**device.labels, **own}


def _filled_as(option: str, template: str, device: Identity) -> str:
    parts = _parts(device)
    for name in _PLACEHOLDER.findall(template):
        if name not in parts:
            raise UnknownName("placeholder", name, parts, option)
    return _filled(template, device)


def _filled(template: str, device: Identity) -> str:
    parts = _parts(device)
    return _PLACEHOLDER.sub(lambda match: parts.get(match[1], match[0]), template)
