"""Which update of the past a penalty compares the new one with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from perdure.errors import ConfigError
from perdure.methods.parts import PerTask

if TYPE_CHECKING:
    from perdure.history import Past
    from perdure.methods.parts import Method
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
