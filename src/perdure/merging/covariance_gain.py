"""Covariance-gain merge: keep what an update's own inputs need, and leave the outputs on other tasks' inputs unchanged.

Symbols: C_t = E[x x^T] [I, I] the second moment of a module's inputs on task t; C_o that of the other tasks; kappa their
weight; eps a ridge.

    P = C_t (C_t + kappa C_o + eps I)^-1,      dW <- dW P,      so  A <- A P  and B stays
    P = I where there is nothing to spare: no other task, or kappa 0

X = dW P minimises the new task's output error plus the change of the others' outputs,
    E_t ||(X - dW) x||^2 + kappa E_o ||X x||^2 + eps ||X||_F^2,
whose normal equation is X (C_t + kappa C_o + eps I) = dW C_t. The rank stays R, so the result exports exactly. It needs no
examples, only statistics: one moment per task, and just the sum of those to spare.

Source: this project (docs/merging.md); related: RegMean (arXiv 2212.09849), which is this with kappa 1 and all other
tasks in C_o; GPM (arXiv 2103.09762), the hard projection. Deviation from the plain formula: `ridge` is relative,
eps = ridge * mean diagonal of (C_t + kappa C_o), so that it means the same in every module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from perdure.errors import AdapterError
from perdure.merging.linear import stacked_sum
from perdure.ops.lowrank import Delta, LowRank

Against = Literal["earlier", "others"]
Moments = Mapping[str, Tensor]
"""Module name -> second moment [I, I] of its inputs."""


def covariance_gain(delta: Delta, own: Tensor, others: Tensor | None, kappa: float = 1.0, ridge: float = 1e-3) -> Delta:
    """dW P [O, I], in as many directions as `delta` has.

    Args:
        own: C_t [I, I], symmetric.
        others: C_o [I, I] of the tasks to spare; None if there are none: then P = I.
        kappa: weight of the others' outputs relative to the own, 0 or more; at 0, P = I.
        ridge: eps relative to the mean diagonal; keeps directions that no input uses from being inverted.
    """
    if others is None or kappa == 0:
        return delta
    own, mixed = own.double(), own.double() + kappa * others.to(own.device, torch.float64)
    mean_diagonal = mixed.diagonal().mean()
    if mean_diagonal <= 0:
        return delta  # no input ever reached this module
    mixed.diagonal().add_(ridge * mean_diagonal)
    right = delta.A if isinstance(delta, LowRank) else delta
    solved = torch.cholesky_solve(own @ right.mT.double(), torch.linalg.cholesky(mixed)).mT
    return LowRank(solved.to(right.dtype), delta.B) if isinstance(delta, LowRank) else solved.to(right.dtype)


def gained_sum(
    module: str,
    deltas: Sequence[Delta | None],
    moments: Sequence[Moments],
    kappa: float,
    ridge: float,
    against: Against,
) -> Delta:
    """sum_t dW_t P_t at one module.

    Args:
        moments: one per update, measured on that update's task.
        against: spare the "earlier" tasks (each update trained on top of those before, which are part of its base), or all
            "others" (updates trained separately on one base).

    Raises:
        AdapterError: a moment is missing, is not [I, I], or is not a second moment.
    """
    gained = []
    for index, delta in enumerate(deltas):
        if delta is None:
            continue
        rest = range(index) if against == "earlier" else [i for i in range(len(deltas)) if i != index]
        # reduced one by one: only the sum of the others' moments is in memory
        spared = reduce(torch.add, (_moment(moments, i, module, delta.shape[1]) for i in rest)) if rest else None
        own = _moment(moments, index, module, delta.shape[1])
        try:
            gained.append(covariance_gain(delta, own, spared, kappa, ridge))
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            raise AdapterError(
                f"The input moments of update {index + 1} and of those it is weighed against are not second moments at "
                f"module '{module}': their sum is not positive definite. Measure them again, or give a larger ridge."
            ) from error
    return stacked_sum(gained, [1.0] * len(gained))


def _moment(moments: Sequence[Moments], index: int, module: str, width: int) -> Tensor:
    moment = moments[index].get(module)
    if moment is None or tuple(moment.shape) != (width, width):
        given = "has none" if moment is None else f"has one of {' x '.join(map(str, moment.shape))}"
        raise AdapterError(
            f"Update {index + 1} needs an input second moment of {width} x {width} for module '{module}' and {given}; "
            "measure it on text of that task, with the adapters' base."
        )
    return moment.double()
