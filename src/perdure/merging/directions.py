"""Rules that weigh whole updates by their lengths and angles: SLERP, Multi-SLERP, Karcher mean, Model Stock.

Symbols, per module: n_i = ||dW_i||_F, u_i = dW_i / n_i, c_ij = <u_i, u_j>, N updates; 0 for one without the module.

    slerp         sin((1 - t) a) / sin(a) dW_1 + sin(t a) / sin(a) dW_2,  cos(a) = c_12           t = w_2 / (w_1 + w_2) in nuslerp
    multislerp    (sum_i w_i n_i) m / ||m||,  m = sum_i w_i u_i,  the weights sum to 1
    karcher       (mean of n_i) u,  u on the sphere with sum_i a_i / sin(a_i) (u_i - cos(a_i) u) = 0,  cos(a_i) = <u, u_i>
    model stock   t mean_i dW_i,  t = N c / (1 + (N - 1) c),  c = the mean of c_ij over pairs     (Jang et al., arXiv 2403.19522)

All are sum_i x_i dW_i with numbers x_i that follow from the inner products alone, so the result is low rank and exact, and no
dense matrix is formed. Inner products, angles and x_i are computed in float64.

What they act on: mergekit's slerp and karcher turn whole weights, which are nearly parallel; these turn updates, as mergekit's
nuslerp and multislerp do if they get a base model. Model Stock's base is the pretrained model that the updates belong to.
Deviations. mergekit's multislerp makes a further step in the tangent space at m, which is 0 for any input. SLERP interpolates
linearly where |c_12| > .9995 (as mergekit does) or an update is 0. Opposite updates have no mean direction, and Model Stock's t
has no meaning at or below c = -1 / (N - 1): both are errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from perdure.errors import AdapterError, ConfigError
from perdure.merging.covariance_gain import Moments
from perdure.merging.linear import checked_weights, stacked_sum, weight_total
from perdure.merging.rule import Deltas, Prepared, Rule
from perdure.ops.decompose import inner
from perdure.ops.lowrank import Delta, Update


class DirectionRule(Rule):
    """A sum of the updates whose weights follow from their inner products."""

    low_rank: ClassVar[bool] = True
    incremental: ClassVar[bool] = False

    def shares(self, gram_NN: Tensor, module: str) -> Sequence[float]:
        """x [N], given the inner products of the updates (float64)."""
        raise NotImplementedError

    def prepare(self, updates: Sequence[Update], moments: Sequence[Moments] | None = None) -> Prepared:
        self.check_updates(len(updates))

        def merge(module: str, deltas: Deltas) -> Delta:
            shares = self.shares(gram(deltas), module)
            present = [(delta, float(x)) for delta, x in zip(deltas, shares, strict=True) if delta is not None]
            return stacked_sum([delta for delta, _ in present], [x for _, x in present])

        return Prepared(merge)

    def check_updates(self, count: int) -> None:
        """Raise a ConfigError for a number of updates that the rule cannot merge."""


def gram(deltas: Deltas) -> Tensor:
    """The inner products [N, N] of one module's updates, float64; 0 for one that lacks the module."""
    products = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for i, first in enumerate(deltas):
        for j, second in enumerate(deltas[: i + 1]):
            if first is not None and second is not None:
                products[i, j] = products[j, i] = inner(first, second)
    return products


def lengths_and_cosines(gram_NN: Tensor) -> tuple[Tensor, Tensor]:
    """n [N] and c [N, N]; the cosine with an update of length 0 is 0."""
    lengths = gram_NN.diagonal().clamp_min(0).sqrt()
    products = lengths[:, None] * lengths
    return lengths, torch.where(products > 0, gram_NN / products, 0.0).clamp(-1, 1)


