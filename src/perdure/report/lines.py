"""A line chart that stands alone, as SVG: named series over a share, each with its own dash and mark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 360, 60, 40, 50
COLOURS = ("#2166ac", "#b2182b", "#4d4d4d", "#1b7837", "#762a83", "#8c510a")
DASHES = ("none", "6 4", "2 3", "8 3 2 3", "12 4", "1 4")

Points = Sequence[tuple[float, float]]


def line_chart_svg(title: str, x_label: str, y_label: str, series: Mapping[str, Points]) -> str:
    """Points (x, y) of every series joined in their order; x as given, y scaled to what there is."""
    everything = [point for points in series.values() for point in points]
    low_x, high_x = _range([x for x, _ in everything])
    low_y, high_y = _range([y for _, y in everything])
    right, floor = WIDTH - 150, HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low_x) / (high_x - low_x) * (right - LEFT)
        return across, floor - (y - low_y) / (high_y - low_y) * (floor - TOP)

    marks = [_text(10, 20, title, "start", bold=True), _text((LEFT + right) / 2, HEIGHT - 12, x_label)]
    marks.append(f'<g transform="translate(14,{(TOP + floor) / 2}) rotate(-90)">{_text(0, 0, y_label)}</g>')
    for step in range(5):
        y = low_y + step / 4 * (high_y - low_y)
        _, up = place(low_x, y)
        marks.append(f'<line x1="{LEFT}" x2="{right}" y1="{up:.1f}" y2="{up:.1f}" stroke="#ddd"/>')
        marks.append(_text(LEFT - 6, up + 4, f"{y:.3g}", "end"))
    for x in sorted({x for x, _ in everything}):
        marks.append(_text(place(x, low_y)[0], floor + 16, f"{x:.3g}"))
    for number, (name, points) in enumerate(series.items()):
        marks.append(_line(name, [place(*point) for point in points], number, right))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(marks)}</svg>\n'
    )


def _line(name: str, points: Points, number: int, right: float) -> str:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    stroke = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points)
    up = TOP + 10 + 20 * number
    legend = f'<line x1="{right + 10}" x2="{right + 36}" y1="{up}" y2="{up}" {stroke}/>'
    return f'<polyline points="{path}" {stroke}/>{dots}{legend}{_text(right + 42, up + 4, name, "start")}'


def _text(x: float, y: float, words: str, anchor: str = "middle", bold: bool = False) -> str:
    weight = ' font-weight="bold" font-size="15"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#111"{weight}>{escape(words)}</text>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
