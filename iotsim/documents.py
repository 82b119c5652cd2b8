"""YAML documents as plain values, with the line of everything in them.

Plain scalars mean what YAML 1.2 says, so `off`, `no`, `12:30:45` and `2026-01-01` are text and
`1e3` is a number. Tags, anchors and duplicate keys are refused; size, depth and the number of
values are bounded, so no document can cost more than about a second. Errors name the line and
never show what stands there: the file may not be what the user thought it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from iotsim.errors import ProfileError, shown

SIZE_BYTES_MAX = 1_000_000
DEPTH_MAX = 20
NODES_MAX = 100_000
Place: TypeAlias = tuple[str | int, ...]

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_ZERO_LED = re.compile(r"[-+]?0[0-9]+")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(slots=True)
class Document:
    """What a file holds, and where.

    Attributes
    ----------
    name : str
        How errors call the file.
    value : object
        Dicts, lists, text, numbers, booleans, None.
    lines : dict
        Line of each value, by its place: `("telemetry_fields", "flow", "stddev")`.
    """

    name: str
    value: Any = None
    lines: dict[Place, int] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        """Return `file:line` of a place, or of the nearest place around it."""
        while place and place not in self.lines:
            place = place[:-1]
        line = self.lines.get(place)
        return self.name if line is None else f"{self.name}:{line}"


def read(path: Path) -> Document:
    """Return the document in a file.

    Raises
    ------
    ProfileError
        If there is no such file, or it is not a YAML document; the text never shows what is in it.
    """
    name = shown(str(path))[1:-1]
    try:
        if not path.is_file():
            raise ProfileError(name, "there is no such file. Give the path of a YAML file.")
        with path.open("rb") as stream:
            raw = stream.read(SIZE_BYTES_MAX + 1)
    except (OSError, ValueError):
        raise ProfileError(name, "the file cannot be read.") from None
    if len(raw) > SIZE_BYTES_MAX:
        raise ProfileError(name, "the file is over 1 MB, too large for a profile.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ProfileError(name, "the file is not UTF-8 text, so it is not a profile.") from None
    return parse(text, name)


def parse(text: str, name: str) -> Document:
    """Return the document in a text; `name` is what errors call it."""
    document = Document(name)
    if len(text) > SIZE_BYTES_MAX:
        raise ProfileError(name, "the text is over 1 MB, too large for a profile.")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        events = yaml.parse(text, Loader=loader)
        document.value = _Reader(document, events).document()
    except yaml.YAMLError as error:
        mark: Any = getattr(error, "problem_mark", None)
        where = name if mark is None else f"{name}:{mark.line + 1}"
        raise ProfileError(where, "this is not YAML; look at the indentation, colons and "
                                  "quotes here and just above.") from None
    return document


def dump(value: Any) -> str:
    """Return plain values as YAML that `parse` reads back to equal ones."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True,
                     default_flow_style=None, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would be read back as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = text in _WORDS or _FLOAT.fullmatch(text) or _ZERO_LED.fullmatch(text)
    style = '"' if plain or not text.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


class _Reader:
    """Builds values from parser events, counting as it goes."""

    def __init__(self, document: Document, events: Iterator[Any]) -> None:
        self._document, self._events, self._nodes = document, events, 0

    def document(self) -> Any:
        next(self._events)  # the stream starts
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), ())
        next(self._events)  # the document ends
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._refuse(event, "a second document starts here. Keep one per file.")
        return value

    def _refuse(self, event: Any, problem: str) -> ProfileError:
        return ProfileError(f"{self._document.name}:{_line(event)}", problem)

    def _value(self, event: Any, place: Place) -> Any:
        self._nodes += 1
        self._document.lines.setdefault(place, _line(event))
        if self._nodes > NODES_MAX or len(place) > DEPTH_MAX:
            raise self._refuse(event, "the document is too large or too deep for a profile.")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._refuse(event, "anchors and aliases (& and *) are not read. Write it out.")
        if event.tag is not None:
            raise self._refuse(event, "tags (!) are not read. Write the plain value.")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(place)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(place)
        return self._scalar(event)

    def _mapping(self, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.anchor or event.tag:
                raise self._refuse(event, "a key must be plain text.")
            key = event.value
            if key in found:
                raise self._refuse(event, "this key stands here twice. Keep one of them.")
            self._document.lines[*place, key] = _line(event)
            found[key] = self._value(next(self._events), (*place, key))
        return found

    def _sequence(self, place: Place) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found.append(self._value(event, (*place, len(found))))
        return found

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if event.style:  # quoted, or a block of text
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text) and len(text) < 20:
            return int(text)
        if _ZERO_LED.fullmatch(text):
            raise self._refuse(event, "a number with leading zeros is octal to some and decimal "
                                      "to others. Drop the zeros, or quote it if it is text.")
        return float(text) if _FLOAT.fullmatch(text) else text


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1
