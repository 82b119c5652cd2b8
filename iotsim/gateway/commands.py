"""A platform's command: what it says, what it changes, how it is answered. Pure.

Two spellings of the same message are about: snake_case, which is on the wire, and camelCase, which
the published schema asks for. Both are read, also mixed; where both stand, snake_case holds, as
for those who know only that. Answers bear both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Literal, TypeAlias

import orjson

from iotsim.errors import BadValue, shown
from iotsim.gateway.record import Status

Verdict: TypeAlias = Literal["ack", "nack", "expired"]

FRESH_US = 60_000_000  # exactly so old is still fresh
BYTES_MAX = 64 * 1024
ID_CHARS_MAX = 128
VERSION_CHARS_MAX = 128
MESSAGE_CHARS_MAX = 200
FREQUENCY_MS_MAX = 86_400_000
CONFIG, FIRMWARE = "config_update", "firmware_push"

STATUSES: Mapping[str, Status] = {
    "online": "online", "active": "online", "resumed": "online", "running": "online",
    "paused": "paused", "suspended": "paused",
    "offline": "offline", "stopped": "offline", "inactive": "offline",
}
_ALLOWED = "allowed are online (active, resumed, running), paused (suspended) and offline " \
    "(stopped, inactive)"
_NO_JSON = f"Send one JSON object of up to {BYTES_MAX:,} bytes."
_EPOCH = datetime(1970, 1, 1)
_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,100}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_PLAIN_ID = re.compile(r"[A-Za-z0-9_.:-]+")


@dataclass(frozen=True, slots=True)
class Command:
    """What a platform asks of a gateway.

    Attributes
    ----------
    id : str
        As it was given; 1 to 128 printable characters.
    kind : str
        `config_update`, `firmware_push`, or what nobody knows; empty if there was none.
    issued_us : int
        Microseconds since 1970, by the platform's clock.
    payload : JSON value
    has_payload : bool
        A payload of null is not the same as none.
    """

    id: str
    kind: str
    issued_us: int
    payload: Any = None
    has_payload: bool = False

    def expired(self, now_us: int) -> bool:
        """Return whether it is more than 60 s old."""
        return now_us - self.issued_us > FRESH_US


@dataclass(frozen=True, slots=True)
class Change:
    """What a command changes; None: not that.

    Attributes
    ----------
    frequency_ms : int, optional
    status : {"online", "paused", "offline"}, optional
    firmware : str, optional
    """

    frequency_ms: int | None = None
    status: Status | None = None
    firmware: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a `GatewayRecord` that it changes, with their new values."""
        named = {"send_frequency_ms": self.frequency_ms, "status": self.status,
                 "firmware": self.firmware}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a gateway says to a command.

    Attributes
    ----------
    command_id : str
    status : {"ack", "nack", "expired"}
    message : str
        Why not; empty if there is nothing to say.
    timestamp : str
        UTC, milliseconds, `Z`.
    """

    command_id: str
    status: Verdict
    message: str = ""
    timestamp: str = ""

    @property
    def wire(self) -> bytes:
        """The payload of its message: the same bytes each time it is sent."""
        said = {"command_id": self.command_id, "commandId": self.command_id,
                "status": self.status}
        if self.message:
            said["message"] = self.message
        return orjson.dumps(said | {"timestamp": self.timestamp})


def answer(command: Command, status: Verdict, now_us: int, message: str = "") -> Answer:
    """Return an answer as of an instant; its message is one line of up to 200 characters.

    Examples
    --------
    >>> answer(Command("c-1", "reboot", 0), "nack", 1_500_000, "unknown command type").wire.decode()
    '{"command_id":"c-1","commandId":"c-1","status":"nack","message":"unknown command type",\
"timestamp":"1970-01-01T00:00:01.500Z"}'
    """
    moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=now_us)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return Answer(command.id, status, _line(message), text)


def answer_id(gateway_id: str, command_id: str) -> str:
    """Return the message id of the answers to a command: a stream stores them once.

    Examples
    --------
    >>> answer_id("gw-uuid", "c-1")
    'answer/gw-uuid/c-1'
    """
    if _PLAIN_ID.fullmatch(command_id) is None:  # a header is one line of ASCII
        command_id = sha256(command_id.encode()).hexdigest()
    return f"answer/{gateway_id}/{command_id}"


def _line(text: str) -> str:
    text = "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))
    return text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 1] + "…"


# -- reading --------------------------------------------------------------------------------------


def read(body: bytes) -> Command:
    """Return the command that is in a message.

    Raises
    ------
    BadValue
        If nobody can answer it: it is no JSON object, has no id, no time, or wrong types.

    Examples
    --------
    >>> read(b'{"commandId":"c-1","type":"reboot","issued_at":"1970-01-01T00:00:01.5Z"}')
    Command(id='c-1', kind='reboot', issued_us=1500000, payload=None, has_payload=False)
    """
    size = f"{len(body):,} bytes"
    if len(body) > BYTES_MAX:
        raise BadValue("command", size, f"is over {BYTES_MAX:,} bytes", _NO_JSON)
    try:
        said = orjson.loads(body)
    except ValueError:
        raise BadValue("command", size, "is not JSON", _NO_JSON) from None
    if not isinstance(said, dict):
        raise BadValue("command", type(said).__name__, "is not an object", _NO_JSON)
    ident = _either(said, "command_id", "commandId")
    if not isinstance(ident, str) or not ident.isprintable() or not (
            1 <= len(ident) <= ID_CHARS_MAX):
        raise BadValue("command_id", ident, f"is not 1 to {ID_CHARS_MAX} printable characters",
                       "Send a UUID.")
    kind = said.get("type")
    if not (kind is None or isinstance(kind, str)):
        raise BadValue("type", kind, "is not text", f"Send {CONFIG!r} or {FIRMWARE!r}.")
    return Command(ident, kind or "", instant_us(_either(said, "issued_at", "issuedAt")),
                   said.get("payload"), "payload" in said)


def _either(said: Mapping[str, Any], snake: str, camel: str) -> Any:
    found = said.get(snake)
    return said.get(camel) if found is None else found


def instant_us(text: Any) -> int:
    """Return a time of RFC 3339 in microseconds since 1970; finer digits are cut off.

    Raises
    ------
    BadValue
        If it is none.

    Examples
    --------
    >>> instant_us("1970-01-01T01:00:00.0000019+01:00")
    1
    """
    found = _RFC3339.fullmatch(text) if isinstance(text, str) else None
    if found is not None:
        year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
        behind, ahead = int(found[9] or 0), int(found[10] or 0)
        try:
            # A leap second has no name of its own here.
            moment = datetime(year, month, day, hour, minute, min(second, 59))
        except ValueError:
            found = None
    if found is None or second > 60 or behind > 23 or ahead > 59:
        raise BadValue("issued_at", text, "is not a time of RFC 3339",
                       "Send one such as '2026-01-01T00:00:00.000Z'.")
    offset_s = (behind * 3600 + ahead * 60) * (-1 if found[8] == "-" else 1)
    part_us = int(((found[7] or "") + "000000")[:6])
    whole_s = (moment - _EPOCH) // timedelta(seconds=1) + (second == 60) - offset_s
    return whole_s * 1_000_000 + part_us


# -- what is to be done ---------------------------------------------------------------------------


def plan(command: Command) -> Change | str:
    """Return what a command changes, or why it cannot be done, in words for the platform.

    Examples
    --------
    >>> plan(Command("c-1", "config_update", 0, {"status": "SUSPENDED"}, True))
    Change(frequency_ms=None, status='paused', firmware=None)
    >>> plan(Command("c-1", "config_update", 0, {"sendFrequencyMs": 0}, True))
    'sendFrequencyMs must be > 0'
    """
    if command.kind == CONFIG:
        return _config(command)
    if command.kind == FIRMWARE:
        return _firmware(command)
    return "unknown command type"


def _config(command: Command) -> Change | str:
    said = _object(command, "config")
    if isinstance(said, str):
        return said
    frequency = _either(said, "send_frequency_ms", "sendFrequencyMs")
    status = said.get("status")
    wrong = [why for why in (_frequency_trouble(frequency), _status_trouble(status)) if why]
    if wrong:  # of two, the good one is not done either
        return "; ".join(wrong)
    return Change(frequency, None if status is None else STATUSES[_folded(status)])


def _frequency_trouble(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int):
        huge = isinstance(value, float) and value >= 2**63
        if not huge:
            return "invalid config payload: sendFrequencyMs must be a whole number"
    if value <= 0:
        return "sendFrequencyMs must be > 0"
    if value > FREQUENCY_MS_MAX:
        return f"sendFrequencyMs must be <= {FREQUENCY_MS_MAX} (24 h)"
    return ""


def _status_trouble(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return "invalid config payload: status must be text"
    return "" if _folded(value) in STATUSES else f"unknown status {shown(value)}: {_ALLOWED}"


def _folded(status: str) -> str:
    return status.strip().casefold()


def _firmware(command: Command) -> Change | str:
    said = _object(command, "firmware")
    if isinstance(said, str):
        return said
    version = _either(said, "firmware_version", "firmwareVersion")
    if version is None or version == "":
        return Change()
    if not isinstance(version, str):
        return "invalid firmware payload: firmwareVersion must be text"
    if len(version) > VERSION_CHARS_MAX or not version.isprintable():
        return f"firmwareVersion must be up to {VERSION_CHARS_MAX} printable characters"
    return Change(firmware=version)


def _object(command: Command, what: str) -> dict[str, Any] | str:
    if not command.has_payload:
        return f"invalid {what} payload: there is none"
    if command.payload is None:
        return {}
    if not isinstance(command.payload, dict):
        return f"invalid {what} payload: it must be an object"
    return command.payload
