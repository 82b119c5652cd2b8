"""Topic templates: `devices/{device_id}/telemetry` and what may stand in one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from iotsim.errors import BadValue, UnknownName

DEFAULT_TOPIC = "devices/{device_id}/telemetry"
TOPIC_BYTES_MAX = 1024
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_OWN = ("device_id", "device_type")


def check_topic(template: object, labels: Mapping[str, str] | None = None) -> str:
    """Return a topic template that can be filled in, or raise.

    Parameters
    ----------
    template : str
        Text with placeholders: `{device_id}`, `{device_type}` and any `{label}`.
    labels : mapping, optional
        The labels that devices have; None when they are not all known yet.

    Raises
    ------
    BadValue
        If it is empty, too long, or has a wildcard, a control character or a stray brace.
    UnknownName
        If a placeholder is neither of the two names nor a label.
    """
    name, allowed = "topic_template", "Give text such as 'devices/{device_id}/telemetry'."
    if not isinstance(template, str):
        raise BadValue(name, template, "is not text", allowed)
    if not template or len(template.encode("utf-8", "replace")) > TOPIC_BYTES_MAX:
        raise BadValue(name, template, "is empty or over 1,024 bytes", allowed)
    placeholders = _PLACEHOLDER.findall(template)
    fixed = _PLACEHOLDER.sub("", template)
    for sign, why in (("{", "has a stray brace"), ("}", "has a stray brace"),
                      ("+", "has a wildcard"), ("#", "has a wildcard")):
        if sign in fixed:
            raise BadValue(name, template, why, allowed)
    if not fixed.isprintable():
        raise BadValue(name, template, "has a control character", allowed)
    if labels is not None:
        known = (*_OWN, *labels)
        for placeholder in placeholders:
            if placeholder not in known:
                raise UnknownName("placeholder", placeholder, known, name)
            if placeholder not in _OWN:
                _part(placeholder, labels[placeholder])
    return template


def topic(template: str, device_id: str, device_type: str, labels: Mapping[str, str]) -> str:
    """Return the topic of one device.

    Raises
    ------
    BadValue
        If what is filled in would change the levels of the topic.
    UnknownName
        If the device lacks a label that the template names.

    Examples
    --------
    >>> topic("{site}/{device_id}", "pump-0001", "pump", {"site": "north"})
    'north/pump-0001'
    """
    parts = {**labels, "device_id": device_id, "device_type": device_type}

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in parts:
            raise UnknownName("placeholder", name, parts, "topic_template")
        return _part(name, parts[name])

    return _PLACEHOLDER.sub(fill, template)


def _part(name: str, value: str) -> str:
    if not value or not value.isprintable() or any(sign in value for sign in "/+#"):
        raise BadValue(name, value, "cannot be part of a topic",
                       "Give printable text without '/', '+' and '#'.")
    return value
