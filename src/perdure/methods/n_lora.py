"""N-LoRA: sparse updates seldom collide, so one task's weights leave the others' alone. Yang et al., arXiv 2410.10179.

    n-lora = kaiming + sparsity (Sparsity) + sum
    n-lora-proximal = kaiming + proximal-rows (ProximalRows, a step rule) + sum        exact zeros instead

Symbols (paper -> here)                                                          [O, I] = the module's weight
    dW_t = A_t B_t    W   effective update of the task being trained, scaling and offset included
    lambda            `weight`; or chosen by the part for a share of the gradient or a share of exact zeros

Equations
    update         L_sparse = ||dW||_1 = sum_ij |W_ij|                                ops.entrywise.l1_norm, on tiles, never dense
    factors        L_sparse = ||A||_1 + ||B||_1
    released-code  L_sparse = sum_kl |A B|_kl, an [R, R] product without meaning: the code multiplies lora_A [R, I] by
                   lora_B [O, R], which fits square layers only
    proximal       row <- max(0, 1 - tau / ||row||) row  for rows of B (columns of A) after each step, tau = lr lambda sqrt(R):
                   zeros are exact                                                    `shrink_rows`

Settings: see `Sparsity` and `ProximalRows`. Deviations and what the paper leaves open
    - The published lambdas (0.4; 0.55; 1.8, but 1.2 in 7 of order 4's 15 tasks; LLaMA 0.38-0.46) belong to released-code, not to
      the equation.
    - A sub-gradient under Adam never makes W exactly zero, and no threshold is published for what counts as zero ("collision").
      Here an entry is small below `small` times its module's own root mean square.
    - How to choose lambda is the paper's open question: `gradient_share` (see `Penalty`) sets it by the gradient's norm, and
      `sparsity` of `ProximalRows` by a given share of exact zeros. The shares reached are in the stage's notes.
    - `ProximalRows` is ours. An averaged trajectory (training.average) mixes its zeros with values of earlier steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from perdure.errors import ConfigError
from perdure.methods.contract.context import Context
from perdure.methods.contract.parts import Method, StepRule, WeightPenalty
from perdure.methods.contract.past import Past
from perdure.ops.entrywise import l1_norm, small_share
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update
from perdure.ops.precision import ValueAndGrads, divided, precise
from perdure.ops.through_factors import Scratch

INSTEAD = "Use target: update of the penalty `sparsity`, or an init that starts at zero, like `kaiming`"


class Sparsity(WeightPenalty):
    """The l1 norm of the update (or of what the released code uses in its place), summed over modules."""

    read_by: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {"target": {"tile": ("update",)}}

    target: Literal["update", "factors", "released-code"] = "update"
    """update: the paper's equation; factors: A and B; released-code: the [R, R] product of the code, square layers
    only."""
    reduction: Literal["sum", "mean"] = "sum"
    """sum over the target's entries, or their mean."""
    small: float = Field(default=0.1, gt=0)
    """entries below this count as small in the noted sparsity, in units of the update's root mean square at its module
    (a Gaussian has 8 % below 0.1)."""
    tile: int | None = Field(default=None, gt=0)
    """rows per tile; chosen by the module's width when not given; target update only."""

    caches: ClassVar[frozenset[str]] = frozenset({"_scratch"})

    _scratch: Scratch = PrivateAttr(default_factory=Scratch)

    def conflicts(self, method: Method) -> str | None:
        """Refused if the init offsets the base and the target is not the update."""
        if self.target != "update" and method.init.offsets:
            return f"target: {self.target} acts on A and B, which are not the update if the init offsets the base. {INSTEAD}"
        return None

    def before_task(self, ctx: Context) -> None:
        """Refuse non-square layers for the released form."""
        if self.target == "released-code":
            for module, pair in ctx.factors.items():
                _check_square(module, pair)

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> ValueAndGrads:
        exact = precise(factors)
        if self.target == "update":
            result, count = l1_norm(exact, self.tile, self._scratch), exact.shape[0] * exact.shape[1]
        else:
            _check_no_offset(module, exact, f"target: {self.target}")
            if self.target == "released-code":
                _check_square(module, exact)
            form = _l1_of_factors if self.target == "factors" else _l1_as_released
            result, count = form(exact)
        return divided(result, count if self.reduction == "mean" else 1, factors)

    def after_task(self, ctx: Context, update: Update) -> None:
        """Note the share of small entries reached."""
        ctx.note("n-lora/sparsity", _mean_share(lambda pair: small_share(precise(pair), self.small), ctx.factors))


ADAM_BOUND = 3.2
"""Adam's longest step is (1 - beta_1) / sqrt(1 - beta_2) = 3.16 learning rates per entry (default betas)."""


