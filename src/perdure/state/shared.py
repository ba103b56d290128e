"""Stages that several runs have in common, trained by the first of them and read by the others.

Two runs train a stage alike if its adapter starts with the same bits on the same weights, with the same examples, settings and
random numbers, and no part of either method acts on the steps: task 1 of most methods, and every task of the merging rules
that start each task at the pretrained weights. The state after the last step is kept in a folder, under a hash of all that, and
is restored like a checkpoint: a run has the same bits whether it trained the stage or read it. A file that cannot be read is
ignored and written anew.

    FOLDER/<hash>.safetensors       the state after the last step, its log, and the CPU seconds it took
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path

import torch
from safetensors import SafetensorError

from perdure.config.run_config import RunConfig
from perdure.errors import CorruptFile
from perdure.files.durable import sync_file, sync_folder
from perdure.methods.contract.parts import Method, WeightPenalty
from perdure.settings.read import Settings
from perdure.state.checkpoint import load_groups, save_groups
from perdure.training.context import StageContext
from perdure.training.state import Training
from perdure.training.train import Checkpoints, Step

SECONDS = "shared/processor_seconds"
"""The note of a stage that was read: the CPU seconds its training took in the run that trained it."""


class Shared:
    """The finished training of a stage, in `path`, besides the checkpoints of `inner`; `steps`: the stage's log."""

    def __init__(self, path: Path, inner: Checkpoints, method: Method, ctx: StageContext, steps: list[Step]) -> None:
        self._path, self._inner, self._method, self._ctx, self._steps = path, inner, method, ctx, steps
        self._began = time.process_time()
        self._whole = True

    def restore(self, training: Training) -> None:
        """Restore the finished training, if another run has done it."""
        try:
            about, groups = load_groups(self._path)
            state, seconds = groups["training"], float(about["seconds"])
            steps = [self._with_own_penalties(Step(**row)) for row in about["steps"]]
        except (CorruptFile, LookupError, TypeError, ValueError):
            self._inner.restore(training)
            self._whole = training.done == 0  # otherwise the seconds would not be those of the whole stage
            return
        training.load(state)
        self._steps[:] = steps
        self._ctx.note(SECONDS, seconds)

    def stepped(self, training: Training) -> None:
        """Share the training when its last step is done."""
        self._inner.stepped(training)
        if not training.finished or not self._whole:
            return
        steps = [dataclasses.replace(step, penalties={}, shares={}).row() for step in self._steps]
        about = {"steps": steps, "seconds": round(time.process_time() - self._began, 1)}
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            save_groups(partial, {f"training/{key}": tensor for key, tensor in training.state().items()}, about)
            sync_file(partial)
            os.replace(partial, self._path)
            sync_folder(partial.parent)
        except (OSError, SafetensorError):
            if self._path.parent.is_dir():
                raise
            # else a sweep that ended has removed the folder: the file is not needed

    def _with_own_penalties(self, step: Step) -> Step:
        """The log line this method would have written: each of its penalties, with value 0."""
        active = {name: part for name, part in self._method.penalties.items() if part.weight != 0}
        by_weights = [name for name, part in active.items() if isinstance(part, WeightPenalty)]
        return dataclasses.replace(step, penalties=dict.fromkeys(active, 0.0), shares=dict.fromkeys(by_weights, 0.0))


def sharing(
    folder: Path | None, config: RunConfig, method: Method, ctx: StageContext, inner: Checkpoints, steps: list[Step]
) -> Checkpoints:
    """`inner`, wrapped to share the stage's training through `folder` if other runs can have the same one."""
    acting = [part for part in (*method.penalties.values(), method.step_rule, method.replay) if part and part.acts(ctx)]
    if folder is None or acting or not ctx.model.dense_base:
        return inner
    return Shared(folder / f"{_key(config, ctx)}.safetensors", inner, method, ctx, steps)


def _key(config: RunConfig, ctx: StageContext) -> str:
    """Hash of everything that the steps of a stage depend on when no part acts on them, except the code."""
    training = config.training.model_dump(mode="json", exclude={"checkpoint_minutes"})
    factor = training.pop("later_learning_rate_factor")
    training["learning_rate"] *= factor if ctx.index else 1.0
    settings = getattr(ctx.backbone, "settings", None)
    about = {
        "stage": [ctx.index, *(task.fingerprint() for task in ctx.stage.tasks)],
        "seed": ctx.seed,
        "training": training,
        "backbone": settings.model_dump(mode="json") if isinstance(settings, Settings) else dict(config.backbone),
        "dropout": config.lora.dropout,
        "precision": ctx.backbone.precision,
        "threads": torch.get_num_threads(),
        "trainable": ctx.model.trainable,
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, pair in sorted(ctx.started.items()):
        digest.update(f"{name} {pair.scaling}".encode())
        for tensor in (ctx.weight(name), pair.A, pair.B, pair.A0, pair.B0):
            digest.update(b"-" if tensor is None else tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
