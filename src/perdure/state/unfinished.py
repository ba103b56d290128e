"""Resume inside a stage: its training, written down every few minutes and read back after a stop.

    RUN/unfinished/
      manifest.json              which stage of which data, and the sha256 of each file: what is not in it did not happen
      000120/                    after 120 optimiser steps
          training.safetensors   the adapter as it started, what the steps changed, the memory of the parts
          log.jsonl  notes.json  the steps made, what the parts noted

A part that starts in the middle of a stage gets `before_task`, then `load` with what it remembered at that step; the init is
not asked again. Removed when the stage is finished; ignored when it belongs to another stage or is damaged: then the stage is
learnt from its beginning, which gives the same bits. SIGTERM (a scheduler takes the machine back) or Ctrl-C writes once more
after the step it meets, and ends the process; where several share the run, all of them, whichever was told. A second Ctrl-C ends
it at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from perdure.files.durable import read_lines, sha256, sync_folder, sync_tree, write_json, write_lines
from perdure.methods.contract.parts import Method, Start
from perdure.state.checkpoint import load_groups, memory, pack_factors, remember, save_groups, unpack_factors
from perdure.state.store import UNFINISHED, Store
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel
from perdure.training.processes import ALONE, Processes
from perdure.training.state import Training
from perdure.training.train import Step

MANIFEST, STATE, LOG, NOTES = "manifest.json", "training.safetensors", "log.jsonl", "notes.json"

INTERRUPTED = b"\nperdure: stopping after this step, which is written down; Ctrl-C again stops at once\n"


class Unfinished:
    """The unfinished stage of a run; see `perdure.training.train.Checkpoints`.

    Args:
        steps: the stage's log, shared with whoever writes it.
        minutes: time between checkpoints; None = none is written.
        processes: those that learn the stage together; the main one writes, and all read what it finds.
    """

    def __init__(
        self,
        store: Store,
        method: Method,
        model: AdaptedModel,
        ctx: StageContext,
        steps: list[Step],
        minutes: float | None,
        processes: Processes = ALONE,
    ) -> None:
        self._folder = store.folder / UNFINISHED
        data = {task.name: task.fingerprint() for task in ctx.stage.tasks}  # a task added again may have other data
        self._stage = {"stage": ctx.stage.name, "index": ctx.index, "tasks": data}
        self._method, self._model, self._ctx, self._steps, self._processes = method, model, ctx, steps, processes
        self._seconds = None if minutes is None else 60 * minutes
        self._written = time.monotonic()
        self._terminated = self._interrupted = False
        self._found: dict[str, Tensor] | None = None

    def start(self) -> Start | None:
        """How the adapter started, with the parts' memory, the log and the notes read back; None where the stage begins."""
        folder = self._processes.once(self._kept)
        if folder is None:
            return None
        about, groups = load_groups(folder / STATE, self._model.device)
        remember(self._method, groups, folder / STATE)
        self._steps[:] = [Step(**row) for row in read_lines(folder / LOG)]
        self._ctx.notes.update(json.loads((folder / NOTES).read_text(encoding="utf-8")))
        self._found = groups["training"]
        return Start(unpack_factors(groups["started"], about["scaling"]), about["trainable"])

    def restore(self, training: Training) -> None:
        """See `Checkpoints`."""
        if self._found is not None:
            training.load(self._found)
            self._found = None

    def stepped(self, training: Training) -> None:
        """Write if it is time to.

        Raises:
            SystemExit: the process was told to end. KeyboardInterrupt: by Ctrl-C.
        """
        if self._seconds is None:
            return
        if self._told():
            self._processes.once(self._write, training)  # the others wait: a launcher ends all as soon as one has ended
            if self._interrupted:
                raise KeyboardInterrupt
            raise SystemExit(128 + signal.SIGTERM)
        if self._processes.main and time.monotonic() - self._written >= self._seconds:
            self._write(training)
            self._written = time.monotonic()

    @contextmanager
    def checkpoint_on_signal(self) -> Iterator[None]:
        """Within: SIGTERM and Ctrl-C end the process after the step they meet, once that is written; not where no checkpoint is.

        One that meets no further step does what it would have done without this, when this is over.
        """
        if self._seconds is None:
            yield
            return
        with self._noting_signals():
            yield
        if self._told():
            signal.raise_signal(signal.SIGINT if self._interrupted else signal.SIGTERM)

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # only there Python takes signals
            yield
            return

        def terminate(*_: object) -> None:
            self._terminated = True

        def interrupt(*_: object) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            if self._processes.main:
                os.write(2, INTERRUPTED)  # a signal may come while standard error is written to

        before = {signal.SIGTERM: signal.signal(signal.SIGTERM, terminate)}
        if (
            signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):  # a sweep's processes leave Ctrl-C to the sweep
            before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told(self) -> bool:
        """Whether any of the processes was told to end: the same answer in all."""
        return self._processes.total(float(self._terminated or self._interrupted)) != [0.0]

    def _write(self, training: Training) -> None:
        """A folder of its own, then the manifest that names it, then away with the last one."""
        folder = self._folder / f"{training.done:06d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        started = self._ctx.started
        tensors = {f"training/{key}": tensor for key, tensor in training.state().items()}
        pack_factors(tensors, "started", started)
        scaling = {name: pair.scaling for name, pair in started.items()}
        about = {"scaling": scaling, "trainable": self._model.trainable}
        save_groups(folder / STATE, tensors | memory(self._method), about)
        write_lines(folder / LOG, map(dataclasses.asdict, self._steps))
        write_json(folder / NOTES, self._ctx.notes)
        files = sync_tree(folder)
        sync_folder(self._folder)
        write_json(self._folder / MANIFEST, {**self._stage, "folder": folder.name, "files": files})
        for old in self._folder.iterdir():
            if old.is_dir() and old != folder:
                shutil.rmtree(old)

    def _kept(self) -> Path | None:
        """The folder to go on from; without one, whatever lies there is removed."""
        folder = self._whole()
        if folder is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        return folder

    def _whole(self) -> Path | None:
        """The folder of a checkpoint that belongs to this stage and is undamaged."""
        try:
            about: dict[str, Any] = json.loads((self._folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if {key: about.get(key) for key in self._stage} != self._stage:
            return None
        folder = self._folder / about["folder"]
        whole = all((folder / n).is_file() and sha256(folder / n) == digest for n, digest in about["files"].items())
        return folder if whole else None
