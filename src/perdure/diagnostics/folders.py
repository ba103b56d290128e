"""Diagnose adapter folders: `perdure diagnose A B [C ...]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.diagnostics.positions import PositionSettings
from perdure.diagnostics.report import Diagnosis, diagnose
from perdure.diagnostics.words import sentences
from perdure.merging.base import Base
from perdure.merging.sources import open_sources


@dataclass(frozen=True)
class FolderDiagnosis:
    """A diagnosis of folders, and notes for the user."""

    diagnosis: Diagnosis
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the sentences."""
        return {**self.diagnosis.as_json(), "sentences": sentences(self.diagnosis), "notes": list(self.notes)}


def diagnose_folders(
    places: Sequence[str | Path],
    looking: PositionSettings | None = None,
    *,
    history: bool = False,
    base: str | Path | None = None,
) -> FolderDiagnosis:
    """Compare adapters in folders (or on a hub), oldest first; see `perdure.diagnostics.report.diagnose`.

    Args:
        base: a model folder, to check every module against its weights.

    Raises:
        ConfigError: fewer than two adapters.
        AdapterError: one cannot be read, or they are of different bases.
    """
    sources = open_sources(places, at_least=2)
    if base is not None:
        checked = Base(base)
        for module, info in sources.modules.items():
            checked.weight_of(module, info.shape, info.kind, info.transposed)
    return FolderDiagnosis(diagnose(sources.adapters, looking, history=history), sources.notes)
