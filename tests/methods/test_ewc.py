"""EWC: Fisher by hand and by autograd on the two-layer net, the running sum, and the penalty."""

from types import SimpleNamespace
from typing import Any

import torch

from perdure.methods.contract.past import Past
from perdure.methods.ewc import FisherPenalty
from perdure.ops.factors import Factors
from tests.methods.two_layers import context


def fake(gradients: list[torch.Tensor]) -> Any:
    """A context whose stream gives these gradients, one an example."""

    def stream(batches: list[Any], what: str, sink: Any) -> None:
        assert what == "gradients"
        for batch in batches:
            sink("q", torch.stack([gradients[i] for i in batch]).mean(0))

    train = list(range(len(gradients)))
    cut = lambda examples, size, purpose: [examples[i : i + size] for i in range(0, len(examples), size)]  # noqa: E731
    return SimpleNamespace(stage=SimpleNamespace(train=train), batches=cut, stream=stream, past=Past())


def test_fisher_by_hand() -> None:
    gradients = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.0]])]
    part = FisherPenalty(weight=1.0)
    part.after_task(fake(gradients), {})
    assert part.state()["q"].tolist() == [[5.0, 2.0]]  # (1 + 9) / 2, (4 + 0) / 2
    batched = FisherPenalty(weight=1.0, batch_size=2)
    batched.after_task(fake(gradients), {})
    assert batched.state()["q"].tolist() == [[4.0, 1.0]]  # the mean gradient squared: 2^2, (-1)^2


def test_fisher_decays_and_adds() -> None:
    part = FisherPenalty(weight=1.0, decay=0.5)
    part.after_task(fake([torch.tensor([[2.0]])]), {})
    part.after_task(fake([torch.tensor([[3.0]])]), {})
    assert part.state()["q"].tolist() == [[11.0]]  # .5 * 4 + 9


def test_fisher_equals_autograd_on_a_net() -> None:
    ctx = context()
    part = FisherPenalty(weight=1.0, examples=None)
    part.after_task(ctx, {})
    for module, weight in (("first", ctx.model.modules["first"].base), ("second", ctx.model.modules["second"].base)):
        weight.requires_grad_(True)
        squares = []
        for example in ctx.stage.train:
            loss = ctx.backbone.forward(ctx.backbone.collate([example])).loss
            squares.append(torch.autograd.grad(loss, weight)[0].square())
        torch.testing.assert_close(part.state()[module], torch.stack(squares).mean(0), rtol=1e-4, atol=1e-8)


def test_penalty_by_hand() -> None:
    part = FisherPenalty(weight=1.0)
    part.load({"q": torch.tensor([[4.0]])})
    pair = Factors(torch.tensor([[3.0]]), torch.tensor([[0.5]]), 2.0)  # W = 3
    value, grad_A, grad_B = part.value_and_grad("q", pair, Past())
    assert (float(value), float(grad_A), float(grad_B)) == (18.0, 12.0, 72.0)  # 1/2 4 9; s B 4 3; s A 4 3


def test_first_task_is_free() -> None:
    pair = Factors(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    assert FisherPenalty(weight=1.0).value_and_grad("q", pair, Past())[0] == 0
