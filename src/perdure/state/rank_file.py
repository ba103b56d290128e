"""`deployed/rank.json`: what a reached `deploy.rank` costs (see perdure.state.bounded), read and said without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perdure.files.durable import read_json
from perdure.state.words import points

FILE = "rank.json"


def read_bound(folder: Path) -> dict[str, Any] | None:
    """rank.json of a `deployed/`; None where no bound was reached."""
    return read_json(folder / FILE) if (folder / FILE).is_file() else None


def bound_in_words(record: dict[str, Any]) -> str:
    """'rank 8 of 24, 97.1 % of the energy, 3 of 400 answers changed (news: 81.0 instead of 81.5)'."""
    of = f"of {record['before']}" if record["before"] else "of a dense update"
    said = f"rank {record['rank']} {of}, {100 * record['energy']:.1f} % of the energy"
    if record["answers"] is None:
        return f"{said}; its answers were not compared"
    cells = record["answers"].items()
    changed, examples = (sum(cell[key] for _, cell in cells) for key in ("changed", "examples"))
    moved = [
        f"{task}: {points(b)} instead of {points(a)}" for task, cell in cells for a, b in [cell["scores"]] if a != b
    ]
    named = f" ({', '.join(moved)})" if moved else ""
    return f"{said}; {changed} of {examples} answers changed{named}"
