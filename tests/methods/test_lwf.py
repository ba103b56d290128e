"""LwF: the distillation loss by hand, what it keeps, and weight 0 equal to no penalty bit for bit."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import Method
from perdure.methods.contract.past import Past
from perdure.methods.lwf import LwF, distillation
from perdure.methods.plain import Kaiming, Sum
from perdure.ops.factors import Factors
from perdure.ops.lowrank import dense
from perdure.training.context import StageContext
from tests.methods.two_layers import context, learn_toy, toy_task, toy_tasks


def test_distillation_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2), T = 1: KL = 3/4 ln(3/2) + 1/4 ln(1/2)."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(distillation(student, teacher, 1.0)) == pytest.approx(expected)
    assert float(distillation(student, 2 * teacher, 2.0)) == pytest.approx(expected)  # T divides the scores
    assert float(distillation(teacher, teacher, 2.0)) == pytest.approx(0.0, abs=1e-7)


def test_its_gradient_is_the_cross_entropys() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    (ours,) = torch.autograd.grad(distillation(student, teacher, 2.0), student)
    soft = torch.softmax(teacher / 2, dim=1)
    (theirs,) = torch.autograd.grad(torch.nn.functional.cross_entropy(student / 2, soft), student)
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_loss_is_zero_at_the_start_and_grows_as_old_answers_move() -> None:
    ctx = context(2)
    ctx.model.start(Kaiming().start(ctx))
    ctx.started = {m: Factors(f.A.clone(), f.B.clone(), f.scaling) for m, f in ctx.model.factors().items()}
    batch = ctx.backbone.collate(ctx.stage.train[:8])
    summed, mean = LwF(weight=1.0), LwF(weight=1.0, reduction="mean")
    assert float(summed.loss(ctx, batch, ctx.backbone.forward(batch)).detach()) == pytest.approx(0.0, abs=1e-7)
    for module in ctx.model.modules.values():
        torch.nn.init.normal_(module.B, std=0.3)
    loss = summed.loss(ctx, batch, ctx.backbone.forward(batch))
    assert loss > 1e-3
    assert float(mean.loss(ctx, batch, ctx.backbone.forward(batch)).detach()) == pytest.approx(float(loss.detach()) / 2)
    loss.backward()  # the teacher was asked in between
    assert ctx.model.modules["first"].B.grad is not None
    assert ctx.model.modules["first"].B.grad.norm() > 0


def test_the_teacher_answers_once_a_stage_and_others_when_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context(2)
    ctx.model.start(Kaiming().start(ctx))
    ctx.started = {m: Factors(f.A.clone(), f.B.clone(), f.scaling) for m, f in ctx.model.factors().items()}
    part, asked, teacher = LwF(weight=1.0), [], context(2).teacher

    def counted(_: StageContext, examples: Any, tasks: Any) -> list[torch.Tensor]:
        asked.append(len(examples))
        return teacher(examples, tasks)

    monkeypatch.setattr(StageContext, "teacher", counted)
    own, other = ctx.stage.train[3:7], toy_task(1).train[:2]
    replayed = dataclasses.replace(ctx, buffer={"task1": other})
    for _ in range(2):
        found = part._teacher(ctx, own)
        for scores, wanted in zip(found, teacher(own, ctx.past.stages), strict=True):
            torch.testing.assert_close(scores, wanted)
    assert sum(asked) == len(ctx.stage.train)
    part._teacher(replayed, own)  # as every batch beside a buffer: another process's may hold old examples
    part._teacher(replayed, [*own, *other])
    assert asked[-2:] == [len(own), len(own) + len(other)]


def test_free_text_is_refused_before_anything_is_trained() -> None:
    assert Need.LABELS in LwF(weight=1.0).requires()


def test_first_task_has_no_old_answers() -> None:
    ctx = context(0)
    batch = ctx.backbone.collate(ctx.stage.train[:4])
    assert float(LwF(weight=1.0).loss(ctx, batch, ctx.backbone.forward(batch))) == 0.0


def run(folder: Path, weight: float | None) -> Past:
    penalties = {} if weight is None else {"lwf": LwF(weight=weight)}
    return learn_toy(Method("m", Kaiming(), Sum(), penalties=penalties), folder, toy_tasks(2), epochs=20)


def test_weight_0_is_inc_lora_and_weight_keeps_old_answers(tmp_path: Path) -> None:
    plain, zero, strong = run(tmp_path / "a", None), run(tmp_path / "b", 0.0), run(tmp_path / "c", 5.0)
    for module, delta in plain.deployed.items():  # type: ignore[union-attr]
        assert torch.equal(dense(delta), dense(zero.deployed[module]))  # type: ignore[index]
    moved = {}
    for name, past in (("plain", plain), ("strong", strong)):
        ctx = context(1)
        new = ctx.backbone.collate(toy_task(1).train)  # LwF keeps old answers on the NEW task's inputs
        with torch.no_grad():
            with ctx.model.deployed(_first(past)):
                before = ctx.backbone.scores(new, None, "task0")
            with ctx.model.deployed(past.deployed):  # type: ignore[arg-type]
                after = ctx.backbone.scores(new, None, "task0")
        moved[name] = float(distillation(after, before, 1.0))
    assert moved["strong"] < 0.1 * moved["plain"]


def _first(past: Past) -> dict[str, torch.Tensor]:
    """Deployed after the first stage = what is deployed now less the last update."""
    return {m: dense(d) - dense(past.factors[m].update()) for m, d in past.deployed.items()}  # type: ignore[union-attr]
