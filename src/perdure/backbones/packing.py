"""A training step's examples in few long rows instead of one padded row each: the same loss and gradients, less work.

The trunk, the tokens that all examples share before the first target (an instruction, a list of labels), is computed once a
step, with its gradient, or once a row where a model's cache cannot be learnt through; rows hold the rests of one or more
examples. A token sees the trunk and what stands before it in its own example, and has the position it would have alone: exact
where every layer is plain attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from perdure.backbones.prefix import PASS_COST, begun_alike
from perdure.backbones.tokens import padded

TRUNK, PADDING = -1, -2
ATTENTION = 2
"""With so many times H tokens seen, a token's attention costs as much as a layer's other work (measured: SmolLM2-135M on a CPU,
forward and backward; by multiplications alone it would be 6)."""

Trunk = Literal["step", "row", "none"]
"""How often what all begin with is computed: once a step, once a row, or with every example."""


class Packed(NamedTuple):
    """The rows of a step; R rows of length S.

    Args:
        ids: [R, S] token ids.
        positions: [R, S] each token's position in its own example.
        owners: [R, S] which example a token belongs to, else `TRUNK` or `PADDING`.
        predicting: [R, S] bool, where a target is predicted.
        answers: [T] the targets, in the order of `predicting`.
        trunk: [K] token ids that stand before every row and are not in it.
    """

    ids: Tensor
    positions: Tensor
    owners: Tensor
    predicting: Tensor
    answers: Tensor
    trunk: Tensor

    def learners(self) -> Tensor:
        """[T] which example each target belongs to."""
        return self.owners[self.predicting.roll(1, dims=1)]

    def allowed(self) -> Tensor:
        """[R, S, K + S] bool: what each token sees."""
        size = self.ids.shape[1]
        sees = (self.owners[:, None, :] == TRUNK) | (self.owners[:, None, :] == self.owners[:, :, None])
        sees &= torch.ones(size, size, dtype=torch.bool, device=sees.device).tril()
        return functional.pad(sees, (len(self.trunk), 0), value=True)


def packed(
    rows: Sequence[list[int]], targets: Tensor, width: int, trunk: Trunk = "step", pass_cost: int = PASS_COST
) -> Packed:
    """The examples' token ids in few rows.

    Args:
        rows: N token ids each.
        targets: [N, length] bool, the tokens that are learnt; never the first.
        width: of the model's hidden states.
        trunk: how often what all begin with is computed (with dropout it would be dropped alike in all of them).
        pass_cost: once a step only where that saves so many tokens.
    """
    begins = [int(own.nonzero()[0]) - 1 if own.any() else len(row) for row, own in zip(rows, targets, strict=True)]
    shared = min(len(begun_alike(rows)), *begins) if trunk != "none" and len(rows) > 1 else 0
    if trunk == "step" and shared * (len(rows) - 1) < pass_cost:
        shared = 0
    before, repeated = (shared, 0) if trunk == "step" else (0, shared)
    laid = rows_of([len(row) - shared for row in rows], repeated, ATTENTION * width, before)
    common = rows[0][before:shared]
    ids = [[*common, *(token for i in own for token in rows[i][shared:])] for own in laid]
    places = [[*range(repeated), *(place for i in own for place in range(shared, len(rows[i])))] for own in laid]
    owners = [[TRUNK] * repeated + [i for i in own for _ in rows[i][shared:]] for own in laid]
    ids_RS, real_RS = padded(ids, 0)
    owners_RS = padded(owners, PADDING)[0]
    positions_RS = padded(places, 0)[0]
    learnt_RS = real_RS & (owners_RS >= 0)
    learnt_RS[learnt_RS.clone()] = targets[owners_RS[learnt_RS], positions_RS[learnt_RS]]
    # the token before a rest's first is the trunk's last in any row: `begins` keeps targets away from there
    predicting = learnt_RS.roll(-1, dims=1)
    return Packed(ids_RS, positions_RS, owners_RS, predicting, ids_RS[learnt_RS], torch.tensor(rows[0][:before]))


def rows_of(lengths: Sequence[int], trunk: int, balance: int, before: int = 0) -> list[list[int]]:
    """Which rests share a row: of all numbers of rows the cheapest, each filled longest first into the emptiest row.

    Args:
        lengths: N tokens behind the trunk.
        trunk: tokens of the trunk, which every row repeats.
        balance: how many tokens seen cost as much as a token's other work.
        before: tokens that every row sees and none repeats.
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    best: tuple[float, list[list[int]]] = (float("inf"), [])
    for count in range(1, len(lengths) + 1):
        rows: list[list[int]] = [[] for _ in range(count)]
        filled = [trunk] * count
        for i in longest_first:
            row = filled.index(min(filled))
            rows[row].append(i)
            filled[row] += lengths[i]
        cost = count * max(filled) * (1 + (before + max(filled)) / balance)
        best = min(best, (cost, rows), key=lambda found: found[0])
    return best[1]
