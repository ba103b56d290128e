"""InfLoRA: train B only, in input directions that no earlier task uses. Liang and Li, arXiv 2404.00228.

    inf-lora = inf-lora (InfLora) + sum

    C_t   mean of x x^T over a module's inputs x on task t's examples [I, I]            r  rank
    M     orthonormal basis of the old tasks' input space, kept as itself or as its complement (DualGPM)

    before   C~ = C_t - M M^T C_t;    A = (top-r left singular vectors of C~)^T / sqrt 3, frozen;    B = 0, trained
    after    C_t measured again on the trained model; M grows until it holds the share eps of C_t's energy   `updated_memory`

Every row of A is orthogonal to M, so an update B A leaves the module's output on remembered input directions unchanged.

Settings: `threshold` eps rises linearly to `threshold_end` over `over_tasks` tasks (.95 -> 1; .98 for ImageNet-R;
.995 fixed in later work on T5). Deviations
    - `energy`: the paper counts squared singular values of the inputs, which are the eigenvalues of C_t ("inputs"); the released
      code squares those once more ("released-code"), so the same threshold keeps far fewer directions.
    - If fewer than r directions are left, the released code fills A with arbitrary vectors; here these rows are 0.
    - If the first task fills more than half the space, the code keeps the basis but labels it as the complement; not here.
    - The released code keeps every LoRA branch; here they are summed (consolidate: sum), which is the same function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from perdure.errors import TrainingError
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Init, Start, Trainable
from perdure.methods.measured.input_moments import input_moments
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update
from perdure.tasks.task import Stage

Energy = Literal["inputs", "released-code"]


@dataclass(frozen=True, eq=False)
class Memory:
    """An orthonormal basis [I, K] of the remembered input space, or of its complement (K <= I / 2 either way).

    Args:
        basis_IK: orthonormal columns.
        left: the columns span the complement: the directions still free.
    """

    basis_IK: Tensor
    left: bool = False

    def without(self, matrix_IN: Tensor) -> Tensor:
        """The part of the columns of `matrix_IN` that lies outside the remembered space."""
        inside_basis = self.basis_IK @ (self.basis_IK.mT @ matrix_IN)
        return inside_basis if self.left else matrix_IN - inside_basis

    def grown(self, directions_IN: Tensor) -> Memory:
        """The memory with orthonormal `directions_IN`, so far outside it, in the smaller form."""
        size = self.basis_IK.shape[0]
        if self.left:
            reduced = self.basis_IK - directions_IN @ (directions_IN.mT @ self.basis_IK)
            kept = max(0, self.basis_IK.shape[1] - directions_IN.shape[1])
            return Memory(torch.linalg.svd(reduced, full_matrices=False).U[:, :kept], left=True)
        basis = torch.linalg.qr(torch.cat([self.basis_IK, directions_IN], dim=1)).Q[:, :size]
        if basis.shape[1] <= size / 2:
            return Memory(basis)
        complement = torch.linalg.svd(basis, full_matrices=True).U[:, basis.shape[1] :]
        return Memory(complement, left=True)


def empty_memory(size: int, like: Tensor) -> Memory:
    """Nothing remembered of an input space of `size` dimensions."""
    return Memory(like.new_zeros(size, 0))


def updated_memory(memory: Memory, moment_II: Tensor, threshold: float, energy: Energy = "inputs") -> Memory:
    """The memory grown by the fewest directions with which it holds at least `threshold` of the inputs' energy (DualGPM).

    Args:
        memory: of the tasks so far.
        moment_II: mean of x x^T, symmetric; if it is 0 (no input reached the module) the memory is unchanged.
        threshold: share of the energy in (0, 1].
        energy: what a direction counts for: its eigenvalue, or the square of it.
    """
    if not moment_II.any():
        return memory
    power = 1 if energy == "inputs" else 2
    whole = torch.linalg.svdvals(moment_II).pow(power).sum()
    outside = memory.without(moment_II)
    if energy == "inputs":  # on both sides: the singular values are then the inputs' energy outside the memory
        outside = memory.without(outside.mT)
    U, S, _ = torch.linalg.svd(outside)
    energies = S.pow(power)
    held = 1 - energies.sum() / whole
    after = held + torch.cat([energies.new_zeros(1), energies.cumsum(0)]) / whole
    enough = (after >= threshold - 1e-9).nonzero()
    count = int(enough[0]) if len(enough) else len(S)
    count = min(count, int((S.max() * 1e-6 < S).sum()))
    return memory.grown(U[:, :count]) if count else memory


def frozen_directions(memory: Memory, moment_II: Tensor, rank: int) -> Tensor:
    """A [rank, I]: top left singular vectors of C - M M^T C over sqrt 3; rows without a free direction are 0."""
    outside = memory.without(moment_II)
    U, S, _ = torch.linalg.svd(outside)
    rows = U[:, :rank].mT
    # a direction with almost no input energy is rounding noise, and may lie inside the memory
    free = S[:rank] > 1e-6 * torch.linalg.matrix_norm(moment_II, 2)
    return memory.without((rows * free[:, None]).mT).mT / math.sqrt(3)


class InfLora(Init):
    """A is frozen on input directions free of earlier tasks; only B is trained."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING_DATA, Need.PAST_DATA, Need.MODULE_INPUTS})
    trains: ClassVar[Trainable] = "B"
    protects: ClassVar[str] = "it keeps A off old tasks' inputs"

    threshold: float = Field(default=0.95, gt=0, le=1)
    """share of the input energy remembered after the first task."""
    threshold_end: float = Field(default=1.0, gt=0, le=1)
    """the share it rises to; at least `threshold`."""
    over_tasks: int = Field(default=10, ge=1)
    """after how many tasks; not read if the two are equal."""
    energy: Energy = "inputs"
    """how a direction is counted; see the top of the file."""
    batches: int | None = Field(default=None, ge=1)
    """on how many batches of a task's training examples its inputs are measured; None = all."""
    batch_size: int = Field(default=32, ge=1)
    """examples in each."""

    _memory: dict[str, Memory] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _thresholds_rise(self) -> InfLora:
        if self.threshold > self.threshold_end:
            raise ValueError("threshold rises to threshold_end, which must not be smaller; raise threshold_end")
        usual = type(self).model_fields["over_tasks"].default
        if self.threshold == self.threshold_end and self.over_tasks != usual:
            raise ValueError("threshold and threshold_end are equal, so over_tasks is not read; leave it out")
        return self

    def falls_short(self, stages: Sequence[Stage]) -> str | None:
        """Once the whole input space is remembered, no direction is left for another task."""
        if self.threshold_end < 1 or len(stages) <= self.over_tasks + 1:
            return None
        if self.threshold == 1:
            return "it remembers the whole input space from the first task on. Lower method.init.threshold"
        return (
            f"after {self.over_tasks + 1} tasks it remembers the whole input space (threshold_end is 1), which leaves no "
            f"direction for another; there are {len(stages)}. Set method.init.over_tasks={len(stages)} or more"
        )

    def start(self, ctx: Context) -> Start:
        """A on free directions, B = 0.

        Raises:
            TrainingError: a module has no free input direction left, or no input at all.
        """
        factors: dict[str, Factors] = {}
        for module, moment in self._moments(ctx, "inf-lora.before").items():
            if not moment.any():
                raise TrainingError(
                    f"Task '{ctx.stage.name}': no input reaches '{module}', so no adapter can start from its inputs. Remove "
                    f"'{module}' from lora.targets if this model does not use it, or choose another init."
                )
            pair = ctx.factors[module]
            memory = self._remembered(module, moment)
            A = frozen_directions(memory, moment, pair.A.shape[0])
            if not A.any():
                raise TrainingError(
                    f"InfLoRA has no free input direction left at '{module}' for task '{ctx.stage.name}'; lower "
                    "`threshold` / `threshold_end` or raise `over_tasks`."
                )
            factors[module] = Factors(A.to(pair.A.dtype), torch.zeros_like(pair.B), pair.scaling)
        return Start(factors, trainable=self.trains)

    def after_task(self, ctx: Context, update: Update) -> None:
        """Remember the task's input directions, measured on the trained model."""
        progress = min(1.0, len(ctx.past) / self.over_tasks)
        threshold = self.threshold + (self.threshold_end - self.threshold) * progress
        for module, moment in self._moments(ctx, "inf-lora.after").items():
            memory = self._remembered(module, moment)
            self._memory[module] = updated_memory(memory, moment, threshold, self.energy)

    def _remembered(self, module: str, like: Tensor) -> Memory:
        """The module's memory on `like`'s device (after a resume it is on the CPU)."""
        memory = self._memory.get(module, empty_memory(like.shape[0], like))
        return Memory(memory.basis_IK.to(like), memory.left)

    def _moments(self, ctx: Context, purpose: str) -> dict[str, Tensor]:
        return input_moments(ctx, list(ctx.batches(ctx.stage.train, self.batch_size, purpose))[: self.batches])

    def state(self) -> dict[str, Tensor]:
        """The bases, under 'used.' or 'left.' and the module's name."""
        return {
            f"{'left' if memory.left else 'used'}.{module}": memory.basis_IK.contiguous()
            for module, memory in self._memory.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._memory = {
            key.partition(".")[2]: Memory(basis, left=key.startswith("left.")) for key, basis in state.items()
        }
