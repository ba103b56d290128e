"""DELLA: drop entries at random, the small ones of each row more often (Deep et al., arXiv 2406.11617, MagPrune).

Symbols: r_j the rank of |dW_ij| within its row i, 0 for the smallest; I entries in a row; here `density` is the mean share kept
(the paper's p is the share dropped).

    q_ij = density - epsilon + 2 epsilon r_j / (I - 1)       share kept: from density - epsilon to density + epsilon
    m_ij ~ Bernoulli(q_ij),   dW~ = m * dW / q               E[dW~] = dW

then the election and mean of TIES (the paper), or a sum (mergekit's della_linear).
Settings: epsilon .15 as in mergekit; the paper's epsilon is the whole width, twice this one, and its largest q is one rank
below. mergekit does not divide by q but scales the module until its L1 norm is kept: `rescale=False, keep_l1=True`.
The draws are those of DARE (dare.py): they depend on seed, update and module only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perdure.merging.dare import Drawn
from perdure.merging.fold import Transform


def kept_shares(rows_NI: Tensor, density: float, epsilon: float) -> Tensor:
    """q [N, I], float64."""
    ranks = rows_NI.abs().argsort(dim=1, stable=True).argsort(dim=1)
    return density - epsilon + ranks.double() * (2 * epsilon / max(1, rows_NI.shape[1] - 1))


def ranked_dropping(drawn: Drawn, density: float, epsilon: float, rescale: bool = True) -> Transform:
    """Drop by rank, and divide what is kept by its share if `rescale`."""

    def apply(module: str, first_row: int, tile: Tensor) -> Tensor:
        shares = kept_shares(tile, density, epsilon).to(tile.device)
        draws = torch.from_numpy(drawn(module, first_row, (tile.shape[0], tile.shape[1])).astype("float64"))
        tile.mul_(draws.to(tile.device) < shares * float(1 << 32))
        return tile.div_(shares.to(tile.dtype)) if rescale else tile

    return apply
