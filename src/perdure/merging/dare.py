"""DARE: drop entries at random and rescale the rest (Yu et al., arXiv 2311.03099), then sum or vote.

Symbols: p the share DROPPED in the paper; here `density` = 1 - p is the share kept.

    m ~ Bernoulli(density),  dW~ = m * dW / density,  E[dW~] = dW

then task arithmetic (the paper's default) or the election of TIES (`consensus="ties"`, without trimming).
Dividing by `density` keeps the expectation; `rescale=False` is for ablation only.

The mask of an update at a module depends only on the seed, the update's position and the module's name: a generator (PCG64) is
advanced to a tile's first row, so neither tile size nor order nor other modules change it, and merging one by one draws the
same masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from perdure.errors import ConfigError
from perdure.merging.fold import Transform

Consensus = Literal["sum", "ties"]
Mask = Callable[[str, int, tuple[int, int]], Tensor]
"""(module, first row, shape [N, I] of the tile) -> bool [N, I], True where an entry is kept."""
Drawn = Callable[[str, int, tuple[int, int]], np.ndarray]
"""The same arguments -> uint32 [N, I], uniform."""


def drop(tile: Tensor, mask: Tensor, density: float, rescale: bool = True) -> Tensor:
    """`tile` [N, I] with the entries outside `mask` set to 0 and the others divided by `density`; in place."""
    if not 0 < density <= 1:
        raise ConfigError(f"DARE's density, the share of entries to keep, must be in (0, 1], not {density}.")
    tile.mul_(mask.to(tile.device))
    return tile.div_(density) if rescale else tile


def drawn(seed: int, update: int) -> Drawn:
    """32 random bits for every entry of the `update`-th update (from 0)."""

    def draw(module: str, first_row: int, shape: tuple[int, int]) -> np.ndarray:
        digest = hashlib.sha256(f"{seed}/{update}/{module}".encode()).digest()
        words_a_row = -(-shape[1] // 2)  # a 64-bit word holds two entries
        stream = np.random.PCG64(int.from_bytes(digest[:16], "little")).advance(first_row * words_a_row)
        return stream.random_raw(shape[0] * words_a_row).view(np.uint32).reshape(shape[0], -1)[:, : shape[1]]

    return draw


def random_mask(seed: int, update: int, density: float) -> Mask:
    """The mask of the `update`-th update (from 0): each entry kept with probability `density` (to 32 bits)."""
    limit, draw = round(density * (1 << 32)), drawn(seed, update)
    return lambda module, first_row, shape: torch.from_numpy(draw(module, first_row, shape) < limit)


def dropping(mask: Mask, density: float, rescale: bool = True) -> Transform:
    """`drop` as the transform of a fold."""

    def apply(module: str, first_row: int, tile: Tensor) -> Tensor:
        return drop(tile, mask(module, first_row, (tile.shape[0], tile.shape[1])), density, rescale)

    return apply
