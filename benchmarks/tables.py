"""Generated tables: `<!-- table: FOLDER -->` in a page is filled by `table()` of benchmarks/FOLDER/table.py, from its records.

`<!-- table: FOLDER.NAME -->` calls NAME() of that file instead. Pages: README.md, docs/ and every benchmark's README.md.

    python benchmarks/tables.py            write them (make tables)
    python benchmarks/tables.py --check    fail if a number in a page is not the records' (make check-tables)
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"<!-- table: (\w+)(?:\.(\w+))? -->\n.*?<!-- end -->", re.DOTALL)
OTHERS = re.compile(r"<!-- from the code: \w+ -->\n.*?<!-- end -->", re.DOTALL)
"""What docs/reference.py fills."""
ANY_MARK = re.compile(r"<!--\s*(?:table|end)\b")
LEAST = {"README.md": 1, "docs/results.md": 8, "docs/choosing.md": 1, "docs/protocol.md": 2}
"""Pages, and how many tables each must have: a lost mark would leave numbers that nobody checks."""


def pages() -> list[Path]:
    """Every page that may have a table."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("benchmarks/*/README.md"))]


def filled(text: str) -> str:
    """A page with every marked table made from the records."""

    def table(match: re.Match[str]) -> str:
        module = importlib.import_module(f"benchmarks.{match[1]}.table")
        made = getattr(module, match[2] or "table")()
        return f"{match[0].partition(chr(10))[0]}\n{made}\n<!-- end -->"

    return MARK.sub(table, text)


def marks_are_whole(name: str, text: str) -> bool:
    """Whether every mark of a page is complete, and the required ones are present."""
    return not ANY_MARK.search(OTHERS.sub("", MARK.sub("", text))) and len(MARK.findall(text)) >= LEAST.get(name, 0)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    if broken := [page for page in pages() if not marks_are_whole(_name(page), page.read_text(encoding="utf-8"))]:
        sys.exit(f"a mark of a table is broken or missing: {', '.join(map(_name, broken))}")
    check, stale = "--check" in sys.argv, []
    for path in pages():
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(_name(path))
            if not check:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(f"{'not what the records say' if check else 'written'}: {', '.join(stale)}")
    if stale and check:
        sys.exit(1)


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    main()
