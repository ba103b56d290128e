"""What the documentation's site makes of a page: equations, links that leave docs/, the public names."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import perdure
from perdure.methods.table import PRESETS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def site() -> Any:
    spec = util.spec_from_file_location("docs_site", DOCS / "site.py")
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(site: Any, text: str, page: str) -> str:
    return site.on_page_markdown(text, page=SimpleNamespace(file=SimpleNamespace(src_uri=page)))


@pytest.mark.parametrize("name", PRESETS)
def test_the_equation_of_every_method_is_typeset(site: Any, name: str) -> None:
    text = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert text.count("$$") == 2
    shown = made(site, text, f"methods/{name}.md")
    assert shown.count("<math ") == 1
    assert "$$" not in shown


def test_an_equation(site: Any) -> None:
    assert "<mfrac><mrow><mn>1</mn></mrow><mrow><mi>t</mi></mrow></mfrac>" in made(site, "$$\n\\frac{1}{t}\n$$", "a.md")


@pytest.mark.parametrize(
    ("text", "page", "expected"),
    [
        ("[choosing](choosing.md#rows)", "index.md", "[choosing](choosing.md#rows)"),
        ("[slice](slice.md)", "methods/a.md", "[slice](slice.md)"),
        ("[a b](../merging.md)", "methods/a.md", "[a b](../merging.md)"),
        ("[the table](../src/perdure/methods/table.py)", "a.md", "the table (`src/perdure/methods/table.py`)"),
        ("[`table.py`](../src/perdure/methods/table.py)", "a.md", "`table.py`"),
        ("[records](../../benchmarks/x/README.md#y)", "methods/a.md", "records (`benchmarks/x/README.md`)"),
        ("[paper](https://arxiv.org/abs/1)", "a.md", "[paper](https://arxiv.org/abs/1)"),
        ("[here](#head)", "a.md", "[here](#head)"),
    ],
)
def test_links(site: Any, text: str, page: str, expected: str) -> None:
    assert made(site, text, page) == expected


def test_every_public_name_is_on_the_page(site: Any) -> None:
    shown = made(site, (DOCS / "api.md").read_text(encoding="utf-8"), "api.md")
    homes = {
        f"{value.__module__}.{value.__qualname__}"
        for name in perdure.__all__
        if callable(value := getattr(perdure, name))
    }
    assert homes <= {line.removeprefix("::: ") for line in shown.splitlines() if line.startswith("::: ")}
    for module in ("parts", "integrations"):
        for name in getattr(perdure, module).__all__:
            assert f".{name}\n" in shown + "\n"


def test_every_page_is_in_the_navigation(site: Any) -> None:
    """mkdocs warns of pages that are not; here without building."""
    pages = [path.relative_to(DOCS).as_posix() for path in (*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb"))]
    told = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in pages if page not in told and not page.startswith("methods/")] == []
    made = site.on_config({"nav": [{"Methods": ["choosing.md", {"Every method": []}]}, {"API": "api.md"}]})
    assert made["nav"][0]["Methods"][1]["Every method"] == sorted(p for p in pages if p.startswith("methods/"))
