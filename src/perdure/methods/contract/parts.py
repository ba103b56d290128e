"""The part contract: what a continual-learning method is made of (docs/decisions/0001-parts.md).

A method is a composition of parts, each answering one question of the loop in `perdure.loop.sequence`:

    Init            How does a new task's adapter start?
    WeightPenalty   What is added to the task loss, given the past? (data-free, returns its own gradient)
    BatchPenalty    The same, computed from a batch and the model's outputs on it.
    StepRule        What happens to the gradients, or after the step?
    Consolidate     What does the next task train on (carry), and what answers queries (deployed)?
    Replay          Which old examples are kept, and what for?
    Head            What answers beside the adapter, without training?

A part's settings are its typed, frozen fields. What it remembers between tasks are private attributes, saved and restored
as tensors by `state` and `load`. A part overrides only the hooks it needs; a misspelt hook is an error. The loop checks what
a part returns (perdure.methods.contract.calls); perdure.testing.check_part tests a custom part.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from torch import Tensor

from perdure.methods.contract.context import Context, Gradients, Need
from perdure.methods.contract.past import Folded, Past
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update
from perdure.settings.read import Settings

if TYPE_CHECKING:
    from perdure.backbones.base import Batch, Outputs
    from perdure.tasks.task import Example, Stage, StreamMode

Trainable = Literal["AB", "A", "B"]
"""Which of an adapter's two matrices are trained."""
Keeps = Literal["carried", "merged", "newest", "per-task"]
"""What a consolidation keeps of the past. carried: folded into the base the next task trains on; merged: in what answers, while
the next task starts from the pretrained weights; newest: the newest update alone; per-task: every task's own update."""


@dataclass(frozen=True)
class Start:
    """How an adapter starts.

    Args:
        factors: module name -> A, B, scaling, and A0, B0 if the base is offset by -s B0 A0.
        trainable: which of the two matrices are trained.
    """

    factors: Mapping[str, Factors]
    trainable: Trainable = "AB"

    def tensors(self) -> list[Tensor]:
        """Every tensor of every module's factors, in order."""
        each = ((pair.A, pair.B, pair.A0, pair.B0) for pair in self.factors.values())
        return [tensor for four in each for tensor in four if tensor is not None]


