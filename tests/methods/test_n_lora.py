"""N-LoRA: each target by hand and by its formula, exact zeros from the proximal step, lambda steered to a stated sparsity."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from perdure.errors import ConfigError
from perdure.methods.contract.parts import Method
from perdure.methods.contract.past import Past
from perdure.methods.n_lora import ProximalRows, Sparsity, norm_quantile, shrink_rows
from perdure.methods.plain import Kaiming, Sum
from perdure.ops.factors import Factors
from perdure.state.store import Store
from tests.methods.two_layers import learn_toy, notes, toy_tasks


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("target", ["update", "factors", "released-code"])
def test_targets_equal_their_formulas(target: Any, reduction: Any) -> None:
    A, B = random(2, 6).requires_grad_(), random(6, 2, seed=1).requires_grad_()
    entries = {
        "update": (0.5 * B @ A).abs().flatten(),  # ||dW||_1, scaling inside
        "factors": torch.cat([A.abs().flatten(), B.abs().flatten()]),
        "released-code": (A @ B).abs().flatten(),  # torch.norm(lora_A @ lora_B, p=1) of the code, [R, R]
    }[target]
    expected = entries.sum() if reduction == "sum" else entries.mean()
    wanted = torch.autograd.grad(expected, (A, B), materialize_grads=True)
    part = Sparsity(weight=1.0, target=target, reduction=reduction, tile=4 if target == "update" else None)
    value, *grads = part.value_and_grad("q", Factors(A, B, 0.5), Past())
    torch.testing.assert_close(value, expected.detach())
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_a_tile_is_for_the_update_only() -> None:
    with pytest.raises(ValidationError, match="target factors does not read tile"):
        Sparsity(weight=1.0, target="factors", tile=4)


def test_released_code_refuses_non_square_layers_before_training() -> None:
    pair = Factors(torch.ones(2, 6), torch.ones(3, 2), 1.0)
    ctx: Any = SimpleNamespace(factors={"model.v_proj": pair})
    with pytest.raises(ConfigError, match=r"non-square module 'model.v_proj' \(3 x 6\)"):
        Sparsity(weight=0.4, target="released-code").before_task(ctx)
    Sparsity(weight=0.4).before_task(ctx)


def test_forms_on_the_factors_refuse_an_offset() -> None:
    pair = Factors(torch.ones(2, 3), torch.ones(3, 2), 1.0, torch.ones(2, 3), torch.ones(3, 2))
    ctx: Any = None
    with pytest.raises(ConfigError, match="offsets the base"):
        Sparsity(weight=1.0, target="factors").value_and_grad("q", pair, Past())
    with pytest.raises(ConfigError, match="offsets the base"):
        ProximalRows(weight=1.0).stepped(ctx, {"q": pair}, 0.1)
    assert Sparsity(weight=1.0).value_and_grad("q", pair, Past())[0] == 0


def test_shrinking_rows_by_hand() -> None:
    matrix = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    shrink_rows(matrix, 1.0)
    torch.testing.assert_close(matrix, torch.tensor([[2.4, 3.2], [0.0, 0.0], [0.0, 0.0]]))
    assert not matrix[1].any()


def test_columns_of_a_shrink_in_place() -> None:
    pair = Factors(torch.tensor([[3.0, 0.01], [4.0, 0.01]]), torch.ones(3, 2), 1.0)
    ctx: Any = None
    ProximalRows(weight=1.0, on="columns").stepped(ctx, {"q": pair}, 0.1)  # threshold .1 * sqrt 2
    assert not pair.A[:, 1].any()
    assert pair.A[0, 0] == pytest.approx(3 * (1 - 0.1 * 2**0.5 / 5))
    assert pair.B.min() == 1.0


@pytest.mark.parametrize("settings", [{"weight": 0.5, "sparsity": 0.5}, {"sparsity": 1.0}])
def test_the_proximal_step_takes_one_lambda(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ProximalRows(**settings)  # pyright: ignore[reportArgumentType]
    assert ProximalRows().sparsity == 0.5
    assert ProximalRows(weight=None, sparsity=None).sparsity == 0.5
    assert ProximalRows(weight=0.5).sparsity is None


def test_the_wanted_share_of_rows_becomes_zero() -> None:
    ctx: Any = None
    pair = Factors(torch.ones(1, 2), torch.tensor([[0.03], [0.01], [5.0], [6.0]]), 1.0)
    ProximalRows(sparsity=0.5).stepped(ctx, {"q": pair}, 0.1)  # 2 of 4 rows: threshold .03, below the bound .32
    torch.testing.assert_close(pair.B, torch.tensor([[0.0], [0.0], [4.97], [5.97]]))
    ProximalRows(sparsity=0.75).stepped(
        ctx, {"q": pair}, 0.1
    )  # 3 of 4 rows would need 4.97: no more than .32 is taken off
    torch.testing.assert_close(pair.B, torch.tensor([[0.0], [0.0], [4.65], [5.65]]))


def test_no_row_at_the_threshold_survives_by_rounding() -> None:
    """The row whose norm is the quantile goes too: of a hundred matrices each has as many zero rows as stated, not one less."""
    for seed in range(100):
        matrix = random(384, 8, seed=seed).float()
        shrink_rows(matrix, norm_quantile(matrix, 0.5))
        assert int((matrix != 0).any(dim=1).sum()) == 192


@pytest.mark.parametrize("share, rows", [(0.0, 0), (0.01, 1), (0.25, 3), (0.3, 3), (0.7, 7), (0.99, 10)])
def test_a_share_of_ten_rows_is_the_least_and_rounded_up(share: float, rows: int) -> None:
    matrix = torch.arange(1.0, 11.0)[:, None]
    shrink_rows(matrix, norm_quantile(matrix, share))
    assert int((matrix == 0).sum()) == rows


def proximal(**settings: Any) -> Method:
    return Method("n-lora-proximal", Kaiming(), Sum(), step_rule=ProximalRows(**settings))


def zero_share(folder: Path) -> float:
    """Share of exact zeros in the first layer's update (in the second, units of other tasks never get a gradient)."""
    from perdure.adapters.folder import open_adapter

    delta = open_adapter(Store(folder).stage_folder(1) / "adapter")["first"]
    return float((delta.B @ delta.A == 0).double().mean())


