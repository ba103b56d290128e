"""What storing merged weights in a narrow dtype takes away from an update."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor


@dataclass
class Rounding:
    """Squared norms over all additions: of what was added, and of what rounding the sums to the stored dtype took away."""

    added: float = 0.0
    lost: float = 0.0
    lock: Lock = field(default_factory=Lock)

    @property
    def share(self) -> float:
        """Norm of what was lost, relative to that of what was added; 0 where nothing was."""
        return math.sqrt(self.lost / self.added) if self.added else 0.0

    def count(self, exact: Tensor, dtype: torch.dtype, added: Tensor) -> None:
        """Sums of a tile [N, I] before they are stored as `dtype`."""
        lost = float((exact - exact.to(dtype)).square().sum(dtype=torch.float64))
        whole = float(added.square().sum(dtype=torch.float64))
        with self.lock:  # tiles are processed by several threads
            self.added, self.lost = self.added + whole, self.lost + lost
