"""Parts of one module's dense update [O output, I input]: positions by magnitude or sign; its signs or magnitudes alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Side = Literal["bottom", "top"]
Agreement = Literal["same", "opposite", "both"]


def by_magnitude(delta_OI: Tensor, share: float, side: Side) -> Tensor:
    """Mask [O, I] of the round(share * O I) smallest (bottom) or largest (top) entries in magnitude; ties by position."""
    count = round(share * delta_OI.numel())
    order = delta_OI.abs().reshape(-1).argsort(descending=side == "top", stable=True)
    mask = torch.zeros(delta_OI.numel(), dtype=torch.bool, device=delta_OI.device)
    mask[order[:count]] = True
    return mask.view_as(delta_OI)


def by_sign(delta_OI: Tensor, history_OI: Tensor, agreement: Agreement) -> Tensor:
    """Mask [O, I] of positions where the update has the history's sign (same) or the other one (opposite).

    A zero on either side neither agrees nor opposes; `both` selects every position.
    """
    if agreement == "both":
        return torch.ones_like(delta_OI, dtype=torch.bool)
    product = delta_OI.sign() * history_OI.sign()
    return product > 0 if agreement == "same" else product < 0


def signs_only(delta_OI: Tensor) -> Tensor:
    """sign(delta) times one magnitude that keeps the Frobenius norm."""
    signs = delta_OI.sign()
    return signs * (delta_OI.norm() / signs.norm().clamp_min(1.0))


def magnitudes_only(delta_OI: Tensor, generator: torch.Generator) -> Tensor:
    """|delta| under random signs: what is left when the signs are lost."""
    drawn = torch.randint(2, delta_OI.shape, generator=generator).to(delta_OI) * 2 - 1
    return delta_OI.abs() * drawn
