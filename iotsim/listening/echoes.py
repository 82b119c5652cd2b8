"""Answers that would be heard as commands: a fleet would talk to itself for ever."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from iotsim.errors import BadValue
from iotsim.listening.base import Ear

_PLACE = re.compile(r"\{[^{}]*\}")
_WHERE = ("host", "port", "vhost", "exchange")


def check_echoes(ears: Sequence[Ear]) -> None:
    """Raise if answers of one of these go where one of them takes commands.

    Raises
    ------
    BadValue
    """
    heard = {(_where(ear), _shape(ear, ear.topic)): ear for ear in ears}
    for ear in ears:
        other = heard.get((_where(ear), _shape(ear, ear.answer)))
        if other is not None:
            raise BadValue("answer", ear.answer, f"is where {other} is listened to for commands",
                           "Give answers a topic of their own, or leave answer out.")


def is_answer(value: Mapping[str, Any]) -> bool:
    """Return whether a JSON document is what a device has answered, and no command.

    Examples
    --------
    >>> is_answer({"status": "ack", "command_id": "c-1", "device_id": "pump-0000"})
    True
    """
    return value.keys() >= {"status", "command_id"} and not value.keys() & {"command", "name"}


def _where(ear: Ear) -> tuple[Any, ...]:
    return (ear.module.__name__, *(ear.settings.get(name) for name in _WHERE))


def _shape(ear: Ear, template: str) -> str:
    return _PLACE.sub("{}", template).replace("/", str(ear.settings["separator"]))
