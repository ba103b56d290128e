"""What a part may look at while a stage is learnt, and what it can require of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from perdure.methods.contract.past import Past, PerTask
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update

if TYPE_CHECKING:
    from perdure.backbones.base import Batch, Outputs
    from perdure.tasks.task import Example, Stage

Gradients = dict[str, tuple[Tensor | None, Tensor | None]]
"""Module name -> gradients of A [R, I] and B [O, R]; None for a frozen factor, or one the loss does not depend on."""
Streamed = Literal["gradients", "inputs"]
Sink = Callable[[str, Tensor], None]
ScoreSink = Callable[[str, int, Tensor, Tensor], None]


class Need(Enum):
    """What a part requires of a run; checked before training."""

    DENSE_BASE = "a base whose weights are stored dense (not 4- or 8-bit)"
    FULL_GRADIENTS = (
        "gradients of whole weights (a sharded base, shard=true, and experts, lora.target_parameters, have none)"
    )
    MODULE_INPUTS = "the inputs of every adapted module (those of experts, lora.target_parameters, are not measured)"
    OLD_EXAMPLES = "examples of earlier tasks: choose a replay part"
    VALIDATION = "validation examples for every task"
    PAST_DATA = (
        "the data of every task learnt before (adapters given as `history` come without it; for perdure, ewc and output-drift "
        "`protect: self` replaces it by texts that a causal model writes with each adapter)"
    )
    RANK_OF_TWO = "lora.rank 2 or more (a start scaled by rho = log r / log min(O, I) is 0 at rank 1 and never trains)"
    LABELS = "labels for every task (it compares their scores). For free text choose perdure, output-drift or inc-lora"
    TRAINING_DATA = "the training examples of the task (statistics are measured on them)"


class Context(Protocol):
    """A part's read-only view of the run. The loop makes one for every stage.

    `weight`, `stream`, `task_gradients`, `scores` and `teacher` use the model as it is when they are called.
    """

    @property
    def stage(self) -> Stage:
        """The stage being learnt."""
        ...

    @property
    def index(self) -> int:
        """Its position in the sequence, from 0."""
        ...

    @property
    def past(self) -> Past:
        """What earlier stages left behind."""
        ...

    @property
    def buffer(self) -> Mapping[str, Sequence[Example]]:
        """Task name -> old examples kept by the replay part, oldest task first; empty without one."""
        ...

    @property
    def factors(self) -> Mapping[str, Factors]:
        """The adapter's current factors (detached, live: read only). Before `Init.start` only shapes and scaling count."""
        ...

    def generator(self, purpose: str) -> torch.Generator:
        """A random generator seeded by the run's seed, the stage and `purpose` alone: a resumed run draws the same."""
        ...

    def weight(self, module: str) -> Tensor:
        """The weight the task trains on, [O, I] fp32: pretrained + carry, without adapter and offset."""
        ...

    def batches(self, examples: Sequence[Example], size: int, purpose: str) -> Iterable[Sequence[Example]]:
        """`examples` in a random order fixed by `purpose`, cut into batches of `size` (the last may be smaller)."""
        ...

    def stream(self, batches: Iterable[Sequence[Example]], what: Streamed, sink: Sink) -> None:
        """Run the model over `batches` and call `sink(module, tensor)` for every module, batch by batch.

        gradients: of the batch's mean loss with respect to the full weight, [O, I], one module alive at a time.
        inputs:    the module's inputs at real (not padded) positions, [n, I].
        """

    def stream_scores(self, batches: Iterable[Sequence[Example]], sink: ScoreSink) -> None:
        """Run the model over `batches` and call `sink(module, use, inputs [n, I], gradients [n, O])`, batch by batch.

        Gradients are those of a random combination of each example's scores with respect to the module's outputs, at the
        positions on which the scores depend. Over many draws the gradients g of an example give E[g g^T] = the Gauss-Newton
        matrix of its scores (perdure.ops.combinations): under its own task's labels the mean over labels, for free text the
        mean over the answer's tokens of the Fisher matrix of the next one.
        `use` counts how often the module ran before for the same scores: an encoder reads texts, then labels.
        """

    def vectors(self, examples: Sequence[Example]) -> Tensor:
        """One vector for each example's input, [n, D] fp32, by the untouched base: it never changes (`Backbone.vectors`)."""
        ...

    def chances(self, examples: Sequence[Example], task: str) -> Tensor:
        """Probabilities [n, labels] of the labels of `task`, by the current model as it answers."""
        ...

    def task_gradients(self, examples: Sequence[Example]) -> Gradients:
        """Gradients of the mean task loss over `examples` with respect to the adapter's trainable factors."""
        ...

    def scores(self, batch: Batch, outputs: Outputs, task: str) -> Tensor:
        """Differentiable scores [n, labels] of the current model for the batch's inputs under the labels of `task`."""
        ...

    def teacher(self, examples: Sequence[Example], tasks: Sequence[str]) -> list[Tensor]:
        """Scores [n, labels] of the examples under each task's labels, by the model as it was when this stage began."""
        ...

    def note(self, name: str, value: float) -> None:
        """Record a number (a cosine, a chosen threshold, how often a rule fired) in the stage's notes."""

    def evaluate(self, deployed: Update | PerTask, task: str) -> float:
        """Score of `deployed` on the VALIDATION examples of a task that is finished or being learnt."""
        ...
