"""Which update of the past a penalty compares the new one with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from perdure.errors import ConfigError
from perdure.methods.contract.past import PerTask
from perdure.ops.lowrank import dense

if TYPE_CHECKING:
    from perdure.methods.contract.parts import Method
    from perdure.methods.contract.past import Past
    from perdure.ops.lowrank import Update

HistoryKind = Literal["sum", "merged"]
"""sum: all earlier updates added; merged: the update that answers queries."""


def history_update(past: Past, kind: HistoryKind) -> Update:
    """The history of every module; empty before the first task is learnt.

    Raises:
        ConfigError: 'merged' where every task is answered by an update of its own.
    """
    if kind == "sum":
        return past.total
    if isinstance(past.deployed, PerTask):
        raise ConfigError("history: merged needs one merged update, but this consolidation deploys one per task.")
    return past.deployed


class OfHistory:
    """A dense function of each module's history, computed when it is first asked for in a stage and then kept."""

    def __init__(self) -> None:
        self._past: Past | None = None
        self._kept: dict[str, Tensor] = {}

    def begin(self, past: Past, kind: HistoryKind) -> None:
        """Forget the last stage's; says early that per-task updates are no history (see `history_update`)."""
        self._past, self._kept = past, {}
        history_update(past, kind)

    def at(
        self, module: str, like: Tensor, past: Past, kind: HistoryKind, function: Callable[[Tensor], Tensor]
    ) -> Tensor | None:
        """`function` of the module's history H [O, I] in `like`'s dtype, which it may not write to; None without history."""
        if past is not self._past:
            self._past, self._kept = past, {}
        if module not in self._kept or self._kept[module].dtype != like.dtype:
            history = history_update(past, kind).get(module)
            if history is None:
                return None
            self._kept[module] = function(dense(history).to(like))
        return self._kept[module]


def no_history(method: Method, doing: str = "it compares a task's update with those before it") -> str | None:
    """Why a penalty that does something (`doing`) about a past apart from the update has nothing to do in `method`, or None."""
    if reason := method.out_of_reach():
        return f"{doing}, but {reason}"
    if method.init.continues:
        return (
            f"{doing}, but this init goes on from the last adapter, so that its update holds the past already. Use the init "
            "`kaiming` with a consolidation that carries, like `sum`"
        )
    return None
