"""The only state of a run: one folder, written atomically, checked, resumable.

    RUN/
      run.json                   what the run was begun as: configuration, precision, threads, versions, data fingerprints
      manifest.json              the finished stages and the sha256 of each of their files: what is not in it did not happen;
                                 a stage that was added later says so, with its task
      stages/00-untrained/       scores and predictions of the untouched base
      stages/01-<name>/
          adapter/               the stage's effective update as a plain PEFT adapter, right on the untouched base
          state.safetensors      what the next stage needs: carry, deployed, total, factors, memory of the parts
          log.jsonl  notes.json  every optimiser step; numbers the parts noted
          scores.json  predictions/<task>.jsonl
      unfinished/                inside a stage only: where its training stands (perdure.state.unfinished)
      deployed/                  the finished run's model, for transformers or PEFT alone
      aside/                     stages that a quality gate refused or a rollback took back: no part of the run

A stage is written into a folder of its own, synced, renamed into place, and only then entered in the manifest. A process
killed at any point leaves a run that resumes after its last finished stage, or inside the next where that was written down.
A new `deployed/` lies ready beside the old one before the manifest names it, and takes its place afterwards (or when the
folder is next written to).
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from perdure.errors import CorruptFile, QualityGate, RunBusy, StoreError
from perdure.files.durable import (
    disk_full_as_error,
    make_folder,
    read_json,
    remove_folder_on_refusal,
    sha256,
    sync_folder,
    sync_tree,
    write_json,
)
from perdure.files.output import RUN, STAGES
from perdure.state.mismatch import check_same, other_versions

MANIFEST, DEPLOYED, UNFINISHED = "manifest.json", "deployed", "unfinished"
STATE, LOCK = "state.safetensors", ".lock"
QUARANTINE, NEXT, OLD = "aside", ".next-deployed", ".old-deployed"
BY_TASK = ("tasks", "sizes", "asked")
"""What run.json and an added stage say for each task: fingerprint of the data, sizes of the splits, labels and prompt."""

Accept = Callable[["Store", str, Path], str | None]
"""(store, name of the stage, its written folder) -> why it is not accepted, or None."""


class Store:
    """A run's folder. Reading needs no lock; writing happens inside `with store.writing()`.

    Args:
        accept: asked before a finished stage begins to count.
    """

    def __init__(self, folder: Path, accept: Accept | None = None) -> None:
        self.folder = Path(folder)
        self._accept = accept
        self._pending: dict[str, Any] | None = None

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.folder / RUN).is_file()

    @property
    def about(self) -> dict[str, Any]:
        """run.json with what was added to the run and without what was rolled back; `added`: added task -> its settings.

        Raises:
            StoreError: the folder holds no run.
        """
        about, manifest = self.begun, self.manifest
        if (kept := manifest.get("begun")) is not None:
            for key in BY_TASK:
                about[key] = {name: value for name, value in about.get(key, {}).items() if name in kept}
        added = [entry["added"] for entry in manifest["stages"] if "added" in entry]
        for one in added:
            for key in BY_TASK:
                about[key] = {**about.get(key, {}), **one[key]}
        further = (*manifest.get("warnings", ()), *(line for one in added for line in one["warnings"]))
        warnings = [*about.get("warnings", []), *further]
        return {**about, "warnings": warnings, "added": {name: one["task"] for one in added for name in one["tasks"]}}

    @property
    def changed(self) -> bool:
        """Whether a task was added to the run, or one it was begun with was rolled back."""
        return "begun" in self.manifest or bool(self.about["added"])

    @property
    def finished(self) -> bool:
        """Whether every task was learnt and the model deployed."""
        learnt = self.stages()
        return "deployed" in self.manifest and (learnt[-1:] == ["joint"] or set(self.about["tasks"]) <= set(learnt))

    @property
    def begun(self) -> dict[str, Any]:
        """run.json.

        Raises:
            StoreError: the folder holds no run.
        """
        if not self.exists:
            raise StoreError(
                f"'{self.folder}' holds no run (no {RUN}). Give the folder that `perdure run --out` wrote."
            )
        return _object(self.folder / RUN, "config", "tasks")

    def create(self, about: Mapping[str, Any]) -> None:
        """Make the folder, or accept the run it holds if that is the same one; that it goes on with other versions is noted.

        Raises:
            RunMismatch: it holds another run; names what differs.
            StoreError: it holds something else.
        """
        if self.exists:
            self.must_match(about)
            if not self.finished:
                self._note(other_versions(self.begun, about))
            return
        own = (LOCK, ".partial-")  # the lock, and what a process killed while writing run.json left
        if self.folder.exists() and not all(p.name.startswith(own) for p in self.folder.iterdir()):
            raise StoreError(f"'{self.folder}' exists and holds no run; choose an empty or a new folder.")
        write_json(self.folder / RUN, about)

    def must_match(self, about: Mapping[str, Any]) -> None:
        """The run was begun as `about` says, in the parts that it has.

        Raises:
            RunMismatch: names everything that differs; the order of the tasks counts.
        """
        check_same(self.folder, self.begun, about, self.stages())

    def _note(self, warnings: Iterable[str]) -> None:
        """Enter lines among the run's warnings that are not there yet."""
        known = self.about["warnings"]
        if new := [line for line in warnings if line not in known]:
            self._commit({**self.manifest, "warnings": [*self.manifest.get("warnings", []), *new]})

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder's lock; turn a full disk into a clear error.

        A folder made for it goes again if what is within is refused before it wrote anything.

        Raises:
            RunBusy: another process holds it.
            StoreError: no space, or no leave to write.
        """
        made = not self.folder.exists()
        make_folder(self.folder)
        lock = FileLock(self.folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunBusy(
                f"Another process is writing to '{self.folder}'; wait for it or choose another folder."
            ) from None
        except OSError as error:
            raise StoreError(
                f"'{self.folder}' cannot be written to: {error.strerror or error}. Choose another folder, or get leave to write."
            ) from error
        try:
            full = disk_full_as_error(self.folder, "Finished stages are kept; free some space, then resume.")
            with full, remove_folder_on_refusal(self.folder, LOCK, made):
                self._settle()
                yield
        finally:
            lock.release()

    @property
    def manifest(self) -> dict[str, Any]:
        """What counts.

        stages: [{"name", "folder", "files": {path: sha256}, "added" where the stage was added later}, ...]
        deployed: {path: sha256}; absent until the run is finished.
        begun: names of the tasks in run.json that still count; absent while all do.
        warnings: what was noticed since the run began; absent while nothing was.
        aside: {folder of a stage: why}, what a rollback took back and is still to be moved; absent once it is.
        """
        if self._pending is not None:
            return self._pending
        path = self.folder / MANIFEST
        return _object(path, "stages") if path.is_file() else {"stages": []}

    def stages(self) -> list[str]:
        """Names of the finished stages in order, without 'untrained'."""
        return [entry["name"] for entry in self.manifest["stages"][1:]]

    def stage_folder(self, position: int) -> Path:
        """Folder of a finished stage; 0 is the untrained one."""
        return self.folder / STAGES / self.manifest["stages"][position]["folder"]

    def verify(self) -> None:
        """Check every file of the finished stages against the manifest.

        Raises:
            CorruptFile: names the file, the stage, and the last stage that is still whole.
        """
        whole = "none"
        for entry in self.manifest["stages"]:
            for name, digest in entry["files"].items():
                path = self.folder / STAGES / entry["folder"] / name
                if not path.is_file() or sha256(path) != digest:
                    raise CorruptFile(
                        f"'{path}' is {'damaged' if path.is_file() else 'missing'}: its checksum is not the one in {MANIFEST}. "
                        f"The last stage that is whole: {whole}. Restore the file from a copy, or run again in a new folder."
                    )
            whole = entry["name"]

    @contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        """A folder to write a stage's files into; becomes the next finished stage when the block ends without error.

        Raises:
            QualityGate: it was not accepted; says why and where it is kept.
        """
        manifest = self.manifest
        number = f"{len(manifest['stages']):02d}"
        partial, target = self.folder / STAGES / f".partial-{number}-{name}", self.folder / STAGES / f"{number}-{name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if self._accept and (why := self._accept(self, name, partial)):
            shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
            kept = self.quarantine(partial, target.name, why)
            raise QualityGate(f"{why} The refused stage is kept in '{kept}', to be looked at.")
        for stray in target.parent.glob(f"{number}-*"):  # left by a process killed between the rename and the manifest
            shutil.rmtree(stray)
        entry = {"name": name, "folder": target.name, "files": sync_tree(partial)}
        os.replace(partial, target)
        sync_folder(target.parent)
        self._commit({**manifest, "stages": [*manifest["stages"], entry]})
        self._forget_unfinished()

    def quarantine(self, folder: Path, name: str, why: str) -> Path:
        """Move a stage's folder to `aside/name`, in the place of an earlier one, with the reason in why.json."""
        target = self.folder / QUARANTINE / name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        write_json(folder / "why.json", {"why": why})
        os.replace(folder, target)
        return target

    @contextmanager
    def transaction(self) -> Iterator[dict[str, Any]]:
        """Within: whatever is written counts for this object only. At the end: for all, by one write of the manifest.

        Yields the manifest's further entries, to be changed in place: a stage added gets its "added" from "added".
        """
        pending = self._pending = copy.deepcopy(self.manifest)
        more: dict[str, Any] = {}
        try:
            yield more
            pending = self._pending
        finally:
            self._pending = None
        if "added" in more:
            pending["stages"][-1]["added"] = more["added"]
        self._commit(pending)
        self._forget_unfinished()
        self._settle()

    def truncate(self, stages: int, tasks: Iterable[str]) -> None:
        """Within a transaction: only the first `stages` entries count, and of the tasks in run.json those in `tasks`.

        The folders of the others are moved to `aside/` once that counts for all, by the next process if this one is killed.
        """
        kept, entries, dropped = set(tasks), self.manifest["stages"][:stages], self.manifest["stages"][stages:]
        back = f"was rolled back: the run went back to '{entries[-1]['name']}'."
        aside = {entry["folder"]: f"'{entry['name']}' {back}" for entry in dropped}
        # of those that still count: one rolled back and added again stands with the stage that added it
        begun = [name for name in self.manifest.get("begun", self.begun["tasks"]) if name in kept]
        shorter = {"begun": begun} if len(begun) < len(self.begun["tasks"]) else {}
        self._commit({**self.manifest, "stages": entries, **shorter, **({"aside": aside} if aside else {})})

    def _commit(self, manifest: dict[str, Any]) -> None:
        if self._pending is None:
            write_json(self.folder / MANIFEST, manifest)
        else:
            self._pending = manifest

    @contextmanager
    def deploying(self) -> Iterator[Path]:
        """A folder to write the deployed model into; replaces `deployed/` when the block ends without error."""
        partial, ready = self.folder / ".partial-deployed", self.folder / NEXT
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        files = sync_tree(partial)
        shutil.rmtree(ready, ignore_errors=True)
        os.replace(partial, ready)
        sync_folder(self.folder)
        self._commit({**self.manifest, "deployed": files})
        self._forget_unfinished()  # still there after a kill between the last stage and its removal
        if self._pending is None:
            self._settle()

    def _forget_unfinished(self) -> None:
        """The training that was written down inside a stage is of no use once the stage counts for all."""
        if self._pending is None:
            shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)

    def _settle(self) -> None:
        """Put a `deployed/` that lies ready in its place and what was taken back aside; remove what a killed process left."""
        ready, target, old = (self.folder / name for name in (NEXT, DEPLOYED, OLD))
        if ready.exists() and sync_tree(ready) == self.manifest.get("deployed"):
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                os.replace(target, old)
            os.replace(ready, target)
            sync_folder(self.folder)
        for left in (ready, old):
            shutil.rmtree(left, ignore_errors=True)
        if aside := self.manifest.get("aside"):
            for name, why in aside.items():
                if (folder := self.folder / STAGES / name).is_dir():
                    self.quarantine(folder, name, why)
            self._commit({key: value for key, value in self.manifest.items() if key != "aside"})


def _object(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object in a file, which has at least these keys."""
    found = read_json(path)
    if not isinstance(found, dict) or not found.keys() >= set(keys):
        raise CorruptFile(f"'{path}' is not what a run writes there. Restore it from a copy, or run again.")
    return found
