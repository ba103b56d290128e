"""Label smoothing and class weights: by hand, against torch and scikit-learn's formula, and through accumulation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from perdure.backbones.base import Batch
from perdure.backbones.losses import class_loss, token_loss, with_objective
from perdure.backbones.toy import Toy, toy_task
from perdure.config.training_settings import TrainingSettings
from perdure.errors import ConfigError, UnknownName
from perdure.methods.contract.parts import Method
from perdure.methods.plain import Kaiming, Sum
from perdure.tasks.task import Example, Task
from perdure.training.objective import balanced, class_weights, objective
from perdure.training.processes import ALONE
from perdure.training.train import _backward
from tests.methods.two_layers import context


def classes(scores, targets, allowed=None) -> tuple[torch.Tensor, Batch]:
    logits = torch.tensor(scores, requires_grad=True)
    allowed = torch.ones(logits.shape, dtype=torch.bool) if allowed is None else torch.tensor(allowed)
    examples = [Example(str(i), str(label), "t") for i, label in enumerate(targets)]
    extra = {"targets": torch.tensor(targets), "allowed": allowed}
    return logits, Batch(examples, {"x": logits}, len(targets), extra=extra)


def test_smoothing_by_hand():
    """Probabilities 3/4 and 1/4, a fifth spread: .8 (-log 3/4) + .2 (-log 3/4 - log 1/4) / 2."""
    logits, batch = classes([[math.log(3), 0.0]], [0])
    wanted = 0.8 * -math.log(0.75) + 0.1 * (-math.log(0.75) - math.log(0.25))
    assert class_loss(logits, with_objective(batch, 0.2, None)).item() == pytest.approx(wanted)


def test_smoothing_is_over_the_tasks_own_labels():
    """Classes of another task count nowhere: the loss and gradient of two classes alone, as torch has them."""
    own = [[0.3, -1.0], [2.0, 0.7]]
    logits, batch = classes([[9.0, *row] for row in own], [1, 2], [[False, True, True]] * 2)
    loss = class_loss(logits, with_objective(batch, 0.1, None))
    loss.backward()
    alone = torch.tensor(own, requires_grad=True)
    theirs = functional.cross_entropy(alone, torch.tensor([0, 1]), label_smoothing=0.1)
    theirs.backward()
    assert logits.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(logits.grad, functional.pad(alone.grad, (1, 0)))


def test_weights_and_smoothing_are_torchs():
    scores, targets = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 0, 0, 1]
    logits, batch = classes(scores.tolist(), targets)
    weights = {"0": 0.5, "1": 2.0, "2": 7.0}
    weighed = with_objective(batch, 0.0, lambda example: weights[example.label])
    theirs = functional.cross_entropy(logits, batch.extra["targets"], weight=torch.tensor([0.5, 2.0, 7.0]))
    torch.testing.assert_close(class_loss(logits, weighed), theirs)
    assert weighed.count == 3 * 0.5 + 2 * 2.0 + 7.0
    smooth = functional.cross_entropy(logits, batch.extra["targets"], label_smoothing=0.3)
    torch.testing.assert_close(class_loss(logits, with_objective(batch, 0.3, None)), smooth)


def test_every_target_token_has_its_examples_weight():
    """Two answers of 1 and 2 tokens, weights 3 and 1: (3 a + b + c) / 5."""
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    answers = torch.tensor([0, 3, 1])
    predicting = torch.tensor([[False, True, False], [True, True, False]])
    examples = [Example("x", "rare"), Example("y", "common")]
    batch = Batch(examples, {"input_ids": predicting.long()}, 3, extra={"predicting": predicting, "answers": answers})
    weighed = with_objective(batch, 0.0, lambda example: 3.0 if example.label == "rare" else 1.0)
    a, b, c = functional.cross_entropy(logits, answers, reduction="none").tolist()
    assert token_loss(logits, answers, weighed).item() == pytest.approx((3 * a + b + c) / 5)
    assert weighed.count == 5
    smooth = functional.cross_entropy(logits, answers, label_smoothing=0.1)
    assert torch.equal(token_loss(logits, answers, with_objective(batch, 0.1, None)), smooth)


def test_without_them_the_loss_is_the_same_object():
    _, batch = classes([[1.0, 0.0]], [0])
    assert objective(TrainingSettings(), [])(batch) is batch


def test_balanced_is_scikit_learns_formula():
    """Three of a, one of b: 4 / (2 x 3) and 4 / (2 x 1); a label without examples has no weight, as in np.unique(y)."""
    assert balanced([Example("", label) for label in "aaba"]) == {"a": 4 / 6, "b": 2.0}


def task(labels: str = "ab") -> Task:
    rows = [(f"text {i}", label) for i, label in enumerate("aaab")]
    return Task("t", train=rows, validation=rows, test=rows, labels={label: label * 3 for label in labels})


def test_weights_by_task():
    balanced_ab = class_weights(TrainingSettings(class_weights="balanced"), [task()])
    assert balanced_ab == {("t", "a"): 4 / 6, ("t", "b"): 2.0}
    assert class_weights(TrainingSettings(class_weights={"b": 5}), [task()]) == {("t", "a"): 1.0, ("t", "b"): 5.0}
    assert class_weights(TrainingSettings(), [task()]) == {}
    assert TrainingSettings(class_weights={0: 2.0}).class_weights == {"0": 2.0}  # type: ignore[dict-item]


def test_what_has_no_meaning_is_refused():
    free = Task("free", train=[("a", "b")], test=[("a", "b")], metric="rouge-l")
    with pytest.raises(ConfigError, match=r"task 'free' has no labels.*training_by_task: \{free:"):
        class_weights(TrainingSettings(class_weights="balanced"), [free])
    with pytest.raises(UnknownName, match="'c'"):
        class_weights(TrainingSettings(class_weights={"c": 2.0}), [task()])
    for wrong in ({"a": 0.0}, {"a": -1.0}, "equal"):
        with pytest.raises(ValueError):
            TrainingSettings(class_weights=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"class_weights": {"0": 5.0}}, {"label_smoothing": 0.2}])
def test_accumulation_changes_nothing(settings):
    """One step over 12 examples in 1 or in 5 micro-batches, the last of them ragged: the same loss and gradient."""
    ctx = context()
    ctx.model.start(Kaiming().start(ctx))
    counted = objective(TrainingSettings(**settings), ctx.stage.tasks)
    found = []
    for parts in (1, 5):
        for parameter in ctx.model.parameters():
            parameter.grad = None
        loss, _ = _backward(
            ctx.backbone, Method("m", Kaiming(), Sum()), ctx, ctx.stage.train[:12], parts, ALONE, counted
        )
        found.append((loss, [p.grad for p in ctx.model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_replayed_examples_count_one():
    toy, own = Toy(), toy_task(1)
    toy.prepare([toy_task(0), own])
    batch = toy.collate([own.train[0], toy_task(0).train[0]])
    counted = objective(TrainingSettings(class_weights={"2": 3.0, "3": 3.0}), [own])(batch)
    assert counted.weights is not None
    assert counted.weights.tolist() == [3.0, 1.0]
    assert counted.count == 4.0
