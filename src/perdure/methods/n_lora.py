"""N-LoRA: sparse updates seldom collide, so one task's weights leave the others' alone. Yang et al., arXiv 2410.10179.

    n-lora = kaiming + sparsity (Sparsity) + sum
    n-lora-proximal = kaiming + proximal-rows (ProximalRows, a step rule) + sum        exact zeros instead

Symbols (paper -> here)                                                          [O, I] = the module's weight
    dW_t = A_t B_t    W   effective update of the task being trained, scaling and offset included
    lambda            `weight`; or found by the part for a share of the gradient or a share of exact zeros

Equations
    update         L_sparse = ||dW||_1 = sum_ij |W_ij|                                ops.entrywise.l1_norm, on tiles, never dense
    factors        L_sparse = ||A||_1 + ||B||_1
    released-code  L_sparse = sum_kl |A B|_kl, an [R, R] product without meaning: the code multiplies lora_A [R, I] by
                   lora_B [O, R], which fits square layers only
    proximal       row <- max(0, 1 - tau / ||row||) row  for rows of B (columns of A) after each step, tau = lr lambda sqrt(R):
                   zeros are exact                                                    `shrink_rows`

Settings: see `Sparsity` and `ProximalRows`. Deviations and what the paper leaves open
    - The published lambdas (0.4; 0.55; 1.8; LLaMA 0.38-0.46) belong to released-code, not to the equation.
    - A sub-gradient under Adam never makes W exactly zero, and no threshold is published for what counts as zero ("collision").
      Here an entry is small at `small` times its module's own root mean square.
    - lambda by hand is the paper's open question: `gradient_share` (see `Penalty`) sets it by the gradient's length, and
      `sparsity` of `ProximalRows` by a stated share of exact zeros. The shares reached are in the stage's notes.
    - `ProximalRows` is ours. An averaged trajectory (training.average) mixes its zeros with values of earlier steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from perdure.errors import ConfigError
from perdure.methods.contract.parts import StepRule, WeightPenalty
from perdure.methods.contract.settings_read import check_read
from perdure.ops.entrywise import l1_norm, small_share
from perdure.ops.precision import ValueAndGrads, divided, precise
from perdure.ops.through_factors import Scratch

if TYPE_CHECKING:
    from perdure.methods.contract.context import Context
    from perdure.methods.contract.parts import Method
    from perdure.methods.contract.past import Past
    from perdure.ops.factors import Factors
    from perdure.ops.lowrank import Update

OFFSET = "Use target: update of the penalty `sparsity`, or an init that starts at zero, like `kaiming`"


class Sparsity(WeightPenalty):
    """The l1 norm of the update (or of what the released code takes for it), summed over modules."""

    target: Literal["update", "factors", "released-code"] = "update"
    """update: the paper's equation; factors: A and B; released-code: the [R, R] product of the code, square layers
    only."""
    reduction: Literal["sum", "mean"] = "sum"
    """sum over the target's entries, or their mean."""
    small: float = Field(default=0.1, gt=0)
    """what counts as a small entry when the sparsity reached is noted, in units of the update's root mean square at
    its module (a Gaussian has 8 % below 0.1)."""
    tile: int | None = Field(default=None, gt=0)
    """rows worked on at a time; chosen by the module's width when not given. Target update only."""

    caches: ClassVar[frozenset[str]] = frozenset({"_scratch"})

    _scratch: Scratch = PrivateAttr(default_factory=Scratch)

    @model_validator(mode="after")
    def _every_setting_is_read(self) -> Sparsity:
        check_read(self, "target", {"tile": ("update",)})
        return self

    def conflicts(self, method: Method) -> str | None:
        """Refused where the init offsets the base and the target is not the update."""
        if self.target != "update" and method.init.offsets:
            return f"target: {self.target} acts on A and B, but where the init offsets the base the update is another. {OFFSET}"
        return None

    def before_task(self, ctx: Context) -> None:
        """Refuses non-square layers for the released form."""
        if self.target == "released-code":
            for module, pair in ctx.factors.items():
                _check_square(module, pair)

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> ValueAndGrads:
        """See `WeightPenalty`."""
        exact = precise(factors)
        if self.target == "update":
            found, count = l1_norm(exact, self.tile, self._scratch), exact.shape[0] * exact.shape[1]
        else:
            _check_no_offset(module, exact, f"target: {self.target}")
            if self.target == "released-code":
                _check_square(module, exact)
            form = _l1_of_factors if self.target == "factors" else _l1_as_released
            found, count = form(exact)
        return divided(found, count if self.reduction == "mean" else 1, factors)

    def after_task(self, ctx: Context, update: Update) -> None:
        """Note the share of small entries reached."""
        factors = ctx.factors
        shares = {module: small_share(precise(pair), self.small) for module, pair in factors.items()}
        ctx.note("n-lora/sparsity", _over_positions(shares, factors))


ADAM_BOUND = 3.2
"""No step of Adam is longer than (1 - beta_1) / sqrt(1 - beta_2) = 3.16 learning rates an entry (default betas)."""


