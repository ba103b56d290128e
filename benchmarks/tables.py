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


def pages() -> list[Path]:
    """Every page that may hold a table."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("benchmarks/*/README.md"))]


def filled(text: str) -> str:
    """A page with every marked table replaced by what the records say."""

    def table(match: re.Match[str]) -> str:
        module = importlib.import_module(f"benchmarks.{match[1]}.table")
        made = getattr(module, match[2] or "table")()
        return f"{match[0].partition(chr(10))[0]}\n{made}\n<!-- end -->"

    return MARK.sub(table, text)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    check, stale = "--check" in sys.argv, []
    for path in pages():
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(f"{'not what the records say' if check else 'written'}: {', '.join(stale)}")
    if stale and check:
        sys.exit(1)


if __name__ == "__main__":
    main()
