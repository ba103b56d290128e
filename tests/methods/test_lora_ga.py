"""LoRA-GA: directions and scale by hand, the full gradient against autograd, an unchanged function, clear errors."""

import pytest
import torch
from torch import nn

from perdure.errors import ConfigError, DataError, TrainingError
from perdure.methods.contract.context import Need
from perdure.methods.lora_ga import LoraGa, offset_start, singular_directions, stable_factors
from perdure.methods.measured.full_gradients import DenseGradients, add_mean, full_batches
from perdure.ops.factors import Factors
from tests.methods.two_layers import Toy, context, toy_tasks

U = torch.arange(12.0).reshape(3, 4)
VH = torch.arange(20.0).reshape(4, 5)


def test_directions_by_hand() -> None:
    """Rank 2 of 4 singular vectors: who gets the first two and who the next."""
    A, B = singular_directions(U, VH, 2, "ArB2r")
    assert torch.equal(A, VH[:2])
    assert torch.equal(B, U[:, 2:4])
    A, B = singular_directions(U, VH, 2, "A2rBr")
    assert torch.equal(A, VH[2:4])
    assert torch.equal(B, U[:, :2])
    A, B = singular_directions(U, VH, 2, "ArBr")
    assert torch.equal(A, VH[[1, 3]])
    assert torch.equal(B, U[:, [0, 2]])


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_a_small_matrix_still_gives_rank_vectors_to_both(direction: str) -> None:
    A, B = singular_directions(U, VH, 3, direction)  # type: ignore[arg-type]
    assert (A.shape, B.shape) == ((3, 5), (3, 3))


def test_stable_scale_by_hand() -> None:
    """O = 16, gamma = 16: both times 16^(1/4) / 4 = 1/2."""
    A, B = stable_factors(torch.ones(2, 3), torch.ones(16, 2), 16.0)
    assert torch.allclose(A, torch.full((2, 3), 0.5))
    assert torch.allclose(B, torch.full((16, 2), 0.5))


def test_offset_uses_the_factors_as_they_are_stored() -> None:
    like = {"m": Factors(torch.zeros(1, 1, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.bfloat16), 2.0)}
    pair = offset_start({"m": (torch.tensor([[1.001]]), torch.tensor([[3.0]]))}, like).factors["m"]
    assert pair.A0 is not None
    assert pair.A0.item() == torch.tensor(1.001).bfloat16().item() != pytest.approx(1.001, abs=1e-4)
    assert pair.A0.dtype == torch.float32
    assert pair.scaling == 2.0
    assert not pair.update().B.matmul(pair.update().A).any()


def test_mean_gradient_is_the_gradient_of_the_mean_loss() -> None:
    """Three streamed batches of 8 = one autograd pass over the 24 examples."""
    ctx = context()
    batches = full_batches(ctx, ctx.stage.train, 8, 3, "t", "task")
    sums = DenseGradients(ctx.generator)
    add_mean(ctx, batches, sums)
    toy = Toy()
    toy.prepare(toy_tasks(4))
    toy.forward(toy.collate([e for batch in batches for e in batch])).loss.backward()
    for name, layer in toy.model.named_children():
        assert isinstance(layer, nn.Linear)
        assert torch.allclose(sums._sums[name], layer.weight.grad, atol=1e-6)  # type: ignore[arg-type]
        assert sums._sums[name].norm() > 1e-3


def test_batches_are_full_or_refused() -> None:
    ctx = context()
    batches = full_batches(ctx, ctx.stage.train[:20], 8, 5, "t", "task")
    assert [len(batch) for batch in batches] == [8, 8]
    with pytest.raises(DataError, match=r"Task 'task0' has 48 examples, fewer than one batch of 64"):
        LoraGa(batch_size=64).start(context())


def test_function_is_unchanged_at_step_0() -> None:
    ctx = context()
    inputs = ctx.backbone.collate(ctx.stage.train)
    with torch.no_grad():
        before = ctx.backbone.forward(inputs).features
    ctx.model.start(LoraGa(batches=2, batch_size=8).start(ctx))
    with torch.no_grad():
        after = ctx.backbone.forward(inputs).features
        base = ctx.model.modules["first"].layer.base_layer.weight
    assert (before - after).abs().max() < 1e-5
    assert not torch.allclose(base, ctx.weight("first"), atol=1e-3)  # the base really was offset


def test_the_start_lies_in_the_gradients_directions() -> None:
    """The first step of full training stays inside the start's row space: A spans the top right singular vectors."""
    ctx = context()
    sums = DenseGradients(ctx.generator)
    part = LoraGa(batches=2, batch_size=8)
    batches = full_batches(ctx, ctx.stage.train, 8, 2, "lora-ga", "task")
    add_mean(ctx, batches, sums)
    A = part.start(ctx).factors["first"].A
    top = torch.linalg.svd(sums._sums["first"]).Vh[:2]
    overlap = torch.linalg.svdvals(torch.linalg.qr(A.mT).Q.mT @ top.mT)
    assert torch.allclose(overlap, torch.ones(2), atol=1e-4)


def test_a_module_without_gradient_is_named() -> None:
    ctx = context()
    ctx.backbone.model.second.base_layer.weight.data.zero_()  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingError, match="gradient at 'first' is zero"):
        LoraGa(batches=1, batch_size=8).start(ctx)


def test_a_sketch_too_narrow_to_choose_from_is_refused() -> None:
    """Rank 2: A and B are chosen from four directions."""
    with pytest.raises(ConfigError, match=r"sketch_width: 3 directions are too few: .* 2 \* lora\.rank = 4"):
        LoraGa(batches=2, batch_size=8, storage="sketched", sketch_width=3).start(context())
    assert LoraGa(batches=2, batch_size=8, storage="sketched", sketch_width=4).start(context()).factors


def test_needs() -> None:
    assert {Need.DENSE_BASE, Need.FULL_GRADIENTS, Need.TRAINING_DATA} == LoraGa.needs


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_pefts_form_takes_the_same_directions_at_another_scale(direction: str) -> None:
    """PEFT multiplies B by its singular values and scales only B; up to that, and to signs, the factors are the authors'."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraGAConfig

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10, bias=False))
    grad = (
        torch.randn(10, 3) @ torch.diag(torch.tensor([4.0, 2.0, 1.0])) @ torch.randn(3, 12) + torch.randn(10, 12) / 10
    )
    model[0]._peft_loraga_grad = grad  # type: ignore[assignment]
    settings = LoraGAConfig(direction=direction, scale="stable", stable_gamma=16)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights="lora_ga", lora_ga_config=settings)
    layer = get_peft_model(model, config).base_model.model[0]
    U, S, Vh = torch.linalg.svd(grad, full_matrices=False)
    A, B = stable_factors(*singular_directions(U[:, :4], Vh[:4], 2, direction), 16.0)  # type: ignore[arg-type]
    taken = {"ArB2r": [2, 3], "A2rBr": [0, 1], "ArBr": [0, 2]}[direction]
    scale = 10**0.25 / 4
    assert torch.allclose(layer.lora_A["default"].weight.abs() * scale, A.abs(), atol=1e-4)
    assert torch.allclose(layer.lora_B["default"].weight.abs(), (B * S[taken]).abs(), atol=1e-4)
    assert not torch.allclose(layer.lora_B["default"].weight.abs(), B.abs(), atol=1e-2)
