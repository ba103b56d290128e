"""PS-LoRA's penalty on one module: the equation as published, and its closed form on row tiles.

Legend: O output features, I input features, R adapter rank, N rows of a tile. W effective update [O, I], H history
[O, I], T = tanh(alpha W), S = tanh(alpha H). Sums run over all O I positions.

    elementwise     L = sum W^2 (1 - T S)                G = 2 W (1 - T S) - alpha W^2 S (1 - T^2)
    scalar          L = sum W^2 * (1 - mean T S)         G = 2 W (1 - mean T S) - alpha mean(W^2) S (1 - T^2)
    sign-only       L = sum (1 - T S)                    G = - alpha S (1 - T^2)
    magnitude-only  L = sum W^2                          G = 2 W
    gA = s B^T G,  gB = s G A^T

`reference` follows the equation with autograd on dense matrices; `tiled` needs S and four tiles of N x I.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from perdure.ops.factors import Factors
from perdure.ops.frobenius import squared_norm_and_grads
from perdure.ops.lowrank import LowRank, dense
from perdure.ops.through_factors import Kernel, Scratch, through_factors

Reading = Literal["elementwise", "scalar"]
Terms = Literal["both", "sign-only", "magnitude-only"]


@dataclass(frozen=True)
class Form:
    """Which penalty: sharpness of the soft sign, reading of the equation, and which of its two factors."""

    alpha: float
    reading: Reading = "elementwise"
    terms: Terms = "both"


def loss(update_OI: Tensor, history_OI: Tensor, form: Form) -> Tensor:
    """The penalty (scalar) as the paper writes it, differentiable in `update_OI`."""
    W, H = update_OI, history_OI
    agreement = torch.tanh(form.alpha * W) * torch.tanh(form.alpha * H)
    if form.terms == "magnitude-only":
        return W.square().sum()
    if form.terms == "sign-only":
        return (1 - agreement).sum()
    if form.reading == "scalar":
        return W.square().sum() * (1 - agreement.mean())
    return (W.square() * (1 - agreement)).sum()


def reference(factors: Factors, history_OI: Tensor, form: Form) -> tuple[Tensor, Tensor, Tensor]:
    """Value (scalar) and gradients of A [R, I] and B [O, R], by autograd on dense [O, I] matrices."""
    with torch.enable_grad():
        A, B = factors.A.detach().requires_grad_(), factors.B.detach().requires_grad_()
        value = loss(dense(replace(factors, A=A, B=B).update()), history_OI, form)
        grad_A, grad_B = torch.autograd.grad(value, (A, B), materialize_grads=True)
    return value.detach(), grad_A, grad_B


def elementwise_tile(signs_OI: Tensor, alpha: float) -> Kernel:
    """sum W^2 (1 - T S) and G / 2 = W (1 - T S) - alpha/2 W^2 S (1 - T^2).

    With p = sigmoid(2 alpha W): T = 2 p - 1 and 1 - T^2 = 4 p (1 - p). Sigmoid is several times faster than tanh on CPUs.
    """

    def kernel(rows: LowRank, at: slice, scratch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        W, p, slope, G = scratch
        S = signs_OI[at]
        _soft_signs(rows, S, alpha, scratch)
        p.sub_(0.5).mul_(S)  # T S / 2
        torch.addcmul(W, W, p, value=-2, out=G)  # W (1 - T S)
        value = torch.dot(W.view(-1), G.view(-1))
        return value, G.addcmul_(W.mul_(W), slope, value=-2 * alpha)

    return kernel


def agreement_tile(signs_OI: Tensor, alpha: float) -> Kernel:
    """sum T S, and S (1 - T^2), its derivative by W over alpha."""

    def kernel(rows: LowRank, at: slice, scratch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        _, p, slope, _ = scratch
        S = signs_OI[at]
        _soft_signs(rows, S, alpha, scratch)
        return 2 * torch.dot(p.sub_(0.5).view(-1), S.view(-1)), slope.mul_(4)

    return kernel


def _soft_signs(rows: LowRank, S: Tensor, alpha: float, scratch: tuple[Tensor, ...]) -> None:
    """Write W, p and S p (1 - p) to the first three scratch tiles."""
    W, p, slope, _ = scratch
    torch.mul(torch.mm(rows.B, rows.A, out=W), 2 * alpha, out=p).sigmoid_()
    torch.ops.aten.sigmoid_backward.grad_input(S, p, grad_input=slope)


def tiled(
    factors: Factors,
    signs_OI: Tensor | None,
    form: Form,
    tile: int | None = None,
    scratch: Scratch | None = None,
    elementwise: Callable[[Tensor, float], Kernel] = elementwise_tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value (scalar, float64) and gradients of A [R, I] and B [O, R], in closed form, tile by tile.

    Args:
        factors: detached, float32 or float64.
        signs_OI: S = tanh(alpha H), contiguous, or None without history (S = 0).
        tile: rows per tile; None chooses by width.
        scratch: memory to reuse; allocated if not given.
        elementwise: makes the tile kernel of the elementwise reading (or the compiled one).
    """
    count = factors.shape[0] * factors.shape[1]
    if form.terms == "magnitude-only" or (signs_OI is None and form.terms == "both"):
        return squared_norm_and_grads(factors)
    if signs_OI is None:
        value = torch.tensor(float(count), dtype=torch.float64, device=factors.A.device)
        return value, torch.zeros_like(factors.A), torch.zeros_like(factors.B)
    if form.terms == "both" and form.reading == "elementwise":
        value, grad_A, grad_B = through_factors(elementwise(signs_OI, form.alpha), factors, tile, scratch)
        return value, grad_A.mul_(2), grad_B.mul_(2)
    agreement, grad_A, grad_B = through_factors(agreement_tile(signs_OI, form.alpha), factors, tile, scratch)
    if form.terms == "sign-only":
        return count - agreement, grad_A.mul_(-form.alpha), grad_B.mul_(-form.alpha)
    norm, norm_A, norm_B = squared_norm_and_grads(factors)
    away, pull = 1 - agreement / count, -form.alpha * norm / count
    return norm * away, norm_A * away + grad_A * pull, norm_B * away + grad_B * pull
