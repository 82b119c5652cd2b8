"""Sessions of a device's own: how many there may be, under which name, with which last will."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iotsim.errors import BadValue, UnknownName
from iotsim.publishers.base import Identity, flag
from iotsim.topics import check_topic, topic

SESSIONS_MAX = {"5": 5000, "3.1.1": 250}
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
    parts = _parts(device)
    for name in _PLACEHOLDER.findall(template):
        if name not in parts:
            raise UnknownName("placeholder", name, parts, "client_id")
    return _filled(template, device)


def check_room(devices: int, version: str) -> int:
    """Return how many devices may have sessions if that is all of them, else raise BadValue."""
    most, why = SESSIONS_MAX[version], "each is an open file, here and at the broker"
    if version == "3.1.1":
        why = "paho needs three open files for each, and cannot wait for one beyond the 1,024th"
    todo = f"Choose at most {most:,} with where=, or use sessions='shared'."
    if devices > most:
        raise BadValue("sessions", "per-device", f"is too much for {devices:,} devices: {why}",
                       todo)
    needed = devices + FILES_SPARE
    allowed = _files_max()
    if version == "5" and allowed is not None and needed > allowed:
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


def _filled(template: str, device: Identity) -> str:
    parts = _parts(device)
    return _PLACEHOLDER.sub(lambda match: parts.get(match[1], match[0]), template)