class Slerp(DirectionRule):
    """Two updates, interpolated along the arc between them."""

    source: ClassVar[str] = "https://en.wikipedia.org/wiki/Slerp"
    in_order: ClassVar[bool] = True
    pair: ClassVar[bool] = True
    t: float = 0.5

    def check_updates(self, count: int) -> None:
        self.check_count("slerp", count)

    def shares(self, gram_NN: Tensor, module: str) -> Sequence[float]:
        lengths, cosines = lengths_and_cosines(gram_NN)
        cosine = float(cosines[0, 1])
        if abs(cosine) > 0.9995 or float(lengths.min()) == 0:
            return 1 - self.t, self.t
        angle = math.acos(cosine)
        return math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle)


class Multislerp(DirectionRule):
    """The direction of the weighted mean of directions, with the weighted mean of lengths."""

    source: ClassVar[str] = "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea"
    weights: tuple[float, ...] | None = None

    def shares(self, gram_NN: Tensor, module: str) -> Sequence[float]:
        weights = checked_weights(self.weights, len(gram_NN))
        share = torch.tensor(weights, dtype=torch.float64) / weight_total(weights)
        lengths, cosines = lengths_and_cosines(gram_NN)
        if not lengths.any():
            return share.tolist()
        length = float((share @ cosines @ share).clamp_min(0).sqrt())
        if length < 1e-8:
            raise _no_direction(module, "multislerp")
        return (share / lengths.clamp_min(torch.finfo(torch.float64).tiny) * (share @ lengths) / length).tolist()


class Karcher(DirectionRule):
    """The mean direction on the sphere, found by gradient steps, with the mean of lengths."""

    source: ClassVar[str] = "https://arxiv.org/abs/2603.04972"
    max_iter: int = Field(default=100, ge=1)
    tol: float = Field(default=1e-9, gt=0)

    def shares(self, gram_NN: Tensor, module: str) -> Sequence[float]:
        lengths, cosines = lengths_and_cosines(gram_NN)
        there = lengths > 0
        if not there.any():
            return [0.0] * len(lengths)
        alpha = there.double() / there.sum()
        mean, length = alpha.clone(), float((alpha @ cosines @ alpha).clamp_min(0).sqrt())
        if length < 1e-8:
            raise _no_direction(module, "karcher")
        mean = mean / length  # u = sum_i mean_i u_i
        for _ in range(self.max_iter):
            dots = (cosines @ mean).clamp(-1, 1)
            angles = dots.acos()
            pulls = torch.where(angles < self.tol, 0.0, alpha * angles / angles.sin().clamp_min(1e-300))
            step = pulls - (pulls @ dots) * mean
            size = (step @ cosines @ step).clamp_min(0).sqrt()
            if size < self.tol:
                break
            mean = size.cos() * mean + size.sin() / size * step
            mean = mean / (mean @ cosines @ mean).sqrt()
        return (mean * lengths.mean() / lengths.clamp_min(torch.finfo(torch.float64).tiny)).tolist()


class ModelStock(DirectionRule):
    """The mean, pulled towards the base the more the updates disagree."""

    source: ClassVar[str] = "https://arxiv.org/abs/2403.19522"

    def check_updates(self, count: int) -> None:
        if count < 2:
            raise ConfigError("'model-stock' needs two adapters or more: it compares their directions.")

    def shares(self, gram_NN: Tensor, module: str) -> Sequence[float]:
        count = len(gram_NN)
        _, cosines = lengths_and_cosines(gram_NN)
        cosine = float((cosines.sum() - cosines.trace()) / (count * (count - 1)))
        if 1 + (count - 1) * cosine < 1e-6:
            raise _no_direction(module, "model-stock")
        return [cosine / (1 + (count - 1) * cosine)] * count  # t / N


def _no_direction(module: str, rule: str) -> AdapterError:
    return AdapterError(
        f"At module '{module}' the adapters' updates point in opposite directions and cancel, so '{rule}' has no result there. "
        "Use another rule for it (an override in a merge file), or other weights."
    )
