"""LoRA-GA: start the adapter in the directions of the task's first gradient (Wang et al., arXiv 2407.05000).

    G  mean gradient of the task loss with respect to the full weight [O, I]      U S V^T  its truncated SVD
    r  rank          s  scaling          gamma  stable-scale constant             O  output features (m in the paper)

    A0 = O^(1/4) / sqrt(gamma) V^T[:r]        B0 = O^(1/4) / sqrt(gamma) U[:, r:2r]        W <- W - s B0 A0

Settings: the authors' released defaults (direction "ArB2r", scale "stable", gamma 16).
Deviations: the number of batches (8 of 16 examples, as SLICE uses; theirs vary by task). PEFT's `lora_ga` multiplies B by
the singular values and scales only B; compare with `perdure.methods.lora_ga.stable_factors`, which follows the authors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from perdure.methods.full_gradients import add_mean_gradients, check_gradients, full_batches
from perdure.methods.parts import Init, Need, Start
from perdure.ops.factors import Factors
from perdure.ops.randomized_svd import randomized_svd

if TYPE_CHECKING:
    from perdure.methods.parts import Context

Direction = Literal["ArB2r", "A2rBr", "ArBr"]


def singular_directions(U: Tensor, Vh: Tensor, rank: int, direction: Direction = "ArB2r") -> tuple[Tensor, Tensor]:
    """A [R, I] and B [O, R]: which singular vectors go where; `U` [O, K], `Vh` [K, I].

    ArB2r: A from vectors 0..r, B from r..2r.   A2rBr: the other way round.   ArBr: A from the odd ones, B from the even.
    Where fewer than 2r vectors exist (a small matrix), the last r of them stand in for r..2r.
    """
    second = slice(min(rank, Vh.shape[0] - rank), min(2 * rank, Vh.shape[0]))
    if direction == "ArB2r":
        return Vh[:rank], U[:, second]
    if direction == "A2rBr":
        return Vh[second], U[:, :rank]
    if Vh.shape[0] < 2 * rank:
        return Vh[:rank], U[:, :rank]
    return Vh[1 : 2 * rank : 2], U[:, 0 : 2 * rank : 2]


def stable_factors(A: Tensor, B: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Both factors times O^(1/4) / sqrt(gamma), the scale at which forward and backward stay stable in r and O."""
    factor = B.shape[0] ** 0.25 / gamma**0.5
    return A * factor, B * factor


def offset_start(start: Mapping[str, tuple[Tensor, Tensor]], like: Mapping[str, Factors]) -> Start:
    """A start whose base is offset by -s B0 A0, so that the model's function is unchanged.

    The offset uses the factors as they will be stored (cast to the adapter's dtype, then fp32), not as computed.
    """
    factors: dict[str, Factors] = {}
    for module, (A, B) in start.items():
        pair = like[module]
        A, B = A.to(pair.A.dtype).float(), B.to(pair.B.dtype).float()
        factors[module] = Factors(A, B, pair.scaling, A.clone(), B.clone())
    return Start(factors)


class LoraGa(Init):
    """The adapter starts in the main directions of the task's gradient; the base is offset, the function unchanged."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.DENSE_BASE, Need.TRAINING_DATA})

    batches: int = Field(default=8, ge=1, description="batches the gradient is averaged over")
    batch_size: int = Field(default=16, ge=1, description="examples in each of them")
    gamma: float = Field(default=16.0, gt=0, description="stable-scale constant")
    direction: Direction = "ArB2r"
    iterations: int = Field(default=4, ge=0, description="subspace iterations of the randomised SVD")

    def start(self, ctx: Context) -> Start:
        """Steps: gradient, truncated SVD, choice of directions, stable scale, offset."""
        name = f"Task '{ctx.stage.name}'"
        batches = full_batches(ctx, ctx.stage.train, self.batch_size, self.batches, "lora-ga", name)
        gradients: dict[str, Tensor] = {}
        add_mean_gradients(ctx, batches, gradients)
        check_gradients(ctx, {module: float(grad.norm()) for module, grad in gradients.items()}, name)
        starts = {
            module: self._factors(gradients.pop(module), pair.A.shape[0], ctx.generator(f"lora-ga.svd.{module}"))
            for module, pair in ctx.factors.items()
        }
        return offset_start(starts, ctx.factors)

    def _factors(self, grad_OI: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        U, _, Vh = randomized_svd(grad_OI, 2 * rank, generator, width=4 * rank, iterations=self.iterations)
        return stable_factors(*singular_directions(U, Vh, rank, self.direction), self.gamma)
