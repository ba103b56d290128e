"""A symmetric matrix of numbers in [-1, 1] between named things: as a Markdown table and as a picture that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

CELL, GAP, CHARACTER = 44, 2, 6.6
NEGATIVE, ZERO, POSITIVE = (178, 24, 43), (247, 247, 247), (33, 102, 172)
"""Colours of -1, 0 and 1: told apart also by those who do not see red from green; every cell carries its number."""


def markdown_matrix(names: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """One row and one column a name, two decimals."""
    lines = [f"| | {' | '.join(map(_cell, names))} |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {_cell(name)} | {' | '.join(number(value) for value in row)} |"
        for name, row in zip(names, values, strict=True)
    ]
    return "\n".join(lines)


def heat_map_svg(names: Sequence[str], values: Sequence[Sequence[float]], title: str) -> str:
    """An SVG with a coloured, numbered cell for each pair; row and column names whole."""
    margin = 20 + int(CHARACTER * max(map(len, names), default=0))
    top, side = margin + 28, len(names) * (CELL + GAP)
    width, height = max(margin + side + 20, int(9 * len(title)) + 20), top + side + 20
    marks = [
        f'<text x="{margin - 8}" y="{top + i * (CELL + GAP) + CELL / 2 + 4}" text-anchor="end">{escape(name)}</text>'
        f'<text transform="translate({margin + i * (CELL + GAP) + CELL / 2 + 4},{top - 8}) rotate(-90)">{escape(name)}</text>'
        for i, name in enumerate(names)
    ]
    marks += [
        _square(margin + j * (CELL + GAP), top + i * (CELL + GAP), value)
        for i, row in enumerate(values)
        for j, value in enumerate(row)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="10" y="20" font-size="15" font-weight="bold">{escape(title)}</text>{"".join(marks)}</svg>\n'
    )


def number(value: float) -> str:
    """Two decimals, and never a negative zero."""
    return f"{value:.2f}".replace("-0.00", "0.00")


def _square(x: float, y: float, value: float) -> str:
    red, green, blue = colour = _colour(value)
    ink = "#fff" if 0.3 * red + 0.59 * green + 0.11 * blue < 140 else "#111"
    return (
        f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="rgb{colour}"/>'
        f'<text x="{x + CELL / 2}" y="{y + CELL / 2 + 4}" text-anchor="middle" fill="{ink}">{number(value)}</text>'
    )


def _colour(value: float) -> tuple[int, int, int]:
    """Linear from white to the colour of the sign."""
    share, end = min(1.0, abs(value)), POSITIVE if value > 0 else NEGATIVE
    red, green, blue = (round(zero + share * (full - zero)) for zero, full in zip(ZERO, end, strict=True))
    return red, green, blue


def _cell(name: str) -> str:
    return name.replace("|", "\\|")
