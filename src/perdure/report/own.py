"""What a report may replace: files that a report wrote, told by what they hold."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import StoreError

MARKS = {
    "html": (b"Written by perdure ",),
    "md": (b"# Scores\n", b"# Sweep\n"),
    "json": (b'"formulas":', b'"comparisons":'),
}
"""What each file holds that a report of runs, or of a sweep, has written; the Markdown begins with it."""


def check_own(folder: Path) -> None:
    """Raise StoreError if `folder` holds a report.html, .md or .json that no report wrote."""
    for kind, marks in MARKS.items():
        path = folder / f"report.{kind}"
        if not path.is_file():
            continue
        content = path.read_bytes()
        own = content.startswith(marks) if kind == "md" else any(mark in content for mark in marks)
        if not own:
            raise StoreError(
                f"'{path}' was not written by `perdure report`, and would be replaced. Choose another --out."
            )
