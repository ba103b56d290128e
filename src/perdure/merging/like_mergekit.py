"""mergekit's merge methods, with its options and defaults, as perdure's rules (like.py); checked against mergekit 0.1.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from perdure.errors import ConfigError
from perdure.merging.directions import Karcher, ModelStock, Multislerp, Slerp
from perdure.merging.like_options import Options, Ours
from perdure.merging.nearswap import Nearswap
from perdure.merging.ram import Ram
from perdure.merging.rules import Arithmetic, Average
from perdure.merging.sce import Sce
from perdure.merging.sparse import Breadcrumbs, Dare, Della, Ties


class NoOptions(Options):
    """model_stock."""

    def ours(self, name: str) -> Ours:
        return ModelStock, {}


class Weighted(Options):
    """multislerp, nuslerp."""

    weights: tuple[float, ...] | None = None

    def ours(self, name: str) -> Ours:
        if name == "multislerp":
            return Multislerp, {"weights": self.weights}
        if self.weights is not None and len(self.weights) != 2:
            raise ConfigError(f"nuslerp merges two adapters: give two weights, not {len(self.weights)}.")
        first, second = self.weights or (1.0, 1.0)
        total = first + second
        return Slerp, {"t": 0.5 if abs(total) < 1e-6 else second / total}


class Linear(Weighted):
    """linear: whole models weighted; without `normalize` the base would be weighted too."""

    normalize: bool = True

    def ours(self, name: str) -> Ours:
        if not self.normalize:
            raise ConfigError(
                "mergekit's linear without normalize multiplies the base model by the sum of the weights; adapters leave "
                "the base as it is. Use task_arithmetic for the weighted sum of updates."
            )
        return Average, {"weights": self.weights}


class TaskArithmetic(Weighted):
    """task_arithmetic, and what the sparse methods share."""

    lambda_: float = 1.0
    normalize: bool = False

    def ours(self, name: str) -> Ours:
        self.check_sum(name)
        return Arithmetic, {"weights": self.weights, "scale": self.lambda_}

    def check_sum(self, name: str) -> None:
        """Raise a ConfigError if a weighted sum is to be divided by the sum of its weights."""
        if self.normalize:
            raise ConfigError(f"{name} adds updates up: give weights that sum to 1 in place of normalize=true.")


class Sparse(TaskArithmetic):
    """breadcrumbs and breadcrumbs_ties, and what the others share."""

    density: float = Field(default=1.0, gt=0, le=1)
    rescale: bool = False

    def common(self, name: str, elects: bool) -> dict[str, Any]:
        """Settings of perdure's sparse rules; mergekit's mean divides by the sum of the weights, sign included."""
        common = {"weights": self.weights, "scale": self.lambda_, "density": self.density, "keep_l1": self.rescale}
        if not elects:
            self.check_sum(name)
            return common
        if name != "ties":
            common["consensus"] = "ties"
        return {**common, "divide": "signed-weights" if self.normalize else "none"}


class TiesOptions(Sparse):
    """ties."""

    normalize: bool = True

    def ours(self, name: str) -> Ours:
        return Ties, {"scope": "tensor", **self.common(name, True)}


class BreadcrumbsOptions(Sparse):
    """breadcrumbs, breadcrumbs_ties."""

    gamma: float = 0.01

    def ours(self, name: str) -> Ours:
        return Breadcrumbs, {"gamma": self.gamma, **self.common(name, name == "breadcrumbs_ties")}


class DareOptions(Sparse):
    """dare_ties, dare_linear."""

    rescale: bool = True
    seed: int = 0

    def ours(self, name: str) -> Ours:
        return Dare, {"seed": self.seed, "rescale": False, **self.common(name, name == "dare_ties")}


class DellaLinearOptions(DareOptions):
    """della_linear."""

    epsilon: float = 0.15

    def ours(self, name: str) -> Ours:
        drawn = {"seed": self.seed, "epsilon": self.epsilon, "rescale": False}
        return Della, {"consensus": "sum", **drawn, **self.common(name, name == "della")}


class DellaOptions(DellaLinearOptions):
    """della."""

    normalize: bool = True


class SceOptions(Options):
    """sce."""

    select_topk: float = Field(default=1.0, gt=0, le=1)

    def ours(self, name: str) -> Ours:
        return Sce, {"select": self.select_topk, "equal_below": 1e-6}


class Position(Options):
    """slerp, nearswap."""

    t: float

    def ours(self, name: str) -> Ours:
        return (Slerp if name == "slerp" else Nearswap), {"t": self.t}


class KarcherOptions(Options):
    """karcher."""

    max_iter: int = 10
    tol: float = 1e-5

    def ours(self, name: str) -> Ours:
        return Karcher, self.model_dump()


class RamOptions(Options):
    """ram."""

    epsilon: float = 1e-5

    def ours(self, name: str) -> Ours:
        return Ram, self.model_dump()


MERGEKIT: Mapping[str, type[Options]] = {
    "linear": Linear,
    "task_arithmetic": TaskArithmetic,
    "ties": TiesOptions,
    "dare_ties": DareOptions,
    "dare_linear": DareOptions,
    "breadcrumbs": BreadcrumbsOptions,
    "breadcrumbs_ties": BreadcrumbsOptions,
    "della": DellaOptions,
    "della_linear": DellaLinearOptions,
    "sce": SceOptions,
    "ram": RamOptions,
    "nearswap": Position,
    "slerp": Position,
    "nuslerp": Weighted,
    "multislerp": Weighted,
    "karcher": KarcherOptions,
    "model_stock": NoOptions,
}
