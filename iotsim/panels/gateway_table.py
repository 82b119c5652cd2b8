"""What panels of gateways share: forms of what is done to one, a table of all, what was said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from iotsim.errors import BadValue, UnknownName
from iotsim.panels import menu
from iotsim.panels.dashboard_still import table_html

ROWS_SHOWN = 500
STILL_ROWS = 12
CELL_CHARS, ASKED_CHARS = 200, 200

Cells = Sequence[Sequence[str]]


def form(name: str, does: str, *fields: tuple[Any, ...], sure: bool = False) -> dict[str, Any]:
    """Return what a page offers to do; a field has a name, a label, a value, and options."""
    return {"name": name, "does": does, "sure": sure,
            "fields": [{"name": field[0], "label": field[1], "value": field[2],
                        "options": list(field[3]) if len(field) > 3 else None}
                       for field in fields]}


def sensor_field() -> tuple[str, str, str, tuple[str, ...]]:
    """Return a field for one of the sensors of the gateway that is chosen."""
    return "sensor", "sensor", "", ()


class Book:
    """Which gateways a page shows, and which one it has chosen.

    Attributes
    ----------
    text : str
        Part of what stands in a row, in any case.
    chosen : str
        The gateway's name; empty if there is none.
    """

    def __init__(self) -> None:
        self.text = self.chosen = ""

    def ask(self, message: Mapping[str, Any]) -> None:
        """Take over what a page asks to see."""
        for name in ("text", "chosen"):
            if name in message:
                setattr(self, name, str(message[name] or "").strip()[:ASKED_CHARS])

    def given(self, message: Mapping[str, Any], forms: Iterable[Mapping[str, Any]]
              ) -> dict[str, Any]:
        """Return what somebody has typed into a form, as values.

        Raises
        ------
        IotsimError
            If there is no such form, or no gateway is named.
        """
        known = {str(one["name"]): one for one in forms}
        what = message.get("form")
        if what not in known:
            raise UnknownName("command", what, known)
        if not message.get("gateway"):
            raise BadValue("gateway", "", "is none", "Choose one in the table.")
        typed = message.get("given") or {}
        names = [str(field["name"]) for field in known[str(what)]["fields"]]
        return {name: menu.value_of(str(typed[name])) for name in names
                if str(typed.get(name) or "").strip()}

    def page(self, columns: Sequence[str], rows: Cells, sensors_of: Callable[[str], list[str]],
             said_columns: Sequence[str], said: Cells) -> dict[str, Any]:
        """Return what a page shows now, as plain JSON; the first column is the gateway's name."""
        text = self.text.casefold()
        found = [row for row in rows if any(text in cell.casefold() for cell in row)]
        names = {row[0] for row in rows}
        if self.chosen not in names:
            self.chosen = next((row[0] for row in found), "")
        return {"columns": list(columns), "rows": [_cut(row) for row in found[:ROWS_SHOWN]],
                "count": len(rows), "matching": len(found), "text": self.text,
                "chosen": self.chosen, "sensors": sensors_of(self.chosen) if self.chosen else [],
                "said_columns": list(said_columns), "said": [_cut(row) for row in said]}


def _cut(row: Sequence[str]) -> list[str]:
    return [cell if len(cell) <= CELL_CHARS else f"{cell[: CELL_CHARS - 1]}…" for cell in row]


def still_of(title: str, page: Mapping[str, Any]) -> str:
    """Return the table as HTML, escaped."""
    if not page:
        return ""
    return table_html(title, page["columns"], page["rows"][:STILL_ROWS])
