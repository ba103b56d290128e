"""PS-LoRA: keep the signs of what was learnt, shrink what is added, merge by larger magnitude. arXiv 2512.08960.

    ps-lora = kaiming + sign-magnitude (SignMagnitude) + max-magnitude (MaxMagnitude)

Symbols (paper -> here)                                                          [O, I] = the module's weight
    dW_t            W   effective update of the task being trained, scaling and offset included
    sum_{i<t} dW_i  H   history: the sum of the earlier tasks' frozen updates
    alpha           sharpness of the soft sign tanh(alpha x); entries of dW are 1e-3..1e-2, so it takes 1e2..1e4
    lambda          `weight`
    M               larger entry in magnitude

Equations
    L    = L_task + lambda sum_modules L_s
    L_s  = ||W||^2 (1 - tanh(alpha W) * tanh(alpha H))       ops.sign_magnitude.loss (as written), .tiled (closed form)
    dW_[1:t] = M(dW_[1:t-1], dW_t)                           merging.max_magnitude

The factor is ~0 where the signs of W and H agree, ~2 where they disagree, and 1 where H is 0: on the first task the penalty
is plain L2.

Settings: see `SignMagnitude` and `MaxMagnitude`. Deviations and what the paper leaves open
    - The equation mixes a norm with a matrix. `reading`: elementwise (default) sum_ij W_ij^2 (1 - T_ij S_ij), or scalar
      ||W||^2 (1 - mean T S). Also not stated: reduction over positions (here sum), alpha, whether scaling is inside dW (here
      always). The published lambda is 0.001 (Standard) and 0.1 (Long), for the authors' reduction and alpha; the preset's 0.01
      is this project's, for those used here.
    - The paper merges both "after all tasks" and "after each": `when`. For the same adapters the merged result is the same;
      the base the next task trains on differs.
    - Ablations its reviewers ask for: `terms` sign-only and magnitude-only. `history: merged` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from perdure.errors import ConfigError
from perdure.merging.max_magnitude import max_magnitude_updates
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Consolidate
from perdure.methods.contract.past import Folded, Past, PerTask
from perdure.methods.measured.history_update import HistoryKind, HistoryPenalty, history_update
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update, add_updates, dense
from perdure.ops.precision import divided, precise
from perdure.ops.sign_magnitude import Form, Reading, Terms, elementwise_tile, reference, tiled
from perdure.ops.sign_magnitude_compiled import compiled_tile


class SignMagnitude(HistoryPenalty):
    """L_s = ||W||^2 (1 - tanh(alpha W) * tanh(alpha H)), summed over modules. tanh(alpha H) is computed once a stage."""

    read_by: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "terms": {
            "alpha": ("both", "sign-only"),
            "reading": ("both",),  # with sign-only both readings are the same
            "history": ("both", "sign-only"),
            "tile": ("both", "sign-only"),
        },
        "engine": {"tile": ("tiled", "compiled")},
    }

    alpha: float = Field(default=1000.0, gt=0)
    """sharpness of the soft sign, > 0."""
    reading: Reading = "elementwise"
    """elementwise, or scalar (the norm times one minus the mean agreement of the module)."""
    reduction: Literal["sum", "mean"] = "sum"
    """sum over a module's positions, or their mean (the sum over O I)."""
    terms: Terms = "both"
    """both; magnitude-only: ||W||^2; sign-only: W^2 is 1 everywhere, sum (1 - T S), for both readings."""
    history: HistoryKind = "sum"
    """H is the sum of the earlier updates, or the merged update that answers queries."""
    engine: Literal["tiled", "compiled", "reference"] = "tiled"
    """tiled: closed form, constant memory; compiled: the same tiles, each fused into one pass by torch.compile (half
    a minute to build, needs a C++ compiler on a CPU, where it gains little; only for both terms, read elementwise);
    reference: autograd on dense matrices."""
    tile: int | None = Field(default=None, gt=0)
    """rows per tile; chosen by the module's width when not given."""

    @model_validator(mode="after")
    def _engine_has_a_kernel(self) -> SignMagnitude:
        if self.engine == "compiled" and (self.terms != "both" or self.reading != "elementwise"):
            raise ValueError(
                "engine compiled has a kernel for terms both and reading elementwise only; leave engine out"
            )
        return self

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """Computed in fp32 or better, whatever dtype the factors are stored in."""
        exact, form = precise(factors), Form(self.alpha, self.reading, self.terms)
        if self.engine == "reference":
            history = history_update(past, self.history).get(module)
            zero = exact.A.new_zeros(exact.shape)
            results = reference(exact, zero if history is None else dense(history).to(zero), form)
        else:
            signs = self._of_history(module, exact.A, past, lambda H: H.mul(self.alpha).tanh_().contiguous())
            kernel = compiled_tile if self.engine == "compiled" else elementwise_tile
            results = tiled(exact, signs, form, self.tile, self._scratch, kernel)
        count = exact.shape[0] * exact.shape[1] if self.reduction == "mean" else 1
        return divided(results, count, factors)


class MaxMagnitude(Consolidate):
    """The entries largest in magnitude over all updates answer queries; the first task's update stays low rank."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.DENSE_BASE})
    protects: ClassVar[str] = "it chooses between a task's update and those before it"

    when: Literal["online", "end"] = "online"
    """online: the next task trains on the merged update too (constant memory); end: it trains on the sum. The same
    adapters deploy the same update either way."""

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        """Merge incrementally in both cases: exact, because max-magnitude is associative."""
        if isinstance(past.deployed, PerTask):
            raise ConfigError("max-magnitude continues from one merged update, but the past deploys one per task.")
        merged = max_magnitude_updates(past.deployed, update) if past.deployed else dict(update)
        return Folded(carry=merged if self.when == "online" else add_updates(past.carry, update), deployed=merged)