def test_proximal_step_makes_exact_zeros_and_still_learns(tmp_path: Path) -> None:
    learn_toy(proximal(sparsity=0.5), tmp_path, toy_tasks(1), epochs=20)
    assert 0.4 <= zero_share(tmp_path) < 0.8
    scores = json.loads((Store(tmp_path).stage_folder(1) / "scores.json").read_text())
    assert scores["task0"]["score"] >= 0.7
    learn_toy(Method("plain", Kaiming(), Sum()), tmp_path / "plain", toy_tasks(1), epochs=20)
    assert zero_share(tmp_path / "plain") == 0


@pytest.mark.parametrize("on, wanted", [("rows", 0.5), ("rows", 0.8), ("columns", 0.4), ("both", 0.7)])
def test_a_stated_share_of_zeros_is_reached_and_noted(on: str, wanted: float, tmp_path: Path) -> None:
    learn_toy(proximal(sparsity=wanted, on=on), tmp_path, toy_tasks(1), epochs=40)
    noted = notes(tmp_path, 1)
    assert wanted - 0.1 < noted["n-lora/zeros"] < min(0.95, wanted + 0.25)
    assert 0 < noted["n-lora/lambda"] <= 3.2


def test_l1_makes_small_entries_and_says_how_many(tmp_path: Path) -> None:
    def share(weight: float) -> float:
        method = Method("n-lora", Kaiming(), Sum(), penalties={"n-lora": Sparsity(weight=weight)})
        learn_toy(method, tmp_path / str(weight), toy_tasks(1), epochs=40)
        return notes(tmp_path / str(weight), 1)["n-lora/sparsity"]

    assert share(1e-2) > share(0.0) + 0.2
