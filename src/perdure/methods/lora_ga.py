"""LoRA-GA: start the adapter in the directions of the task's first gradient (Wang et al., arXiv 2407.05000).

    lora-ga = lora-ga (LoraGa) + sum, lora.alpha 2

    G  mean gradient of the task loss with respect to the full weight [O, I]      U S V^T  its truncated SVD
    r  rank          s  scaling          gamma  stable-scale constant             O  output features (m in the paper)

    A0 = O^(1/4) / sqrt(gamma) V^T[:r]        B0 = O^(1/4) / sqrt(gamma) U[:, r:2r]        W <- W - s B0 A0

Settings: direction "ArB2r", the stable scale and gamma 16 are the authors' released defaults. The scaling s is ours: the preset
`lora-ga` sets lora.alpha 2, which at rank 8 is SLICE's s = .25.
Deviations: the number of batches (8 of 16 examples, as in SLICE; theirs vary by task). PEFT's `lora_ga` multiplies B by the
singular values and scales only B; `stable_factors` follows the authors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from perdure.errors import ConfigError
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Init, Start
from perdure.methods.measured.full_gradients import (
    DenseGradients,
    FullGradients,
    SketchedGradients,
    Sketcher,
    Storage,
    add_mean,
    check_norms,
    full_batches,
)
from perdure.ops.factors import Factors
from perdure.tasks.task import Stage

Direction = Literal["ArB2r", "A2rBr", "ArBr"]


def singular_directions(U: Tensor, Vh: Tensor, rank: int, direction: Direction = "ArB2r") -> tuple[Tensor, Tensor]:
    """A [R, I] and B [O, R]: which singular vectors go where; `U` [O, K], `Vh` [K, I].

    ArB2r: A from vectors 0..r, B from r..2r.   A2rBr: the other way round.   ArBr: A from the odd ones, B from the even.
    If fewer than 2r vectors exist (a small matrix), the last r stand in for r..2r.
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

    The offset uses the factors as stored (cast to the adapter's dtype, then fp32), not as computed. A base in bf16 or fp16 rounds
    W - s B0 A0 to its own digits; the function is unchanged up to that.
    """
    factors: dict[str, Factors] = {}
    for module, (A, B) in start.items():
        pair = like[module]
        A, B = A.to(pair.A.dtype).float(), B.to(pair.B.dtype).float()
        factors[module] = Factors(A, B, pair.scaling, A.clone(), B.clone())
    return Start(factors)


class GradientInit(Init):
    """Base of the inits that start from full gradients."""

    offsets: ClassVar[bool] = True
    read_by: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "storage": {"iterations": ("dense",), "sketch_width": ("sketched",), "buckets": ("sketched",)}
    }

    batches: int = Field(default=8, ge=1)
    """of the new task, over which its gradient is averaged."""
    batch_size: int = Field(default=16, ge=1)
    """examples in each batch."""
    iterations: int = Field(default=4, ge=0)
    """subspace iterations of the randomised SVD; storage dense only."""
    storage: Storage = "dense"
    """dense: a full fp32 gradient of every target weight; sketched: sketches of width `sketch_width` instead, for
    models whose full gradients do not fit."""
    sketch_width: int | None = Field(default=None, ge=2)
    """directions kept of each gradient, 2 r or more; 4 r by default; storage sketched only."""
    buckets: int = Field(default=1 << 16, ge=1)
    """of the CountSketch behind cosines; their standard error is below sqrt(2 / buckets); storage sketched only."""

    def falls_short(self, stages: Sequence[Stage]) -> str | None:
        """A gradient needs at least one whole batch of every stage."""
        for stage in stages:
            given = sum(len(task.train) for task in stage.tasks)
            if stage.tasks and given < self.batch_size:
                return (
                    f"task '{stage.name}' has {given} training examples, fewer than one batch of {self.batch_size} for the "
                    f"gradient that starts the adapter. Set method.init.batch_size={given}, or provide more"
                )
        return None

    def _accumulators(self, ctx: Context, purpose: str) -> Callable[[], FullGradients]:
        """Makes empty gradients that can be compared and mixed with each other."""

        def generator(what: str) -> torch.Generator:
            return ctx.generator(f"{purpose}.{what}")

        if self.storage == "dense":
            return lambda: DenseGradients(generator, self.iterations)
        rank, width = _rank(ctx), self._sketched_directions(ctx)
        if width < 2 * rank:
            raise ConfigError(
                f"method.init.sketch_width: {width} directions are too few: A and B are chosen from 2 * lora.rank = {2 * rank}. "
                "Raise it, or leave it out (4 * lora.rank)."
            )
        sketcher = Sketcher(width, self.buckets, generator)
        return lambda: SketchedGradients(sketcher)

    def _sketched_directions(self, ctx: Context) -> int:
        return self.sketch_width or 4 * _rank(ctx)

    def _task_gradient(self, ctx: Context, empty: FullGradients, purpose: str) -> FullGradients:
        """`empty` filled with the stage's mean gradient."""
        name = f"Task '{ctx.stage.name}'"
        add_mean(ctx, full_batches(ctx, ctx.stage.train, self.batch_size, self.batches, purpose, name), empty)
        check_norms(ctx, empty.norms(), name)
        return empty


def _rank(ctx: Context) -> int:
    return max(pair.A.shape[0] for pair in ctx.factors.values())


class LoraGa(GradientInit):
    """The adapter starts in the main directions of the task's gradient; the base is offset, the function unchanged."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.DENSE_BASE, Need.FULL_GRADIENTS, Need.TRAINING_DATA})

    gamma: float = Field(default=16.0, gt=0)
    """stable-scale constant."""
    direction: Direction = "ArB2r"
    """which singular vectors A and B take; see `singular_directions`."""

    def start(self, ctx: Context) -> Start:
        """Gradient, truncated SVD, choice of directions, stable scale, offset."""
        gradients = self._task_gradient(ctx, self._accumulators(ctx, "lora-ga")(), "lora-ga")
        starts: dict[str, tuple[Tensor, Tensor]] = {}
        for module, pair in ctx.factors.items():
            rank = pair.A.shape[0]
            U, _, Vh = gradients.triplets(module, 2 * rank)
            gradients.drop(module)
            starts[module] = stable_factors(*singular_directions(U, Vh, rank, self.direction), self.gamma)
        return offset_start(starts, ctx.factors)


def lora_ga_like(init: GradientInit) -> LoraGa:
    """LoRA-GA with the gradient settings of `init`: the start of the first task, which has no past."""
    return LoraGa(**{name: getattr(init, name) for name in GradientInit.model_fields})
