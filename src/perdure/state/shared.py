"""Stages that several runs have in common, trained by the first of them and read by the others.

Two runs train a stage alike if its adapter starts with the same bits on the same weights, with the same examples, settings and
random numbers, and no part of either method acts on the steps: task 1 of most methods, and every task of the merging rules
that begin each task at the pretrained weights. What the last step leaves is kept in a folder, under a hash of all that, and
comes back as a checkpoint of the last step: no bit of a run depends on whether it trained or read. A file that cannot be read
counts as none, and is written anew.

    FOLDER/<hash>.safetensors       the state after the last step, its log, and the processor seconds it took
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from perdure.config.run_config import RunConfig
from perdure.files.durable import sync_file, sync_folder
from perdure.methods.contract.parts import Method, WeightPenalty
from perdure.state.checkpoint import load_groups, save_groups
from perdure.training.context import StageContext
from perdure.training.state import Training
from perdure.training.train import Checkpoints, Step

SECONDS = "shared/processor_seconds"
"""The note of a stage that was read: what its training took where it was done."""


class Shared:
    """A stage's checkpoints, with those of `inner`; see `perdure.training.train.Checkpoints`.

    Args:
        path: where the finished training is, or is to be.
        steps: the stage's log.
    """

    def __init__(self, path: Path, inner: Checkpoints, method: Method, ctx: StageContext, steps: list[Step]) -> None:
        self._path, self._inner, self._method, self._ctx, self._steps = path, inner, method, ctx, steps
        self._began = time.process_time()
        self._whole = True

    def restore(self, training: Training) -> None:
        """Bring the training to its end, if another run was there."""
        found = self._read()
        if found is None:
            self._inner.restore(training)
            self._whole = training.done == 0  # else the seconds are not those of the whole stage
            return
        state, steps, seconds = found
        training.load(state)
        self._steps[:] = steps
        self._ctx.note(SECONDS, seconds)

    def _read(self) -> tuple[dict[str, Tensor], list[Step], float] | None:
        """The state after the last step, its log and its processor seconds; None where there is none that can be read."""
        try:
            about, groups = load_groups(self._path)
            return groups["training"], [self._own(Step(**row)) for row in about["steps"]], float(about["seconds"])
        except (OSError, SafetensorError, LookupError, TypeError, ValueError):
            return None

    def stepped(self, training: Training) -> None:
        """Keep the training when its last step is done."""
        self._inner.stepped(training)
        if training.done < training.total or not self._whole:
            return
        steps = [dataclasses.asdict(dataclasses.replace(step, penalties={}, shares={})) for step in self._steps]
        about = {"steps": steps, "seconds": round(time.process_time() - self._began, 1)}
        try:
            self._write({f"training/{key}": tensor for key, tensor in training.state().items()}, about)
        except (OSError, SafetensorError):
            if self._path.parent.is_dir():
                raise
            # else a sweep that ended has removed the folder: nobody needs the file

    def _write(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        partial.parent.mkdir(parents=True, exist_ok=True)
        save_groups(partial, tensors, about)
        sync_file(partial)
        os.replace(partial, self._path)
        sync_folder(partial.parent)

    def _own(self, step: Step) -> Step:
        """The log line as this method would have written it: each of its penalties, with value 0."""
        active = {name: part for name, part in self._method.penalties.items() if part.weight != 0}
        by_weights = [name for name, part in active.items() if isinstance(part, WeightPenalty)]
        return dataclasses.replace(step, penalties=dict.fromkeys(active, 0.0), shares=dict.fromkeys(by_weights, 0.0))


def sharing(
    folder: Path | None, config: RunConfig, method: Method, ctx: StageContext, inner: Checkpoints, steps: list[Step]
) -> Checkpoints:
    """`inner`, which shares the stage's training through `folder` where it is one that other runs can have."""
    acting = [part for part in (*method.penalties.values(), method.step_rule, method.replay) if part and part.acts(ctx)]
    if folder is None or acting or not ctx.model.dense_base:
        return inner
    return Shared(folder / f"{_key(config, ctx)}.safetensors", inner, method, ctx, steps)


def _key(config: RunConfig, ctx: StageContext) -> str:
    """Hash of everything that the steps of a stage depend on when no part acts on them; the code aside."""
    training = config.training.model_dump(mode="json", exclude={"checkpoint_minutes"})
    factor = training.pop("later_learning_rate_factor")
    training["learning_rate"] *= factor if ctx.index else 1.0
    about = {
        "stage": [ctx.index, *(task.fingerprint() for task in ctx.stage.tasks)],
        "seed": ctx.seed,
        "training": training,
        "backbone": dict(config.backbone),
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
