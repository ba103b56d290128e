"""A run's folder, read: run.json, the manifest, the finished stages. perdure.state.store writes it.

RUN/
  run.json                   what the run began as: configuration (`config` as given, `backbone` with all its defaults),
                             precision, threads, versions, data fingerprints
  manifest.json              the finished stages and the sha256 of each of their files; files not listed do not count.
                             The entry of a stage that was added later holds its task (perdure.state.manifest)
  stages/00-untrained/       scores and predictions of the untouched base
  stages/01-<name>/
      adapter/               the stage's effective update as a plain PEFT adapter, right on the untouched base
      state.safetensors      what the next stage needs: carry, deployed, total, factors, memory of the parts
      log.jsonl  notes.json  every optimiser step; numbers the parts noted
      scores.json            of every task that was scored
      predictions.zip        the answers behind them (perdure.state.answers)
  unfinished/                only inside a stage: a checkpoint of its training (perdure.state.unfinished)
  deployed/                  the finished run's model, for transformers or PEFT alone
  aside/                     stages that a quality gate refused or a rollback removed: not part of the run
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perdure.errors import CorruptFile, StoreError
from perdure.files.durable import read_json, sha256
from perdure.files.names import stored_name
from perdure.files.output import RUN, STAGES
from perdure.state.manifest import MANIFEST, check_format, read_manifest
from perdure.state.shapes import RunShape, shaped

BY_TASK = ("tasks", "sizes", "asked")
"""What run.json and an added stage record for each task: fingerprint of the data, sizes of the splits, labels and prompt."""


class RunFolder:
    """A run's folder; reading it needs no lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._pending: dict[str, Any] | None = None
        self._read: dict[str, tuple[tuple[int, int, int], Any]] = {}

    def once(self, file: str, read: Callable[[], Any], what: str = "") -> Any:
        """What `read` makes of a file of the run, called again only once the file was replaced; not to be changed.

        `what` tells several such values of one file apart.
        """
        found = os.stat(self.folder / file)
        state = (found.st_mtime_ns, found.st_size, found.st_ino)
        if self._read.get(file + what, (None,))[0] != state:
            self._read[file + what] = (state, read())
        return self._read[file + what][1]

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return os.path.isfile(self.folder / RUN)

    @property
    def initial(self) -> dict[str, Any]:
        """run.json; StoreError if the folder holds no run."""
        if not self.exists:
            raise StoreError(
                f"'{self.folder}' holds no run (no {RUN}). Give the folder that `perdure run --out` wrote."
            )
        path = self.folder / RUN

        def read() -> dict[str, Any]:
            about = read_json(path)
            if isinstance(about, dict):
                check_format(about, path)
            return _check_tasks(shaped(RunShape, about, path), path, "")

        return dict(self.once(RUN, read))

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json, or the pending one inside a transaction; CorruptFile if it is gone although stages are there.

        stages: [{"name", "folder", "files": {path: sha256}, "added" if the stage was added later}, ...]
        deployed: {path: sha256}; absent until the run is finished.
        begun: names of the tasks in run.json that still count; absent while all do.
        warnings: those since the run began; absent without any.
        aside: {folder of a stage: why}, what a rollback removed and is yet to be moved; absent once it is.
        """
        if self._pending is not None:
            return self._pending
        path = self.folder / MANIFEST
        if path.is_file():
            return self.once(MANIFEST, lambda: _check_manifest(read_manifest(path), path))
        # a process killed at the very beginning leaves the untrained stage alone without a manifest
        if learnt := [name for name in self.numbered_folders() if not name.startswith("00-")]:
            raise CorruptFile(
                f"'{path}' is missing, but stages of the run are there ({', '.join(learnt):.200}). Restore it from a copy, or "
                f"rebuild it from the stages: perdure repair {self.folder}"
            )
        return {"stages": []}

    @property
    def about(self) -> dict[str, Any]:
        """run.json plus what was added, minus what was rolled back.

        added: added task -> its settings. untrained: added task -> score and examples of the untouched base, where known.
        """
        about, manifest = self.initial, self.manifest
        added = [entry["added"] for entry in manifest["stages"] if "added" in entry]
        for key in BY_TASK:
            if "begun" in manifest:
                about[key] = {name: value for name, value in about.get(key, {}).items() if name in manifest["begun"]}
            for record in added:
                about[key] = {**about.get(key, {}), **record[key]}
        about["untrained"] = {name: cell for record in added for name, cell in record.get("untrained", {}).items()}
        later = (*manifest.get("warnings", ()), *(line for record in added for line in record["warnings"]))
        about["warnings"] = [*about.get("warnings", []), *later]
        return {**about, "added": {name: record["task"] for record in added for name in record["tasks"]}}

    @property
    def changed(self) -> bool:
        """Whether a task was added to the run, or one it began with was rolled back."""
        return "begun" in self.manifest or bool(self.about["added"])

    @property
    def finished(self) -> bool:
        """Whether every task was learnt and the model deployed."""
        learnt = self.stages()
        return "deployed" in self.manifest and (learnt[-1:] == ["joint"] or set(self.about["tasks"]) <= set(learnt))

    def stages(self) -> list[str]:
        """Names of the finished stages in order, without 'untrained'."""
        return [entry["name"] for entry in self.manifest["stages"][1:]]

    def numbered_folders(self) -> list[str]:
        """Names of the folders of stages on disk, whether or not they count."""
        return sorted(p.name for p in (self.folder / STAGES).glob("*") if re.match(r"\d\d+-", p.name) and p.is_dir())

    def stage_folder(self, position: int) -> Path:
        """Folder of a finished stage; 0 is the untrained one."""
        return self.folder / STAGES / self.manifest["stages"][position]["folder"]

    def verify(self) -> None:
        """Raise CorruptFile, with the last intact stage, if a file of a finished stage does not match the manifest."""
        self._check_not_cut_off()
        intact = "none"
        for entry in self.manifest["stages"]:
            for name, digest in entry["files"].items():
                path = self.folder / STAGES / entry["folder"] / name
                there = os.path.isfile(path)
                if not there or sha256(path) != digest:
                    raise CorruptFile(
                        f"'{path}' is {'damaged' if there else 'missing'}: its checksum does not match {MANIFEST}. "
                        f"The last intact stage: {intact}. Restore the file from a copy, or run again in a new folder."
                    )
            intact = entry["name"]

    def _check_not_cut_off(self) -> None:
        """Raise CorruptFile if stages lie on disk beyond the one that may have been finished when a process was killed."""
        manifest, path = self.manifest, self.folder / MANIFEST
        count, aside = len(manifest["stages"]), manifest.get("aside", {})
        later = [name for name in self.numbered_folders() if int(name.partition("-")[0]) > count and name not in aside]
        if later:
            raise CorruptFile(
                f"'{path}' names {count} stages, but later ones are there ({', '.join(later):.200}): it was cut off. Restore it "
                f"from a copy; or move it away and rebuild it from the stages: perdure repair {self.folder}"
            )


def _check_manifest(manifest: dict[str, Any], path: Path) -> dict[str, Any]:
    """The manifest, once every name in it that is joined to a folder is a plain one."""
    for number, entry in enumerate(manifest["stages"]):
        stored_name(entry["folder"], path, f"stages[{number}].folder")
        for name in entry["files"]:
            stored_name(name, path, f"stages[{number}].files", nested=True)
        if "added" in entry:
            _check_tasks(entry["added"], path, f"stages[{number}].added.")
    for name in manifest.get("aside", {}):
        stored_name(name, path, "aside")
    return manifest


def _check_tasks(record: dict[str, Any], path: Path, place: str) -> dict[str, Any]:
    """A record of tasks, once their names, which files are called after, are plain ones."""
    for name in record["tasks"]:
        stored_name(name, path, f"{place}tasks")
    return record
