"""manifest.json of a run: which stages are finished, a line each, so that one more costs the same after three and after 300.

    {"format": 2, "reads": "perdure >= 0.2", "deployed": {...}, ...}      the first line: everything but the stages
    {"name": "untrained", "folder": "00-untrained", "files": {...}}       one line a finished stage, in order

A finished stage is appended and synced; any other change replaces the file. A last line without its end was being written when
the process was killed: it does not count, and the next writing removes it. perdure 0.1 wrote one JSON object with all stages
(format 1), which is read too, and replaced when the run goes on. 0.1 refuses the file as it is now: it is not one JSON value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.errors import CorruptFile, StoreError
from perdure.files.durable import RESTORE, append_line, parse_lines, read_json, write_text
from perdure.files.parsing import read_limited
from perdure.state.shapes import ManifestShape, shaped

MANIFEST = "manifest.json"
FORMAT = 2
"""Of run folders: 2 has one line a stage in manifest.json and answers in predictions.zip; 1 is 0.1's, and has no mark."""
READS = "perdure >= 0.2"
HEAD = f'{{"format": {FORMAT}, '


def check_format(about: Mapping[str, Any], path: Path) -> None:
    """Raise StoreError if a later perdure wrote the file, in a format that this one does not know."""
    found = about.get("format", 1)
    if not isinstance(found, int) or found > FORMAT:
        raise StoreError(
            f"'{path}' has format {found} of run folders; this perdure reads up to {FORMAT}. A later perdure wrote it: upgrade "
            "with `pip install -U perdure`. Nothing was changed."
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest with all its stages; CorruptFile if it is damaged, StoreError if a later perdure wrote it."""
    try:
        text = read_limited(path)
    except (OSError, ValueError) as error:
        raise CorruptFile(f"Cannot read '{path}': {error}. {RESTORE}") from error
    if not text.startswith('{"format"'):
        return shaped(ManifestShape, read_json(path), path)
    head, *stages = parse_lines(text[: text.rfind("\n") + 1], path) or [None]
    if head is None:
        raise CorruptFile(f"'{path}' is cut off in its first line. {RESTORE}")
    check_format(head, path)
    found = {key: value for key, value in head.items() if key not in ("format", "reads")}
    return shaped(ManifestShape, {**found, "stages": stages}, path)


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the file, atomically."""
    rest = {key: value for key, value in manifest.items() if key != "stages"}
    lines = [{"format": FORMAT, "reads": READS, **rest}, *manifest["stages"]]
    write_text(path, "".join(map(_line, lines)))


def append_stage(path: Path, entry: Mapping[str, Any]) -> bool:
    """Add a finished stage as a line, durably; False if the file has to be replaced: none yet, format 1, known by other names."""
    if not path.is_file() or path.is_symlink() or path.stat().st_nlink > 1:
        return False
    with path.open("rb") as file:
        if file.read(len(HEAD)) != HEAD.encode():
            return False
    append_line(path, _line(entry))
    return True


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, allow_nan=False) + "\n"  # ASCII: no label can look like the end of a line
