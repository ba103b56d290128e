"""Which group does a vector belong to? Means of groups and one shared covariance (linear discriminant analysis), from sums alone.

Legend: N vectors, G groups, D entries of a vector.

    m_g = s_g / n_g                                            mean of a group
    W   = (sum_i x_i x_i^T - sum_g s_g s_g^T / n_g) / n        covariance within groups, n = sum_g n_g
    S   = (1 - a) W + a tr(W) / D I                            shrunk; a by OAS, Chen et al. 2010 (arXiv 0907.4698), eq. 23
    d_g(x) = (x - m_g)^T S^-1 (x - m_g)                        squared distance; the nearest group answers

Nothing but n_g, s_g and sum x x^T is kept, in float64: bounded memory, no example, and the order of the vectors does not count
beyond rounding. All groups have the same prior, since a task with more examples is not asked more often.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sums:
    """Sums over the vectors seen: per group their number and sum [D], and over all of them the sum of x x^T [D, D]."""

    counts: Mapping[Hashable, int]
    sums: Mapping[Hashable, Tensor]
    products_DD: Tensor

    @classmethod
    def empty(cls, size: int) -> Sums:
        """No vectors of `size` entries."""
        return cls({}, {}, torch.zeros(size, size, dtype=torch.float64))

    def with_vectors(self, group: Hashable, x_ND: Tensor) -> Sums:
        """The sums after `x_ND` of `group`, [N, D] in any dtype; ValueError if an entry is not finite."""
        if not torch.isfinite(x_ND).all():
            raise ValueError(f"a vector of group {group!r} has entries that are not finite")
        x_ND = x_ND.detach().to("cpu", torch.float64)
        before = self.sums.get(group, torch.zeros_like(self.products_DD[0]))
        return dataclasses.replace(
            self,
            counts={**self.counts, group: self.counts.get(group, 0) + len(x_ND)},
            sums={**self.sums, group: before + x_ND.sum(dim=0)},
            products_DD=self.products_DD + x_ND.T @ x_ND,
        )

    def means(self) -> Tensor:
        """[G, D], groups in the order they came."""
        return torch.stack([self.sums[group] / self.counts[group] for group in self.sums])

    def within(self) -> Tensor:
        """W [D, D]; divided by n, not n - G."""
        mean_GD = self.means()
        count_G = torch.tensor([self.counts[group] for group in self.sums], dtype=torch.float64)
        between_DD = (mean_GD * count_G[:, None]).T @ mean_GD
        return (self.products_DD - between_DD) / count_G.sum()


def oas_shrinkage(cov_DD: Tensor, count: int) -> float:
    """The share `a` in [0, 1] of the scaled identity, for a covariance estimated from `count` vectors (eq. 23)."""
    size = len(cov_DD)
    squares, trace_squared = float((cov_DD**2).sum()), float(cov_DD.trace()) ** 2
    above = (1 - 2 / size) * squares + trace_squared
    below = (count + 1 - 2 / size) * (squares - trace_squared / size)
    return 1.0 if above >= below else above / below


def shrunk(cov_DD: Tensor, share: float) -> Tensor:
    """(1 - share) cov + share tr(cov) / D I; ValueError if the covariance is zero, since no distance follows from it."""
    level = float(cov_DD.trace()) / len(cov_DD)
    if level <= 0:
        raise ValueError("all vectors of each group are the same, so no distance can be measured")
    return (1 - share) * cov_DD + share * level * torch.eye(len(cov_DD), dtype=cov_DD.dtype)


def squared_distances(x_ND: Tensor, mean_GD: Tensor, cov_DD: Tensor) -> Tensor:
    """[N, G] squared Mahalanobis distances; one Cholesky factorisation of the covariance, and one solve for all vectors."""
    lower_DD = torch.linalg.cholesky(cov_DD)
    x_ND, mean_GD = (
        torch.linalg.solve_triangular(lower_DD, rows.to(cov_DD).T, upper=False).T for rows in (x_ND, mean_GD)
    )
    return torch.cdist(x_ND, mean_GD, compute_mode="donot_use_mm_for_euclid_dist") ** 2


def left_out(distance_NG: Tensor, between_GG: Tensor, own_N: Tensor, count_G: Tensor, scale: float) -> Tensor:
    """[N, G] squared distances as if each vector had not been among those that means and covariance come from.

    Without x, of n vectors in its group y, r = x - m_y: its own mean is n/(n-1) r away, and S loses c r r^T, so that
    (Sherman and Morrison) v^T S^-1 v grows by c (v^T S^-1 r)^2 / (1 - c r^T S^-1 r). The shrinkage stays as it was.

    Args:
        distance_NG: squared distances of the vectors to the means, `between_GG` of the means to each other.
        own_N: each vector's group, of two vectors at least.
        count_G: number of vectors in each group.
        scale: (1 - a) / n in all, what the covariance weighs an outer product by.
    """
    factor_N = count_G[own_N].double() / (count_G[own_N] - 1)
    c_N1 = (scale * factor_N)[:, None]
    h_N1 = distance_NG.gather(1, own_N[:, None])
    across_NG = (distance_NG + h_N1 - between_GG[own_N]) / 2  # v^T S^-1 r, since v - r leads from one mean to another
    without_NG = distance_NG + c_N1 * across_NG**2 / (1 - c_N1 * h_N1)
    own_N1 = factor_N[:, None] ** 2 * h_N1 / (1 - c_N1 * h_N1)
    return without_NG.scatter(1, own_N[:, None], own_N1)
