"""SLAO: one adapter for all tasks, restarted on an orthonormal basis and merged more and more slowly. arXiv 2512.23017.

    slao = slao (SlaoStart) + slao (SlaoMerge)

    A_t, B_t     factors trained on task t (t = 1, 2, ...), on the pretrained base        A [R, I], B [O, R]
    start        A_t = Q^T  with Q R = A_{t-1}^T, diag R > 0,    B_t = B_{t-1}            `orthonormal_rows`
    merge        A = A_t,   B <- B + (B_t - B) / sqrt(t)                                  merging.slao, `SlaoMerge`

The adapter continues from the last task's factors, so its update is the whole change since the pretrained model: nothing is
carried into the base, and the merged factors answer queries.

Settings: none. Deviations: none. QR is unique only up to signs, and B is not rotated with A, so the sign matters: as in the
paper, the diagonal of R is positive, which keeps A_t close to A_{t-1}. The first task starts as plain LoRA.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from perdure.errors import ConfigError
from perdure.merging.slao import slao
from perdure.methods.contract.context import Context
from perdure.methods.contract.parts import Consolidate, Keeps, Method
from perdure.methods.contract.past import Folded, Past, PerTask
from perdure.methods.plain import Continue
from perdure.methods.table import kind_of
from perdure.ops.lowrank import LowRank, Update


def orthonormal_rows(A_RI: Tensor) -> Tensor:
    """Orthonormal rows [R, I] spanning what the rows of A span: Q^T of A^T = Q R with a positive diagonal of R."""
    Q_IR, R_RR = torch.linalg.qr(A_RI.float().mT)
    signs = torch.where(R_RR.diagonal() < 0, -1.0, 1.0)
    return (Q_IR * signs).mT.contiguous()


class SlaoStart(Continue):
    """A starts on an orthonormal basis of the last task's A, B where it ended; the first task as plain LoRA."""

    consolidation: ClassVar[str] = "slao"

    def _restarted(self, last_RI: Tensor) -> Tensor:
        return orthonormal_rows(last_RI)


class SlaoMerge(Consolidate):
    """The newest A and a B that moves by 1 / sqrt(t) towards the newest answer queries; nothing is carried."""

    @property
    def keeps(self) -> Keeps:
        return "merged"

    def conflicts(self, method: Method) -> str | None:
        """Refused if tasks start from scratch: one task's B means nothing with another's A."""
        if method.init.continues:
            return None
        return (
            "it averages the B of all tasks for the newest A, so every task must continue from the last one's factors, but "
            f"{kind_of(method.init)} starts from scratch. Use the init `slao` (or `continue`)"
        )

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        """The slow average; nothing is carried.

        Raises:
            ConfigError: the update or the past is not one pair of factors per module (another init or consolidation).
        """
        if isinstance(past.deployed, PerTask):
            raise ConfigError("slao merges into one adapter, but the past deploys one update per task.")
        merged: dict[str, LowRank] = {}
        for module, new in update.items():
            old = past.deployed.get(module)
            if not isinstance(new, LowRank) or not (old is None or (isinstance(old, LowRank) and old.rank == new.rank)):
                raise ConfigError(
                    f"slao merges factors of one rank, but '{module}' has another form. Use it with init 'slao' "
                    "(or 'continue'); an init that offsets the base doubles the rank."
                )
            merged[module] = slao(old, new, len(past) + 1, module)
        return Folded(carry={}, deployed=merged)
