"""What a report may replace: files that a report wrote, told by what they hold."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import StoreError

MARKS = {"html": b"Written by perdure ", "md": b"# S", "json": b'"formulas":'}
"""What is in each file that a report of runs writes; `# Scores` or `# Sweep` begins the Markdown of both kinds."""
OF_A_SWEEP = b'"comparisons":'


def check_own(folder: Path) -> None:
    """Raise StoreError if `folder` holds a report.html, .md or .json that no report wrote."""
    for kind, mark in MARKS.items():
        path = folder / f"report.{kind}"
        if not path.is_file():
            continue
        content = path.read_bytes()
        own = (
            content.startswith(mark) if kind == "md" else mark in content or (kind == "json" and OF_A_SWEEP in content)
        )
        if not own:
            raise StoreError(
                f"'{path}' was not written by `perdure report`, and would be replaced. Choose another --out."
            )
