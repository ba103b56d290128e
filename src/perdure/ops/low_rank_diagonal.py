"""Second moments of bounded size: low rank plus diagonal, updated in a stream, never [N, N].

    M ~ R^T R + diag(d)         R [K, N], d [N] >= 0

`compressed` keeps the K leading directions of what it is given (frequent directions without the shrinking, Ghashami et al.,
arXiv 1501.01711: rows beside the next ones, then their SVD). What a step leaves out is positive semi-definite, so R^T R never
exceeds M, and its diagonal is added to d: the diagonal of M, and so its trace, is exact.

Legend: N features, K kept rows, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from perdure.ops.finite import all_finite

CHUNK = 256
"""Rows that are added at a time: the SVD is that of a Gram matrix of K + CHUNK rows."""


@dataclass(frozen=True)
class LowRankDiagonal:
    """R^T R + diag(d), symmetric; multiplies from either side in O(K N) a row.

    Args:
        rows: R [K, N].
        rest: d [N].
    """

    rows: Tensor
    rest: Tensor

    def __rmatmul__(self, left_PN: Tensor) -> Tensor:
        return (left_PN @ self.rows.mT) @ self.rows + left_PN * self.rest

    def __matmul__(self, right_NP: Tensor) -> Tensor:
        return self.rows.mT @ (self.rows @ right_NP) + self.rest[:, None] * right_NP

    def to(self, like: Tensor) -> LowRankDiagonal:
        """The same in another tensor's dtype and on its device."""
        return LowRankDiagonal(self.rows.to(like), self.rest.to(like))

    def plus(self, other: LowRankDiagonal, rank: int) -> LowRankDiagonal:
        """The sum, with at most `rank` rows."""
        own = self.to(other.rest)
        return compressed(torch.cat([own.rows, other.rows]), own.rest + other.rest, rank)

    def __truediv__(self, number: float) -> LowRankDiagonal:
        """M / number."""
        return LowRankDiagonal(self.rows / number**0.5, self.rest / number)


def nothing(like_PN: Tensor) -> LowRankDiagonal:
    """0, of the width, dtype and device of `like_PN`."""
    return LowRankDiagonal(like_PN[:0], like_PN.new_zeros(like_PN.shape[1]))


def added(moment: LowRankDiagonal, x_PN: Tensor, rank: int) -> LowRankDiagonal:
    """`moment` + sum of x x^T over the rows of `x_PN`, with at most `rank` rows."""
    for chunk in x_PN.split(CHUNK):
        moment = compressed(torch.cat([moment.rows, chunk]), moment.rest, rank)
    return moment


def compressed(rows_PN: Tensor, rest_N: Tensor, rank: int) -> LowRankDiagonal:
    """rows^T rows + diag(rest) with the `rank` leading directions of the rows, the others by their diagonal."""
    if len(rows_PN) <= rank:
        return LowRankDiagonal(rows_PN, rest_N)
    exact = rows_PN.double()
    gram_PP = exact @ exact.mT
    if not all_finite(gram_PP):  # has no eigenvectors, and the caller says what is not finite
        return LowRankDiagonal(rows_PN[:rank], rest_N + torch.nan)
    _, vectors = torch.linalg.eigh(gram_PP)  # ascending
    kept = vectors[:, -rank:].mT @ exact
    left_out = (exact.square().sum(dim=0) - kept.square().sum(dim=0)).clamp(min=0)
    return LowRankDiagonal(kept.to(rows_PN), rest_N + left_out.to(rest_N))
