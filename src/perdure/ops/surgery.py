"""Gradient surgery: change the new task's gradient `c` so that it agrees with the old tasks' gradient `r`.

Most operators return two numbers (a, b) for the result a c + b r. They need only the three inner products of a `Gram`, so
they serve full gradients, sketches and factor gradients alike, for one module or for all together. Only the null space
needs the matrices.

    PCGrad   arXiv 2001.06782    GradVac  arXiv 2010.05874    CAGrad   arXiv 2110.14048    A-GEM  arXiv 1812.00420

Legend: O output features, I input features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Coefficients = tuple[float, float]
"""(a, b): the operator's result is a c + b r."""

UNCHANGED: Coefficients = (1.0, 0.0)


@dataclass(frozen=True)
class Gram:
    """Inner products of the new gradient c and the old gradient r: <c, c>, <c, r>, <r, r>. Grams of modules add up."""

    cc: float
    cr: float
    rr: float

    def __add__(self, other: Gram) -> Gram:
        return Gram(self.cc + other.cc, self.cr + other.cr, self.rr + other.rr)

    @property
    def cosine(self) -> float:
        """Between -1 and 1; 0 where a gradient is zero (no direction, no conflict)."""
        norms = math.sqrt(self.cc) * math.sqrt(self.rr)
        return max(-1.0, min(1.0, self.cr / norms)) if norms > 0 else 0.0

    def length(self, coefficients: Coefficients) -> float:
        """Norm of a c + b r."""
        a, b = coefficients
        return math.sqrt(max(0.0, a * a * self.cc + 2 * a * b * self.cr + b * b * self.rr))


def gram(c: Tensor, r: Tensor) -> Gram:
    """Inner products of two tensors of one shape, in fp32, or in float64 where either is."""
    dtype = torch.promote_types(torch.promote_types(c.dtype, r.dtype), torch.float32)
    c, r = c.reshape(-1).to(dtype), r.reshape(-1).to(dtype)
    return Gram(float(c @ c), float(c @ r), float(r @ r))


def total(grams: Iterable[Gram]) -> Gram:
    """The Gram of all modules together."""
    return sum(grams, Gram(0.0, 0.0, 0.0))


def combine(c: Tensor, r: Tensor, coefficients: Coefficients) -> Tensor:
    """a c + b r."""
    a, b = coefficients
    return a * c if b == 0 else a * c + b * r


def pcgrad(gram: Gram, strength: float = 1.0, tau: float = 0.0) -> Coefficients:
    """Remove the part of c that conflicts with r: gamma = relu(-<c, r>) / ||r||^2, result c + strength gamma r.

    With `strength` = 1 and `tau` = 0 the result is orthogonal to r if they conflicted; this is also A-GEM's projection. A
    smaller strength leaves part of the conflict (SLICE uses .5, .75, 1). It fires only if the cosine is below `tau`.
    """
    if gram.cosine >= tau or gram.cr >= 0 or gram.rr == 0:
        return UNCHANGED
    return 1.0, strength * (-gram.cr / gram.rr)


def gradvac(gram: Gram, target: float, tau: float = math.inf) -> Coefficients:
    """Add as much of r as raises the cosine with r to `target` (GradVac, eq. 2).

        lambda = ||c|| (phi sqrt(1 - cos^2) - cos sqrt(1 - phi^2)) / (||r|| sqrt(1 - phi^2)),   phi = target

    `target` is the desired cosine, in (-1, 1): the caller's moving average, see `moved_target`. It fires only if the cosine
    is below both `target` and `tau`.
    """
    cosine = gram.cosine
    if cosine >= min(tau, target) or gram.rr == 0 or gram.cc == 0:
        return UNCHANGED
    target = min(target, 0.999)  # 1 would need infinitely much of r
    sine, target_sine = math.sqrt(1 - cosine**2), math.sqrt(1 - target**2)
    return 1.0, math.sqrt(gram.cc / gram.rr) * (target * sine - cosine * target_sine) / target_sine


def moved_target(target: float, cosine: float, beta: float) -> float:
    """GradVac's exponential moving average of the cosine: (1 - beta) target + beta cosine (eq. 3)."""
    return (1 - beta) * target + beta * cosine


def cagrad(gram: Gram, radius: float = 0.5) -> Coefficients:
    """The direction near the mean gradient g0 that is best for the worse-off of the two (CAGrad, eq. 3-5).

    Dual of max_d min(<c, d>, <r, d>) subject to ||d - g0|| <= reach, reach = radius ||g0||: with g_w = w c + (1 - w) r, find w in
    [0, 1] that minimises <g_w, g0> + reach ||g_w||, which is convex; then d = g0 + reach g_w / ||g_w||.
    `radius` (the paper's c) is in [0, 1); 0 gives the mean of both gradients. The division by 1 + c that ends the published
    algorithm is left out: it changes the length only, and SLICE uses the direction.
    """
    reach = radius * gram.length((0.5, 0.5))

    def dual(w: float) -> float:
        inner = 0.5 * (w * gram.cc + gram.cr + (1 - w) * gram.rr)
        return inner + reach * gram.length((w, 1 - w))

    low, high = 0.0, 1.0
    for _ in range(100):  # ternary search; each round costs a few multiplications
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if dual(left) < dual(right) else (left, high)
    w = (low + high) / 2
    length = gram.length((w, 1 - w))
    if length <= 1e-7 * math.sqrt(gram.cc + gram.rr):  # opposite gradients: no direction serves both
        return 0.5, 0.5
    return 0.5 + reach * w / length, 0.5 + reach * (1 - w) / length


def null_space(c_OI: Tensor, r_OI: Tensor, k: int) -> Tensor:
    """c - U U^T c, U [O, k] the top-k left singular vectors of r: c without the old gradient's main directions."""
    U = torch.linalg.svd(r_OI, full_matrices=False).U[:, :k]
    return c_OI - U @ (U.mT @ c_OI)


def threshold_below_median(cosines: Mapping[str, float], delta: float) -> float:
    """tau = median(cosines) - delta: per-module surgery fires only in modules that conflict more than most."""
    return float(torch.tensor(list(cosines.values()), dtype=torch.float64).quantile(0.5)) - delta
