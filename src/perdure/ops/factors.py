"""The two trained matrices of a LoRA adapter in one module, and their update.

Legend: R adapter rank, O output features, I input features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from perdure.ops.lowrank import LowRank


@dataclass(frozen=True, eq=False)
class Factors:
    """`A` [R, I], `B` [O, R] in PEFT's naming, and their start if the base was offset by it.

    An init that offsets the base (SLICE, LoRA-GA, LoRAM) trains on W - s B0 A0, so the task adds s (B A - B0 A0) to W:
    penalties, statistics and merges must see that update, never s B A. It is computed as

        B A - B0 A0 = (B - B0) A + B0 (A - A0)

    which is exactly 0 at the start and accurate near it. The difference of the two products would be rounding error there,
    whose signs l1 would take and which `gradient_share` would scale to a full share of the gradient.

    Args:
        A, B: the factors.
        scaling: alpha / r, or alpha / sqrt(r) for rsLoRA.
        A0, B0: the offset's factors, or None when the base is not offset.
    """

    A: Tensor
    B: Tensor
    scaling: float
    A0: Tensor | None = None
    B0: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I) of the module's weight."""
        return self.B.shape[0], self.A.shape[1]

    def update(self) -> LowRank:
        """The effective update s (B A - B0 A0) as factors: A, s B, or with an offset [A; A - A0], s [B - B0, B0] (rank 2R)."""
        if self.A0 is None or self.B0 is None:
            return LowRank(self.A, self.B * self.scaling)
        A, B = torch.cat([self.A, self.A - self.A0]), torch.cat([self.B - self.B0, self.B0], dim=1)
        return LowRank(A, B * self.scaling)

    def copied(self) -> Factors:
        """A contiguous copy, laid out as if read from a file, so that BLAS rounds the same way."""
        pairs = (None if m is None else m.clone(memory_format=torch.contiguous_format) for m in (self.A0, self.B0))
        return Factors(self.A.clone(), self.B.clone(), self.scaling, *pairs)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start:stop` of the effective update [O, I]."""
        B = self.B[start:stop]
        if self.A0 is None or self.B0 is None:
            return (B @ self.A).mul_(self.scaling)
        B0 = self.B0[start:stop]
        return torch.addmm(B0 @ (self.A - self.A0), B - B0, self.A).mul_(self.scaling)

    def gradients(self, grad_OI: Tensor) -> tuple[Tensor, Tensor]:
        """Chain rule: the gradient of A and of B, given that of the effective update [O, I]."""
        return self.scaling * (self.B.mT @ grad_OI), self.scaling * (grad_OI @ self.A.mT)
