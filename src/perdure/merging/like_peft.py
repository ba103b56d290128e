"""The combination types of PEFT's add_weighted_adapter, with its options, as perdure's rules (like.py)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from perdure.merging.like_options import Options, Ours, Rank
from perdure.merging.peft_factors import Majority, PeftFactors
from perdure.merging.rules import Arithmetic
from perdure.merging.sparse import Dare, MagnitudePrune, Ties


class Factors(Options):
    """linear, on A and B apart; cat."""

    weights: tuple[float, ...] | None = None

    def ours(self, name: str) -> Ours:
        if name == "cat":
            return Arithmetic, self.model_dump()
        return PeftFactors, {"combination": name, **self.model_dump()}


class Pruned(Factors):
    """magnitude_prune, on A and B apart."""

    density: float = Field(gt=0, le=1)


class Dropped(Pruned):
    """dare_linear, on A and B apart."""

    seed: int = 0


class Elected(Pruned):
    """ties, on A and B apart."""

    majority_sign_method: Majority = "total"


class DroppedElected(Elected, Dropped):
    """dare_ties, on A and B apart."""


class Svd(Options):
    """svd: the weighted sum of updates, cut to a rank; by default the largest of the adapters'."""

    weights: tuple[float, ...] | None = None
    svd_rank: int | None = Field(default=None, ge=1)

    def ours(self, name: str) -> Ours:
        return Arithmetic, self.given()

    def given(self) -> dict[str, object]:
        """The options that perdure's rules call the same."""
        return self.model_dump(exclude={"svd_rank", "majority_sign_method"})

    def rank(self) -> Rank:
        return self.svd_rank or "largest"


class PrunedSvd(Svd):
    """magnitude_prune_svd."""

    density: float = Field(gt=0, le=1)

    def ours(self, name: str) -> Ours:
        return MagnitudePrune, self.given()


class ElectedSvd(PrunedSvd):
    """ties_svd."""

    majority_sign_method: Majority = "total"

    def ours(self, name: str) -> Ours:
        return Ties, {**self.given(), "scope": "tensor", "elect": self.majority_sign_method, "divide": "count"}


class DroppedSvd(PrunedSvd):
    """dare_linear_svd."""

    seed: int = 0

    def ours(self, name: str) -> Ours:
        return Dare, self.given()


class DroppedElectedSvd(DroppedSvd):
    """dare_ties_svd."""

    majority_sign_method: Majority = "total"

    def ours(self, name: str) -> Ours:
        return Dare, {**self.given(), "consensus": "ties", "elect": self.majority_sign_method, "divide": "count"}


PEFT: Mapping[str, type[Options]] = {
    "svd": Svd,
    "linear": Factors,
    "cat": Factors,
    "ties": Elected,
    "ties_svd": ElectedSvd,
    "dare_ties": DroppedElected,
    "dare_linear": Dropped,
    "dare_ties_svd": DroppedElectedSvd,
    "dare_linear_svd": DroppedSvd,
    "magnitude_prune": Pruned,
    "magnitude_prune_svd": PrunedSvd,
}
