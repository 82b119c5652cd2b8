"""How things look: one line of text, and in a notebook a name, facts and perhaps a table.

The HTML is plain: escaped, without script, and without colours, so that JupyterLab's own stand, by
day and by night. Whatever is long is cut: a look at a thing costs the same, however large it is.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

FACT_CHARS_MAX = 1000
LINE_CHARS_MAX = 300
ROWS_SHOWN = 12
_LEFT = " style='text-align:left'"


def facts_html(title: str, facts: Iterable[tuple[str, str]], below: str = "") -> str:
    """Return a title and a table of names and texts as HTML, escaped.

    Parameters
    ----------
    title : str
    facts : iterable of (name, text)
        A text that begins with its name is shown without it.
    below : str
        HTML that follows, such as `table_html` gives.

    Examples
    --------
    >>> facts_html("Tap <1>", [("received", "3")])
    "<div><b>Tap &lt;1&gt;</b><table><tr><th style='text-align:left'>received</th>\
<td style='text-align:left'>3</td></tr></table></div>"
    """
    rows = "".join(
        f"<tr><th{_LEFT}>{html.escape(name)}</th>"
        f"<td{_LEFT}>{html.escape(cut(text.removeprefix(f'{name} '), FACT_CHARS_MAX))}</td></tr>"
        for name, text in facts
    )
    table = f"<table>{rows}</table>" if rows else ""
    return f"<div><b>{html.escape(title)}</b>{table}{below}</div>"


def table_html(heads: Sequence[str], rows: Iterable[Sequence[str]], total: int, what: str) -> str:
    """Return a table of the first rows, and how many more there are, as HTML, escaped.

    Parameters
    ----------
    heads : sequence of str
    rows : iterable of sequences of str
        No more than are shown are taken.
    total : int
        How many there are.
    what : str
        What they are, in the plural.
    """
    if not total:
        return ""
    head = "".join(f"<th{_LEFT}>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td{_LEFT}>{html.escape(cut(cell, FACT_CHARS_MAX))}</td>"
                         for cell in row) + "</tr>"
        for row in islice(rows, ROWS_SHOWN)
    )
    more = total - ROWS_SHOWN
    note = f"<p>… and {more:,} more {html.escape(what)}</p>" if more > 0 else ""
    return f"<table><tr>{head}</tr>{body}</table>{note}"


def line(text: str, most: int = LINE_CHARS_MAX) -> str:
    r"""Return a text in one line, cut if it is long.

    Examples
    --------
    >>> line("two\nlines"), line("a" * 9, 6)
    ('two lines', 'aaaaa…')
    """
    return cut(" ".join(text.split()), most) if not text.isprintable() else cut(text, most)


def cut(text: str, most: int) -> str:
    """Return the beginning of a text, with … if there is more."""
    return text if len(text) <= most else f"{text[:most - 1]}…"


def few(texts: Sequence[object], most: int = 3) -> Iterator[str]:
    """Yield the first of many texts in one line each, and how many more there are."""
    yield from (line(str(text)) for text in texts[:most])
    if len(texts) > most:
        yield f"and {len(texts) - most:,} more"
