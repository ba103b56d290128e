"""Penalties that compare the new update with one of the past."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PrivateAttr
from torch import Tensor

from perdure.errors import ConfigError
from perdure.methods.contract.context import Context
from perdure.methods.contract.parts import Method, WeightPenalty
from perdure.methods.contract.past import Past, PerTask
from perdure.ops.lowrank import Update, dense
from perdure.ops.through_factors import Scratch

HistoryKind = Literal["sum", "merged"]
"""sum: all earlier updates added; merged: the update that answers queries."""


def history_update(past: Past, kind: HistoryKind) -> Update:
    """The history of every module; empty before the first task is learnt.

    Raises:
        ConfigError: 'merged' where every task is answered by its own update.
    """
    if kind == "sum":
        return past.total
    if isinstance(past.deployed, PerTask):
        raise ConfigError("history: merged needs one merged update, but this consolidation deploys one per task.")
    return past.deployed


def no_history(method: Method, does: str) -> str | None:
    """Why a penalty that `does` something about a past apart from the update has nothing to do in `method`, or None."""
    if reason := method.out_of_reach():
        return f"{does}, but {reason}"
    if method.init.continues:
        return (
            f"{does}, but this init continues from the last adapter, so its update already holds the past. Use the init "
            "`kaiming` with a consolidation that carries, like `sum`"
        )
    return None


class PastPenalty(WeightPenalty):
    """A penalty that needs the past apart from the update; its subclass says what it `protects`."""

    def conflicts(self, method: Method) -> str | None:
        return no_history(method, self.protects)


class HistoryPenalty(PastPenalty):
    """A penalty on the update and a dense function of each module's history, computed on first use in a stage and kept.

    Memory: one dense fp32 [O, I] for each module.
    """

    protects: ClassVar[str] = "it compares a task's update with those before it"
    caches: ClassVar[frozenset[str]] = frozenset({"_past", "_dense", "_scratch"})

    if TYPE_CHECKING:
        history: HistoryKind  # a field of each subclass

    _past: Past | None = PrivateAttr(default=None)
    _dense: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _scratch: Scratch = PrivateAttr(default_factory=Scratch)

    def before_task(self, ctx: Context) -> None:
        """Forget the last stage's history; fail early where there is none (see `history_update`)."""
        self._past, self._dense = ctx.past, {}
        history_update(ctx.past, self.history)

    def _of_history(self, module: str, like: Tensor, past: Past, function: Callable[[Tensor], Tensor]) -> Tensor | None:
        """`function` of the module's history H [O, I] in `like`'s dtype, without writing to H; None without history."""
        if past is not self._past:
            self._past, self._dense = past, {}
        if module not in self._dense or self._dense[module].dtype != like.dtype:
            history = history_update(past, self.history).get(module)
            if history is None:
                return None
            self._dense[module] = function(dense(history).to(like))
        return self._dense[module]