class ProximalRows(StepRule):
    """After every step, soft-threshold the norms of B's rows (and A's columns): whole rows (columns) of the update become 0."""

    weight: float | None = Field(default=None, gt=0)
    """lambda; at 1 the threshold is one learning rate an entry, the step Adam takes on a row whose gradient keeps its
    direction; at `ADAM_BOUND` it is the longest step Adam can take."""
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """instead of `weight`: the least share of exactly zero entries in a module's update. At every step lambda is the
    smallest that makes so many rows (columns) zero; it is at most `ADAM_BOUND`, so columns of A get there gradually.
    0.5 when neither is given."""
    on: Literal["rows", "columns", "both"] = "rows"
    """rows: outputs the task leaves alone; columns: inputs it does not read; both."""

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
        """Refused where zeros of a factor are none of the update: the init offsets the base, or keeps the factor frozen."""
        if method.init.offsets:
            return f"zeros of A or B are none of the update where the init offsets the base. {OFFSET}"
        for factor, on in (("A", "columns"), ("B", "rows")):
            if self.on in (on, "both") and factor not in method.init.trains:
                other = "rows" if on == "columns" else "columns"
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
        """Shrink one matrix's rows; the lambda it took."""
        unit = learning_rate * math.sqrt(matrix.shape[1])
        if self.weight is not None:
            threshold = unit * self.weight
        else:
            threshold = min(unit * ADAM_BOUND, norm_quantile(matrix, self._share_of_rows()))
        shrink_rows(matrix, threshold)
        return threshold / unit if unit else 0.0

    def _share_of_rows(self) -> float:
        """The share of rows (columns) that must be zero; with both, entries are zero where either is."""
        assert self.sparsity is not None
        return 1 - math.sqrt(1 - self.sparsity) if self.on == "both" else self.sparsity

    def state(self) -> dict[str, Tensor]:
        """The mean lambda of the last step."""
        return {"lambda": torch.tensor(self._lambda, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if "lambda" in state:
            self._lambda = float(state["lambda"])

    def after_task(self, ctx: Context, update: Update) -> None:
        """Note the share of exact zeros reached, and the mean lambda of the last step."""
        ctx.note("n-lora/zeros", _zeros(ctx.factors))
        ctx.note("n-lora/lambda", self._lambda)


def shrink_rows(matrix: Tensor, threshold: float) -> None:
    """The proximal step of threshold * sum of row norms, in place: rows no longer than `threshold` become exactly 0.

    As (norm - threshold) / norm, because 1 - threshold / norm can round to something above 0 where both are equal.
    """
    norms = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    matrix.mul_(((norms - threshold) / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min_(0))


def norm_quantile(matrix: Tensor, share: float) -> float:
    """The norm that at least `share` of the rows do not exceed; 0 for a share of 0."""
    norms = torch.linalg.vector_norm(matrix, dim=1)
    count = math.ceil(share * norms.numel() - 1e-9)  # .7 of 10 rows is 7, and not the 8 that 7.000000000000001 would be
    return float(norms.kthvalue(count).values) if count else 0.0


def _zeros(factors: Mapping[str, Factors]) -> float:
    """Share of positions where the update is exactly 0 because its row of B or its column of A is."""
    shares = {}
    for module, pair in factors.items():
        rows, columns = (m.count_nonzero(dim=1).count_nonzero() / m.shape[0] for m in (pair.B, pair.A.mT))
        shares[module] = 1 - float(rows * columns)
    return _over_positions(shares, factors)


def _over_positions(shares: Mapping[str, float], factors: Mapping[str, Factors]) -> float:
    """The mean of the modules' shares, each weighted by its number of positions."""
    counts = {module: pair.shape[0] * pair.shape[1] for module, pair in factors.items()}
    return sum(shares[module] * counts[module] for module in factors) / sum(counts.values())


def _l1_of_factors(factors: Factors) -> tuple[ValueAndGrads, int]:
    A, B = factors.A, factors.B
    value = torch.linalg.vector_norm(A, 1) + torch.linalg.vector_norm(B, 1)
    return (value, A.sign(), B.sign()), A.numel() + B.numel()


def _l1_as_released(factors: Factors) -> tuple[ValueAndGrads, int]:
    """sum |A B| of the [R, R] product, without scaling, as the code has it."""
    product = factors.A @ factors.B
    signs = product.sign()
    return (torch.linalg.vector_norm(product, 1), signs @ factors.B.mT, factors.A.mT @ signs), product.numel()


def _check_square(module: str, factors: Factors) -> None:
    height, width = factors.shape
    if height != width:
        raise ConfigError(
            f"N-LoRA's released form multiplies lora_A [R, {width}] by lora_B [{height}, R], which does not exist for the "
            f"non-square module '{module}' ({height} x {width}). Use target: update, or square targets only."
        )


def _check_no_offset(module: str, factors: Factors, what: str) -> None:
    if factors.A0 is not None:
        raise ConfigError(
            f"N-LoRA: {what} acts on A and B, but at '{module}' the init offsets the base, so the update is s (B A - B0 A0) and "
            "zeros of A or B are none of the update. Use target: update, or an init that starts at zero (kaiming)."
        )
