"""HTML from the jinja2 templates of this package. Values are escaped, put on one line, and control characters are visible."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from perdure.report.words import plain


@dataclass(frozen=True)
class Table:
    """A data table, drawn by the macro `table` of table.html.

    Args:
        caption: says what the numbers are.
        rows: the first cell is the row's heading.
        bold_last: the last row is the result.
        text_columns: how many columns are text, aligned left; the others are numbers, aligned right.
        tones: a class of page.css for each row, or none.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold_last: bool = False
    text_columns: int = 1
    tones: Sequence[str] = ()


def render(template: str, **values: Any) -> str:
    """The template filled in; everything but `Markup` is escaped."""
    return _environment().get_template(template).render(values)


def source(name: str) -> str:
    """A file of the folder `templates`, unchanged, with \\n as line ends."""
    return (resources.files("perdure.report") / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("perdure.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else plain(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
