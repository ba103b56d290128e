"""HTML that is safe by construction: every string is escaped unless a function of this file made it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from perdure.report.words import plain

VOID = frozenset({"meta", "br", "hr", "col"})


class Html(str):
    """Markup, as opposed to text."""

    __slots__ = ()


Child = str | Html | None


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """An element. Text children and attribute values are escaped; `class_` is written class, `aria_label` aria-label.

    >>> tag("p", "a < b", tag("b", "!"), class_="x", hidden=True, title=None)
    '<p class="x" hidden>a &lt; b<b>!</b></p>'
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        written.append(f" {attribute}" if value is True else f' {attribute}="{escape(plain(str(value)))}"')
    opened = f"<{name}{''.join(written)}>"
    return Html(opened if name in VOID else f"{opened}{join(children)}</{name}>")


def join(children: Iterable[Child], between: str = "") -> Html:
    """Children one after another; text is escaped and shown on one line, control characters made visible."""
    parts = (child if isinstance(child, Html) else escape(plain(child)) for child in children if child is not None)
    return Html(between.join(parts))


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    bold_last: bool = False,
    text_columns: int = 1,
) -> Html:
    """A data table with a caption, in a region that scrolls sideways by itself when the window is narrow.

    Args:
        caption: says what the numbers are.
        rows: the first cell is the row's heading.
        bold_last: the last row is the result.
        text_columns: so many columns are text, set left; the others are numbers, set right.
    """
    body = [list(row) for row in rows]
    head = (tag("th", cell, scope="col", class_=_align(i, text_columns)) for i, cell in enumerate(header))
    lines = [
        tag("tr", _row(row, text_columns), class_="final" if bold_last and i == len(body) - 1 else None)
        for i, row in enumerate(body)
    ]
    return framed(caption, tag("tr", join(head)), lines)


def framed(caption: str, head: Html, lines: Iterable[Html]) -> Html:
    """The same out of rows that are made already, each with its headings (`th` with a scope)."""
    inner = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", join(lines, "\n")))
    return tag("div", inner, class_="scroll", role="region", tabindex=0, aria_label=caption)


def _row(cells: Sequence[str], text_columns: int) -> Html:
    first = tag("th", cells[0], scope="row")
    return join([first, *(tag("td", c, class_=_align(i, text_columns)) for i, c in enumerate(cells[1:], start=1))])


def _align(column: int, text_columns: int) -> str | None:
    return None if column < text_columns else "number"
