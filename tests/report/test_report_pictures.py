"""Pictures that stand alone: what is in them, and that the same numbers give the same file."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

import pytest

from perdure.errors import ConfigError
from perdure.report.pictures import heat_map_svg, line_chart_svg

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>x</script> $a$ & b"


def words(svg: str) -> list[str | None]:
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_line_goes_through_its_points() -> None:
    svg = line_chart_svg("title", "x", "y", {"up": [(0, 0), (0.5, 1), (1, 2)], "level": [(0, 1), (1, 1)]})
    root = ElementTree.fromstring(svg)
    found = {}
    for group in root.iter(f"{SVG}g"):
        if group.get("id", "").startswith("series-"):
            path = next(group.iter(f"{SVG}path")).get("d", "").replace("M", "").replace("L", "").split()
            found[group.get("id")] = list(zip(map(float, path[::2]), map(float, path[1::2]), strict=True))
    up, level = found["series-0"], found["series-1"]
    assert up[1] == pytest.approx(((up[0][0] + up[2][0]) / 2, (up[0][1] + up[2][1]) / 2))
    assert up[0][1] > up[1][1] > up[2][1], "more is higher"
    assert level == [pytest.approx((up[0][0], up[1][1])), pytest.approx((up[2][0], up[1][1]))]
    assert {"title", "x", "y", "up", "level"} <= set(words(svg))


def test_every_cell_of_a_heat_map_has_its_number() -> None:
    found = words(heat_map_svg(["a", "b"], [[1.0, -0.251], [-0.251, 1.0]], "title"))
    assert (found.count("1.00"), found.count("-0.25")) == (2, 2)
    assert (found.count("a"), found.count("b"), found.count("title")) == (2, 2, 1)


def test_names_are_text_and_the_same_picture_is_the_same_file() -> None:
    first, again = (heat_map_svg([HOSTILE, "b"], [[1, 0], [0, 1]], HOSTILE) for _ in range(2))
    assert first == again
    assert words(first).count(HOSTILE) == 3
    assert "<script" not in first


def test_without_matplotlib_the_message_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'perdure\[report\]'"):
        heat_map_svg(["a"], [[1]], "t")