class Part(Settings):
    """What all parts share: frozen, typed settings, and the hooks of the loop."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    needs: ClassVar[frozenset[Need]] = frozenset()
    """What it requires whatever its settings are."""
    needs_past: ClassVar[bool] = False
    """It does nothing before a first stage is learnt."""
    protects: ClassVar[str] = ""
    """What it does for old tasks, as a clause ("it keeps A off old tasks' inputs"). A part that protects the past, or only
    `needs_past`, is refused in a method in which nothing can."""
    holds_base: ClassVar[bool] = False
    """Its `after_task` measures on the stage's examples what protects a finished task: the base too, as one at index -1."""
    read_by: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {}
    """Setting that chooses -> other setting -> the choices that read it. With any other choice it must stay at its default:
    no setting is accepted and ignored."""
    caches: ClassVar[frozenset[str]] = frozenset()
    """Private attributes that only save work: recomputed, to the same bits, when missing. Any other that changes while a
    stage is learnt is memory, and belongs in `state`."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a public method that no base declares: it is a misspelt hook, and would never be called."""
        if cls.__module__ == __name__:
            return  # this file declares the hooks
        known = {name for base in cls.__mro__[1:] for name in vars(base)}
        for name, value in vars(cls).items():
            if callable(value) and not name.startswith("_") and name not in known and not isinstance(value, type):
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                raise TypeError(
                    f"{cls.__name__}.{name} is not a hook of the part contract{hint} (helpers start with '_')."
                )

    @model_validator(mode="after")
    def _unread_settings_stay_at_their_defaults(self) -> Part:
        for choice, readers in self.read_by.items():
            chosen = getattr(self, choice)
            for name, choices in readers.items():
                if chosen not in choices and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{choice} {chosen} does not read {name} (only {' and '.join(choices)}); leave it out"
                    )
        return self

    def requires(self) -> frozenset[Need]:
        """What this part requires of a run with its settings: `needs`, and more if a setting asks for it."""
        return self.needs

    def conflicts(self, method: Method) -> str | None:
        """Why this part makes no sense with the rest of `method`, and what to use instead; None if it does.

        Called before anything is loaded; each part knows its own conflicts."""
        does = self.protects or ("it does nothing without a past to protect" if self.needs_past else "")
        reason = method.out_of_reach() if does else None
        return reason and f"{does}, but {reason}"

    def falls_short(self, stages: Sequence[Stage]) -> str | None:
        """Why this part cannot last through all of these stages, and what to set instead; None if it can.

        Called before training, because settings cannot change once a run has begun."""
        return None

    def grows(self) -> str | None:
        """What takes longer, or more memory, with every task learnt, and the setting that bounds it; None if nothing does.

        A run says it first: with hundreds of tasks it is the price."""
        return None

    def acts(self, ctx: Context) -> bool:
        """Whether this penalty, step rule or replay changes anything in the steps of the stage that begins.

        False is a guarantee (a penalty and its gradient are exactly 0): runs that differ only in parts that do not act
        may share a stage's training (perdure.state.shared)."""
        return not self.needs_past or len(ctx.past) > 0

    def before_task(self, ctx: Context) -> None:
        """Called when a stage begins, with the carry folded in and before the adapter starts."""

    def after_task(self, ctx: Context, update: Update) -> None:
        """Called after a stage's training, with the trained model; `update` is the stage's effective update."""

    def state(self) -> dict[str, Tensor]:
        """What must survive a stop, between stages or after any step inside one, as tensors; empty for a part without memory.

        What `before_task` computes from `ctx` alone may be left out: on resume `before_task` runs first, then `load`."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, between stages or inside one."""


class TensorMemory(Part):
    """Mixin: a part whose memory is one dictionary of tensors."""

    _memory: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def acts(self, ctx: Context) -> bool:
        """Also before a first stage is learnt, if it holds the base."""
        return super().acts(ctx) or bool(self._memory)

    def state(self) -> dict[str, Tensor]:
        return dict(self._memory)

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._memory = dict(state)


class Init(Part):
    """How a new task's adapter starts."""

    continues: ClassVar[bool] = False
    """It continues from `past.factors`, the last stage's trained A and B: its update is the whole change since the pretrained
    weights, not one task's."""
    offsets: ClassVar[bool] = False
    """It offsets the base, so that the update is s (B A - B0 A0)."""
    trains: ClassVar[Trainable] = "AB"
    """Which matrices are trained."""

    def start(self, ctx: Context) -> Start:
        """Factors (and offset) for every module of `ctx.factors`."""
        raise NotImplementedError


class Penalty(Part):
    """A term added to the task loss, weighted by a number or by a share of the gradient."""

    weight: float | None = Field(default=None, ge=0)
    """lambda, the factor of the penalty in the loss. 0 switches it off."""
    gradient_share: float | None = Field(default=None, gt=0)
    """instead of `weight`: at every step lambda makes the norm of the penalty's gradient this share of the norm of
    the gradient before weight penalties, of task loss and batch penalties (0.1 = a tenth)."""

    @model_validator(mode="after")
    def _one_weight(self) -> Penalty:
        if (self.weight is None) == (self.gradient_share is None):
            raise ValueError("give either `weight` or `gradient_share`, not both")
        return self


