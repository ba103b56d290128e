"""docs/methods: every preset has a page with the same sections; its parts, settings and functions match the code."""

import pkgutil
import re
from pathlib import Path

import pytest

from perdure.config.composition import resolve_method
from perdure.methods.contract.build import build_method
from perdure.methods.table import PRESETS

PAGES = sorted((Path(__file__).parents[2] / "docs" / "methods").glob("*.md"))
REFERENCE = re.compile(r"`((?:ops|methods|merging|tasks)\.[\w.]+)`")


EVERY = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
COMPOSED = "Equations, settings, deviations: those of the two pages."
REPRODUCED = re.compile(r"(Yes|No|Not tried|Nothing (published )?to reproduce|.*; not tried here)\b")
"""The allowed openings of the section: yes, no, not tried, or nothing to reproduce."""


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@EVERY
def test_page_is_of_a_preset_and_has_every_section(page: Path) -> None:
    text = text_of(page)
    title, promise, source = text.split("\n\n")[:3]
    assert title == f"# {page.stem}"
    assert promise.rstrip().endswith(".")
    assert source.startswith("Source: ")
    assert REPRODUCED.match(text.partition("\n## Reproduced\n\n")[2])
    if COMPOSED in text:
        assert "+" in page.stem
        assert all(f"({part}.md)" in text for part in page.stem.split("+"))
        return
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert any(heading.startswith(("Equations and where", "How examples")) for heading in headings)
    assert REFERENCE.search(text), "no function is named"
    assert any(heading.startswith("Deviations") for heading in headings)
    assert any(heading.startswith("Settings") for heading in headings) or "Settings: none" in text


@EVERY
def test_parts_are_the_tables(page: Path) -> None:
    """The line `Parts: ...` names the preset's parts, all of them."""
    row, stated = PRESETS[page.stem].composition(), text_of(page).partition("Parts: ")[2].partition("\n\n")[0]
    assert f"init `{row['init']['kind']}`" in stated
    assert f"consolidate `{row['consolidate']['kind']}`" in stated
    for role, word in (("step_rule", "step rule"), ("replay", "replay"), ("head", "head")):
        assert (f"{word} `" in stated) == bool(row.get(role))
        assert not row.get(role) or f"{word} `{row[role]['kind']}`" in stated
    assert not row["replay"] or f"(`use: {row['replay']['use']}`" in stated
    assert all(f"`{name}`" in stated for name in row["penalties"])
    assert row["penalties"] or "penalt" not in stated or "no penalty" in stated
    assert ("stream `joint`" in stated) == (row["stream"] == "joint")


@pytest.mark.parametrize("page", [page for page in PAGES if "+" not in page.stem], ids=lambda page: page.stem)
def test_what_the_preset_sets_is_stated(page: Path) -> None:
    row, lines = PRESETS[page.stem].composition(), text_of(page).splitlines()
    for part in (*row["penalties"].values(), row["step_rule"] or {}):
        for setting, value in part.items():
            if setting == "kind":
                continue
            (line,) = (line for line in lines if line.startswith(f"| `{setting}`"))
            stated = map(float, re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?|\.\d+", line.split(" | ")[1]))
            assert value in stated, setting


@EVERY
def test_functions_named_exist(page: Path) -> None:
    for reference in REFERENCE.findall(text_of(page)):
        pkgutil.resolve_name(f"perdure.{reference}")


@pytest.mark.parametrize("page", [page for page in PAGES if "+" not in page.stem], ids=lambda page: page.stem)
def test_every_setting_of_its_own_parts_is_explained(page: Path) -> None:
    method, text = build_method(resolve_method(page.stem)), text_of(page)
    for part in (method.init, *method.penalties.values(), method.consolidate, method.step_rule):
        for setting in type(part).model_fields if part else ():
            assert f"`{setting}`" in text, setting


def test_every_preset_has_a_page() -> None:
    assert {page.stem for page in PAGES} == {*PRESETS}
