"""PEFT's add_weighted_adapter where it merges A and B apart: combination types linear, ties, dare_*, magnitude_prune.

Symbols: s_i the scaling of adapter i, w_i its weight, x_i = sqrt(|w_i s_i|).

    A = combine(sign(w_i s_i) x_i, A_i)    B = combine(x_i, B_i)    dW = B A

`combine` is a weighted sum of what is left of each A_i, or each B_i, after pruning, or PEFT's TIES of them. B A has cross terms
B_i A_j that belong to no adapter (docs/merging.md): this rule is for results that must equal PEFT's. The rules on updates are
`arithmetic`, `ties`, `dare` and `magnitude-prune`, PEFT's `cat` and `*_svd`.
DARE's draws are those of dare.py, not PEFT's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from perdure.errors import AdapterError
from perdure.merging.covariance_gain import Moments
from perdure.merging.linear import checked_weights
from perdure.merging.rule import Deltas, FoldRule, Prepared, Rule
from perdure.merging.sources import Only
from perdure.merging.sparse import Dare, MagnitudePrune, Ties
from perdure.ops.lowrank import Delta, LowRank, Update, dense

Combination = Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
Majority = Literal["total", "frequency"]


class PeftFactors(Rule):
    """A and B merged apart, as PEFT does; cross terms included."""

    source: ClassVar[str] = "https://huggingface.co/docs/peft/developer_guides/model_merging"
    low_rank: ClassVar[bool] = True
    incremental: ClassVar[bool] = False
    combination: Combination = "linear"
    density: float = Field(default=1.0, gt=0, le=1)
    majority_sign_method: Majority = "total"
    seed: int = 0
    weights: tuple[float, ...] | None = None

    def prepare(self, updates: Sequence[Update], moments: Sequence[Moments] | None = None) -> Prepared:
        weights = checked_weights(self.weights, len(updates))

        def merge(module: str, deltas: Deltas) -> Delta:
            scalings = [update.scaling(module) if isinstance(update, Only) else 1.0 for update in updates]
            scaled = [weight * scaling for weight, scaling in zip(weights, scalings, strict=True)]
            roots, factors = [math.sqrt(abs(one)) for one in scaled], _factors(module, deltas)
            signed = [math.copysign(root, one) for root, one in zip(roots, scaled, strict=True)]
            plain = [f and f.B / scaling for f, scaling in zip(factors, scalings, strict=True)]
            return LowRank(
                self._combined(f"{module}.lora_A", [f and f.A for f in factors], signed),
                self._combined(f"{module}.lora_B", plain, roots),
            )

        return Prepared(merge)

    def _combined(self, name: str, matrices: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor:
        rule = self._rule(tuple(weights))
        given = [{} if matrix is None else {name: matrix} for matrix in matrices]
        return dense(rule.prepare(given).merge(name, matrices))

    def _rule(self, weights: tuple[float, ...]) -> FoldRule:
        vote = {"elect": self.majority_sign_method, "divide": "count", "weights": weights, "density": self.density}
        match self.combination:
            case "linear":
                return MagnitudePrune(density=1, weights=weights)
            case "magnitude_prune":
                return MagnitudePrune(density=self.density, weights=weights)
            case "ties":
                return Ties.model_validate({"scope": "tensor", **vote})
            case "dare_linear":
                return Dare(density=self.density, seed=self.seed, weights=weights)
        return Dare.model_validate({"consensus": "ties", "seed": self.seed, **vote})


def _factors(module: str, deltas: Deltas) -> list[LowRank | None]:
    """The deltas, which must have factors of one rank."""
    ranks = {delta.rank if isinstance(delta, LowRank) else 0 for delta in deltas if delta is not None}
    if len(ranks) > 1 or 0 in ranks:
        raise AdapterError(
            f"PEFT merges A and B apart only for adapters of one rank; at module '{module}' they have ranks "
            f"{', '.join(map(str, sorted(ranks)))}. Use a rule on updates: cat or a type that ends in _svd."
        )
    return [delta if isinstance(delta, LowRank) else None for delta in deltas]
