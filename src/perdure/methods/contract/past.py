"""What is kept of the past: enough for every part, in bounded memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update, add_updates


@dataclass(frozen=True)
class PerTask:
    """One deployed update per task; any other task is answered by the untouched base."""

    updates: Mapping[str, Update]


@dataclass(frozen=True)
class Folded:
    """What a finished task leaves behind.

    Args:
        carry: the update folded into the base before the next task trains.
        deployed: the update that answers queries, or `PerTask` updates.
    """

    carry: Update
    deployed: Update | PerTask


def _no_updates(index: int) -> Update:
    raise IndexError(f"stage {index} has not been learnt")


@dataclass(frozen=True)
class Past:
    """What the stages learnt so far left behind. Constant in size once `total` has become dense.

    Args:
        stages: names of the finished stages, oldest first.
        total: the sum of all effective updates so far (low rank while that is smaller). If the init continues from the last
            adapter, each update contains the earlier ones and the sum counts them again: penalties refuse that init.
        carry: the update folded into the base while the next stage trains.
        deployed: the update that answers queries now.
        factors: the last stage's trained factors, for inits that continue from them; empty before the first.
        load_update: stage index -> that stage's effective update, read from the store on demand.
    """

    stages: tuple[str, ...] = ()
    total: Update = field(default_factory=dict)
    carry: Update = field(default_factory=dict)
    deployed: Update | PerTask = field(default_factory=dict)
    factors: Mapping[str, Factors] = field(default_factory=dict)
    load_update: Callable[[int], Update] = _no_updates

    def __len__(self) -> int:
        return len(self.stages)

    def after(self, stage: str, update: Update, folded: Folded, factors: Mapping[str, Factors]) -> Past:
        """The past after `stage`."""
        return dataclasses.replace(
            self,
            stages=(*self.stages, stage),
            total=add_updates(self.total, update),
            carry=folded.carry,
            deployed=folded.deployed,
            factors=factors,
        )

    def updates(self) -> list[Update]:
        """Every stage's effective update, oldest first; cost and memory grow with the number of stages."""
        return [self.load_update(index) for index in range(len(self))]
