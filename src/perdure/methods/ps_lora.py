"""PS-LoRA: keep the signs of what was learnt, shrink what is added, merge by larger magnitude. arXiv 2512.08960.

    ps-lora = kaiming + sign-magnitude (SignMagnitude) + max-magnitude (MaxMagnitude)

Symbols (paper -> here)                                                          [O, I] = the module's weight
    dW_t            W   effective update of the task being trained, scaling and offset included
    sum_{i<t} dW_i  H   history: the sum of the frozen updates of the tasks before
    alpha           sharpness of the soft sign tanh(alpha x); entries of dW are 1e-3..1e-2, so it takes 1e2..1e4
    lambda          `weight`
    M               larger entry in magnitude

Equations
    L    = L_task + lambda sum_modules L_s
    L_s  = ||W||^2 (1 - tanh(alpha W) * tanh(alpha H))       ops.sign_magnitude.loss (as written), .tiled (closed form)
    dW_[1:t] = M(dW_[1:t-1], dW_t)                           merging.max_magnitude

The factor is ~0 where W agrees with H in sign, ~2 where it disagrees, and 1 where H is 0: on the first task the penalty is
plain L2.

Settings: see `SignMagnitude` and `MaxMagnitude`. Deviations and what the paper leaves open
    - The equation mixes a norm with a matrix. `reading`: elementwise (default) sum_ij W_ij^2 (1 - T_ij S_ij), or scalar
      ||W||^2 (1 - mean T S). Not stated either: reduction over positions (here sum), alpha, whether scaling is inside dW (here
      always). The published lambda is 0.001 (Standard) and 0.1 (Long), under the authors' reduction and alpha; the preset's
      0.01 is this project's, for the ones here.
    - Merging "after all tasks" and "after each" both stand in the paper: `when`. For the same adapters the merged result is
      the same; what differs is the base the next task trains on.
    - Ablations its reviewers ask for: `terms` sign-only and magnitude-only. `history: merged` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from perdure.errors import ConfigError
from perdure.merging.max_magnitude import max_magnitude_updates
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Consolidate, Method, WeightPenalty
from perdure.methods.contract.past import Folded, Past, PerTask
from perdure.methods.contract.settings_read import check_read
from perdure.methods.measured.history_update import HistoryKind, OfHistory, history_update, no_history
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update, add_updates, dense
from perdure.ops.precision import divided, precise
from perdure.ops.sign_magnitude import Form, Reading, Terms, elementwise_tile, reference, tiled
from perdure.ops.sign_magnitude_compiled import compiled_tile
from perdure.ops.through_factors import Scratch

READ_BY_TERMS: Mapping[str, tuple[Terms, ...]] = {
    "alpha": ("both", "sign-only"),
    "reading": ("both",),
    "history": ("both", "sign-only"),
    "tile": ("both", "sign-only"),
}
"""Setting -> the terms that read it; with sign-only both readings are the same."""


class SignMagnitude(WeightPenalty):
    """L_s = ||W||^2 (1 - tanh(alpha W) * tanh(alpha H)), summed over modules.

    A setting that the terms or the engine do not read is refused where it is not at its default.
    S = tanh(alpha H) is computed once a stage and kept in fp32 (one dense [O, I] for each module).
    """

    alpha: float = Field(default=1000.0, gt=0)
    """sharpness of the soft sign, > 0."""
    reading: Reading = "elementwise"
    """elementwise, or scalar (the norm times one minus the mean agreement of the module)."""
    reduction: Literal["sum", "mean"] = "sum"
    """sum over a module's positions, or their mean (the sum over O I)."""
    terms: Terms = "both"
    """both; magnitude-only: ||W||^2; sign-only: W^2 counts as 1 everywhere, sum (1 - T S), for both readings."""
    history: HistoryKind = "sum"
    """H is the sum of the earlier updates, or the merged update that answers queries."""
    engine: Literal["tiled", "compiled", "reference"] = "tiled"
    """tiled: closed form, constant memory; compiled: the same tiles, each fused into one pass by torch.compile (half
    a minute to build, needs a C++ compiler on a CPU, where it gains little; both terms of the elementwise reading
    only); reference: autograd on dense matrices."""
    tile: int | None = Field(default=None, gt=0)
    """rows worked on at a time; chosen by the module's width when not given."""

    caches: ClassVar[frozenset[str]] = frozenset({"_signs", "_scratch"})

    _signs: OfHistory = PrivateAttr(default_factory=OfHistory)
    _scratch: Scratch = PrivateAttr(default_factory=Scratch)

    @model_validator(mode="after")
    def _every_setting_is_read(self) -> SignMagnitude:
        check_read(self, "terms", READ_BY_TERMS)
        check_read(self, "engine", {"tile": ("tiled", "compiled")})
        if self.engine == "compiled" and (self.terms != "both" or self.reading != "elementwise"):
            raise ValueError(
                "engine compiled has a kernel for terms both and reading elementwise only; leave engine out"
            )
        return self

    def conflicts(self, method: Method) -> str | None:
        """Refused where there is no past, or none apart from the update."""
        return no_history(method)

    def before_task(self, ctx: Context) -> None:
        """Forget the last stage's signs; says early that per-task updates are no history."""
        self._signs.begin(ctx.past, self.history)

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """See `WeightPenalty`; computed in fp32 or better whatever the factors are stored in."""
        exact, form = precise(factors), Form(self.alpha, self.reading, self.terms)
        if self.engine == "reference":
            history = history_update(past, self.history).get(module)
            zero = exact.A.new_zeros(exact.shape)
            results = reference(exact, zero if history is None else dense(history).to(zero), form)
        else:
            signs = self._signs.at(module, exact.A, past, self.history, self._sign)
            kernel = compiled_tile if self.engine == "compiled" else elementwise_tile
            results = tiled(exact, signs, form, self.tile, self._scratch, kernel)
        count = exact.shape[0] * exact.shape[1] if self.reduction == "mean" else 1
        return divided(results, count, factors)

    def _sign(self, H: Tensor) -> Tensor:
        """S = tanh(alpha H)."""
        return H.mul(self.alpha).tanh_().contiguous()


class MaxMagnitude(Consolidate):
    """Queries are answered by the entries largest in magnitude over all updates.

    What is deployed is the same for the same adapters; the first task's update stays low rank.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.DENSE_BASE})

    when: Literal["online", "end"] = "online"
    """online: the next task trains on the merged update too (constant memory); end: it trains on the sum."""

    def conflicts(self, method: Method) -> str | None:
        """Refused where there is no second update."""
        reason = method.out_of_reach()
        return reason and f"it chooses between a task's update and those before it, but {reason}"

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        """Merged incrementally in both cases, which is exact because max-magnitude is associative."""
        if isinstance(past.deployed, PerTask):
            raise ConfigError("max-magnitude goes on from one merged update, but the past deploys one per task.")
        merged = max_magnitude_updates(past.deployed, update) if past.deployed else dict(update)
        return Folded(carry=merged if self.when == "online" else add_updates(past.carry, update), deployed=merged)
