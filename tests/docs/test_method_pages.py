"""docs/methods: every page belongs to a preset, says whether it was reproduced, and names functions that exist."""

import importlib
import re
from pathlib import Path

import pytest

from perdure.config import resolve_method
from perdure.methods.build import build_method
from perdure.methods.table import PRESETS

PAGES = sorted((Path(__file__).parents[2] / "docs" / "methods").glob("*.md"))
REFERENCE = re.compile(r"`((?:ops|methods|merging|tasks)\.[\w.]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_is_of_a_preset_and_says_what_was_reproduced(page: Path) -> None:
    assert page.stem in PRESETS
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {page.stem}\n")
    assert "\n## Reproduced\n" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_functions_named_exist(page: Path) -> None:
    for reference in REFERENCE.findall(page.read_text(encoding="utf-8")):
        names = reference.split(".")
        module = importlib.import_module(".".join(["perdure", *names[:2]]))
        found: object = module
        for name in names[2:]:
            found = getattr(found, name)


@pytest.mark.parametrize("page", [page for page in PAGES if "+" not in page.stem], ids=lambda page: page.stem)
def test_every_setting_of_its_own_parts_is_explained(page: Path) -> None:
    method, text = build_method(resolve_method(page.stem)), page.read_text(encoding="utf-8")
    for part in (*method.penalties.values(), method.consolidate, method.step_rule):
        for setting in type(part).model_fields if part else ():
            assert f"`{setting}`" in text, setting


def test_every_preset_has_a_page() -> None:
    assert {page.stem for page in PAGES} == {*PRESETS}
