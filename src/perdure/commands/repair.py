"""A run whose manifest.json is gone: rebuilt from the stages on disk, `perdure repair`.

Known is what run.json says and what lies in the stages. What the manifest alone knew is lost: which tasks were added (their
stages go to `aside/`) or rolled back (they count again), and the old checksums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from perdure.adapters.folder import open_adapter
from perdure.errors import CorruptFile, PerdureError, StoreError
from perdure.files.durable import read_json, read_lines
from perdure.files.output import STAGES
from perdure.state.answers import StageAnswers
from perdure.state.checkpoint import read_metadata
from perdure.state.manifest import MANIFEST
from perdure.state.store import QUARANTINE, STATE, Store

LEARNT = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", STATE, "log.jsonl", "notes.json")
"""Files of every stage but the untrained one."""


@dataclass(frozen=True)
class Repaired:
    """What a new manifest holds: the stages, and the folders that were moved to `aside/` with the reason."""

    run: Path
    stages: tuple[str, ...]
    aside: dict[str, str]

    def lines(self) -> list[str]:
        """The same in words."""
        return [
            f"Kept {len(self.stages)} stages: {', '.join(self.stages)}.",
            f"Their checksums are of today: damage from before cannot be noticed any more. {MANIFEST} is new.",
            *(f"Moved to {QUARANTINE}/{folder}: it {why}." for folder, why in self.aside.items()),
            f"Continue with: perdure resume {self.run}",
        ]


def repair(run: str | Path) -> Repaired:
    """Rebuild the missing manifest.json of the run in `run` from its complete stages, in order; others move to `aside/`.

    A run that is resumed afterwards equals one whose manifest was never lost, up to what only that knew: tasks that were added or
    rolled back.

    Raises:
        StoreError: no run, or its manifest is there. CorruptFile: not even the first stage is complete; nothing was changed.
    """
    store = Store(Path(run))
    store.initial  # noqa: B018  (raises without a run, before a lock is made)
    with store.writing(settle=False):
        if (store.folder / MANIFEST).exists():
            raise StoreError(
                f"'{store.folder / MANIFEST}' is there: only a missing one is rebuilt. If it is damaged, move it away first."
            )
        kept, aside = _sorted(store)
        if not kept:
            why = next(iter(aside.values()), "is missing")
            raise CorruptFile(
                f"No stage in '{store.folder / STAGES}' can be kept: the first one {why}. Nothing was changed. Restore it from a "
                "copy, or run again in a new folder."
            )
        store.rebuild(kept, aside)
    return Repaired(store.folder, tuple(name for name, *_ in kept), aside)


class _NotWhole(Exception):
    """Why a stage is not kept."""


def _sorted(store: Store) -> tuple[list[tuple[str, str, list[str]]], dict[str, str]]:
    """(name, folder, files) of the stages to keep, and why each other folder is not one of them."""
    kept, aside = list[tuple[str, str, list[str]]](), dict[str, str]()
    found = store.numbered_folders()
    expected = {f"{number:02d}-{name}": name for number, name in enumerate(_expected(store))}
    for folder, name in expected.items():
        if folder not in found:
            break
        try:
            kept.append((name, folder, _files(store, folder, [name for name, *_ in kept[1:]])))
        except _NotWhole as error:
            aside[folder] = str(error)
            break
    known = {folder for _, folder, _ in kept} | aside.keys()
    after = "comes after a stage that is missing or not kept"
    other = "is not a stage that run.json describes; a task that was added has to be added again"
    return kept, aside | {folder: after if folder in expected else other for folder in found if folder not in known}


def _expected(store: Store) -> list[str]:
    """Names of the stages that run.json describes."""
    about = store.initial
    tasks = ["joint"] if about["config"]["method"]["stream"] == "joint" else list(about["tasks"])
    return ["untrained", *about.get("history", {}), *tasks]


def _files(store: Store, folder: str, before: list[str]) -> list[str]:
    """The files of a complete stage, after the stages `before`; _NotWhole says what is wrong with it."""
    path, name = store.folder / STAGES / folder, folder.partition("-")[2]
    first = name == "untrained"
    files = ["scores.json", *(() if first else LEARNT)]
    try:
        scores: dict[str, dict[str, Any]] = _there(path, "scores.json", read_json)
        answers = StageAnswers(path)
        for task, cell in scores.items():
            if (found := len(answers.rows(task))) != cell["examples"]:
                raise _NotWhole(f"is incomplete: it holds {found} of {cell['examples']} answers of {task}")
        files += answers.files()
        if not first:
            _check_learnt(path, [*before, name])
    except (PerdureError, SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _NotWhole(f"cannot be read ({type(error).__name__}: {error})") from error
    return files


def _check_learnt(path: Path, stages: Iterable[str]) -> None:
    """Whether the files of a learnt stage can be read, and are of these stages."""
    for file, read in (("log.jsonl", read_lines), ("notes.json", read_json), (STATE, _open), (LEARNT[1], _open)):
        _there(path, file, read)
    _there(path, LEARNT[0], lambda file: open_adapter(file.parent))
    if read_metadata(path / STATE)["stages"] != [*stages]:
        raise _NotWhole(f"has a {STATE} of other stages")


def _open(path: Path) -> None:
    """Raise SafetensorError if the file is cut off."""
    with safe_open(path, framework="pt"):
        pass


def _there(path: Path, file: str, read: Any) -> Any:
    if not (path / file).is_file():
        raise _NotWhole(f"lacks {file}")
    return read(path / file)