class ProximalRows(StepRule):
    """After every step, soft-threshold the norms of B's rows (and A's columns): whole rows (columns) of the update become 0."""

    weight: float | None = Field(default=None, gt=0)
    """lambda; at 1 the threshold is one learning rate per entry, the step Adam takes on a row whose gradient keeps its
    direction; at `ADAM_BOUND` it is Adam's longest step."""
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """instead of `weight`: the minimum share of exactly zero entries in a module's update. At every step lambda is the
    smallest that makes that many rows (columns) zero, at most `ADAM_BOUND`: columns of A get there gradually.
    0.5 when neither is given."""
    on: Literal["rows", "columns", "both"] = "rows"
    """rows: outputs the task leaves unchanged; columns: inputs it does not read; both."""

    _lambda: float = PrivateAttr(default=0.0)

    @model_validator(mode="before")
    @classmethod
    def _one_lambda(cls, given: dict[str, Any]) -> dict[str, Any]:
        if given.get("weight") is not None and given.get("sparsity") is not None:
            raise ValueError("give either `weight` or `sparsity`, not both")
        if given.get("weight") is None and given.get("sparsity") is None:
            return {**given, "sparsity": 0.5}
        return given

    def conflicts(self, method: Method) -> str | None:
        """Refused if zeros of a factor are not zeros of the update (the init offsets the base), or the factor is frozen."""
        if method.init.offsets:
            return f"zeros of A or B are not zeros of the update if the init offsets the base. {INSTEAD}"
        for factor, on, other in (("A", "columns", "rows"), ("B", "rows", "columns")):
            if self.on in (on, "both") and factor not in method.init.trains:
                return f"on: {self.on} changes {factor}, which this init keeps frozen. Use on: {other}, or another init"
        return None

    def stepped(self, ctx: Context, factors: Mapping[str, Factors], learning_rate: float) -> None:
        """Shrink the rows of every module."""
        lambdas = []
        for module, pair in factors.items():
            _check_no_offset(module, pair, "the proximal step")
            sides = {"rows": [pair.B], "columns": [pair.A.mT], "both": [pair.B, pair.A.mT]}[self.on]
            lambdas += [self._shrink(matrix, learning_rate) for matrix in sides]
        self._lambda = sum(lambdas) / len(lambdas)

    def _shrink(self, matrix: Tensor, learning_rate: float) -> float:
        """Shrink one matrix's rows; returns the lambda used."""
        unit = learning_rate * math.sqrt(matrix.shape[1])
        if self.weight is not None:
            threshold = unit * self.weight
        else:
            assert self.sparsity is not None
            # with both, an entry is zero if its row or its column is
            share = 1 - math.sqrt(1 - self.sparsity) if self.on == "both" else self.sparsity
            threshold = min(unit * ADAM_BOUND, norm_quantile(matrix, share))
        shrink_rows(matrix, threshold)
        return threshold / unit if unit else 0.0

    def state(self) -> dict[str, Tensor]:
        """The mean lambda of the last step."""
        return {"lambda": torch.tensor(self._lambda, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        if "lambda" in state:
            self._lambda = float(state["lambda"])

    def after_task(self, ctx: Context, update: Update) -> None:
        """Note the share of exact zeros reached, and the mean lambda of the last step."""
        ctx.note("n-lora/zeros", _mean_share(_zeros, ctx.factors))
        ctx.note("n-lora/lambda", self._lambda)


def shrink_rows(matrix: Tensor, threshold: float) -> None:
    """The proximal step of threshold * sum of row norms, in place: rows no longer than `threshold` become exactly 0.

    Computed as (norm - threshold) / norm: 1 - threshold / norm can round to more than 0 when both are equal.
    """
    norms = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    matrix.mul_(((norms - threshold) / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min_(0))


def norm_quantile(matrix: Tensor, share: float) -> float:
    """The norm that at least `share` of the rows do not exceed; 0 for a share of 0."""
    norms = torch.linalg.vector_norm(matrix, dim=1)
    count = math.ceil(share * norms.numel() - 1e-9)  # .7 of 10 rows is 7, not the 8 of ceil(7.000000000000001)
    return float(norms.kthvalue(count).values) if count else 0.0


def _zeros(pair: Factors) -> float:
    """Share of positions where the update is exactly 0 because its row of B or its column of A is."""
    rows, columns = (m.count_nonzero(dim=1).count_nonzero() / m.shape[0] for m in (pair.B, pair.A.mT))
    return 1 - float(rows * columns)


def _mean_share(share: Callable[[Factors], float], factors: Mapping[str, Factors]) -> float:
    """The mean of the modules' shares, weighted by their number of positions."""
    shares = {module: share(pair) for module, pair in factors.items()}
    counts = {module: pair.shape[0] * pair.shape[1] for module, pair in factors.items()}
    return sum(shares[module] * counts[module] for module in factors) / sum(counts.values())


def _l1_of_factors(factors: Factors) -> tuple[ValueAndGrads, int]:
    A, B = factors.A, factors.B
    value = torch.linalg.vector_norm(A, 1) + torch.linalg.vector_norm(B, 1)
    return (value, A.sign(), B.sign()), A.numel() + B.numel()


def _l1_as_released(factors: Factors) -> tuple[ValueAndGrads, int]:
    """sum |A B| of the [R, R] product, without scaling, as in the code."""
    product = factors.A @ factors.B
    signs = product.sign()
    return (torch.linalg.vector_norm(product, 1), signs @ factors.B.mT, factors.A.mT @ signs), product.numel()


def _check_square(module: str, factors: Factors) -> None:
    height, width = factors.shape
    if height != width:
        raise ConfigError(
            f"N-LoRA's released form multiplies lora_A [R, {width}] by lora_B [{height}, R], which is undefined for the "
            f"non-square module '{module}' ({height} x {width}). Use target: update, or square targets only."
        )


def _check_no_offset(module: str, factors: Factors, what: str) -> None:
    if factors.A0 is not None:
        raise ConfigError(
            f"N-LoRA: {what} acts on A and B, but at '{module}' the init offsets the base: the update is s (B A - B0 A0), and "
            "zeros of A or B are not zeros of it. Use target: update, or an init that starts at zero (kaiming)."
        )
