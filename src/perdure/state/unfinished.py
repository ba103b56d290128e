"""Resume inside a stage: its training is checkpointed every few minutes and restored after a stop.

    RUN/unfinished/
      manifest.json              which stage of which data, and the sha256 of each file; files not listed do not count
      000120/                    after 120 optimiser steps
          training.safetensors   the adapter as it started, what the steps changed, the memory of the parts
          log.jsonl  notes.json  the steps made, what the parts noted

A part that resumes in the middle of a stage gets `before_task`, then `load` with its memory at that step; the init is not called
again. The folder is removed when the stage is finished. It is ignored if it belongs to another stage or is damaged: the stage
is then learnt from its beginning, which gives the same bits. SIGTERM (a scheduler reclaims the machine), SIGHUP (the terminal
is closed) or Ctrl-C ends the process after the current step and one more checkpoint; if several processes share the run, all
end, whichever got the signal. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

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

from perdure.errors import CorruptFile
from perdure.files.durable import read_json, sha256, sync_folder, sync_tree, write_json, write_lines
from perdure.files.names import stored_name
from perdure.methods.contract.parts import Method, Start
from perdure.state.checkpoint import (
    damaged_as_error,
    load_groups,
    memory,
    packed,
    remember,
    save_groups,
    unpack_factors,
)
from perdure.state.shapes import NOTES as NOTED
from perdure.state.shapes import StepShape, read_rows, read_shaped
from perdure.state.store import UNFINISHED, Store
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel
from perdure.training.processes import ALONE, Processes
from perdure.training.state import Training
from perdure.training.train import Step

MANIFEST, STATE, LOG, NOTES = "manifest.json", "training.safetensors", "log.jsonl", "notes.json"

INTERRUPTED = b"\nperdure: stopping after this step, with a checkpoint; Ctrl-C again stops at once\n"


class Unfinished:
    """The unfinished stage of a run; see `perdure.training.train.Checkpoints`.

    Args:
        steps: the stage's log, shared with its writer.
        minutes: time between checkpoints; None = no checkpoints.
        processes: those that learn the stage together; the main one writes, and all read what it wrote.
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
        self._terminated = 0  # number of the signal that ends the process
        self._interrupted = False
        self._training: dict[str, Tensor] | None = None

    def start(self) -> Start | None:
        """How the adapter started, after restoring the parts' memory, the log and the notes; None without a checkpoint."""
        folder = self._processes.once(self._checkpoint)
        if folder is None:
            return None
        about, groups = load_groups(folder / STATE, self._model.device)
        remember(self._method, groups, folder / STATE)
        with damaged_as_error(folder):
            self._steps[:] = [Step(**row) for row in read_rows(folder / LOG, StepShape)]
            self._ctx.notes.update(read_shaped(folder / NOTES, NOTED))
            self._training = groups["training"]
            return Start(unpack_factors(groups["started"], about["scaling"]), about["trainable"])

    def restore(self, training: Training) -> None:
        """See `Checkpoints`."""
        if self._training is not None:
            training.load(self._training)
            self._training = None

    def stepped(self, training: Training) -> None:
        """Write a checkpoint if it is time to; after a signal write one and raise SystemExit (KeyboardInterrupt for Ctrl-C)."""
        if self._seconds is None:
            return
        if self._signalled():
            self._processes.once(self._write, training)  # the others wait: a launcher ends all as soon as one has ended
            if self._interrupted:
                raise KeyboardInterrupt
            raise SystemExit(128 + (self._terminated or signal.SIGTERM))
        if self._processes.main and time.monotonic() - self._written >= self._seconds:
            self._write(training)
            self._written = time.monotonic()

    @contextmanager
    def checkpoint_on_signal(self) -> Iterator[None]:
        """Within: SIGTERM, SIGHUP and Ctrl-C end the process after the current step, with a checkpoint, if there are any.

        A signal after the last step has its usual effect when the block ends.
        """

        def terminate(number: int, _: object) -> None:
            self._terminated = number

        def interrupt(*_: object) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            if self._processes.main:
                os.write(2, INTERRUPTED)  # not sys.stderr: the signal may interrupt a write to it

        handlers = {}
        if self._seconds is not None and threading.current_thread() is threading.main_thread():  # only it gets signals
            # SIGHUP stays ignored under nohup and in a sweep's processes; Windows does not have it
            for name in ("SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and (number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN):
                    handlers[number] = terminate
            if (
                signal.getsignal(signal.SIGINT) is signal.default_int_handler
            ):  # a sweep handles Ctrl-C for its processes
                handlers[signal.SIGINT] = interrupt
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._seconds is not None and self._signalled():
            signal.raise_signal(signal.SIGINT if self._interrupted else self._terminated or signal.SIGTERM)

    def _signalled(self) -> bool:
        """Whether any of the processes got a signal to end: the same answer in all."""
        return self._processes.total(float(bool(self._terminated) or self._interrupted)) != [0.0]

    def _write(self, training: Training) -> None:
        """Write a new folder, then the manifest that names it, then remove the previous folder."""
        folder = self._folder / f"{training.done:06d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        started = self._ctx.started
        tensors = {f"training/{key}": tensor for key, tensor in training.state().items()}
        tensors |= packed("started", started) | memory(self._method)
        about = {"scaling": {n: pair.scaling for n, pair in started.items()}, "trainable": self._model.trainable}
        save_groups(folder / STATE, tensors, about)
        write_lines(folder / LOG, map(Step.row, self._steps))
        write_json(folder / NOTES, self._ctx.notes)
        files = sync_tree(folder)
        sync_folder(self._folder)
        write_json(self._folder / MANIFEST, {**self._stage, "folder": folder.name, "files": files})
        for old in self._folder.iterdir():
            if old.is_dir() and old != folder:
                shutil.rmtree(old)

    def _checkpoint(self) -> Path | None:
        """The folder of an intact checkpoint of this stage; anything else that lies there is removed."""
        try:
            about: Any = read_json(self._folder / MANIFEST)
        except CorruptFile:
            about = {}
        whole = isinstance(about, dict) and "folder" in about and isinstance(about.get("files"), dict)
        if whole and {key: about.get(key) for key in self._stage} == self._stage:
            folder = self._folder / stored_name(about["folder"], self._folder / MANIFEST, "folder")
            names = [
                stored_name(name, self._folder / MANIFEST, "files") for name in (STATE, LOG, NOTES, *about["files"])
            ]
            if all((folder / name).is_file() and sha256(folder / name) == about["files"].get(name) for name in names):
                return folder
        shutil.rmtree(self._folder, ignore_errors=True)
        return None
