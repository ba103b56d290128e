"""What is measured on a model does not depend on dropout, and a trial of the backbone is no use of a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.backbones.modes import without_dropout
from perdure.config.lora_settings import LoraSettings
from perdure.errors import ConfigError, UnmetNeed
from perdure.files.durable import read_json
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.past import Folded, Past
from perdure.methods.plain import Kaiming, Sum
from perdure.ops.lowrank import Update
from perdure.state.scores import read_scores
from perdure.state.store import Store
from perdure.tasks.task import Stage, Task
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel
from tests.backbones.tiny import tiny_causal
from tests.contract.runs import short_run
from tests.methods.two_layers import context


def begun(**lora: Any) -> StageContext:
    """The toy in the middle of a stage: an adapter that changes the function."""
    ctx = context(**lora)
    ctx.model.start(Kaiming().start(ctx))
    generator = torch.Generator().manual_seed(1)
    for module in ctx.model.modules.values():
        module.B.data.copy_(torch.randn(module.B.shape, generator=generator))
    ctx.started = {name: pair.copied() for name, pair in ctx.factors.items()}
    return ctx


def streamed(ctx: StageContext, what: Any) -> list[Tensor]:
    found: list[Tensor] = []
    ctx.stream([ctx.stage.train[:16]], what, lambda _module, tensor: found.append(tensor.clone()))
    return found


def scored(ctx: StageContext) -> list[Tensor]:
    found: list[Tensor] = []
    ctx.stream_scores([ctx.stage.train[:16]], lambda _module, _use, x, g: found.extend((x, g)))
    return found


def task_gradients(ctx: StageContext) -> list[Tensor]:
    return [grad for pair in ctx.task_gradients(ctx.stage.train[:16]).values() for grad in pair if grad is not None]


MEASURED: dict[str, Callable[[StageContext], list[Tensor]]] = {
    "gradients": lambda ctx: streamed(ctx, "gradients"),
    "inputs": lambda ctx: streamed(ctx, "inputs"),
    "scores": scored,
    "task gradients": task_gradients,
    "teacher": lambda ctx: ctx.teacher(ctx.stage.train[:16], [ctx.stage.name]),
}


@pytest.mark.parametrize("measured", MEASURED)
def test_nothing_is_measured_under_dropout(measured: str) -> None:
    with_dropout, plain = begun(dropout=0.5), begun()
    found, expected = MEASURED[measured](with_dropout), MEASURED[measured](plain)
    assert expected
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    x = with_dropout.backbone.collate(with_dropout.stage.train)
    assert not torch.equal(with_dropout.backbone.features(x), with_dropout.backbone.features(x))  # steps keep it


def test_only_dropout_changes_its_mode() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(1, 1), torch.nn.Dropout().eval())
    with without_dropout(model):
        assert [module.training for module in model] == [False, True, False]
        assert model.training
    assert [module.training for module in model] == [True, True, False]


@pytest.mark.parametrize("ranking", ["packed", "auto"])
def test_a_trial_of_the_backbone_is_no_use_of_a_module(ranking: Any, tmp_path: Path) -> None:
    """'auto' tries packing at the first scores: what follows is still the first use."""
    backbone = CausalLM.load(CausalSettings(model=str(tiny_causal(tmp_path)), ranking=ranking))
    task = Task("t", [("a", "x"), ("b", "y")], test=[("a", "x")], labels={"x": "good", "y": "bad"})
    backbone.prepare([task])
    model = AdaptedModel(backbone.model, LoraSettings(rank=2), backbone.default_targets)
    ctx = StageContext(Stage("t", (task,)), 0, Past(), {}, model, backbone, {"t": task}, seed=0)
    model.start(Kaiming().start(ctx))
    uses: set[int] = set()
    ctx.stream_scores([task.train], lambda _module, use, _x, _g: uses.add(use))
    assert backbone._packs
    assert uses == {0}


def test_a_note_that_is_no_number_is_left_out_and_told() -> None:
    """Written down it would be no JSON: the stage failed after all its steps, and again whenever it went on."""
    ctx = context()
    ctx.note("part/cosine", 0.5)
    ctx.note("part/other", 1)
    with pytest.warns(RuntimeWarning, match="'part/cosine' is nan; not noted"):
        ctx.note("part/cosine", float("nan"))
    assert ctx.notes == {"part/other": 1.0}


class Watched(Sum):
    """Notes what every task learnt so far scores with what is about to be deployed."""

    needs = frozenset({Need.VALIDATION})

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        folded = super().fold(ctx, past, update)
        for task in (*past.stages, ctx.stage.name):
            ctx.note(f"scored/{task}", ctx.evaluate(folded.deployed, task))
        with pytest.raises(ConfigError, match="'sea' cannot be evaluated"):
            ctx.evaluate(folded.deployed, "sea")
        return folded


def test_a_part_may_score_updates_on_validation_examples(tmp_path, small_tasks, encoder_folder):
    method = {"consolidate": "tests.training.test_context:Watched"}
    run = tmp_path / "run"
    short_run(run, small_tasks[:2], encoder_folder, method, evaluation={"split": "validation"})
    for position, row in enumerate(read_scores(run).score_matrix):
        noted = read_json(Store(run).stage_folder(position + 1) / "notes.json")
        assert [noted[f"scored/{task.name}"] for task in small_tasks[: position + 1]] == row[: position + 1]
    bare = [replace(task, validation=()) for task in small_tasks[:2]]
    with pytest.raises(UnmetNeed, match="requires validation examples for every task"):
        short_run(tmp_path / "other", bare, encoder_folder, method)
