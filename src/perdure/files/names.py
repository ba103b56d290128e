"""Names that stored files give of other files: checked before they are joined to a folder, which they must not lead out of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perdure.errors import CorruptFile
from perdure.files.durable import RESTORE


def stored_name(value: Any, file: Path, key: str, *, nested: bool = False) -> str:
    """The name that `file` holds under `key`: one component of a path, or with `nested` several, joined by '/'.

    An absolute path or one through '..' could make perdure read or delete any folder.

    Raises:
        CorruptFile: it is anything else.

    >>> stored_name("predictions/sky.jsonl", Path("manifest.json"), "files", nested=True)
    'predictions/sky.jsonl'
    """
    parts = value.split("/") if nested and isinstance(value, str) else [value]
    if isinstance(value, str) and not any(part in ("", ".", "..") or {*part} & {*"/\\\0"} for part in parts):
        return value
    kind = "a path inside its folder" if nested else "a plain name"
    raise CorruptFile(
        f"'{file}': {key} is {value!r:.120}, which is not {kind}. perdure never writes that, so the file was damaged or changed; "
        f"nothing was read or removed there. {RESTORE}"
    )
