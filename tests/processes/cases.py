"""A run in float64 that any number of processes can share, and parts that look at it from inside."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor

import perdure.commands.learn
from perdure.backbones import load_backbone
from perdure.commands.learn import learn
from perdure.config.composition import resolve_method
from perdure.methods.contract.build import build_method
from perdure.methods.contract.context import Context, Gradients
from perdure.methods.contract.parts import Start, StepRule
from perdure.methods.plain import Kaiming
from perdure.ops.factors import Factors
from perdure.state.checkpoint import load_checkpoint
from perdure.state.store import Store
from perdure.tasks.task import Task
from perdure.training.lora import AdaptedModel
from tests.conftest import small_task

STRONG: dict[str, Any] = {"preset": "seq-lora", "penalties": {"l2": {"weight": 5.0}}}
"""From the second task on the penalty has a gradient at the first step, because the adapter goes on."""


class Recorder(StepRule):
    """Writes the first gradient of every stage, penalties included and not yet clipped, to `folder`."""

    folder: str

    def gradients(self, ctx: Context, grads: Gradients) -> Gradients:
        path = Path(self.folder) / f"{ctx.stage.name}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(grads, path)
        return grads


class StartsByRank(Kaiming):
    """Starts differently on every process, as where a measured start is not the same to the last bit."""

    def start(self, ctx: Context) -> Start:
        start = super().start(ctx)
        for pair in start.factors.values():
            pair.A.add_(int(os.environ.get("RANK", "0")))
        return start


class FailsOn(StepRule):
    """Raises something unforeseen on one process, at the first step of one stage."""

    rank: int
    stage: str

    def gradients(self, ctx: Context, grads: Gradients) -> Gradients:
        if ctx.stage.name == self.stage and os.environ.get("RANK") == str(self.rank):
            raise RuntimeError("struck by lightning")
        return grads


class Signalled(FailsOn):
    """One process is sent SIGTERM during the second step of one stage."""

    caches: ClassVar[frozenset[str]] = frozenset({"_steps"})

    _steps: int = PrivateAttr(default=0)

    def before_task(self, ctx: Context) -> None:
        self._steps = 0

    def gradients(self, ctx: Context, grads: Gradients) -> Gradients:
        self._steps += 1
        if ctx.stage.name == self.stage and self._steps == 2 and os.environ.get("RANK") == str(self.rank):
            os.kill(os.getpid(), signal.SIGTERM)
        return grads


def tasks(count: int = 2) -> list[Task]:
    """Texts of differing lengths: micro-batches have unequal numbers of loss terms."""
    names = [("fruit", "apples", "pears"), ("sky", "sun", "moon"), ("sea", "waves", "sand")]
    return [small_task(*name) for name in names[:count]]


def exact_run(
    out: Path, model: Path, method: Any = None, *, count: int = 2, accumulation: int = 1, **settings: Any
) -> None:
    """Learn in float64; the first gradients go to `out`-gradients where no other step rule is given."""
    method = method or {**STRONG, "step_rule": {"kind": "tests.processes.cases:Recorder", "folder": f"{out}-gradients"}}
    training = {"epochs": 2, "batch_size": 19, "learning_rate": 0.01, "accumulation": accumulation}  # steps of 19 and 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perdure.commands.learn, "load_learner", _in_float64)
        learn(
            out=out, tasks=tasks(count), method=method, training=training,
            backbone={"kind": "causal", "model": str(model), "max_length": 64}, lora={"rank": 2, "alpha": 4},
            precision="fp32", threads=1, **settings,
        )  # fmt: skip


def _in_float64(config: Any, chosen: Any, tried: bool = False) -> Any:
    learner = load_backbone(config.backbone)
    learner.model.double()
    learner.prepare(chosen)
    return AdaptedModel(learner.model, config.lora, learner.default_targets), learner


def trained(out: Path, position: int, method: Any = STRONG) -> Mapping[str, Factors]:
    """The factors of a finished stage, in the precision they were trained in."""
    state = Store(out).stage_folder(position) / "state.safetensors"
    built = build_method(resolve_method({key: value for key, value in method.items() if key != "step_rule"}))
    return load_checkpoint(state, built, lambda index: {}).factors


def all_gradients(out: Path, stage: str) -> Tensor:
    """The recorded first gradient of a stage, as one vector."""
    grads: Gradients = torch.load(Path(f"{out}-gradients") / f"{stage}.pt")
    return torch.cat([grad.flatten() for pair in grads.values() for grad in pair if grad is not None])
