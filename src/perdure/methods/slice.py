"""SLICE: start the adapter from the new task's gradient after surgery against the old tasks'. arXiv 2605.12752.

    slice = slice (Slice) + sum + buffer (use: init-only), lora.alpha 2

    G_c  mean full gradient over batches of the new task [O, I]        s    scaling
    G_r  the same over replayed batches of every old task              r    rank
    W    the weight the task trains on (pretrained + carry)            rho  log_min(O, I)(r)

    (1) G_c, G_r                                        methods.full_gradients
    (2) gamma = relu(-<G_c, G_r>) / ||G_r||^2           ops.surgery.pcgrad
        G~ = G_c + c gamma G_r  where cos(G_c, G_r) < tau
    (3) G~ ~ U S V^T, randomised, truncated             ops.randomized_svd (or ops.sketch)
    (4) B = U[:, :r],  A = V^T[r:2r]                    `start_directions`
    (5) A, B <- (rho Var(W) / Var(B A))^(1/4) A, B      methods.loram.rescaled
    (6) W <- W - s B A, so that the function is unchanged at step 0

The first task has no past: it starts as LoRA-GA does.

Settings: see `Slice`. Deviations and what the released code does differently
    - The code re-reads the old tasks' training sets; the paper has a replay buffer, and so has this file.
    - The code's GradVac never moves its average (it is per-module PCGrad), its CAGrad is PCGrad with c, its per-layer tau is
      median - delta. Here GradVac and CAGrad are the published ones, and `tau_below_median` is that delta.
    - The code can scale G~ to the length of G_c. Only U and V of G~ are used, so that changes nothing and is not a setting.
    - Stage 1, in the code and here, is LoRA-GA with its own directions and scale.
    - `replay_batches_in_all` bounds the cost for many tasks (step (1) otherwise grows with their number).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from perdure.errors import ConfigError, UnmetNeed
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Method, Start
from perdure.methods.lora_ga import GradientInit, lora_ga_like, offset_start, singular_directions
from perdure.methods.loram import rescaled
from perdure.methods.measured.full_gradients import FullGradients, add_mean, check_norms, full_batches
from perdure.methods.replay import ExampleBuffer
from perdure.ops import surgery
from perdure.ops.surgery import Coefficients, Gram
from perdure.tasks.task import Example

Operator = Literal["pcgrad", "gradvac", "cagrad", "null-space", "none"]
RightDirections = Literal["next", "top"]


def start_directions(U: Tensor, Vh: Tensor, rank: int, right: RightDirections = "next") -> tuple[Tensor, Tensor]:
    """Step (4): A [R, I] and B [O, R]. B is U[:, :r]; A is V^T[r:2r] ("next", as published) or V^T[:r] ("top")."""
    if right == "top":
        return Vh[:rank], U[:, :rank]
    return singular_directions(U, Vh, rank, "A2rBr")


class Slice(GradientInit):
    """The adapter starts from a gradient that does not oppose the old tasks'; the base is offset, the function unchanged."""

    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.DENSE_BASE, Need.FULL_GRADIENTS, Need.OLD_EXAMPLES, Need.TRAINING_DATA, Need.RANK_OF_TWO}
    )
    protects: ClassVar[str] = "it takes out of the start what opposes the old tasks"
    read_by: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        **GradientInit.read_by,
        "operator": {
            "scope": ("pcgrad", "gradvac", "cagrad"),
            "c": ("pcgrad", "cagrad"),
            "tau": ("pcgrad", "gradvac"),
            "tau_below_median": ("pcgrad", "gradvac"),
            "beta": ("gradvac",),
            "null_directions": ("null-space",),
        },
    }

    operator: Operator = "pcgrad"
    """pcgrad; gradvac (raises the cosine to a moving average of it); cagrad; null-space (removes the old gradient's
    top directions, per module, always); none (SLICE's factors without surgery)."""
    scope: Literal["global", "per-module"] = "global"
    """inner products over all modules together (the paper's recipe), or per module."""
    c: float | None = Field(default=None, ge=0)
    """strength of pcgrad, 1 by default; radius of cagrad, in [0, 1), .5 by default."""
    tau: float | None = Field(default=None, ge=-1, le=1)
    """surgery only where the cosine is below it. By default 0 for pcgrad (above 0 there is nothing to remove), and 1
    for gradvac, which acts wherever the cosine is below its moving average, as published."""
    tau_below_median: float | None = Field(default=None, ge=0)
    """instead, with scope per-module: tau = median of the modules' cosines - this."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """how fast gradvac's average moves, once per task."""
    null_directions: int = Field(default=8, ge=1)
    """k of null-space."""
    replay_batches: int = Field(default=8, ge=1)
    """of every old task, `batch_size` examples each."""
    replay_batches_in_all: int | None = Field(default=None, ge=1)
    """instead, this many for all old tasks together, with equally many examples of each."""
    right: RightDirections = "next"
    """which right singular vectors A takes."""

    _targets: dict[str, float] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _settings_agree(self) -> Slice:
        usual = type(self).model_fields["replay_batches"].default
        if self.replay_batches_in_all is not None and self.replay_batches != usual:
            raise ValueError(
                "replay_batches counts batches of each old task, replay_batches_in_all of all together; give one"
            )
        if self.operator == "cagrad" and self.c is not None and self.c >= 1:
            raise ValueError("c is the radius of operator cagrad, which is in [0, 1); choose a smaller one")
        if self.tau_below_median is not None and (self.tau is not None or self.scope == "global"):
            raise ValueError(
                "tau_below_median compares every module's cosine with their median; set scope: per-module, and no tau"
            )
        return self

    def conflicts(self, method: Method) -> str | None:
        """Also refused if less is kept of the past than a batch."""
        if reason := super().conflicts(method):
            return reason
        if isinstance(method.replay, ExampleBuffer) and (kept := method.replay.budget) < self.batch_size:
            return (
                f"a gradient takes batches of {self.batch_size} examples, but the replay part keeps {kept}. Raise its budget, or "
                "lower the init's batch_size"
            )
        return None

    def grows(self) -> str | None:
        if self.replay_batches_in_all is not None:
            return None
        return (
            f"a start takes {self.replay_batches} batches of every old task (bounded by replay_batches_in_all, for example "
            f"{8 * self.replay_batches})"
        )

    def start(self, ctx: Context) -> Start:
        """Steps (1) to (6); LoRA-GA on the first task.

        Raises:
            ConfigError: the sketches keep fewer directions than the null space needs.
        """
        width = self._sketched_directions(ctx)
        if self.operator == "null-space" and self.storage == "sketched" and self.null_directions > width:
            raise ConfigError(
                f"method.init.null_directions: {self.null_directions} directions are to be removed, but a sketch keeps {width}. "
                f"Set method.init.sketch_width={self.null_directions} or more, or storage: dense."
            )
        if len(ctx.past) == 0:
            return lora_ga_like(self).start(ctx)
        empty = self._accumulators(ctx, "slice")
        new = self._task_gradient(ctx, empty(), "slice.new")
        old = self._old_gradient(ctx, empty())
        mixes = self._operate(ctx, {module: new.gram(module, old) for module in ctx.factors})
        remove = self.null_directions if self.operator == "null-space" else 0
        starts: dict[str, tuple[Tensor, Tensor]] = {}
        for module, pair in ctx.factors.items():
            rank = pair.A.shape[0]
            U, _, Vh = new.triplets(module, 2 * rank, old, mixes[module], remove)
            new.drop(module)
            old.drop(module)
            A, B = start_directions(U, Vh, rank, self.right)
            starts[module] = rescaled(A, B, ctx.weight(module), module)
        return offset_start(starts, ctx.factors)

    def _old_gradient(self, ctx: Context, empty: FullGradients) -> FullGradients:
        """`empty` filled with the mean over old tasks of each one's mean gradient."""
        replayed = self._replayed(ctx)
        for batches in replayed:
            add_mean(ctx, batches, empty, share=1 / len(replayed))
        check_norms(ctx, empty.norms(), "The replayed examples")
        return empty

    def _replayed(self, ctx: Context) -> list[list[Sequence[Example]]]:
        """Batches of every old task; or of all of them mixed, if their number is bounded in all."""
        if not any(ctx.buffer.values()):
            raise UnmetNeed(
                f"SLICE starts task '{ctx.stage.name}' from examples of earlier tasks, but the replay buffer is empty. "
                "Give the replay part a budget of at least one batch."
            )
        if self.replay_batches_in_all is not None:
            mixed = self._equally_many(ctx, self.replay_batches_in_all * self.batch_size)
            return [self._batches_of(ctx, mixed, len(mixed), "slice.old")]
        return [
            self._batches_of(ctx, kept, self.replay_batches, f"slice.old.{task}") for task, kept in ctx.buffer.items()
        ]

    def _batches_of(self, ctx: Context, kept: Sequence[Example], count: int, purpose: str) -> list[Sequence[Example]]:
        """Whole batches, or a smaller one if less is kept: with a budget for all tasks each keeps less and less."""
        return full_batches(ctx, kept, min(self.batch_size, len(kept)), count, purpose, "The replay buffer")

    def _equally_many(self, ctx: Context, count: int) -> list[Example]:
        """`count` kept examples (or all), the tasks taking turns."""
        orders = [
            list(next(iter(ctx.batches(kept, len(kept), f"slice.old.{task}")))) for task, kept in ctx.buffer.items()
        ]
        turns = [order[turn] for turn in range(max(map(len, orders))) for order in orders if turn < len(order)]
        return turns[:count]

    def _operate(self, ctx: Context, grams: Mapping[str, Gram]) -> dict[str, Coefficients]:
        """Step (2): module -> the two coefficients; noted in the stage's notes."""
        together = surgery.total(grams.values())
        if self.scope == "global":
            units, keys = dict.fromkeys(grams, together), dict.fromkeys(grams, "all")
        else:
            units, keys = dict(grams), {module: module for module in grams}
        tau = (1.0 if self.operator == "gradvac" else 0.0) if self.tau is None else self.tau
        if self.tau_below_median is not None:
            tau = surgery.threshold_below_median(
                {module: gram.cosine for module, gram in grams.items()}, self.tau_below_median
            )
        result = {module: self._coefficients(units[module], keys[module], tau) for module in grams}
        if self.operator == "gradvac":
            for key, gram in {keys[module]: units[module] for module in grams}.items():
                self._targets[key] = surgery.moved_target(self._targets.get(key, 0.0), gram.cosine, self.beta)
        ctx.note("slice/cosine", together.cosine)
        # the null space always fires, and adds no multiple of G_r
        fired = [self.operator == "null-space" or b != 0 for _, b in result.values()]
        ctx.note("slice/fired", sum(fired) / len(fired))
        for module, (_, b) in result.items():
            ctx.note(f"slice/cosine/{module}", grams[module].cosine)
            ctx.note(f"slice/gamma/{module}", b)
        return result

    def _coefficients(self, gram: Gram, key: str, tau: float) -> Coefficients:
        match self.operator:
            case "pcgrad":
                return surgery.pcgrad(gram, 1.0 if self.c is None else self.c, tau)
            case "gradvac":
                return surgery.gradvac(gram, self._targets.get(key, 0.0), tau)
            case "cagrad":
                return surgery.cagrad(gram, 0.5 if self.c is None else self.c)
            case _:
                return surgery.UNCHANGED

    def state(self) -> dict[str, Tensor]:
        """GradVac's moving averages."""
        return {f"target.{key}": torch.tensor(value, dtype=torch.float64) for key, value in self._targets.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._targets = {key.removeprefix("target."): float(value) for key, value in state.items()}