class WeightPenalty(Penalty):
    """A data-free penalty on the effective update. Added once per optimiser step, to the reduced gradient, before
    clipping: gradient accumulation and more processes cannot multiply it."""

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """Value (scalar) of the unweighted penalty at one module, and its gradients of A [R, I] and B [O, R].

        `factors` are live, not copies: read only. Writing to them changes the adapter."""
        raise NotImplementedError

    def values_and_grads(
        self, factors: Mapping[str, Factors], past: Past
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The sum over modules, and every module's gradients. Override only to be faster than one by one. Read only, too."""
        total = torch.zeros((), dtype=torch.float64)
        grads: dict[str, tuple[Tensor, Tensor]] = {}
        for module, pair in factors.items():
            value, grad_A, grad_B = self.value_and_grad(module, pair, past)
            total = total + value.double().cpu()  # modules may be on a GPU, or on several
            grads[module] = (grad_A, grad_B)
        return total, grads


class BatchPenalty(Penalty):
    """A penalty that needs the batch; added to the loss of each micro-batch. `gradient_share` does not apply to it."""

    @model_validator(mode="after")
    def _only_weight(self) -> BatchPenalty:
        if self.weight is None:
            raise ValueError("give `weight`: the gradient of a batch penalty is not known apart from that of the loss")
        return self

    def loss(self, ctx: Context, batch: Batch, outputs: Outputs) -> Tensor:
        """The unweighted penalty, a mean over the batch's examples."""
        raise NotImplementedError


class StepRule(Part):
    """What happens to the reduced gradients before clipping, or to the factors after the step."""

    def gradients(self, ctx: Context, grads: Gradients) -> Gradients:
        """The gradients to step with."""
        return grads

    def stepped(self, ctx: Context, factors: Mapping[str, Factors], learning_rate: float) -> None:
        """Change the factors' tensors in place after the optimiser's step (no gradient is recorded)."""


class Consolidate(Part):
    """What the next task trains on and what answers queries, given the past and the new update."""

    @property
    def keeps(self) -> Keeps:
        """What is kept of the past, for parts that need to know."""
        return "carried"

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        """Carry and deployed after this stage."""
        raise NotImplementedError


class Replay(Part):
    """Which old examples are kept, and what for."""

    def remember(self, ctx: Context, examples: Sequence[Example]) -> None:
        """Called at the end of a stage with its training examples."""

    def buffer(self) -> dict[str, tuple[Example, ...]]:
        """Task name -> kept examples, oldest task first."""
        return {}

    def mix(self, ctx: Context, batch: Sequence[Example]) -> Sequence[Example]:
        """The batch to train on, given the next one of the current task."""
        return batch


class Head(Part):
    """What answers beside the adapter, from vectors of the untouched base (`Context.vectors`), without training.

    It learns in `after_task`, and has its say where answers are chosen among labels (perdure.training.heads)."""

    def has_say(self, labels: Sequence[tuple[str, str]]) -> bool:
        """Whether it knows anything of these (task, label) pairs; if not, no vector is computed and the adapter answers alone."""
        return True

    def combined(self, vectors: Tensor, probabilities: Tensor, labels: Sequence[tuple[str, str]]) -> Tensor:
        """Scores [n, labels] whose softmax are the probabilities of both together, of labels that it has a say on.

        Given vectors [n, D] and the adapter's probabilities [n, labels]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Method:
    """A composition of parts; `name` is the preset's, or 'custom'."""

    name: str
    init: Init
    consolidate: Consolidate
    penalties: Mapping[str, Penalty] = field(default_factory=dict)
    step_rule: StepRule | None = None
    replay: Replay | None = None
    head: Head | None = None
    stream: StreamMode = "one-by-one"

    def out_of_reach(self) -> str | None:
        """Why nothing can protect the past in this method; None if something can."""
        if self.stream == "joint":
            return "the joint stream is a single stage, which has no past"
        if self.consolidate.keeps == "per-task":
            return "every old task is answered by its own update, which nothing changes"
        if self.consolidate.keeps == "newest" and not self.init.continues:
            return "only the newest update is kept and it starts from scratch, so nothing of the past is left"
        return None

    def parts(self) -> dict[str, Part]:
        """Every part under a name that is unique in this method; used for state and in messages."""
        penalties = {f"penalties.{name}": part for name, part in self.penalties.items()}
        named = {"init": self.init, "consolidate": self.consolidate, **penalties, "step_rule": self.step_rule}
        return {name: part for name, part in {**named, "replay": self.replay, "head": self.head}.items() if part}
