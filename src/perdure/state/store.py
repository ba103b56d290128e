"""A run's folder, written: atomically, checked, resumable. perdure.state.run_folder says what lies where.

A stage is written into a folder of its own, synced, renamed into place, and only then entered in the manifest. A process
killed at any point leaves a run that resumes after its last finished stage, or inside the next one from a checkpoint. A new
`deployed/` is complete beside the old one before the manifest names it, and replaces it afterwards (or when the folder is
next written to).
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from perdure.errors import QualityGate, RunBusy, StoreError
from perdure.files.durable import (
    disk_full_as_error,
    make_folder,
    remove_folder_on_refusal,
    sync_folder,
    sync_tree,
    write_json,
)
from perdure.files.output import RUN, STAGES
from perdure.state.manifest import FORMAT, MANIFEST, append_stage, write_manifest
from perdure.state.mismatch import check_same, other_versions
from perdure.state.run_folder import RunFolder
from perdure.state.shapes import WhyShape, read_shaped

DEPLOYED, UNFINISHED, QUARANTINE, STATE = "deployed", "unfinished", "aside", "state.safetensors"
LOCK, NEXT, OLD = ".lock", ".next-deployed", ".old-deployed"

Accept = Callable[["Store", str, Path], str | None]
"""(store, name of the stage, its written folder) -> why it is not accepted, or None."""


def set_aside(store: RunFolder) -> dict[str, str]:
    """Folder of a stage that a gate refused or a rollback removed -> why."""
    return {
        p.parent.name: read_shaped(p, WhyShape)["why"] for p in sorted((store.folder / QUARANTINE).glob("*/why.json"))
    }


class Store(RunFolder):
    """A run's folder, written inside `with store.writing()`; `accept` is called before a finished stage begins to count."""

    def __init__(self, folder: Path, accept: Accept | None = None) -> None:
        super().__init__(folder)
        self._accept = accept

    def create(self, about: Mapping[str, Any]) -> None:
        """Write run.json, or accept the same run in the folder (see `must_match`), with a warning about other versions."""
        self.must_match(about)
        if not self.exists:
            write_json(self.folder / RUN, {"format": FORMAT, **about})
        elif not self.finished:
            known = self.about["warnings"]
            if new := [line for line in other_versions(self.initial, about) if line not in known]:
                self._commit({**self.manifest, "warnings": [*self.manifest.get("warnings", []), *new]})

    def must_match(self, about: Mapping[str, Any]) -> None:
        """Raise RunMismatch unless the run in the folder has the entries of `about`; StoreError if it holds something else."""
        own = (LOCK, ".partial-")  # the lock, and what a process killed while writing run.json left
        if self.exists:
            check_same(self.folder, self.initial, about, self.stages())
        elif self.folder.is_dir() and not all(p.name.startswith(own) for p in self.folder.iterdir()):
            raise StoreError(f"'{self.folder}' exists and holds no run. Choose an empty or a new folder.")

    @contextmanager
    def writing(self, settle: bool = True) -> Iterator[None]:
        """Hold the folder's lock (RunBusy if another process holds it); a full disk and missing permissions are StoreErrors.

        If the body is refused before it wrote anything, a folder made for it is removed. `settle`: finish first what a killed
        process began.
        """
        made = not os.path.exists(self.folder)
        make_folder(self.folder)
        lock = FileLock(self.folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunBusy(
                f"Another process is writing to '{self.folder}'. Wait for it, or choose another folder."
            ) from None
        except OSError as error:
            raise StoreError(
                f"Cannot write to '{self.folder}': {error.strerror or error}. Check the permissions, or choose another folder."
            ) from error
        try:
            full = disk_full_as_error(self.folder, "Finished stages are kept; free some space, then resume.")
            with full, remove_folder_on_refusal(self.folder, LOCK, made):
                self._check_links()
                if settle:
                    self._settle()
                yield
        finally:
            lock.release()

    def _check_links(self) -> None:
        """Raise a StoreError if a folder of the run is a link: what is written and removed there would be so elsewhere."""
        own = [self.folder / name for name in (STAGES, UNFINISHED, DEPLOYED, QUARANTINE, NEXT, OLD)]
        for path in (*own, *own[0].glob("*"), *own[1].glob("*"), *own[3].glob("*")):
            if path.is_symlink():
                raise StoreError(
                    f"'{path}' is a link to '{path.readlink()}'. Links inside a run are not followed, because its folders are "
                    "replaced and removed. Put the folder itself there."
                )

    @contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        """A folder for a stage's files; it becomes the next finished stage when the block ends, or QualityGate says why not."""
        manifest = self.manifest
        number = f"{len(manifest['stages']):02d}"
        partial, target = self.folder / STAGES / f".partial-{number}-{name}", self.folder / STAGES / f"{number}-{name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if self._accept and (why := self._accept(self, name, partial)):
            shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
            kept = self.quarantine(partial, target.name, why)
            raise QualityGate(f"{why} The refused stage is kept in '{kept}' for inspection.")
        for stray in target.parent.glob(f"{number}-*"):  # left by a process killed between the rename and the manifest
            shutil.rmtree(stray)
        entry = {"name": name, "folder": target.name, "files": sync_tree(partial)}
        os.replace(partial, target)
        sync_folder(target.parent)
        self._append(manifest, entry)
        self._remove_unfinished()

    def quarantine(self, folder: Path, name: str, why: str) -> Path:
        """Move a stage's folder to `aside/name`, replacing an earlier one, with the reason in why.json."""
        target = self.folder / QUARANTINE / name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        write_json(folder / "why.json", {"why": why})
        os.replace(folder, target)
        return target

    @contextmanager
    def transaction(self) -> Iterator[dict[str, Any]]:
        """Within: changes to the manifest are visible to this object only. At the end they take effect in one write.

        Yields a dict in which "added" may be set: it becomes the "added" of the last stage.
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
        self._remove_unfinished()
        self._settle()

    def truncate(self, stages: int, tasks: Iterable[str]) -> None:
        """Within a transaction: keep only the first `stages` entries, and of the tasks in run.json those in `tasks`.

        The other stages' folders move to `aside/` when the transaction ends, or in the next process if this one is killed.
        """
        kept, entries, dropped = set(tasks), self.manifest["stages"][:stages], self.manifest["stages"][stages:]
        why = f"was rolled back: the run went back to '{entries[-1]['name']}'."
        aside = {entry["folder"]: f"'{entry['name']}' {why}" for entry in dropped}
        # of those that still count: a task rolled back and added again is recorded with the stage that added it
        begun = [name for name in self.manifest.get("begun", self.initial["tasks"]) if name in kept]
        shorter = {"begun": begun} if len(begun) < len(self.initial["tasks"]) else {}
        self._commit({**self.manifest, "stages": entries, **shorter, **({"aside": aside} if aside else {})})

    def rebuild(self, stages: Sequence[tuple[str, str, Iterable[str]]], aside: Mapping[str, str]) -> None:
        """Write a new manifest of (name, folder, files of a stage), with checksums of now; move folders (-> why) to `aside/`."""
        entries = []
        for name, folder, files in stages:
            digests = sync_tree(self.folder / STAGES / folder)
            entries.append({"name": name, "folder": folder, "files": {file: digests[file] for file in sorted(files)}})
        self._commit({"stages": entries, **({"aside": dict(aside)} if aside else {})})
        self._settle()

    def _append(self, manifest: dict[str, Any], entry: dict[str, Any]) -> None:
        """One more finished stage: a line in the file, however many stages there are."""
        longer = {**manifest, "stages": [*manifest["stages"], entry]}
        if self._pending is None and append_stage(self.folder / MANIFEST, entry):
            self.once(MANIFEST, lambda: longer)  # what is now in the file need not be read again
        else:
            self._commit(longer)

    def _commit(self, manifest: dict[str, Any]) -> None:
        if self._pending is None:
            write_manifest(self.folder / MANIFEST, manifest)
        else:
            self._pending = manifest

    @contextmanager
    def deploying(self) -> Iterator[Path]:
        """A folder to write the deployed model into; it replaces `deployed/` when the block ends without error."""
        partial, ready = self.folder / ".partial-deployed", self.folder / NEXT
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        files = sync_tree(partial)
        shutil.rmtree(ready, ignore_errors=True)
        os.replace(partial, ready)
        sync_folder(self.folder)
        self._commit({**self.manifest, "deployed": files})
        self._remove_unfinished()  # still there after a kill between the last stage and its removal
        if self._pending is None:
            self._settle()

    def _remove_unfinished(self) -> None:
        """Remove the checkpoint inside a stage, unless a transaction may still be undone."""
        if self._pending is None:
            shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)

    def _settle(self) -> None:
        """Move a complete `deployed/` into place and rolled-back stages to `aside/`; remove what a killed process left."""
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
