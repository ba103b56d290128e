"""Standalone pictures as SVG by matplotlib: a matrix of cosines, and lines over a share. Pages use plotly."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from perdure.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]
MARKERS, DASHES = "osD^vP", ("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 3)))
SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "perdure",  # makes the file reproducible
    "text.parse_math": False,  # a name may contain a dollar sign
    "font.family": "sans-serif",
}


def heat_map_svg(names: Sequence[str], values: Sequence[Sequence[float]], title: str) -> str:
    """A coloured, numbered cell for each pair of a symmetric matrix in [-1, 1]; row and column names in full."""
    side = 1.5 + 0.45 * len(names)
    with _figure(side + 1, side) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1)  # safe for red-green colour blindness
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                ink = "white" if abs(value) > 0.6 else "black"
                axes.text(j, i, number(value), ha="center", va="center", fontsize=8, color=ink)
        axes.set_title(title)
        figure.colorbar(image, shrink=0.8)
        return _svg(figure, title)


def line_chart_svg(title: str, x_label: str, y_label: str, series: Mapping[str, Points]) -> str:
    """One line for each series of points (x, y), joined in their order; lines differ in colour, dash and marker."""
    with _figure(8, 4.5) as figure:
        axes = figure.add_subplot()
        for i, (name, points) in enumerate(series.items()):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker=MARKERS[i % 6], linestyle=DASHES[i % 6], label=name, gid=f"series-{i}")
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return _svg(figure, title)


def number(value: float) -> str:
    """Two decimals, never a negative zero.

    >>> number(-0.001), number(0.125)
    ('0.00', '0.12')
    """
    return f"{value:.2f}".replace("-0.00", "0.00")


def check_pictures() -> None:
    """Raise `ConfigError` if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("Pictures need matplotlib. Install it: pip install 'perdure[report]'.") from error


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of that size in inches."""
    check_pictures()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Title": title, "Date": None})
    return buffer.getvalue()
