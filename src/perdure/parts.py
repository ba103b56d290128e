"""Everything a custom part needs (docs/composition.md): roles, what they see and return, and the algebra of updates.

from perdure.parts import WeightPenalty, dense
"""

from perdure.methods.contract.context import Context, Gradients, Need, ScoreSink, Sink, Streamed
from perdure.methods.contract.parts import (
    BatchPenalty,
    Consolidate,
    Init,
    Keeps,
    Method,
    Part,
    Penalty,
    Replay,
    Start,
    StepRule,
    TensorMemory,
    Trainable,
    WeightPenalty,
)
from perdure.methods.contract.past import Folded, Past, PerTask
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Delta, LowRank, Update, add_updates, dense
from perdure.tasks.examples import Example
from perdure.tasks.task import Stage, Task

__all__ = [
    "BatchPenalty",
    "Consolidate",
    "Context",
    "Delta",
    "Example",
    "Factors",
    "Folded",
    "Gradients",
    "Init",
    "Keeps",
    "LowRank",
    "Method",
    "Need",
    "Part",
    "Past",
    "Penalty",
    "PerTask",
    "Replay",
    "ScoreSink",
    "Sink",
    "Stage",
    "Start",
    "StepRule",
    "Streamed",
    "Task",
    "TensorMemory",
    "Trainable",
    "Update",
    "WeightPenalty",
    "add_updates",
    "dense",
]
