"""What mkdocs needs beside the pages (mkdocs.yml, `make docs-site`): equations as MathML, links to files outside docs/.

Equations stand in pages as LaTeX between two lines of `$$`; browsers show MathML without any script. A link to a source file
or a record becomes the file's name: the site has no place for them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert

EQUATION = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
PUBLIC = re.compile(r"<!-- public: ([\w.]+) -->")
ROOT = PurePosixPath("docs")
SOURCE = Path(__file__).parents[1] / "src"


def on_config(config: Any) -> Any:
    """mkdocs' hook: the pages of docs/methods as the navigation's "Every method"."""
    pages = sorted(f"methods/{path.name}" for path in (SOURCE.parent / ROOT / "methods").glob("*.md"))
    for section in (entries for part in config["nav"] for entries in part.values() if isinstance(entries, list)):
        for entry in section:
            if isinstance(entry, dict) and "Every method" in entry:
                entry["Every method"] = pages
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs' hook: a page's Markdown before it is rendered."""
    shown = EQUATION.sub(lambda match: convert(match[1], display="block"), markdown)
    shown = PUBLIC.sub(lambda match: _public(match[1]), shown)
    return LINK.sub(lambda match: _inside(match, PurePosixPath(page.file.src_uri)), shown)


def _public(module: str) -> str:
    """mkdocstrings' directives for the names that a module imports to make them public; not its submodules."""
    folder = SOURCE / Path(*module.split("."))
    files = (folder / "__init__.pyi", folder / "__init__.py", folder.with_suffix(".py"))
    tree = ast.parse(next(file for file in files if file.is_file()).read_text(encoding="utf-8"))
    homes = {
        f"{statement.module}.{name.name}"
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith("perdure.")
        for name in statement.names
    }
    return "\n".join(f"::: {home}" for home in sorted(homes, key=lambda home: home.rpartition(".")[2].lower()))


def _inside(match: re.Match[str], page: PurePosixPath) -> str:
    """The link as it is, or its text and the file's name where it leaves docs/."""
    target = _joined(ROOT / page.parent, match[2])
    if target.is_relative_to(ROOT) and target.suffix != ".py":
        return match[0]
    text = match[1]
    return text if text.startswith("`") or target.name in text else f"{text} (`{target}`)"


def _joined(folder: PurePosixPath, link: str) -> PurePosixPath:
    """`folder/link` with its `..` resolved."""
    parts: list[str] = []
    for part in (folder / link).parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return PurePosixPath(*parts)
