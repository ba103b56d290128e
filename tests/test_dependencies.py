"""What the package imports is what pyproject.toml declares: nothing arrives only because another package brings it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    """Normalised names of distributions, without versions and extras."""
    found = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}


CORE = names(PROJECT["dependencies"])
EXTRAS = names([line for lines in PROJECT["optional-dependencies"].values() for line in lines])


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of the modules imported anywhere below `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


INSTALLED = packages_distributions()
HOSTS = {"axolotl"}
"""Programs that import a module of perdure which no other module imports; perdure does not need them."""


def distributions(module: str) -> set[str]:
    return names(list(INSTALLED.get(module, [module])))


def test_every_import_is_declared() -> None:
    """Imports at the top of a file need a dependency of the core; those inside functions may be an extra's."""
    undeclared = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text())
        at_top = {
            name for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) for name in imported(node)
        }
        for module in set(imported(tree)) - sys.stdlib_module_names - {"perdure"} - HOSTS:
            allowed = CORE if module in at_top else CORE | EXTRAS
            if not distributions(module) & allowed:
                undeclared.append(f"{path.relative_to(ROOT)}: {module}")
    assert undeclared == []


def test_every_dependency_of_the_core_is_imported() -> None:
    used = {
        name
        for path in (ROOT / "src").rglob("*.py")
        for module in imported(ast.parse(path.read_text()))
        for name in distributions(module)
    }
    assert CORE - used == set()
