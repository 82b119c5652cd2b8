"""What a store takes: text, numbers and JSON that come back as they went in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, get_args

from iotsim.errors import BadValue
from iotsim.gateway.commands import Answer, Verdict
from iotsim.gateway.record import Intent, Status

_WHOLE_MAX = 2**63 - 1
_DEPTH_MAX = 20
_CHOICES = {"status": get_args(Status), "intent": get_args(Intent)}
_VERDICTS = get_args(Verdict)
_SECRET_TEXTS = ("factory_key", "private_key_pem")
AES_KEY_BYTES = 32
_SPEC = 'Give mappings of JSON values with at least "name" and "type".'


def checked(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return fields of a gateway if a store can hold them, or raise BadValue."""
    for name, value in fields.items():
        if name == "aes_key":
            if not isinstance(value, bytes) or len(value) not in (0, AES_KEY_BYTES):
                raise BadValue(name, "…", "is no AES key", "Give 32 bytes.")
        elif name in _CHOICES:
            if value not in _CHOICES[name]:
                raise BadValue(name, value, "cannot be", f"Give one of: "
                               f"{', '.join(_CHOICES[name])}.")
        elif name in ("send_frequency_ms", "seed"):
            if type(value) is not int or not 0 <= value <= _WHOLE_MAX:
                raise BadValue(name, value, "is no whole number from 0 to 9223372036854775807")
        elif name == "sensors":
            sensor_specs(value)
        else:
            check_text(name, value, empty=name != "name", secret=name in _SECRET_TEXTS)
    return fields


def check_text(name: str, value: object, *, empty: bool = False, secret: bool = False) -> None:
    """Raise BadValue unless it is text that can be stored."""
    given = "…" if secret else value
    if not isinstance(value, str):
        raise BadValue(name, type(value), "is not text", "Give a str.")
    if not value and not empty:
        raise BadValue(name, given, "is empty", "Give some text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadValue(name, given, "has half a character", "Give text that is UTF-8.") from None


def check_answer(answer: Answer) -> None:
    """Raise BadValue unless it is an answer that can be stored."""
    if not isinstance(answer, Answer):
        raise BadValue("answered", type(answer), "is no answer", "Give an Answer.")
    if answer.status not in _VERDICTS:
        raise BadValue("status", answer.status, "is no answer", f"Give one of: "
                       f"{', '.join(_VERDICTS)}.")
    check_text("command_id", answer.command_id)
    check_text("message", answer.message, empty=True)
    check_text("timestamp", answer.timestamp, empty=True)


def sensor_specs(sensors: Any) -> list[tuple[str, str, str]]:
    """Return name, type and JSON text of each sensor, or raise BadValue."""
    if isinstance(sensors, str | bytes | Mapping) or not hasattr(sensors, "__iter__"):
        raise BadValue("sensors", sensors, "is no list of sensors", _SPEC)
    found: list[tuple[str, str, str]] = []
    for spec in sensors:
        if not isinstance(spec, Mapping):
            raise BadValue("sensors", spec, "is no sensor", _SPEC)
        plain = _plain(spec, _DEPTH_MAX)
        for key in ("name", "type"):
            check_text(f"a sensor's {key}", plain.get(key, ""))
        if any(plain["name"] == name for name, *_ in found):
            raise BadValue("a sensor's name", plain["name"], "is there twice",
                           "Give each sensor of a gateway a name of its own.")
        try:
            text = json.dumps(plain, allow_nan=False, separators=(",", ":"))
        except ValueError:  # a number of too many digits
            raise BadValue("sensors", spec, "is not JSON", _SPEC) from None
        found.append((plain["name"], plain["type"], text))
    return found


def _plain(value: Any, depth: int) -> Any:
    """Return a value as JSON gives it back: what it would change is refused."""
    if depth == 0:
        raise BadValue("sensors", "…", f"is nested deeper than {_DEPTH_MAX}", _SPEC)
    if value is None or type(value) in (bool, str, int):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _plain(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, depth - 1) for inner in value]
    raise BadValue("sensors", value, "is not JSON", _SPEC)
