"""The public API: names of `perdure` and three modules; README, docs and examples use nothing else."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import perdure
from perdure.moved import MOVED

ROOT = Path(__file__).parents[1]
MODULES = {"perdure", "perdure.parts", "perdure.integrations", "perdure.testing"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IMPORT = re.compile(r"\b(?:from (perdure[\w.]*) import|import (perdure[\w.]*))")


def imported(text: str) -> set[str]:
    return {first or second for first, second in IMPORT.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_import_the_public_face_alone(page: Path) -> None:
    assert imported(page.read_text(encoding="utf-8")) - MODULES == set()


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda example: example.name)
def test_examples_import_the_public_face_alone(example: Path) -> None:
    tree = ast.parse(example.read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name for name in found if name and name.split(".")[0] == "perdure"} - MODULES == set()


def test_examples_and_pages_name_what_there_is() -> None:
    used = {
        name
        for page in (*PAGES, *(ROOT / "examples").glob("*.py"))
        for name in re.findall(r"\bperdure\.(\w+)\(", page.read_text(encoding="utf-8"))
    }
    assert used - set(perdure.__all__) == set()


@pytest.mark.parametrize("name", perdure.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(perdure, name) is not None
    assert name in dir(perdure)


def test_import_loads_only_the_standard_library() -> None:
    """Modules are counted, not seconds, which depend on the machine."""
    code = "import sys; before = set(sys.modules); import perdure; print(*sorted(sys.modules.keys() - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert [name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names] == [
        "perdure",
        "perdure.moved",
    ]
    assert len(loaded) < 80


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_moved_module_names_its_successor(old: str, new: str) -> None:
    importlib.import_module(new)
    with pytest.raises(ImportError, match=re.escape(f"{old} moved: import from {new} ")):
        importlib.import_module(old)


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("from perdure.methods.parts import WeightPenalty", "perdure.parts"),
        ("from perdure import lora", "perdure.training.lora"),
        ("import perdure.store", "perdure.state.store"),
        ("from perdure.settings import Settings", "perdure.settings.read"),
        ("from perdure.adapters import open_adapter", "perdure.adapters.folder"),
        ("from perdure.training import add_weight_penalties", "perdure.training.train"),
        ("from perdure.config import RunConfig", "perdure.config.run_config"),
    ],
)
def test_an_old_import_is_one_clear_error(statement: str, where: str) -> None:
    with pytest.raises(ImportError, match=re.escape(f"import from {where} (perdure 0.2)")):
        exec(statement, {})


def test_an_unknown_module_is_still_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'perdure\.nothing'"):
        importlib.import_module("perdure.nothing")


def test_a_part_written_for_0_1_says_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old_part.py").write_text("from perdure.methods.parts import WeightPenalty\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(perdure.ConfigError, match=r"old_part\.py, line 1.*import from perdure\.parts"):
        perdure.testing.check_part("old_part:Mine")


def test_types_are_shipped() -> None:
    assert (ROOT / "src/perdure/py.typed").is_file()
