"""A dashboard as a still picture: HTML for pages where no widget lives."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from iotsim.panels.run_still import headline, picture_of
from iotsim.panels.scope import Scope
from iotsim.preflight import size_text
from iotsim.units import clock_text

ROWS_SHOWN, ALERTS_SHOWN, TYPES_SHOWN = 6, 6, 8
_CARD = ("border:1px solid #8886;border-radius:6px;padding:4px 12px;margin:4px 8px 4px 0;"
         "display:inline-block")


def still_of(facts: dict[str, Any], table: dict[str, Any], scope: Scope | None) -> str:
    """Return the state that a dashboard shows as HTML, escaped, without JavaScript."""
    if not facts:
        return ""
    active = sum(one["active"] for one in facts["alerts"])
    cards = "".join(
        f"<div style='{_CARD}'><div>{html.escape(name)}</div><b>{html.escape(text)}</b></div>"
        for name, text in (
            ("devices", f"{facts['devices']:,}"), ("readings", f"{facts['readings']:,}"),
            ("rate", f"{facts['rates']['readings']:,.0f}/s"), ("alerts", f"{active:,}")))
    head = f"{facts['title']} · {headline(facts)}"
    return (f"<div style='border:1px solid #8886;border-radius:6px;padding:8px 12px;"
            f"max-width:60em'><b>{html.escape(head)}</b><div>{cards}</div>"
            f"{'' if scope is None else picture_of(facts, scope)}{_fleet(facts)}"
            f"{_runtime(facts)}{_readings(table)}{_alerts(facts)}</div>")


def _fleet(facts: dict[str, Any]) -> str:
    states = list(facts["fleet"]["states"])
    rows = [(one["type"], *(f"{count:,}" for count in one["states"]))
            for one in facts["fleet"]["types"][:TYPES_SHOWN]]
    return table_html("Fleet", ("type", *states), rows)


def _runtime(facts: dict[str, Any]) -> str:
    runtime = facts["runtime"]
    memory = "" if runtime["memory"] is None else f" · {size_text(runtime['memory'])} of memory"
    text = (f"iotsim {runtime['version']} · up {clock_text(int(runtime['up'] * 1e6))}{memory} · "
            f"{facts['health']['cores']:.2f} cores")
    return f"<div>{html.escape(text)}</div>"


def _readings(table: dict[str, Any]) -> str:
    return table_html("Telemetry", ("time (UTC)", "id", "type", "values", "faults"),
                  [[row[0][11:], *row[1:]] for row in table.get("rows", [])[-ROWS_SHOWN:]])


def _alerts(facts: dict[str, Any]) -> str:
    rows = [(clock_text(int(one["first"] * 1e6)), f"{one['count']:,}", one["text"])
            for one in facts["alerts"][:ALERTS_SHOWN]]
    return table_html("Alerts", ("since", "times", "what"), rows)


def table_html(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a small table as HTML, escaped; nothing without rows."""
    body = "".join(_row("td", row) for row in rows)
    if not body:
        return ""
    return (f"<div style='margin-top:6px'><b>{html.escape(title)}</b></div>"
            f"<table style='font-size:smaller'><thead>{_row('th', columns)}</thead>"
            f"<tbody>{body}</tbody></table>")


def _row(tag: str, cells: Iterable[str]) -> str:
    style = "text-align:left;padding:0 8px 0 0"
    told = "".join(f"<{tag} style='{style}'>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{told}</tr>"
